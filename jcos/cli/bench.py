"""`jcos bench`: run, score, export."""

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jcos.cli.options import TINY, Checkpoint, Command, OnMesh
from jcos.cli.paths import CacheFolder, ConfigFile, InFolder, OutFolder, config_file

if TYPE_CHECKING:
    from jcos.bench.folder import Bench as Benchmark
    from jcos.bench.scores import Cell, Comparison

Samples = Annotated[
    InFolder,
    tyro.conf.arg(help="The benchmark's folder, with In-Domain_50 and Out-of-Domain_50."),
]
PerTask = Annotated[int | None, tyro.conf.arg(help="Only the first so many samples of each task.")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(OnMesh, Command):
    """Make the videos of a benchmark, for each arm of a config in a folder of its own.

    Writes OUT/ARM/SPLIT/TASK/00000.mp4, where the official scorer looks for them, OUT/ARM/run.json
    and OUT/ARM/summary.json. Goes on where it was stopped. Ends with exit code 1 where videos are
    missing. `jcos plan` says how long a video takes.

    Examples:
      jcos bench run configs/vbvr_base.py --samples VBVR-Bench-Data --checkpoint wan-vbvr
      jcos bench run configs/vbvr_base.py --samples VBVR-Bench-Data --checkpoint wan-vbvr \\
        --mesh branch=2,context=4
      jcos bench run configs/vbvr_base.py --samples out/small --set scale=0.125 --set profile=none
    """

    config: tyro.conf.Positional[ConfigFile]
    """A Python file that describes arms, or the name of one that comes with jcos, like
    vbvr_base."""
    samples: Samples
    out: OutFolder = Path("out/vbvr")
    """Where the arms' folders go."""
    checkpoint: Checkpoint = TINY
    arms: tuple[str, ...] = ()
    """Only these arms of the config."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Changes every arm, as FIELD=VALUE; can be given several times."""
    per_task: PerTask = None
    shard: str | None = None
    """I/N: only every N-th sample, from the I-th on, for each of N processes."""
    join: bool = False
    """This is one of a pod's hosts, which must start together: joins the others first. Each takes
    its own shard of the samples."""
    batch: int | None = None
    """Samples generated at a time; by default as many of one shape as memory holds."""
    retry: bool = False
    """Try the failed samples again."""
    text_cache: CacheFolder | None = None
    """Folder of embedded prompts; OUT/text by default."""

    def run(self) -> None:
        from jax.experimental import multihost_utils

        from jcos.bench import run
        from jcos.bench.arm import benchmark_of, load_arms
        from jcos.bench.folder import read_bench
        from jcos.cli.common import bar, command_line
        from jcos.devices import sharding
        from jcos.experiments.settings import override

        if self.join:
            if self.mesh is None:
                raise ValueError("--join needs --mesh: how a host's devices share the work")
            sharding.init_distributed()
        arms = load_arms(config_file(self.config))
        if unknown := [name for name in self.arms if name not in arms]:
            raise ValueError(f"{self.config} has no arm {unknown[0]!r}; it has {', '.join(arms)}")
        arms = {n: override(a, self.set) for n, a in arms.items() if n in (self.arms or arms)}
        bench = read_bench(self.samples, self.per_task, benchmark_of(config_file(self.config)))
        print(f"{bench.extent}, {len(bench.faults)} faults")
        _print_absent(bench)
        work = run.Work(
            text=self.text_cache or self.out / "text",
            shard=self._shard(),
            retry=self.retry,
            batch=self.batch,
            mesh=self.devices(),
        )
        with bar() as progress:
            done = run.run(
                arms,
                self.checkpoint,
                bench,
                self.out,
                work,
                command=command_line(),
                progress=progress,
            )
        if self.join:
            multihost_utils.sync_global_devices("all hosts are done")  # or they take it for a loss
        for name, status in done.items():
            print(f"{name}: {status.done} of {status.total} videos are in {self.out / name}")
            for what in (status.faults, status.failed):
                _print_errors(f"{sample}: {reason}" for sample, reason in what.items())
            stale = "was made from other files; remove its video"
            _print_errors(f"{sample}: {stale}" for sample in status.stale)
        if not all(status.complete for status in done.values()):
            raise SystemExit(1)

    def _shard(self) -> tuple[int, int]:
        import jax

        if self.shard is None:
            return jax.process_index(), jax.process_count()
        i, _, n = self.shard.partition("/")
        if not (i.isdecimal() and n.isdecimal()):
            raise ValueError(f"shard is {self.shard!r}; it is I/N, like 0/4")
        return int(i), int(n)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(Command):
    """The paper's table of one or more arms, beside a still picture, paired by sample.

    Runs the official scorer, or reads what it said the last time; the exported small tasks judge
    themselves. Writes OUT/scores.json (every sample), OUT/table.csv, OUT/run.json (what was
    compared), and the baselines' videos.

    Examples:
      jcos bench score out/vbvr/base out/vbvr/ensemble --samples VBVR-Bench-Data \\
        --scorer "python VBVR-EvalKit/run_evaluation.py"
    """

    arms: tyro.conf.Positional[tuple[InFolder, ...]]
    """Folders of arms; the others are compared with the first."""
    samples: Samples
    out: OutFolder = Path("out/vbvr/scores")
    """Where results, tables and baselines go."""
    scorer: str | None = None
    """How the official scorer is started, if it is installed."""
    per_task: PerTask = None
    benchmark: Literal["vbvr", "vbvr-pro"] | None = None
    """Whose categories and checks; by default those that the first arm was made for."""

    def run(self) -> None:
        from jcos.bench.folder import read_bench
        from jcos.bench.results import read_json
        from jcos.bench.scores import compare
        from jcos.cli.common import command_line

        made_for = read_json(self.arms[0] / "run.json").get("benchmark", "vbvr")
        bench = read_bench(self.samples, self.per_task, self.benchmark or made_for)
        result = compare(bench, self.arms, self.out, self.scorer, command_line())
        _print_tables(bench, result)
        _print_errors(f"Note: {note}" for note in result.notes)
        for arm in result.scores:
            _print_errors(f"{arm.arm}: {name}: {why}" for name, why in arm.errors.items())
        _print_absent(bench)
        found = [len(arm.found) for arm in result.scores[: len(self.arms)]]
        if min(found) < len(bench.names) or bench.faults:
            raise SystemExit(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write small tasks out as a benchmark folder, to try the whole path on the small model.

    Examples:
      jcos bench export out/small
      jcos bench run configs/vbvr_base.py --samples out/small --set scale=0.125 --set profile=none
      jcos bench score out/vbvr/base --samples out/small
    """

    folder: tyro.conf.Positional[OutFolder]
    """A new one."""
    tasks: tuple[str, ...] = ()
    """Which tasks; by default all."""
    per_task: int = 5
    """Held-out puzzles of each task."""
    benchmark: Literal["vbvr", "vbvr-pro"] = "vbvr"
    """Whose layout."""

    def run(self) -> None:
        from jcos.bench.export import export
        from jcos.lab.tasks import TASKS

        tasks = self.tasks or tuple(TASKS)
        export(self.folder, tasks, self.per_task, benchmark=self.benchmark)
        print(f"{len(tasks)} tasks with {self.per_task} samples each are in {self.folder}")


@dataclasses.dataclass(frozen=True)
class Bench(Command):
    """VBVR-Bench: videos of its samples, and their scores."""

    what: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Run, tyro.conf.subcommand("run")]
        | Annotated[Score, tyro.conf.subcommand("score")]
        | Annotated[Export, tyro.conf.subcommand("export")]
    ]

    def run(self) -> None:
        self.what.run()


def _print_errors(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _print_absent(bench: "Benchmark") -> None:
    if bench.absent:
        first, more = ", ".join(bench.absent[:3]), len(bench.absent) - 3
        others = f" and {more} more (the summaries list them)" if more > 0 else ""
        print(f"Note: of the benchmark {first}{others} are absent here", file=sys.stderr)


def _print_tables(bench: "Benchmark", result: "Comparison") -> None:
    from jcos.bench import scores
    from jcos.bench.official import TITLES
    from jcos.cli.common import show_table

    cells = {(cell.arm, cell.group): cell for cell in result.cells}
    gains = {(cell.arm, cell.group): cell for cell in result.gains}
    arms, others = (list(dict.fromkeys(arm for arm, _ in table)) for table in (cells, gains))
    groups = scores.groups(bench.names, bench.benchmark)
    ends = cells[scores.STILL, "overall"], cells[scores.TRUTH, "overall"]
    rows = []
    for arm in arms:
        cell = cells[arm, "overall"]
        share = f"{scores.restored(cell, *ends):.3f}"
        videos = f"{cell.found} / {cell.n}"
        rows.append((arm, videos, _interval(cell), f"{cell.official:.3f}", share))
    columns = ("arm", "videos", "overall", "of those found", "still 0, truth 1")
    commit = (result.scores[0].scorer or {}).get("commit")
    scorer = f", scorer {commit[:12]}" if commit else ""
    show_table(f"{TITLES[bench.benchmark]}, {bench.extent}{scorer}", columns, rows)
    rows = [
        (group, str(len(names)), *(_interval(cells[arm, group]) for arm in arms))
        for group, names in groups.items()
    ]
    title = "Missing videos count as zero, 95 % intervals over tasks"
    show_table(title, ("group", "n", *arms), rows)
    if gains:
        rows = [(group, *(_interval(gains[arm, group]) for arm in others)) for group in groups]
        title = f"Less {arms[0]}, by sample, 95 % intervals over tasks"
        show_table(title, ("group", *others), rows)


def _interval(cell: "Cell") -> str:
    spread = f" [{cell.low:.3f}, {cell.high:.3f}]" if cell.low == cell.low else ""  # nan: no spread
    return f"{cell.mean:.3f}{spread}"
