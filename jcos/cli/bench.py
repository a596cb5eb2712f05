"""`jcos bench`: run, score, export."""

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jcos.cli.base import Changes, Checkpoint, Command, Loras, OnMesh
from jcos.cli.paths import (
    AnyCacheFolder,
    AnyInFolder,
    AnyOutFolder,
    ConfigFile,
    OutFolder,
    config_file,
)
from jcos.variants import TINY
from jcos.weights.loras import parse_all

if TYPE_CHECKING:
    from jcos.bench.folder import Bench as Benchmark
    from jcos.bench.scores import Comparison

Samples = Annotated[
    AnyInFolder,
    tyro.conf.arg(help="The benchmark's folder, with In-Domain_50 and Out-of-Domain_50."),
]
REMEDY = "; where the video is damaged, remove it and run again"
PerTask = Annotated[int | None, tyro.conf.arg(help="Only the first so many samples of each task.")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(OnMesh, Command):
    """Make the videos of a benchmark, a folder for each arm of a config.

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
    out: AnyOutFolder = Path("out/vbvr")
    """Where the arms' folders go."""
    checkpoint: Checkpoint = TINY
    arms: tuple[str, ...] = ()
    """Only these arms of the config."""
    set: Changes = ()
    lora: Loras = ()
    per_task: PerTask = None
    shard: str | None = None
    """I/N: only every N-th sample, from the I-th on, for each of N processes."""
    ray: bool = False
    """Spread the samples over the machines of a Ray cluster (extra ray), with --mesh for each
    actor; Ray starts what is lost again. All machines must see the same paths."""
    address: str | None = None
    """HOST:PORT of the cluster, as `ray start --head` says it; by default one is started here."""
    batch: int | None = None
    """Samples generated at a time; by default as many of one shape as memory holds."""
    retry: bool = False
    """Try the failed samples again."""
    text_cache: AnyCacheFolder | None = None
    """Folder of embedded prompts; OUT/text by default."""

    def check(self) -> None:
        super().check()
        parse_all(self.lora)
        self._parts()
        if self.ray and (self.join or self.shard is not None):
            raise ValueError("--ray spreads the samples itself: leave out --join and --shard")
        if self.join and self.shard is not None:
            raise ValueError("--join shares the samples out: leave out --shard")
        if self.ray and (self.scalars or self.trace_profile):
            raise ValueError("--scalars and --trace-profile watch this process; --ray makes others")
        if self.address is not None and not self.ray:
            raise ValueError("--address is of a Ray cluster: give --ray, too")
        if self.address is not None and not re.fullmatch("[^/]+:[0-9]+", self.address):
            raise ValueError(
                f"address is {self.address!r}; it is HOST:PORT as `ray start --head` says it, "
                "without ray://"
            )

    def run(self) -> None:
        with self.at_work():
            complete = self._run()
        if not complete:
            raise SystemExit(1)

    def _run(self) -> bool:
        import jax

        from jcos.bench import run
        from jcos.bench.arm import load_arms
        from jcos.bench.cluster import Cluster
        from jcos.bench.folder import read_bench
        from jcos.cli.common import bar, command_line
        from jcos.experiments.settings import override

        if self.ray:  # this process asks, and leaves the devices to those that work
            jax.config.update("jax_platforms", "cpu")
        arms, benchmark = load_arms(config_file(self.config))
        if unknown := [name for name in self.arms if name not in arms]:
            raise ValueError(f"{self.config} has no arm {unknown[0]!r}; it has {', '.join(arms)}")
        arms = {n: override(a, self.set) for n, a in arms.items() if n in (self.arms or arms)}
        if self.lora:
            arms = {n: dataclasses.replace(arm, lora=self.lora) for n, arm in arms.items()}
        bench = read_bench(self.samples, self.per_task, benchmark)
        print(f"{bench.extent}, {len(bench.faults)} faults")
        work = run.Work(
            text=self.text_cache or self.out / "text",
            shard=self._parts() or (jax.process_index(), jax.process_count()),
            retry=self.retry,
            batch=self.batch,
            mesh=None if self.ray else self.devices(everywhere=False),
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
                cluster=Cluster(self.address, self.mesh) if self.ray else None,
            )
        for name, status in done.items():
            print(f"{name}: {status.done} of {status.total} videos are in {self.out / name}")
            stale = dict.fromkeys(status.stale, "was made from other files; remove its video")
            for reasons in (status.faults, status.failed, stale):
                _print_errors(f"{sample}: {reason}" for sample, reason in reasons.items())
        return all(status.complete for status in done.values())

    def _parts(self) -> tuple[int, int] | None:
        """Return --shard, which is checked."""
        if self.shard is None:
            return None
        i, _, n = self.shard.partition("/")
        if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
            raise ValueError(f"shard is {self.shard!r}; it is I/N with I below N, like 0/4 to 3/4")
        return int(i), int(n)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(Command):
    """The paper's table of arms, a still picture and the ground truth, paired by sample.

    Runs the official scorer, or reads what it said the last time; the exported small tasks judge
    themselves. Writes OUT/scores.json (every sample), OUT/table.csv, OUT/run.json (what was
    compared), and the baselines' videos.

    Examples:
      jcos bench score out/vbvr/base out/vbvr/ensemble --samples VBVR-Bench-Data \\
        --scorer "python VBVR-EvalKit/run_evaluation.py"
    """

    arms: tyro.conf.Positional[tuple[AnyInFolder, ...]]
    """Folders of arms; the others are compared with the first."""
    samples: Samples
    out: AnyOutFolder = Path("out/vbvr/scores")
    """Where results, tables and baselines go."""
    scorer: str | None = None
    """How the official scorer is started, if it is installed."""
    per_task: PerTask = None
    benchmark: Literal["vbvr", "vbvr-pro"] | None = None
    """Whose categories and checks; by default those that all arms were made for."""

    def check(self) -> None:
        if not self.arms:
            raise ValueError("no arms; name at least one folder of videos")

    def run(self) -> None:
        from jcos.bench.folder import read_bench
        from jcos.bench.scores import compare
        from jcos.cli.common import command_line

        bench = read_bench(self.samples, self.per_task, self.benchmark or self._made_for())
        result = compare(bench, self.arms, self.out, self.scorer, command_line())
        _print_tables(bench, result)
        for arm in result.scores:
            _print_errors(f"{arm.arm}: {name}: {why}{REMEDY}" for name, why in arm.errors.items())
        arms = result.scores[: len(self.arms)]
        fewest = min(len(arm.values) for arm in arms)
        if fewest < len(bench.names) or bench.faults or any(arm.errors for arm in arms):
            raise SystemExit(1)

    def _made_for(self) -> str:
        """Return the benchmark that all arms were made for; ValueError where it is not known."""
        from jcos.files import read_json

        manifests = [read_json(arm / "run.json") for arm in self.arms]
        made_for = {about.get("benchmark", "vbvr") for about in manifests if about}
        if not all(manifests):  # some videos were made elsewhere
            pro = any(True for _ in self.samples.glob("*/*/*/metadata.json"))
            made_for |= {"vbvr", "vbvr-pro"} if pro else {"vbvr"}
        if len(made_for) > 1:
            raise ValueError(
                "these arms may be of VBVR-Bench or of VBVR-Pro-Bench, whose categories differ: "
                "give --benchmark vbvr or --benchmark vbvr-pro"
            )
        return made_for.pop()


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


COMMANDS: dict[str, Callable[..., Any]] = {"run": Run, "score": Score, "export": Export}


def bench() -> None:
    """VBVR-Bench: videos of its samples, and their scores. Run, score, export."""


def _print_errors(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _print_tables(bench: "Benchmark", result: "Comparison") -> None:
    from jcos.bench.folder import TITLES
    from jcos.bench.scores import restored
    from jcos.cli.common import show_table

    table = result.table.assign(
        interval=[_interval(*row) for row in result.table[["mean", "low", "high"]].values]
    )
    overall = table.query("kind == 'score' and group == 'overall'")
    *_, still, truth = overall["mean"]
    rows = []
    for arm in overall.to_dict("records"):
        videos, share = f"{arm['found']} / {arm['n']}", restored(arm["mean"], still, truth)
        rows.append((arm["arm"], videos, arm["interval"], f"{arm['official']:.3f}", f"{share:.3f}"))
    commit = (result.scores[0].scorer or {}).get("commit")
    scorer = f", scorer {commit}" if commit else ""
    columns = ("arm", "videos", "overall", "of those found", "still 0, truth 1")
    show_table(f"{TITLES[bench.benchmark]}, {bench.extent}{scorer}", columns, rows)
    for kind, part in table.groupby("kind", sort=False):
        wide = part.set_index(["group", "n", "arm"])["interval"].unstack(sort=False)
        less = f"Less {result.scores[0].arm}, by sample"
        what = "Missing videos count as zero" if kind == "score" else less
        rows = [(group, str(n), *cells) for (group, n), *cells in wide.itertuples()]
        show_table(f"{what}, 95 % intervals over tasks", ("group", "n", *wide.columns), rows)


def _interval(mean: float, low: float, high: float) -> str:
    spread = f" [{low:.3f}, {high:.3f}]" if low == low else ""  # nan: no spread
    return f"{mean:.3f}{spread}"
