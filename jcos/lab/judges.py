"""What early estimates tell: judges of the particles of a search, from W puzzles × K particles to
one number each, larger is better.

None needs the finished video. Those of tasks know the puzzle; the others read only what any run
shows.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8, UInt32

from jcos.config import PixelCodec, WanConfig
from jcos.lab.measures import answer_mass, ridge, rms
from jcos.lab.tasks import PALETTE, TASKS, Puzzle
from jcos.model.vae import Tiles, decode_pixels
from jcos.wan import Wan

Scores = Float[Array | np.ndarray, "W K"]


class Estimates(NamedTuple):
    """Where W × K particles are after a step: latents [W, K, F, h, w, C].

    x: what the model sees next, of noise level sigma. x0: the clean estimate; before: that of the
    step before. alive: which are particles; the others fill up rows. tokens: by layer,
    [W, K, N, D], where a judge asks for them. seeds: the lowest 32 bits of each particle's, where
    they are known. tiles: that estimates are decoded in.
    """

    model: Wan
    step: int
    sigma: float
    x: Float[Any, "W K F h w C"]
    x0: Float[Any, "W K F h w C"]
    before: Float[Any, "W K F h w C"]
    alive: Bool[Any, "W K"]
    tokens: Mapping[int, Float[Any, "W K N D"]]
    seeds: UInt32[np.ndarray, "W K"] | None = None
    tiles: Tiles | None = None


class Judge:
    """Scores particles. layer: of the tokens that it reads. decodes: whether it decodes estimates.
    on_host: whether it is no function of arrays alone."""

    layer: int | None = None
    decodes: bool = False
    on_host: bool = False

    @property
    def identity(self) -> str:
        """What tells it from others: a digest of its class and fields, of functions their code."""
        digest = hashlib.sha256(f"{type(self).__module__}.{type(self).__qualname__}".encode())
        for name, value in sorted(vars(self).items()):
            code = getattr(value, "__code__", None)
            words = code.co_code + repr(code.co_names).encode() if code else b""
            if not callable(value) or isinstance(value, tuple):
                words += b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(value))
            digest.update(name.encode() + getattr(value, "__qualname__", "").encode() + words)
        return digest.hexdigest()[:16]

    def __call__(self, at: Estimates) -> Scores:
        raise NotImplementedError

    def check(self, config: WanConfig, at: Estimates) -> None:
        """Raise ValueError where it cannot judge such estimates (zeros here), or does so with
        something else than a number for each."""
        scores = np.asarray(self(at)) if self.on_host else jax.eval_shape(self, at)
        check_scores(self, scores, at.x0.shape[:2])


def check_scores(judge: Judge, scores: Any, shape: tuple[int, int]) -> None:
    """Raise ValueError for other scores than one number for each particle."""
    if getattr(scores, "shape", None) != shape:
        got = getattr(scores, "shape", type(scores).__name__)
        raise ValueError(
            f"judge {type(judge).__name__} returned scores of shape {got}; it must return {shape}, "
            "one for each particle"
        )


class Decided(Judge):
    """How near to pure colours of the tasks' palette the estimate is: minus the root mean square
    distance, in levels of 256, of the mean colours of patches (of nodes of the mazes' lattice for
    the size 2); power: of the mean, 1 for a plain one. Of models whose codec has no weights."""

    decodes = True

    def __init__(self, patch: int = 2, power: int = 2):
        self.patch, self.power = patch, power

    def __call__(self, at: Estimates) -> Scores:
        return _decided(at.model.codec, at.x0, self.patch, self.power)

    def check(self, config: WanConfig, at: Estimates) -> None:
        if not isinstance(config.codec, PixelCodec):
            raise ValueError(
                f"{config.name} draws no puzzles of pure colours; judge it by change, agreement, "
                "energy or a function of frames (judges.Frames)"
            )
        super().check(config, at)


@partial(jax.jit, static_argnums=(0, 2, 3))
def _decided(
    codec: PixelCodec, x0: Float[Array, "W K F h w C"], patch: int, power: int
) -> Float[Array, "W K"]:
    video = jax.vmap(partial(decode_pixels, codec))(x0.reshape(-1, *x0.shape[2:]))
    video = jnp.clip(video, 0, 255).reshape(-1, *video.shape[2:])
    side, (height, width) = patch // 2, video.shape[1:3]
    video = jnp.pad(video, ((0, 0), (side, side), (side, side), (0, 0)), mode="edge")
    high, wide = (height + 2 * side) // patch, (width + 2 * side) // patch
    cut = video[:, : high * patch, : wide * patch]
    cut = cut.reshape(-1, high, patch, wide, patch, 3).mean((2, 4))
    apart = palette_distance(cut.reshape(*x0.shape[:2], -1, 3))
    return -jnp.power(jnp.mean(apart**power, -1), 1 / power)


def palette_distance(video: Float[Array, "*axes 3"]) -> Float[Array, "*axes"]:
    """Return the mean distance per channel of pixels from the nearest colour that a scene can
    have; colours 0..255."""
    nearest = jnp.full(video.shape[:-1], jnp.inf)
    for colour in PALETTE.values():
        apart = [jnp.abs(video[..., i] - c) for i, c in enumerate(colour)]
        nearest = jnp.minimum(nearest, sum(apart) / 3)
    return nearest


class Sign(Judge):
    """What any run shows: a function of estimates alone."""

    def __init__(self, function: Callable[[Estimates], Scores]):
        self.function = function

    def __call__(self, at: Estimates) -> Scores:
        return self.function(at)


def change(at: Estimates) -> Scores:
    """How little the estimate has changed since the step before: minus its root mean square."""
    return _change(at.x0, at.before)


@jax.jit
def _change(x0: Float[Array, "W K F h w C"], before: Float[Array, "W K F h w C"]) -> Scores:
    return -rms(x0 - before)


def agreement(at: Estimates) -> Scores:
    """How near the estimate is to those of the other particles of its video: minus the mean
    distance. Nothing where it is alone."""
    return _agreement(at.x0, jnp.asarray(at.alive, jnp.float32))


@jax.jit
def _agreement(x0: Float[Array, "W K F h w C"], alive: Float[Array, "W K"]) -> Scores:
    apart = [rms(x0 - x0[:, i : i + 1]) * alive[:, i : i + 1] for i in range(x0.shape[1])]
    others = jnp.maximum(alive.sum(1, keepdims=True) - 1, 1)
    return -sum(apart, start=jnp.zeros(x0.shape[:2])) / others


@partial(jax.jit, static_argnums=1)
def _changes(x0: Float[Array, "W K F h w C"], axes: tuple[int, ...]) -> Scores:
    """Return the mean square difference between neighbours along some axes, over the variance."""
    apart = sum(jnp.square(jnp.diff(x0, axis=a)).mean((2, 3, 4, 5)) for a in axes)
    return apart / jnp.maximum(jnp.var(x0, axis=(2, 3, 4, 5)), 1e-12)


def energy(at: Estimates) -> Scores:
    """How sharp the latent is: the energy of its differences between neighbouring cells, over that
    of the whole. Blends are blurred."""
    return _changes(at.x0, (3, 4))


def motion(at: Estimates) -> Scores:
    """How much moves: the mean square difference between neighbouring latent frames, over the
    variance of the whole. A blend of paths moves less than one."""
    return _changes(at.x0, (2,))


def norm(at: Estimates) -> Scores:
    """How far the estimate stands out: its root mean square. The mean of several answers is shorter
    than they are, by the variance between them."""
    return rms(at.x0)


def peak(at: Estimates) -> Scores:
    """How little the cells that change most have changed since the step before: minus the root mean
    square of the 2 % of them, so that a still scene does not drown what moves."""
    return _peak(at.x0, at.before)


@jax.jit
def _peak(x0: Float[Array, "W K F h w C"], before: Float[Array, "W K F h w C"]) -> Scores:
    cells = jnp.square(x0 - before).mean(-1)
    cells = cells.reshape(*cells.shape[:2], -1)
    largest = jax.lax.top_k(cells, max(1, cells.shape[-1] // 50))[0]
    return -jnp.sqrt(largest.mean(-1))


class Random(Judge):
    """Nothing: the control of every other judge. A particle's number depends on the step and on its
    seed alone (copies of a seed have different ones); where seeds are not known, on its place."""

    on_host = True

    def __call__(self, at: Estimates) -> Scores:
        here = 0, at.step + 1
        if at.seeds is None:
            return np.random.default_rng(here).random(at.x0.shape[:2])
        each = [[(s, row[:i].count(s)) for i, s in enumerate(row)] for row in at.seeds.tolist()]
        return np.array([[np.random.default_rng(here + one).random() for one in r] for r in each])


class Scorer(Judge):
    """The tasks' scorer of the estimate, which knows the answer: the oracle. puzzles: one of
    each video."""

    decodes, on_host = True, True

    def __init__(self, puzzles: Sequence[Puzzle]):
        self.puzzles = puzzles

    def __call__(self, at: Estimates) -> Scores:
        videos = at.model.decode(at.x0, at.tiles)
        return np.array(
            [
                [TASKS[puzzle.task].score(puzzle, video).score for video in row]
                for puzzle, row in zip(self.puzzles, videos, strict=True)
            ]
        )

    def check(self, config: WanConfig, at: Estimates) -> None:
        if len(self.puzzles) != len(at.x0):
            raise ValueError(
                f"the scorer has {len(self.puzzles)} puzzle(s) for {len(at.x0)} video(s); give it "
                "the puzzle of each"
            )
        super().check(config, at)


class Entropy(Judge):
    """How few of a puzzle's listed answers the estimate holds: minus the entropy of its masses
    (`measures.answer_mass`) and of what is on none.

    answers [W, A, F, h, w, C]: of each video, right or wrong; room that is left holds `still`
    [W, F, h, w, C].
    """

    def __init__(self, answers: Float[Any, "W A F h w C"], still: Float[Any, "W F h w C"]):
        self.answers, self.still = jnp.asarray(answers), jnp.asarray(still)

    def __call__(self, at: Estimates) -> Scores:
        return _order(at.x0, self.answers, self.still)


@jax.jit
def _order(
    x0: Float[Array, "W K F h w C"],
    answers: Float[Array, "W A F h w C"],
    still: Float[Array, "W F h w C"],
) -> Scores:
    """Return minus the entropy of each estimate's masses."""
    each = jax.vmap(jax.vmap(answer_mass, (0, None, None)))(x0, answers, still)
    shares = jnp.concatenate([each.on, each.off[..., None]], -1)
    return jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-12)), 0), -1)


class Head(Judge):
    """A linear function of the tokens after a block: of their mean and their deviation over the
    video. Fit it with `fit_head` on training puzzles, at the same step."""

    def __init__(self, layer: int, weights: Float[Any, " features"], bias: float):
        self.layer, self.weights, self.bias = layer, jnp.asarray(weights, jnp.float32), bias

    def __call__(self, at: Estimates) -> Scores:
        assert self.layer is not None
        return pooled(at.tokens[self.layer]) @ self.weights + self.bias


def pooled(tokens: Float[Any, "*axes N D"]) -> Float[Array, "*axes features"]:
    """Return what a `Head` sees of tokens."""
    exact = jnp.asarray(tokens, jnp.float32)
    return jnp.concatenate([exact.mean(-2), exact.std(-2)], -1)


def fit_head(
    layer: int,
    features: Float[np.ndarray, "n features"],
    targets: Float[np.ndarray, " n"],
    penalty: float = 0.1,
) -> Head:
    """Return the ridge regression of targets (scores of finished runs, 0..1) on standardised
    features (`pooled`). penalty: of the weights' square, per sample."""
    fitted = ridge(features, np.asarray(targets, np.float64)[:, None], penalty)
    weights = fitted.weights[:, 0] / fitted.size[0]
    return Head(layer, weights, float(fitted.centre[0] - fitted.mean[0] @ weights))


class Frames(Judge):
    """A function of the decoded frames [F, H, W, 3], uint8, that returns one number; it is called
    on the host, for one particle at a time. preview: decodes estimates in place of the model
    (`jcos.preview.Preview`)."""

    on_host = True

    def __init__(
        self, function: Callable[[UInt8[np.ndarray, "F H W 3"]], float], preview: Any = None
    ):
        self.function, self.preview = function, preview
        self.decodes = preview is None

    def __call__(self, at: Estimates) -> Scores:
        if self.preview is not None:
            return self._each(self.preview(at.x0))
        return self._each(at.model.decode(at.x0, at.tiles))

    def check(self, config: WanConfig, at: Estimates) -> None:
        """Without decoding: of a video of noise."""
        frames, height, width = at.x0.shape[2:5]
        along, *strides = config.codec.strides if config.codec else (1, 1, 1)
        shape = (1 + (frames - 1) * along, height * strides[0], width * strides[1])
        if self.preview is not None:
            shape = (frames, height, width)
        noisy = np.random.default_rng(0).integers(0, 256, (1, 1, *shape, 3), np.uint8)
        if not np.isfinite(score := self._each(noisy)).all():
            name = getattr(self.function, "__name__", "of frames")
            raise ValueError(f"the judge {name} returned {score.item()} for a video of noise")

    def _each(self, videos: UInt8[np.ndarray, "worlds K F H W 3"]) -> Float[np.ndarray, "worlds K"]:
        scores = [[np.asarray(self.function(video)) for video in row] for row in videos]
        shapes = {score.shape for row in scores for score in row}
        if shapes != {()}:
            raise ValueError(
                f"the judge of frames returned shape {min(shapes)}; it must return one number"
            )
        return np.array(scores, np.float64)


STANDARD: dict[str, Callable[[], Judge]] = {
    "decided": Decided,
    "pixels": partial(Decided, 1, 1),
    "change": partial(Sign, change),
    "agreement": partial(Sign, agreement),
    "energy": partial(Sign, energy),
    "norm": partial(Sign, norm),
    "motion": partial(Sign, motion),
    "peak": partial(Sign, peak),
    "random": Random,
}
"""Judges that need nothing but the run, by name."""
PROXY = "change"
"""What `decided` means for models that draw no puzzles (docs/search.md says why)."""
COLOURS = ("decided", "pixels")
"""Judges that know the palette of the puzzles."""


def standard(config: WanConfig) -> dict[str, Judge]:
    """Return the standard judges that suit a model; `decided` is `PROXY` where it draws no
    puzzles."""
    made = {name: make() for name, make in STANDARD.items()}
    if isinstance(config.codec, PixelCodec):
        return made
    return {name: judge for name, judge in made.items() if name not in COLOURS} | {
        "decided": made[PROXY]
    }
