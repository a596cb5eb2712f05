"""`python -m convert`: one sentence for every wrong input, and a full disk is no loss."""

import hashlib
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.numpy

from convert.__main__ import main
from jcos.weights import checkpoint
from tests.releases import I2V, T2V, TI2V
from tests.releases import KOHYA as LORA


def ended(capsys, *arguments: Path | str) -> str:
    """Return the one sentence of a command that is refused."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    assert end.value.code == 2
    start = "python -m convert: "
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith(start)]
    return line.removeprefix(start)


@pytest.mark.slow
def test_a_folder_is_converted_and_reported(tmp_path, capsys):
    release, lora, out = tmp_path / "release", tmp_path / "lora.safetensors", tmp_path / "out"
    shutil.copytree(I2V, release)
    known = safetensors.numpy.load_file(LORA)
    strange = {f"blocks.{i}.ffn.9.lora_A.weight": np.ones((4, 64), np.float32) for i in (0, 1)}
    safetensors.numpy.save_file({**known, **strange}, lora)
    options = ["--lora", f"high={lora}:0.5", f"high={LORA}:2", f"low={LORA}"]
    options += ["--allow-unused-lora", "--dtype", "float32"]
    main([str(word) for word in (release, out, *options)])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{out}: wan2.2-i2v-a14b, experts.0, experts.1, vae, text; ")
    used = f"{len(known)} keys used, 0 of an image encoder skipped, "
    assert said[1] == f"{lora} into experts.0: {used}2 unused"
    assert said[2:4] == [f"  unused: {key}" for key in strange]
    notes = checkpoint.read_manifest(out)["notes"]
    assert (notes["converted from"], notes["dtype"]) == ("release", "float32")
    assert re.fullmatch(r"jcos \d+\.\d+\.\d+.*", notes["by"])
    loras = notes["lora"]
    assert [(one["file"], one["into"], one["scale"]) for one in loras] == [
        (lora.name, "experts.0", 0.5),
        (LORA.name, "experts.0", 2.0),
        (LORA.name, "experts.1", 1.0),
    ]
    assert loras[0]["keys used"] == sorted(known)
    assert loras[0]["keys unused"] == sorted(strange)
    shard = release / "high_noise_model" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    name = shard.relative_to(release).as_posix()
    assert notes["sources"][name] == [shard.stat().st_size, digest]
    assert {f"lora/0/{lora.name}", "Wan2.1_VAE.pth"} <= notes["sources"].keys()


def test_wrong_inputs_are_one_sentence(tmp_path, capsys):
    out = tmp_path / "out"
    assert str(tmp_path / "none") in ended(capsys, tmp_path / "none", out)
    assert "is no released checkpoint" in ended(capsys, tmp_path, out)
    (tmp_path / "file").write_text("mine")
    assert ended(capsys, T2V, tmp_path) == f"{tmp_path} exists; remove it or choose another name"
    for target in (tmp_path / "file", tmp_path / "file" / "out"):
        assert f"{tmp_path / 'file'} is a file" in ended(capsys, T2V, target)
    assert "of a LoRA is 'two'" in ended(capsys, TI2V, out, "--lora", f"{LORA}:two")
    assert "of two say which one" in ended(capsys, I2V, out, "--lora", LORA)
    assert "does not fit the model in " in ended(capsys, TI2V, out, "--lora", LORA)
    assert "x.safetensors" in ended(capsys, I2V, out, "--lora", f"low={tmp_path}/x.safetensors")
    skip = tmp_path / "skip.safetensors"
    safetensors.numpy.save_file({"blocks.0.ffn.0.skip_proj.weight": np.ones((4, 4))}, skip)
    assert "is a Skip-LoRA" in ended(capsys, I2V, out, "--lora", f"low={skip}")
    assert not out.exists()


def test_a_disk_that_takes_no_more(tmp_path, monkeypatch, capsys):
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(checkpoint, "write_part", full)
    message = ended(capsys, T2V, tmp_path / "out")
    assert message.startswith("[Errno 28] No space left on device")
    assert message.endswith("when that is mended, the same command goes on where it stopped")
    assert not list(tmp_path.iterdir())
