"""`jcos plan`."""

import dataclasses
import json
import os
from pathlib import Path

import jax
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jcos import wan
from jcos.cli import options
from jcos.cli.common import console, read_size
from jcos.devices import sharding
from jcos.files import write
from jcos.plan import costs, forecast
from jcos.plan.costs import Job
from jcos.plan.forecast import Forecast
from jcos.plan.machines import GIB, machine
from jcos.variants import VARIANTS, variant_of, with_profile


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
    chip, out, flops = machine.chip, Console(), costs.step_flops(job) / 1e12
    out.print(
        f"[bold]{job.config.name}[/bold], {job.frames} frames of {job.width}x{job.height} "
        f"({job.tokens:,} tokens), seeds: {job.seeds}, {job.steps} steps, passes per step: "
        f"{job.branches}, on {machine.name}: {machine.devices} × {chip.memory / GIB:.0f} GiB"
    )
    out.print(_table(result))
    for option in result.options:
        if option.trouble:
            out.print(f"{option.mesh} does not run: {option.trouble}")
    out.print(
        f"{flops:,.0f} TFLOP per step, {flops / machine.devices:,.0f} on each device. "
        "At best: the roofline (what takes longest of arithmetic, memory and links). "
        f"Expected: {chip.reached:.0%} of the arithmetic's peak, as {chip.by}."
    )
    if not any(option.compiled for option in result.options):
        kind = machine.platform
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
    if best.compiled:
        sent = [f"{k} {t.count:,} ({t.bytes / 1e9:.2f} GB)" for k, t in best.sent.items()]
        shared = ", ".join(sent) or "nothing"
        out.print(f"It calls {best.attention} attention. A device sends per step: {shared}.")


def _table(result: Forecast) -> Table:
    table = Table("mesh", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    heads = ("weights + work\nGiB/device", "sends\nGB/step", "at best\ns/step")
    for head in (*heads, "expected\ns/step", "expected\nmin/video", "runs"):
        table.add_column(head, justify="right", no_wrap=True)
    for option in result.options:
        held, step = option.memory, option.seconds.expected
        parts = () if held is None else (held.arguments, held.temporaries + held.outputs)
        table.add_row(
            option.mesh.replace(",", " "),  # which is where a narrow terminal breaks it
            " + ".join(f"{part / GIB:.1f}" for part in parts) or "–",
            f"{option.link_bytes / 1e9:.1f}",
            f"{option.seconds.roofline:.2f}",
            f"{step:.2f}",
            f"{step * result.job.steps / result.job.seeds / 60:.1f}",
            "no" if option.trouble else "yes",
        )
    return table
