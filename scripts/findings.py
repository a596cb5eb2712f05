"""Fills docs/findings.md: words from docs/findings.in.md, numbers from results of `jcos run`.

    make -j2 paper
    python scripts/findings.py --results out/paper

In the words, `{steps | maze | solved | step 49}` stands for the line of out/paper/steps/table.csv
with that task, measure and case, and becomes its value with interval and n, or with `| chance`,
`| still` or `| forwards` behind it what the table says there; `{steps | command}` and
`{steps | seconds}` stand for an entry of config.json. Figures that are shown are copied beside the
page.
"""

import argparse
import csv
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jcos.files import local_path

DOCS = Path(__file__).parents[1] / "docs"
MARK = re.compile(r"\{([a-z_-]+) \| ([^{}\n]+)\}")
FIGURE = re.compile(r"\(findings/([a-z_]+)-([^()\s]+)\.png\)")


class Results:
    """Folders of `jcos run` under one folder, by name."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._tables: dict[str, Mapping[tuple[str, ...], Mapping[str, str]]] = {}

    def config(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name / "config.json").read_text())

    def line(self, name: str, key: tuple[str, ...]) -> Mapping[str, str]:
        """The line of a table. Raises ValueError where there is none, with the nearest ones."""
        if name not in self._tables:
            with (self.folder / name / "table.csv").open(newline="") as file:
                lines = csv.DictReader(file)
                self._tables[name] = {(n["task"], n["measure"], n["case"]): n for n in lines}
        table = self._tables[name]
        if key not in table:
            near = [" | ".join(k) for k in table if k[:-1] == key[:-1]] or [
                " | ".join(k) for k in table if k[0] == key[0]
            ]
            raise ValueError(f"{name} has no line '{': '.join(key)}'; it has {near[:40]}")
        return table[key]


def number(text: str) -> str:
    """A value to three digits after the point, or to three in all where it is large."""
    value = round(float(text), 3) + 0.0  # no minus before a zero
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def fill(words: str, results: Results) -> str:
    """The words with every mark replaced. Raises ValueError for a mark that stands for nothing."""

    def replaced(mark: re.Match[str]) -> str:
        name, key = mark[1], tuple(mark[2].split(" | "))
        if len(key) == 1:
            return str(results.config(name)[key[0]])
        line, column = results.line(name, key[:3]), key[3:]
        if column:
            told = line.get(column[0])
            if not told:
                raise ValueError(f"{name} has no {column[0]} of '{': '.join(key[:3])}'")
            return told if told.isdigit() else number(told)
        exact = [line[k] for k in ("value", "low", "high")]
        value, low, high = map(number, exact)
        if low == high and exact[1] != exact[2]:  # a width that three digits do not show
            value, low, high = (f"{float(v):.1g}" for v in exact)
        return f"{value} [{low}, {high}] (n = {line['n']})"

    return MARK.sub(replaced, words)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=local_path, default=Path("out/paper"))
    parser.add_argument("--docs", type=local_path, default=DOCS, help="folder of the page")
    arguments = parser.parse_args()
    try:
        page = fill((arguments.docs / "findings.in.md").read_text(), Results(arguments.results))
        pictures = arguments.docs / "findings"
        shutil.rmtree(pictures, ignore_errors=True)
        pictures.mkdir()
        for name, figure in FIGURE.findall(page):
            source = arguments.results / name / "figures" / f"{figure}.png"
            shutil.copyfile(source, pictures / f"{name}-{figure}.png")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    (arguments.docs / "findings.md").write_text(page)


if __name__ == "__main__":
    main()
