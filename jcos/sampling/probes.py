"""The probes of the paper, and combinations of probes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jcos.model.dit import SITES
from jcos.sampling.hooks import HOOKS
from jcos.sampling.interventions import Place, places
from jcos.sampling.probe import Change, Latents, Probe, Site, Sizes, Tokens, defines, parts


def _acting(probe: Probe, hook: str) -> int:
    """Count the probes in it that define this method, and may draw random numbers there."""
    return sum(_acting(part, hook) for part in parts(probe)) or int(defines(type(probe), hook))


class Combination(Probe):
    """A probe of others: it fits the runs that they fit, and changes what they change. Subclasses
    say what `call` does; a run calls it, and so do the methods."""

    def made_for(self) -> Sizes:
        return tuple(size for part in parts(self) for size in part.made_for())

    def changes(self, world: int = 0) -> list[Change]:
        return [change for part in parts(self) for change in part.changes(world)]

    def sites(self) -> tuple[str, ...]:
        used = {*super().sites(), *(site for part in parts(self) for site in part.sites())}
        return tuple(site for site in SITES if site in used)


def _of_parts(hook: str) -> Callable[..., Any]:
    """Return the method of a combination."""

    def method(self: Probe, site: Site, *values: Any) -> Any:
        acted = self.call(hook, site, *values)
        return acted[0] if hook in ("on_latents", "on_step") else acted

    method.of_parts = True  # type: ignore[attr-defined]
    return method


for _hook in HOOKS:
    setattr(Combination, _hook, _of_parts(_hook))


class Chain(Combination):
    """Several probes, one after the other; observations as a tuple in their order.

    Their random numbers are independent: `site.key` is folded with the number of probes before it
    that have the method, so the first probe draws what it draws alone.
    """

    probes: tuple[Probe, ...]

    def slots_of(self, site: str) -> tuple[Any, ...]:
        return tuple(probe.slots_of(site) for probe in self.probes)

    def observation(self, observed: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(
            probe.observation({site: each[i] for site, each in observed.items()})
            for i, probe in enumerate(self.probes)
        )

    def _each(self, site: Site, hook: str) -> Iterator[tuple[Probe, Site]]:
        before = 0
        for probe in self.probes:
            yield probe, site.folded(before) if before else site
            before += _acting(probe, hook)

    def call(self, hook: str, site: Site, *values: Any) -> tuple[Any, Any]:
        *other, z = values
        observations, each = [], self._each(site, hook)
        if hook == "on_step":
            rows = zip(each, z, strict=True)
            return tuple(probe.call(hook, here, one)[0] for (probe, here), one in rows), ()
        for probe, here in each:
            z, observation = probe.call(hook, here, *other, z)
            observations.append(observation)
        return z, tuple(observations)


def chain(*probes: Probe) -> Chain:
    """Return a probe of several: in `chain(a, b)`, a acts first, and b gets what a left."""
    return Chain(probes)


def choose(size: int, chosen: Iterable[Any] | None, what: str) -> Bool[np.ndarray, " size"]:
    """Return a mask with the chosen `places` on; IndexError where one is out of range."""
    return np.isin(np.arange(size), places(chosen, size, what))


def counted(array: Array | None, *axes: str) -> Sizes:
    """Return the lengths of an array's axes, if there is one."""
    if array is None:
        return ()
    if array.ndim != len(axes):
        raise ValueError(f"a probe has {array.shape} for {' × '.join(axes)}; a sweep runs stacks")
    return tuple(zip(axes, array.shape, strict=True))


def whole(numbers: Any, what: str) -> Int[Array, " n"]:
    """Return numbers of layers or tokens as an array. Raises ValueError for fractions or a mask."""
    array = jnp.asarray(numbers)
    if array.size and not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{what} holds {array.dtype} values; give whole numbers, 0 for the first")
    return array.astype(jnp.int32)


def check_masks(probe: Probe, *fields: str) -> None:
    """Raise ValueError where fields that say where a probe acts hold numbers, not masks."""
    for name in fields:
        mask = getattr(probe, name)
        if mask is not None and (kind := jnp.asarray(mask).dtype) != np.bool_:
            what = f"{type(probe).__name__}.{name} holds {kind} numbers"
            raise ValueError(f"{what}; it is a mask, True where the probe acts")


class InWorlds(Combination):
    """A probe that acts in some worlds only, and observes in all of them.

    worlds [worlds]: where it acts. A clean and a perturbed run side by side share all else.
    """

    probe: Probe
    worlds: Bool[Array, "*sweep W"]

    def made_for(self) -> Sizes:
        return (*super().made_for(), *counted(self.worlds, "worlds"))

    def check(self, sizes: Mapping[str, int]) -> None:
        del sizes
        check_masks(self, "worlds")

    def slots_of(self, site: str) -> Any:
        return self.probe.slots_of(site)

    def observation(self, observed: Mapping[str, Any]) -> Any:
        return self.probe.observation(observed)

    def changes(self, world: int = 0) -> list[Change]:
        return super().changes(world) if self.worlds[world] else []

    def call(self, hook: str, site: Site, *values: Any) -> tuple[Any, Any]:
        acted, observation = self.probe.call(hook, site, *values)
        if hook == "on_step":
            return acted, ()
        here = self.worlds[jax.lax.axis_index("world")]
        return jax.tree.map(lambda a, b: jnp.where(here, a, b), acted, values[-1]), observation


class Noise(Probe):
    """Turns latents towards fresh noise ε ~ N(0, I) at chosen steps and frames (paper, section
    3.2).

    mask [steps, frames]: strength r, from 0 (leaves x alone) to 1 (nothing of x is left), in
        x ← m + √(1 − r²) (x − m) + r l ε.
    renoise [steps, frames]: False, or None for everywhere, takes m = 0 and l = 1, the paper's
        x ← N(0, I), which in late steps is more noise than the remaining steps can remove. True
        draws the noise anew at the level of the step: m = (1 − σ) x̂0 of the step before, l = σ.
    At one step in all frames it wipes what the trajectory has decided; in one frame at all steps,
    the other frames can restore it.
    """

    mask: Bool[Array, "*sweep S F"] | Float[Array, "*sweep S F"]
    renoise: Bool[Array, "*sweep S F"] | None = None

    @classmethod
    def at_steps(
        cls, steps: int, frames: int, chosen: Iterable[Place], *, strength: float = 1.0
    ) -> "Noise":
        """Return noise in all frames at the chosen steps of a run."""
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"the strength of noise is {strength}; it lies between 0 and 1")
        mask = np.repeat(choose(steps, chosen, "step")[:, None], frames, 1)
        return cls(jnp.asarray(mask * np.float32(strength)))

    @classmethod
    def at_frames(cls, steps: int, frames: int, chosen: Iterable[Place]) -> "Noise":
        """Return noise in the chosen frames at every step."""
        mask = np.repeat(choose(frames, chosen, "frame")[None], steps, 0)
        return cls(jnp.asarray(mask, jnp.float32))

    def __or__(self, other: "Noise") -> "Noise":
        """Add noise where either has it, such as at some steps and in some frames."""
        return jax.tree.map(jnp.maximum, self, other)

    def made_for(self) -> Sizes:
        masks = (self.mask, self.renoise)
        return tuple(size for mask in masks for size in counted(mask, "steps", "latent frames"))

    def changes(self, world: int = 0) -> list[Change]:
        """Describe noise in all frames at some steps and at all steps in some frames: two
        changes."""
        del world
        mask = np.asarray(self.mask) > 0
        steps, frames = mask.all(1, keepdims=True), mask.all(0, keepdims=True)
        apart = not mask.all() and (mask == steps | frames).all()
        parts = [mask & steps, mask & frames] if apart else [mask]
        return [change for part in parts for change in Change.at("noise", "frame", part)]

    def on_latents(self, site: Site, x: Latents) -> Latents:
        strength = self.mask[site.step].astype(x.dtype)[:, None, None, None]
        centre, level = jnp.zeros_like(x), jnp.ones_like(strength)
        if self.renoise is not None and site.last is not None:
            renoise = self.renoise[site.step][:, None, None, None]
            centre = jnp.where(renoise, (1 - site.sigma) * site.last, centre)
            level = jnp.where(renoise, site.sigma, level)
        noise = level * jax.random.normal(site.key, x.shape, x.dtype)
        turned = centre + jnp.sqrt(1 - strength**2) * (x - centre) + strength * noise
        return jnp.where(strength > 0, turned, x)


class SeedEnsemble(Probe):
    """Averages tokens over the seeds after chosen blocks at chosen steps (paper, section 6).

    mask [steps, layers]: where. branches [conditional, unconditional]: in which. groups [seeds]:
    seeds of equal number are averaged together, by default all of them.
    The mean is taken in float32. Seeds have no other input that differs inside a pass, so after the
    first averaged block of a pass their tokens are the same until its end: a window of layers acts
    by its first.
    """

    mask: Bool[Array, "*sweep S L"]
    branches: Bool[Array, "*sweep 2"]
    groups: Int[Array, "*sweep K"] | None = None

    @classmethod
    def window(
        cls,
        steps: int,
        layers: int,
        at_steps: Iterable[Place] = (0,),
        at_layers: Iterable[Place] | None = None,
    ) -> "SeedEnsemble":
        """Return an average after some layers (by default in the paper's place, 20–29 of 40)."""
        if at_layers is None:
            at_layers = range(layers // 2, max(layers // 2 + 1, 3 * layers // 4))
        mask = np.outer(choose(steps, at_steps, "step"), choose(layers, at_layers, "layer"))
        return cls(jnp.asarray(mask), jnp.ones(2, bool))

    def made_for(self) -> Sizes:
        return (*counted(self.mask, "steps", "layers"), *counted(self.groups, "seeds"))

    def changes(self, world: int = 0) -> list[Change]:
        del world
        return Change.at("seeds averaged", "layer", self.mask)

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, tuple[()]]:
        def average(tokens: Tokens) -> Tokens:
            mean = _mean_of_seeds(tokens, self.groups)
            return jnp.where(self.branches[site.branch], mean, tokens)

        # A condition that all runs share is a branch of the program: off, nothing is sent.
        return jax.lax.cond(self.mask[site.step, site.layer], average, unchanged, tokens), ()


class EstimateEnsemble(Probe):
    """Averages the clean estimates or velocities of chosen steps over the seeds.

    mask [steps]: where. velocity: False takes x̂0 ← mean x̂0, which draws the seeds together; True
    takes v ← mean v, so that each keeps its own x: with v = (x − x̂0) / σ that is
    x̂0 ← mean x̂0 + (x − mean x). groups [seeds]: as in `SeedEnsemble`, which acts like the latter:
    from one set of tokens follows one velocity.
    """

    mask: Bool[Array, "*sweep S"]
    velocity: Bool[Array, "*sweep"]
    groups: Int[Array, "*sweep K"] | None = None

    def made_for(self) -> Sizes:
        return (*counted(self.mask, "steps"), *counted(self.groups, "seeds"))

    def changes(self, world: int = 0) -> list[Change]:
        del world
        return Change.at("estimates averaged", "frame", self.mask[:, None])

    def on_estimate(self, site: Site, x: Latents, x0: Latents) -> tuple[Latents, tuple[()]]:
        def average(x0: Latents) -> Latents:
            apart = jnp.where(self.velocity, x - _mean_of_seeds(x, self.groups), 0)
            return _mean_of_seeds(x0, self.groups) + apart

        return jax.lax.cond(self.mask[site.step], average, unchanged, x0), ()


def unchanged(x: Array) -> Array:
    return x


def _mean_of_seeds(x: Array, groups: Int[Array, " K"] | None) -> Array:
    """Return the mean over a seed's group, in float32."""
    exact = x.astype(jnp.float32)
    if groups is None:
        return jax.lax.pmean(exact, "seed").astype(x.dtype)
    together = (groups == groups[jax.lax.axis_index("seed")]).astype(jnp.float32)
    every = jax.lax.all_gather(exact, "seed")
    mean = jnp.tensordot(together / together.sum(), every, 1, precision="highest")
    return mean.astype(x.dtype)


class TokenEnergy(Probe):
    """Observes the norm of every token after every block (paper, 5.1): [steps, layers, N]."""

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, Float[Array, " N"]]:
        del site
        return tokens, jnp.linalg.norm(tokens.astype(jnp.float32), axis=-1)


class States(Probe):
    """Observes x_s, the model's input at each step: `Trace.estimate_obs` is [steps, F, H, W, C]."""

    def on_estimate(self, site: Site, x: Latents, x0: Latents) -> tuple[Latents, Latents]:
        del site
        return x0, x
