"""`jcos plan`."""

import dataclasses
import os
from typing import TYPE_CHECKING

import tyro

from jcos.cli.base import Command, Frames, ProfileName, Sampled
from jcos.variants import VARIANTS, variant_of, with_profile

if TYPE_CHECKING:
    from jcos.plan.costs import Job
    from jcos.plan.forecast import Option
    from jcos.plan.machines import Machine


TRIES = 3
"""Meshes that are looked at where none is named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Sampled, Command):
    """Whether a run fits a machine and how long it takes, before the machine is rented.

    Compiles the whole run (all steps, both experts, guidance, all seeds; weights as shapes) for
    the most promising meshes, with the compiler of the extra `tpu` or `gpu`; no such device is
    needed. Without that extra, all is calculated.

    Examples:
      jcos plan --model wan2.2-i2v-a14b --topology v5p:2x2x4 --size 832x480 --frames 81 --seeds 3
      jcos plan --model wan2.2-t2v-a14b --topology v5e:2x4 --mesh fsdp=8 --mesh branch=2,fsdp=4
      jcos plan --model wan2.2-ti2v-5b --topology h200:1
    """

    model: str
    """A released model, by its name here or on Hugging Face, or a checkpoint folder."""
    topology: str
    """v5p-64, v6e-8, h200:8 as clouds sell them, or any slice by its shape, as v5p:2x2x4."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels; by default what the model is made for."""
    frames: Frames = None
    seeds: int = 1
    """How many videos are made side by side."""
    profile: ProfileName = None
    mesh: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Try this mesh, like branch=2,context=8 (can be repeated); by default the three most
    promising ones."""

    def check(self) -> None:
        from jcos.plan.machines import machine

        machine(self.topology)

    def run(self) -> None:
        import jax

        from jcos.cli.common import console
        from jcos.devices import sharding
        from jcos.plan import forecast
        from jcos.plan.machines import machine

        if not os.environ.get("JAX_PLATFORMS"):
            # With libtpu or the CUDA plugin installed, jax would look for their devices.
            jax.config.update("jax_platforms", "cpu")
        target, job = machine(self.topology), self._job()
        meshes = [sharding.parse_mesh(text) for text in self.mesh]
        tried = meshes or forecast.meshes(job, target)[:TRIES]
        with console.status(f"looking at {len(tried)} meshes"):
            options = [*forecast.options(job, target, tried)]
        _show(options, job, target)

    def _job(self) -> "Job":
        from jcos import wan
        from jcos.cli.common import read_size
        from jcos.files import any_path, check_there, is_remote
        from jcos.plan.costs import Job

        if is_remote(folder := any_path(self.model)):
            check_there(folder)
        if folder.exists():
            config = wan.read_config(folder)
        elif (name := self.model if self.model in VARIANTS else variant_of(self.model)) is None:
            raise ValueError(f"there is no model {self.model!r}; known are {', '.join(VARIANTS)}")
        else:
            config = VARIANTS[name]()
        if self.profile is not None:
            config = with_profile(config, self.profile)
        config = dataclasses.replace(config, sampling=config.sampling_with(**self.sampling()))
        clip = config.clip
        size = read_size(self.size) or (clip.height, clip.width)
        return Job(config, clip.frames if self.frames is None else self.frames, *size, self.seeds)


def _show(options: "list[Option]", job: "Job", machine: "Machine") -> None:
    from rich.console import Console

    from jcos.cli.common import show_table
    from jcos.plan import costs, forecast

    chip, kind, out = machine.chip, machine.platform, Console()
    video = f"{job.frames} frames of {job.width}x{job.height}, {job.tokens:,} tokens"
    work = f"{job.seeds} seed(s), {job.steps} steps of {job.branches} pass(es)"
    title = f"{job.config.name}, {video}, {work}, on {machine.name}"
    rows = [(*option.cells(), "no" if option.trouble else "yes") for option in options]
    show_table(title, (*forecast.COLUMNS, "runs"), rows)
    for option in options:
        if option.trouble:
            out.print(f"{option.mesh} does not run: {option.trouble}")
    out.print(
        f"{costs.step_flops(job) / 1e12:,.0f} TFLOP per step. At best: the longest of arithmetic, "
        f"memory and links. Expected: {chip.reached:.0%} of the arithmetic's peak, as {chip.by}."
    )
    mass, block = costs.mass_flops(job), costs.step_flops(job) / job.config.dit.layers
    share = mass * job.seeds / (block / job.branches)
    out.print(
        f"Watched, a layer costs more: AttentionMass by frame {mass / 1e12:,.3f} TFLOP a pass "
        f"({share:.1%} of it), of one query in 16 {mass / 16e12:,.3f} ({share / 16:.1%})."
    )
    if not any(option.compiled for option in options):
        out.print(
            f"All of this is calculated. The extra `{kind}` has the compiler that would know: "
            f"pip install 'jcos[lab,{kind}]' (no {kind.upper()} is needed).",
            markup=False,
        )
    if (best := forecast.best(options)) is None:
        out.print(
            "None of these fits. What would help, in this order: more devices, fewer seeds at a "
            "time, a smaller --size, fewer --frames."
        )
        return
    out.print(f"Recommended: [bold]{best.mesh}[/bold]; its limit is {best.limit}.")
    if not best.resident:
        weights = costs.expert_bytes(job.config) * job.config.experts / 1e9
        out.print(
            f"In turns: two experts do not fit together, so {weights:.0f} GB of weights wait in "
            "host memory, and each comes once per run (--resident of `jcos generate`)."
        )
