"""Makes the videos of an arm that are not there, in batches of one shape. While a batch is
denoised, the one before is decoded and written, and the next one is prepared."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import jax
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jcos import wan
from jcos.bench.arm import Arm, Shape, as_json, resized
from jcos.bench.folder import Bench, Sample
from jcos.bench.results import Folder, Status
from jcos.bench.sampler import Sampler
from jcos.config import PixelCodec, WanConfig
from jcos.devices import mesh, sharding
from jcos.files import check_room, is_remote, write
from jcos.media.formats import check_mp4, write_mp4
from jcos.runs import made
from jcos.sampling.trajectory import Condition
from jcos.staged import Progress, silent
from jcos.weights import hub
from jcos.weights import lora as lora_files
from jcos.weights.checkpoint import identify

if TYPE_CHECKING:
    from jcos.bench.cluster import Cluster

PACE = 60.0
"""Seconds between two counts of what is done in a bucket, where each sample is a request."""
ROOM = 64 * 2**20
"""Bytes that must be free on the disk before a batch is begun."""
FAILURES = (
    ValueError,
    IndexError,
    FloatingPointError,
    OSError,
    MemoryError,
    SafetensorError,
    av.FFmpegError,
    jax.errors.JaxRuntimeError,
)
"""What may go wrong with one sample while others go well; the last one when memory is short."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one process does.

    shard: (i, n) takes every n-th sample from the i-th on; all by default. retry: failed samples
    too. batch: samples of equal shape generated at a time, by default as many as memory holds.
    text: folder of embedded prompts. mesh: this process's devices, over which a sample is
    spread; one device by default.
    """

    text: Path
    shard: tuple[int, int] = (0, 1)
    retry: bool = False
    batch: int | None = None
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        i, n = self.shard
        if not 0 <= i < n:
            raise ValueError(f"shard is {i}/{n}; it is I/N with I below N, like 0/4 to 3/4")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch is {self.batch}; at least 1 sample is generated at a time")


def settings_of(arm: Arm, config: WanConfig, checkpoint: Path, bench: Bench) -> dict[str, Any]:
    """Return what decides an arm's videos. Raises ValueError where the weights or the codec do not
    serve."""
    wan.check_vae(config, checkpoint)
    check_mp4(16, 16, arm.fps, crf=arm.crf)
    lora = lora_files.identity(lora_files.read(config, arm.lora))
    return {
        "arm": as_json(arm, config.sampling) | {"lora": lora},
        "model": {"name": config.name, **identify(checkpoint)},
        "boundary": config.boundary,
        "negative": config.negative,
        "numerics": dataclasses.asdict(config.numerics),
        **({} if bench.benchmark == "vbvr" else {"benchmark": bench.benchmark}),
    }


def run(
    arms: Mapping[str, Arm],
    checkpoint: Path,
    bench: Bench,
    out: Path,
    work: Work,
    *,
    command: str = "",
    progress: Progress = silent,
    cluster: "Cluster | None" = None,
) -> dict[str, Status]:
    """Make what is missing of the arms' videos, each arm's in OUT/NAME, and return what still is:
    by this process, or by actors on a cluster.

    Raises ValueError or IndexError, before weights are read, where the mesh or a setting does not
    fit, or a folder holds another run. What is wrong with one sample is written down, and the rest
    goes on; OSError where not even that can be written.
    """
    sizes = cluster.sizes if cluster else work.mesh.shape if work.mesh else {}
    check_room(out)
    check_mesh(sizes)
    checkpoint = hub.find(checkpoint)
    configs = {n: arm.of(wan.read_config(checkpoint, arm.profile)) for n, arm in arms.items()}
    for config in configs.values():
        wan.check_mesh(sizes, config)
    settings = {n: settings_of(arm, configs[n], checkpoint, bench) for n, arm in arms.items()}
    benches = {name: arm.with_noise(bench) for name, arm in arms.items()}
    for name in arms:
        Folder(out / name).settle(settings[name], made(command, sizes))
    done: dict[str, Status] = {}
    actors = cluster.actors(checkpoint, bench, out, work) if cluster else nullcontext()
    with actors as make:
        for name, arm in arms.items():
            config, folder, whole = configs[name], Folder(out / name), benches[name]
            part = whole.part(*work.shard)
            making = Making(arm, config, checkpoint, part, folder, work)
            left, total = making.left(), len(making.shapes)
            folder.summarize(whole)
            if not sharding.on_all_hosts(not left):
                progress(f"{name}: reading the model", total - len(left), total)
                if make is None:  # hosts read the model together, also one that has nothing to make
                    _ = making.sampler
                counted = -PACE
                for sample in make(name, arm, config, left) if make else making.make(left):
                    if is_remote(out) and time.monotonic() - counted < PACE:
                        continue
                    counted = time.monotonic()
                    progress(f"{name}: {sample}", total - len(making.left()), total)
                folder.summarize(whole)
            done[name] = folder.status(part)
    return done


def check_mesh(sizes: Mapping[str, int]) -> None:
    """Raise ValueError where a sample would leave devices of a mesh of these sizes idle."""
    for axis in (mesh.WORLD, mesh.SEED):
        if (size := sizes.get(axis, 1)) > 1:
            raise ValueError(
                f"a mesh of {axis}={size} leaves devices idle, because a sample is one run: leave "
                f"{axis} out; spread a sample over branch, context or fsdp, or give each device a "
                "--shard of the samples, which --ray and --join share out already"
            )


@dataclasses.dataclass
class Making:
    """One arm's videos, made by one process, which reads the model once.

    shapes: of the samples that can be made; why others cannot is written down. sizes: of programs,
    in samples.
    """

    arm: Arm
    config: WanConfig
    checkpoint: Path
    bench: Bench
    folder: Folder
    work: Work
    shapes: dict[Sample, Shape] = dataclasses.field(default_factory=dict)
    sizes: dict[Shape, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.bench.names if self.work.retry else ():
            self.folder.about(name, "failed").unlink(missing_ok=True)
        for sample in self.bench.samples:
            try:
                self.shapes[sample] = self.arm.shape(self.config, sample)
            except ValueError as error:
                self.folder.fail(sample.name, error)

    def left(self) -> list[Sample]:
        """Return the samples to be made."""
        return [sample for sample in self.shapes if not self.folder.is_settled(sample.name)]

    @functools.cached_property
    def sampler(self) -> Sampler:
        arm, work, checkpoint = self.arm, self.work, self.checkpoint
        words = [self.config.negative, *(sample.prompt for sample in self.left())]
        with sharding.use_mesh(work.mesh):
            rows = wan.embedder(checkpoint, self.config, words, work.text, arm.profile)
            model = wan.load(
                checkpoint, profile=arm.profile, text=False, resident=None, lora=arm.lora
            )
        model.config = self.config
        return Sampler(arm, model, rows, work.mesh)

    def make(self, left: Sequence[Sample]) -> Iterator[str]:
        """Make samples, a batch of one shape at a time; yield the first of each batch when it is
        begun.

        Of samples that a killed run has denoised, only the videos are made.
        """
        if not left:
            return
        denoised = [sample for sample in left if self.folder.is_denoised(sample)]
        batches = self._batches([s for s in left if s not in denoised])
        # One thread, so that preparing takes no memory on top of a decoder's.
        with ThreadPoolExecutor(1) as coding:
            writing = [coding.submit(self._finish, sample) for sample in denoised]
            first, *others = *batches, []
            ahead = [coding.submit(self._prepare, sample) for sample in first]
            for batch, following in zip(batches, others, strict=True):
                ready = [self._ready(*each) for each in zip(batch, ahead, strict=True)]
                ahead = [coding.submit(self._prepare, sample) for sample in following]
                yield batch[0].name
                made = self._denoise({s: c for s, c in zip(batch, ready, strict=True) if c})
                for future in writing:
                    future.result()
                writing = [coding.submit(self._finish, sample) for sample in made]
            for future in writing:
                future.result()
        yield "done"

    def _batches(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        by_shape: dict[Shape, list[Sample]] = {}
        for sample in samples:
            by_shape.setdefault(self.shapes[sample], []).append(sample)
        batches = []
        for shape, alike in by_shape.items():
            self.sizes[shape] = size = self.sampler.fitting(shape, len(alike), self.work.batch)
            batches += [alike[i : i + size] for i in range(0, len(alike), size)]
        return batches

    def _prepare(self, sample: Sample) -> Condition:
        return self.sampler.prepare(sample, self.shapes[sample])

    def _ready(self, sample: Sample, prepared: Future[Condition]) -> Condition | None:
        """Return what a sample is generated from; None where it cannot be prepared."""
        try:
            if isinstance(prepared.exception(), FAILURES):
                # Perhaps for want of memory next to a batch that was denoised: once more alone.
                return self._prepare(sample)
            return prepared.result()
        except FAILURES as error:
            self.folder.fail(sample.name, error)
            return None

    def _denoise(self, batch: Mapping[Sample, Condition]) -> list[Sample]:
        """Write the latents of samples of one shape, and return those that succeeded. Where several
        fail together, each is tried alone."""
        if not batch:
            return []
        check_room(self.folder.path, ROOM)
        start = time.monotonic()
        shape = self.shapes[next(iter(batch))]
        # One program for every batch of a shape, and one for what is tried alone.
        size = 1 if len(batch) == 1 else self.sizes[shape]
        try:
            latents, x0, notes = self.sampler.generate([*batch.values()], shape, size, [*batch])
        except FAILURES as error:
            if len(batch) > 1:
                return [s for one in batch for s in self._denoise({one: batch[one]})]
            self.folder.fail(next(iter(batch)).name, error)
            return []
        seconds = round((time.monotonic() - start) / len(batch), 1)
        for i, sample in enumerate(batch):
            about = {
                "digest": sample.digest,
                "prompt": sample.prompt,
                "shape": shape._asdict(),
                "seconds": seconds,
                "device": jax.local_devices()[0].device_kind,
                "mesh": sharding.describe(self.sampler.devices or {}),
                **notes[i],
            }
            if self.arm.x0 and sample.name in self.bench.names[: self.arm.x0_samples]:
                file = self.folder.about(sample.name, "x0", "safetensors")
                write(file, save({"x0": x0[i].astype(np.float16)}))
            write(self.folder.latents(sample.name), save({"latents": latents[i]}))
            self.folder.note(sample.name, "made", about)
        return list(batch)

    def _finish(self, sample: Sample) -> None:
        """Write the video of latents, which makes the sample done."""
        arm, coder = self.arm, self.sampler.coder
        # H.264 needs even sides.
        height, width = (side + side % 2 for side in (sample.height, sample.width))
        exact, latents = isinstance(coder.codec, PixelCodec), self.folder.latents(sample.name)
        try:
            video = coder.decode(load(latents.read_bytes())["latents"])
            how = {"exact": exact, "resample": arm.resample}
            video = np.stack([resized(frame, height, width, **how) for frame in video])
            write_mp4(self.folder.video(sample.name), video, arm.fps, crf=arm.crf)
            latents.unlink()
        except FAILURES as error:
            self.folder.fail(sample.name, error)
