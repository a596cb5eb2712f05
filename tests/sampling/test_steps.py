"""Laws of `jcos.steps`: the one loop over denoising steps."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcos
from jcos import files
from jcos.config import Sampling
from jcos.generation import generate
from jcos.loop import Runs, State, _advance, steps
from jcos.sampling import trajectory
from jcos.sampling.inside import KnockOut, Steer, until
from jcos.sampling.probes import Noise, chain
from tests.many_devices import finish, launch
from tests.models import CONFIG, FRAMES, STEPS, close, frame, randomised


def state_of(runs: Runs) -> State:
    """Return the state of runs that have begun."""
    assert runs.state is not None
    return runs.state


def to_the_end(runs: Runs) -> jax.Array:
    return [state.x for state in runs][-1]


# One probe and two or three seeds for all tests that any would do for: two programs.
PROBE = Noise.at_steps(STEPS, FRAMES, [3], strength=0.5)


@pytest.mark.slow
def test_runs_that_are_kept_end_as_if_they_had_never_shared_a_batch(model, condition) -> None:
    """With a solver that remembers steps, and a probe that draws from their keys."""
    sampling = model.config.sampling_with(solver="unipc")
    runs = steps(model, condition, (0, 1, 2), probe=PROBE, sampling=sampling)
    for state in runs:
        if state.step == 1:
            state.keep([2, 0])
    assert state_of(runs).seeds == (2, 0)
    want = generate(model, condition, (2, 0), probe=PROBE, sampling=sampling)
    close(state_of(runs).x, want.latents)


ELSEWHERE = """
import sys
import numpy as np
import tests.conftest
from tests.models import CONFIG, FRAMES, STEPS, frame, randomised
from jcos.loop import steps
from jcos.sampling.probes import Noise
model, probe = randomised(CONFIG), Noise.at_steps(STEPS, FRAMES, [3], strength=0.5)
condition = model.condition(frame(0), "left", FRAMES)
runs = steps(model, condition, probe=probe, start=f"{sys.argv[1]}/state")
np.save(f"{sys.argv[1]}/x", [state.x for state in runs][-1])
"""


@pytest.mark.slow
def test_a_state_goes_on_in_another_process(model, condition, tmp_path) -> None:
    """Of runs that were dropped, reordered and copied."""
    runs = steps(model, condition, (0, 1, 2), probe=PROBE)
    next(runs).keep([2, 0]).branch([1, 2]).save(tmp_path / "state")
    finish(launch("-c", ELSEWHERE, tmp_path, XLA_FLAGS=os.environ.get("XLA_FLAGS", "")))
    close(to_the_end(runs), np.load(tmp_path / "x.npy"))


@pytest.mark.slow
def test_branches_part_where_something_draws_from_their_keys(model, condition) -> None:
    before = Noise.at_steps(STEPS, FRAMES, [0], strength=0.5)

    def branched(probe: Noise) -> jax.Array:
        runs = steps(model, condition, (0, 1), probe=probe)
        for state in runs:
            if state.step == 1:
                assert state.branch([1, 2]).seeds == (0, 1, 1)
        return state_of(runs).x

    parted, same = branched(PROBE), branched(before)
    close(parted[:2], generate(model, condition, (0, 1), probe=PROBE).latents)
    assert float(jnp.abs(parted[2] - parted[1]).max()) > 0.1
    np.testing.assert_array_equal(same[2], same[1])


@pytest.mark.slow
def test_worlds_may_have_their_own_seeds_and_keep_their_own_runs(model, condition) -> None:
    worlds = trajectory.tree_stack([condition, model.condition(frame(1), "right", FRAMES)])
    runs = steps(model, worlds, [[0, 1, 2], [5, 6, 7]], probe=PROBE)
    for state in runs:
        if state.step == 1:
            with pytest.raises(ValueError, match="of 1 worlds were chosen; there are 2"):
                state.keep([[0, 1]])
            assert state.keep([[2, 0], [0, 1]]).seeds == ((2, 0), (5, 6))
    for world, seeds in enumerate(((2, 0), (5, 6))):
        one = jax.tree.map(lambda a, i=world: a[i], worlds)
        close(state_of(runs).x[world], generate(model, one, seeds, probe=PROBE).latents)
    for seeds in ([[0, 1], [2]], [[0], [1], [2]]):
        with pytest.raises(ValueError, match="2 world"):
            steps(model, worlds, seeds)


@pytest.mark.slow
def test_no_two_copies_draw_the_same(model, condition) -> None:
    """Also where runs are copied again and again."""
    runs = steps(model, condition, (0, 1), probe=PROBE)
    next(runs).branch(3).branch(2).take([0, 0, 6])
    assert state_of(runs).seeds == (0, 0, 1)
    next(runs).branch(2)
    keys = jax.random.key_data(state_of(runs).keys)[0]
    assert len(np.unique(keys, axis=0)) == 6


@pytest.mark.slow
def test_runs_join_behind_those_of_the_same_step(model, condition) -> None:
    runs, others, all_three = (
        steps(model, condition, seeds, probe=PROBE) for seeds in ((0, 1), (4,), (0, 1, 4))
    )
    first, other = next(others), next(others)
    with pytest.raises(ValueError, match="after step 1 cannot"):
        next(runs).join(other)
    assert first.step == 0
    next(runs).join(other)
    assert state_of(runs).seeds == (0, 1, 4)
    close(to_the_end(runs), to_the_end(all_three))


@pytest.mark.slow
def test_latents_can_be_moved_and_a_step_made_again(model, condition) -> None:
    runs = steps(model, condition, (0, 1), probe=PROBE)
    first = state_of(runs).solver.x
    for state in runs:
        if state.step == 2:
            break
    assert state_of(runs).move(first, step=0).sigma == 1.0
    with pytest.raises(ValueError, match="latents of step 4; there are steps −1 to 3"):
        state_of(runs).move(first, step=STEPS)
    state_of(runs).move(first, step=-1)
    assert [state.step for state in runs] == list(range(STEPS))
    close(state_of(runs).x, generate(model, condition, (0, 1), probe=PROBE).latents)
    state = next(steps(model, condition, (0, 1), probe=PROBE))
    before = state.solver
    moved = state.move(0.5 * before.x).solver
    close(moved.x, 0.5 * before.x)
    close(moved.corrected - before.corrected, moved.x - before.x)


def test_all_steps_are_one_program(model, condition) -> None:
    to_the_end(steps(model, condition, (0, 1)))
    programs = _advance._cache_size()  # type: ignore[attr-defined]
    to_the_end(steps(model, condition, (3, 4), sampling=Sampling(steps=7)))
    assert _advance._cache_size() == programs  # type: ignore[attr-defined]


def test_a_state_that_is_written_when_the_process_dies_is_the_one_before(
    model, condition, tmp_path, monkeypatch
) -> None:
    file = tmp_path / "state"
    runs = steps(model, condition, (0, 1), probe=PROBE)
    next(runs).save(file)
    before = file.read_bytes()

    def dies(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        next(runs).save(file)
    assert file.read_bytes() == before


@pytest.mark.slow
def test_a_state_of_something_else_is_refused(model, condition, tmp_path) -> None:
    file = tmp_path / "state"
    next(steps(model, condition, (0, 1), probe=PROBE)).save(file)
    others = {
        "model": dict(model=randomised(CONFIG, seed=7)),
        "condition": dict(condition=model.condition(frame(3), "left", FRAMES)),
        "plan": dict(sampling=Sampling(steps=STEPS, shift=2.0)),
        "probe": dict(probe=Noise.at_steps(STEPS, FRAMES, [2], strength=0.5)),
    }
    for what, other in others.items():
        call = dict(model=model, condition=condition, probe=PROBE, start=file) | other
        with pytest.raises(ValueError, match=what):
            steps(**call)
    file.write_bytes(file.read_bytes()[:-100])
    for named in (file, tmp_path / "none"):
        with pytest.raises(ValueError, match=f"{named}"):
            steps(model, condition, probe=PROBE, start=named)


def test_runs_that_are_not_there_cannot_be_kept(model, condition) -> None:
    runs = steps(model, condition, (0, 1))
    state = next(runs)
    for which in ([], [2], [-1], [0, 0]):
        with pytest.raises(ValueError, match=r"run"):
            state.keep(which)
    for which in ([True, False], np.array([False, True]), np.zeros(1), np.array(0)):
        with pytest.raises(ValueError, match="give their positions"):
            state.keep(which)
        with pytest.raises(ValueError, match="give their positions"):
            state.take(which)
    for copies in (0, [1], [1, -1], [1, 1, 1]):
        with pytest.raises(ValueError, match=r"run"):
            state.branch(copies)
    assert runs.state is state
    next(runs)
    with pytest.raises(ValueError, match="latest"):
        state.keep([0])


@pytest.mark.slow
def test_a_probe_that_tells_seeds_apart_lets_none_change_its_place(model, condition) -> None:
    steer = Steer.at(CONFIG, jnp.ones(CONFIG.dit.dim), [0], when=until([1, 2], STEPS))
    for probe in (steer, chain(KnockOut.at(CONFIG, "block", [0], by="seed"))):
        state = state_of(steps(model, condition, (0, 1), probe=probe)).take([0, 1])
        for which in ([1, 0], [0]):
            with pytest.raises(ValueError, match="tells seeds apart by their place"):
                state.keep(which)
        with pytest.raises(ValueError, match="tells seeds apart by their place"):
            state.join(state)


def test_explicit_sigmas_are_the_schedule(model, condition) -> None:
    runs = steps(model, condition, (0, 1), sigmas=(1000, 750, 500, 250))
    assert [state.sigma for state in runs] == [1.0, 0.75, 0.5, 0.25]
    straight = dataclasses.replace(CONFIG.sampling, shift=1.0)
    want = generate(model, condition, (0, 1), sampling=straight).latents
    close(state_of(runs).x, want)
    close(generate(model, condition, (0, 1), sigmas=(1, 0.75, 0.5, 0.25)).latents, want)


def test_a_run_of_which_nothing_is_finite_ends_at_once(model, condition) -> None:
    class Breaks(jcos.Probe):
        def on_estimate(self, site, x, x0):
            return jnp.where(site.step == 1, jnp.nan, x0), ()

    runs = steps(model, condition, (0, 1), probe=Breaks())
    next(runs)
    with pytest.raises(FloatingPointError, match="step 1 of 4"):
        next(runs)
