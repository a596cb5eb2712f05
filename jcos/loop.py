"""The loop over denoising steps: states that can be read, cut down, copied and stored."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key, UInt32
from safetensors import safe_open
from safetensors.numpy import save

from jcos.config import Sampling, WanConfig
from jcos.devices import memory, mesh, programs, sharding
from jcos.devices.watching import step_done
from jcos.files import any_path, check_file, fetched, write
from jcos.sampling import flow, trajectory
from jcos.sampling.checks import all_parts, check_averages, check_order, check_probe, check_turns
from jcos.sampling.flow import SolverState
from jcos.sampling.inside import Patch
from jcos.sampling.noise import Noise, Seeds, first_noise, positions, seed_rows, seed_words
from jcos.sampling.probe import Probe
from jcos.sampling.trace import Origin, digest, model_digest
from jcos.sampling.trajectory import Condition, Trace
from jcos.wan import Wan

Chosen = Sequence[int] | Sequence[Sequence[int]] | np.ndarray
"""Positions on the seed axis, or a row of them for each world."""


def seed_keys(seeds: Sequence[int] | SupportsIndex) -> Key[Array, " K"]:
    """Return one key per seed: a seed's noise does not depend on the other seeds of a run."""
    return _keys(seed_words(seeds))


_keys = jax.jit(jax.vmap(jax.random.key))


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """The runs after one denoising step; arrays have a leading seed axis [K, …] (of stacked
    conditions [W, K, …]).

    step: its number, 0 first. sigma: its noise level. rows: the seed of every run [W, K]. seeds:
    those of a world, or where worlds do not share them a tuple for each. x: the model's next input,
    of noise level next_sigma; after the last step the final latents. x0: the step's clean estimate.
    block_obs, estimate_obs, finite: as in `Trace`; None in a state that was loaded or changed.
    """

    step: int
    rows: np.ndarray
    runs: "Runs" = dataclasses.field(repr=False)
    solver: SolverState = dataclasses.field(repr=False)
    keys: Key[Array, "W K"] = dataclasses.field(repr=False)
    trace: Trace | None = dataclasses.field(default=None, repr=False)
    """Of this step, leaves [W, K, 1, …]."""

    @property
    def seeds(self) -> tuple[Any, ...]:
        rows = [tuple(row) for row in self.rows.tolist()]
        return rows[0] if len(set(rows)) == 1 else tuple(rows)

    @property
    def sigma(self) -> float:
        return 1.0 if self.step < 0 else float(self.runs.plan.schedule.sigmas[self.step])

    @property
    def next_sigma(self) -> float:
        return float(self.runs.plan.schedule.sigmas[self.step + 1])

    @property
    def x(self) -> Float[Array, "*axes F h w C"]:
        return self.runs.of_video(self.solver.x)

    @property
    def x0(self) -> Float[Array, "*axes F h w C"]:
        return self.runs.of_video(self.solver.last)

    @property
    def block_obs(self) -> Any:
        return self._last("block_obs")

    @property
    def estimate_obs(self) -> Any:
        return self._last("estimate_obs")

    @property
    def finite(self) -> Any:
        return self._last("finite")

    def _last(self, field: str) -> Any:
        if self.trace is None:
            return None
        return self.runs.of_video(jax.tree.map(lambda a: a[:, :, 0], getattr(self.trace, field)))

    def keep(self, which: Chosen) -> "State":
        """Let only some runs go on: positions on the seed axis, in this order, the same in all
        worlds or a row for each. Their noise, solver state and keys go with them, so they end as if
        they had never shared a batch.

        Raises ValueError for none, for what is no position (a mask), that is not there or comes
        twice (`take` and `branch` make copies), and where this is not the latest state.
        """
        rows = np.atleast_2d(positions(which)).tolist()
        if any(len(set(row)) < len(row) for row in rows):
            raise ValueError(f"keep was given {which}: a run cannot be kept twice; branch copies")
        return self.take(which)

    def branch(self, copies: int | Sequence[int] = 2) -> "State":
        """Let runs go on as several: so many copies of each, or of every single one.

        Copies of a run stand side by side; they part as those of `take` do. Raises ValueError for a
        negative number, or where no run would be left.
        """
        count = self.rows.shape[1]
        counts = np.full(count, copies) if isinstance(copies, int) else np.array(copies)
        if counts.shape != (count,) or counts.min() < 0:
            raise ValueError(f"branch was given {copies}; there are {count} runs")
        return self.take(np.repeat(np.arange(count), counts))

    def take(self, which: Chosen) -> "State":
        """Let these runs go on, in this order; one that comes again goes on as a copy.

        The first of a run keeps its key, copies get fresh ones; they part where something draws
        from them (a probe that adds noise). Raises ValueError as `keep`, but for copies, and as
        `check_order` where a run changes its place.
        """
        chosen, (worlds, count) = positions(which), self.rows.shape
        if not chosen.size or chosen.min() < 0 or chosen.max() >= count:
            raise ValueError(f"runs {which} of {count} were chosen; they are 0 to {count - 1}")
        if chosen.shape[:-1] not in ((), (worlds,)):
            raise ValueError(f"runs of {len(chosen)} worlds were chosen; there are {worlds}")
        places = np.broadcast_to(chosen, (worlds, chosen.shape[-1]))
        if places.tolist() != worlds * [list(range(count))]:
            check_order(self.runs.probe)
        number = np.tril(places[:, :, None] == places[:, None], -1).sum(-1)
        at = np.arange(worlds)[:, None], places
        (solver, keys), takes = _taken((self.solver, self.keys), at), self.runs.takes + 1
        if number.any():
            keys = _fresh(keys, np.uint32(2**31 + takes), number.astype(np.uint32))
        state = self._go_on(rows=self.rows[at], solver=solver, keys=keys)
        self.runs.takes = takes
        return state

    def join(self, other: "State") -> "State":
        """Let the runs of another state of this step go on beside these, behind them. Raises
        ValueError where it is of another step or of other worlds, and as `check_order`."""
        if other.step != self.step or len(other.rows) != len(self.rows):
            raise ValueError(
                f"runs of {len(other.rows)} world(s) after step {other.step} cannot go on beside "
                f"those of {len(self.rows)} after step {self.step}"
            )
        check_order(self.runs.probe)
        solver, keys = _beside((self.solver, self.keys), (other.solver, other.keys))
        rows = np.concatenate([self.rows, other.rows], 1)
        return self._go_on(rows=rows, solver=solver, keys=keys)

    def move(self, x: Float[Array, "W K F h w C"], step: int | None = None) -> "State":
        """Go on from other latents. step: the one that they are taken to come from, by default this
        one; from another, the solver forgets what it remembers."""
        if step is None:
            corrected = self.solver.corrected + (x - self.solver.x)
            return self._go_on(solver=self.solver._replace(x=x, corrected=corrected))
        if not -1 <= step < (steps := self.runs.plan.steps):
            raise ValueError(f"latents of step {step}; there are steps −1 to {steps - 1}")
        return self._go_on(step=step, solver=jax.vmap(jax.vmap(flow.solver_init))(x))

    def _go_on(self, **changes: Any) -> "State":
        """Make a changed state the latest one."""
        if self.runs.state is not self:
            raise ValueError(f"step {self.step} is over: only the latest state can be changed")
        changed = dataclasses.replace(self, trace=None, **changes)
        self.runs.observed(changed.rows.shape[1])
        self.runs.state = changed
        return changed

    def save(self, file: Path | str, beside: Mapping[str, Any] | None = None) -> None:
        """Write one file, from which `steps(…, start=file)` continues, also in another process. A
        process that is killed leaves the file before. beside: more arrays for it to hold."""
        more = {**(beside or {}), **self.solver._asdict()}
        arrays = {name: sharding.to_host(a) for name, a in more.items()}
        arrays["keys"] = sharding.to_host(jax.random.key_data(self.keys))
        about = {"step": self.step, "seeds": self.rows.tolist()}
        about |= {"identity": self.runs.identity, "takes": self.runs.takes}
        if jax.process_index() == 0:
            whole = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
            write(any_path(file), save(whole, {"jcos.State": json.dumps(about)}))


class Runs(Iterator[State]):
    """The runs of `steps`: an iterator over their states, of which `state` is the latest."""

    def __init__(
        self,
        model: Wan,
        condition: Condition,
        probe: Probe | None = None,
        sampling: Sampling | None = None,
        sigmas: Sequence[float] | np.ndarray | None = None,
        together: int | None = None,
    ):
        sampling = sampling or model.config.sampling
        if sigmas is not None:
            sampling = dataclasses.replace(sampling, sigmas=sigmas)
        self.model, self.probe, self.together = model, probe or Probe(), together
        self.plan = flow.plan(sampling, model.config.boundary)
        self.single = condition.context.ndim == 2
        self.conditions: Condition = condition
        if self.single:
            self.conditions = jax.tree.map(lambda a: a[None], condition)
        self.takes = 0  # calls of State.take so far: copies of no two of them share keys
        self.state: State | None = None
        self._expert: tuple[int, Any] = (-1, None)
        self._shapes: dict[int, Any] = {}
        parts = [trajectory.steps_of(self.plan, i) for i in range(len(model.experts))]
        self._steps = [
            (i, part.one(j)) for i, part in enumerate(parts) for j in range(len(part.number))
        ]

    def begin(self, seeds: Seeds, noise: Noise = None) -> None:
        """Draw the first noise of each seed, unless it is passed. Raises ValueError where there is
        not a row of seeds for each world, equally many."""
        worlds, rows = len(self.conditions.context), seed_rows(seeds)
        count = len(rows[0])
        if any(len(row) != count for row in rows) or len(rows) not in (1, worlds):
            raise ValueError(
                f"there are rows of {[len(row) for row in rows]} seeds for {worlds} world(s); give "
                "equally many to each, or one row for all"
            )
        self.observed(count)
        check_averages(self.probe, count)
        keys, first = self.inputs([seed for row in rows for seed in row], noise)
        temperature = self.plan.temperature
        solver, keys = _begin(self.model.config, self.conditions, keys, first, count, temperature)
        self._set(-1, np.array(rows * (worlds // len(rows)), object), solver, keys)

    def load(self, file: Path | str) -> None:
        """Continue from a state that `State.save` wrote. Raises ValueError where it is none, or of
        another model, condition, plan or probe."""
        check_file(file := any_path(file))
        try:
            with fetched(file) as place, safe_open(str(place), "numpy") as stored:
                about = json.loads((stored.metadata() or {})["jcos.State"])
                names = (*SolverState._fields, "keys")
                arrays = {name: jnp.asarray(stored.get_tensor(name)) for name in names}
        except Exception as error:  # noqa: BLE001 (safetensors raises its own kinds)
            raise ValueError(f"{file} holds no state of a run ({type(error).__name__})") from None
        self._place()
        identity = self.identity
        other = [name for name, digest in identity.items() if about["identity"][name] != digest]
        if other:
            raise ValueError(f"{file} is a state of another {' and another '.join(other)}")
        keys = jax.random.wrap_key_data(arrays.pop("keys"))
        self.observed(keys.shape[1])
        solver, keys = sharding.place_inputs((SolverState(**arrays), keys), mesh.WORLD)
        self.takes = about["takes"]
        self._set(about["step"], np.array(about["seeds"], object), solver, keys)

    def check(self, seeds: int) -> None:
        """Raise as `check_probe` and `check_turns`, and ValueError where so many runs do not divide
        over the mesh in use, or a `Patch` holds a trace of another kind of run."""
        worlds, plan, dit = len(self.conditions.context), self.plan, self.model.config.dit
        sizes = {axis: mesh.devices(axis) for axis in mesh.AXES}
        check_turns(self.probe, seeds, self.together)
        sharding.check_runs(sizes, dit.heads, worlds=worlds, seeds=seeds, together=self.together)
        check_probe(self.probe, dit, plan.steps, (worlds, seeds, *self.conditions.grid))
        for part in all_parts(self.probe):
            if isinstance(part, Patch):
                model = self._digest if part.origin.model else ""
                sigmas = tuple(plan.schedule.sigmas[:-1].tolist())
                if apart := part.origin.apart(Origin(model, self.conditions.grid, sigmas)):
                    raise ValueError(f"Patch holds a trace of {apart}; store one of such a run")

    def observed(self, seeds: int) -> Any:
        """Return the shapes of what the probe observes in the blocks of a step and of its estimate.

        The program is traced. Raises as `check`, and ValueError where a method of the probe fails
        or returns something else than it has to."""
        self.check(seeds)
        if seeds in self._shapes:
            return self._shapes[seeds]
        cfg, count = self.model.config.dit, min(seeds, self.together or seeds)
        size = (len(self.conditions.context), count, *self.conditions.grid, cfg.out_channels)
        latent: Any = jax.ShapeDtypeStruct(size, jnp.float32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size[:2]))
        expert = jax.eval_shape(memory.on_device, self.model.experts[0])
        state = SolverState(latent, latent, latent, latent)
        step = (expert, self._steps[0][1], self.conditions, state, keys, self.probe)
        made = jax.eval_shape(_advance, *step)[1]
        self._shapes[seeds] = made.block_obs, made.estimate_obs
        return self._shapes[seeds]

    def inputs(
        self, seeds: Sequence[int], noise: Noise
    ) -> tuple[Key[Array, " K"], Float[Array, "K F h w C"] | None]:
        """Return the seeds' keys and `first_noise`; lay all inputs out over the mesh in use."""
        self._place()
        config = self.model.config
        first = first_noise(config, seeds, (*self.conditions.grid, config.dit.out_channels), noise)
        return sharding.place_inputs((seed_keys(seeds), first), mesh.SEED)

    def _place(self) -> None:
        self.conditions = sharding.place_inputs(self.conditions, mesh.WORLD)
        self.plan, self.probe = sharding.place_inputs((self.plan, self.probe))

    def _set(
        self,
        step: int,
        rows: np.ndarray,
        solver: SolverState,
        keys: Key[Array, "W K"],
    ) -> None:
        if not mesh.in_use():
            # As it is after a step, or the second would be compiled anew.
            device = next(iter(jax.tree.leaves(self.model.experts)[0].devices()))
            solver = jax.device_put(solver, device)
        self.state = State(step, rows, self, solver, keys)

    def release(self) -> None:
        """Let the expert that was brought to the device go; the next step brings it again."""
        self._expert = (-1, None)

    def of_video(self, tree: Any) -> Any:
        """Drop the world axis of leaves [W, K, …] where the condition was not stacked."""
        return _taken(tree, 0) if self.single else tree

    @cached_property
    def identity(self) -> dict[str, str]:
        """Digests of all that decides how the runs continue."""
        parts = {"condition": self.conditions, "plan": self.plan, "probe": self.probe}
        return {"model": self._digest} | {name: digest(part) for name, part in parts.items()}

    @cached_property
    def _digest(self) -> str:
        """Return that of the model; nothing where weights have no values, or not yet."""
        weights = jax.tree.leaves(self.model.experts)
        known = isinstance(weights[0], jax.Array) and not isinstance(weights[0], Tracer)
        return model_digest(self.model) if known else ""

    def __next__(self) -> State:
        before = self.state
        assert before is not None
        step = before.step + 1
        if step >= self.plan.steps:
            self._expert = (-1, None)
            raise StopIteration
        number, one = self._steps[step]
        if number != self._expert[0]:
            jax.block_until_ready(before.solver)  # or the next expert comes while this one works
            self._expert = (-1, None)
            self._expert = (number, memory.on_device(self.model.experts[number]))
        expert = self._expert[1]
        solver, trace = trajectory.in_turns(
            lambda state, keys: _advance(expert, one, self.conditions, state, keys, self.probe),
            before.solver,
            before.keys,
            self.together,
        )
        step_done(solver, before.rows.size * (1 if self.plan.guidance is None else 2))
        trajectory.check_finite(trace, step=step, steps=self.plan.steps)
        self.state = State(step, before.rows, self, solver, before.keys, trace)
        return self.state


@jax.jit
def _taken(tree: Any, at: Any) -> Any:
    """Return the leaves [W, K, …] at places ([W, 1], [W, k]), or of one world."""
    return jax.tree.map(lambda a: a[at], tree)


@jax.jit
def _beside(tree: Any, other: Any) -> Any:
    """Return the leaves [W, K, …] of both, those of the other behind."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), tree, other)


@jax.jit
def _fresh(
    keys: Key[Array, "W K"], time: UInt32[Array, ""], number: UInt32[Array, "W K"]
) -> Key[Array, "W K"]:
    """Return the keys, those of copies (number above 0) new ones."""
    drawn = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, time)
    drawn = jax.vmap(jax.vmap(jax.random.fold_in))(drawn, number)
    bits = (jax.random.key_data(k) for k in (keys, drawn))
    return jax.random.wrap_key_data(jnp.where((number == 0)[..., None], *bits))


@partial(programs.jit, static_argnames=("config", "count"))
def _begin(
    config: WanConfig,
    conditions: Condition,
    keys: Key[Array, " K"],
    noise: Float[Array, "K F h w C"] | None,
    count: int,
    temperature: Float[Array, ""] | None,
) -> tuple[SolverState, Key[Array, "W count"]]:
    """Return first states and keys. keys, noise: of `count` runs, for all worlds or for one after
    the other."""
    noise, keys = trajectory.draw(config.dit, conditions, keys, noise)
    noise = noise if temperature is None else temperature * noise

    def of_worlds(a: Array) -> Array:
        rows = a.reshape(-1, count, *a.shape[1:])
        return jnp.broadcast_to(rows, (len(conditions.context), *rows.shape[1:]))

    return trajectory.begin(config.numerics, conditions, of_worlds(noise)), of_worlds(keys)


_advance = programs.jit(trajectory.advance)


def steps(
    model: Wan,
    condition: Condition,
    seeds: Seeds = (0,),
    *,
    probe: Probe | None = None,
    sampling: Sampling | None = None,
    sigmas: Sequence[float] | np.ndarray | None = None,
    noise: Noise = None,
    start: Path | str | None = None,
    together: int | None = None,
) -> Runs:
    """Iterate over the runs' `State` after every denoising step; each is one call of a compiled
    program that serves all steps and both experts.

    condition: of one video, or stacked with a leading world axis. seeds: one run each; 3 is [3].
    Worlds share them and their noise, unless there is a row of them for each world.
    sampling: by default the model's. sigmas: explicit noise levels (or timesteps: numbers above 1)
    in place of its grid. noise: as in `first_noise`. start: a file of `State.save` to continue
    from, with its seeds and noise. together: seeds that are denoised at a time, by default all;
    fewer need less memory, and the videos are the same.
    A caller may read a state, continue fewer runs (`keep`) or copies (`branch`), write it (`save`),
    or stop. Offloaded weights (`load`, resident) are on the device only for the steps of their
    expert. Raises ValueError, IndexError or TypeError, before anything runs, where the probe does
    not fit (`Runs.observed`), and FloatingPointError as soon as no run is finite.
    """
    runs = Runs(model, condition, probe, sampling, sigmas, together)
    if start is not None:
        runs.load(start)
    else:
        runs.begin(seeds, noise)
    return runs
