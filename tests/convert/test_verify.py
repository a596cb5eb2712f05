"""`python -m convert.verify`: agreement on the tiny releases, and a fault named where it is."""

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
from tests.conftest import GOLDEN

RELEASES = {"Wan2.2-I2V-A14B": 33, "Wan2.2-TI2V-5B": 25, "Wan2.1-T2V-1.3B": 17}


@pytest.mark.extra("verify")
@pytest.mark.filterwarnings("default")  # those of PyTorch's libraries are theirs
@pytest.mark.parametrize("name", RELEASES)
def test_the_tiny_releases_agree(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = tmp_path / "table.json"
    verify.main([str(GOLDEN / "ckpt" / name), "--json", str(table)])
    rows = json.loads(table.read_text())
    assert len(rows) == RELEASES[name]
    assert all(0 <= row["error"] <= row["allowed"] for row in rows)
    places = {(row["part"], row["place"]) for row in rows}
    assert places >= {("experts.0", place) for place in ("block 0", "block 1", "head")}
    assert places >= {("solver", f"{name}, 10 steps") for name in ("UniPC", "DPM++", "Euler")}
    assert ("run", "3 steps, guidance") in places
    assert (("run", "3 steps, guidance, first frame") in places) == ("TI2V" in name)
    ends = {("text", "token embedding"), ("text", "final norm")}
    assert (places >= ends) == (name != "Wan2.1-T2V-1.3B")
    out = capsys.readouterr().out
    assert f"All {len(rows)} places agree." in out
    assert ("The folder has no VAE" in out) == (name == "Wan2.1-T2V-1.3B")


@pytest.mark.extra("verify")
@pytest.mark.filterwarnings("default")
def test_the_first_block_that_differs_is_named(monkeypatch, tmp_path, capsys):
    """A weight of block 1 that jcos reads differently: blocks 0 and 2 are right by themselves."""
    from convert import against

    right = against.ours

    def wrong(source, place, model, layer=None):
        made = right(source, place, model, layer)
        if layer == 1 and place == "experts.0.blocks":
            made.ffn.layers_0.kernel[...] *= 1.001
        return made

    monkeypatch.setattr(against, "ours", wrong)
    table = tmp_path / "new" / "table.json"
    with pytest.raises(SystemExit) as error:
        verify.main([str(GOLDEN / "ckpt" / "Wan2.1-T2V-1.3B"), "--json", str(table)])
    assert error.value.code == 1
    assert "The first difference is at experts.0, block 1" in capsys.readouterr().err
    rows = {row["place"]: row for row in json.loads(table.read_text())}
    beyond = {place for place, row in rows.items() if row["error"] > row["allowed"]}
    assert beyond - {"block 1, bfloat16"} == {"block 1", "all blocks, one after the other"}


@pytest.mark.extra("verify")
@pytest.mark.filterwarnings("default")
def test_a_release_cast_to_half_precision_agrees(tmp_path, capsys):
    """Whose numbers both codes read alike; a bound without room for chance refused it."""
    name = "Wan2.2-I2V-A14B"
    folder = tmp_path / name
    shutil.copytree(GOLDEN / "ckpt" / name, folder, ignore=shutil.ignore_patterns("*.pth"))
    for file in folder.rglob("*.safetensors"):
        tensors = safetensors.numpy.load_file(file)
        cast = {name: a.astype(np.float16) for name, a in tensors.items()}
        safetensors.numpy.save_file(cast, file)
    verify.main([str(folder)])
    assert "places agree." in capsys.readouterr().out


@pytest.mark.extra("verify")
@pytest.mark.filterwarnings("default")
def test_a_residual_stream_in_bfloat16_is_found_in_every_block(monkeypatch, tmp_path, capsys):
    """The mistake that only these rows can see; it errs the least of those that were made."""
    from convert import against

    monkeypatch.setattr(against, "OFFICIAL", Numerics(linear="bfloat16", residual="bfloat16"))
    table = tmp_path / "table.json"
    with pytest.raises(SystemExit):
        verify.main([str(GOLDEN / "ckpt" / "Wan2.2-I2V-A14B"), "--json", str(table)])
    rows = json.loads(table.read_text())
    wrong = {row["place"] for row in rows if row["error"] > row["allowed"]}
    assert wrong == {row["place"] for row in rows if "bfloat16" in row["place"]}
    assert re.search(r"bfloat16: \d\.\d{3}e-03 .*, where \d\.\d{3}e-03", capsys.readouterr().err)


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
        verify.main([str(GOLDEN / "ckpt" / "Wan2.1-T2V-1.3B")])
    assert error.value.code == 2
    says = "diffusers is missing; install it: pip install -e '.[lab,verify]' -c constraints.txt"
    assert says in capsys.readouterr().err


@pytest.mark.extra("verify")
def test_a_place_that_is_not_finite_is_no_success(monkeypatch, tmp_path, capsys):
    """And what is written is JSON."""
    from convert import against

    table = tmp_path / "new" / "table.json"

    def rows(source):
        yield against.Row("solver", "one", float("nan"), 1.0)

    monkeypatch.setattr(against, "compare", rows)
    with pytest.raises(SystemExit) as error:
        verify.main([str(GOLDEN / "ckpt" / "Wan2.1-T2V-1.3B"), "--json", str(table)])
    assert error.value.code == 1
    (row,) = json.loads(table.read_text(), parse_constant=pytest.fail)
    assert row["error"] is None


@pytest.mark.extra("verify")
@pytest.mark.filterwarnings("default")
def test_a_folder_that_cannot_be_read_ends_in_one_sentence(tmp_path, capsys):
    folder = tmp_path / "release"
    shutil.copytree(GOLDEN / "ckpt" / "Wan2.2-TI2V-5B", folder)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(SystemExit) as error:
        verify.main([str(folder)])
    assert error.value.code == 2
    assert shard.name in capsys.readouterr().err


@pytest.mark.extra("verify")
def test_errors_are_relative_to_the_largest_value():
    torch = import_module("torch")
    from convert.against import relative

    assert relative(np.array([1.0, 4.0]), torch.tensor([1.0, 5.0])) == pytest.approx(0.2)
    assert np.isnan(relative(np.array([np.nan]), torch.tensor([1.0])))
