"""The curves are measured at toy size, and their models are those of `jcos plan`."""

import numpy as np
import pytest

from jcos.plan import costs
from scripts import cost_curves
from scripts.cost_curves import QUICK, Lab, fitted, held, work
from scripts.pages import rewrite


def test_a_step_is_work_with_weights_and_of_attention():
    job = Lab().job(frames=4, seeds=3)
    call, linear, attention = work(job)
    assert call == 1.0
    assert linear + attention == costs.step_flops(job)
    assert attention == 6 * job.config.dit.layers * 4 * job.tokens**2 * job.config.dit.dim


def test_seeds_take_their_share_of_memory():
    one, many = (held(Lab().job(seeds=n)) for n in (1, 4))
    np.testing.assert_allclose(many, 4 * np.array(one))


def test_factors_are_found():
    terms = np.random.default_rng(0).uniform(1, 9, (8, 3)) * [1.0, 1e9, 1e12]
    factors = np.array([2.0, 3e-9, 0.0])
    found = fitted(terms.tolist(), (terms @ factors).tolist())
    np.testing.assert_allclose(found, factors, rtol=1e-6, atol=1e-15)


def test_the_page_keeps_what_is_around_the_tables(tmp_path):
    page = tmp_path / "page.md"
    rewrite(page, "a_script", "curves", "old\n")
    page.write_text(f"before\n{page.read_text()}after\n")
    rewrite(page, "a_script", "curves", "new\n")
    start, end = "<!-- curves: scripts/a_script.py -->", "<!-- end of curves -->"
    assert page.read_text() == f"before\n{start}\nnew\n{end}\nafter\n"


@pytest.mark.slow
def test_every_curve_is_measured():
    *rows, _, factors = cost_curves.sizes(QUICK).strip().splitlines()
    assert len(rows) == 2 + len(QUICK.frames) + len(QUICK.sides) + len(QUICK.seeds)
    assert factors.startswith("Time: ")
    looks = cost_curves.observed(QUICK).splitlines()[2:]
    for measured, model in (row.split("|")[3:5] for row in looks):
        assert abs(float(measured) - float(model)) <= 0.011  # megabytes, rounded


@pytest.mark.slow
def test_devices_are_simulated():
    rows = cost_curves.simulated(quick=True).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["one device", *QUICK.meshes[1:]]
    sent = [float(row.split("|")[6]) for row in rows]
    assert sent[0] == 0
    assert min(sent[1:]) >= 0
