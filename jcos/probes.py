"""Interventions and observations: data plus three pure functions.

A probe is asked before the model sees a latent, after every block, and after every forward pass. It
answers with what to go on with and with what it saw. Which step, frame or layer is meant is an
array inside the probe, so a sweep over positions is a `vmap` over probes and one compiled program
serves every mask, also the empty one.

Every trajectory has two named axes: `seed` (same puzzle, other noise) and `world` (runs side by
side that differ in what they are asked or in what is done to them). Collectives over them work in
any probe.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Latents = Float[Array, "F H W C"]
Tokens = Float[Array, "N D"]


class Site(NamedTuple):
    """Where a trajectory is; traced scalars.

    step: denoising step, 0 first. layer: DiT block, 0 first; −1 outside the blocks. branch: 0
    conditional, 1 unconditional. sigma: noise level of this step. key: randomness of this seed at
    this step, the same in every world.
    """

    step: Int[Array, ""]
    layer: Int[Array, ""]
    branch: Int[Array, ""]
    sigma: Float[Array, ""]
    key: Key[Array, ""]


class Probe(flax.struct.PyTreeNode):
    """Does nothing and sees nothing; subclasses override what they need.

    Fields are arrays, or static and marked with `flax.struct.field(pytree_node=False)`.
    `trajectory.stack` of several probes has leading axes (`*sweep` below), which `trajectory.sweep`
    takes off again.
    """

    def on_latents(self, site: Site, x: Latents) -> Latents:
        """The latent [F, H, W, C] that the model sees at this step instead of x."""
        del site
        return x

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, Any]:
        """After block `site.layer`: tokens [N, D] to go on with, and an observation (any pytree of
        arrays)."""
        del site
        return tokens, ()

    def on_step(self, site: Site, observed: Any) -> Any:
        """What to keep of a pass's observations, stacked [layers, …], of the conditional branch."""
        del site
        return observed


class Chain(Probe):
    """Several probes, one after the other; observations as a tuple in their order."""

    probes: tuple[Probe, ...]

    def on_latents(self, site: Site, x: Latents) -> Latents:
        for probe in self.probes:
            x = probe.on_latents(site, x)
        return x

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, tuple[Any, ...]]:
        seen = []
        for probe in self.probes:
            tokens, observation = probe.on_block(site, tokens)
            seen.append(observation)
        return tokens, tuple(seen)

    def on_step(self, site: Site, observed: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            probe.on_step(site, seen) for probe, seen in zip(self.probes, observed, strict=True)
        )


def chain(*probes: Probe) -> Chain:
    """`chain(a, b)`: a acts first, b sees what a left."""
    return Chain(probes)


def choose(size: int, chosen: Iterable[int], what: str) -> Bool[np.ndarray, " size"]:
    """A mask of `size` with the chosen entries on; IndexError where one does not exist (`what`
    names it)."""
    mask = np.zeros(size, bool)
    for i in chosen:
        if not 0 <= i < size:
            raise IndexError(f"{what} {i} is out of range: there are {what}s 0 to {size - 1}")
        mask[i] = True
    return mask


class Noise(Probe):
    """Replaces latent frames by N(0, I) at chosen steps (paper, section 3.2).

    mask [steps, frames]: where. At one step in all frames it wipes what the trajectory has decided;
    in one frame at all steps, the other frames can restore it.
    """

    mask: Bool[Array, "*sweep S F"]

    @classmethod
    def at_steps(cls, steps: int, frames: int, chosen: Iterable[int]) -> "Noise":
        """All frames at the chosen steps, of a run with `steps` steps over `frames` latent
        frames."""
        return cls(jnp.asarray(np.repeat(choose(steps, chosen, "step")[:, None], frames, 1)))

    @classmethod
    def at_frames(cls, steps: int, frames: int, chosen: Iterable[int]) -> "Noise":
        """The chosen frames at every step."""
        return cls(jnp.asarray(np.repeat(choose(frames, chosen, "frame")[None], steps, 0)))

    def on_latents(self, site: Site, x: Latents) -> Latents:
        noise = jax.random.normal(site.key, x.shape, x.dtype)
        return jnp.where(self.mask[site.step][:, None, None, None], noise, x)


class SeedEnsemble(Probe):
    """Averages tokens over the seeds after chosen blocks at chosen steps (paper, section 6).

    mask [steps, layers]: where. branches [conditional, unconditional]: in which.
    The mean is taken in float32. Seeds have no other input that differs inside a pass, so after the
    first
    averaged block of a pass their tokens are the same until its end: a window of layers acts by its
    first.
    """

    mask: Bool[Array, "*sweep S L"]
    branches: Bool[Array, "*sweep 2"]

    @classmethod
    def window(
        cls,
        steps: int,
        layers: int,
        at_steps: Iterable[int] = (0,),
        at_layers: Iterable[int] | None = None,
    ) -> "SeedEnsemble":
        """Layers of the middle (by default the paper's 20–29 of 40, as a fraction) in the first
        step."""
        if at_layers is None:
            at_layers = range(layers // 2, max(layers // 2 + 1, 3 * layers // 4))
        mask = np.outer(choose(steps, at_steps, "step"), choose(layers, at_layers, "layer"))
        return cls(jnp.asarray(mask), jnp.ones(2, bool))

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, tuple[()]]:
        mean = jax.lax.pmean(tokens.astype(jnp.float32), "seed").astype(tokens.dtype)
        return jnp.where(
            self.mask[site.step, site.layer] & self.branches[site.branch], mean, tokens
        ), ()


class Swap(Probe):
    """Gives a world the tokens of the world before it (the first gets the last's), after chosen
    blocks.

    mask [worlds, steps, layers]: which world receives, when and where; with two worlds and both
    receiving, they exchange. tokens [N]: which tokens (paper, section 5.2: all visual tokens).
    """

    mask: Bool[Array, "*sweep W S L"]
    tokens: Bool[Array, "*sweep N"]

    @classmethod
    def at_layers(
        cls,
        steps: int,
        layers: int,
        tokens: int,
        chosen: Iterable[int],
        *,
        at_steps: Iterable[int] = (0,),
        receivers: Sequence[bool] = (True, False),
    ) -> "Swap":
        """After the chosen layers in the first step, from a donor in world 1 to the run in world
        0."""
        here = np.outer(choose(steps, at_steps, "step"), choose(layers, chosen, "layer"))
        return cls(jnp.asarray(np.stack([here & to for to in receivers])), jnp.ones(tokens, bool))

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, tuple[()]]:
        worlds = self.mask.shape[0]
        other = jax.lax.ppermute(tokens, "world", [(i, (i + 1) % worlds) for i in range(worlds)])
        here = self.mask[jax.lax.axis_index("world"), site.step, site.layer]
        return jnp.where((here & self.tokens)[:, None], other, tokens), ()


class TokenEnergy(Probe):
    """Observes the L2 norm of every token after every block (paper, section 5.1): [steps, layers,
    N]."""

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, Float[Array, " N"]]:
        del site
        return tokens, jnp.linalg.norm(tokens.astype(jnp.float32), axis=-1)


class TokenFeatures(Probe):
    """Observes the tokens of chosen layers as they are: [steps, chosen layers, chosen tokens, D].

    layers: block numbers. tokens: which tokens, None for all; a large model's do not fit otherwise.
    """

    layers: tuple[int, ...] = flax.struct.field(pytree_node=False)
    tokens: Int[Array, "*sweep n"] | None = None

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, Float[Array, "n D"]]:
        del site
        return tokens, tokens if self.tokens is None else tokens[self.tokens]

    def on_step(self, site: Site, observed: Float[Array, "L n D"]) -> Float[Array, "l n D"]:
        del site
        choose(observed.shape[0], self.layers, "layer")
        return observed[np.array(self.layers)]
