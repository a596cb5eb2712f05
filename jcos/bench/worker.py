"""One process that makes samples: claimed in batches of one shape, generated, decoded, written."""

import contextlib
import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import av
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from safetensors.numpy import save

from jcos import flow, trajectory, wan
from jcos.bench.arm import Arm, Shape, resized
from jcos.bench.claims import Claims
from jcos.bench.folder import Sample, write
from jcos.bench.state import Folder
from jcos.config import PixelCodec
from jcos.experiments.experiment import places
from jcos.experiments.memory import runs_that_fit
from jcos.media import write_mp4
from jcos.noise import wan_noise
from jcos.probes import Probe
from jcos.trajectory import Condition
from jcos.wan import Prompt, Wan, generate_worlds

ROOM = 64 * 2**20
"""Bytes that must be free on the disk before a sample is begun."""
FAILURES = (
    ValueError,
    IndexError,
    FloatingPointError,
    OSError,
    MemoryError,
    av.FFmpegError,
    jax.errors.JaxRuntimeError,
)
"""What may go wrong with one sample while others go well; the last one when memory is short."""


class Progress(NamedTuple):
    """Settled samples, of how many this worker sees, and what it does next."""

    done: int
    total: int
    what: str


class Made(NamedTuple):
    """latents: the end. x0: the clean estimates that are kept. seconds: its share of the time."""

    latents: Float[Array, "F h w C"]
    x0: Float[Array, "kept F h w C"]
    seconds: float


@jax.jit
def _denoise(
    model: Wan,
    plan: flow.Plan,
    given: Condition,
    keys: Key[Array, " K"],
    probe: Probe,
    start: Float[Array, "B K F h w C"],
    kept: Int[Array, " kept"],
) -> tuple[Float[Array, "B K F h w C"], Float[Array, "B kept F h w C"], Bool[Array, "B S"]]:
    """Each sample by itself: the end of all seeds, kept estimates of the first, what is finite."""

    def one(condition: Condition, start: Float[Array, "K F h w C"]) -> tuple[Array, Array, Array]:
        world = jax.tree.map(lambda a: a[None], condition)
        trace = generate_worlds(model, plan, world, keys, probe, start)
        return trace.latents[0], trace.x0[0, 0, kept], trace.finite[0].all(0)

    return jax.vmap(one)(given, start)


@dataclasses.dataclass(frozen=True)
class Worker:
    """rows: embeds a prompt. kept: names of the samples whose clean estimates are written. batch:
    samples at a time, None for as many as memory holds. lost: filled with the failures that could
    not be written down. sizes: of batches, by shape."""

    arm: Arm
    model: Wan
    rows: Callable[[str], Prompt]
    folder: Folder
    shapes: dict[Sample, Shape]
    kept: set[str]
    batch: int | None
    lost: dict[str, str]
    sizes: dict[Shape, int] = dataclasses.field(default_factory=dict)

    def run(self, dead: float) -> Generator[Progress, None, None]:
        """Until every sample is settled, by this worker or another. While a batch is generated, the
        one before is decoded and written."""
        written: Future[None] | None = None
        shape = None
        total = len(self.shapes)
        claims = Claims(self.folder.path / "state" / "claims", dead=dead, beat=dead / 16)
        with claims, ThreadPoolExecutor(1) as writer:
            while left := [s for s in self.shapes if not self._settled(s)]:
                batch = self._take(left, claims, shape)
                made: dict[Sample, Made] = {}
                if batch:
                    shape = self.shapes[batch[0]]
                    yield Progress(total - len(left), total, batch[0].name)
                    made = self._attempt(batch, claims)
                if written is not None:
                    written.result()
                elif not batch:
                    time.sleep(min(2.0, dead / 8))  # others have the rest; one of them may die
                written = writer.submit(self._finish, made, claims) if batch else None
        yield Progress(total, total, "done")

    def _settled(self, sample: Sample) -> bool:
        return sample.name in self.lost or self.folder.settled(sample.name)

    def _take(self, left: Sequence[Sample], claims: Claims, shape: Shape | None) -> list[Sample]:
        """Claims as many samples of one shape as are made at a time, if possible of the one that is
        compiled already."""
        batch: list[Sample] = []
        for sample in sorted(left, key=lambda s: self.shapes[s] != shape):
            if batch and self.shapes[sample] != self.shapes[batch[0]]:
                continue
            if not claims.take(sample.name):
                continue
            if self._settled(sample):  # meanwhile, by the worker that had it
                claims.release(sample.name)
                continue
            batch.append(sample)
            if len(batch) == self._size(self.shapes[batch[0]]):
                break
        return batch

    def _size(self, shape: Shape) -> int:
        """Samples of a shape that are generated at a time; the same until the end, whatever memory
        is free later, because each size is a program of its own."""
        if shape in self.sizes:
            return self.sizes[shape]
        config, total = self.model.config, Counter(self.shapes.values())[shape]
        given = Condition(jnp.zeros(0), channels=jnp.zeros((*wan.latent_grid(config, *shape), 0)))
        plan = flow.plan(config.sampling, config.boundary)
        seeds, size = self.arm.ensemble, 1  # which is tried even if the estimate is against it
        with contextlib.suppress(ValueError):
            size = runs_that_fit(self.model, given, plan, seeds, 1, total, self.batch)
        return self.sizes.setdefault(shape, size)

    def _attempt(self, batch: list[Sample], claims: Claims) -> dict[Sample, Made]:
        """Those that succeed; of the others the reason is written down. Where several fail
        together, each is tried alone."""
        start = time.monotonic()
        try:
            free = shutil.disk_usage(self.folder.path).free
            if free < ROOM:
                raise OSError(f"the disk of {self.folder.path} has only {free >> 20} MiB left")
            latents, x0 = self.generate(batch)
        except FAILURES as error:
            if len(batch) == 1:
                self._fail(batch[0], error, claims)
                return {}
            return {k: v for one in batch for k, v in self._attempt([one], claims).items()}
        seconds = (time.monotonic() - start) / len(batch)
        return {s: Made(latents[i], x0[i], seconds) for i, s in enumerate(batch)}

    def generate(
        self, batch: Sequence[Sample]
    ) -> tuple[Float[Array, "B F h w C"], Float[Array, "B kept F h w C"]]:
        """Latents of samples of one shape. Raises FloatingPointError where one is not finite."""
        model, arm, config = self.model, self.arm, self.model.config
        shape = self.shapes[batch[0]]
        # One program for every batch of a shape: the last is filled up.
        size = len(batch) if len(batch) == 1 else self._size(shape)
        conditions = [self._condition(sample) for sample in batch]
        given = trajectory.stack([*conditions, *conditions[-1:] * (size - len(batch))])
        grid = (*wan.latent_grid(config, *shape), config.dit.out_channels)
        seeds = range(arm.seed, arm.seed + arm.ensemble)
        keys = wan.seed_keys(seeds)
        noise = jnp.asarray(np.stack([wan_noise(seed, grid) for seed in seeds]))
        x = jnp.broadcast_to(noise, (size, *noise.shape))
        chosen = np.array(places(arm.x0, config.sampling.steps, "step"), np.int32)
        plan, estimates = flow.plan(config.sampling, config.boundary), []
        for first, last, number in arm.parts(config):
            part = _part(plan, first, last)
            probe = arm.probe(config, grid[0], first, last)
            kept = jnp.asarray(chosen[(chosen >= first) & (chosen < last)] - first)
            if first:  # a part counts its steps from 0: what it draws must not be drawn twice
                keys = jax.vmap(jax.random.fold_in, (0, None))(keys, first)
            some = x[:, :number]
            x, x0, finite = _denoise(model, part, given, keys[:number], probe, some, kept)
            trajectory.check_steps(np.asarray(finite))
            estimates.append(x0)
        return x[:, 0], jnp.concatenate(estimates, axis=1)

    def _condition(self, sample: Sample) -> Condition:
        config, shape = self.model.config, self.shapes[sample]
        first = self.arm.first_frame(config, sample)
        prompt, negative = self.rows(sample.prompt), self.rows(config.negative)
        return self.model.condition(first, prompt, shape.frames, negative=negative)

    def _finish(self, made: dict[Sample, Made], claims: Claims) -> None:
        for sample, found in made.items():
            try:
                self._write(sample, found, claims)
            except FAILURES as error:
                self._fail(sample, error, claims)
            else:
                claims.release(sample.name)

    def _write(self, sample: Sample, found: Made, claims: Claims) -> None:
        """The video last: what is there makes the sample done."""
        # H.264 needs even sides.
        height, width = (side + side % 2 for side in (sample.height, sample.width))
        exact = isinstance(self.model.codec, PixelCodec)
        video = self.model.decode(found.latents)
        video = np.stack([resized(frame, height, width, exact=exact) for frame in video])
        if not claims.keeps(sample.name):
            return  # this worker was thought dead, and another has the sample
        if sample.name in self.kept:
            x0 = {"x0": np.asarray(found.x0, np.float16)}
            write(self.folder.about(sample.name, "x0", "safetensors"), save(x0))
        about = {
            "digest": sample.digest,
            "shape": self.shapes[sample]._asdict(),
            "seconds": round(found.seconds, 1),
            "device": jax.devices()[0].device_kind,
        }
        self.folder.note(sample.name, "made", about)
        write_mp4(self.folder.video(sample.name), video, self.arm.fps, crf=self.arm.crf)

    def _fail(self, sample: Sample, error: Exception, claims: Claims) -> None:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        try:
            self.folder.note(sample.name, "failed", {"reason": reason})
        except OSError:
            self.lost[sample.name] = reason
        claims.release(sample.name)


def _part(plan: flow.Plan, first: int, last: int) -> flow.Plan:
    """Some steps of a run."""
    sigmas, timesteps, table = plan.schedule
    high = plan.high_steps
    return plan.replace(
        schedule=flow.Schedule(sigmas[first : last + 1], timesteps[first:last], table[first:last]),
        high_steps=None if high is None else min(max(high - first, 0), last - first),
    )
