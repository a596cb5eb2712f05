"""Make pages with numbers: words from docs/*.in.md, numbers from results of `jcos run`.

    make -j2 paper paper-ensemble_large
    python scripts/findings.py --results out/paper
    python scripts/findings.py search  # one page alone

The words are a jinja2 template. `{{ steps("maze", "solved", "step 49") }}` is the line of
out/paper/steps/table.csv with that task, measure and case: its value with the 95 % interval. `n=1`
adds the number of puzzles; `column="chance"` takes another column. `{{ steps.command }}` is an
entry of its manifest. Figures that the page shows are copied next to it.
"""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jinja2

from jcos.files import local_path, visible
from jcos.lab.results import load
from tables import options

DOCS = Path(__file__).parents[1] / "docs"
FIGURE = re.compile(r"\(findings/([a-z0-9_]+)-([^()\s]+)\.svg\)")
KEY = ("task", "measure", "case")


class Results:
    """A folder of `jcos run`: its manifest as attributes, the lines of its table when called."""

    def __init__(self, folder: Path):
        self.name, self._folder = folder.name, folder
        self._manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
            self._lines = {tuple(line[k] for k in KEY): line for line in csv.DictReader(file)}

    def __getattr__(self, name: str) -> Any:
        try:
            return self._manifest[name]
        except KeyError:
            raise AttributeError(f"{self.name} has no {name} in its manifest") from None

    @property
    def settings(self) -> Any:
        """Return what a search does, by task and case."""
        return json.loads(load(self._folder / "results.nc").attrs["settings"])

    def __call__(self, *key: str, column: str = "", n: bool = False) -> str:
        """Return a cell in words. Raises ValueError for a line that the table does not have."""
        if key not in self._lines:
            near = sorted(self._lines, key=lambda k: (k[:2] != key[:2], k[0] != key[0]))[:40]
            raise ValueError(f"{self.name} has no line {key}; it has {near}")
        line = self._lines[key]
        if column:
            if not line[column]:
                raise ValueError(f"{self.name} has no {column} of {key}")
            return line[column] if line[column].isdigit() else number(line[column])
        exact = [line[k] for k in ("value", "low", "high")]
        value, low, high = map(number, exact)
        digits = 0
        while low == high and exact[1] != exact[2]:  # a width that three digits do not show
            digits += 1
            value, low, high = (f"{float(v):.{digits}g}" for v in exact)
        return f"{value} [{low}, {high}]" + (f" (n = {line['n']})" if n else "")


def number(text: str) -> str:
    """Return a value to three digits after the point, or to three in all where it is large."""
    value = round(float(text), 3) + 0.0  # no minus before a zero
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def fill(words: Path, folder: Path) -> str:
    """Return a page. Raises ValueError for a number that no table has."""
    results = {p.parent.name: Results(p.parent) for p in visible(folder, "*/run.json")}
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    try:
        return environment.from_string(words.read_text(encoding="utf-8")).render(results)
    except jinja2.TemplateError as error:
        raise ValueError(f"{words.name}: {error}") from None


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--results", type=local_path, default=Path("out/paper"))
    parser.add_argument("--docs", type=local_path, default=DOCS, help="folder of the page")
    parser.add_argument("pages", nargs="*", default=["*"], help="by name; all by default")
    arguments = parser.parse_args()
    try:
        words = []
        for name in arguments.pages:
            if not (named := sorted(arguments.docs.glob(f"{name}.in.md"))):
                raise ValueError(f"{arguments.docs} has no {name}.in.md, the words of a page")
            words += named
        pages = {path: fill(path, arguments.results) for path in words}
        pictures = arguments.docs / "findings"
        pictures.mkdir(exist_ok=True)
        for name, figure in FIGURE.findall("".join(pages.values())):
            source = arguments.results / name / "figures" / f"{figure}.svg"
            shutil.copyfile(source, pictures / f"{name}-{figure}.svg")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for path, page in pages.items():
        path.with_name(path.name.replace(".in", "")).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
