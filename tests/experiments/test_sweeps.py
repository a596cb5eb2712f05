"""Many puzzles as one program: pairing, order, scores."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from jcos.devices.mesh import AXES, SEQUENCE
from jcos.experiments import memory, sweeps
from jcos.experiments.sweeps import (
    conditions_of,
    held_out,
    one_world,
    pixels,
    play,
    read_latents,
    score,
    sweep,
)
from jcos.lab.tasks import TASKS
from jcos.sampling import flow
from jcos.sampling.probes import InWorlds, Noise, Probe, States
from jcos.sampling.trajectory import Condition
from jcos.wan import Wan
from tests.conftest import compilations

MAZE = TASKS["maze"]


@pytest.fixture(scope="module")
def runs(small_model: Wan) -> Condition:
    """The conditions of two mazes, in one world each."""
    return one_world(conditions_of(small_model, held_out(MAZE, 2)))


def noises(*steps: int) -> list[Noise]:
    return [Noise.at_steps(4, MAZE.frames, [s]) for s in steps]


@pytest.mark.slow
def test_a_run_does_not_depend_on_what_runs_beside_it(small_model: Wan, runs: Condition) -> None:
    """Other puzzles, seeds and probes; or a world, which shares its noise."""
    puzzles, probes = held_out(MAZE, 3), [Noise.at_steps(4, MAZE.frames, ()), *noises(1)]
    many = play(small_model, puzzles, (0, 3), probes=probes, keep=(0, 3))
    assert many.x0.shape == (2, 3, 2, 2, 5, 10, 10, 12)
    one = play(small_model, puzzles[:1], (3,), probes=probes[:1], keep=(0, 3))
    np.testing.assert_allclose(one.x0[0, 0, 0], many.x0[0, 0, 1], atol=2e-4)
    np.testing.assert_allclose(many.x0[0, :, :, 0], many.x0[1, :, :, 0], atol=2e-4)
    assert np.abs(np.asarray(many.latents[0] - many.latents[1])).max() > 0.1
    both = jax.tree.map(lambda a: jnp.concatenate([a, a], axis=1), runs)
    worlds = [InWorlds(probes[1], jnp.array([False, True]))]
    ends = sweep(small_model, both, (0, 3), probes=worlds).latents
    np.testing.assert_allclose(ends[0].swapaxes(0, 1), many.latents[:, :2], atol=2e-4)


def test_score_judges_what_is_decoded(small_model: Wan) -> None:
    """References as latents are solved, on the axes they came in; noise is not."""
    puzzles = held_out(MAZE, 2)
    right = jnp.stack([small_model.encode(MAZE.routes(p)[0]) for p in puzzles])
    latents = jnp.stack([right, jnp.zeros_like(right)], axis=1)
    scores, solved = score(small_model, puzzles, latents)
    np.testing.assert_array_equal(solved, [[True, False]] * 2)
    np.testing.assert_allclose(scores, [[1, 0]] * 2)


@pytest.mark.slow
def test_a_sweep_is_one_program_whatever_its_chunks(small_model: Wan) -> None:
    runs = one_world(conditions_of(small_model, held_out(MAZE, 3)))
    before, calls = compilations(), []

    def chunked(*steps: int, chunk: int = 2) -> np.ndarray:
        probes, progress = noises(*steps), lambda *call: calls.append(call)
        told = {"what": "x", "progress": progress}
        return sweep(small_model, runs, probes=probes, chunk=chunk, **told).latents

    chunked(0, 1, 2)
    assert (calls[0], calls[-1], compilations()) == (("x", 0, 9), ("x", 9, 9), before + 1)
    pieces = chunked(2, 3, 1)
    assert compilations() == before + 1
    whole = chunked(2, 3, 1, chunk=100)
    assert compilations() == before + 2
    np.testing.assert_allclose(pieces, whole, atol=2e-4)
    assert whole.shape == (3, 3, 1, 1, 5, 10, 10, 12)


def test_each_puzzle_may_have_seeds_of_its_own(small_model: Wan, runs: Condition) -> None:
    def ends(seeds: Sequence[Any]) -> np.ndarray:
        return sweep(small_model, runs, seeds, readout=read_latents, alike=True)[0]

    before = compilations()
    each, fourth, fifth = ends([(4,), (5,)]), ends((4,)), ends((5,))
    assert compilations() == before + 1
    np.testing.assert_array_equal(each, [fourth[0], fifth[1]])
    assert np.abs(fourth - fifth).max() > 0.1


class Broken(Probe):
    """Breaks the second seed of the first puzzle."""

    first: jax.Array

    def on_block(self, site, tokens):
        here = (jax.lax.axis_index("seed") == 1) & self.first
        return jnp.where(here, jnp.nan, tokens), ()


@pytest.mark.slow
def test_what_is_not_finite_is_named_at_once(small_model: Wan, runs: Condition) -> None:
    """Not after all the others were computed, and with its block."""
    calls = []
    about = {"what": "watching", "progress": lambda *call: calls.append(call)}
    first = Broken(jnp.array([True, False]))
    broke = r"watching: .*puzzle \(or clip\) 0 with seed 7 .*step 0 of 4 on, first after block 0"
    with pytest.raises(FloatingPointError, match=broke):
        sweep(small_model, runs, (4, 7), item_probe=first, chunk=1, **about)
    assert calls == [("watching", 0, 2)]


def test_too_little_memory_says_what_helps(
    small_model: Wan, runs: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: trying to allocate 3.50GiB")

    monkeypatch.setattr(sweeps, "_play", full)
    helps = r"asked a device for 3.5 GiB.*\(1\) .*--set chunk=4\); \(2\) fewer than 2 seeds .*video"
    with pytest.raises(MemoryError, match=helps):
        sweep(small_model, runs, (0, 1), probes=noises(0, 1, 2, 3), chunk=8)


def test_what_is_observed_of_a_run_takes_memory_too(
    small_model: Wan, runs: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the states of four steps, also with the whole trace."""
    sizes = []
    monkeypatch.setattr(sweeps, "runs_that_fit", lambda *given: sizes.append(given[-1]))
    for probe in (Probe(), States()):
        with pytest.raises(TypeError):  # no number of runs
            sweep(small_model, runs, (0, 1), probes=[probe])
    states = 2 * 4 * 5 * 10 * 10 * 12 * 4
    assert sizes[1] == sizes[0] + 2 * states


def test_guided_runs_cost_twice_the_memory_and_too_much_is_refused(
    small_model: Wan, runs: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = flow.plan(small_model.config.sampling)
    guided = plan.replace(guidance=jnp.ones(1))
    stored, scores = memory.run_bytes(small_model, runs, 4)
    monkeypatch.setattr(memory, "free_bytes", lambda: 20 * (stored + scores))
    assert memory.runs_that_fit(small_model, runs, plan, 1, 1, 100, None) == 10
    assert memory.runs_that_fit(small_model, runs, guided, 1, 1, 100, None) == 5
    assert memory.runs_that_fit(small_model, runs, plan, 1, 1, 3, None) == 3
    more = stored + scores
    assert memory.runs_that_fit(small_model, runs, plan, 1, 1, 100, None, more) == 5
    assert memory.runs_that_fit(small_model, runs, plan, 1, 1, 100, 64) == 64
    monkeypatch.setattr(memory, "free_bytes", lambda: stored - 1)
    with pytest.raises(ValueError, match=r"one run of 2 worlds × 3 seeds × 4 steps needs about"):
        memory.runs_that_fit(small_model, runs, plan, 3, 2, 100, None)


def test_devices_of_a_mesh_share_the_memory_of_a_run(small_model, monkeypatch) -> None:
    """As many more runs fit as devices share a run, or make others."""
    given = Condition(jnp.zeros(0), (3, 16, 16))
    plan = flow.plan(small_model.config.sampling).replace(guidance=jnp.ones(1))
    monkeypatch.setattr(memory, "free_bytes", lambda: 2**30)
    monkeypatch.setattr(memory, "MOST", 10**6)

    def fitting(**sizes: int) -> tuple:
        shape = tuple(sizes.get(axis, 1) for axis in AXES)
        with jax.sharding.use_abstract_mesh(AbstractMesh(shape, AXES)):
            count = memory.runs_that_fit(small_model, given, plan, 2, 1, 10**6, None)
            return count, *memory.run_bytes(small_model, given, 4)

    one, stored, scores = fitting()
    for axis in ("seed", "branch", "world"):
        assert fitting(**{axis: 2})[0] == pytest.approx(2 * one, abs=1)
    assert fitting(seed=4)[0] == one  # two seeds do not divide
    for axis in SEQUENCE:
        _, less, fewer = fitting(**{axis: 4})
        assert fewer == scores / 4
        assert stored / 4 < less < stored


def test_pixels_are_what_decode_gives(small_model: Wan) -> None:
    latents = jax.random.normal(jax.random.key(0), (2, 5, 10, 10, 12))
    np.testing.assert_array_equal(pixels(small_model, latents), small_model.decode(latents))
