"""Text encoder, VAE, experts, VAE in turn (`jcos generate`), on the original's tiny image-to-video
checkpoint."""

import dataclasses
import errno
import gc
import json
import os
import re
import shutil
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from jcos import cli, generation, loop, staged, wan
from jcos.media import formats, image
from jcos.model.vae import Vae
from jcos.sampling.interventions import Interventions
from jcos.sampling.noise import wan_noise
from jcos.sampling.probes import Noise, TokenEnergy
from jcos.sampling.trace import OUTLINE
from jcos.wan import Wan
from tests.conftest import GOLDEN, ROOT
from tests.models import release_config
from tests.releases import edit

WAN = ROOT / "docs" / "wan.md"

DIT = release_config("i2v_high").dit


def run(*arguments: object) -> None:
    cli.main([str(a) for a in arguments])


@pytest.fixture
def call(release: Path, picture: Path, tmp_path: Path) -> list[object]:
    """The options of a small run into tmp_path / "out"."""
    return settings(release, picture, tmp_path / "out")


def settings(release: Path, picture: Path, out: Path) -> list[object]:
    sampling = ["--steps", 2, "--frames", 9, "--size", "48x80", "--profile", "float32"]
    given = ["--image", picture, "--prompt", "a cat", "--x0", 0, 0.5]
    return [release, *given, *sampling, "--out", out]


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")
def test_a_prompt_and_a_picture_become_a_video(
    call: list[object], release, tmp_path, capsys, monkeypatch, refused
) -> None:
    coded = []
    for half, plain in {"encode": Vae.encode, "decode": Vae.decode}.items():

        def record(self, x, *, half=half, plain=plain, **options):
            coded.append((half, options["tiles"]))
            return plain(self, x, **options)

        monkeypatch.setattr(Vae, half, record)
    out, cache = tmp_path / "out", tmp_path / "prompts"
    call = [*call, "--seeds", 3, 4, "--text-cache", cache]
    call += ["--tiles", 6, 5, "--prompt", "a cat that does not end " * 9]
    run("generate", *call)
    assert coded == [("encode", (6, 5)), ("decode", (6, 5))]
    said = " ".join(capsys.readouterr().err.split())
    assert f"has 217 tokens; only the first {DIT.text_len - 1} and the end token are read" in said
    arrays = load_file(out / "latents.safetensors")
    assert arrays["latents"].shape == (2, 3, 8, 6, 16)  # seeds, latent frames, 64 × 48 pixels / 8
    assert arrays["x0"].shape == (2, 2, 3, 8, 6, 16)
    np.testing.assert_allclose(arrays["x0"][:, 1], arrays["latents"], atol=1e-5)
    assert np.abs(arrays["latents"][0] - arrays["latents"][1]).max() > 0.1
    for seed in (3, 4):
        assert formats.read_mp4(out / f"seed-{seed}.mp4").shape == (9, 64, 48, 3)
        with Image.open(out / f"seed-{seed}-x0.png") as sheet:
            assert sheet.size == (9 * 50, 2 * 66)
        for step in json.loads((out / "run.json").read_text())["x0"]:
            name = formats.X0_FILM.format(seed=seed, step=step)
            assert formats.read_mp4(out / name).shape == (9, 64, 48, 3)
    assert '"frames":9,' in (out / "index.html").read_text()
    about = json.loads((out / "run.json").read_text())
    assert about["sampling"]["solver"] == "unipc"
    assert about["negative"].startswith("色调")
    assert about["sigmas"][0] == pytest.approx(1, abs=2e-3)

    # Repeated, it finds its latents and only decodes; known prompts need no text encoder.
    made = (out / "latents.safetensors").stat().st_mtime_ns
    (out / "seed-3.mp4").unlink()
    run("generate", *call)
    assert (out / "seed-3.mp4").exists()
    assert (out / "latents.safetensors").stat().st_mtime_ns == made
    (release / "models_t5_umt5-xxl-enc-bf16.pth").rename(release / "elsewhere")
    try:
        message = refused("generate", *call, "--prompt", "a dog", "--out", tmp_path / "other")
        assert "does not have the prompt 'a dog'" in message
    finally:
        (release / "elsewhere").rename(release / "models_t5_umt5-xxl-enc-bf16.pth")
    message = refused("generate", *call, "--shift", 3)
    assert "sampling.shift 5.0, not 3.0" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--frames", 8], "8 frames"),
        (["--size", "48by80"], "size is '48by80'; it is WIDTHxHEIGHT in pixels"),
        (["--x0", 2], "step 2 is out of range: there are steps 0 to 1"),
        (["--ensemble-layers", 0], "ensemble-layers averages over seeds; 1 is given"),
        (["--noise-steps", 9], "step 9 is out of range: there are steps 0 to 1"),
        (["--guidance", 1, 2, 3], "guidance has 3 scales; this model has 2 expert"),
        (["--noise", "absent.npy"], "absent.npy"),
        (["--noise", "a.npy", "--seeds", 0, 1], "noise from a file is one video's; give one seed"),
        (["--image", "absent.png"], "absent.png"),
        (["--noise", "trch"], "noise is torch, jax or a file"),
        (["--seeds", 4, 4], "the seed 4 is given twice"),
        (["--seeds", 2**64], "the seed is 18446744073709551616; PyTorch takes"),
        (["--seeds", -(2**63) - 1, "--noise", "jax"], "the seed is -9223372036854775809; PyTorch"),
        (["--prompt", "absent.npy"], "absent.npy holds no embedded prompt"),
        (["--prompt", "absent.txt"], "absent.txt"),
        (["--noise", "gs://bucket/noise.npy"], "gs://bucket/noise.npy"),
        (["--image", __file__], "test_staged.py"),
        (["--tiles", 0, 4], "tiles are 0 × 4 cells; give at least 1 × 1"),
        (["--mesh", "batch=2"], "a mesh has no axis 'batch'; its axes are world, seed"),
        (["--mesh", "context=4"], "context=4 does not make up 8 device(s)"),
        (["--mesh", "tensor=8"], f"{DIT.heads} heads do not divide over the mesh's tensor=8"),
        (["--mesh", "branch=8"], "2 pass(es) of a step do not divide over the mesh's branch=8"),
        (["--mesh", "branch=2,fsdp=4", "--guidance", 1], "1 pass(es) of a step do not divide"),
        (["--mesh", "seed=8", "--seeds", 0, 1], "2 seed(s) do not divide over the mesh's seed=8"),
        (["--mesh", "world=8"], "a mesh of world=8 for one prompt"),
        (
            ["--mesh", "seed=8", "--seeds", *range(8), "--together", 1],
            "1 seed(s) at a time do not divide over the mesh's seed=8",
        ),
        (["--mesh", "context=8", "--together", 0], "0 seeds are to be denoised at a time"),
        (
            ["--mesh", "context=8", "--together", 1, "--seeds", 0, 1, "--ensemble-layers", 0],
            "SeedEnsemble averages over seeds; leave out together=1",
        ),
    ],
)
def test_wrong_input_ends_in_one_sentence_and_leaves_nothing(
    call, tmp_path, refused, monkeypatch, changes, message
):
    """Before any weights are read. Of eight devices, as far as a command with a mesh knows."""
    devices = 8 if "--mesh" in changes else 1
    monkeypatch.setattr(jax, "local_devices", lambda: devices * jax.devices()[:1])
    monkeypatch.setattr(wan, "load", None)
    assert message in refused("generate", *call, *changes)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], weakref.ref[Wan]]]:
    """Nothing is computed. What was loaded, call by call, and whether it is still there."""
    loaded, plain = [], wan.load

    def load(folder: Path, **options: Any) -> Wan:
        gc.collect()
        about = {k: v for k, v in options.items() if k != "profile"}
        about["beside"] = sum(model() is not None for _, model in loaded)
        model = plain(folder, **options)
        loaded.append((about, weakref.ref(model)))
        return model

    def generate(model, condition, seeds, *, noise, **options) -> Any:
        shape = (*condition.grid, model.config.dit.out_channels)
        noise = loop.first_noise(model.config, seeds, shape, noise)
        x0 = np.repeat(np.asarray(noise)[:, None], 2, axis=1)
        return SimpleNamespace(latents=noise, x0=x0)

    monkeypatch.setattr(wan, "load", load)
    monkeypatch.setattr(generation, "generate", generate)
    monkeypatch.setattr(
        wan, "embed", lambda model, tokenizer, text, length: jnp.zeros((DIT.text_len, DIT.text_dim))
    )
    monkeypatch.setattr(Wan, "encode", lambda self, video, tiles: jnp.zeros((3, 8, 6, 16)))
    monkeypatch.setattr(Wan, "decode", lambda self, z, tiles: np.zeros((9, 64, 48, 3), np.uint8))
    return loaded


CODER = {"experts": False, "text": False, "beside": 0}
ENCODER = {"experts": False, "vae": False, "beside": 0}
EXPERTS = {"text": False, "vae": False, "resident": None, "lora": (), "beside": 0}


def loaded(quick: list[Any]) -> list[dict[str, Any]]:
    """What was loaded since the last time."""
    options = [options for options, _ in quick]
    quick.clear()
    return options


def in_a_file(call: list[Any], folder: Path) -> list[Any]:
    (folder / "prompt.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n")
    return [*call, "--prompt", folder / "prompt.txt"]


def on_another_mesh(call: list[Any], folder: Path) -> list[Any]:
    edit(folder / "out" / "run.json", mesh="branch=2,context=4")
    return [*call, "--mesh", "fsdp=1"]


def moved(call: list[Any], folder: Path) -> list[Any]:
    (folder / "link").symlink_to(call[0])
    return [folder / "link", *call[1:]]


@pytest.mark.slow
def test_the_same_run_is_not_made_again(call, tmp_path, quick):
    """Each part is gone when the next one comes; a repeated call needs the VAE alone."""
    run("generate", *call)
    assert loaded(quick) == [ENCODER, CODER, EXPERTS, CODER]
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (about["prompt"], about["mesh"]) == ("a cat", "of size 1")
    for again in (lambda call, _: call, in_a_file, on_another_mesh, moved):
        run("generate", *again(call, tmp_path))
        assert loaded(quick) == [CODER]
    np.save(tmp_path / "rows.npy", np.zeros((3, DIT.text_dim), np.float32))
    call = [*call, "--prompt", tmp_path / "rows.npy", "--guidance", 1, "--out", tmp_path / "plain"]
    run("generate", *call)
    assert loaded(quick) == [CODER, EXPERTS, CODER]


@pytest.mark.slow
def test_latents_outlive_a_trace_that_cannot_be_written(
    call, tmp_path, monkeypatch, refused, quick
):
    out, stored = tmp_path / "out", []

    def store(folder: Path, model: str) -> None:
        stored.append((out / staged.LATENTS).exists())
        if len(stored) == 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        folder.mkdir()
        (folder / OUTLINE).touch()

    plain = generation.generate

    def generate(*arguments: Any, **options: Any) -> Any:
        return SimpleNamespace(**vars(plain(*arguments, **options)), save=store)

    monkeypatch.setattr(generation, "generate", generate)
    assert str(out / staged.TRACE) in refused("generate", *call, "--trace")
    quick.clear()
    run("generate", *call)
    assert loaded(quick) == [CODER]
    run("generate", *call, "--trace")  # of a finished run
    assert stored == [True, True]
    quick.clear()
    run("generate", *call, "--trace")
    assert loaded(quick) == [CODER]
    (out / staged.LATENTS).unlink()
    run("generate", *call, "--trace")
    assert (out / staged.LATENTS).exists()
    assert len(stored) == 2


@pytest.fixture
def python(release: Path, picture: Path, tmp_path: Path) -> Callable[..., staged.Videos]:
    """A small run into tmp_path / "out", called from Python."""
    small = {"size": (80, 48), "frames": np.int64(9), "steps": 2, "profile": "float32"}
    return partial(staged.run, release, "a cat", picture, out=tmp_path / "out", **small)


@pytest.mark.slow
def test_seeds_and_steps_of_python(python, tmp_path, quick):
    with pytest.raises(ValueError, match="there are no seeds"):
        python(seeds=())
    with pytest.raises(ValueError, match="made for 3 steps; this run has 2"):
        python(probe=Noise(jnp.zeros((3, 2))))
    assert not quick
    python(seeds=np.arange(2), x0=(0.5, 0))
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (about["seeds"], about["x0"]) == ([0, 1], [1, 0])
    assert (tmp_path / "out" / formats.X0_FILM.format(seed=1, step=1)).is_file()


@pytest.mark.slow
def test_latents_of_other_weights_or_noise_or_damaged_ones_are_not_taken(
    call, tmp_path, refused, monkeypatch, quick
):
    out = tmp_path / "out"
    noise = np.random.default_rng(0).standard_normal((16, 3, 8, 6)).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    call = [*call, "--noise", tmp_path / "noise.npy"]
    run("generate", *call)
    np.save(tmp_path / "noise.npy", noise + 1)
    assert "noise file" in refused("generate", *call)
    np.save(tmp_path / "noise.npy", noise)
    run("generate", *call)
    with monkeypatch.context() as other:
        other.setattr(staged, "identify", lambda folder: {"manifest": "another"})
        assert "weights.manifest None, not another" in refused("generate", *call)
    for name in ("latents.safetensors", "run.json"):
        data = (out / name).read_bytes()
        (out / name).write_bytes(data[: len(data) // 2])
        assert f"{out / name} is damaged" in refused("generate", *call)


@pytest.mark.slow
def test_whatever_fails_at_the_end_latents_are_not_made_again(
    call, tmp_path, refused, monkeypatch, quick
):
    out = tmp_path / "out"
    places = {
        "run.json": "jcos.staged.runs.now",
        "film": "jcos.media.formats._encode",
        "sheet": "jcos.staged.formats.contact_sheet",
        "page": "jcos.cli.common.explorer.make",
    }
    for at, place in places.items():
        full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device", f"the {at}"))
        with monkeypatch.context() as failing:
            failing.setattr(place, full)
            failing.setattr(formats, "check_mp4", lambda *_: None)
            failing.setattr("jcos.runs.made", lambda *_: {})
            message = refused("generate", *call)
        assert "No space left on device" in message
        assert ("seed-0" in message) is (at == "film")
        assert not [p for p in out.iterdir() if p.name.endswith(".part")]
        assert (EXPERTS in loaded(quick)) is (at == "run.json")
    run("generate", *call)
    assert loaded(quick) == [CODER]
    assert {"run.json", "seed-0.mp4", "seed-0-x0.png", "index.html"} <= set(os.listdir(out))


def test_the_film_is_tried_before_the_weights_are_read(call, tmp_path, refused, monkeypatch):
    without = Mock(side_effect=ValueError("there is no libx264"))
    monkeypatch.setattr(formats, "_encode", without)
    monkeypatch.setattr(wan, "load", None)
    assert "libx264" in refused("generate", *call)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_latents_of_another_probe_are_not_taken(python, quick):
    """A probe of the user's own, in Python."""
    for strength in (0.5, 0.5):
        python(probe=Noise(jnp.full((2, 3), strength)))
    assert loaded(quick) == [ENCODER, CODER, EXPERTS, CODER, CODER]
    for other in (Noise(jnp.full((2, 3), 0.25)), TokenEnergy(), Interventions()):
        with pytest.raises(ValueError, match="interventions"):
            python(probe=other)


def test_a_full_disk_is_noticed_before_the_weights_are_read(call, tmp_path, refused, monkeypatch):
    (tmp_path / "file").touch()
    message = refused("generate", *call, "--out", tmp_path / "file" / "out")
    assert f"{tmp_path / 'file'} is a file" in message
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "0.00 GB free" in refused("generate", *call)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(staged, "check_room", check := Mock(side_effect=OSError("full")))
    for more in ((), ("--trace",)):
        refused("generate", *call, *more)
    plain, traced = (each.args[1] for each in check.call_args_list)
    assert traced - plain == 4 * (2 + 1) * 3 * 8 * 6 * 16  # of 2 steps, and the final latents


T2V = GOLDEN / "ckpt" / "Wan2.1-T2V-1.3B"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "more", "message"),
    [
        (T2V, ["--size", "72x64"], "the width is 72 pixels; wan2.1-t2v-1.3b needs a mult"),
        (T2V, ["--size", "64x64"], "Wan2.1-T2V-1.3B has no VAE"),
        (T2V, ["--image", ROOT / "docs" / "maze.png"], "takes no first frame"),
        (GOLDEN / "ckpt" / "Wan2.2-I2V-A14B", [], "makes videos of a first frame; none is given"),
        (GOLDEN, [], "is not a checkpoint folder"),
    ],
)
def test_a_model_that_cannot_is_refused(folder, more, message, tmp_path, refused):
    call = ["generate", folder, "--prompt", "a", "--frames", 5, "--out", tmp_path / "o", *more]
    assert message in refused(*call)
    assert not (tmp_path / "o").exists()


def test_an_encoder_without_its_tokenizer_is_refused(picture, tmp_path, refused, monkeypatch):
    """Before its weights are read."""
    monkeypatch.setattr(wan, "load_released", None)
    call = settings(GOLDEN / "ckpt" / "Wan2.2-I2V-A14B", picture, tmp_path / "out")
    for more in ([], ["--text-cache", tmp_path / "prompts"]):
        assert "comes without a tokenizer" in refused("generate", *call, *more)


@pytest.mark.slow
def test_embedded_prompts_need_no_encoder(release, picture, tmp_path):
    rows = np.random.default_rng(0).standard_normal((2, 5, DIT.text_dim), np.float32)
    files = [tmp_path / "prompt.npy", tmp_path / "negative.npy"]
    for file, embedded in zip(files, rows, strict=True):
        np.save(file, embedded)
    bare = tmp_path / "bare"
    shutil.copytree(release, bare, ignore=shutil.ignore_patterns("models_t5*", "google"))
    call = [*settings(bare, picture, tmp_path / "out"), "--prompt", files[0]]
    run("generate", *call, "--negative", files[1], "--seeds", 7)
    latents = load_file(tmp_path / "out" / "latents.safetensors")["latents"]

    model = wan.load(bare, profile="float32")
    first = image.prepare(
        image.read_picture(picture), image.rule_for(model.config, "float32"), 80, 48
    )
    condition = model.condition(first, rows[0], 9, negative=rows[1])
    sampling = dataclasses.replace(model.config.sampling, steps=2)
    # A seed is the same video in Python as in the command, and its noise PyTorch's.
    want = generation.generate(model, condition, [7], sampling=sampling).latents
    np.testing.assert_allclose(latents, want, atol=1e-5)  # by step, and as one program
    noise = wan_noise(7, latents.shape[1:])[None]
    drawn = generation.generate(model, condition, [7], sampling=sampling, noise=noise).latents
    np.testing.assert_array_equal(drawn, want)


@pytest.mark.slow
def test_a_seed_that_broke_has_no_video(python, tmp_path, monkeypatch, quick):
    def broken(model: Wan, condition: Any, seeds: Any, **_: Any) -> SimpleNamespace:
        latents = np.zeros((2, 3, 8, 6, 16), np.float32)
        latents[0, 1, 2, 3, 4] = np.nan
        return SimpleNamespace(latents=latents, x0=latents[:, None])

    monkeypatch.setattr(generation, "generate", broken)
    with pytest.warns(UserWarning, match="seed 3 has no video"):
        made = python(seeds=(3, 4))
    assert made.films == {4: tmp_path / "out" / "seed-4.mp4"}
    assert [p.name for p in (tmp_path / "out").glob("*.mp4")] == ["seed-4.mp4"]
    assert np.isnan(made.latents[0]).any()
    assert made.x0.shape == (2, 0, 3, 8, 6, 16)


@pytest.mark.slow
def test_the_example_of_the_page_runs(release, picture, tmp_path, monkeypatch):
    """As it stands, but for a small size."""
    (example,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", WAN.read_text(), re.DOTALL)
        if "staged.run(" in block
    )
    (tmp_path / "wan-i2v").symlink_to(release)
    shutil.copy(picture, tmp_path / "maze.png")
    monkeypatch.chdir(tmp_path)
    small = partial(staged.run, size=(80, 48), frames=9, steps=6, profile="float32")
    monkeypatch.setattr(staged, "run", small)
    names: dict[str, Any] = {}
    with warnings.catch_warnings(action="ignore"):  # this tiny model reads 24 tokens
        exec(compile(example, str(WAN), "exec"), names)
    made = names["made"]
    assert made.latents.shape == (2, 3, 8, 6, 16)
    assert made.x0.shape == (2, 2, 3, 8, 6, 16)
    assert formats.read_mp4(made.films[1]).shape == (9, 64, 48, 3)
