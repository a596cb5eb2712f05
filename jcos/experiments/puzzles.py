"""Many puzzles × probes × seeds through a model, as one compiled program."""

import math
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jcos.config import PixelCodec, Sampling
from jcos.devices import memory, mesh
from jcos.experiments.memory import runs_that_fit, sweep_knobs
from jcos.generation import generate_worlds
from jcos.lab.tasks import TASKS, Puzzle, Task
from jcos.loop import first_noise, seed_keys
from jcos.model.attention import side_by_side
from jcos.model.vae import decode_pixels
from jcos.sampling import flow, trajectory
from jcos.sampling.checks import check_averages
from jcos.sampling.probes import Probe, chain
from jcos.sampling.trajectory import Condition, Trace
from jcos.wan import Wan

T = TypeVar("T")

Look = Callable[[Wan, flow.Plan, Trace, Any], Any]
"""What to keep of one run, leaves [W, K, …], on the device: a function of the model, the plan, the
trace and what lies beside the puzzle. It is part of the program: define it at a module's top."""


class Progress(NamedTuple):
    """`done` of `total` runs of what is going on."""

    what: str
    done: int
    total: int


class Sweep(NamedTuple):
    """All runs as data: one for each probe and each puzzle.

    given, start, beside [P, …]: conditions, latents to begin with instead of noise, and what `look`
    is given. keys [P, K]: of each puzzle's seeds. noise [K, …]: where it is not drawn from them.
    probes [Q, …]. own [P, …]: a probe of each puzzle, that acts before them.
    """

    given: Condition
    keys: Key[Array, "P K"]
    noise: Float[Array | np.ndarray, "K F h w C"] | None
    probes: Probe
    own: Probe | None
    start: Float[Array | np.ndarray, "P K F h w C"] | None
    beside: Any


@partial(jax.jit, static_argnames=("look",))
def _play(
    model: Wan,
    plan: flow.Plan,
    sweep: Sweep,
    runs: Int[Array, "runs 2"],
    look: Look,
) -> tuple[Any, Bool[Array, "runs W K S"]]:
    """Those runs of a sweep, each the numbers of a probe and a puzzle. On a mesh in use they are
    spread over its axis `world`, which divides them."""

    def one(run: Int[Array, " 2"]) -> tuple[Any, Bool[Array, "W K S"]]:
        seen, trace = _one(model, plan, sweep, run, look)
        return seen, trace.finite

    over = mesh.WORLD if mesh.in_use() else None
    with side_by_side(-(-len(runs) // mesh.devices(mesh.WORLD))):
        return jax.vmap(one, spmd_axis_name=over)(mesh.constrain(runs, mesh.WORLD))


def _one(
    model: Wan,
    plan: flow.Plan,
    sweep: Sweep,
    run: Int[Array, " 2"],
    look: Look,
) -> tuple[Any, Trace]:
    """What `look` keeps of a run, and all of it."""
    which, number = run
    probe = jax.tree.map(lambda a: a[which], sweep.probes)
    given, keys, start, beside, own = jax.tree.map(
        lambda a: a[number], (sweep.given, sweep.keys, sweep.start, sweep.beside, sweep.own)
    )
    noise = sweep.noise if start is None else start
    probe = probe if own is None else chain(own, probe)
    # Runs are spread over `world`, so their own worlds are not.
    uneven = len(keys) % mesh.devices(mesh.SEED) > 0
    idle = (mesh.WORLD, mesh.SEED) if uneven else (mesh.WORLD,)
    trace = generate_worlds(model, plan, given, keys, probe, noise, idle=idle)
    return look(model, plan, trace, beside), trace


def compilations() -> int:
    """How many programs were compiled so far; a sweep adds one, its positions none."""
    return _play._cache_size()  # type: ignore[attr-defined]


def playing(
    model: Wan,
    given: Condition,
    seeds: Sequence[int] = (0,),
    *,
    probes: Sequence[Probe] = (Probe(),),
    own: Probe | None = None,
    plan: flow.Plan | None = None,
    look: Look | None = None,
    beside: Any = (),
    start: Float[Array | np.ndarray, "P K F h w C"] | None = None,
    chunk: int | None = None,
    alike: bool = False,
    what: str = "playing",
) -> Generator[Progress, None, Any]:
    """Every probe on every puzzle with every seed; returns what `look` keeps, as numpy, leaves [Q,
    P, …].

    given: conditions [P, W, …] of P puzzles in W worlds. probes: Q of one kind. own: a probe of
    each puzzle [P, …], which acts before those of the sweep (`chain`). plan: the model's own by
    default. look: by default the whole `Trace`. beside: for `look`, leaves [P, …]. chunk: runs
    computed at a time, by default as many as memory holds; they come back to the host before the
    next ones start.

    A seed's noise depends on the puzzle's number and the seed, not on what runs beside it: runs
    that differ in their probe are paired. alike: on the seed alone, so that a seed gives the video
    that `generation.generate` gives; clips of Wan's models are always run like that.
    Raises ValueError where the results do not fit into memory, before anything runs, MemoryError
    saying what would help where a device has too little, and FloatingPointError as soon as a latent
    stops being finite: no number of a sweep with holes is told.
    """
    plan = flow.plan(model.config.sampling, model.config.boundary) if plan is None else plan
    puzzles, worlds = given.context.shape[:2]
    for probe in probes:
        check_averages(probe, len(seeds))
    shape = (*given.grid, model.config.dit.out_channels)
    noise = None if start is not None else first_noise(model.config, seeds, shape)
    keys = jnp.tile(seed_keys(seeds), (puzzles, 1))
    if not alike and model.config.noise == "jax":
        keys = _fold(keys, jnp.arange(puzzles))
    data = Sweep(given, keys, noise, trajectory.tree_stack(probes), own, start, beside)
    sweep = jax.tree.map(jnp.asarray, data)
    total = len(probes) * puzzles
    look, kept = look or everything, []
    if chunk is None:
        size = _bytes_seen(model, plan, sweep, look)
        chunk = runs_that_fit(model, given, plan, len(seeds), worlds, total, None, size)
    # All pieces are equally long, so that there is one program; the last is filled up.
    chunk, spread = min(chunk, total), mesh.devices(mesh.WORLD)
    chunk = -(-total // -(-total // chunk))
    chunk = -(-chunk // spread) * spread
    asking = f"{what}, {chunk} run(s) at a time of {len(seeds)} seed(s) in {worlds} world(s),"
    for first in range(0, total, chunk):
        yield Progress(what, first, total)
        runs = np.minimum(first + np.arange(chunk), total - 1)
        runs = jnp.asarray(np.stack(np.divmod(runs, puzzles), -1).astype(np.int32))
        with memory.explained(asking, sweep_knobs(chunk, len(seeds))):
            seen, finite = jax.device_get(_play(model, plan, sweep, runs, look))
        if not finite.all():
            bad = np.argwhere(~finite)
            place = bad[bad[:, -1].argmin()].tolist()
            # The sweep's own program does not keep the block; this run once more tells it.
            same = jnp.tile(runs[place[0]], (spread, 1))
            again = _play(model, plan, sweep, same, everything)[0]
            layer = int(again.layer[(0, *place[1:])])
            raise FloatingPointError(_where_it_broke(what, runs, seeds, place, layer, plan.steps))
        kept.append(seen)
    yield Progress(what, total, total)
    return jax.tree.map(
        lambda *a: np.concatenate(a)[:total].reshape(len(probes), puzzles, *a[0].shape[1:]), *kept
    )


_fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)))
"""Keys [P, K] with their puzzle's number in them."""


def _bytes_seen(model: Wan, plan: flow.Plan, sweep: Sweep, look: Look) -> int:
    """What the probe observes in a run, and what `look` keeps of it, in bytes."""
    run = jax.ShapeDtypeStruct((2,), jnp.int32)
    seen, trace = jax.eval_shape(partial(_one, look=look), model, plan, sweep, run)
    leaves = jax.tree.leaves((seen, trace.block_obs, trace.estimate_obs))
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in leaves)


def _where_it_broke(
    what: str,
    runs: Int[Array, "runs 2"],
    seeds: Sequence[int],
    place: Sequence[int],
    layer: int,
    steps: int,
) -> str:
    """place: the run of a chunk, its world, seed and first step with an inf or nan. layer: as in
    `Trace`."""
    run, world, seed, step = place
    which, number = np.asarray(runs[run]).tolist()
    where = f"first after block {layer}" if layer >= 0 else "outside the blocks"
    return (
        f"{what}: the latent of puzzle (or clip) {number} with seed {seeds[seed]} is not finite "
        f"from step {step} of {steps} on, {where} (probe {which}, world {world}): look at the "
        "probe, the guidance scale or the weights"
    )


def finish(steps: Generator[Any, None, T]) -> T:
    """What a generator returns, its progress unheard."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def everything(model: Wan, plan: flow.Plan, trace: Trace, beside: Any) -> Trace:
    """Keeps the whole trace."""
    del model, plan, beside
    return trace


def chosen_steps(model: Wan, plan: flow.Plan, trace: Trace, steps: Int[Array, " kept"]) -> Trace:
    """Keeps the clean estimates of some steps only."""
    del model, plan
    return trace._replace(x0=trace.x0[:, :, steps])


def held_out(task: Task, n: int, seed: int = 0) -> list[Puzzle]:
    """n puzzles of the test split; the same for every model and experiment of this seed."""
    return [task.sample((seed, i), "test") for i in range(n)]


def conditions(model: Wan, puzzles: Sequence[Puzzle]) -> Condition:
    """Conditions of all puzzles, stacked [P, …]; they are of one canvas."""
    given = []
    for puzzle in puzzles:
        task = TASKS[puzzle.task]
        given.append(model.condition(task.first_frame(puzzle), puzzle.prompt, task.frames))
    return trajectory.tree_stack(given)


def play(
    model: Wan,
    task: Task,
    puzzles: Sequence[Puzzle],
    seeds: Sequence[int] = (0,),
    *,
    probes: Sequence[Probe] = (Probe(),),
    sampling: Sampling | None = None,
    keep: Sequence[int] = (-1,),
    alike: bool = False,
) -> Trace:
    """`playing` to its end, in one world: leaves [Q, P, K, …]; x0 of the steps in `keep` only (the
    last by default). alike: as there."""
    del task
    plan = flow.plan(sampling or model.config.sampling, model.config.boundary)
    given = one_world(conditions(model, puzzles))
    steps = np.tile(np.array(keep, np.int32), (len(puzzles), 1))
    run = playing(
        model, given, seeds, probes=probes, plan=plan, look=chosen_steps, beside=steps, alike=alike
    )
    return jax.tree.map(lambda a: jnp.asarray(a[:, :, 0]), finish(run))


def one_world(given: Condition) -> Condition:
    """Conditions [P, …] as [P, W = 1, …]."""
    return jax.tree.map(lambda a: a[:, None], given)


def pixels(model: Wan, latents: Float[Array, "*axes F h w C"]) -> UInt8[Array, "*axes F H W 3"]:
    """`Wan.decode` on the device, of models whose codec has no weights."""
    if not isinstance(model.codec, PixelCodec):
        raise ValueError(f"{model.config.name} has a VAE; decode its latents one by one")
    flat = latents.reshape(-1, *latents.shape[-4:])
    video = jax.vmap(partial(decode_pixels, model.codec))(flat)
    video = jnp.clip(jnp.round(video), 0, 255).astype(jnp.uint8)
    return video.reshape(*latents.shape[:-4], *video.shape[1:])


def judge(
    puzzles: Sequence[Puzzle], videos: UInt8[np.ndarray, "P *axes F H W 3"]
) -> tuple[Float[np.ndarray, "P *axes"], Bool[np.ndarray, "P *axes"]]:
    """Scores of videos, and whether they are solved, each by its puzzle's task."""
    axes = videos.shape[:-4]
    rows = videos.reshape(len(puzzles), -1, *videos.shape[-4:])
    found = [
        [TASKS[puzzle.task].score(puzzle, video)[:2] for video in row]
        for puzzle, row in zip(puzzles, rows, strict=True)
    ]
    scores, solved = np.moveaxis(np.array(found, np.float64).reshape(*axes, 2), -1, 0)
    return scores, solved.astype(bool)


def score(
    model: Wan,
    task: Task,
    puzzles: Sequence[Puzzle],
    latents: Float[Array | np.ndarray, "P *axes F h w C"],
) -> tuple[Float[np.ndarray, "P *axes"], Bool[np.ndarray, "P *axes"]]:
    """`judge` of decoded latents. The puzzles' axis comes first."""
    del task
    return judge(puzzles, model.decode(jnp.asarray(latents)))
