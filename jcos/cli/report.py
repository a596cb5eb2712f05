"""`jcos report` and `jcos explore`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jcos.cli.common import console
from jcos.report import explorer, live
from jcos.report.reading import check_results, read

PORT = 8642
COMPARED = "compared.html"
"""The page of several folders, in the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Make a page of results to look inside: steps × frames, curves, heat maps, tables, files.

    RESULTS is what any command left: sample, run and generate, which make this page themselves at
    their end, or demo, which has a page of its own. Several folders are compared: the first is the
    baseline, and runs of the same puzzle and seed stand side by side. Writes index.html into the
    folder, or explore.html beside a page of another making; of several folders compared.html into
    the first. It opens from disk, without network; large results leave a folder of the page's name
    and .files beside it.

    Examples:
      jcos report out/sample
      jcos report out/sample out/noised --out out/compared.html
      jcos report out --serve
    """

    results: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of results; with --serve one folder, all of whose runs are listed."""
    out: Path | None = None
    """The page, where it is to be another."""
    serve: bool = False
    """Show it live, to this machine only."""
    port: Annotated[int, tyro.conf.arg(help="Of --serve; 0 takes any that is free.")] = PORT

    def run(self) -> None:
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
            found = [read(folder) for folder in self.results]
            own = explorer.page_of(self.results[0])
            several = len(found) > 1
            page = explorer.write(found, self.out or (own.with_name(COMPARED) if several else own))
        for results in found:
            for sentence in results.missing:
                console.print(f"{results.folder}: {sentence}", markup=False, highlight=False)
        print(f"The page is at {page.resolve()}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explore:
    """List the runs below a folder and look inside them, live, in the browser of this machine.

    Examples:
      jcos explore
      jcos explore out/sample --port 9000
    """

    folder: tyro.conf.Positional[Path] = Path("out")
    """A folder of results, or one with such folders in it."""
    port: int = PORT
    """0 takes any that is free."""

    def run(self) -> None:
        serve(self.folder, self.port)


def serve(folder: Path, port: int) -> None:
    """Until it is interrupted."""
    with live.server(folder, port) as running:
        print(f"Looking at {folder}: http://127.0.0.1:{running.server_port}/ (Ctrl-C ends it)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print()
