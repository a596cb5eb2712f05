"""Checkpoint folders: bit-equal round trips, every damage one sentence, whole or not there."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from jcos.config import DiTConfig, PixelCodec, Sampling, WanConfig, Words, to_json
from jcos.wan import Wan, load
from jcos.weights import checkpoint
from jcos.weights.checkpoint import (
    CheckpointError,
    leaves,
    read_config,
    read_manifest,
)
from tests.conftest import ROOT, parameter_count
from tests.releases import edit

CONFIG = WanConfig(
    "test",
    DiTConfig(dim=8, ffn_dim=8, heads=2, layers=2, in_channels=28, out_channels=12, text_dim=4),
    PixelCodec(),
    Words(("left", "right"), 4),
    Sampling(steps=3),
    image="concat",
)


def tree() -> dict[str, Any]:
    """Every type a model or a training state has, with values that do not survive any rounding."""
    key = jax.random.key(0)
    return {
        "wide": jax.random.normal(key, (3, 5)),
        "narrow": {"bfloat16": jax.random.normal(key, (7,)).astype(jnp.bfloat16)},
        "odd": jnp.array([np.inf, -0.0, 1e-42, np.nan], jnp.float32),
        "step": jnp.int32(7),
        "list": [jnp.arange(4, dtype=jnp.uint8), jnp.ones((1, 2))],
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A checkpoint of `tree`; copy it before you damage it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    checkpoint.save(folder, CONFIG, tree(), {"made": "by a test", "loss": 0.25})
    return folder


@pytest.fixture
def damaged(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "weights").rglob("*") if p.is_file() and p.stat().st_size)


def restored(folder: Path, abstract: Any = None) -> Any:
    read_manifest(folder)
    return checkpoint.restore(folder, jax.eval_shape(tree) if abstract is None else abstract)


# ---- round trips


def test_every_type_comes_back_bit_equal(saved):
    before, after = leaves(tree()), leaves(restored(saved))
    assert before.keys() == after.keys()
    for name, a in before.items():
        assert isinstance(after[name], jax.Array)
        assert (after[name].dtype, after[name].shape) == (a.dtype, a.shape), name
        assert np.asarray(after[name]).tobytes() == np.asarray(a).tobytes(), name


def test_a_whole_model_comes_back_from_its_folder_alone(tmp_path):
    model = Wan(CONFIG, rngs=nnx.Rngs(3))
    checkpoint.save(tmp_path / "model", CONFIG, model, {})
    back = load(tmp_path / "model")
    assert back.config == CONFIG
    assert jax.tree.structure(back) == jax.tree.structure(model)
    assert "experts.0.blocks.self_attn.q.kernel" in leaves(back)
    for name, a in leaves(model).items():
        np.testing.assert_array_equal(leaves(back)[name], a, err_msg=name)


def test_the_manifest_says_what_and_how(saved):
    manifest = read_manifest(saved)
    assert manifest["notes"] == {"made": "by a test", "loss": 0.25}
    assert read_config(manifest) == CONFIG
    assert {saved / name for name in manifest["files"]} == {
        p for p in (saved / "weights").rglob("*") if p.is_file()
    }


def test_a_folder_can_be_moved(saved, damaged):
    np.testing.assert_array_equal(restored(damaged)["wide"], restored(saved)["wide"])


def test_weights_take_the_models_type(saved):
    abstract = jax.eval_shape(lambda: {**tree(), "wide": jnp.zeros((3, 5), jnp.bfloat16)})
    back = restored(saved, abstract)
    assert back["wide"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(back["wide"], tree()["wide"].astype(jnp.bfloat16))


def test_restoring_makes_no_noise(saved, caplog, capfd):
    restored(saved)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_parameters_are_counted():
    assert parameter_count(tree()) == 15 + 7 + 4 + 1 + 4 + 2
    assert parameter_count(jax.eval_shape(tree)) == 33


# ---- damage


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_is_no_checkpoint(tmp_path, exists):
    folder = tmp_path / "pictures"
    if exists:
        folder.mkdir()
    with pytest.raises(CheckpointError) as error:
        load(folder)
    assert str(error.value) == f"{folder} is not a checkpoint folder: it lacks jcos.json"


def test_a_checkpoint_without_its_manifest(damaged):
    (damaged / "jcos.json").unlink()
    with pytest.raises(CheckpointError, match=r"is not a checkpoint folder: it lacks jcos\.json$"):
        restored(damaged)


@pytest.mark.parametrize(
    "text", ["", "{", '{"format": 1}', '{"files": {"a": 3}}', "[]", "null", "\x00\xff"]
)
def test_a_damaged_manifest(damaged, text):
    (damaged / "jcos.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError) as error:
        restored(damaged)
    where = damaged / "jcos.json"
    assert str(error.value) == f"{where} is damaged; restore the folder from its source"


@pytest.mark.parametrize("version", [0, 3, None])
def test_another_format(damaged, version):
    edit(damaged / "jcos.json", format=version)
    with pytest.raises(CheckpointError) as error:
        restored(damaged)
    assert str(error.value) == f"{damaged} has format {version}; known are 1 and 2"


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [None, lambda content: content[:-1], flip])
def test_the_damage_of_every_file_is_noticed(damaged, damage):
    """Missing, truncated, or with one bit of another value."""
    for file in weight_files(damaged):
        content = file.read_bytes()
        message = f"{file} is damaged: it is not what was written"
        if damage is None:
            file.unlink()
            message = f"{damaged} is incomplete: {file.relative_to(damaged)} is missing"
        else:
            file.write_bytes(damage(content))
        with pytest.raises(CheckpointError) as error:
            read_manifest(damaged)
        assert str(error.value) == message
        file.write_bytes(content)
    read_manifest(damaged)


def test_a_configuration_of_another_version(damaged):
    manifest = read_manifest(damaged)
    data = to_json(CONFIG)
    for config in (
        {**data, "colour": "red"},
        {k: v for k, v in data.items() if k != "dit"},
        {**data, "dit": {**data["dit"], "heads": 3}},
    ):
        with pytest.raises(
            CheckpointError,
            match=r"^the checkpoint's configuration cannot be read: ",
        ):
            read_config({**manifest, "config": config})
    with pytest.raises(CheckpointError, match="'config'"):
        read_config({key: value for key, value in manifest.items() if key != "config"})


def test_everything_that_does_not_fit_the_model_is_named_at_once(saved):
    other = {"wide": jnp.zeros((5, 3)), "new": jnp.zeros(2), "step": jnp.int32(0)}
    with pytest.raises(CheckpointError) as error:
        restored(saved, jax.eval_shape(lambda: other))
    assert str(error.value) == (
        "6 weights do not fit the model: "
        "list.0 has no place in the model; "
        "list.1 has no place in the model; "
        "narrow.bfloat16 has no place in the model; "
        "new is missing; "
        "odd has no place in the model; "
        "wide has shape (3, 5), the model wants (5, 3)"
    )


def test_wrong_shapes_alone_are_named_too(saved):
    other = {**tree(), "wide": jnp.zeros((5, 3)), "step": jnp.zeros(1, jnp.int32)}
    message = re.escape(
        "2 weights do not fit the model: step has shape (), the model wants (1,); "
        "wide has shape (3, 5), the model wants (5, 3)"
    )
    with pytest.raises(CheckpointError, match=f"^{message}$"):
        restored(saved, jax.eval_shape(lambda: other))


def test_a_checkpoint_error_is_a_value_error():
    assert issubclass(CheckpointError, ValueError)


# ---- folders in parts


LEAVES = {
    "experts.0.wide": np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32),
    "experts.0.narrow": np.arange(6).astype(ml_dtypes.bfloat16),
    "vae.scalar": np.array(2.5, np.float32),
    "vae.odd": np.array([np.inf, -0.0, 1e-42, np.nan], np.float32),
}


@pytest.fixture
def in_parts(tmp_path) -> Path:
    folder = tmp_path / "model"
    parts = {
        str(i): checkpoint.write_part(folder, str(i), {k: LEAVES[k] for k in names})
        for i, names in enumerate((list(LEAVES)[:1], list(LEAVES)[1:2], list(LEAVES)[2:]))
    }
    checkpoint.write_manifest(folder, CONFIG, {}, checkpoint.digests(folder), parts)
    return folder


def assert_bits(found: dict[str, Any], want: dict[str, np.ndarray]) -> None:
    assert found.keys() == want.keys()
    for name, a in want.items():
        assert (found[name].dtype, found[name].shape) == (a.dtype, a.shape), name
        assert np.asarray(found[name]).tobytes() == a.tobytes(), name


def test_a_folder_in_parts_comes_back_bit_equal(in_parts):
    stored = checkpoint.stored(in_parts)
    assert {k: (a.dtype, a.shape) for k, a in stored.items()} == {
        k: (a.dtype, a.shape) for k, a in LEAVES.items()
    }
    assert_bits(restored(in_parts, stored), LEAVES)
    assert read_config(read_manifest(in_parts)) == CONFIG


def test_what_is_stored_is_known_of_every_format(saved):
    assert {k: (a.dtype, a.shape) for k, a in checkpoint.stored(saved).items()} == {
        k: (a.dtype, a.shape) for k, a in leaves(tree()).items()
    }


def test_parts_are_restored_in_the_models_types(in_parts):
    narrow = {k: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for k, a in LEAVES.items()}
    found = restored(in_parts, narrow)
    for name, a in LEAVES.items():
        assert found[name].dtype == jnp.bfloat16
        rounded = a.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(found[name].astype(jnp.float32), rounded, err_msg=name)


@pytest.mark.parametrize("only", [["vae."], ["experts.0.narrow", "vae.odd"], ["vae.s"]])
def test_some_leaves_are_restored_alone(in_parts, only):
    """Parts without them need not even be there."""
    want = {k: a for k, a in LEAVES.items() if k.startswith(tuple(only))}
    shutil.rmtree(in_parts / "weights" / "0")
    shapes = {k: jax.ShapeDtypeStruct(a.shape, a.dtype) for k, a in want.items()}
    assert_bits(checkpoint.restore(in_parts, shapes, only=only), want)


def test_parts_are_restored_into_shards(in_parts):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("fsdp",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    found = checkpoint.restore(in_parts, checkpoint.stored(in_parts), {"experts.0.wide": sharding})
    assert found["experts.0.wide"].sharding == sharding
    assert_bits(found, LEAVES)


def test_misfits_of_a_folder_in_parts_are_named_before_anything_is_read(in_parts):
    shutil.rmtree(in_parts / "weights")
    shapes = {**checkpoint.stored(in_parts), "new": jax.ShapeDtypeStruct((2,), jnp.float32)}
    del shapes["vae.odd"]
    with pytest.raises(CheckpointError) as error:
        checkpoint.restore(in_parts, shapes)
    assert str(error.value) == (
        "2 weights do not fit the model: new is missing; vae.odd has no place in the model"
    )


def test_large_arrays_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK", 4096)
    a = np.random.default_rng(0).standard_normal((8, 32, 64)).astype(np.float32)
    part = checkpoint.write_part(tmp_path, "0", {"a": a})
    pieces = [p for p in (tmp_path / "weights" / "0" / "a").iterdir() if p.name[0].isdigit()]
    assert len(pieces) == a.nbytes / 4096
    checkpoint.write_manifest(tmp_path, CONFIG, {}, checkpoint.digests(tmp_path), {"0": part})
    assert_bits(restored(tmp_path, checkpoint.stored(tmp_path)), {"a": a})


def test_hashes_of_large_folders_are_checked_when_asked(in_parts, monkeypatch):
    file = max(
        (in_parts / "weights").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0
    )
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_manifest(in_parts)
    monkeypatch.setattr(checkpoint, "HASHED", 1)
    read_manifest(in_parts)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_manifest(in_parts, verify=True)
    file.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_manifest(in_parts)


@pytest.mark.parametrize("parts", [None, 3, {"0": 3}, {"0": {"a": ["float99", [2]]}}])
def test_damaged_parts_of_a_manifest(in_parts, parts):
    edit(in_parts / "jcos.json", parts=parts)
    with pytest.raises(CheckpointError, match=r"jcos\.json is damaged"):
        checkpoint.stored(in_parts)


def test_a_part_that_cannot_be_written(tmp_path):
    (tmp_path / "weights").write_text("in the way")
    with pytest.raises(OSError, match="weights"):
        checkpoint.write_part(tmp_path, "0", {"a": np.ones(3, np.float32)})


# ---- whole or not there


@pytest.mark.parametrize("kind", ["folder", "file", "empty folder"])
def test_what_exists_is_not_touched(tmp_path, kind):
    target = tmp_path / "model"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
    if kind == "folder":
        (target / "notes.txt").write_text("mine")
    before = {p: p.read_text() if p.is_file() else None for p in tmp_path.rglob("*")}
    with pytest.raises(FileExistsError) as error:
        checkpoint.save(target, CONFIG, tree(), {})
    assert str(error.value) == f"{target} exists; remove it or choose another name"
    assert {p: p.read_text() if p.is_file() else None for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("fault", [OSError("no space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["while writing", "after writing", "at the manifest"])
def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch, fault, when):
    def fail(*args, **kwargs):
        raise fault

    match when:
        case "while writing":
            monkeypatch.setattr(ocp.StandardCheckpointer, "save", fail)
        case "after writing":
            monkeypatch.setattr(checkpoint, "_digest", fail)
        case _:
            monkeypatch.setattr(checkpoint, "to_json", fail)
    with pytest.raises(type(fault)):
        checkpoint.save(tmp_path / "model", CONFIG, {"a": jnp.ones(3)}, {})
    assert list(tmp_path.iterdir()) == []


def test_notes_that_are_no_json_leave_nothing(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.save(tmp_path / "model", CONFIG, {"a": jnp.ones(3)}, {"array": jnp.ones(3)})
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import jax.numpy as jnp
from jcos.weights import checkpoint
from jcos.variants import toy

checkpoint._digest = lambda path: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save(Path(sys.argv[1]), toy(), {"a": jnp.ones(3)}, {})
"""


def test_a_killed_save_leaves_no_folder_of_that_name(tmp_path):
    """Killed when all weights are written and the manifest is not."""
    target = tmp_path / "model"
    command = [sys.executable, "-c", KILLED, str(target)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert not target.exists()
    remains = list(tmp_path.iterdir())
    assert remains
    assert all(p.name.startswith(".model.") for p in remains)
    with pytest.raises(CheckpointError, match="it lacks jcos"):
        load(target)
    checkpoint.save(target, CONFIG, tree(), {})
    assert restored(target)["step"] == 7
