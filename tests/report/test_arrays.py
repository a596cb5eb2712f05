"""Arrays of more axes become maps: means by their declared axes, and the runs behind each."""

import numpy as np
import pytest

from jcos.report.arrays import Trends, trends
from jcos.report.maps import Axis, Map, of_runs, pack, unpack
from tests.report import folders

SAMPLING = {"sampling": {"steps": folders.STEPS}}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return folders.layered_arrays()


@pytest.fixture(scope="module")
def found(arrays: dict[str, np.ndarray]) -> Trends:
    return trends(arrays, SAMPLING | {"axes": folders.LAYERED}, pytest.fail)


def named(found: Trends, title: str) -> Map:
    return next(one for one in found.maps if one.title == title)


def test_energies_by_step_layer_and_frame(found: Trends, arrays: dict[str, np.ndarray]) -> None:
    energy = named(found, "token energy")
    whole = np.concatenate([arrays["maze_energy"], arrays["bounce_energy"]])
    assert [axis.name for axis in energy.axes] == ["task", "step", "layer", "frame"]
    assert energy.axes[0].labels == ["all", "maze", "bounce"]
    np.testing.assert_allclose(energy.values[0], whole.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(energy.values[2], arrays["bounce_energy"].mean((0, 1)), rtol=1e-5)
    assert energy.runs is not None
    run = energy.names.index("bounce, puzzle 0, seed 1")
    assert energy.tasks[run] == "bounce"
    np.testing.assert_allclose(energy.runs[..., run], arrays["bounce_energy"][0, 1], rtol=1e-5)


def test_probes_have_words_and_their_own_steps(
    found: Trends, arrays: dict[str, np.ndarray]
) -> None:
    decoded = named(found, "decoded")
    assert decoded.axes[1:] == [
        Axis("reading", ["answer", "choice"]),
        Axis("source", ["layer 0", "layer 1", "x̂0"]),
        Axis("step", folders.LOOKED),
    ]
    np.testing.assert_allclose(decoded.values[0], arrays["decoded"].mean((-1, -2)), rtol=1e-5)


def test_swaps_lie_where_they_are_made(found: Trends, arrays: dict[str, np.ndarray]) -> None:
    one, kept = named(found, "flipped (one)"), named(found, "flipped (kept up)")
    assert one.axes[1:] == [Axis("step", [0, 6]), Axis("layer", [0, 1, 2, 3])]
    assert kept.axes[1] == Axis("step", [11])
    case = (arrays["layer"] == 2) & (arrays["step"] == 6)
    assert one.values[0, 1, 2] == pytest.approx(arrays["flipped"][case].mean())
    reach = named(found, "reach (one)")
    names = [axis.name for axis in reach.axes]
    assert names == ["task", "changed step", "changed layer", "step"]
    np.testing.assert_allclose(reach.values[0, 1, 2], arrays["reach"][case].mean((0, 1, 2)))


def test_strengths_of_noise_are_an_axis() -> None:
    at = {"kind": np.array(["strength"] * 4), "step": np.array([0, 0, 5, 5])}
    at["strength"] = np.array([0.5, 1.0, 0.5, 1.0])
    score = np.arange(8.0).reshape(4, 2, 1)
    (one,) = trends(at | {"score": score}, SAMPLING).maps
    assert one.axes == [Axis("step", [0, 5]), Axis("strength", [0.5, 1.0])]
    np.testing.assert_array_equal(one.values, [[0.5, 2.5], [4.5, 6.5]])


def test_what_is_not_as_declared_is_said(arrays: dict[str, np.ndarray]) -> None:
    said: list[str] = []
    about = SAMPLING | {"axes": folders.LAYERED | {"decoded": "reading step puzzle"}}
    found = trends(arrays, about, said.append)
    wanted, shape = "reading step puzzle", (2, 3, 3, 3, 2)
    assert said == [f"decoded: its axes are to be {wanted}, its shape is {shape}."]
    assert named(found, "token energy")


def test_numbers_are_packed_in_sixteen_bits() -> None:
    values = np.array([[0.25, np.nan], [-3.0, 7.0]])
    np.testing.assert_allclose(unpack(pack(values)), values.ravel(), atol=10 / 65534)
    same = np.full(3, 0.3)
    np.testing.assert_array_equal(unpack(pack(same)), same)
    assert np.isnan(unpack(pack(np.full(2, np.nan)))).all()


def test_runs_that_are_too_many_are_kept_as_means() -> None:
    """Behind 40 × 40 × 5 × 2 × 100 values: words are cut to the first, numbers averaged."""
    rng = np.random.default_rng(0)
    values = rng.random((2, 40, 40, 5, 100)).astype(np.float32)
    axes = [Axis("part", ["all", "some"]), Axis("frame", range(40)), Axis("step", range(40))]
    found = of_runs("a", [*axes, Axis("layer", range(5))], values, [str(i) for i in range(100)])
    assert found.values.shape == (2, 40, 40, 5)
    assert found.runs is not None
    assert found.runs.shape == (1, 40, 40, 1, 100)
    np.testing.assert_allclose(found.runs[0, :, :, 0], values[0].mean(2), rtol=1e-5)
