"""`python -m convert`: one sentence for every wrong input, and a full disk is no loss."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from convert import stream
from convert.__main__ import Arguments, main
from jcos.weights import checkpoint
from jcos.weights.loras import Lora
from tests.conftest import ROOT
from tests.convert.makers import ended
from tests.releases import I2V, T2V, TI2V, write_pth
from tests.releases import KOHYA as LORA


def test_a_folder_is_converted_and_reported(tmp_path, capsys):
    main([str(I2V), str(tmp_path / "out"), "--lora-high", str(LORA), "--only", "dit", "text"])
    written, lora, tokenizer = capsys.readouterr().out.splitlines()
    assert written.startswith(f"{tmp_path / 'out'}: wan2.2-i2v-a14b, experts.0, experts.1, text; ")
    assert lora == f"{LORA} into experts.0: 60 keys used, 0 of an image encoder skipped, 0 unused"
    assert "no tokenizer" in tokenizer
    assert checkpoint.read_manifest(tmp_path / "out", verify=True)["format"] == 2


def test_keys_that_have_no_place_are_named(tmp_path, capsys):
    lora = tmp_path / "lora.safetensors"
    known = safetensors.numpy.load_file(LORA)
    strange = {f"blocks.{i}.ffn.9.lora_A.weight": np.ones((4, 64), np.float32) for i in (0, 1)}
    safetensors.numpy.save_file({**known, **strange}, lora)
    out = tmp_path / "out"
    options = ["--lora-high", str(lora), "--allow-unused-lora", "--only", "dit"]
    main([str(I2V), str(out), *options])
    said = capsys.readouterr().out.splitlines()
    assert said[1].endswith("60 keys used, 0 of an image encoder skipped, 2 unused")
    assert said[2:4] == [f"  unused: {key}" for key in strange]
    (notes,) = checkpoint.read_manifest(out)["notes"]["lora"]
    assert notes["keys used"] == sorted(known)
    assert notes["keys unused"] == sorted(strange)


def test_every_option_reaches_the_job():
    chosen = Arguments(
        Path("a"),
        Path("b"),
        dtype="float32",
        only=("dit",),
        lora_high=(Path("x"), Path("y")),
        lora_high_scale=(0.5, 2.0),
        lora_low=(Path("z"),),
        allow_unused_lora=True,
    ).job()
    assert chosen.loras == (
        Lora(Path("x"), 0, 0.5),
        Lora(Path("y"), 0, 2.0),
        Lora(Path("z"), 1, 1.0),
    )
    assert (chosen.dtype, chosen.only, chosen.allow_unused) == ("float32", ("dit",), True)


def test_wrong_inputs_are_one_sentence(tmp_path, capsys):
    out = tmp_path / "out"
    assert str(tmp_path / "none") in ended(capsys, tmp_path / "none", out)
    assert "is no released checkpoint" in ended(capsys, tmp_path, out)
    assert ended(capsys, T2V, tmp_path) == f"{tmp_path} exists; remove it or choose another name"
    factors = ("--lora", LORA, "--lora-scale", "1", "2")
    assert ended(capsys, TI2V, out, *factors) == "2 factors are given for 1 LoRA file(s)"
    assert "of two say which one" in ended(capsys, I2V, out, "--lora", LORA)
    assert "does not fit the model in 20 places" in ended(capsys, TI2V, out, "--lora", LORA)
    assert "x.safetensors" in ended(capsys, I2V, out, "--lora-low", tmp_path / "x.safetensors")
    skip = tmp_path / "skip.safetensors"
    safetensors.numpy.save_file({"blocks.0.ffn.0.skip_proj.weight": np.ones((4, 4))}, skip)
    assert "is a Skip-LoRA" in ended(capsys, I2V, out, "--lora-low", skip)
    assert not out.exists()


def test_a_pth_with_code_is_refused_and_nothing_is_left(tmp_path, capsys):
    folder, mark = shutil.copytree(TI2V, tmp_path / "release"), tmp_path / "run"
    write_pth(folder / "Wan2.2_VAE.pth", f"cposix\nsystem\n(S'touch {mark}'\ntR.".encode())
    message = ended(capsys, folder, tmp_path / "out")
    assert "Wan2.2_VAE.pth" in message
    assert "system" in message
    assert list(tmp_path.iterdir()) == [folder]


def test_a_target_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert f"{tmp_path / 'file'} is a file" in ended(capsys, T2V, tmp_path / "file" / "out")


LIMITED = """
import resource, sys
from convert import stream
from convert.__main__ import main

stream.BUNDLE = 50_000
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_no_loss(tmp_path, monkeypatch):
    """The system refuses to let files grow; when it no longer does, the conversion goes on."""
    command = [sys.executable, "-c", LIMITED, str(T2V), str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600, text=True)
    assert result.returncode == 2, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("python -m convert: [Errno 27] File too large")
    assert last.endswith("when that is mended, the same command goes on where it stopped")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(stream, "BUNDLE", 50_000)
    main([str(T2V), str(tmp_path / "out")])
    checkpoint.read_manifest(tmp_path / "out", verify=True)
