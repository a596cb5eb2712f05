"""`jcos report` and `jcos explore`."""

import dataclasses
from pathlib import Path

from jcos.cli import page_options
from jcos.cli.common import console
from jcos.report import explorer, live
from jcos.report.reading import check_results, read

COMPARED = "compared.html"
"""The page of several folders, in the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(page_options.Report):
    """`jcos report`, at work."""

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
class Explore(page_options.Explore):
    """`jcos explore`, at work."""

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
