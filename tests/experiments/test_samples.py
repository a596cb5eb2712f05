"""What experiments are run on: puzzles with a judge, or clips without one."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from jcos.experiments.clips import check_clips, digest, latent_frames, read_clips, write_example
from jcos.experiments.samples import Samples, baselines
from jcos.experiments.steps import Steps
from jcos.experiments.sweeps import held_out
from jcos.lab.tasks import TASKS
from jcos.variants import VARIANTS, Profile, with_profile
from jcos.wan import Wan


def clips_file(folder: Path, clips: list[dict], **more: object) -> Path:
    file = folder / "clips.json"
    file.write_text(json.dumps({"clips": clips, **more}))
    return file


def picture(folder: Path, name: str = "a.png", side: int = 32) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return name


def test_puzzles_of_several_tasks_are_one_set(small_model: Wan) -> None:
    samples = Samples.of_tasks(small_model, ("maze", "tictactoe"), 3, seed=1)
    assert len(samples) == 6
    assert samples.latent == (5, 10, 10)
    assert {k: v.tolist() for k, v in samples.groups.items()} == {
        "maze": [0, 1, 2],
        "tictactoe": [3, 4, 5],
    }
    right = np.stack([TASKS[p.task].routes(p)[0] for p in samples.puzzles])
    scores, solved = samples.judge(np.stack([right, right[:, ::-1]], 1))
    assert solved.tolist() == [[True, False]] * 6
    np.testing.assert_allclose(scores[:, 0], 1)
    assert Samples.of_tasks(small_model, ("maze",), 4, several=True).several.all()
    with pytest.raises(ValueError, match="rotation has 0 puzzles with several right answers"):
        Samples.of_tasks(small_model, ("rotation",), 1, several=True)


@pytest.mark.slow
def test_baselines_are_of_each_puzzle_by_its_task(small_model: Wan) -> None:
    chance, still = baselines(held_out(TASKS["rotation"], 20), np.random.default_rng(0))
    assert not still.solved.any()
    assert not still.score.any()
    assert 0.1 < chance.solved.mean() < 0.25  # one angle in six
    samples = Samples.of_tasks(small_model, ("rotation", "maze"), 20)
    variables = samples.levels({"solved": "solved", "clean": "score"})
    assert set(variables) == {"chance_solved", "still_solved", "chance_clean", "still_clean"}
    data = xr.Dataset(variables, samples.coordinates())
    assert data["chance_clean"].dims == ("puzzle",)
    assert data["task"].values.tolist() == list(samples.tasks)
    np.testing.assert_allclose(data["chance_solved"][:20], chance.solved)
    parts = data["part"].values
    assert set(parts[:20]) == {"rotation, one answer"}
    assert (parts == "maze, several answers").sum() == samples.several.sum()


def test_clips_have_conditions_and_no_judge(small_model: Wan, tmp_path: Path) -> None:
    """Prompts as texts, and in files of texts or embeddings, which count as much."""
    prompt = "maze shortest way from red to blue"
    np.save(tmp_path / "rows.npy", np.zeros((8, small_model.config.dit.text_dim), np.float32))
    (tmp_path / "prompt.txt").write_text(f"\ufeff{prompt}\n", encoding="utf-8")
    prompts = (prompt, "rows.npy", "prompt.txt")
    entries = [{"prompt": words, "picture": picture(tmp_path, side=16)} for words in prompts]
    file = clips_file(tmp_path, entries, frames=3)
    samples = Samples.of_clips(small_model, file)
    assert not samples.judged
    assert samples.levels({"solved": "solved"}) == {}
    assert samples.coordinates() == {"task": ("clip", ["clips"] * 3)}
    assert samples.latent == (3, 8, 8)
    context = np.asarray(samples.conditions.context)
    assert np.abs(context[0]).max() > 0
    np.testing.assert_array_equal(context[1], 0)
    np.testing.assert_array_equal(context[2], context[0])
    digests = {digest(file)}
    picture(tmp_path, side=48)
    digests.add(digest(file))
    (tmp_path / "prompt.txt").write_text("maze")
    assert len(digests | {digest(file)}) == 3


def test_the_shift_of_a_release_follows_the_size_of_its_clips(tmp_path: Path) -> None:
    file = clips_file(tmp_path, [{"prompt": "x"}], height=480, width=832)
    config = VARIANTS["wan2.1-i2v-14b"]()
    assert Steps(clips=file).sampled(config).shift == 3.0
    assert Steps(clips=file, profile="diffsynth").sampled(config).shift == 5.0


PROMPT = '{"prompt": "x"}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no file"),
        ("[", "line 1"),
        ("[]", "it is \\[\\]; it is an object"),
        ("{}", '"clips" is null'),
        ('{"clip": []}', '"clip"; did you mean clips'),
        (f'{{"clips": [{PROMPT}], "fps": 4}}', '"fps"'),
        (f'{{"clips": [{PROMPT}], "frames": "81"}}', 'frames is "81"'),
        (f'{{"clips": [{PROMPT}], "height": 0}}', "height is 0"),
        (f'{{"clips": [{PROMPT}, {{"picture": "a.png"}}]}}', "clip 1 has no prompt"),
        ('{"clips": [{"prompt": 3}]}', "clip 0: prompt is 3"),
        ('{"clips": [{"prompt": "x", "pictur": "a"}]}', "did you mean picture"),
        ('{"clips": [{"prompt": "x", "picture": "gone.png"}]}', "clip 0: picture: .*gone.png"),
        ('{"clips": [{"prompt": "x", "picture": "gs://a/b"}]}', "clip 0: picture: gs://a/b"),
        ('{"clips": [{"prompt": "gone.npy"}]}', "clip 0: prompt: .*gone.npy"),
    ],
)
def test_files_that_are_no_clips_are_refused(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "clips.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=rf"clips\.json is no file of clips: .*{said}") as error:
        read_clips(file)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("entry", "more", "said"),
    [
        ({"picture": "text.png"}, {}, "clip 1: .*text.png"),
        ({}, {}, "clip 1: .*makes videos of a first frame"),
        ({"picture": "a.png"}, {"frames": 80}, "80 frames"),
        ({"picture": "b.png"}, {}, r"different sizes, .*\(clip 0\).*\(clip 1\)"),
        (
            {"picture": "a.png", "negative": "rows.npy"},
            {},
            r"clip 1: negative: rows.npy .*\(4, 3\)",
        ),
        ({"picture": "a.png"}, {"height": 3, "width": 3}, "clip 0: .*3 × 3"),
    ],
)
def test_what_a_model_cannot_make_is_told_with_its_clip(
    entry: dict, more: dict, said: str, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (64, 16)).save(tmp_path / "b.png")
    np.save(tmp_path / "rows.npy", np.zeros((4, 3), np.float32))
    first = {"prompt": "x", "picture": picture(tmp_path)}
    file = clips_file(tmp_path, [first, {"prompt": "x", **entry}], **more)
    with pytest.raises(ValueError, match=said):
        check_clips(VARIANTS["wan2.2-i2v-a14b"](), file)


def test_the_example_works_once_its_pictures_are_there(tmp_path: Path) -> None:
    file = tmp_path / "new" / "clips.json"
    write_example(file)
    with pytest.raises(ValueError, match=r"clip 0: picture: .*picture-1\.png"):
        check_clips(VARIANTS["wan2.2-i2v-a14b"](), file)
    for i in (1, 2):
        picture(file.parent, f"picture-{i}.png")
    for config in (VARIANTS["wan2.2-i2v-a14b"](), VARIANTS["wan2.2-ti2v-5b"]()):
        for profile in get_args(Profile):
            check_clips(with_profile(config, profile), file, profile)
    assert latent_frames(VARIANTS["wan2.2-i2v-a14b"](), 81) == 21
    assert len(read_clips(file).clips) == 2
    before = file.read_bytes()
    with pytest.raises(ValueError, match="exists"):
        write_example(file)
    assert file.read_bytes() == before
