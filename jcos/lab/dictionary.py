"""Sparse dictionaries of activations: a top-k autoencoder (arXiv 2406.04093) and its baselines.

    x ≈ centre + scale · codes @ decoder,  with k of the M codes not zero

The k largest of (x − centre) / scale @ encoder + bias are the codes of a token.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
from jaxtyping import Array, Float, Int
from safetensors.numpy import save

from jcos import files

AUXILIARY = 1 / 32
"""Weight of the loss by which features that no longer fire learn what the others leave over."""
ADAM = optax.scale_by_adam()
IDLE = 100
"""Batches in which a feature has not fired, after which it learns so."""


class Dictionary(flax.struct.PyTreeNode):
    """M directions, of which k make up each token; decoder rows have length 1.

    scale: the root mean square of a centred activation, so that codes do not depend on units.
    """

    encoder: Float[Array, "D M"]
    bias: Float[Array, " M"]
    decoder: Float[Array, "M D"]
    centre: Float[Array, " D"]
    scale: Float[Array, ""]
    k: int = flax.struct.field(pytree_node=False)

    def encode(self, x: Float[Any, "*n D"]) -> Float[Array, "*n M"]:
        """Return codes, of which exactly k are kept and the others zero."""
        values = self.units(x) @ self.encoder
        return top(values + jnp.broadcast_to(self.bias, values.shape), self.k)

    def units(self, x: Float[Any, "*n D"]) -> Float[Array, "*n D"]:
        """Return activations, centred and of unit size."""
        return (x - jnp.broadcast_to(self.centre, x.shape)) / self.scale

    def decode(self, codes: Float[Array, "*n M"]) -> Float[Array, "*n D"]:
        """Return the activations that codes stand for."""
        x = codes @ self.decoder * self.scale
        return x + jnp.broadcast_to(self.centre, x.shape)

    def direction(self, feature: int) -> Float[Array, " D"]:
        """Return what one unit of a feature adds to an activation."""
        return self.decoder[feature] * self.scale

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        arrays = {name: np.asarray(a) for name, a in vars(self).items() if name != "k"}
        files.write(path, save(arrays, {"jcos.Dictionary": str(self.k)}))

    @classmethod
    def load(cls, path: Path) -> "Dictionary":
        """Return what `save` wrote. Raises ValueError where a file is something else."""
        try:
            with safetensors.safe_open(str(path), "numpy") as file:
                arrays = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
                return cls(k=int(file.metadata()["jcos.Dictionary"]), **arrays)
        except (OSError, TypeError, KeyError, safetensors.SafetensorError):
            raise ValueError(f"{path} holds no dictionary") from None


def top(values: Float[Array, "*n M"], k: int) -> Float[Array, "*n M"]:
    """Return the k largest values of each row in their places, zero elsewhere."""
    largest, places = jax.lax.top_k(values, k)
    return jnp.put_along_axis(jnp.zeros_like(values), places, largest, -1, inplace=False)


class Log(NamedTuple):
    """Of every step of training: the share of variance that is left over, and the share of features
    that have not fired in the last `IDLE` batches."""

    loss: Float[np.ndarray, " steps"]
    dead: Float[np.ndarray, " steps"]


def fit(
    batches: Iterator[Float[np.ndarray, "n D"]],
    features: int,
    k: int,
    *,
    steps: int = 2000,
    rate: float = 1e-3,
    seed: int = 0,
    progress: Callable[[str, int, int], object] = lambda *_: None,
) -> tuple[Dictionary, Log]:
    """Train a dictionary by Adam on batches, such as `activations.batches` yields; return it with
    its training. The first batch gives centre and scale. The learning rate falls to zero over the
    last fifth. Raises ValueError where k does not lie below the number of features."""
    if not 1 <= k < features or steps < 1:
        raise ValueError(f"k is {k} of {features} features, steps {steps}; 1 ≤ k < features")
    first = jnp.asarray(next(batches))
    dictionary = random(first, features, k, seed)
    schedule = optax.linear_schedule(rate, 0.0, steps - int(0.8 * steps), int(0.8 * steps))
    rates = np.asarray(schedule(np.arange(steps)))
    state = ADAM.init(_weights(dictionary))
    idle, log = jnp.zeros(features, jnp.int32), []
    for step in range(steps):
        batch = first if step == 0 else jnp.asarray(next(batches))
        dictionary, state, idle, losses = _update(dictionary, state, idle, batch, rates[step])
        log.append(losses)
        if step % 50 == 0:
            progress("training a dictionary", step, steps)
    progress("training a dictionary", steps, steps)
    return dictionary, Log(*np.asarray(log, np.float64).T)


Weights = tuple[Float[Array, "D M"], Float[Array, " M"], Float[Array, "M D"]]


def _weights(dictionary: Dictionary) -> Weights:
    return dictionary.encoder, dictionary.bias, dictionary.decoder


@jax.jit
def _update(
    dictionary: Dictionary,
    state: Any,
    idle: Int[Array, " M"],
    batch: Float[Array, "n D"],
    rate: Float[Any, ""],
) -> tuple[Dictionary, Any, Int[Array, " M"], tuple[Float[Array, ""], Float[Array, ""]]]:
    x, dead = dictionary.units(batch), idle > IDLE

    def loss(weights: Weights) -> tuple[Float[Array, ""], tuple[Array, Array]]:
        encoder, bias, decoder = weights
        values = x @ encoder + bias[None]
        codes = top(values, dictionary.k)
        left = x - codes @ decoder
        error = jnp.mean(jnp.square(left))
        # Dead features alone are to explain what is left over; that is no target of the others.
        count = min(2 * dictionary.k, values.shape[-1])
        others = top(jnp.where(dead[None], values, -jnp.inf), count)
        again = jnp.where(jnp.isfinite(others), others, 0.0) @ decoder
        more = jnp.mean(jnp.square(jax.lax.stop_gradient(left) - again))
        more = jnp.where(dead.any(), more, 0.0)
        return error + AUXILIARY * more, (error / jnp.mean(jnp.square(x)), (codes != 0).any(0))

    weights = _weights(dictionary)
    (_, (error, fired)), gradients = jax.value_and_grad(loss, has_aux=True)(weights)
    changes, state = ADAM.update(gradients, state, weights)
    encoder, bias, decoder = jax.tree.map(lambda w, c: w - rate * c, weights, changes)
    decoder = decoder / jnp.linalg.norm(decoder, axis=-1, keepdims=True)
    dictionary = dictionary.replace(encoder=encoder, bias=bias, decoder=decoder)
    idle = jnp.where(fired, 0, idle + 1)
    return dictionary, state, idle, (error, (idle > IDLE).mean())


def random(x: Float[Any, "n D"], features: int, k: int, seed: int = 0) -> Dictionary:
    """Return random directions, which read what they write."""
    centre, scale = _units(x)
    decoder = jax.random.normal(jax.random.key(seed), (features, len(centre)))
    decoder = decoder / jnp.linalg.norm(decoder, axis=-1, keepdims=True)
    return Dictionary(decoder.T, jnp.zeros(features), decoder, centre, scale, k)


def pca(x: Float[Any, "n D"], k: int) -> Dictionary:
    """Return the first k principal components, all of which make up each token."""
    centre, scale = _units(x)
    rows = (jnp.asarray(x) - centre[None]) / scale
    decoder = jnp.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :k].T
    return Dictionary(decoder.T, jnp.zeros(k), decoder, centre, scale, k)


def _units(x: Float[Any, "n D"]) -> tuple[Float[Array, " D"], Float[Array, ""]]:
    centre = jnp.mean(jnp.asarray(x), 0)
    return centre, jnp.sqrt(jnp.mean(jnp.square(x - centre[None])))


@jax.jit
def refitted(
    dictionary: Dictionary, x: Float[Array, "n D"], codes: Float[Array, "n M"]
) -> Float[Array, "n M"]:
    """Return the codes by least squares of the same features: the best that a choice can give."""
    places = jax.lax.top_k(jnp.abs(codes), dictionary.k)[1]

    def one(x: Float[Array, " D"], places: Int[Array, " k"]) -> Float[Array, " M"]:
        chosen = dictionary.decoder[places]
        gram = chosen @ chosen.T + 1e-6 * jnp.eye(len(places))
        fitted = jnp.linalg.solve(gram, chosen @ x)
        return jnp.zeros(len(dictionary.decoder)).at[places].set(fitted)

    return jax.vmap(one)(dictionary.units(x), places)
