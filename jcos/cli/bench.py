"""`jcos bench`: run, score, export."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jcos.cli.options import TINY, Checkpoint, Command, OnMesh
from jcos.cli.paths import CacheFolder, ConfigFile, InFolder, OutFolder

Samples = Annotated[
    InFolder,
    tyro.conf.arg(help="The benchmark's folder, with In-Domain_50 and Out-of-Domain_50."),
]
PerTask = Annotated[int | None, tyro.conf.arg(help="Only the first so many samples of each task.")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchRun(OnMesh, Command):
    """Make the videos of a benchmark, for each arm of a config in a folder of its own.

    Writes OUT/ARM/SPLIT/TASK/00000.mp4, where the official scorer looks for them, OUT/ARM/run.json
    and OUT/ARM/summary.json. Goes on where it was stopped; any number of workers may share OUT.
    Ends with exit code 1 where videos are missing.

    Examples:
      jcos bench run configs/vbvr_base.py --samples VBVR-Bench-Data --checkpoint wan-vbvr
      jcos bench run configs/vbvr_base.py --samples VBVR-Bench-Data --checkpoint wan-vbvr \\
        --mesh branch=2,context=4
      jcos bench run configs/vbvr_noise.py --samples VBVR-Bench-Data --checkpoint wan-vbvr --plan
      jcos bench run configs/vbvr_base.py --samples out/small --set scale=0.125 --set profile=none
    """

    work = "jcos.cli.bench_work:Run"

    config: tyro.conf.Positional[ConfigFile]
    """A Python file that describes arms, or the name of one that comes with jcos, like
    vbvr_base."""
    samples: Samples
    out: Path = Path("out/vbvr")
    """Where the arms' folders go; may be shared by workers."""
    checkpoint: Checkpoint = TINY
    arms: tuple[str, ...] = ()
    """Only these arms of the config."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Changes every arm, as FIELD=VALUE; can be given several times."""
    per_task: PerTask = None
    shard: str = "0/1"
    """I/N: only every N-th sample, from the I-th on, for workers that do not share OUT; `host`:
    this one's of all that --join. Those that share OUT need none: each takes what no other has."""
    join: bool = False
    """This is one of a pod's hosts, which must start together: joins the others first. Each still
    takes samples of its own."""
    batch: int | None = None
    """Samples generated at a time; by default as many of one shape as memory holds."""
    retry: bool = False
    """Try the failed samples again."""
    text_cache: CacheFolder | None = None
    """Folder of embedded prompts; OUT/text by default."""
    plan: bool = False
    """Only say what would be done, and how long it takes."""
    machine: str = "gpu:h200:1"
    """For --plan: a machine as `jcos plan` names them, with all its devices in --mesh."""
    step_seconds: float | None = None
    """For --plan: what a guided step of 81 frames of 832 × 480 pixels takes on your machine, if you
    have measured it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchScore(Command):
    """The paper's table of one or more arms, beside a still picture, paired by sample.

    Reads what the official scorer wrote, or runs it; the exported small tasks judge themselves.
    Writes OUT/scores.json (every sample), OUT/table.csv, OUT/run.json (what was compared), and the
    baselines' videos.

    Examples:
      jcos bench score out/vbvr/base out/vbvr/ensemble --samples VBVR-Bench-Data \\
        --scorer "python VBVR-EvalKit/run_evaluation.py"
    """

    work = "jcos.cli.bench_work:Score"

    arms: tyro.conf.Positional[tuple[InFolder, ...]]
    """Folders of arms; the others are compared with the first."""
    samples: Samples
    out: OutFolder = Path("out/vbvr/scores")
    """Where results, tables and baselines go."""
    scorer: str | None = None
    """How the official scorer is started, if it is installed."""
    per_task: PerTask = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchExport(Command):
    """Write small tasks out as a benchmark folder, to try the whole path on the small model.

    Examples:
      jcos bench export out/small
      jcos bench run configs/vbvr_base.py --samples out/small --set scale=0.125 --set profile=none
      jcos bench score out/vbvr/base --samples out/small
    """

    work = "jcos.cli.bench_work:Export"

    folder: tyro.conf.Positional[OutFolder]
    tasks: tuple[str, ...] = ()
    """Which tasks; by default all."""
    per_task: int = 5
    """Held-out puzzles of each task."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """VBVR-Bench: videos of its samples, and their scores."""

    what: tyro.conf.OmitSubcommandPrefixes[
        Annotated[BenchRun, tyro.conf.subcommand("run")]
        | Annotated[BenchScore, tyro.conf.subcommand("score")]
        | Annotated[BenchExport, tyro.conf.subcommand("export")]
    ]

    def run(self) -> None:
        self.what.run()
