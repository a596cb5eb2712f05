"""Commands that show results: `jcos report`, `explore`, `export`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jcos.cli.base import Command
from jcos.cli.paths import InFolder, OutFile, OutFolder

KINDS = ("svg", "png", "csv")
"""In which charts are exported."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Make a page of results to look inside: steps × frames, curves, heat maps, tables, files.

    RESULTS is what a command left; many make this page themselves at their end. Several folders
    are compared: the first is the baseline, and runs of the same puzzle and seed stand side by
    side. Writes index.html into the folder; of several folders compared.html into the first. It
    opens from disk, without network; large results leave a folder of the page's name and .files
    next to it.

    Examples:
      jcos report out/sample
      jcos report out/sample out/noised --out out/compared.html
    """

    results: tyro.conf.Positional[tuple[InFolder, ...]]
    """Folders of results."""
    out: OutFile | None = None
    """The page, where it is to be another."""

    def run(self) -> None:
        from jcos.cli.common import console
        from jcos.report import explorer
        from jcos.report.reading import check_results, read

        if not self.results:
            raise ValueError("no folder given; give one with results, such as out/sample")
        for folder in self.results:
            check_results(folder)
        if len({folder.resolve() for folder in self.results}) < len(self.results):
            raise ValueError("a folder is named twice; it is not compared with itself")
        if self.out is not None:
            explorer.check_page(self.out)
        with console.status("reading …"):
            runs = [read(folder) for folder in self.results]
            name = explorer.COMPARED if len(runs) > 1 else explorer.PAGE
            page = explorer.write(runs, self.out or self.results[0] / name)
        for results in runs:
            for sentence in results.missing:
                console.print(f"{results.folder}: {sentence}", markup=False, highlight=False)
        print(f"The page is at {page.resolve()}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explore(Command):
    """List the runs below a folder as a table, compare them and look inside, in the browser of this
    machine.

    Examples:
      jcos explore
      jcos explore out/sample --port 9000
    """

    folder: tyro.conf.Positional[InFolder] = Path("out")
    """A folder of results, or one with such folders in it."""
    port: int = 8642
    """0 takes any that is free."""

    def run(self) -> None:
        from jcos.report import live

        with live.server(self.folder, self.port) as running:
            address = f"http://127.0.0.1:{running.server_port}/"
            print(f"Looking at {self.folder}: {address} (Ctrl-C ends it)")
            try:
                running.serve_forever()
            except KeyboardInterrupt:
                print()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write results for talks and papers: films of x̂0 along the steps, the plane, every chart.

    Measures that are no chart become dots with intervals.

    Examples:
      jcos export out/demo --gif x0.gif --frame -1 --plane plane.png
      jcos export out/steps --svg figures --csv figures
    """

    results: tyro.conf.Positional[InFolder]
    """A folder of results."""
    gif: OutFile | None = None  # The clean estimates along the steps, next to the final video …
    mp4: OutFile | None = None  # … or as MP4.
    plane: OutFile | None = None  # Steps × frames as one PNG.
    svg: OutFolder | None = None  # Every chart as SVG into this folder …
    png: OutFolder | None = None  # … as PNG …
    csv: OutFolder | None = None  # … and their numbers.
    run_number: Annotated[int | None, tyro.conf.arg(name="run")] = None  # From 0.
    frame: int | None = None  # Only this frame, -1 is the last; all by default.

    def run(self) -> None:
        from jcos.report import export
        from jcos.report.reading import DATASET, check_results, read

        pictures = {".gif": self.gif, ".mp4": self.mp4, ".png": self.plane}
        pictures = {suffix: file for suffix, file in pictures.items() if file is not None}
        folders = {kind: folder for kind in KINDS if (folder := getattr(self, kind)) is not None}
        if not (pictures or folders):
            raise ValueError("nothing to export; give --gif, --mp4, --plane, --svg, --png or --csv")
        for suffix, file in pictures.items():
            if file.suffix != suffix:
                raise ValueError(
                    f"{file} is to be a {suffix[1:].upper()}; name it {file.stem}{suffix}"
                )
        check_results(self.results)
        results = read(self.results)
        written = [*pictures.values()]
        if pictures:
            plane = export.plane_of(results, self.run_number)
            for file in pictures.values():
                export.write_run(plane, file, self.frame)
        for kind, folder in folders.items():
            written += export.write_charts(results.charts, folder, kind)
            written += export.write_others(results, folder, kind)
        if not written:
            why = "; ".join(results.missing) or f"no {DATASET}"
            raise ValueError(f"{self.results} has no charts: {why}")
        print("\n".join(map(str, written)))
