"""The x̂0-lens: the clean estimate that the model's own head makes of the tokens after every block.

A logit lens for video: after block l, the final norm, the head's modulation with the same time
vector and the projection give a velocity v_l, and x̂0_l = x − σ v_l is the answer so far. A tuned
lens (Belrose et al. 2023, arXiv 2303.08112) first takes the tokens through one affine map per
layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jcos.config import Sampling
from jcos.devices import memory
from jcos.generation import generate
from jcos.model.dit import DiT, Head
from jcos.sampling.inside import Capture
from jcos.sampling.probe import Latents, Probe, Site, Sizes, Tokens
from jcos.sampling.probes import counted, whole
from jcos.sampling.trajectory import Condition
from jcos.wan import Wan

BATCH = 16
"""Steps of runs per update of a tuned lens."""


class Maps(NamedTuple):
    """An affine map of the tokens for each layer: h + h W + b. Zero is the plain lens."""

    weight: Float[Array, "L D D"]
    bias: Float[Array, "L D"]

    @classmethod
    def zeros(cls, layers: int, dim: int) -> "Maps":
        return cls(jnp.zeros((layers, dim, dim)), jnp.zeros((layers, dim)))

    def at(self, layer: Int[Array, ""]) -> "Maps":
        return Maps(self.weight[layer], self.bias[layer])

    def __call__(self, tokens: Tokens) -> Tokens:
        """Map the tokens of one layer, whose map this is."""
        h = tokens.astype(jnp.float32)
        return (h + h @ self.weight + self.bias[None]).astype(tokens.dtype)


class Lens(Probe):
    """Observes the clean estimate that the head makes of the tokens after each block, without
    guidance: [steps, layers, F, H, W, C].

    layers: which are kept, all by default. maps: of a tuned lens (`fit_lens`). reduce: a function
    of a step's estimates [layers, F, H, W, C] and of `aux`, computed on the device; what it returns
    is observed instead. Define it at a module's top: it is part of the program.
    """

    layers: Any = None
    maps: Maps | None = None
    aux: Any = ()
    reduce: Callable[..., Any] | None = flax.struct.field(pytree_node=False, default=None)

    def made_for(self) -> Sizes:
        return () if self.maps is None else counted(self.maps.bias, "layers", "channels")

    def slots(self) -> Int[Array, " l"] | None:
        return None if self.layers is None else whole(self.layers, "Lens.layers")

    def on_block(self, site: Site, tokens: Tokens) -> tuple[Tokens, Latents]:
        assert site.estimate is not None
        read = tokens if self.maps is None else self.maps.at(site.layer)(tokens)
        return tokens, site.estimate(read)

    def on_step(self, site: Site, observed: Float[Array, "l F H W C"]) -> Any:
        return observed if self.reduce is None else self.reduce(observed, *self.aux)


def distances(
    x0: Float[Array, "*l F H W C"], to: Float[Array, "*#l F H W C"]
) -> Float[Array, "*l"]:
    """Return the root mean squared difference from `to` in all frames but the first, if there are
    more."""
    later = slice(1 if x0.shape[-4] > 1 else 0, None)
    apart = x0[..., later, :, :, :].astype(jnp.float32) - to[..., later, :, :, :]
    return jnp.sqrt(jnp.mean(jnp.square(apart), (-4, -3, -2, -1)))


def to_last(x0: Float[Array, "l F H W C"]) -> Float[Array, " l"]:
    """Return the `distances` from the last layer's estimate; for `Lens.reduce`, of runs with one
    given frame."""
    return distances(x0, x0[-1:])


def fit_lens(
    model: Wan,
    conditions: Condition,
    seeds: tuple[int, ...] = (0,),
    *,
    sampling: Sampling | None = None,
    tokens: int = 32,
    updates: int = 500,
) -> Maps:
    """Fit a tuned lens to the model's own final velocity, by squared error, on tokens of its runs.

    conditions: stacked; of training puzzles, since the map can learn what a task's answers share.
    tokens: so many random places outside the first and all given frames (anywhere, where there are
    no others), the same in all runs; with runs, steps and layers they decide the memory. Raises
    ValueError where the model has two experts, or conditions are not stacked.
    """
    if len(model.experts) > 1:
        raise ValueError(f"{model.config.name} has two experts with a head each; fit to one expert")
    if conditions.context.ndim != 3:
        raise ValueError("conditions have no leading axis: stack them (jcos.tree_stack)")
    dit = model.config.dit
    frames, height, width = dit.tokens(*conditions.grid)
    kept = (a.shape[1] for a in (conditions.first, conditions.known) if a is not None)
    given = max([1, *kept])
    first = given if frames > given else 0
    later, key = jnp.arange(first * height * width, frames * height * width), jax.random.key(0)
    chosen = jax.random.permutation(key, later)[:tokens]
    probe = Capture("block", jnp.arange(dit.layers), chosen)
    trace = generate(model, conditions, seeds, probe=probe, sampling=sampling)
    h = trace.block_obs.reshape(-1, *trace.block_obs.shape[3:])  # runs and steps together
    expert = memory.on_device(model.experts[0])
    return _fit(expert.head, h, _times(expert, trace.timestep.reshape(-1)), key, updates)


@jax.jit
def _times(expert: DiT, timesteps: Float[Array, " R"]) -> Float[Array, "R 1 D"]:
    return jax.vmap(lambda t: expert.time_vector(t, None))(timesteps)


@partial(jax.jit, static_argnames="updates")
def _fit(
    head: Head,
    h: Float[Array, "R L n D"],
    times: Float[Array, "R 1 D"],
    key: Array,
    updates: int,
) -> Maps:
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, updates))
    read = jax.vmap(jax.vmap(Head.__call__, (None, 0, None)), (None, 0, 0))

    def loss(maps: Maps, h: Array, times: Array) -> Array:
        mapped = jax.vmap(jax.vmap(Maps.__call__), (None, 0))(maps, h)
        return jnp.mean(jnp.square(read(head, mapped, times) - read(head, h[:, -1:], times)))

    def update(carry: Any, key: Array) -> tuple[Any, None]:
        maps, state = carry
        rows = jax.random.randint(key, (min(BATCH, len(h)),), 0, len(h))
        change, state = optimizer.update(jax.grad(loss)(maps, h[rows], times[rows]), state)
        return (optax.apply_updates(maps, change), state), None

    maps = Maps.zeros(h.shape[1], h.shape[-1])
    start = (maps, optimizer.init(maps))
    return jax.lax.scan(update, start, jax.random.split(key, updates))[0][0]
