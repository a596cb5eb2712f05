"""Noise at every position: laws that hold for any model."""

import dataclasses

import numpy as np
import pytest

from jcos.experiments.experiment import Settings
from jcos.experiments.noise import Noise, look_at_ends, matching_strength, probe_of, with_cleanup
from jcos.experiments.noise_found import Case
from jcos.experiments.puzzles import compilations, finish, play, playing
from jcos.experiments.samples import Samples
from jcos.lab.tasks import TASKS
from jcos.wan import Wan

MAZE = TASKS["maze"]
SMALL = Noise(
    puzzles=3,
    several=True,
    steps=(0, 3),
    frames=(0, 4),
    map_steps=(2,),
    strengths=(0.5,),
    strength_steps=(1,),
    cleanup=2,
)


def test_all_positions_are_one_program_of_the_model_and_one_of_the_ideal(found) -> None:
    assert found[1] == 2


def test_arrays_table_and_figures_are_complete(found) -> None:
    findings, _ = found
    cases = 1 + 2 * (2 + 2) + 2 + 1 + 2
    assert findings.arrays["score"].shape == (cases, 3, 1)
    assert set(findings.figures) == {"step", "frame", "map", "strength", "compared"}
    rows = {(r.measure, r.case): r for r in findings.rows}
    row = rows["solved", "no noise"]
    assert (row.task, row.value, row.n, row.forwards, row.still) == ("maze", 0, 3, 4, 0)
    assert row.chance is not None
    assert rows["score after clean-up", "step 3, all frames"].forwards == 6
    assert rows["agreement", "no noise"].n == 0  # this model solves nothing
    assert ("score, at a frame less at a step", "same energy") in rows


def test_the_ideal_denoiser_ends_right_whatever_noise_it_meets(found) -> None:
    """Also where noise comes in the last step: the puzzle's answers are all that it knows."""
    arrays = found[0].arrays
    assert arrays["ideal_solved_after_clean-up"].all()
    assert arrays["ideal_agreement"][0].tolist() == [[1.0]] * 3
    rows = {(r.measure, r.case): r for r in found[0].rows}
    case = "step 3, all frames, ideal denoiser"
    assert (rows["solved after clean-up", case].value, rows["solved", case].forwards) == (1, 0)
    assert ("score, at a frame less at a step", "same energy, ideal denoiser") in rows


@pytest.mark.parametrize(
    ("left_out", "gone"),
    [
        ({"steps": (), "strengths": ()}, {"step", "compared", "strength"}),
        ({"frames": ()}, {"frame", "map", "compared"}),
        ({"map_steps": ()}, {"map"}),
    ],
)
def test_what_is_left_out_is_not_drawn(small_model: Wan, found, left_out, gone) -> None:
    findings = finish(dataclasses.replace(SMALL, **left_out).run(small_model))
    assert set(found[0].figures) - set(findings.figures) == gone
    assert all(np.isfinite(r.value) for r in findings.rows if "less" in r.measure)


def test_no_noise_is_the_plain_run(small_model: Wan, found) -> None:
    """What stands first in the sweep is what sampling without any probe gives."""
    samples = Samples.of_tasks(small_model, ("maze",), 3, several=True)
    probes = [probe_of(Case("none"), 4, 5, 2), probe_of(Case("step", step=3), 4, 5, 2)]
    ends = finish(
        playing(
            small_model,
            samples.given,
            probes=probes,
            plan=with_cleanup(SMALL, small_model),
            look=look_at_ends,
            beside=(None, np.full(3, 3, np.int32)),
        )
    )
    plain = play(small_model, MAZE, samples.puzzles)
    np.testing.assert_allclose(ends.raw[0], plain.latents[0], atol=2e-4)
    assert np.abs(ends.raw[1] - ends.raw[0]).max() > 0.1
    assert np.abs(ends.clean[0] - ends.raw[0]).max() > 0.01
    assert found[0].arrays["distance"][0].max() == 0


def test_clean_up_takes_the_run_up_again_at_the_level_of_its_last_steps(small_model: Wan) -> None:
    plan, plain = with_cleanup(SMALL, small_model), SMALL.plan(small_model.config)
    sigmas = np.asarray(plain.schedule.sigmas)
    np.testing.assert_array_equal(plan.schedule.sigmas, [*sigmas[:4], *sigmas[2:]])
    probe = probe_of(Case("frame", frame=1), 4, 5, 2)
    assert probe.renoise is not None
    want = np.zeros((6, 5))
    want[:4, 1] = want[4] = 1
    np.testing.assert_array_equal(probe.mask, want)
    np.testing.assert_array_equal(probe.renoise, [[False] * 5] * 4 + [[True] * 5] + [[False] * 5])


@pytest.mark.parametrize(("steps", "frames"), [(50, 5), (20, 5), (4, 5)])
def test_matched_noise_injects_the_energy_of_one_step(steps: int, frames: int) -> None:
    r = matching_strength(steps, frames)
    x, noise = np.random.default_rng(0).normal(size=(2, 400_000))
    moved = np.mean((np.sqrt(1 - r**2) * x + r * noise - x) ** 2)
    full = np.mean((noise - x) ** 2)
    if frames <= steps:
        assert steps * moved == pytest.approx(frames * full, rel=0.02)
    else:
        assert r == 1


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"steps": (4,)}, IndexError, "step 4 is out of range: there are steps 0 to 3"),
        ({"frames": (5,)}, IndexError, "frame 5 is out of range"),
        ({"strengths": (0.0,)}, ValueError, "each is above 0"),
        ({"cleanup": 5}, ValueError, "cleanup is 5; it takes 0 to 4 steps"),
        ({"tasks": ("maze", "maze7")}, ValueError, "canvases of different sizes"),
        ({"tasks": ("chess",)}, ValueError, "there is no task 'chess'"),
        ({"tasks": ()}, ValueError, "tasks is empty"),
        ({"seeds": (1, 1)}, ValueError, "each once"),
        ({"seeds": ()}, ValueError, "at least one is needed"),
        ({"chunk": 0}, ValueError, "chunk is 0"),
        ({"sampling": Settings(steps=0)}, ValueError, "steps is 0"),
    ],
)
def test_what_cannot_be_run_is_refused_before(small_model: Wan, changes, error, said) -> None:
    before = compilations()
    with pytest.raises(error, match=said):
        finish(Noise(**{"puzzles": 2, "cleanup": 0, **changes}).run(small_model))
    assert compilations() == before
