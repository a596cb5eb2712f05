"""Features: known labels are found, a pushed run is pushed, and the whole experiment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.experiments.feature_study import SOURCES, _sums
from jcos.experiments.features import Features, endings
from jcos.experiments.sweeps import held_out
from jcos.lab.results import rows as rows_of
from jcos.lab.tasks import get

pytestmark = pytest.mark.slow  # the whole experiment, once for all tests

SMALL = Features(
    tasks=("maze", "rotation"),
    puzzles=4,
    steps=(0, 3),
    features=40,
    k=4,
    batch=64,
    updates=5,
    shown=4,
    steered=2,
    strengths=(1.0,),
)


def test_sums_give_the_correlation_within_frames() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 3, 4, 50, 5)).astype(np.float32)  # seeds, steps, frames, tokens
    labels, among = rng.random((2, 2, 4, 50)) < 0.3, rng.random((2, 2, 4, 50)) < 0.7
    z[..., 1] = labels[0][:, None] + 10 * np.arange(4)[None, None, :, None]  # frames apart
    sums = jax.tree.map(np.asarray, _sums(jnp.asarray(z), jnp.asarray(labels), jnp.asarray(among)))
    assert sums.correlation()[0, 1] == pytest.approx(1, abs=1e-3)
    a, b = [], []
    for k, s, f in np.ndindex(2, 3, 4):
        here = among[1, k, f]
        for values, out in ((z[k, s, f, here, 0], a), (labels[1, k, f, here], b)):
            out.extend(values - values.mean())
    assert sums.correlation()[1, 0] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-4)
    on, firing = (np.where(labels[1] & among[1], v, 0) for v in (z[:, 0, ..., 0], 1))
    some = jax.tree.map(np.asarray, _sums(jnp.asarray(z[:, :1]), labels, among))
    assert some.on[1, 0] == pytest.approx(on.sum(), rel=1e-3)
    assert some.counts[1, 0] == firing.sum()


def test_a_video_ends_with_the_answer_that_it_shows() -> None:
    task = get("maze")
    puzzle = next(p for p in held_out(task, 50) if len(p.answers) > 1)
    shown, solved = endings([puzzle], task.routes(puzzle)[None, :2])
    assert shown.tolist() == [[0, 1]]
    assert solved.all()


def test_dataset_table_and_figures_are_complete(data) -> None:
    dataset, _ = data
    assert dataset["explained"].shape[1:] == (1, 2, 4)
    assert (dataset["explained"] <= 1).all()
    assert dataset["foreground"].sizes["source"] == len(SOURCES)
    assert dataset["active"].sizes["feature"] == 4
    assert dataset["flipped"].dims == ("added", "strength", "pair")
    lines = {(row.task, row.measure, row.case) for row in rows_of(dataset)}
    assert ("maze", "variance explained", "step 3, principal components") in lines
    assert [name for name, _ in SMALL.figures(dataset)] == ["steered"]
