"""Options of the commands that show results."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jcos.cli.options import Command
from jcos.cli.paths import InFolder, OutFile, OutFolder

PORT = 8642


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Make a page of results to look inside: steps × frames, curves, heat maps, tables, files.

    RESULTS is what any command left; most make this page themselves at their end. Several folders
    are compared: the first is the baseline, and runs of the same puzzle and seed stand side by
    side. Writes index.html into the folder, or explore.html beside a page of another making; of
    several folders compared.html into the first. It opens from disk, without network; large results
    leave a folder of the page's name and .files beside it.

    Examples:
      jcos report out/sample
      jcos report out/sample out/noised --out out/compared.html
      jcos report out --serve
    """

    work = "jcos.cli.report:Report"

    results: tyro.conf.Positional[tuple[InFolder, ...]]
    """Folders of results; with --serve one folder, all of whose runs are listed."""
    out: OutFile | None = None
    """The page, where it is to be another."""
    serve: bool = False
    """Show it live, to this machine only."""
    port: Annotated[int, tyro.conf.arg(help="Of --serve; 0 takes any that is free.")] = PORT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explore(Command):
    """List the runs below a folder as a table, compare them and look inside, in the browser of this
    machine.

    Examples:
      jcos explore
      jcos explore out/sample --port 9000
    """

    work = "jcos.cli.report:Explore"

    folder: tyro.conf.Positional[InFolder] = Path("out")
    """A folder of results, or one with such folders in it."""
    port: int = PORT
    """0 takes any that is free."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write results for talks and papers: films of x̂0 along the steps, the plane, every chart.

    Examples:
      jcos export out/demo --gif x0.gif --frame -1 --plane plane.png
      jcos export out/steps --svg figures --csv figures
    """

    work = "jcos.cli.export:Export"

    results: tyro.conf.Positional[InFolder]
    """A folder of results."""
    gif: OutFile | None = None  # The clean estimates along the steps, beside the final video …
    mp4: OutFile | None = None  # … or as MP4.
    plane: OutFile | None = None  # Steps × frames as one PNG.
    svg: OutFolder | None = None  # Every chart, as SVG into this folder …
    png: OutFolder | None = None  # … as PNG …
    csv: OutFolder | None = None  # … and its numbers.
    run_number: Annotated[int | None, tyro.conf.arg(name="run")] = None  # From 0.
    frame: int | None = None  # Only this frame, -1 is the last; all by default.
