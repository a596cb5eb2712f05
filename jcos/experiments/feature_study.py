"""What a dictionary's features tell: chosen on training puzzles, measured on held-out ones."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float

from jcos.experiments.linear_probes import READINGS, Labels, identities_of, labels_of
from jcos.experiments.samples import Samples
from jcos.lab import activations, dictionary
from jcos.lab.dictionary import Dictionary
from jcos.lab.measures import POSITIVE
from jcos.lab.results import measure
from jcos.wan import Wan

EXPLAINERS = ("dictionary", "principal components", "random dictionary", "mean of the place")
EXPLAINED = (
    "Share of the variance of held-out tokens. Of principal components the first k, of random "
    "directions the k that fit best of as many, with the best codes. The mean over puzzles at the "
    "token's place and step knows nothing of the puzzle."
)
SOURCES = ("feature", "feature, shuffled labels", "channel", "principal component")
FEATURE, SHUFFLED, CHANNEL, COMPONENT = SOURCES
TELLS = (
    "Of the one feature that goes best with the labels of training puzzles; of the one that goes "
    "best with labels of wrong puzzles; of the best channel and component. Area under the "
    "ROC curve; ½ is chance."
)
DEAD = "feature never fires on held-out puzzles"
DRAWS = 3
"""Random directions of a kind."""


class Sums(NamedTuple):
    """Of columns C within frames, over the tokens that a label is about: sums and products with Y
    labels, from which correlations and means follow."""

    both: Float[Any, "Y C"]
    square: Float[Any, "Y C"]
    label: Float[Any, " Y"]
    on: Float[Any, "Y C"]
    off: Float[Any, "Y C"]
    firing: Float[Any, "Y C"]
    counts: Float[Any, "Y 2"]

    def correlation(self) -> Float[np.ndarray, "Y C"]:
        scale = np.sqrt(np.maximum(self.square * self.label[:, None], 1e-12))
        return np.asarray(self.both) / scale


@jax.jit
def _columns(
    learned: Dictionary, principal: Dictionary, x: Float[Array, "*n D"]
) -> Float[Array, "*n C"]:
    """Return codes, channels and principal components, one behind the other."""
    return jnp.concatenate([learned.encode(x), learned.units(x), principal.encode(x)], -1)


@jax.jit
def _sums(
    z: Float[Array, "K S f n C"], labels: Bool[Array, "Y K f n"], among: Bool[Array, "Y K f n"]
) -> Sums:
    w, y = among.astype(jnp.float32), (labels & among).astype(jnp.float32)
    number = jnp.maximum(w.sum(-1, keepdims=True), 1)
    centred = y - w * y.sum(-1, keepdims=True) / number
    over = partial(jnp.einsum, precision="highest")
    mean = over("ykfn,ksfnc->yksfc", w / jnp.sqrt(number), z)
    return Sums(
        over("ykfn,ksfnc->yc", centred, z),
        over("ykfn,ksfnc->yc", w, z**2) - (mean**2).sum((1, 2, 3)),
        z.shape[1] * (centred**2).sum((1, 2, 3)),
        over("ykfn,ksfnc->yc", y, z),
        over("ykfn,ksfnc->yc", w - y, z),
        over("ykfn,ksfnc->yc", y, (z > 0).astype(jnp.float32)),
        z.shape[1] * jnp.stack([y.sum((1, 2, 3)), (w - y).sum((1, 2, 3))], -1),
    )


class Study:
    """A dictionary, what training puzzles say of its features, and held-out ones of these."""

    def __init__(
        self,
        model: Wan,
        samples: Samples,
        paths: Sequence[Path],
        train: Bool[np.ndarray, " P"],
        learned: Dictionary,
        rows: Float[np.ndarray, "n D"],
        layer: int,
    ) -> None:
        self.samples, self.paths, self.train, self.layer = samples, paths, train, layer
        self.learned, self.rows = learned, rows
        self.principal = dictionary.pca(rows, rows.shape[1])
        self.first = dictionary.pca(rows, learned.k)
        self.any_one = dictionary.random(rows, len(learned.decoder), learned.k)
        videos = model.decode(activations.load(paths, "latents").values)
        self.frames = model.config.dit.tokens(*samples.latent)[0]
        side = model.config.dit.patch[1] * model.codec.strides[1]
        self.labels = labels_of(samples.puzzles, videos, side)
        self._choose()

    def columns(self, i: int) -> Float[Array, "K S f n C"]:
        """Return codes, channels and components of a puzzle's tokens, by frame."""
        self.tokens = activations.load([self.paths[i]], layer=self.layer)
        self.steps = self.tokens["step"].values
        z = _columns(self.learned, self.principal, jnp.asarray(self.tokens.values[0]))
        return z.reshape(*z.shape[:2], self.frames, -1, z.shape[-1])

    def _labels(self, i: int, other: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the labels of a puzzle for each reading, then those of another, and the tokens
        that they are about."""
        rows = [self.labels.of(reading) for reading in READINGS]
        labels, among = (np.stack([row[j][k] for k in (i, other) for row in rows]) for j in (0, 1))
        return labels, among

    def _choose(self) -> None:
        """Choose the feature, channel and component of each reading on the training puzzles."""
        total, self.energy, place = None, 0.0, 0.0
        for rows in self.samples.groups.values():
            rows = rows[self.train[rows]]
            for i, other in zip(rows.tolist(), np.roll(rows, 1).tolist(), strict=True):
                z = self.columns(i)
                sums = _sums(z[:, :, 1:], *self._labels(i, other))
                total = sums if total is None else jax.tree.map(jnp.add, total, sums)
                self.energy += np.square(z[..., : len(self.learned.decoder)]).sum((0, 1, 2, 3))
                place += self.tokens.values[0].mean(0, keepdims=True)
        assert total is not None
        self.place = place / int(self.train.sum())
        self.sums = jax.tree.map(np.asarray, total)
        alike = self.sums.correlation()
        self.chosen: dict[tuple[str, str], tuple[int, float]] = {}
        features, channels = self.learned.decoder.shape
        for i, reading in enumerate(READINGS):
            right, wrong = alike[i], alike[len(READINGS) + i]
            for source, values, start, size in (
                (FEATURE, right, 0, features),
                (SHUFFLED, wrong, 0, features),
                (CHANNEL, right, features, channels),
                (COMPONENT, right, features + channels, channels),
            ):
                part = values[start : start + size]
                best = int((part if start == 0 else np.abs(part)).argmax())
                self.chosen[reading, source] = start + best, float(np.sign(part[best])) or 1.0

    def shown(self, number: int) -> dict[int, str]:
        """Return features with their names: those chosen, then those that carry most."""
        names: dict[int, list[str]] = {}
        for (reading, source), (column, _) in self.chosen.items():
            if source == FEATURE:
                names.setdefault(column, []).append(READINGS[reading][0])
        for column in np.argsort(-self.energy).tolist():
            if len(names) < number:
                names.setdefault(column, [])
        return {c: f"{c}: {', '.join(w)}" if w else str(c) for c, w in list(names.items())[:number]}

    def dataset(self, number: int, seeds: Sequence[int]) -> xr.Dataset:
        """Return all measures of the held-out puzzles."""
        held, shown = np.flatnonzero(~self.train), self.shown(number)
        columns = sorted({column for column, _ in self.chosen.values()})
        values, active, explained = [], [], []
        fired = np.zeros(len(self.learned.decoder), bool)
        for i in held.tolist():
            z = self.columns(i)
            explained.append(self.explained(z))
            fired |= np.asarray((z[..., : len(fired)] != 0).any((0, 1, 2, 3)))
            later = np.asarray(z[:, :, 1:])
            values.append(later[..., columns].reshape(*later.shape[:2], -1, len(columns)))
            active.append(np.asarray(z[..., list(shown)].mean(3)))
        values = np.stack(values)
        about: dict[str, Any] = {"cluster": "identity"}
        variables: dict[str, Any] = {
            "explained": measure(
                "puzzle seed step explainer",
                explained,
                "variance explained",
                EXPLAINED,
                span=(-np.inf, 1.0),
                **about,
            ),
            "dead": measure("sample", ~fired, DEAD, "Interval over features.", by="whose"),
            "active": measure(
                "puzzle seed step frame feature",
                np.stack(active),
                "activity of a feature",
                "Mean code of the tokens of a frame.",
                span=POSITIVE,
                tabled=False,
                **about,
            ),
        }
        labels = Labels(*(a[held] for a in self.labels))
        for reading, (words, _) in READINGS.items():
            areas = []
            for source in SOURCES:
                column, sign = self.chosen[reading, source]
                areas.append(labels.auroc(sign * values[..., columns.index(column)], reading))
            title = f"AUROC of {words}"
            variables |= {
                reading: measure(
                    "puzzle seed step source", np.stack(areas, -1), title, TELLS, **about
                ),
                f"chance_{reading}": ((), 0.5, {"long_name": "chance"}),
            }
        coordinates = {
            name: (dims, np.asarray(v)[held])
            for name, (dims, v) in self.samples.coordinates().items()
        }
        coordinates |= {"identity": ("puzzle", identities_of(self.samples.puzzles)[held])}
        return xr.Dataset(
            variables,
            coordinates
            | {"whose": ("sample", ["all tasks"] * len(fired)), "seed": list(seeds)}
            | {"step": self.steps, "source": list(SOURCES), "explainer": list(EXPLAINERS)}
            | {"feature": list(shown.values()), "frame": range(self.frames), "puzzle": held},
        )

    def explained(self, z: Float[Array, "K S f n C"]) -> Float[np.ndarray, "K S 4"]:
        """Return the variance that each of `EXPLAINERS` explains of the tokens read last."""
        x, learned = self.tokens.values[0], self.learned
        flat = jnp.asarray(x).reshape(-1, x.shape[-1])
        best = dictionary.refitted(self.any_one, flat, self.any_one.encode(flat))
        codes = z[..., : len(learned.decoder)].reshape(*x.shape[:-1], -1)
        made = (
            learned.decode(codes),
            self.first.decode(self.first.encode(x)),
            self.any_one.decode(best).reshape(x.shape),
            np.broadcast_to(self.place, x.shape),
        )
        total = np.square(x - np.asarray(learned.centre)).sum((-1, -2))
        return np.stack([1 - np.square(x - np.asarray(y)).sum((-1, -2)) / total for y in made], -1)

    def directions(self, reading: str) -> dict[str, Float[np.ndarray, "_ D"]]:
        """Return the direction of the feature of a reading, and others of the same norm: its mean
        code on the tokens that the label holds of, where it fires."""
        (feature, _), r = self.chosen[reading, FEATURE], list(READINGS).index(reading)
        norm = self.sums.on[r, feature] / max(self.sums.firing[r, feature], 1.0)
        features, channels = self.learned.decoder.shape
        on, off = (
            s[r, features : features + channels] / max(n, 1.0)
            for s, n in zip((self.sums.on, self.sums.off), self.sums.counts[r], strict=True)
        )
        rng, decoder = np.random.default_rng(0), np.asarray(self.learned.decoder)
        alive = np.setdiff1d(np.flatnonzero(self.energy > 0), [feature])
        spread = self.rows - self.rows.mean(0)
        rows = {
            "feature": decoder[[feature]],
            "mean difference": (on - off)[None],
            "other features": decoder[rng.choice(alive, min(DRAWS, len(alive)), replace=False)],
            "random, as tokens vary": rng.standard_normal((DRAWS, len(spread))) @ spread,
            "random": rng.standard_normal((DRAWS, channels)),
        }
        size = float(norm * self.learned.scale)
        lengths = {n: np.linalg.norm(d, axis=-1, keepdims=True) for n, d in rows.items()}
        return {n: size * d / np.maximum(lengths[n], 1e-12) for n, d in rows.items()}
