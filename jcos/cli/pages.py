"""Commands that show results: `jcos report`, `explore`, `export`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jcos.cli.base import Command
from jcos.cli.paths import InFolder, OutFile, OutFolder

PORT = 8642
COMPARED = "compared.html"
"""The page of several folders, in the first."""
KINDS = ("svg", "png", "csv")
"""In which charts are exported."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Make a page of results to look inside: steps × frames, curves, heat maps, tables, files.

    RESULTS is what any command left; most make this page themselves at their end. Several folders
    are compared: the first is the baseline, and runs of the same puzzle and seed stand side by
    side. Writes index.html into the folder, or explore.html next to a page of another making; of
    several folders compared.html into the first. It opens from disk, without network; large results
    leave a folder of the page's name and .files next to it.

    Examples:
      jcos report out/sample
      jcos report out/sample out/noised --out out/compared.html
      jcos report out --serve
    """

    results: tyro.conf.Positional[tuple[InFolder, ...]]
    """Folders of results; with --serve one folder, all of whose runs are listed."""
    out: OutFile | None = None
    """The page, where it is to be another."""
    serve: bool = False
    """Show it live, to this machine only."""
    port: Annotated[int, tyro.conf.arg(help="Of --serve; 0 takes any that is free.")] = PORT

    def run(self) -> None:
        from jcos.cli.common import console
        from jcos.report import explorer
        from jcos.report.reading import check_results, read

        if not self.results:
            raise ValueError("no folder given; give one with results, such as out/sample")
        if self.serve:
            folder, *others = self.results
            if others or self.out is not None:
                raise ValueError(
                    "--serve shows the runs of one folder and writes no page: give the folder that "
                    "all of them are in, and no --out"
                )
            serve(folder, self.port)
            return
        for folder in self.results:
            check_results(folder)
        if self.out is not None:
            explorer.check_page(self.out)
        with console.status("reading …"):
            runs = [read(folder) for folder in self.results]
            page = self.out or explorer.page_of(self.results[0])
            if self.out is None and len(runs) > 1:
                page = page.with_name(COMPARED)
            page = explorer.write(runs, page)
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
    port: int = PORT
    """0 takes any that is free."""

    def run(self) -> None:
        serve(self.folder, self.port)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write results for talks and papers: films of x̂0 along the steps, the plane, every chart.

    Examples:
      jcos export out/demo --gif x0.gif --frame -1 --plane plane.png
      jcos export out/steps --svg figures --csv figures
    """

    results: tyro.conf.Positional[InFolder]
    """A folder of results."""
    gif: OutFile | None = None  # The clean estimates along the steps, next to the final video …
    mp4: OutFile | None = None  # … or as MP4.
    plane: OutFile | None = None  # Steps × frames as one PNG.
    svg: OutFolder | None = None  # Every chart, as SVG into this folder …
    png: OutFolder | None = None  # … as PNG …
    csv: OutFolder | None = None  # … and its numbers.
    run_number: Annotated[int | None, tyro.conf.arg(name="run")] = None  # From 0.
    frame: int | None = None  # Only this frame, -1 is the last; all by default.

    def run(self) -> None:
        from jcos.files import write
        from jcos.report import export
        from jcos.report.reading import DATASET, check_results, read

        films = [file for file in (self.gif, self.mp4) if file is not None]
        folders = {kind: folder for kind in KINDS if (folder := getattr(self, kind)) is not None}
        if not (films or folders or self.plane):
            raise ValueError("nothing to export; give --gif, --mp4, --plane, --svg, --png or --csv")
        for file, suffix in ((self.gif, ".gif"), (self.mp4, ".mp4"), (self.plane, ".png")):
            if file is not None and file.suffix != suffix:
                raise ValueError(
                    f"{file} is to be a {suffix[1:].upper()}; name it {file.stem}{suffix}"
                )
        check_results(self.results)
        results = read(self.results)
        if folders and not results.charts:
            there = (self.results / DATASET).is_file()
            why = "nothing is measured along steps, layers or frames" if there else f"no {DATASET}"
            raise ValueError(f"{self.results} has no charts: {'; '.join(results.missing) or why}")
        written = []
        if films or self.plane:
            plane = export.plane_of(results, self.run_number)
            for file in films:
                export.write_film(plane, file, self.frame)
                written.append(file)
            if self.plane is not None:
                write(self.plane, export.plane_png(plane))
                written.append(self.plane)
        for kind, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            written += export.write_charts(results.charts, folder, kind)
        print("\n".join(map(str, written)))


def serve(folder: Path, port: int) -> None:
    """Show the runs below a folder until it is interrupted."""
    from jcos.report import live

    with live.server(folder, port) as running:
        print(f"Looking at {folder}: http://127.0.0.1:{running.server_port}/ (Ctrl-C ends it)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print()
