"""Generates the videos of an arm: as many workers as you like, each killed whenever you like."""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jcos import wan
from jcos.bench.arm import Arm, as_json, shapes_of
from jcos.bench.folder import Bench
from jcos.bench.sampler import Sampler, check_mesh
from jcos.bench.state import Folder, Status
from jcos.bench.worker import Progress, Worker
from jcos.config import UMT5Config, VaeConfig, WanConfig
from jcos.devices import sharding
from jcos.media.formats import check_mp4
from jcos.model.text import UMT5, TextCache
from jcos.runs import made
from jcos.wan import Prompt
from jcos.weights.checkpoint import MANIFEST as CONVERTED
from jcos.weights.checkpoint import identify, stored
from jcos.weights.released import open_released


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one worker does.

    shard: (i, n) takes every n-th sample from the i-th on; all by default. batch: samples of equal
    shape generated at a time, by default as many as memory holds. text: folder of embedded prompts.
    dead: seconds after which the claim of a silent worker is taken over. mesh: this process's own
    devices, over which a batch and its samples are spread; one device by default.
    """

    text: Path
    shard: tuple[int, int] = (0, 1)
    retry: bool = False
    batch: int | None = None
    dead: float = 240.0
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        i, n = self.shard
        if not 0 <= i < n:
            raise ValueError(f"shard is {i}/{n}; with {n} shards they are 0/{n} to {n - 1}/{n}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch is {self.batch}; at least 1 sample is generated at a time")


def begin(arm: Arm, checkpoint: Path, out: Path, mesh: Mesh | None, command: str) -> WanConfig:
    """The folder of an arm with its manifest, and the model as the arm samples it.

    Raises ValueError or IndexError where the arm does not suit the model or the mesh, the
    checkpoint has no VAE, or `out` has videos of other settings.
    """
    config = arm.of(wan.read_config(checkpoint, arm.profile))
    check_mesh(mesh.shape if mesh else {}, config)
    _check_vae(config, checkpoint)
    check_mp4(16, 16, arm.fps, crf=arm.crf)
    Folder(out).settle(
        {
            "arm": as_json(arm, config.sampling),
            "model": {"name": config.name, **identify(checkpoint)},
            "boundary": config.boundary,
            "negative": config.negative,
            "numerics": dataclasses.asdict(config.numerics),
        },
        made(command, mesh.shape if mesh else {}),
    )
    return config


def _check_vae(config: WanConfig, checkpoint: Path) -> None:
    """ValueError where the model needs one that its folder does not have, as VBVR's."""
    if not isinstance(config.codec, VaeConfig):
        return
    converted = (checkpoint / CONVERTED).is_file()
    leaves = stored(checkpoint) if converted else open_released(checkpoint).leaves
    if not any(name.startswith("vae.") for name in leaves):
        raise ValueError(
            f"{checkpoint} has no VAE, which codes pictures and videos; put that of the release "
            "beside the weights and convert them together (docs/vbvr.md says how)"
        )


def conduct(
    arm: Arm, checkpoint: Path, bench: Bench, out: Path, work: Work, command: str
) -> Generator[Progress, None, Status]:
    """Generates what is missing of this worker's samples, and says what still is.

    Raises as `begin` does, before anything runs. What is wrong with one sample is written down, and
    the rest goes on.
    """
    config, folder = begin(arm, checkpoint, out, work.mesh, command), Folder(out)
    bench, (i, n) = bench.part(*work.shard), work.shard
    summary = "summary.json" if n == 1 else f"summary-{i}-of-{n}.json"
    if work.retry:
        folder.forgive(bench.names)
    shapes, wrong = shapes_of(arm, config, bench.samples)
    lost: dict[str, str] = {}
    for name, reason in wrong.items():
        try:
            folder.note(name, "failed", {"reason": reason})
        except OSError:  # a full disk stops no run
            lost[name] = reason
    if _anywhere(any(not folder.settled(sample.name) for sample in shapes)):
        yield Progress(0, len(shapes), "reading prompts")
        with sharding.use_mesh(work.mesh):
            rows = embedded(arm, checkpoint, config, [s.prompt for s in shapes], work.text)
        yield Progress(0, len(shapes), "reading the model")
        with sharding.use_mesh(work.mesh):
            model = wan.load(checkpoint, profile=arm.profile, text=rows is None, resident=None)
        model.config = config
        sampler = Sampler.of(arm, model, rows, work.mesh)
        kept = {sample.name for sample in bench.samples[: arm.x0_samples if arm.x0 else 0]}
        worker = Worker(sampler, folder, shapes, kept, work.batch, lost)
        for progress in worker.run(work.dead):
            folder.status(bench, summary)
            yield progress
    found = folder.status(bench, summary)
    return found._replace(failed=found.failed | lost)


def embedded(
    arm: Arm, checkpoint: Path, config: WanConfig, prompts: Sequence[str], folder: Path
) -> Callable[[str], Prompt] | None:
    """All prompts, embedded once for every arm and worker that shares the folder; the encoder is
    loaded only where one is missing. None for models that read words themselves."""
    if not isinstance(config.text, UMT5Config):
        return None

    def read(cache: TextCache) -> Callable[[str], Prompt]:
        for prompt in (config.negative, *prompts):
            cache.embed(prompt, config.dit.text_len)
        return lambda prompt: cache.embed(prompt, config.dit.text_len)

    lacking = ""
    try:
        read(TextCache(folder))
    except ValueError as missing:
        lacking = str(missing)
    if _anywhere(bool(lacking)):
        whole = wan.load(checkpoint, profile=arm.profile, experts=False, vae=False)
        if isinstance(whole.text, UMT5):
            read(TextCache(folder, whole.text, whole.tokenizer))
        elif lacking:
            raise ValueError(lacking)
    return read(TextCache(folder))


def _anywhere(here: bool) -> bool:
    """Whether it holds on any of the hosts that have joined. They read checkpoints together or not
    at all: Orbax waits for all of them."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.array(here)).any())
