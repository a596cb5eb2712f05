"""What a run costs, counted by hand: operations, bytes held, bytes sent.

Formulas of the transformer's sizes alone; nothing is compiled or allocated. They are what docs say
about scaling, the plan for machines without a compiler at hand, and what orders the meshes that a
compiler then looks at.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import cache

import jax
import numpy as np
from flax import nnx

from jcos.config import DiTConfig, Sampling, WanConfig
from jcos.model.dit import DiT
from jcos.plan.machines import Machine
from jcos.wan import latent_grid


@dataclasses.dataclass(frozen=True)
class Job:
    """Videos of one size that a model makes side by side: `seeds` of them, with its own sampling.

    frames, height, width: in pixels. Raises ValueError where the model has no video of that size.
    """

    config: WanConfig
    frames: int
    height: int
    width: int
    seeds: int = 1

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"{self.seeds} seeds asked for; a run has at least 1")
        latent_grid(self.config, self.frames, self.height, self.width)

    @property
    def latent(self) -> tuple[int, int, int]:
        return latent_grid(self.config, self.frames, self.height, self.width)

    @property
    def tokens(self) -> int:
        """Of one video."""
        return math.prod(self.config.dit.tokens(*self.latent))

    @property
    def sampling(self) -> Sampling:
        return self.config.sampling

    @property
    def branches(self) -> int:
        """Passes per step: two with guidance."""
        return 1 if self.sampling.guidance is None else 2

    @property
    def passes(self) -> int:
        """Forward passes of one step, over all seeds."""
        return self.seeds * self.branches


def in_turns(job: Job) -> Job:
    """What a device sees of a job whose experts come to it one at a time (`wan.load`, resident): as
    many steps by one expert."""
    config, scales = job.config, job.sampling.guidance
    sampling = dataclasses.replace(job.sampling, guidance=scales and scales[:1])
    alone = dataclasses.replace(config, boundary=None, sampling=sampling)
    return dataclasses.replace(job, config=alone)


def forward_flops(cfg: DiTConfig, tokens: int, timesteps: int = 1) -> dict[str, float]:
    """Operations of one forward pass by part, two per multiplication and addition; those of
    matrix products alone.

    timesteps: different ones among the tokens: 1, or as many as tokens (TI2V).
    """
    n, d, text = tokens, cfg.dim, cfg.text_len
    patch = math.prod(cfg.patch)
    per_block = {
        "projections": 8 * n * d * d,
        "self-attention": 4 * n * n * d,
        "cross-attention": 4 * n * d * d + 4 * text * d * d + 4 * n * text * d,
        "feed-forward": 4 * n * d * cfg.ffn_dim,
    }
    embeddings = (
        2 * n * patch * (cfg.in_channels + cfg.out_channels) * d
        + 2 * text * (cfg.text_dim * d + d * d)
        + 2 * timesteps * (cfg.freq_dim * d + 7 * d * d)
    )
    return {name: float(cfg.layers * f) for name, f in per_block.items()} | {
        "embeddings and head": float(embeddings)
    }


def step_flops(job: Job) -> float:
    """Of one denoising step of all seeds."""
    timesteps = job.tokens if job.config.image == "pin" else 1
    return job.passes * sum(forward_flops(job.config.dit, job.tokens, timesteps).values())


@cache
def expert_bytes(config: WanConfig) -> int:
    """Weights of one expert, in the types that they are held in."""
    dit = jax.eval_shape(lambda: DiT(config.dit, numerics=config.numerics, rngs=nnx.Rngs(0)))
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(dit))


def block_bytes(config: WanConfig) -> float:
    """Weights of one block: what is gathered where they are stored in slices."""
    cfg, size = config.dit, np.dtype(config.numerics.linear).itemsize
    return float(size * (8 * cfg.dim**2 + 2 * cfg.dim * cfg.ffn_dim))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    arguments: float
    temporaries: float
    outputs: float

    @property
    def total(self) -> float:
        return self.arguments + self.temporaries + self.outputs


Sizes = Mapping[str, int]
"""Of mesh axes; those that are not named are 1."""


def _of(sizes: Sizes, *axes: str) -> int:
    return math.prod(sizes.get(axis, 1) for axis in axes)


def passes_per_device(job: Job, sizes: Sizes) -> float:
    """How many forward passes of a step one device has a part in."""
    return job.passes / _of(sizes, "seed", "branch")


def memory(job: Job, sizes: Sizes, copies: float) -> Memory:
    """What one device holds during a run, by calculation (`jcos plan` prefers a compiler's word).

    Weights of all experts in their slices; of every pass the residual stream and what a block
    holds at its widest place (`_widest`), `copies` times (`Chip`); every step's clean estimate, and
    the solver's state.
    """
    config, cfg = job.config, job.config.dit
    weights = config.experts * expert_bytes(config) / _of(sizes, "fsdp", "tensor")
    seeds = job.seeds / _of(sizes, "seed")
    video = 4.0 * math.prod(job.latent) * cfg.out_channels
    tokens = job.tokens / _of(sizes, "context", "fsdp")
    widest = _widest(config, _of(sizes, "tensor"))
    working = copies * passes_per_device(job, sizes) * tokens * widest
    gathered = 0.0 if _of(sizes, "fsdp") == 1 else 2 * block_bytes(config) / _of(sizes, "tensor")
    channels = cfg.in_channels - cfg.out_channels
    given = 4.0 * math.prod(job.latent) * channels
    return Memory(
        arguments=weights + given + 8.0 * cfg.text_len * cfg.text_dim,
        # Estimates are gathered by each expert's scan and joined at the end.
        temporaries=working + gathered + seeds * video * (job.sampling.steps + 6),
        outputs=seeds * video * (job.sampling.steps + 1),
    )


def _widest(config: WanConfig, tensor: int) -> float:
    """Bytes per token where a block holds most: the residual stream, its normed copy, and either
    queries, keys, values (and rotated copies in float32) or the feed-forward's hidden width."""
    cfg = config.dit
    stream = np.dtype(config.numerics.residual).itemsize * cfg.dim
    linear = np.dtype(config.numerics.linear).itemsize
    attention = (4 * linear + 2 * 4) * cfg.dim / tensor
    hidden = 2 * linear * cfg.ffn_dim / tensor
    return stream + linear * cfg.dim + max(attention, hidden)


def link_bytes(job: Job, sizes: Sizes) -> float:
    """Bytes that one device sends to others in a step, by calculation: queries, keys, values and
    results exchanged for heads (Ulysses), keys and values passed round where heads do not divide,
    blocks gathered, sums over `tensor`."""
    cfg = job.config.dit
    linear = np.dtype(job.config.numerics.linear).itemsize
    fsdp, tensor = _of(sizes, "fsdp"), _of(sizes, "tensor")
    spread = _of(sizes, "context", "fsdp")
    by_head = next(n for n in (spread, fsdp, 1) if cfg.heads // tensor % n == 0)
    passes = passes_per_device(job, sizes)
    rows = passes * job.tokens / spread * cfg.dim * linear
    exchanged = rows / tensor * (4 * (by_head - 1) / by_head + 2 * (spread / by_head - 1))
    gathered = block_bytes(job.config) / tensor * (fsdp - 1) / fsdp
    summed = 3 * 2 * rows * (tensor - 1) / tensor
    return cfg.layers * (exchanged + gathered + summed)


@dataclasses.dataclass(frozen=True)
class Seconds:
    """One step on one device, by what could hold it up; they overlap at best."""

    compute: float
    memory: float
    links: float

    @property
    def roofline(self) -> float:
        """With everything overlapped: no run is faster."""
        return max(self.compute, self.memory, self.links)

    @property
    def limit(self) -> str:
        """Which of the three it is."""
        named = dataclasses.asdict(self)
        return max(named, key=lambda name: named[name])


def seconds(job: Job, machine: Machine, sizes: Sizes, sent: float) -> Seconds:
    """Of one step whose work is spread evenly. sent: bytes over links per device and step."""
    cfg, chip = job.config.dit, machine.chip
    weights = expert_bytes(job.config) / _of(sizes, "tensor")
    tokens = job.tokens / _of(sizes, "context", "fsdp")
    moved = passes_per_device(job, sizes) * tokens * cfg.layers * _moved(job.config)
    return Seconds(
        compute=step_flops(job) / machine.devices / chip.flops,
        memory=(weights + moved) / chip.bandwidth,
        links=sent / machine.link,
    )


def _moved(config: WanConfig) -> float:
    """Bytes per token that a block reads and writes where every chain of elementwise operations is
    fused: norms and sums go over the residual stream nine times, matrix products and attention over
    24 arrays of its width, the feed-forward over its hidden width twice."""
    cfg = config.dit
    stream, linear = (
        np.dtype(kind).itemsize for kind in (config.numerics.residual, config.numerics.linear)
    )
    return (9.0 * stream + 24.0 * linear) * cfg.dim + 2.0 * linear * cfg.ffn_dim
