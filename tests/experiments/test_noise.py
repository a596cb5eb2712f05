"""Noise at every position: laws that hold for any model."""

import jax
import numpy as np
import pytest

from jcos.experiments.noise import (
    FRAME,
    FRAME_LEVEL,
    MATCHED,
    NONE,
    STEP,
    Case,
    Noise,
    contrasts,
    matching_strength,
    probe_of,
    with_cleanup,
)
from jcos.experiments.samples import Samples
from jcos.generation import generate
from jcos.lab.results import IDEAL, of_kind
from jcos.wan import Wan

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

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


def test_dataset_table_and_figures_are_complete(data, rows) -> None:
    dataset, programs = data
    assert programs == 2, "one of the model and one of the ideal denoiser"
    cases = 1 + 2 * (2 + 2) + 2 + 1
    assert {"step 2, frame 4", "step 1, all frames, strength 0.50"} < set(dataset["case"].values)
    assert dataset["score"].sizes == {"case": cases, "denoiser": 2, "puzzle": 3, "seed": 1}
    assert [name for name, _ in SMALL.figures(dataset)] == ["step"]
    row = rows["maze", "solved", "no noise"]
    assert (row.value, row.n, row.forwards, row.still) == (0, 3, 4, 0)
    assert rows["maze", "score after clean-up", "step 3, all frames"].forwards == 6
    assert ("maze", "agreement", "no noise") not in rows  # this model solves nothing
    assert dataset["score"].attrs["ancillary_variables"] == "chance_score still_score"


def test_the_ideal_denoiser_ends_right_whatever_noise_it_meets(data, rows) -> None:
    """Also where noise comes in the last step: the puzzle's answers are all that it knows."""
    ideal = data[0].sel(denoiser=IDEAL)
    assert ideal["solved_clean"].values.all()
    assert ideal["agreement"].sel(case="no noise").values.tolist() == [[1.0]] * 3
    case = "step 3, all frames, ideal denoiser"
    assert rows["maze", "solved after clean-up", case].value == 1
    assert rows["maze", "solved", case].forwards == 0


def test_a_frame_less_a_step_is_paired_run_by_run(data) -> None:
    less = data[0]["score_others_less"]
    assert less["contrast"].values.tolist() == ["full strength"]  # 5 frames in 4 steps
    named = [MATCHED if kind == FRAME_LEVEL else kind for kind in data[0]["kind"].values]
    both = contrasts(data[0].assign_coords(kind=("case", named)))["score_others_less"]
    for contrast, kind in (("full strength", FRAME), ("same energy", FRAME_LEVEL)):
        frame, step = (of_kind(data[0], k)["score_others"].mean("case") for k in (kind, STEP))
        np.testing.assert_allclose(both.sel(contrast=contrast), frame - step)
    assert less.attrs["valid_min"] == -1
    assert [case.kind for case in SMALL.cases(5, 5)][-2:] == [MATCHED] * 2


def test_no_noise_is_the_plain_run(small_model: Wan) -> None:
    samples = Samples.of_tasks(small_model, ("maze",), 1)
    condition = jax.tree.map(lambda a: a[0, 0], samples.conditions)
    plain = generate(small_model, condition).latents
    none, last = (probe_of(case, 4, 5, 0) for case in (Case(NONE), Case(STEP, step=3)))
    np.testing.assert_allclose(
        generate(small_model, condition, probe=none).latents, plain, atol=2e-4
    )
    moved = generate(small_model, condition, probe=last).latents - plain
    assert np.abs(moved).max() > 0.1


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


@pytest.mark.parametrize(("steps", "frames"), [(50, 5), (20, 5), (5, 5)])
def test_matched_noise_injects_the_energy_of_one_step(steps: int, frames: int) -> None:
    r = matching_strength(steps, frames)
    x, noise = np.random.default_rng(0).normal(size=(2, 400_000))
    moved = np.mean((np.sqrt(1 - r**2) * x + r * noise - x) ** 2)
    full = np.mean((noise - x) ** 2)
    assert steps * moved == pytest.approx(frames * full, rel=0.02)
