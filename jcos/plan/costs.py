"""What a run costs by formula: operations, bytes held and sent, and how long they take at best.

Nothing is compiled or allocated. The formulas order the meshes that a compiler then looks at, are
the first answer where none is installed, and say how many runs of a sweep fit into memory.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import jax
import numpy as np

from jcos.config import DiTConfig, WanConfig
from jcos.devices.mesh import BRANCH, FSDP, SEED, SEQUENCE, TENSOR
from jcos.model.dit import DiT
from jcos.plan.machines import Machine
from jcos.wan import latent_grid
from jcos.weights.checkpoint import abstract_model

Sizes = Mapping[str, int]
"""Of mesh axes; those that are not named are 1."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Videos of one size that a model makes side by side: `seeds` of them, with its sampling.

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
    def steps(self) -> int:
        return self.config.sampling.steps

    @property
    def branches(self) -> int:
        """Passes per step: two with guidance."""
        return 1 if self.config.sampling.guidance is None else 2


def in_turns(job: Job) -> Job:
    """Return what a device sees of a job whose experts come to it one at a time (`wan.load`,
    resident): as many steps by one expert."""
    config, scales = job.config, job.config.sampling.guidance
    sampling = dataclasses.replace(config.sampling, guidance=scales and scales[:1])
    alone = dataclasses.replace(config, boundary=None, sampling=sampling)
    return dataclasses.replace(job, config=alone)


def forward_flops(cfg: DiTConfig, tokens: int, timesteps: int = 1) -> dict[str, float]:
    """Return the operations of one forward pass by part, two per multiplication and addition; those
    of matrix products alone.

    timesteps: that are embedded: 1, or 2 with a pinned first frame (TI2V).
    """
    n, d, text, patch = tokens, cfg.dim, cfg.text_len, math.prod(cfg.patch)
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


def mass_flops(job: Job, every: int = 1) -> float:
    """Return what `AttentionMass.by_frame` of one query in `every` adds to a layer, in one pass."""
    cfg, regions = job.config.dit, job.config.dit.tokens(*job.latent)[0]
    alone = forward_flops(cfg, job.tokens)["self-attention"] / cfg.layers
    return alone * (cfg.head_dim + regions) / (2 * cfg.head_dim) / every


def step_flops(job: Job) -> float:
    """Return the operations of one denoising step of all seeds."""
    timesteps = 2 if job.config.image == "pin" else 1
    once = sum(forward_flops(job.config.dit, job.tokens, timesteps).values())
    return job.seeds * job.branches * once


@cache
def expert_bytes(config: WanConfig) -> int:
    """Return the bytes of one expert's weights, in the types that they are held in."""
    dit = abstract_model(DiT, config.dit, numerics=config.numerics)
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(dit))


def block_bytes(config: WanConfig) -> float:
    """Return the bytes of one block's weights: what is gathered where they are stored in slices."""
    cfg, (_, linear) = config.dit, _widths(config)
    return float(linear * (8 * cfg.dim**2 + 2 * cfg.dim * cfg.ffn_dim))


def _widths(config: WanConfig) -> tuple[int, int]:
    """Bytes of a number of the residual stream, and of one that is multiplied with weights."""
    numerics = config.numerics
    return np.dtype(numerics.residual).itemsize, np.dtype(numerics.linear).itemsize


def _of(sizes: Sizes, *axes: str) -> int:
    return math.prod(sizes.get(axis, 1) for axis in axes)


class Held(NamedTuple):
    """Bytes that a run holds on a device next to the weights.

    estimates: of a seed: latents, clean estimates of all steps, the solver's state. block: of a
    pass: what a block holds where it is widest. scores: of attention, which flash kernels do not
    store.
    """

    estimates: float
    block: float
    scores: float


def run_bytes(config: WanConfig, latent: tuple[int, int, int], steps: int, sizes: Sizes) -> Held:
    """Return what a run of so many steps holds on one of the devices that share its tokens.

    A block holds the residual stream and its normed copy, queries, keys, values and their result,
    rotated copies in float32, and the feed-forward's hidden width twice.
    """
    cfg, (stream, linear), tensor = config.dit, _widths(config), _of(sizes, TENSOR)
    tokens = math.prod(cfg.tokens(*latent))
    rows = -(-tokens // _of(sizes, *SEQUENCE))
    spread = (4 * linear + 8) * cfg.dim + 2 * linear * cfg.ffn_dim
    return Held(
        4.0 * math.prod(latent) * cfg.out_channels * (2 * steps + 8),
        rows * ((stream + linear) * cfg.dim + spread / tensor),
        8.0 * cfg.heads * rows * max(tokens, cfg.text_len),
    )


class Memory(NamedTuple):
    """Bytes on one device."""

    arguments: float
    temporaries: float
    outputs: float

    @property
    def total(self) -> float:
        return sum(self)


def passes_per_device(job: Job, sizes: Sizes) -> float:
    """Return how many forward passes of a step one device has a part in."""
    return job.seeds * job.branches / _of(sizes, SEED, BRANCH)


def memory(job: Job, sizes: Sizes, copies: float = 1.0) -> Memory:
    """Return what one device holds: weights of all experts in their slices, and `run_bytes`.

    copies: of a block's widest place that the compiler holds at once (`Chip`).
    """
    config, fsdp, tensor = job.config, _of(sizes, FSDP), _of(sizes, TENSOR)
    held, seeds = run_bytes(config, job.latent, job.steps, sizes), job.seeds / _of(sizes, SEED)
    gathered = 0.0 if fsdp == 1 else 2 * block_bytes(config) / tensor
    return Memory(
        arguments=config.experts * expert_bytes(config) / fsdp / tensor,
        temporaries=copies * passes_per_device(job, sizes) * held.block
        + gathered
        + seeds * held.estimates / 2,
        outputs=seeds * held.estimates / 2,
    )


def link_bytes(job: Job, sizes: Sizes) -> float:
    """Return the bytes that one device sends to others in a step: queries, keys, values and results
    exchanged for heads (Ulysses), keys and values passed round where heads do not divide, blocks
    gathered, sums over `tensor`."""
    cfg, (_, linear) = job.config.dit, _widths(job.config)
    fsdp, tensor, spread = _of(sizes, FSDP), _of(sizes, TENSOR), _of(sizes, *SEQUENCE)
    by_head = next(n for n in (spread, fsdp, 1) if cfg.heads // tensor % n == 0)
    rows = passes_per_device(job, sizes) * job.tokens / spread * cfg.dim * linear
    exchanged = rows / tensor * (4 * (by_head - 1) / by_head + 2 * (spread / by_head - 1))
    gathered = block_bytes(job.config) / tensor * (fsdp - 1) / fsdp
    summed = 3 * 2 * rows * (tensor - 1) / tensor
    return cfg.layers * (exchanged + gathered + summed)


def seconds(job: Job, machine: Machine, sizes: Sizes, sent: float) -> dict[str, float]:
    """Return how long one step whose work is spread evenly takes a device, by what could hold it
    up; they overlap at best. sent: bytes over links per device.

    Where every chain of elementwise operations is fused, a block's norms and sums go over the
    residual stream nine times, matrix products and attention over 24 arrays of its width, the
    feed-forward over its hidden width twice.
    """
    cfg, chip, (stream, linear) = job.config.dit, machine.chip, _widths(job.config)
    weights = expert_bytes(job.config) / _of(sizes, TENSOR)
    rows = passes_per_device(job, sizes) * job.tokens / _of(sizes, *SEQUENCE)
    moved = (9.0 * stream + 24.0 * linear) * cfg.dim + 2.0 * linear * cfg.ffn_dim
    return {
        "compute": step_flops(job) / machine.devices / chip.flops,
        "memory": (weights + rows * cfg.layers * moved) / chip.bandwidth,
        "links": sent / machine.link,
    }
