"""Activations of chosen layers, steps and tokens, one file per puzzle: together they need not fit
into memory.

Values are rounded to bfloat16 on the device. NetCDF has no such type, so a file holds them as
float32 whose lower 16 bits are zero, which its compression takes away: every reader opens it as it
is (`xarray.open_dataset`), on about as many bytes as bfloat16 needs.
"""

import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float

from jcos import files
from jcos.config import Sampling
from jcos.devices.sharding import to_host, wait_for_hosts
from jcos.lab import results
from jcos.loop import steps
from jcos.sampling.inside import Capture
from jcos.sampling.interventions import places
from jcos.sampling.probe import Probe
from jcos.sampling.probes import chain
from jcos.sampling.trace import digest
from jcos.sampling.trajectory import Condition
from jcos.wan import Wan

SITES = {
    "block": ("channel",),
    "heads": ("head", "unit"),
    "cross": ("head", "unit"),
    "mlp": ("hidden",),
}
"""What is stored of a layer, with its dimensions: the tokens after the block, outputs of the heads
of self-attention and of cross-attention, hidden units."""
DIMS = ("puzzle", "seed", "step", "layer", "token")
LATENT = ("latent_frame", "latent_row", "latent_column", "latent_channel")
POOL = 64
"""Files that random rows are drawn from at a time."""
Progress = Callable[[str, int, int], object]


def store(
    folder: Path,
    model: Wan,
    conditions: Condition,
    seeds: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    at_steps: Sequence[int],
    tokens: Sequence[int],
    sites: Sequence[str] = ("block",),
    labels: Mapping[str, Sequence[Any]] | None = None,
    sampling: Sampling | None = None,
    at_once: int = 1,
    progress: Progress = lambda *_: None,
) -> list[Path]:
    """Write the activations of every run and its final latents; return the files, one per puzzle.

    conditions: [P, …]. seeds: [P, K], those of each puzzle, which give the videos that
    `jcos.generate` gives. layers, at_steps, tokens: their numbers. sites: of `SITES`. labels:
    coordinates along the puzzles. at_once: puzzles in one batch. On the device is one step at a
    time; steps that are not chosen are never fetched. Files that are there are kept, so that a
    killed call resumes.
    Raises IndexError for a layer, step or token that is not there, ValueError for another site or
    where a file is of another run, OSError where the disk has no room for all.
    """
    check_sites(sites)
    number, rows, dit = len(seeds), np.asarray(seeds), model.config.dit
    sampling = sampling or model.config.sampling
    layers = places(layers, dit.layers, "layer")
    at_steps = places(at_steps, sampling.steps, "step")
    tokens = places(tokens, math.prod(dit.tokens(*conditions.grid)), "token")
    chosen = jnp.asarray(layers, jnp.int32), jnp.asarray(tokens, jnp.int32)
    probe = chain(*(Capture(site, *chosen, dtype="bfloat16") for site in sites))
    width = sum(dit.ffn_dim if site == "mlp" else dit.dim for site in sites)
    values = rows.shape[1] * len(at_steps) * len(layers) * len(tokens) * width
    paths = [folder / f"{i:05d}.nc" for i in range(number)]
    absent = [path for path in paths if not path.exists()]
    files.check_room(folder, 4 * values, 2 * values * len(absent))
    each = [jax.tree.map(lambda a, i=i: a[i], conditions) for i in range(number)]
    about = {"layers": layers, "steps": at_steps, "tokens": tokens, "sites": list(sites)}
    about |= {"weights": digest(model.experts), "sampling": str(sampling)}
    marks = [{name: values[i] for name, values in (labels or {}).items()} for i in range(number)]
    stamps = [
        json.dumps(about | {"seeds": row.tolist(), "condition": digest(one), "labels": mark})
        for row, one, mark in zip(rows, each, marks, strict=True)
    ]
    for path, stamp in zip(paths, stamps, strict=True):
        if path.exists():
            with results.load(path) as stored:
                if stored.attrs.get("run") != stamp:
                    raise ValueError(f"{path} holds another run; remove it, or name another folder")
    todo = [i for i, path in enumerate(paths) if path in absent]
    for first in range(0, len(todo), at_once):
        progress("storing activations", number - len(todo) + first, number)
        batch = todo[first : first + at_once]
        filled = batch + batch[-1:] * (at_once - len(batch))  # one program for all batches
        worlds = jax.tree.map(lambda a, b=filled: jnp.asarray(a)[np.array(b)], conditions)
        recorded = _recorded(model, worlds, rows[filled], probe, sites, at_steps, sampling)
        for i, data in zip(batch, recorded, strict=False):
            data = data.assign_coords(_places(model, data, layers, tokens, rows[i]))
            here = {name: ("puzzle", [value]) for name, value in marks[i].items()}
            data = data.assign_coords(here | {"puzzle": [i]}).assign_attrs(run=stamps[i])
            chunks: dict[Hashable, Any] = {n: (1, 1, 1, 1, *data[n].shape[4:]) for n in sites}
            if jax.process_index() == 0:
                results.save(data, paths[i], chunks)
    progress("storing activations", number, number)
    wait_for_hosts()  # the first writes, and all may read
    return paths


def _recorded(
    model: Wan,
    conditions: Condition,
    seeds: np.ndarray,
    probe: Probe,
    sites: Sequence[str],
    at_steps: Sequence[int],
    sampling: Sampling,
) -> Iterator[xr.Dataset]:
    """Run a batch of puzzles; yield what is stored of each."""
    parts, sigmas, state = [], [], None
    for state in steps(model, conditions, seeds.tolist(), probe=probe, sampling=sampling):
        if state.step in at_steps:
            parts.append(jax.tree.map(to_host, state.block_obs))
            sigmas.append(state.sigma)
    assert state is not None
    latents = to_host(state.x)
    for world in range(len(latents)):
        data: dict[str, Any] = {"latents": (("puzzle", "seed", *LATENT), latents[world][None])}
        for i, name in enumerate(sites):
            values = np.stack([part[i][world] for part in parts], 1)
            dims, about = (*DIMS, *SITES[name]), {"stored": "bfloat16"}
            data[name] = (dims, values[None].astype(np.float32), about)
        yield xr.Dataset(data, {"step": list(at_steps), "sigma": ("step", sigmas)})


def _places(
    model: Wan, data: xr.Dataset, layers: Sequence[int], tokens: Sequence[int], seeds: np.ndarray
) -> dict[str, Any]:
    """Return coordinates: of a token the frame, row and column of its patch."""
    grid = model.config.dit.tokens(*data["latents"].shape[2:5])
    where = zip(("frame", "row", "column"), np.unravel_index(tokens, grid), strict=True)
    labels: dict[str, Any] = {name: ("token", numbers) for name, numbers in where}
    labels |= {"layer": list(layers), "token": list(tokens)}
    return labels | {"noise": (("puzzle", "seed"), seeds[None])}


def check_sites(sites: Sequence[str]) -> None:
    """Raise ValueError where one is not of `SITES`, or there is none."""
    if not sites or not set(sites) <= set(SITES):
        raise ValueError(f"sites are {', '.join(sites) or 'none'}; there are {', '.join(SITES)}")


def _files(paths: Path | str | Sequence[Path]) -> list[Path]:
    """Return the files of a folder, in the order of the puzzles."""
    if not isinstance(paths, Path | str):
        return list(paths)
    if not (found := sorted(Path(paths).glob("[0-9]*.nc"))):
        raise ValueError(f"{paths} holds no activations; `jcos run store` writes some")
    return found


def load(paths: Path | str | Sequence[Path], site: str = "block", **at: Any) -> xr.DataArray:
    """Return activations of all puzzles with names on their axes, of which no more is read than
    `at` selects: `load(folder, layer=4, step=[0, 10])`.

    paths: a folder, or some of its files. Raises ValueError for a site that was not stored, or a
    file that is not whole, KeyError for a place that was not.
    """
    parts: list[xr.DataArray] = []
    for path in _files(paths):
        with results.load(path) as data:
            if site not in data:
                stored = ", ".join(name for name in SITES if name in data)
                raise ValueError(f"{path} holds no {site}; it holds {stored}")
            parts.append(data[site].sel(at).load())
    about: Any = {"coords": "minimal", "compat": "override", "join": "exact"}
    return xr.concat(parts, "puzzle", **about)


def batches(
    paths: Path | str | Sequence[Path],
    size: int,
    site: str = "block",
    *,
    pool: int = POOL,
    seed: int = 0,
    **at: Any,
) -> Iterator[Float[np.ndarray, "size D"]]:
    """Yield random rows of activations for ever. pool: files that are in memory at a time, from
    which rows are drawn without repetition before others are read. Files that are left over and
    hold less than a batch wait for another order. Raises ValueError where a pool holds less."""
    paths = _files(paths)
    rng = np.random.default_rng(seed)
    rows: np.ndarray | None = None
    while True:
        order = rng.permutation(len(paths))
        for first in range(0, len(paths), pool):
            if rows is None or len(paths) > pool:
                some = load([paths[i] for i in order[first : first + pool]], site, **at)
                rows = some.values.reshape(-1, some.shape[-1])
            if len(rows) < size:
                if first:
                    continue  # what is left over
                number = min(pool, len(paths))
                raise ValueError(
                    f"{number} files hold {len(rows)} rows, a batch {size}: take smaller batches, "
                    "or more files (pool)"
                )
            drawn = rng.permutation(len(rows))[: len(rows) // size * size]
            for some in drawn.reshape(-1, size):
                yield rows[some]
