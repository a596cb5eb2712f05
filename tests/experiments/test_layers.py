"""What tokens carry: laws that hold for any model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.experiments.experiment import Settings
from jcos.experiments.layerwise import Components, Layers, principal
from jcos.experiments.layerwise_decoded import Labels, auroc_within, decode, halves, labels_of
from jcos.experiments.layerwise_found import Part, Spread
from jcos.experiments.puzzles import compilations, finish, held_out
from jcos.experiments.samples import Samples
from jcos.generation import generate
from jcos.lab.tasks import TASKS
from jcos.sampling.probes import TokenFeatures, chain
from jcos.wan import Wan

SMALL = Layers(tasks=("maze", "pattern"), puzzles=12, looked=(0, 3), shown=(0.0, 1.0))


def test_all_tasks_are_one_program(found) -> None:
    assert found[1] == 1


def test_arrays_table_and_figures_are_complete(found) -> None:
    findings, _ = found
    arrays = findings.arrays
    assert arrays["maze_energy_by_frame"].shape == (12, 1, 4, 2, 5)
    assert arrays["maze_energy"].shape == (1, 2, 2, 125)
    assert arrays["pattern_components"].shape == (1, 2, 2, 125, 3)
    assert arrays["pattern_answer"].shape == (12, 1, 4, 25)
    assert arrays["pattern_decoded"].shape == (3, 4, 2, 12, 1)  # readings, sources, steps
    names = {"energy", "spread"}
    for i, kind in enumerate(("foreground", "answer", "choice")):
        told = np.isfinite([arrays[f"{task}_decoded"][i] for task in SMALL.tasks]).any()
        names |= {kind, f"{kind}-map"} if told else set()
        assert told or kind not in findings.figures
    assert names | {"maps-maze", "components-pattern"} <= set(findings.figures)
    rows = {(r.task, r.measure, r.case): r for r in findings.rows}
    assert len(rows) == len(findings.rows)
    row = rows["maze", "token energy", "step 3, layer 1"]
    assert row.value == pytest.approx(arrays["maze_energy_by_frame"][:, 0, 3, 1].mean(), rel=1e-5)
    assert (row.n, row.forwards, row.chance) == (12, 4, None)
    row = rows["pattern", "AUROC of foreground, by energy", "step 0, layer 0"]
    assert (row.forwards, row.chance) == (1, 0.5)
    assert arrays["pattern_ideal_answer"].shape == (2, 12, 1)
    shares = [
        rows["maze", "energy of a frame over that of all", f"layer 1, frame {f}"].value
        for f in range(5)
    ]
    assert np.mean(shares) == pytest.approx(1)


def test_components_are_those_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 20)) * np.array([9, 6, 4, *[0.5] * 17])
    x = (x - x.mean(0)).astype(np.float32)
    left, size, _ = np.linalg.svd(x, full_matrices=False)
    want = left[:, :3] * size[:3]
    found = np.asarray(principal(jnp.asarray(x)))
    signs = np.sign((found * want).sum(0, keepdims=True))
    np.testing.assert_allclose(found, want * signs, atol=0.02 * size[0])


def test_spread_knows_one_channel_and_all(small_model: Wan) -> None:
    """Observed in a run; the definitions, on the tokens themselves."""
    samples = Samples.of_tasks(small_model, ("maze",), 1)
    condition = jax.tree.map(lambda a: a[0, 0], samples.given)
    trace = generate(small_model, condition, probe=chain(Components((1,)), TokenFeatures((0, 1))))
    (scores, spread), tokens = trace.block_obs
    assert scores.shape == (1, 4, 1, 125, 3)
    x = np.asarray(tokens[0, 2, 1], np.float64)
    v = x.var(0)
    assert float(spread.channels[0, 2, 1]) == pytest.approx(
        v.sum() ** 2 / (v**2).sum() / 32, rel=1e-3
    )
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))
    assert float(spread.three[0, 2, 1]) == pytest.approx(values[-3:].sum() / values.sum(), rel=0.02)


def test_labels_are_what_is_drawn() -> None:
    puzzles = [p for p in held_out(TASKS["maze"], 12) if len(p.answers) == 1][:2]
    videos = np.stack([TASKS["maze"].routes(p)[:1] for p in puzzles])
    labels = labels_of(puzzles, videos, 4)
    assert labels.answer.shape == (2, 1, 4, 25)
    for puzzle, answer in zip(puzzles, labels.answer, strict=True):
        on_path = {5 * row + column for row, column in puzzle.answers[0]}
        assert set(np.flatnonzero(answer[0, -1])) == on_path
        assert answer[0, 0].sum() < answer[0, -1].sum()
    assert labels.foreground[labels.answer].all()
    assert not labels.contested.any()
    # Noise that leaves colours what they are changes no label.
    noisy = np.clip(videos + np.random.default_rng(0).normal(0, 8, videos.shape), 0, 255)
    again = labels_of(puzzles, noisy.astype(np.uint8), 4)
    np.testing.assert_array_equal(again.answer, labels.answer)


def test_contested_is_what_right_answers_differ_in() -> None:
    puzzle = next(p for p in held_out(TASKS["maze"], 40) if len(p.answers) == 2)
    video = TASKS["maze"].routes(puzzle)
    labels = labels_of([puzzle], video[None], 4)
    ways = [{5 * row + column for row, column in answer} for answer in puzzle.answers]
    for run, way in enumerate(ways):
        assert set(np.flatnonzero(labels.contested[0, run, -1])) == ways[0] ^ ways[1]
        assert set(np.flatnonzero(labels.answer[0, run, -1])) == way


def test_halves_share_no_identity() -> None:
    puzzles = held_out(TASKS["returns"], 30)
    half, identities = halves(puzzles)
    names = np.array([repr(p.identity) for p in puzzles])
    assert len(set(names)) == identities.max() + 1 < 30
    assert not set(names[half]) & set(names[~half])
    assert abs(half.mean() - 0.5) < 0.3


def made_up(told: float) -> tuple[np.ndarray, Labels]:
    """24 puzzles whose labels are read off features of 5 channels, as far as `told`."""
    rng = np.random.default_rng(0)
    answer = rng.random((24, 1, 2, 9)) < 0.3
    features = rng.normal(size=(24, 1, 1, 1, 18, 5)).astype(np.float32)
    features[..., 2] += told * answer.reshape(24, 1, 1, 1, 18)
    contested = rng.random(answer.shape) < 0.7
    return features, Labels(~answer, answer, contested)


@pytest.mark.parametrize(
    ("told", "least", "most"), [(0.0, 0.3, 0.7), (1.0, 0.65, 0.9), (9.0, 0.999, 1)]
)
def test_probes_tell_what_is_there_and_nothing_else(told, least, most) -> None:
    features, labels = made_up(told)
    blank = np.zeros((24, 1, 1, 2, 18, 3), np.float32)
    half = np.arange(24) % 2 == 1
    found = decode((features, blank), labels, half, 1e-3)
    assert found is not None
    assert found.own.shape == (3, 3, 1, 24, 1)
    for reading in (1, 2):
        assert least <= np.nanmean(found.own[reading, 0]) <= most
    np.testing.assert_allclose(found.own[0], found.own[1], atol=1e-6)  # one is the other's opposite
    assert 0.25 < np.nanmean(found.control[:, 0]) < 0.75
    blanks = found.own[:, 1:]
    np.testing.assert_allclose(blanks[np.isfinite(blanks)], 0.5)  # what does not vary tells nothing


def test_probes_are_read_on_the_other_half_only() -> None:
    """A label that only its own half could know is not told."""
    rng = np.random.default_rng(1)
    answer = rng.random((10, 1, 1, 9)) < 0.5
    features = np.zeros((10, 1, 1, 1, 9, 90), np.float32)
    for i in range(10):  # each token of each puzzle has a channel of its own
        features[i, 0, 0, 0, :, 9 * i : 9 * (i + 1)] = np.eye(9)
    blank = features[:, :, :, [0, 0], :, :1]
    half = np.arange(10) % 2 == 1
    labels = Labels(~answer, answer, np.ones_like(answer))
    found = decode((features, blank), labels, half, 1e-3)
    assert found is not None
    areas = found.own[:, 0]
    np.testing.assert_allclose(areas[np.isfinite(areas)], 0.5, atol=1e-6)
    assert decode((features, blank), labels, np.arange(10) < 4, 1e-3) is None


def test_auroc_within_a_frame_compares_no_frames() -> None:
    values = np.array([[0.1, 0.2, 0.3], [10.0, 11.0, 12.0], [5.0, 5.0, 5.0]])
    positive = np.array([[False, False, True], [True, False, False], [False, False, False]])
    assert auroc_within(values, positive, ~positive) == pytest.approx((1 + 0) / 2)
    assert np.isnan(auroc_within(values[2:], positive[2:], ~positive[2:]))
    assert auroc_within(values[2:], positive[:1], ~positive[:1]) == 0.5
    some = np.array([[True, False, False]] * 3)  # of the others, only the first of a frame counts
    assert auroc_within(values, positive, some & ~positive) == 1


def test_puzzles_of_one_identity_count_once() -> None:
    nothing = np.zeros((3, 1, 1, 1, 1))
    part = Part(nothing, nothing, nothing, Spread(nothing, nothing), identities=np.array([0, 1, 1]))
    found = part.estimate(np.array([[0.25], [0.5], [1.0]]))
    assert (found.mean, found.n) == (0.5, 2)
    assert part.estimate(np.array([[1.0], [np.nan], [np.nan]]))[::3] == (1.0, 1)
    assert part.estimate(np.full((3, 1), np.nan)).n == 0


@pytest.mark.slow
def test_clips_have_no_labels(model: Wan, clips) -> None:
    experiment = Layers(clips=clips, sampling=Settings(steps=4), looked=(0, 3), shown=(1,))
    before = compilations()
    found = finish(experiment.run(model))
    assert compilations() == before + 1
    layers = model.config.dit.layers
    assert found.arrays["clips_energy_by_frame"].shape == (2, 1, 4, layers, 3)
    assert found.arrays["clips_components"].shape[1:3] == (2, 1)
    assert not any("AUROC" in r.measure for r in found.rows)
    assert set(found.figures) == {"energy", "spread", "maps-clips", "components-clips"}
    assert max(r.forwards for r in found.rows) == 8  # with guidance, two a step


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"looked": (4,)}, IndexError, "step 4 is out of range: there are steps 0 to 3"),
        (
            {"shown": (20,)},
            IndexError,
            "layer 20 is out of range: .* 0 to 1 ",
        ),
        ({"looked": ()}, ValueError, "no step is chosen"),
        ({"penalty": 0.0}, ValueError, "penalty is 0.0; it is above 0"),
    ],
)
def test_what_cannot_be_run_is_refused_before(small_model: Wan, changes, error, said) -> None:
    before = compilations()
    with pytest.raises(error, match=said):
        finish(Layers(**{"puzzles": 2, **changes}).run(small_model))
    assert compilations() == before


def test_the_ideal_denoiser_is_asked_for_the_answer_and_the_choice() -> None:
    """Its change of each token, by frame: [steps, frames × tokens]."""
    change = np.array([[2, 1, 0, 2, 1, 0], [1, 1, 1, 1, 1, 1], [0, 1, 2, 2, 1, 0]], np.float32)
    answer = np.array([[True, False, False], [True, True, False]])[None, None]
    contested = np.array([[True, True, False], [False, False, False]])[None, None]
    nothing = np.zeros((1, 1, 1, 1, 1))
    part = Part(
        *(nothing[..., 0], nothing[..., 0], nothing, Spread(nothing[..., 0], nothing[..., 0])),
        ideal=change[None, None],
        labels=Labels(answer, answer, contested),
    )
    np.testing.assert_allclose(part.by_ideal("answer")[:, 0, 0], [1, 0.5, 0.5])
    np.testing.assert_allclose(part.by_ideal("choice")[:, 0, 0], [1, 0.5, 0])
