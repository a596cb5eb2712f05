"""`python -m convert`: one sentence for every wrong input, and a full disk is no loss."""

import numpy as np
import pytest
import safetensors.numpy

from convert import stream
from convert.__main__ import main
from jcos.weights import checkpoint
from tests.convert.makers import ended
from tests.releases import I2V, T2V, TI2V
from tests.releases import KOHYA as LORA

USED = f"{len(safetensors.numpy.load_file(LORA))} keys used, 0 of an image encoder skipped, "


def test_a_folder_is_converted_and_reported(tmp_path, capsys):
    main([str(I2V), str(tmp_path / "out"), "--lora", f"high={LORA}"])
    written, lora, tokenizer = capsys.readouterr().out.splitlines()
    parts = "experts.0, experts.1, vae, text"
    assert written.startswith(f"{tmp_path / 'out'}: wan2.2-i2v-a14b, {parts}; ")
    assert lora == f"{LORA} into experts.0: {USED}0 unused"
    assert "no tokenizer" in tokenizer
    assert checkpoint.read_manifest(tmp_path / "out", verify=True)["format"] == 2


def test_options_reach_the_job_and_keys_without_a_place_are_named(tmp_path, capsys):
    lora = tmp_path / "lora.safetensors"
    known = safetensors.numpy.load_file(LORA)
    strange = {f"blocks.{i}.ffn.9.lora_A.weight": np.ones((4, 64), np.float32) for i in (0, 1)}
    safetensors.numpy.save_file({**known, **strange}, lora)
    out = tmp_path / "out"
    options = ["--lora", f"high={lora}:0.5", f"high={LORA}:2", f"low={LORA}"]
    options += ["--allow-unused-lora", "--dtype", "float32"]
    main([str(word) for word in (I2V, out, *options)])
    said = capsys.readouterr().out.splitlines()
    assert said[1].endswith(f"{USED}2 unused")
    assert said[2:4] == [f"  unused: {key}" for key in strange]
    notes = checkpoint.read_manifest(out)["notes"]
    assert notes["dtype"] == "float32"
    loras = notes["lora"]
    merged = [(one["file"], one["into"], one["scale"]) for one in loras]
    assert merged == [
        (lora.name, "experts.0", 0.5),
        (LORA.name, "experts.0", 2.0),
        (LORA.name, "experts.1", 1.0),
    ]
    assert loras[0]["keys used"] == sorted(known)
    assert loras[0]["keys unused"] == sorted(strange)


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


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_no_loss(tmp_path, monkeypatch, capsys):
    """When it takes more again, the same command goes on."""
    write_part, written = checkpoint.write_part, []

    def full(folder, name, values):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(name)
        return write_part(folder, name, values)

    monkeypatch.setattr(stream, "BUNDLE", 50_000)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_part", full)
        message = ended(capsys, T2V, tmp_path / "out")
    assert message.startswith("[Errno 28] No space left on device")
    assert message.endswith("when that is mended, the same command goes on where it stopped")
    assert not (tmp_path / "out").exists()
    main([str(T2V), str(tmp_path / "out")])
    checkpoint.read_manifest(tmp_path / "out", verify=True)
