"""What holds for every test: the CPU, exact arithmetic, no silent broadcasting, reference numbers.

Nothing here may import `jcos`: the shape checks are put in place when it is first imported.
"""

import contextlib
import gc
import inspect
import os
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Before jax is imported, and in the environment, where the processes that tests start find it too.
# Set JAX_PLATFORMS to run the tests on another device.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled functions are kept between tests, processes and runs.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parent.parent / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")
# The tests compile for longer than they compute: without XLA's costly passes they take half the
# time. With 0 they test the programs just as users run them, which .ci/run does for some.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    # A program in one piece: pieces are for cores that wait, and no core does here.
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]
    # XLA's older emitters need 60 % of the newer ones' time; after jax 0.10 there are only those.
    # Not with simulated devices (tests/many_devices.py), whose noise they round by its layout.
    if metadata.version("jax")[:4] == "0.10" and "JAX_NUM_CPU_DEVICES" not in os.environ:
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(" ".join(flags).split()))

import jax
import jaxtyping
import numpy as np
import pytest
import safetensors.numpy
from beartype import BeartypeConf, beartype

# Tracing makes millions of small objects that live on; looking through them is a tenth of the time.
gc.set_threshold(100_000, 50, 50)

QUICKER = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
_flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag not in QUICKER]
NEWER_EMITTERS = {"XLA_FLAGS": " ".join(_flags)}
AS_USERS = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", **NEWER_EMITTERS}
"""What differs in the environment of a process that compiles as users do."""


@contextlib.contextmanager
def optimized() -> Iterator[None]:
    """Within, programs are compiled as users compile them, which pays where they run for long."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    try:
        yield
    finally:
        jax.config.update(name, before)


ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")


checked: Any = beartype(conf=BeartypeConf(is_pep484_tower=True))
_shapes_checked: Any = jaxtyping.jaxtyped


def _jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    """How jaxtyping decorates everything in jcos. What names no shapes needs no record of them,
    which takes ten times as long as the check; one that is defined anew in each call needs none."""

    def decorate(function: Any) -> Any:
        names = getattr(function, "__annotations__", {})
        plain = inspect.isfunction(function) and not inspect.isgeneratorfunction(function)
        if not plain or any(isinstance(a, str) or "jaxtyping" in str(a) for a in names.values()):
            return _shapes_checked(function, typechecker=typechecker)
        return function if "<locals>" in function.__qualname__ else checked(function)

    return decorate


jaxtyping.jaxtyped = _jaxtyped


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """What other modules left is not looked through each time that a test, or the reading of a
    checkpoint, collects garbage: that is seconds in a process that has traced much."""
    gc.freeze()
    yield
    gc.unfreeze()


def load_golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of `tests/golden/<name>.safetensors`, or of `<name>.npz`, by their keys.

    They are outputs of the original PyTorch code, in torch layout and float32 unless the key says
    otherwise.
    `name` may have folders in it: `load_golden("dit/t2v_a")`.
    """
    packed = GOLDEN / f"{name}.safetensors"
    if packed.is_file():
        return safetensors.numpy.load_file(packed)
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays)


Refused = Callable[..., str]
PROGRESS = re.compile(r"Note: |Search: |.*: \d+ of \d+(, .* left)?$")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """`refused("sample", "mazes")` is the one sentence that a command ends in, with exit code 2."""

    def sentence(*words: object, main: Callable[..., Any] | None = None) -> str:
        from jcos import cli

        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            (main or cli.main)([str(word) for word in words])
        assert end.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        (line,) = (line for line in lines if not PROGRESS.match(line))
        assert main is not None or line.startswith("jcos: ")
        return line

    return sentence


def compilations() -> int:
    """How many programs of sweeps were compiled so far; a sweep adds one, its positions none."""
    from jcos.experiments import sweeps

    played: Any = sweeps._play
    return played._cache_size()


def parameter_count(model) -> int:
    """Numbers in all leaves of a model, abstract or not."""
    from jcos.weights.checkpoint import leaves

    return sum(int(np.prod(leaf.shape)) for leaf in leaves(model).values())


EXTRAS = {
    "verify": ("torch", "diffusers", "transformers"),
    "browser": ("playwright", "nbformat", "nbclient", "ipykernel"),
    "tpu": ("libtpu",),
    "gpu": ("jax_cuda13_plugin",),
    "buckets": ("gcsfs", "s3fs", "gcp_storage_emulator", "moto"),
    "ray": ("ray",),
}
"""What a test marked `extra(NAME)` imports."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("extra"):
        (name,) = mark.args
        if not all(map(find_spec, EXTRAS[name])):
            pytest.skip(f"needs the extra `{name}`: pip install 'jcos[{name}]'")


RELEASES = {
    "t2v": "Wan2.1-T2V-1.3B",
    "i2v_high": "Wan2.2-I2V-A14B/high_noise_model",
    "i2v_low": "Wan2.2-I2V-A14B/low_noise_model",
    "ti2v": "Wan2.2-TI2V-5B",
}
"""Folders of the tiny transformers, in the layout of the releases."""


def load_release(name: str) -> dict[str, np.ndarray]:
    """The tensors of a transformer in `RELEASES`, by their names in the original code."""
    shards = sorted((GOLDEN / "ckpt" / RELEASES[name]).glob("*.safetensors"))
    return {name: a for file in shards for name, a in safetensors.numpy.load_file(file).items()}


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """`golden("dit/t2v_a")` is the dict of reference arrays of that file."""
    return load_golden


def random_model(steps: int):
    """A random model of the shipped one's kind, small enough to compile in a second or two.

    It reads every prompt, takes both canvases, and solves nothing.
    """
    import dataclasses

    from jcos.config import Sampling
    from jcos.lab.training import vocabulary
    from jcos.variants import toy
    from tests.models import randomised

    config = toy(vocabulary())
    dit = dataclasses.replace(config.dit, dim=32, ffn_dim=32, heads=2, layers=2, freq_dim=16)
    sampling = Sampling(steps=steps, shift=3.0)
    return randomised(dataclasses.replace(config, dit=dit, sampling=sampling))


@pytest.fixture(scope="session")
def small_model():
    """A random small model that samples in 4 steps."""
    return random_model(4)


@pytest.fixture(scope="session")
def patient_model():
    """A random small model that samples in 50 steps."""
    return random_model(50)


@pytest.fixture(scope="session")
def model():
    """A random model of the kind that tests of sampling take."""
    from tests.models import CONFIG, randomised

    return randomised(CONFIG)


@pytest.fixture(scope="session")
def condition(model):
    from tests.models import FRAMES, frame

    return model.condition(frame(0), "left", FRAMES)


@pytest.fixture(scope="session")
def worlds(model, condition):
    """That condition and another one."""
    from jcos.sampling.trajectory import tree_stack
    from tests.models import FRAMES, frame

    return tree_stack([condition, model.condition(frame(1), "right", FRAMES)])


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny image-to-video release as it is published, with a tokenizer that knows the
    letters."""
    import shutil

    import tokenizers

    folder = tmp_path_factory.mktemp("release") / "Wan2.2-I2V-A14B"
    shutil.copytree(GOLDEN / "ckpt" / "Wan2.2-I2V-A14B", folder)
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    letters = [(letter, -1.0) for letter in "abcdefghijklmnopqrstuvwxyz▁."]
    made = tokenizers.Tokenizer(
        tokenizers.models.Unigram([*((s, 0.0) for s in special), *letters], unk_id=3)
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.add_special_tokens(special)
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    made.save(str(folder / "google" / "umt5-xxl" / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first frame of noise, 61 × 83 pixels."""
    from PIL import Image

    file = tmp_path_factory.mktemp("picture") / "first.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (83, 61, 3), np.uint8)).save(file)
    return file
