"""`jcos plan`."""

import dataclasses
import json
import os
from pathlib import Path

import jax
from rich.console import Console

from jcos import wan
from jcos.cli import options
from jcos.cli.common import console, read_size, show_table
from jcos.devices import sharding
from jcos.files import write
from jcos.plan import costs, forecast
from jcos.plan.costs import Job
from jcos.plan.forecast import Forecast, Option
from jcos.plan.machines import GIB, machine
from jcos.variants import VARIANTS, variant_of, with_profile

COLUMNS = ("mesh", "weights + work, GiB", "GB sent/step", "at best, s/step", "expected, s/step")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(options.Plan):
    """`jcos plan`, at work."""

    def run(self) -> None:
        if not os.environ.get("JAX_PLATFORMS"):
            # With libtpu or the CUDA plugin installed, jax would look for their devices.
            jax.config.update("jax_platforms", "cpu")
        target, job = machine(self.topology), self._job()
        if self.tries < 1:
            raise ValueError(f"{self.tries} meshes to try; at least 1 is needed")
        meshes = [sharding.parse_mesh(text) for text in self.mesh]
        tried = meshes or forecast.meshes(job, target)[: self.tries]
        with console.status(f"looking at {len(tried)} meshes"):
            result = Forecast(job, target, tuple(forecast.options(job, target, tried)))
        if self.json is not None:
            write(self.json, json.dumps(result.to_json(), indent=1) + "\n")
        _show(result)

    def _job(self) -> Job:
        if Path(self.model).exists():
            config = wan.read_config(self.model)
        elif (name := self.model if self.model in VARIANTS else variant_of(self.model)) is None:
            raise ValueError(f"there is no model {self.model!r}; known are {', '.join(VARIANTS)}")
        else:
            config = VARIANTS[name]()
        if self.profile is not None:
            config = with_profile(config, self.profile)
        if self.steps is not None:
            sampling = config.sampling_with(steps=self.steps)
            config = dataclasses.replace(config, sampling=sampling)
        clip = config.clip
        width, height = (clip.width, clip.height) if self.size is None else read_size(self.size)
        frames = clip.frames if self.frames is None else self.frames
        return Job(config, frames, height, width, self.seeds)


def _show(result: Forecast) -> None:
    job, machine, best = result.job, result.machine, result.best
    chip, kind, out = machine.chip, machine.platform, Console()
    video = f"{job.frames} frames of {job.width}x{job.height}, {job.tokens:,} tokens"
    work = f"{job.seeds} seed(s), {job.steps} steps of {job.branches} pass(es)"
    title = f"{job.config.name}, {video}, {work}, on {machine.name}"
    rows = [_row(option, job) for option in result.options]
    show_table(title, (*COLUMNS, "min/video", "runs"), rows)
    for option in result.options:
        if option.trouble:
            out.print(f"{option.mesh} does not run: {option.trouble}")
    out.print(
        f"{costs.step_flops(job) / 1e12:,.0f} TFLOP per step. At best: the longest of arithmetic, "
        f"memory and links. Expected: {chip.reached:.0%} of the arithmetic's peak, as {chip.by}."
    )
    if not any(option.compiled for option in result.options):
        out.print(
            f"All of this is calculated. The extra `{kind}` has the compiler that would know: pip "
            f"install -e '.[lab,{kind}]' -c constraints.txt (no {kind.upper()} is needed).",
            markup=False,
        )
    if best is None:
        out.print(
            "None of these fits. What would help, in this order: more devices, fewer seeds at a "
            "time, a smaller --size, fewer --frames."
        )
        return
    out.print(f"Recommended: [bold]{best.mesh}[/bold]; its limit is {best.seconds.limit}.")
    if not best.resident:
        held = costs.expert_bytes(job.config) * job.config.experts / 1e9
        out.print(
            f"In turns: two experts do not fit together, so {held:.0f} GB of weights wait in "
            "host memory, and each comes once per run (--resident of `jcos generate`)."
        )


def _row(option: Option, job: Job) -> tuple[str, ...]:
    held, step = option.memory, option.seconds.expected
    parts = () if held is None else (held.arguments, held.temporaries + held.outputs)
    return (
        option.mesh,
        " + ".join(f"{part / GIB:.1f}" for part in parts) or "–",
        f"{option.link_bytes / 1e9:.1f}",
        f"{option.seconds.roofline:.2f}",
        f"{step:.2f}",
        f"{step * job.steps / job.seeds / 60:.1f}",
        "no" if option.trouble else "yes",
    )
