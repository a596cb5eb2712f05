"""Arms of the benchmark: films by task, what is missing, and two of them side by side."""

import json
import re
from pathlib import Path

import pytest

from jcos import cli
from jcos.report import explorer
from jcos.report.reading import read
from tests.report import folders

MAZE, SORT = folders.ARM_TASKS


def test_films_are_grouped_by_task_and_the_books_are_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.arm_folder(tmp_path)
    monkeypatch.delattr("av.open")  # no packet of a film is read
    page = explorer.make(tmp_path).read_text()
    assert not read(tmp_path).missing
    reels = re.findall(r'<summary>([^<]*) <span>(\d+)</span></summary>\s*<div class="clips">', page)
    assert reels == [(MAZE, "2"), (SORT, "2")]
    assert page.count("<video") == 4
    assert f'aria-label="{MAZE}/00001.mp4"' in page
    assert "state/" not in page
    assert "4 denoising steps" in page
    assert f"Find the way of {MAZE}/00001 &lt;b&gt;." in page


def test_scores_show_their_table_and_no_baselines(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"command": "jcos bench score", "arms": ["a"]}))
    (tmp_path / "table.csv").write_text("measure,mean\nall,0.5\n")
    folders.arm_folder(tmp_path / "still")
    found = read(tmp_path)
    assert not found.films
    assert not found.missing
    assert [file.name for file in found.files] == ["run.json", "table.csv"]


def test_what_is_missing_of_an_arm_is_said(tmp_path: Path) -> None:
    folders.arm_folder(tmp_path)
    about = {"total": 5, "faults": {f"{SORT}/00002": "the folder is missing"}}
    (tmp_path / "summary.json").write_text(json.dumps(about))
    made = tmp_path / "state" / "made" / SORT / "00000.json"
    (failed := tmp_path / "state" / "failed" / SORT).mkdir(parents=True)
    made.rename(failed / "00000.json").write_text(json.dumps({"reason": "out of <memory>"}))
    (tmp_path / "state" / "made" / MAZE / "00000.json").write_text("cut o")
    (tmp_path / SORT / "00000.mp4").unlink()
    (tmp_path / SORT / "00001.mp4").unlink()
    film = tmp_path / MAZE / "00001.mp4"
    film.write_bytes(film.read_bytes()[:-200])
    whole, *told = read(tmp_path).missing
    assert whole == "2 of 5 videos are there."
    assert told[:2] == [
        f"{SORT}/00001.mp4: it is missing.",
        f"{SORT}/00000.mp4: it failed (out of <memory>).",
    ]
    assert told[2] == f"{SORT}/00002: in the benchmark, the folder is missing."
    assert re.fullmatch(rf"{MAZE}/00001.mp4: it cannot be read \(\d+ bytes .*", told[3])
    page = explorer.make(tmp_path).read_text()
    assert "out of &lt;memory&gt;" in page
    assert page.count("<video") == 1


def test_arms_are_paired_by_sample(tmp_path: Path) -> None:
    folders.arm_folder(tmp_path / "base")
    folders.arm_folder(tmp_path / "noised", noise_steps=[3])
    (tmp_path / "noised" / MAZE / "00001.mp4").unlink()
    cli.main(["report", str(tmp_path / "base"), str(tmp_path / "noised")])
    page = (tmp_path / "base" / "compared.html").read_text()
    pairs = page.split('<div class="pair">')[1:]
    names = [re.findall(r"<figcaption>([^<]*)</figcaption>", pair) for pair in pairs]
    both = [[f"base: {i}.mp4", f"noised: {i}.mp4"] for i in ("00000", "00001")]
    lacking = ["base: 00001.mp4", "noised: 00001.mp4 is not there"]
    assert names == [both[0], lacking, *both]
    assert page.count("<video") == 7
    assert f"noised: {MAZE}/00001.mp4: it is missing." in page
    assert "<td>[]</td><td>[3]</td>" in page.replace("none", "[]")  # what differs
