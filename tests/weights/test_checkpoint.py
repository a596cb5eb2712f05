"""Checkpoint folders: bit-equal round trips, every damage one sentence, whole or not there."""

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
from jcos.files import any_path
from jcos.wan import Wan, load
from jcos.weights import checkpoint
from jcos.weights.checkpoint import CheckpointError, leaves, read_config, read_manifest
from tests.conftest import ROOT

CONFIG = WanConfig(
    "test",
    DiTConfig(dim=8, ffn_dim=8, heads=2, layers=2, in_channels=28, out_channels=12, text_dim=4),
    PixelCodec(),
    Words(("left", "right"), 4),
    Sampling(steps=3),
    image="concat",
)


VALUES = {
    "experts.0.wide": np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32),
    "experts.0.narrow": np.linspace(-1, 1, 7).astype(ml_dtypes.bfloat16),
    "vae.scalar": np.array(2.5, np.float32),
    "vae.odd": np.array([np.inf, -0.0, 1e-42, np.nan], np.float32),
    "vae.step": np.array(7, np.int32),
    "vae.bytes": np.arange(4, dtype=np.uint8),
}
"""Every type that a model or a training state has, with values that survive no rounding."""
NOTES = {"made": "by a test", "loss": 0.25}


def whole(folder: Path) -> Path:
    checkpoint.save(folder, CONFIG, jax.tree.map(jnp.asarray, VALUES), NOTES)
    return folder


def in_parts(folder: Path) -> Path:
    parts = {
        str(i): checkpoint.write_part(folder, str(i), {k: VALUES[k] for k in names})
        for i, names in enumerate((list(VALUES)[:1], list(VALUES)[1:2], list(VALUES)[2:]))
    }
    checkpoint.write_manifest(folder, CONFIG, NOTES, checkpoint.digests(folder), parts)
    return folder


@pytest.fixture(scope="module", params=[whole, in_parts])
def saved(request, tmp_path_factory) -> Path:
    """A checkpoint of either format; copy it before you damage it."""
    return request.param(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def damaged(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "weights").rglob("*") if p.is_file() and p.stat().st_size)


def shapes(**changes: Any) -> dict[str, Any]:
    """Those of `VALUES`, some with another shape and type, or (None) left out."""
    found = {k: (a.shape, a.dtype) for k, a in VALUES.items()} | changes
    return {k: jax.ShapeDtypeStruct(*a) for k, a in found.items() if a is not None}


def restored(folder: Path, abstract: Any = None, **options: Any) -> Any:
    read_manifest(folder)
    return checkpoint.restore(folder, abstract or shapes(), **options)


def assert_bits(found: dict[str, Any], want: dict[str, np.ndarray]) -> None:
    assert found.keys() == want.keys()
    for name, a in want.items():
        assert isinstance(found[name], jax.Array)
        assert (found[name].dtype, found[name].shape) == (a.dtype, a.shape), name
        assert np.asarray(found[name]).tobytes() == a.tobytes(), name


# ---- round trips


def test_every_type_comes_back_bit_equal_and_without_a_word(saved, caplog, capfd):
    manifest = read_manifest(saved)
    assert (manifest["notes"], read_config(manifest)) == (NOTES, CONFIG)
    files = {p.relative_to(saved).as_posix() for p in (saved / "weights").rglob("*") if p.is_file()}
    assert manifest["files"].keys() == files
    assert checkpoint.stored(saved) == shapes()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("fsdp",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    found = restored(saved, shardings={"experts.0.wide": sharding})
    assert found["experts.0.wide"].sharding == sharding
    assert_bits(found, VALUES)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_whole_model_comes_back_from_its_folder_alone(tmp_path):
    model = Wan(CONFIG, rngs=nnx.Rngs(3))
    checkpoint.save(tmp_path / "model", CONFIG, model, {})
    back = load(tmp_path / "model")
    assert back.config == CONFIG
    assert jax.tree.structure(back) == jax.tree.structure(model)
    assert "experts.0.blocks.self_attn.q.kernel" in leaves(back)
    for name, a in leaves(model).items():
        np.testing.assert_array_equal(leaves(back)[name], a, err_msg=name)


def test_weights_take_the_models_type_also_in_a_folder_that_was_moved(damaged):
    narrow = {k: (a.shape, jnp.bfloat16) for k, a in VALUES.items()}
    for name, found in restored(damaged, shapes(**narrow)).items():
        assert found.dtype == jnp.bfloat16
        rounded = VALUES[name].astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(found.astype(jnp.float32), rounded, err_msg=name)


def test_some_leaves_are_restored_alone(tmp_path):
    """Parts without them need not even be there."""
    folder, only = in_parts(tmp_path / "model"), ["experts.0.narrow", "vae.s"]
    want = {k: a for k, a in VALUES.items() if k.startswith(tuple(only))}
    shutil.rmtree(folder / "weights" / "0")
    some = {k: a for k, a in shapes().items() if k in want}
    assert_bits(checkpoint.restore(folder, some, only=only), want)


def test_large_arrays_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK", 4096)
    a = np.random.default_rng(0).standard_normal((8, 32, 64)).astype(np.float32)
    part = checkpoint.write_part(tmp_path, "0", {"a": a})
    pieces = [p for p in (tmp_path / "weights" / "0" / "a").iterdir() if p.name[0].isdigit()]
    assert len(pieces) == a.nbytes / 4096
    checkpoint.write_manifest(tmp_path, CONFIG, {}, checkpoint.digests(tmp_path), {"0": part})
    assert_bits(restored(tmp_path, checkpoint.stored(tmp_path)), {"a": a})
    (tmp_path / "file" / "weights").parent.mkdir()
    (tmp_path / "file" / "weights").write_text("in the way")
    with pytest.raises(OSError, match="weights"):
        checkpoint.write_part(tmp_path / "file", "0", {"a": a})


# ---- damage


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is not a checkpoint folder: it lacks jcos.json"),
        ("{", "is damaged; restore the folder from its source"),
        ('{"format": 1}', "is damaged"),
        ('{"files": {"a": 3}}', "is damaged"),
        ("null", "is damaged"),
        ("\x00\xff", "is damaged"),
        ('{"files": {"a": [1, ""]}, "format": 3}', "has format 3; known are 1 and 2"),
        ('{"files": {"a": [1, ""]}, "format": 2}', "is damaged"),
        ('{"files": {"a": [1, ""]}, "format": 2, "parts": {"0": {"a": [3]}}}', "is damaged"),
    ],
)
def test_a_folder_that_is_no_checkpoint(tmp_path, text, says):
    if text is not None:
        (tmp_path / "jcos.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}\S* {says}"):
        checkpoint.stored(tmp_path)


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


def test_a_configuration_of_another_version():
    data = to_json(CONFIG)
    for manifest in (
        {"config": {**data, "colour": "red"}},
        {"config": {**data, "dit": {**data["dit"], "heads": 3}}},
        {},
    ):
        with pytest.raises(CheckpointError, match="configuration cannot be read: "):
            read_config(manifest)


def test_everything_that_does_not_fit_is_named_before_anything_is_read(damaged):
    """Of a folder in parts; Orbax has the names of one that is whole."""
    if read_manifest(damaged)["format"] == 2:
        shutil.rmtree(damaged / "weights")
    changes = {"experts.0.wide": ((5, 3), "float32"), "new": ((2,), "float32"), "vae.odd": None}
    with pytest.raises(CheckpointError) as error:
        checkpoint.restore(damaged, shapes(**changes))
    assert str(error.value) == (
        "3 weights do not fit the model: "
        "experts.0.wide has shape (4, 6, 8), the model wants (5, 3); "
        "new is missing; vae.odd has no place in the model"
    )


def test_of_large_folders_sizes_alone_are_checked(damaged, monkeypatch):
    file = max(weight_files(damaged), key=lambda p: p.stat().st_size)
    content = flip(file.read_bytes())
    file.write_bytes(content)
    monkeypatch.setattr(checkpoint, "HASHED", 1)
    read_manifest(damaged)
    file.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_manifest(damaged)


# ---- whole or not there


def test_what_exists_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match=f"{target} exists; remove it or choose another"):
            whole(target)
    assert [p.read_text() for p in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize("when", ["while writing", "after writing", "at the manifest"])
def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch, when):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    match when:
        case "while writing":
            monkeypatch.setattr(ocp.StandardCheckpointer, "save", fail)
        case "after writing":
            monkeypatch.setattr(checkpoint, "_digest", fail)
        case _:
            monkeypatch.setattr(checkpoint, "to_json", fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "model", CONFIG, {"a": jnp.ones(3)}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.extra("buckets")
def test_of_buckets_several_hosts_write_into_gs_alone(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    checkpoint.check_target(any_path("gs://bucket/x"))
    with pytest.raises(ValueError, match="s3://bucket/x"):
        checkpoint.check_target(any_path("s3://bucket/x"))


KILLED = """
import os, signal, sys
from pathlib import Path
import jax.numpy as jnp
from jcos.weights import checkpoint
from jcos.variants import toy

checkpoint._digest = lambda path: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save(Path(sys.argv[1]), toy(), {"a": jnp.ones(3)}, {})
"""


@pytest.mark.slow
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
    whole(target)
    assert restored(target)["vae.step"] == 7
