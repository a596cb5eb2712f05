"""One process that makes samples: claimed in batches of one shape, prepared, generated, decoded,
written."""

import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple

import av
import jax
import numpy as np
from jaxtyping import Float
from safetensors.numpy import save

from jcos.bench.arm import Shape, resized
from jcos.bench.claims import Claims
from jcos.bench.folder import Sample
from jcos.bench.sampler import Sampler
from jcos.bench.state import Folder
from jcos.config import PixelCodec
from jcos.devices import sharding
from jcos.files import visible, write
from jcos.media.formats import write_mp4
from jcos.sampling.trajectory import Condition
from jcos.wan import Wan

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


Batch = dict[Sample, Future[Condition]]
"""Samples that are claimed, and what each is generated from."""


class Made(NamedTuple):
    """latents: the end. x0: the clean estimates that are kept. seconds: its share of the time.
    coder: decodes it."""

    latents: Float[np.ndarray, "F h w C"]
    x0: Float[np.ndarray, "kept F h w C"]
    seconds: float
    coder: Wan


@dataclasses.dataclass(frozen=True)
class Worker:
    """kept: names of the samples whose clean estimates are written. batch: samples at a time, None
    for as many as memory holds. lost: filled with the failures that could not be written down.
    sizes: of batches, by shape."""

    sampler: Sampler
    folder: Folder
    shapes: dict[Sample, Shape]
    kept: set[str]
    batch: int | None
    lost: dict[str, str]
    sizes: dict[Shape, int] = dataclasses.field(default_factory=dict)

    def run(self, dead: float) -> Generator[Progress, None, None]:
        """Until every sample is settled, by this worker or another. While a batch is generated, the
        one before is decoded and written, and the next one is claimed and prepared."""
        ahead: Batch = {}
        made: dict[Sample, Made] = {}
        shape = None
        total = len(self.shapes)
        claims = Claims(self.folder.path / "state" / "claims", dead=dead, beat=dead / 16)
        # No more threads than coders, so that preparing takes no memory beside a decoder's.
        with claims, ThreadPoolExecutor(len(self.sampler.coders)) as coding:
            while left := [s for s in self.shapes if not self._settled(s)]:
                batch = ahead or self._begin(left, claims, shape, coding)
                # After it, so that what is generated next does not wait for a decoder.
                written = [coding.submit(self._finish, *one, claims) for one in made.items()]
                ahead, made = {}, {}
                if batch:
                    first = next(iter(batch))
                    shape = self.shapes[first]
                    yield Progress(total - len(left), total, first.name)
                    # Not beside the first batch: workers that began together claim theirs first.
                    if written and _enough(left, claims):
                        ahead = self._begin(left, claims, shape, coding)
                    made = self._attempt(self._prepared(batch, claims), claims)
                elif not written:
                    time.sleep(min(2.0, dead / 8))  # others have the rest; one of them may die
                for writing in written:
                    writing.result()
        yield Progress(total, total, "done")

    def _settled(self, sample: Sample) -> bool:
        return sample.name in self.lost or self.folder.settled(sample.name)

    def _begin(
        self, left: Sequence[Sample], claims: Claims, shape: Shape | None, coding: Executor
    ) -> Batch:
        """The next batch, claimed, and its preparation on its way."""
        return {
            sample: coding.submit(self.sampler.prepare, sample, self.shapes[sample], i)
            for i, sample in enumerate(self._take(left, claims, shape))
        }

    def _take(self, left: Sequence[Sample], claims: Claims, shape: Shape | None) -> list[Sample]:
        """Claims as many samples of one shape as are made at a time, if possible of the one that is
        compiled already."""
        batch: list[Sample] = []
        for sample in sorted(left, key=lambda s: self.shapes[s] != shape):
            if sample.name in claims.held:
                continue
            if batch and self.shapes[sample] != self.shapes[batch[0]]:
                continue
            try:
                if not claims.take(sample.name):
                    continue
            except OSError as error:
                self.lost[sample.name] = f"it cannot be claimed: {error}"
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
        total = Counter(self.shapes.values())[shape]
        return self.sizes.setdefault(shape, self.sampler.fitting(shape, total, self.batch))

    def _prepared(self, batch: Batch, claims: Claims) -> dict[Sample, Condition]:
        """Those that could be prepared; of the others the reason is written down."""
        ready = {}
        for i, (sample, prepared) in enumerate(batch.items()):
            try:
                if isinstance(prepared.exception(), FAILURES):
                    # Perhaps for want of memory beside a batch that was generated: once more alone.
                    ready[sample] = self.sampler.prepare(sample, self.shapes[sample], i)
                else:
                    ready[sample] = prepared.result()
            except FAILURES as error:
                self._fail(sample, error, claims)
        return ready

    def _attempt(self, batch: dict[Sample, Condition], claims: Claims) -> dict[Sample, Made]:
        """Those that succeed; of the others the reason is written down. Where several fail
        together, each is tried alone."""
        if not batch:
            return {}
        start = time.monotonic()
        try:
            free = shutil.disk_usage(self.folder.path).free
            if free < ROOM:
                raise OSError(f"the disk of {self.folder.path} has only {free >> 20} MiB left")
            shape, worlds = self.shapes[next(iter(batch))], self.sampler.worlds
            # One program for every batch of a shape, and one for what is tried alone.
            size = worlds if len(batch) <= worlds else self._size(shape)
            latents, x0 = self.sampler.generate([*batch.values()], shape, size)
        except FAILURES as error:
            if len(batch) == 1:
                self._fail(next(iter(batch)), error, claims)
                return {}
            alone = [self._attempt({sample: batch[sample]}, claims) for sample in batch]
            return {sample: made for one in alone for sample, made in one.items()}
        seconds = (time.monotonic() - start) / len(batch)
        coders = self.sampler.coders
        return {
            sample: Made(latents[i], x0[i], seconds, coders[i % len(coders)])
            for i, sample in enumerate(batch)
        }

    def _finish(self, sample: Sample, made: Made, claims: Claims) -> None:
        try:
            self._write(sample, made, claims)
        except FAILURES as error:
            self._fail(sample, error, claims)
        else:
            claims.release(sample.name)

    def _write(self, sample: Sample, made: Made, claims: Claims) -> None:
        """The video last: what is there makes the sample done."""
        # H.264 needs even sides.
        height, width = (side + side % 2 for side in (sample.height, sample.width))
        exact = isinstance(made.coder.codec, PixelCodec)
        video = made.coder.decode(made.latents)
        video = np.stack([resized(frame, height, width, exact=exact) for frame in video])
        if not claims.keeps(sample.name):
            return  # this worker was thought dead, and another has the sample
        if sample.name in self.kept:
            x0 = {"x0": made.x0.astype(np.float16)}
            write(self.folder.about(sample.name, "x0", "safetensors"), save(x0))
        about = {
            "digest": sample.digest,
            "prompt": sample.prompt,
            "shape": self.shapes[sample]._asdict(),
            "seconds": round(made.seconds, 1),
            "device": jax.local_devices()[0].device_kind,
            "mesh": sharding.describe(self.sampler.devices or {}),
        }
        self.folder.note(sample.name, "made", about)
        arm = self.sampler.arm
        write_mp4(self.folder.video(sample.name), video, arm.fps, crf=arm.crf)

    def _fail(self, sample: Sample, error: Exception, claims: Claims) -> None:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        try:
            self.folder.note(sample.name, "failed", {"reason": reason})
        except OSError:
            self.lost[sample.name] = reason
        claims.release(sample.name)


def _enough(left: Sequence[Sample], claims: Claims) -> bool:
    """Whether a batch may be claimed before its turn: where twice as many samples are free as other
    workers hold, so that each of them still finds a batch after its own. Preparing takes seconds;
    who finds all that is left claimed, but not begun, idles for as long as a batch takes. Claims of
    other shards in the same folder count too, for caution."""
    try:
        others = len(visible(claims.folder)) - len(claims.held)
    except OSError:
        return False
    free = sum(sample.name not in claims.held for sample in left) - others
    return free >= 2 * others
