"""Every measurement runs at toy size. How long anything takes is nobody's promise here."""

import json
import os
import sys

import jax
import numpy as np
import pytest

from jcos.weights import checkpoint
from jcos.weights.names import DIT, translate
from scripts import benchmark
from scripts.benchmark import Lab, Row, quick_lab


@pytest.fixture(scope="module")
def lab() -> Lab:
    return quick_lab(repeat=1)


def groups(rows: list[Row]) -> list[int]:
    """Contenders per group; every one has its timing."""
    assert all(len(row.seconds) == 1 and row.seconds[0] > 0 for row in rows)
    names = [row.group for row in rows]
    return [names.count(name) for name in dict.fromkeys(names)]


@pytest.mark.slow
def test_one_video_and_many(lab):
    assert groups(benchmark.sample(lab)) == [2]


@pytest.mark.slow
def test_a_fresh_process_with_and_without_a_cache(lab):
    assert groups(benchmark.first_call(lab)) == [2]


@pytest.mark.slow
def test_one_program_for_all_noise_positions_does_what_the_loop_does(lab):
    rows = benchmark.noise_positions(lab)
    assert groups(rows) == [3]
    assert all(row.difference is not None and row.difference < 1e-4 for row in rows[1:])


def test_scanned_blocks_do_what_unrolled_ones_do(lab):
    *compiled, unrolled, scanned = benchmark.depth(lab)
    assert groups([*compiled, unrolled, scanned]) == [2, 2]
    assert unrolled.difference is None
    assert scanned.difference is not None
    assert scanned.difference < 1e-5


@pytest.mark.extra("verify")
@pytest.mark.filterwarnings("ignore")  # other people's deprecations
def test_diffusers_computes_the_same(lab):
    rows = benchmark.against_diffusers(lab)
    assert groups(rows) == [len({1, os.cpu_count()}) + 1] * 2
    ours = [row.difference for row in rows if row.contender == "jcos"]
    assert len(ours) == 2
    assert all(difference is not None and difference < 1e-4 for difference in ours)


def test_without_pytorch_its_part_is_left_out(lab, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert benchmark.against_diffusers(lab) == []
    assert "pip install -e '.[lab,verify]'" in capsys.readouterr().err


def test_the_original_names_lead_back_to_the_same_weights(lab):
    model = lab.model.experts[0]
    named = benchmark.original_tensors(model)
    named = {name: a[None] if "modulation" in name else a for name, a in named.items()}
    back = translate(named, DIT)
    want = checkpoint.leaves(model)
    assert back.keys() == want.keys()
    for path, leaf in want.items():
        np.testing.assert_array_equal(back[path], leaf)


def test_a_contender_that_does_something_else_is_refused(lab):
    contenders = {"one": lambda: jax.numpy.ones(2), "two": lambda: jax.numpy.full(2, 1.1)}
    with pytest.raises(AssertionError, match="not the same thing"):
        benchmark.race(lab, "numbers", contenders, tolerance=1e-3)


def test_the_table_compares_with_the_first_of_each_group():
    rows = [Row("a", "slow", [2.0, 4.0, 3.0]), Row("a", "fast", [1.0], 1e-6), Row("b", "x", [5.0])]
    *lines, _, where = benchmark.table(rows, {"CPU": "abacus"}).splitlines()
    assert lines[2:] == [
        "| a | slow | 3,000.0 | 2,000.0 – 4,000.0 | 1.00 |  |",
        "|  | fast | 1,000.0 | 1,000.0 – 1,000.0 | 3.00 | 1e-06 |",
        "| b | x | 5,000.0 | 5,000.0 – 5,000.0 | 1.00 |  |",
    ]
    assert where == "Medians of 3. CPU abacus"


def test_the_machine_is_described():
    about = benchmark.machine()
    assert about["cores"] >= 1
    assert about["CPU"]
    assert about["jax"] == jax.__version__
    json.dumps(about)
