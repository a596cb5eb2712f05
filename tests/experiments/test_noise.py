"""Noise at every position: laws that hold for any model."""

import dataclasses

import numpy as np
import pytest

from jcos.experiments.experiment import Settings
from jcos.experiments.noise import (
    FRAME,
    MATCHED,
    NONE,
    STEP,
    Case,
    Noise,
    matching_strength,
    noise_scores,
    probe_of,
    read_ends,
    with_cleanup,
)
from jcos.experiments.samples import Samples
from jcos.experiments.sweeps import compilations, held_out, play, sweep
from jcos.lab.results import IDEAL, MODEL, of_kind
from jcos.lab.results import rows as rows_of
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


def test_all_positions_are_one_program_of_the_model_and_one_of_the_ideal(data) -> None:
    assert data[1] == 2


def test_dataset_table_and_figures_are_complete(data) -> None:
    dataset, _ = data
    cases = 1 + 2 * (2 + 2) + 2 + 1 + 2
    assert dataset["score"].sizes == {"case": cases, "denoiser": 2, "puzzle": 3, "seed": 1}
    names = {name for name, _ in SMALL.figures(dataset)}
    assert names == {"step", "frame", "map", "strength", "compared", "agreement"}
    rows = {(r.measure, r.case): r for r in rows_of(dataset)}
    row = rows["solved", "no noise"]
    assert (row.task, row.value, row.n, row.forwards, row.still) == ("maze", 0, 3, 4, 0)
    assert row.chance is not None
    assert 0 <= row.chance <= 1
    assert rows["score after clean-up", "step 3, all frames"].forwards == 6
    assert ("agreement", "no noise") not in rows  # this model solves nothing
    assert ("score, at a frame less at a step", "same energy") in rows


def test_the_ideal_denoiser_ends_right_whatever_noise_it_meets(data) -> None:
    """Also where noise comes in the last step: the puzzle's answers are all that it knows."""
    ideal = data[0].sel(denoiser=IDEAL)
    assert ideal["solved_clean"].values.all()
    assert ideal["agreement"].sel(case="no noise").values.tolist() == [[1.0]] * 3
    rows = {(r.measure, r.case): r for r in rows_of(data[0])}
    case = "step 3, all frames, ideal denoiser"
    assert (rows["solved after clean-up", case].value, rows["solved", case].forwards) == (1, 0)
    assert ("score, at a frame less at a step", "same energy, ideal denoiser") in rows


def test_a_frame_less_a_step_is_paired_run_by_run(data) -> None:
    score = data[0]["score_others"].astype(float)
    less = data[0]["score_others_less"]
    for contrast, kind in (("full strength", FRAME), ("same energy", MATCHED)):
        frame, step = (of_kind(data[0], k)["score_others"].mean("case") for k in (kind, STEP))
        np.testing.assert_allclose(less.sel(contrast=contrast), frame - step)
    assert score.sel(case="all steps, frame 4").attrs["valid_max"] == 1
    assert less.attrs["valid_min"] == -1


@pytest.mark.parametrize(
    ("left_out", "gone"),
    [
        ({"steps": (), "strengths": ()}, {"step", "compared", "strength", "agreement"}),
        ({"frames": ()}, {"frame", "map", "compared"}),
        ({"map_steps": ()}, {"map"}),
    ],
)
def test_what_is_left_out_is_not_drawn(small_model: Wan, data, left_out, gone) -> None:
    experiment = dataclasses.replace(SMALL, **left_out)
    less = experiment.run(small_model)
    every, some = ({name for name, _ in SMALL.figures(d)} for d in (data[0], less))
    assert every - some == gone
    assert np.isfinite(experiment.table(less)["value"]).all()


def test_no_noise_is_the_plain_run(small_model: Wan, data) -> None:
    """What stands first in the sweep is what sampling without any probe gives."""
    samples = Samples.of_tasks(small_model, ("maze",), 3, several=True)
    probes = [probe_of(Case(NONE), 4, 5, 2), probe_of(Case(STEP, step=3), 4, 5, 2)]
    ends = sweep(
        small_model,
        samples.conditions,
        probes=probes,
        plan=with_cleanup(SMALL, small_model),
        readout=read_ends,
        aux=(None, np.full(3, 3, np.int32)),
    )
    plain = play(small_model, MAZE, samples.puzzles)
    np.testing.assert_allclose(ends.raw[0], plain.latents[0], atol=2e-4)
    assert np.abs(ends.raw[1] - ends.raw[0]).max() > 0.1
    assert np.abs(ends.clean[0] - ends.raw[0]).max() > 0.01
    assert data[0]["distance"].sel(case="no noise", denoiser=MODEL).max() == 0


@pytest.mark.slow
def test_scores_of_the_demo_have_their_axes(small_model: Wan) -> None:
    scores = noise_scores(small_model, MAZE, held_out(MAZE, 2), (0, 2))
    assert [a.shape for a in scores] == [(2,), (2, 2), (2, 5)]


def test_clean_up_takes_the_run_up_again_at_the_level_of_its_last_steps(small_model: Wan) -> None:
    plan, plain = with_cleanup(SMALL, small_model), SMALL.plan(small_model.config)
    sigmas = np.asarray(plain.schedule.sigmas)
    np.testing.assert_array_equal(plan.schedule.sigmas, [*sigmas[:4], *sigmas[2:]])
    probe = probe_of(Case(FRAME, frame=1), 4, 5, 2)
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
        Noise(**{"puzzles": 2, "cleanup": 0, **changes}).run(small_model)
    assert compilations() == before
