"""Every measurement runs at toy size on a CPU. How long anything takes is nobody's promise here."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jcos.sampling.probes import TokenEnergy
from jcos.wan import Wan
from scripts import bench_gpu
from scripts.bench_gpu import Row, full_lab, table, verdicts
from tests.conftest import ROOT


def measured(part: str) -> dict[str, float]:
    """Rows of a part, in the process that it has for itself."""
    command = [sys.executable, bench_gpu.__file__, "--part", part, "--tiny"]
    out = subprocess.check_output(command, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    rows = [Row(*json.loads(line[4:])) for line in out.splitlines() if line.startswith("ROW ")]
    named = {row.what: row.value for row in rows if row.value is not None}
    assert np.isfinite(list(named.values())).all()
    assert len(named) == len(rows)
    return named


def test_an_image_with_jax_flax_and_torch_is_enough():
    """What the measurements do not need is imported nowhere on their way."""
    absent = dict.fromkeys(["av", "ftfy", "tyro", "torch", "diffusers", "transformers"])
    code = f"import sys; sys.modules.update({absent}); import scripts.bench_gpu"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_device_is_measured():
    rows = measured("device")
    assert rows["peak"] > 0
    assert rows["attention kernel is off by"] == 0.0  # xla against itself


@pytest.mark.slow
def test_jcos_is_measured():
    rows = measured("jcos")
    for size in ("480p", "720p"):
        assert rows[f"guided step, {size}"] > 0
        assert rows[f"working memory, {size}"] > 0
    for what in ("energy observation", "clean estimates", "first-step ensemble"):
        assert what in rows
    assert rows["3 seeds side by side"] > 0
    assert rows["an expert from the host"] > 0


@pytest.mark.slow
@pytest.mark.extra("verify")
def test_diffusers_is_measured():
    assert measured("diffusers")["diffusers, sdpa, guided step, 480p"] > 0


def test_full_size_is_that_of_the_release():
    lab = full_lab(experts=2)
    assert [lab.tokens(size) for size in lab.sizes] == [32760, 75600]
    # 1,678 and 6,524 TFLOP: counted by hand from the published sizes.
    np.testing.assert_allclose([lab.flops(s) / 1e12 for s in lab.sizes], [1678, 6524], rtol=2e-3)
    assert full_lab(experts=1).config.experts == 1


def test_the_parts_are_compared():
    rows = [
        Row("peak", 800.0, "TFLOP/s"),
        Row("forward pass, 480p, rate", 600.0, "TFLOP/s"),
        Row("guided step, 480p", 5.0, "s"),
        Row("diffusers, sdpa, guided step, 480p", 10.0, "s"),
        Row("diffusers, incomplete", None, "", "there was no time for the rest"),
    ]
    assert [(row.what, row.value) for row in verdicts(rows)] == [
        ("share of the peak, 480p", 75.0),
        ("speed-up over diffusers, sdpa, 480p", 2.0),
    ]
    *lines, _, where = table(rows, {"device": "abacus"}).splitlines()
    assert lines[-1] == "| diffusers, incomplete | – | there was no time for the rest |"
    assert lines[4] == "| guided step, 480p | 5 s |  |"
    assert where == "device abacus"


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_what_does_not_fit_is_a_row_and_the_rest_goes_on(monkeypatch, error):
    """A guided step of the larger size, and an intervention on the smaller."""

    def program(lab, model, size, *, seeds=1, probe=None, keep_x0=True):
        if size.name == "720p" or isinstance(probe, TokenEnergy):
            raise error
        return bench_gpu.Program(lambda: None, 1.0, 1.0, 1.0)

    def forward_pass(lab, model, size):
        yield Row(f"forward pass, {size.name}", 1.0, "s")

    def blank(config):
        model = jax.eval_shape(lambda: Wan(config, rngs=nnx.Rngs(0)))
        model.text = model.vae = None
        return jax.tree.map(lambda a: jnp.asarray(np.zeros(a.shape, a.dtype)), model)

    monkeypatch.setattr(bench_gpu, "random_model", blank)  # which takes long to compile
    monkeypatch.setattr(bench_gpu, "program", program)
    monkeypatch.setattr(bench_gpu, "forward_pass", forward_pass)
    rows = {row.what: row for row in bench_gpu.jcos_rows(bench_gpu.tiny_lab())}
    unfit = {what for what, row in rows.items() if row.note == "does not fit"}
    assert unfit == {"guided step, 720p", "energy observation"}
    assert all(rows[what].value is None for what in unfit)
    assert {"guided step, 480p", "clean estimates", "an expert from the host"} <= rows.keys()
    other = (Row("never", 1 / 0, "") for _ in "a")
    with pytest.raises(ZeroDivisionError):
        list(bench_gpu.fits("a mistake", other))


def test_a_part_that_ends_early_leaves_its_rows(monkeypatch, tmp_path, capsys):
    """Every part as a process that knows one row and then fails, or hangs."""
    fake = tmp_path / "fake.py"
    fake.write_text(
        "import json, os, sys, time\n"
        "assert os.environ['XLA_CLIENT_MEM_FRACTION'] == '0.92'\n"
        "part = sys.argv[sys.argv.index('--part') + 1]\n"
        "print('ROW ' + json.dumps([part, 1.0, 's', '']), flush=True)\n"
        "time.sleep(60) if part == 'jcos' else sys.exit(3)\n"
    )
    monkeypatch.setattr(bench_gpu, "__file__", str(fake))
    monkeypatch.setattr(bench_gpu, "find_spec", lambda name: None)
    monkeypatch.setattr(bench_gpu, "machine", dict)
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "")
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["bench_gpu", "--minutes", "0.05", "--out", str(out)])
    bench_gpu.main()
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert [(row["what"], row["note"]) for row in rows] == [
        ("device", ""),
        ("device, incomplete", "it ended with 3"),
        ("jcos", ""),
        ("jcos, incomplete", "there was no time for the rest"),
        ("diffusers", "not installed: pip install -e '.[lab,verify]'"),
    ]
    assert "| jcos, incomplete | – |" in capsys.readouterr().out
