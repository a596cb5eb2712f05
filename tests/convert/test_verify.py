"""`python -m convert.verify`: agreement on the tiny releases, and a fault named where it is."""

import contextlib
import json
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from convert import verify
from jcos.config import Numerics
from jcos.weights.released import open_released
from tests.conftest import GOLDEN
from tests.models import release_config

pytestmark = pytest.mark.filterwarnings("default")  # those of PyTorch's libraries are theirs
I2V, TI2V, T2V = "Wan2.2-I2V-A14B", "Wan2.2-TI2V-5B", "Wan2.1-T2V-1.3B"
LAYERS = release_config("i2v_low").dit.layers


def verified(name: str | Path, table: Path) -> list[dict]:
    """The rows of a table, of places that agree or not."""
    with contextlib.suppress(SystemExit):
        verify.main([str(GOLDEN / "ckpt" / name), "--json", str(table)])
    return json.loads(table.read_text())


def wrong(rows: list[dict]) -> set[str]:
    return {row["place"] for row in rows if not 0 <= row["error"] <= row["allowed"]}


@pytest.mark.slow
@pytest.mark.extra("verify")
def test_a_tiny_release_agrees(tmp_path, capsys):
    rows = verified(I2V, tmp_path / "table.json")
    assert wrong(rows) == set()
    places = {(row["part"], row["place"]) for row in rows}
    assert places >= {
        ("experts.1", place) for place in (*(f"block {i}" for i in range(LAYERS)), "head")
    }
    assert places >= {("solver", f"{name}, 10 steps") for name in ("UniPC", "DPM++", "Euler")}
    assert places >= {("text", "token embedding"), ("text", "final norm"), ("vae", "decode")}
    assert ("run", "3 steps, guidance") in places
    out = capsys.readouterr().out
    assert f"All {len(rows)} places agree." in out
    assert "The folder has no" not in out


@pytest.mark.slow
@pytest.mark.extra("verify")
def test_what_another_release_has_agrees(tmp_path, monkeypatch):
    """Its VAE, and a first frame that stays in place; and an expert cast to half precision, whose
    numbers both codes read alike: a bound without room for chance refused it."""
    against = import_module("convert.against")
    half = shutil.copytree(
        GOLDEN / "ckpt" / I2V, tmp_path / I2V, ignore=shutil.ignore_patterns("*.pth")
    )
    for file in half.rglob("*.safetensors"):
        tensors = safetensors.numpy.load_file(file)
        cast = {name: a.astype(np.float16) for name, a in tensors.items()}
        safetensors.numpy.save_file(cast, file)

    def rows(source):
        yield from against.vae(source, "vae")
        yield against.sampling_run(source, pinned=True)
        yield from against.expert(open_released(half), "experts.0")

    monkeypatch.setattr(against, "compare", rows)
    found = verified(TI2V, tmp_path / "table.json")
    assert len(found) > 3
    assert wrong(found) == set()


@pytest.mark.slow
@pytest.mark.extra("verify")
def test_every_block_that_differs_is_named(monkeypatch, tmp_path, capsys):
    """A weight of block 1 that jcos reads differently: the others are right by themselves. And a
    residual stream in bfloat16, the mistake that those rows alone can see; it errs the least of
    those that were made."""
    against = import_module("convert.against")
    right = against.ours

    def other(source, place, model, layer=None):
        made = right(source, place, model, layer)
        if layer == 1 and place == "experts.0.blocks":
            made.ffn.layers_0.kernel[...] *= 1.001
        return made

    monkeypatch.setattr(against, "compare", lambda source: against.expert(source, "experts.0"))
    monkeypatch.setattr(against, "ours", other)
    monkeypatch.setattr(against, "OFFICIAL", Numerics(linear="bfloat16", residual="bfloat16"))
    rows = verified(T2V, tmp_path / "new" / "table.json")
    out, err = capsys.readouterr()
    assert "The folder has no VAE" in out
    narrow = {row["place"] for row in rows if "bfloat16" in row["place"]}
    assert wrong(rows) == narrow | {"block 1"}
    assert re.search(
        r"first difference is at experts\.0, block 0, bfloat16: \d\.\d{3}e-03 .*, where \d\.\d{3}e",
        err,
    )


@pytest.mark.extra("verify")
def test_what_is_allowed_in_bfloat16_is_beyond_chance():
    """Root mean squares of independent errors that are the same by law, 1.03 apart as measured:
    never refused in 2,000 draws, at the width of the smallest release."""
    from convert.against import VALUES, allowed_in_bfloat16

    rng = np.random.default_rng(0)
    a, b = (np.sqrt((rng.standard_normal((2000, VALUES)) ** 2).mean(1)) for _ in range(2))
    allowed = np.array([allowed_in_bfloat16(each, VALUES) for each in b])
    assert (1.03 * a < allowed).all()
    assert allowed_in_bfloat16(1.0, VALUES) < 1.25  # what errs 1.35 times as much is found


def test_without_pytorch_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "convert.against", raising=False)
    with pytest.raises(SystemExit) as error:
        verify.main([str(GOLDEN / "ckpt" / T2V)])
    assert error.value.code == 2
    says = "diffusers is missing; install it: pip install 'jcos[lab,verify]'"
    assert says in capsys.readouterr().err


@pytest.mark.extra("verify")
def test_a_place_that_is_not_finite_is_no_success(monkeypatch, tmp_path):
    """And what is written is JSON."""
    from convert import against

    def rows(source):
        yield against.Row("solver", "one", float("nan"), 1.0)

    monkeypatch.setattr(against, "compare", rows)
    table = tmp_path / "table.json"
    with pytest.raises(SystemExit) as error:
        verify.main([str(GOLDEN / "ckpt" / T2V), "--json", str(table)])
    assert error.value.code == 1
    (row,) = json.loads(table.read_text(), parse_constant=pytest.fail)
    assert row["error"] is None


@pytest.mark.extra("verify")
def test_a_folder_that_cannot_be_read_ends_in_one_sentence(tmp_path, capsys):
    folder = tmp_path / "release"
    shutil.copytree(GOLDEN / "ckpt" / TI2V, folder)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(SystemExit) as error:
        verify.main([str(folder)])
    assert error.value.code == 2
    assert shard.name in capsys.readouterr().err
