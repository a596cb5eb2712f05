"""`jcos report` and `jcos explore`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jcos.cli.common import console
from jcos.report import explorer, live
from jcos.report.reading import PAGE, read

PORT = 8642


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Make a page of results to look inside: steps × frames, curves, heat maps, tables, files.

    RESULTS is what any command left: demo, sample, run, generate. Several folders are shown side by
    side, say a baseline and an intervention. Writes explore.html into the (first) folder: it opens
    from disk, without network; large results leave explore.files/ beside it.

    Examples:
      jcos report out/sample
      jcos report out/sample out/noised --out out/compared.html
      jcos report out --serve
    """

    results: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of results; with --serve one folder, all of whose runs are listed."""
    out: Path | None = None
    """The page; explore.html in the first folder by default."""
    serve: bool = False
    """Show it live, to this machine only."""
    port: Annotated[int, tyro.conf.arg(help="Of --serve; 0 takes any that is free.")] = PORT

    def run(self) -> None:
        if not self.results:
            raise ValueError("no folder given; give one with results, such as out/sample")
        if self.serve:
            serve(self.results[0], self.port)
            return
        with console.status("reading …"):
            found = [read(folder) for folder in self.results]
            page = explorer.write(found, self.out or self.results[0] / PAGE)
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
