"""Tensor files: equal to what their own libraries read, lazily, and nothing in them is run."""

import pickle
import re
from importlib import import_module
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jcos.weights.checkpoint import CheckpointError
from jcos.weights.tensors import metadata_of, tensors_in
from tests.releases import I2V, pickled_tensor, write_pth


@pytest.fixture
def shard(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {
        "wide": rng.standard_normal((3, 5)).astype(np.float32),
        "narrow": rng.standard_normal((2, 2, 2)).astype(ml_dtypes.bfloat16),
        "half": rng.standard_normal(4).astype(np.float16),
        "scalar": np.array(2.5, np.float32),
        "none": np.zeros((0, 3), np.float32),
        "count": np.arange(3),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    return tmp_path / "x.safetensors"


def refused(file: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        tensors_in(file)
    return str(error.value)


# ---- safetensors


def test_safetensors_equal_their_own_library(shard):
    own, found = safetensors.numpy.load_file(shard), tensors_in(shard)
    assert found.keys() == own.keys()
    for name, a in own.items():
        tensor = found[name].read()
        assert (tensor.dtype, tensor.shape) == (a.dtype, a.shape) == (found[name].dtype, a.shape)
        assert tensor.tobytes() == a.tobytes()
        assert not a.size or tensor.ctypes.data % 64 == 0  # jax takes it without a copy
    assert metadata_of(shard) == {"format": "pt"}


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_safetensors_file(shard, kept):
    shard.write_bytes(shard.read_bytes()[:kept])
    assert refused(shard).startswith(f"{shard} is truncated")


def test_a_file_that_got_shorter_after_it_was_opened(shard):
    tensor = tensors_in(shard)["wide"]
    shard.write_bytes(shard.read_bytes()[: tensor.offset + 3])
    with pytest.raises(CheckpointError, match="ends in the middle of a tensor"):
        tensor.read()


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"{", " is truncated or no safetensors file: "),
        (b'{"a": 3}', " is truncated or no safetensors file: "),
        (
            b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
            " is truncated or no safetensors file: ",
        ),
        (
            b'{"a": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}',
            ": a has type F8_E8M0; those that can be read are F64, F32",
        ),
    ],
)
def test_a_damaged_header(tmp_path, header, says):
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    assert refused(file).startswith(f"{file}{says}")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_missing_file(tmp_path, suffix):
    assert refused(tmp_path / f"x.{suffix}") == f"{tmp_path / f'x.{suffix}'} is missing"


# ---- torch.save


@pytest.mark.extra("verify")
def test_pth_equals_torch_itself(tmp_path):
    torch = import_module("torch")
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "plain": base,
        "turned": base.T,
        "part": base[1:3, ::2],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(3),
        "narrow": base.to(torch.bfloat16),
        "repeated": torch.ones(1).expand(3),
        "empty": torch.zeros(0, 3),
    }
    for wrapped in (state, {"model_state": state, "step": 3}, {"state_dict": state}):
        torch.save(wrapped, tmp_path / "x.pth")
        found = tensors_in(tmp_path / "x.pth")
        assert found.keys() == state.keys()
        for name, a in state.items():
            read = found[name].read()
            assert read.shape == tuple(a.shape)
            np.testing.assert_array_equal(read.astype(np.float64), a.detach().double().numpy())
    module = torch.nn.Linear(2, 3)
    torch.save(module.state_dict(), tmp_path / "y.pth")
    assert tensors_in(tmp_path / "y.pth").keys() == {"weight", "bias"}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "older than PyTorch 1.6" in refused(tmp_path / "old.pth")


class Code:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_pth_with_code_is_refused_and_nothing_is_run(tmp_path):
    file, traces = tmp_path / "x.pth", tmp_path / "traces"
    content = pickle.dumps({"a": Code(traces)})
    write_pth(file, content)
    pickle.loads(content)
    assert traces.exists()
    traces.unlink()
    assert re.fullmatch(
        rf"{file} is refused: besides tensors it holds code, \S+, which PyTorch would run on "
        "loading it; save its state dict alone",
        refused(file),
    )
    assert not traces.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        dict(shape=(3, 3)),
        dict(offset=-1),
        dict(strides=(3,)),
        dict(elements=7),
        dict(kind="FloatTensor"),
    ],
)
def test_a_tensor_that_does_not_lie_in_its_storage(tmp_path, wrong):
    file = tmp_path / "x.pth"
    write_pth(file, pickled_tensor(**wrong), (bytes(24),))
    assert re.match(rf"{file} is (damaged or no PyTorch file|refused): ", refused(file))


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps({"a": 1})[:-1]])
def test_a_damaged_pickle_and_one_that_holds_no_dict(tmp_path, content):
    file = tmp_path / "x.pth"
    write_pth(file, content)
    assert refused(file).startswith(f"{file} is damaged or no PyTorch file")
    write_pth(file, pickle.dumps([1, 2]))
    assert refused(file).endswith("holds no dict of tensors but a list")


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_truncated_pth(tmp_path, kept):
    file = tmp_path / "x.pth"
    file.write_bytes((I2V / "Wan2.1_VAE.pth").read_bytes()[:kept])
    assert f"{file} is no file of weights, truncated, or older than" in refused(file)
