"""Training the small model: flow matching on the tasks, resumable to the bit.

Everything random is a function of the recipe's seed and the step, so a run that was killed and
resumed ends in the same weights as one that was not.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from jcos.config import PixelCodec, WanConfig, Words
from jcos.files import check_room, local_path
from jcos.lab.tasks import TASKS, Puzzle, Task
from jcos.model.text import WordEmbedding, word_ids
from jcos.model.vae import encode_pixels
from jcos.model.vision import image_channels
from jcos.variants import toy
from jcos.wan import Wan, load
from jcos.weights import checkpoint

Params = dict[str, Array]
"""A model's leaves by path (`checkpoint.leaves`)."""


_SHARES = {
    "maze": (0.24, 0.18, 0.20, 0.48, 0.42),
    "tictactoe": (0.16, 0.17, 0.13, 0.08, 0.20),
    "pattern": (0.06, 0.05, 0.03, 0.10, 0.05),
    "rotation": (0.14, 0.13, 0.22, 0.06, 0.06),
    "returns": (0.07, 0.05, 0.04, 0.10, 0.07),
    "bounce": (0.14, 0.20, 0.10, 0.05, 0.05),
    "maze7": (1.00, 1.00, 1.00, 1.00, 1.00),
    "tictactoe-block": (0.07, 0.10, 0.03, 0.07, 0.08),
    "bounce-hard": (0.12, 0.12, 0.25, 0.06, 0.07),
}
"""How often a task is drawn in each of `PARTS`."""


def _shares(part: int) -> dict[str, float]:
    return {name: row[part] for name, row in _SHARES.items()}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a training run is; with the code's version it determines the weights.

    small, large: videos per step on the 20- and the 28-pixel canvas. shares: how often a task is
        drawn, relative to the others of its canvas.
    draws: puzzles looked at for a video (`drawn`): choosing among several answers is learnt later
        than finding the only one.
    shift: of the noise levels drawn in training, σ = k u / (1 + (k−1) u) with u stratified over the
    batch.
    start: folder of the model whose weights are gone on from; without one they are drawn.
    constant: fraction of the run at full learning rate, after which it falls linearly to `floor` of
    it.
    null_text: fraction of samples trained without their prompt (for guidance).
    """

    steps: int = 8000
    small: int = 32
    large: int = 4
    shares: Mapping[str, float] = dataclasses.field(default_factory=lambda: _shares(0))
    draws: int = 1
    seed: int = 0
    start: str | None = None
    shift: float = 3.0
    learning_rate: float = 2e-3
    warmup: int = 150
    constant: float = 0.65625
    floor: float = 0.03
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    null_text: float = 0.05


PARTS: tuple[Recipe, ...] = (
    Recipe(),
    Recipe(seed=1, steps=4000, large=3, constant=0.5, shares=_shares(1)),
    Recipe(seed=2, steps=5000, large=2, shares=_shares(2)),
    Recipe(seed=3, steps=4500, large=1, draws=3, shares=_shares(3)),
    Recipe(seed=4, steps=4000, large=1, draws=2, constant=0.5, shares=_shares(4)),
)
"""The runs that make the shipped weights, each from those of the one before: other puzzles every
time, and more of what is learnt last."""


class Batch(NamedTuple):
    videos: UInt8[Array | np.ndarray, "B F H W 3"]
    words: Int[Array | np.ndarray, "B L"]


class State(NamedTuple):
    """ema: exponential average of the weights, started at zero (`averaged` corrects for that)."""

    params: Params
    ema: Params
    optimizer: Any
    step: Int[Array, ""]


class Progress(NamedTuple):
    step: int
    loss: float


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word that the tasks' prompts use."""
    prompts = {task.sample(seed).prompt for task in TASKS.values() for seed in range(200)}
    return tuple(sorted({word for prompt in prompts for word in prompt.split()}))


def batches(recipe: Recipe, config: WanConfig, step: int) -> tuple[Batch, ...]:
    """The training videos of one step, one batch per canvas size."""
    assert isinstance(config.text, Words)
    rng = np.random.default_rng((recipe.seed, step))
    found = []
    for count, size in ((recipe.small, 20), (recipe.large, 28)):
        names = [name for name, task in TASKS.items() if task.height == size]
        shares = np.array([recipe.shares[name] for name in names])
        videos, words = [], []
        for name in rng.choice(names, count, p=shares / shares.sum()):
            task = TASKS[name]
            puzzle = drawn(task, rng, recipe.draws)
            videos.append(task.reference(puzzle, rng))
            prompt = "" if rng.random() < recipe.null_text else puzzle.prompt
            words.append(word_ids(config.text, prompt, config.dit.text_len))
        found.append(Batch(np.stack(videos), np.stack(words)))
    return tuple(found)


def drawn(task: Task, rng: np.random.Generator, draws: int) -> Puzzle:
    """The first of so many training puzzles that has several answers, else the last."""
    puzzle = task.sample(tuple(rng.integers(2**32, size=4).tolist()))
    for _ in range(draws - 1):
        if len(puzzle.answers) > 1:
            break
        puzzle = task.sample(tuple(rng.integers(2**32, size=4).tolist()))
    return puzzle


def loss(model: Wan, batch: Batch, key: Array, shift: float) -> Float[Array, ""]:
    """Mean squared error of the velocity ε − x0 over a batch."""
    text, codec = model.text, model.codec
    assert isinstance(text, WordEmbedding)
    assert isinstance(codec, PixelCodec)
    count = len(batch.videos)
    noise_key, level_key = jax.random.split(key)
    x0 = jax.vmap(lambda video: encode_pixels(codec, video))(batch.videos)
    noise = jax.random.normal(noise_key, x0.shape)
    u = (jnp.arange(count) + jax.random.uniform(level_key, (count,))) / count
    sigma = shift * u / (1 + (shift - 1) * u)

    def error(x0: Array, noise: Array, sigma: Array, words: Array) -> Array:
        x = (1 - sigma) * x0 + sigma * noise
        x = jnp.concatenate([x, image_channels(x0[:1], len(x0), model.config.image)], axis=-1)
        v, _ = model.experts[0](x, 1000 * sigma, text(words), remat=True)
        return jnp.mean(jnp.square(v - (noise - x0)))

    return jnp.mean(jax.vmap(error)(x0, noise, sigma, jnp.asarray(batch.words)))


def schedule(recipe: Recipe) -> optax.Schedule:
    """Return the learning rate by step: a rise, a constant part, a linear fall to `floor`.

    A run whose constant part ends before `warmup` rises until there only.
    """
    hold = int(recipe.constant * recipe.steps)
    warmup, top = min(recipe.warmup, hold), recipe.learning_rate
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, top, warmup),
            optax.constant_schedule(top),
            optax.linear_schedule(top, recipe.floor * top, recipe.steps - hold),
        ],
        [warmup, hold],
    )


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Muon for the stacked matrices of the blocks, Adam for everything else."""
    rate = schedule(recipe)
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)

    def matrices(params: Mapping[str, Any]) -> dict[str, Any]:
        inside = [name for name in params if ".blocks." in name and name.endswith(".kernel")]
        return dict.fromkeys(params) | dict.fromkeys(inside, matrix)

    muon = optax.contrib.muon(
        rate,
        weight_decay=recipe.weight_decay,
        adam_b1=0.95,
        adam_b2=0.98,
        muon_weight_dimension_numbers=matrices,  # type: ignore[arg-type]
        consistent_rms=0.2,
    )
    return optax.chain(optax.clip_by_global_norm(recipe.clip), muon)


def initial(recipe: Recipe, config: WanConfig) -> State:
    """Raises ValueError if the model to start from is of another architecture or vocabulary."""
    if recipe.start:
        start = load(recipe.start)
        if _architecture(start.config) != _architecture(config):
            raise ValueError(f"{recipe.start} holds a model of another architecture or vocabulary")
        params = checkpoint.leaves(start)
    else:
        params = checkpoint.leaves(Wan(config, rngs=nnx.Rngs(recipe.seed)))
    ema = jax.tree.map(jnp.zeros_like, params)
    return State(params, ema, optimizer(recipe).init(params), jnp.zeros((), jnp.int32))


def _architecture(config: WanConfig) -> tuple[Any, ...]:
    return config.dit, config.codec, config.text, config.image


def _history(recipe: Recipe) -> dict[str, Any]:
    """The recipe with that of the model it started from in the place of the model's folder, which
    means nothing elsewhere; None where that model does not tell."""
    fields = dataclasses.asdict(recipe)
    if recipe.start:
        fields["start"] = checkpoint.read_manifest(Path(recipe.start))["notes"].get("recipe")
    return fields


def averaged(recipe: Recipe, state: State) -> Params:
    """The averaged weights, without the zeros that the average was started with."""
    share = 1 - recipe.ema ** int(state.step)
    return jax.tree.map(lambda e: e / share, state.ema)


def make_update(
    recipe: Recipe, config: WanConfig
) -> Callable[[State, tuple[Batch, ...]], tuple[State, Float[Array, " canvases"]]]:
    """One jitted training step: new state and the loss of each canvas."""
    abstract = checkpoint.abstract_model(Wan, config)
    transform = optimizer(recipe)

    def total(params: Params, given: tuple[Batch, ...], key: Array) -> tuple[Array, Array]:
        model = checkpoint.with_leaves(abstract, params)
        keys = jax.random.split(key, len(given))
        each = jnp.stack(
            [loss(model, b, k, recipe.shift) for b, k in zip(given, keys, strict=True)]
        )
        weight = jnp.array([float(b.videos.size) for b in given])  # every pixel counts the same
        return jnp.sum(each * weight) / jnp.sum(weight), each

    def update(state: State, given: tuple[Batch, ...]) -> tuple[State, Array]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        grads, each = jax.grad(total, has_aux=True)(state.params, given, key)
        change, opt = transform.update(grads, state.optimizer, state.params)
        params: Params = optax.apply_updates(state.params, change)  # type: ignore[assignment]
        ema = jax.tree.map(lambda e, p: recipe.ema * e + (1 - recipe.ema) * p, state.ema, params)
        return State(params, ema, opt, state.step + 1), each

    return jax.jit(update, donate_argnums=0)


def _resumed(
    recipe: Recipe, config: WanConfig, folder: Path
) -> tuple[State, dict[str, list[float]], dict[str, Any]]:
    """State, losses and history of a run as it was saved last, else at its beginning. The model it
    started from is needed only there."""
    saved = sorted(folder.glob("step-*"))
    if not saved and (folder / "model").exists():
        raise ValueError(f"{folder} holds a model and no run to go on with; choose another folder")
    if not saved:
        return initial(recipe, config), {"small": [], "large": []}, _history(recipe)
    notes = checkpoint.read_manifest(saved[-1])["notes"]
    if notes["recipe"] != dataclasses.asdict(recipe):
        raise ValueError(f"{folder} holds a run of another recipe; choose another folder")
    unstarted = dataclasses.replace(recipe, start=None)
    abstract = jax.eval_shape(lambda: initial(unstarted, config))
    return checkpoint.restore(saved[-1], abstract), notes["losses"], notes["history"]


def train(recipe: Recipe, folder: Path, *, save_every: int = 250) -> Iterator[Progress]:
    """Trains, saving into `folder/step-…` and resuming from the newest of them; yields after every
    step.

    When it ends, `folder/model` holds the model with averaged weights. What a save that was killed
    left in the folder is removed.
    Raises ValueError, before anything is written, if there is nothing to train or never anything to
    save, if the folder holds a run of another recipe, or as `initial`.
    """
    for what, number in (("steps", recipe.steps), ("save_every", save_every)):
        if number < 1:
            raise ValueError(f"{what} is {number}; it is at least 1")
    folder, config = local_path(folder), toy(vocabulary())
    state, losses, history = _resumed(recipe, config, folder)
    check_room(folder, 4 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.clean(folder, "step-*", "model")
    update = make_update(recipe, config)
    first = int(state.step)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(batches, recipe, config, first)
        for step in range(first, recipe.steps):
            given = coming.result()
            coming = pool.submit(batches, recipe, config, step + 1)
            state, each = update(state, given)
            for name, value in zip(losses, np.asarray(each).tolist(), strict=True):
                losses[name].append(round(value, 5))
            done = step + 1
            if done % save_every == 0 or done == recipe.steps:
                target = folder / f"step-{done:06d}"
                told = {"recipe": dataclasses.asdict(recipe), "history": history}
                checkpoint.save(target, config, state, told | {"losses": losses})
                for old in sorted(folder.glob("step-*"))[:-2]:
                    shutil.rmtree(old)
            yield Progress(done, float(np.mean(np.asarray(each))))
    if not (folder / "model").exists():
        model = checkpoint.with_leaves(
            checkpoint.abstract_model(Wan, config), averaged(recipe, state)
        )
        checkpoint.save(folder / "model", config, model, {"recipe": history})
