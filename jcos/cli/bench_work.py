"""`jcos bench`: run, score, export."""

import csv
import dataclasses
import datetime as dt
import io
import sys

import jax
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from jcos import wan
from jcos.bench import scores
from jcos.bench.arm import Arm, load_arms, shapes_of
from jcos.bench.baselines import Codec, codec_of
from jcos.bench.export import export
from jcos.bench.folder import Bench, read_bench
from jcos.bench.hours import Pace, expected, hours, measured
from jcos.bench.run import Work, begin, conduct
from jcos.bench.state import Status
from jcos.cli import bench as options
from jcos.cli.common import PACE, OnMesh, command_line, console
from jcos.cli.paths import config_file
from jcos.devices import sharding
from jcos.experiments.settings import override
from jcos.files import check_room, write
from jcos.lab.measures import Estimate
from jcos.lab.tasks import TASKS
from jcos.plan.machines import machine
from jcos.runs import MANIFEST, as_text, made, read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(options.BenchRun, OnMesh):
    """`jcos bench run`, at work."""

    def run(self) -> None:
        if self.join:
            sharding.init_distributed()
        arms = load_arms(config_file(self.config))
        unknown = [name for name in self.arms if name not in arms]
        if unknown:
            raise ValueError(f"{self.config} has no arm {unknown[0]!r}; it has {', '.join(arms)}")
        arms = {n: override(a, self.set) for n, a in arms.items() if n in (self.arms or arms)}
        bench = read_bench(self.samples, self.per_task)
        print(f"{bench.extent}, {len(bench.faults)} faults")
        _print_absent(bench)
        if self.plan:
            self._plan(arms, bench)
            return
        work = self._work()
        check_room(self.out)
        for name, arm in arms.items():  # all of them, before the first takes its days
            begin(arm, self.checkpoint, self.out / name, work.mesh, command_line())
        complete = [self._conduct(name, arm, bench, work) for name, arm in arms.items()]
        if self.join:
            multihost_utils.sync_global_devices("all hosts are done")  # or they take it for a loss
        if not all(complete):
            raise SystemExit(1)

    def _work(self) -> Work:
        if self.mesh is None and self.join:
            raise ValueError("--join needs --mesh: how do the devices of a host share the work?")
        return Work(
            text=self.text_cache or self.out / "text",
            shard=_shard(self.shard),
            retry=self.retry,
            batch=self.batch,
            mesh=self.devices(),
        )

    def _plan(self, arms: dict[str, Arm], bench: Bench) -> None:
        pace: Pace
        if self.step_seconds is None:
            pace = expected(machine(self.machine), sharding.parse_mesh(self.mesh or ""))
            where = f"{self.machine}, {self.mesh or 'one device'}"
        else:
            pace, where = measured(self.step_seconds), f"{self.step_seconds} s a step"
        faults = dict(bench.faults)
        table = Table(title=f"One worker: {where}")
        for column in ("arm", "shapes", "hours"):
            table.add_column(column)
        for name, arm in arms.items():
            config = arm.of(wan.read_config(self.checkpoint, arm.profile))
            shapes, wrong = shapes_of(arm, config, bench.samples)
            faults |= {f"{name}: {sample}": reason for sample, reason in wrong.items()}
            try:
                time = f"{hours(arm, config, list(shapes), pace):.1f}"
            except ValueError as unfit:
                time = str(unfit)
            table.add_row(name, str(len(set(shapes.values()))), time)
        Console().print(table)
        _print_faults(faults)

    def _conduct(self, name: str, arm: Arm, bench: Bench, work: Work) -> bool:
        out = self.out / name
        steps = conduct(arm, self.checkpoint, bench, out, work, command_line())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Bar(
            *columns,
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=PACE,
            disable=not console.is_terminal,
        ) as bar:
            shown, last = bar.add_task(name, total=None), 0
            while True:
                try:
                    done, total, what = next(steps)
                except StopIteration as end:
                    status: Status = end.value
                    break
                bar.update(shown, completed=done, total=total, description=f"{name}: {what}")
                if bar.disable and done > last:
                    left = bar.tasks[shown].time_remaining
                    told = "" if left is None else f", {dt.timedelta(seconds=left)} left"
                    print(f"{name}: {done} of {total}{told}", file=sys.stderr, flush=True)
                last = done
        print(f"{name}: {status.done} of {status.total} videos are in {out}")
        _print_faults(status.faults | status.failed)
        _print_faults(dict.fromkeys(status.stale, "was made from other files; remove its video"))
        return status.complete


def _print_faults(faults: dict[str, str]) -> None:
    for name, reason in faults.items():
        print(f"{name}: {reason}", file=sys.stderr)


def _print_absent(bench: Bench) -> None:
    if bench.absent:
        first, more = ", ".join(bench.absent[:3]), len(bench.absent) - 3
        others = f" and {more} more (the summaries list them)" if more > 0 else ""
        print(f"Note: of the benchmark {first}{others} are absent here", file=sys.stderr)


def _shard(text: str) -> tuple[int, int]:
    if text == "host":
        return jax.process_index(), jax.process_count()
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal()):
        raise ValueError(f"shard is {text!r}; it is I/N, like 0/4, or host")
    return int(i), int(n)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(options.BenchScore):
    """`jcos bench score`, at work."""

    def run(self) -> None:
        if not self.arms:
            raise ValueError("no arms are given; name at least one folder of videos")
        read(self.out / MANIFEST, "arms")  # not into the folder of an arm
        check_room(self.out)
        bench = read_bench(self.samples, self.per_task)
        found = scores.score(bench, self.arms, self.out, self.scorer)
        cells = scores.table(bench, found)
        gains = scores.against(bench, found[1 : len(self.arms)], found[0])
        codecs = {arm.arm: codec_of(path) for arm, path in zip(found, self.arms, strict=False)}
        self._write(bench, found, cells, gains, codecs[found[0].arm])
        _print(bench, cells, gains, found[0].arm)
        _print_differing("codecs", {name: str(codec) for name, codec in codecs.items()})
        _print_differing("commits of the scorer", _commits(found))
        for arm in found:
            _print_faults({f"{arm.arm}: {name}": why for name, why in arm.errors.items()})
        _print_absent(bench)
        missing = any(len(arm.found) < len(bench.names) for arm in found[: len(self.arms)])
        if missing or bench.faults:
            raise SystemExit(1)

    def _write(
        self,
        bench: Bench,
        found: list[scores.Scores],
        cells: list[scores.Cell],
        gains: list[scores.Cell],
        codec: Codec,
    ) -> None:
        by_arm = {arm.arm: arm for arm in found}
        told = ("scores", "errors", "scorer")
        about = {
            "samples": bench.extent,
            "arms": {n: dict(zip(told, arm[1:], strict=True)) for n, arm in by_arm.items()},
        }
        write(self.out / "scores.json", as_text(about))
        rows = io.StringIO(newline="")
        out = csv.writer(rows, lineterminator="\n")
        out.writerow(("kind", *scores.Cell._fields))
        out.writerows(("score", *cell) for cell in cells)
        out.writerows((f"less {found[0].arm}", *cell) for cell in gains)
        write(self.out / "table.csv", rows.getvalue().encode())
        folders = {arm.arm: str(path) for arm, path in zip(found, self.arms, strict=False)}
        run = {
            "question": "What do these arms score on VBVR-Bench?",
            "samples": {"folder": str(self.samples), "extent": bench.extent},
            "arms": folders,
            "scorer": {n: arm.scorer for n, arm in by_arm.items()},
            "still": codec._asdict(),
        }
        write(self.out / MANIFEST, as_text(run | made(command_line())))


def _commits(found: list[scores.Scores]) -> dict[str, str]:
    """Of all that has scores."""
    told = {arm.arm: arm.scorer or {} for arm in found if arm.found}
    return {name: str(scorer.get("commit") or "unknown") for name, scorer in told.items()}


def _print_differing(what: str, by_arm: dict[str, str]) -> None:
    """A note where they are not the same for all arms."""
    if len(set(by_arm.values())) > 1:
        told = "; ".join(f"{name} {value}" for name, value in by_arm.items())
        print(f"Note: the arms' {what} differ: {told}", file=sys.stderr)


def _print(bench: Bench, cells: list[scores.Cell], gains: list[scores.Cell], first: str) -> None:
    by = {(cell.arm, cell.group): cell for cell in cells}
    arms, groups = dict.fromkeys(c.arm for c in cells), list(scores.groups(bench.names))
    head = Table(title=f"VBVR-Bench, {bench.extent}")
    for column in ("arm", "videos", "overall", "of those found", "still 0, truth 1"):
        head.add_column(column)
    for arm in arms:
        cell = by[arm, "overall"]
        share = scores.restored(cell, by[scores.STILL, "overall"], by[scores.TRUTH, "overall"])
        videos = f"{cell.found} / {cell.n}"
        head.add_row(arm, videos, _interval(cell), f"{cell.official:.3f}", f"{share:.3f}")
    Console().print(head)
    whole = Table(title="Missing videos count as zero, 95 % intervals over tasks")
    whole.add_column("group")
    whole.add_column("n")
    for arm in arms:
        whole.add_column(arm)
    for group in groups:
        row = [by[arm, group] for arm in arms]
        whole.add_row(group, str(row[0].n), *map(_interval, row))
    Console().print(whole)
    if gains:
        less = Table(title=f"Less {first}, by sample, 95 % intervals over tasks")
        less.add_column("group")
        by = {(cell.arm, cell.group): cell for cell in gains}
        others = dict.fromkeys(cell.arm for cell in gains)
        for arm in others:
            less.add_column(arm)
        for group in groups:
            less.add_row(group, *(_interval(by[arm, group]) for arm in others))
        Console().print(less)


def _interval(cell: scores.Cell | Estimate) -> str:
    spread = f" [{cell.low:.3f}, {cell.high:.3f}]" if cell.low == cell.low else ""  # nan: no spread
    return f"{cell.mean:.3f}{spread}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(options.BenchExport):
    """`jcos bench export`, at work."""

    def run(self) -> None:
        tasks = self.tasks or tuple(TASKS)
        export(self.folder, tasks, self.per_task)
        print(f"{len(tasks)} tasks with {self.per_task} samples each are in {self.folder}")
