"""What a run costs while it runs: scalars in a file, and a profile of a few of its steps."""

import contextlib
import contextvars
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from jcos import files

SCALARS = "scalars.jsonl"
PROFILED = 3
"""Steps in a profile. The one before them is left out: it is compiled while it runs."""
EVERY = 60.0
"""Seconds between two uploads of a file in a bucket, to which nothing can be added."""

_WATCH: contextvars.ContextVar["Callable[[int], None] | None"]
_WATCH = contextvars.ContextVar("watch", default=None)


@contextlib.contextmanager
def watched(scalars: Path | None = None, profile: Path | None = None) -> Iterator[None]:
    """Watch the steps of all runs within. Of several hosts, the first writes scalars.

    scalars: a folder, for a line of JSON per step, behind those that are there; for TensorBoard too
    if tensorboardX is installed, and to Weights & Biases if wandb is and WANDB_PROJECT is set.
    profile: a folder for `jax.profiler`.
    """
    with contextlib.ExitStack() as stack:
        watchers: list[Callable[[int], None]] = []
        if scalars is not None and jax.process_index() == 0:
            watchers.append(stack.enter_context(_scalars(scalars)))
        if profile is not None:
            watchers.append(stack.enter_context(_profile(profile)))

        def step(forwards: int) -> None:
            for watcher in watchers:
                watcher(forwards)

        token = _WATCH.set(step if watchers else None)
        stack.callback(_WATCH.reset, token)
        yield


def step_done(results: Any, forwards: int) -> None:
    """Wait for a step's results and note it, if it is watched. forwards: passes of the model."""
    if (watch := _WATCH.get()) is not None:
        jax.block_until_ready(results)
        watch(forwards)


@contextlib.contextmanager
def _scalars(folder: Path) -> Iterator[Callable[[int], None]]:
    file, start, written, events, run = folder / SCALARS, time.monotonic(), 0.0, None, None
    lines = files.read_text(file) if file.exists() else ""
    number = before = lines.count("\n")
    lines = lines if files.is_remote(folder) else ""  # which cannot be added to
    if find_spec("tensorboardX") and not files.is_remote(folder):
        from tensorboardX import SummaryWriter  # type: ignore[import-not-found]

        events = SummaryWriter(str(folder))
    if find_spec("wandb") and (project := os.environ.get("WANDB_PROJECT")):
        import wandb  # type: ignore[import-not-found]

        run = wandb.init(project=project)

    def save() -> None:
        nonlocal lines
        try:
            if files.is_remote(folder):
                return files.write(file, lines)
            folder.mkdir(parents=True, exist_ok=True)
            with file.open("a") as out:  # other processes may do so, too
                out.write(lines)
            lines = ""
        except OSError as error:  # which shall not end a run of hours
            warnings.warn(f"{file} is not up to date: {error}", stacklevel=2)

    def write(forwards: int) -> None:
        nonlocal lines, start, written, number
        now = time.monotonic()
        values = {"seconds": round(now - start, 4), "forwards": forwards, "bytes": _bytes()}
        lines += json.dumps({"step": number, **values}) + "\n"
        if not files.is_remote(folder) or now - written > EVERY:
            save()
            written = now
        if events is not None:
            for name, value in values.items():
                events.add_scalar(name, value, number)
        if run:
            run.log(values, step=number)
        start, number = now, number + 1

    try:
        yield write
    finally:
        if number > before and lines:
            save()
        if events:
            events.close()
        if run:
            run.finish()


def _bytes() -> int:
    """Return the most bytes that a device has held so far; on a CPU, the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(stats.get("peak_bytes_in_use", held))


@contextlib.contextmanager
def _profile(folder: Path) -> Iterator[Callable[[int], None]]:
    done = 0
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) if files.is_remote(folder) else folder

        def end() -> None:
            jax.profiler.stop_trace()
            if files.is_remote(folder):
                folder.upload(target)  # type: ignore[attr-defined]

        def note(_: int) -> None:
            nonlocal done
            done += 1
            if done == 1:
                jax.profiler.start_trace(str(target))
            elif done == 1 + PROFILED:
                end()

        try:
            yield note
        finally:
            if 0 < done <= PROFILED:
                end()
        if done <= PROFILED:
            warnings.warn(
                f"{folder} has a profile of {max(0, done - 1)} step(s), not {PROFILED}: there were "
                f"{done}, and the first is left out, since it is compiled while it runs",
                stacklevel=2,
            )
