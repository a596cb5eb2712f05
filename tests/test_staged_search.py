"""`jcos generate --search`: of several seeds one goes on, part after part, also after a kill."""

import contextlib
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.core import Tracer
from safetensors.numpy import load_file

from jcos import loop, staged, wan
from jcos.lab import saved, search
from jcos.media import formats
from jcos.report.reading import read
from tests.conftest import GOLDEN
from tests.test_staged import run


def searched(release: Path, picture: Path, out: Path, *more: object) -> list[object]:
    call = [release, "--image", picture, "--prompt", "a cat", "--frames", 9, "--size", "48x80"]
    return [*call, "--steps", 4, "--profile", "float32", "--out", out, "--seeds", 3, *more]


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")
def test_a_judge_of_yours_sees_frames_of_the_vae(release, picture, tmp_path) -> None:
    shapes: list[tuple[int, ...]] = []

    def bright(video: np.ndarray) -> float:
        shapes.append(video.shape)
        return float(video.mean())

    call: dict[str, Any] = {"out": tmp_path / "out", "size": (80, 48), "frames": 9, "steps": 2}
    call |= {"profile": "float32", "judges": {"bright": search.Frames(bright)}}
    with pytest.raises(ValueError, match="judges bright"):
        staged.run(release, "a cat", picture, **call)
    method = search.epbs(2, "bright", at=0.0)
    made = staged.run(release, "a cat", picture, search=method, **call)
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    scores = about["tree"][0]["scores"][0]
    assert about["tree"][0]["parents"] == [[int(np.argmax(scores))]]
    assert about["decodes"] == [2]
    (film,) = made.films.values()
    assert set(shapes) == {formats.read_mp4(film).shape}
    assert about["judges"] == {"bright": search.Frames(bright).identity}
    others = search.Frames(lambda video: -float(video.mean())), search.Decided(1, 1)
    assert len({j.identity for j in (*others, search.Frames(bright), search.Decided(2, 1))}) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")
def test_of_several_seeds_one_goes_on(release, picture, tmp_path, capsys, refused) -> None:
    """Its video is that of the seed alone; the tree is written; repeated, it only decodes."""
    out = tmp_path / "out"
    call = searched(release, picture, out, "--search", "decided")
    run("generate", *call, "--resident", "False", "--together", 2)
    said = " ".join(capsys.readouterr().err.split())
    cost = "after step 3 of 4, of 3 by decided: the best 1; at most 20 forwards, 2.5 times one run"
    assert cost in said
    about = json.loads((out / "run.json").read_text())
    (seed,), (tree,) = about["seeds"], about["tree"]
    assert about["forwards"] == [2 * (3 * 3 + 1)]
    assert (tree["step"], tree["seeds"]) == (2, [[0, 1, 2]])
    assert tree["parents"] == [[int(np.argmax(tree["scores"]))]] == [[seed]]
    assert sorted(p.name for p in out.iterdir()) == [
        *("index.html", "latents.safetensors", "run.json", f"seed-{seed}.mp4", "tree.npz")
    ]
    ((_, _, particles),) = read(out).trees[0]["rows"]
    assert [one["chosen"] for one in particles] == [True, False, False]
    page = (out / "index.html").read_text()
    assert page.count("Clean estimate of seed") == 3
    assert "Puzzle 0" not in page
    made = load_file(out / "latents.safetensors")["latents"]
    alone = staged.run(
        release,
        "a cat",
        picture,
        out=tmp_path / "alone",
        size=(80, 48),
        frames=9,
        steps=4,
        seeds=(seed,),
        profile="float32",
    )
    np.testing.assert_allclose(made, alone.latents, atol=1e-5)
    before = (out / "latents.safetensors").stat().st_mtime_ns
    run("generate", *call)
    assert (out / "latents.safetensors").stat().st_mtime_ns == before
    assert "method" in refused("generate", *call, "--search", "energy")


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")
def test_a_search_that_was_killed_goes_on(release, picture, tmp_path, monkeypatch) -> None:
    """Frames are given through the VAE: the second clip follows the first."""
    plain, calls = loop._advance, [0]

    def killed(*arguments: Any) -> Any:
        # A step that runs, not one whose program is traced to check the probe.
        calls[0] += not isinstance(jax.tree.leaves(arguments[3])[0], Tracer)
        if calls[0] == 6:
            raise KeyboardInterrupt
        return plain(*arguments)

    call = searched(release, picture, tmp_path / "out", "--search", "chain")
    monkeypatch.setattr(loop, "_advance", killed)
    with pytest.raises(KeyboardInterrupt):
        run("generate", *call)
    assert (tmp_path / "out" / saved.FILE).exists()
    run("generate", *call)
    assert calls[0] == 8 + 1  # one step was begun twice
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    film = formats.read_mp4(tmp_path / "out" / f"seed-{about['seeds'][0]}.mp4")
    assert len(film) == 17
    assert not list((tmp_path / "out").glob("search*"))
    with np.load(tmp_path / "out" / "tree.npz") as pictures:  # also of rows before the kill
        shapes = [pictures[f"estimates_0_{i}"].shape for i in range(len(about["tree"]))]
    assert shapes == [(len(row["seeds"][0]), 8, 6, 3) for row in about["tree"]]


def test_the_cost_is_that_of_the_preset(release, picture, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(staged, "run", Mock(side_effect=ValueError("stop")))
    call = [release, "--image", picture, "--prompt", "a cat", "--out", tmp_path / "out"]
    with pytest.raises(SystemExit):
        run("generate", *call, "--seeds", 3, "--search", "decided", "--preset", "lightning-4")
    said = " ".join(capsys.readouterr().err.split())
    assert "at most 10 forwards, 2.5 times one run of 4 steps (4)" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--search", "nobody"], "there is no search 'nobody'; there are the presets and judges"),
        (["--search", "pixels"], "there is no search 'pixels'"),
        (["--search", "calibrated"], "calibrated needs scores of this model"),
        (["--search", "change", "--judge", "energy"], "leave out the judge energy"),
        (["--judge", "change"], "--judge belongs to a search"),
        (["--search", "change", "--seeds", -3], "a search of -3 seeds"),
        (["--search", "change", "--x0", 0], "a search keeps no estimates (x0)"),
        (["--search", "change", "--seeds", 1, 3], "seeds that follow each other, not (1, 3)"),
        (["--search", "change", "--trace"], "a search keeps no estimates (x0) and no trace"),
        (["--search", "tbs", "--frames", 5], "it is 2 to 1 frames"),
        (["--search", "change", "--noise", "a.npy"], "noise from a file is one video's"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    release, picture, tmp_path, refused, monkeypatch, changes, message
) -> None:
    monkeypatch.setattr(wan, "load", None)
    out = tmp_path / "out"
    said = refused("generate", *searched(release, picture, out), *changes)
    assert message in said
    assert "at most" not in said  # forwards, of a plan
    assert not out.exists()


@pytest.mark.slow
def test_a_probe_is_made_for_the_steps_of_a_search(release, picture, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(wan, "load", None)
    how: Any = {"search": search.best_of(2, steps=3), "steps": 5, "profile": "float32"}
    with pytest.raises(TypeError):  # where the model would be read
        staged.run(release, "a cat", picture, out=tmp_path / "out", size=(80, 48), frames=9, **how)


def test_a_search_without_seeds_has_one(release, picture, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(wan, "load", None)
    call = searched(release, picture, tmp_path / "out", "--search", "decided")
    seeds = call.index("--seeds")
    del call[seeds : seeds + 2]
    with contextlib.suppress(TypeError):  # where the model would be read
        run("generate", *call)
    assert "of 1 by decided: the best 1;" in capsys.readouterr().err


def test_a_model_of_a_text_alone_takes_no_prefix(tmp_path, refused, monkeypatch) -> None:
    monkeypatch.setattr(wan, "load", None)
    release = GOLDEN / "ckpt" / "Wan2.1-T2V-1.3B"
    call = [release, "--prompt", "a cat", "--frames", 9, "--seeds", 2, "--out", tmp_path / "out"]
    message = refused("generate", *call, "--search", "tbs")
    assert message.endswith(
        "wan2.1-t2v-1.3b makes videos of a text alone; a prefix needs a model "
        "that is given frames (I2V, TI2V)"
    )
