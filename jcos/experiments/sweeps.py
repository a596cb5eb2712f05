"""Many puzzles × probes × seeds through a model, as one compiled program."""

import contextlib
import contextvars
import functools
import hashlib
import io
import math
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jcos import files, runs
from jcos.config import PixelCodec, Sampling
from jcos.devices import memory, mesh, programs, sharding
from jcos.devices.watching import step_done
from jcos.experiments.memory import MOST, runs_that_fit, sweep_knobs
from jcos.generation import generate_worlds
from jcos.lab.tasks import TASKS, Puzzle, Task
from jcos.loop import first_noise, seed_keys
from jcos.model.attention import side_by_side
from jcos.model.vae import pixel_videos
from jcos.sampling import flow, trajectory
from jcos.sampling.checks import check_averages
from jcos.sampling.probes import Probe, chain
from jcos.sampling.trajectory import Condition, Trace
from jcos.wan import Wan

Readout = Callable[[Wan, flow.Plan, Trace, Any], Any]
"""What to keep of one run, leaves [W, K, …], on the device: a function of the model, the plan, the
trace and `aux`. It is part of the program: define it at a module's top."""


_KEPT: contextvars.ContextVar[Path | None] = contextvars.ContextVar("kept", default=None)
"""Where chunks of sweeps are kept until the experiment is finished."""


ACTIVATIONS = "activations"
"""Of a folder of results, the folder of stored activations (`lab.activations`)."""


@contextlib.contextmanager
def kept_in(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Keep what sweeps compute in a folder, and take from it what an earlier run has computed.

    settings: what decides the results. Raises ValueError where it was computed with other settings,
    weights, versions or code, or nothing says with which.
    """
    about = dict(settings) | {"versions": runs.versions(), "code": _code()}
    there = files.read_json(folder / runs.MANIFEST)
    if not there and any(p.name != runs.MANIFEST for p in files.visible(folder)):
        raise ValueError(f"{folder} holds part of a run, but no whole {runs.MANIFEST}: remove it")
    if there:
        remedy = "remove it, or finish it with the code and settings it was begun with"
        runs.check_same(folder, there, about, remedy)
    elif sharding.is_first_host():
        files.write(folder / runs.MANIFEST, runs.as_text(about))
    token = _KEPT.set(folder)
    try:
        yield
    finally:
        _KEPT.reset(token)


@contextlib.contextmanager
def activations_folder() -> Iterator[Path]:
    """Yield the folder for stored activations: `folder.run_to` puts it beside the results, and a
    killed run finds it again. Outside of it, a temporary one."""
    if (store := _KEPT.get()) is not None:
        yield store / ACTIVATIONS
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / ACTIVATIONS


@functools.cache
def _code() -> str:
    """Return a digest of the source that numbers come from."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in ("bench", "cli", "plan", "report"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _prefix(plan: flow.Plan, sweep: "Sweep", readout: Readout) -> str:
    """Return a digest of all that decides what is in a chunk, but for what the manifest says."""
    digest = hashlib.sha256(f"{readout.__module__}.{readout.__qualname__}".encode())
    for path, leaf in jax.tree.leaves_with_path((plan, sweep)):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = np.ascontiguousarray(sharding.to_host(leaf))
        digest.update(jax.tree_util.keystr(path).encode() + leaf.tobytes())
    return digest.hexdigest()[:24]


def _remembered(file: Path, shape: Any) -> Any | None:
    """Return what was kept in a file, leaves as in `shape`; None where that is not whole."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            leaves = [stored[f"{i}"] for i in range(len(stored.files))]
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _remember(file: Path, tree: Any) -> None:
    out = io.BytesIO()
    np.savez(out, **{f"{i}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))})
    files.write(file, out.getvalue())


def remembered(name: str, shape: Any, compute: Callable[[], Any]) -> Any:
    """Return what is computed, leaves as in `shape`; in `kept_in`, keep it under a name of its own,
    and take it from there."""
    if (store := _KEPT.get()) is None:
        return compute()
    tree = _remembered(file := store / f"{name}.npz", shape)
    if sharding.on_all_hosts(tree is not None):
        return tree
    tree = compute()
    if sharding.is_first_host():
        _remember(file, tree)
    return tree


def _finished(store: Path, prefix: str, shape: Any) -> dict[int, Any]:
    """Return what is kept of a sweep's runs by their numbers, whatever chunks they were made in."""
    rows = {}
    for file in files.visible(store, f"{prefix}-*.npz"):
        if (chunk := _remembered(file, (0, shape))) is not None:
            numbers, read = chunk
            rows |= {int(n): jax.tree.map(lambda a, i=i: a[i], read) for i, n in enumerate(numbers)}
    return rows


class Sweep(NamedTuple):
    """All runs as data: one for each of Q probes and each of P puzzles.

    noise: of all puzzles, or start, of each, where it is not drawn from the keys. probes [Q, …].
    item_probe, aux [P, …]: a probe of each puzzle, which acts before them, and what the readout is
    given.
    """

    conditions: Condition
    keys: Key[Array, "P K"]
    noise: Float[Array | np.ndarray, "K F h w C"] | None
    probes: Probe | None
    item_probe: Probe | None
    start: Float[Array | np.ndarray, "P K F h w C"] | None
    aux: Any


@partial(programs.jit, static_argnames=("readout",))
def _play(
    model: Wan, plan: flow.Plan, sweep: Sweep, runs: Int[Array, "runs 2"], readout: Readout
) -> tuple[Any, Bool[Array, "runs W K S"]]:
    """Return what the readout keeps of some runs, each the numbers of a probe and a puzzle. On a
    mesh in use they are spread over its axis `world`, which divides them."""

    def one(run: Int[Array, " 2"]) -> tuple[Any, Bool[Array, "W K S"]]:
        reading, trace = _one(model, plan, sweep, run, readout)
        return reading, trace.finite

    over = mesh.WORLD if mesh.in_use() else None
    with _together(len(runs)):
        return jax.vmap(one, spmd_axis_name=over)(mesh.constrain(runs, mesh.WORLD))


def _together(runs: int) -> contextlib.AbstractContextManager[Any]:
    """Within: each device does its share of so many runs at once."""
    return side_by_side(-(-runs // mesh.devices(mesh.WORLD)))


# Jitted, so that the sweep's program is made of the trace that its shapes were asked of.
@partial(jax.jit, static_argnames=("readout",), inline=True)
def _one(
    model: Wan, plan: flow.Plan, sweep: Sweep, run: Int[Array, " 2"], readout: Readout
) -> tuple[Any, Trace]:
    """Return what the readout keeps of a run, and its trace."""
    which, number = run
    probe = jax.tree.map(lambda a: a[which], sweep.probes)
    each = sweep._replace(noise=None, probes=None)  # what else there is, each puzzle has its own
    each = jax.tree.map(lambda a: a[number], each)
    noise = sweep.noise if each.start is None else each.start
    probe = probe if each.item_probe is None else chain(each.item_probe, probe)
    # Runs are spread over `world`, so their own worlds are not.
    uneven = len(each.keys) % mesh.devices(mesh.SEED) > 0
    idle = (mesh.WORLD, mesh.SEED) if uneven else (mesh.WORLD,)
    trace = generate_worlds(model, plan, each.conditions, each.keys, probe, noise, idle=idle)
    return readout(model, plan, trace, each.aux), trace


def sweep(
    model: Wan,
    conditions: Condition,
    seeds: Sequence[int] | Sequence[Sequence[int]] = (0,),
    *,
    probes: Sequence[Probe] = (Probe(),),
    item_probe: Probe | None = None,
    plan: flow.Plan | None = None,
    readout: Readout | None = None,
    aux: Any = (),
    chunk: int | None = None,
    alike: bool = False,
    what: str = "sampling",
    progress: Callable[[str, int, int], object] = lambda *_: None,
) -> Any:
    """Run every probe on every puzzle with every seed; return the readouts as numpy, leaves [Q, P,
    …].

    conditions: [P, W, …] of P puzzles in W worlds. seeds: K, or K for each puzzle. probes: Q of one
    kind. item_probe, aux: as in `Sweep`. plan: the model's own by default. readout: by default the
    whole `Trace`. chunk: runs computed at a time, by default as many as memory holds; they are kept
    (`kept_in`) before the next ones start, also for chunks of another size.

    A seed's noise depends on the puzzle's number and the seed, not on what runs beside it: runs
    that differ in their probe are paired. alike: on the seed alone, so that a seed gives the video
    that `generation.generate` gives; clips of Wan's models are always run like that.
    Raises ValueError where the results do not fit into memory, before anything runs, MemoryError
    where a device has too little, and FloatingPointError as soon as a latent is not finite.
    """
    plan = flow.plan(model.config.sampling, model.config.boundary) if plan is None else plan
    puzzles, worlds = conditions.context.shape[:2]
    rows: Any = seeds if np.ndim(seeds) == 2 else [seeds]  # one, or of each puzzle
    count = len(rows[0])
    for probe in probes:
        check_averages(probe, count)
    shape = (*conditions.grid, model.config.dit.out_channels)
    drawn = [first_noise(model.config, row, shape) for row in rows]
    noise, start = (drawn[0], None) if len(rows) == 1 else (None, trajectory.tree_stack(drawn))
    keys = jnp.stack([seed_keys(row) for row in rows])
    keys = jnp.broadcast_to(keys, (puzzles, count))
    if not alike and model.config.noise == "jax":
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)))(keys, jnp.arange(puzzles))
    data = Sweep(conditions, keys, noise, trajectory.tree_stack(probes), item_probe, start, aux)
    data = data if mesh.in_use() else jax.device_put(data)  # which refuses what spans hosts
    data, plan = sharding.place_inputs((data, plan))
    passes = plan.steps * count * worlds * (1 if plan.guidance is None else 2)
    total = len(probes) * puzzles
    readout = readout or everything
    if chunk is None:
        likely = _even(MOST * mesh.devices(mesh.WORLD), total)
        size = _bytes_read(model, plan, data, readout, likely)
        chunk = runs_that_fit(model, conditions, plan, count, worlds, total, None, size)
        chunk = int(sharding.from_first_host(np.int32(chunk)))
    chunk = _even(chunk, total)
    asking = f"{what}, {chunk} run(s) at a time of {count} seed(s) in {worlds} world(s),"
    store, kept, prefix = _KEPT.get(), {}, ""
    if store is not None:
        prefix = _prefix(plan, data, readout)
        kept = _finished(store, prefix, _shapes(model, plan, data, readout, chunk)[0])
    left = np.flatnonzero(~sharding.on_all_hosts(np.isin(np.arange(total), list(kept))))
    for first in range(0, len(left), chunk):
        progress(what, total - len(left) + first, total)
        some = left[first : first + chunk]
        numbers = np.pad(some, (0, chunk - len(some)), mode="edge")
        numbers = np.stack(np.divmod(numbers, puzzles), -1).astype(np.int32)
        numbers = sharding.place_inputs(jnp.asarray(numbers))
        with memory.explained(asking, sweep_knobs(chunk, count)):
            read, finite = sharding.to_host(_play(model, plan, data, numbers, readout))
        step_done(read, chunk * passes)
        if not finite.all():
            raise _not_finite(model, plan, data, numbers, finite, what, rows)
        if store is not None and sharding.is_first_host():
            _remember(store / f"{prefix}-{some[0]}-{chunk}.npz", (some, read))
        kept |= {int(n): jax.tree.map(lambda a, i=i: a[i], read) for i, n in enumerate(some)}
    progress(what, total, total)
    return jax.tree.map(
        lambda *a: np.stack(a).reshape(len(probes), puzzles, *np.shape(a[0])),
        *(kept[number] for number in range(total)),
    )


def _not_finite(
    model: Wan,
    plan: flow.Plan,
    data: Sweep,
    numbers: Int[Array, "runs 2"],
    finite: Bool[np.ndarray, "runs W K S"],
    what: str,
    seeds: Sequence[Sequence[int]],
) -> FloatingPointError:
    """Return an error that names the first latent that is not finite."""
    bad = np.argwhere(~finite)
    run, world, seed, step = bad[bad[:, -1].argmin()].tolist()
    # The sweep's own program does not keep the block; this run once more says which it is.
    same = jnp.tile(numbers[run], (mesh.devices(mesh.WORLD), 1))
    again = _play(model, plan, data, same, everything)[0]
    layer = int(again.layer[0, world, seed, step])
    probe, puzzle = np.asarray(numbers[run]).tolist()
    number = seeds[puzzle % len(seeds)][seed]
    where = f"first after block {layer}" if layer >= 0 else "outside the blocks"
    return FloatingPointError(
        f"{what}: the latent of puzzle (or clip) {puzzle} with seed {number} is not finite "
        f"from step {step} of {plan.steps} on, {where} (probe {probe}, world {world}): look at the "
        "probe, the guidance scale or the weights"
    )


def _even(chunk: int, total: int) -> int:
    """Return the length of equally long pieces of about so many runs, so that there is one program;
    the last is filled up."""
    spread = mesh.devices(mesh.WORLD)
    chunk = -(-total // -(-total // min(chunk, total)))
    return -(-chunk // spread) * spread


def _shapes(
    model: Wan, plan: flow.Plan, data: Sweep, readout: Readout, chunk: int
) -> tuple[Any, Trace]:
    """Return the shapes of what the readout keeps of a run, and of its trace. They do not depend on
    how many run at once, but the trace does: the program of so many is made of it."""
    run = jax.ShapeDtypeStruct((2,), jnp.int32)
    with _together(chunk):
        return jax.eval_shape(partial(_one, readout=readout), model, plan, data, run)


def _bytes_read(model: Wan, plan: flow.Plan, data: Sweep, readout: Readout, chunk: int) -> int:
    """Return the bytes that a run's probe observes and its readout keeps."""
    read, trace = _shapes(model, plan, data, readout, chunk)
    leaves = jax.tree.leaves((read, trace.block_obs, trace.estimate_obs))
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in leaves)


def everything(model: Wan, plan: flow.Plan, trace: Trace, aux: Any) -> Trace:
    """Return the whole trace."""
    return trace


def chosen_steps(model: Wan, plan: flow.Plan, trace: Trace, steps: Int[Array, " kept"]) -> Trace:
    """Return the trace with the clean estimates of some steps only."""
    return trace._replace(x0=trace.x0[:, :, steps])


def read_latents(model: Wan, plan: flow.Plan, trace: Trace, aux: Any) -> Float[Array, "K F h w C"]:
    """Return how the runs of world 0 end."""
    return trace.latents[0]


def read_videos(model: Wan, plan: flow.Plan, trace: Trace, aux: Any) -> UInt8[Array, "K F H W 3"]:
    """Return how the runs of world 0 end, in pixels."""
    return pixels(model, trace.latents[0])


def held_out(task: Task, n: int, seed: int = 0) -> list[Puzzle]:
    """Return n puzzles of the test split; the same for every model and experiment of this seed.
    Raises ValueError where n is below 1, or the seed below 0."""
    if n < 1:
        raise ValueError(f"{n} puzzles asked for; at least 1 is needed")
    if seed < 0:
        raise ValueError(f"the puzzle seed is {seed}; it is 0 or more")
    return [task.sample((seed, i), "test") for i in range(n)]


def conditions_of(model: Wan, puzzles: Sequence[Puzzle], given: int = 1) -> Condition:
    """Return the conditions of all puzzles, stacked [P, …]; they are of one canvas. given: how many
    frames of a right answer the model is given, drawn at random where there are several."""
    rows = []
    for number, puzzle in enumerate(puzzles):
        task = TASKS[puzzle.task]
        answer = task.reference(puzzle, np.random.default_rng(number))
        rows.append(model.condition(answer[:given], puzzle.prompt, task.frames))
    return trajectory.tree_stack(rows)


def play(
    model: Wan,
    puzzles: Sequence[Puzzle],
    seeds: Sequence[int] = (0,),
    *,
    probes: Sequence[Probe] = (Probe(),),
    sampling: Sampling | None = None,
    keep: Sequence[int] = (-1,),
    alike: bool = False,
    given: int = 1,
) -> Trace:
    """Return `sweep` in one world: leaves [Q, P, K, …]; x0 of the steps in `keep` only (the
    last by default). alike: as there. given: as in `conditions_of`."""
    run = sweep(
        model,
        one_world(conditions_of(model, puzzles, given)),
        seeds,
        probes=probes,
        plan=flow.plan(sampling or model.config.sampling, model.config.boundary),
        readout=chosen_steps,
        aux=np.tile(np.array(keep, np.int32), (len(puzzles), 1)),
        alike=alike,
    )
    return jax.tree.map(lambda a: jnp.asarray(a[:, :, 0]), run)


def one_world(conditions: Condition) -> Condition:
    """Return conditions [P, …] as [P, W = 1, …]."""
    return jax.tree.map(lambda a: a[:, None], conditions)


def pixels(model: Wan, latents: Float[Array, "*axes F h w C"]) -> UInt8[Array, "*axes F H W 3"]:
    """Return `Wan.decode` on the device, of models whose codec has no weights."""
    if not isinstance(model.codec, PixelCodec):
        raise ValueError(f"{model.config.name} has a VAE; decode its latents one by one")
    return pixel_videos(model.codec, latents)


class Scores(NamedTuple):
    """Of each video of P puzzles."""

    score: Float[np.ndarray, "P *axes"]
    solved: Bool[np.ndarray, "P *axes"]


def judge(puzzles: Sequence[Puzzle], videos: UInt8[np.ndarray, "P *axes F H W 3"]) -> Scores:
    """Return scores of videos, and whether they are solved, each by its puzzle's task."""
    rows = videos.reshape(len(puzzles), -1, *videos.shape[-4:])
    judged = [
        once(partial(TASKS[puzzle.task].score, puzzle), row)
        for puzzle, row in zip(puzzles, rows, strict=True)
    ]
    judged = [[score[:2] for score in row] for row in judged]
    scores = np.array(judged, np.float64).reshape(*videos.shape[:-4], 2)
    return Scores(scores[..., 0], scores[..., 1].astype(bool))


def once(judge: Callable[[Any], Any], videos: UInt8[np.ndarray, "n F H W 3"]) -> list[Any]:
    """Return what each video is judged, of equal ones once."""
    keys = [video.tobytes() for video in videos]
    known = {key: judge(video) for key, video in dict(zip(keys, videos, strict=True)).items()}
    return [known[key] for key in keys]


def score(
    model: Wan, puzzles: Sequence[Puzzle], latents: Float[Array | np.ndarray, "P *axes F h w C"]
) -> Scores:
    """Return `judge` of decoded latents."""
    return judge(puzzles, model.decode(jnp.asarray(latents)))
