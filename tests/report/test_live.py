"""What `jcos explore` serves: the runs below a folder, to this machine alone."""

import base64
import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jcos.media import formats
from jcos.report import table
from tests.report import folders
from tests.report.test_explorer import data_of


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a folder with an experiment in `a` and a sample in `b`."""
    folders.experiment_folder(tmp_path / "runs" / "a")
    folders.sample_folder(tmp_path / "runs" / "b")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "runs" / "b" / "out").symlink_to(tmp_path / "secret.txt")
    with folders.served(tmp_path / "runs") as address:
        yield address.rstrip("/")


def get(address: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        return answer.read()


def refused(status: int, address: str, **headers: str) -> Message:
    """Return the headers with which an address is refused."""
    with pytest.raises(urllib.error.HTTPError, match=str(status)) as error:
        get(address, **headers)
    error.value.close()
    return error.value.headers


def runs(served: str) -> dict[str, str]:
    """Return the address of each run that is listed, by its name."""
    listed = re.findall(r'href="(run/\w+/)"><b>(\w+)<', get(f"{served}/").decode())
    return {name: f"{served}/{address}" for address, name in listed}


def test_live_lists_runs_and_serves_only_them(served: str, tmp_path: Path) -> None:
    assert ">solved</small>" in get(f"{served}/").decode()
    a, b = (runs(served)[name] for name in "ab")
    assert "Where does noise hurt?" in get(a).decode()
    page = get(b).decode()
    assert len(data_of(page)["views"]) == 4
    assert 'id="view-0"' not in page  # runs are asked for when they are looked at
    view = json.loads(get(f"{b}explore.data/view-2.json"))
    with Image.open(io.BytesIO(base64.b64decode(view["sheet"].partition(",")[2]))) as picture:
        assert picture.format == "WEBP"
    assert json.loads(get(f"{a}explore.data/chart-0.json"))["title"] == "Solved"
    assert get(f"{b}planes.npz") == (tmp_path / "runs" / "b" / "planes.npz").read_bytes()
    with urllib.request.urlopen(f"{a}figures/noise.svg") as figure:
        assert "sandbox" in figure.headers["Content-Security-Policy"]
    for wrong in (
        *("../../secret.txt", "..%2f..%2fsecret.txt", "out", "none", "%00"),
        *("explore.data/view-9.json", "explore.data/chart-x.json", "explore.data/view--1.json"),
    ):
        refused(404, f"{b}{wrong}")
    assert served.startswith("http://127.0.0.1:")  # to this machine alone
    for host in ("elsewhere.example:80", "elsewhere.example", ""):
        refused(403, f"{served}/", Host=host)
    assert get(f"{served}/", Host="localhost") == get(f"{served}/")  # as browsers ask on port 80


PARTS = {
    "bytes=2-5": (slice(2, 6), "2-5"),
    "bytes=999990-": (slice(999_990, None), "999990-999999"),
    "bytes=0-2000000": (slice(None), "0-999999"),
}
NO_SINGLE_PART = ("bytes=-7", "bytes=0-1,4-5", "words=0-1", "bytes=-")


def test_players_may_ask_for_a_part(served: str, tmp_path: Path) -> None:
    content = bytes(range(250)) * 4000
    (tmp_path / "runs" / "b" / "film.mp4").write_bytes(content)
    film = f"{runs(served)['b']}film.mp4"
    for asked, (part, told) in (PARTS | dict.fromkeys(NO_SINGLE_PART, (slice(None), None))).items():
        request = urllib.request.Request(film, headers={"Range": asked})
        with urllib.request.urlopen(request) as answer:
            assert answer.read() == content[part]
            assert answer.status == (200 if told is None else 206)
            assert answer.headers["Content-Range"] == (told and f"bytes {told}/1000000")
            assert answer.headers["Content-Length"] == str(len(content[part]))
            assert answer.headers["Accept-Ranges"] == "bytes"
    for beyond in ("bytes=1000000-", "bytes=1000000-1000002", "bytes=5-2"):
        assert refused(416, film, Range=beyond)["Content-Range"] == "bytes */1000000"


def test_runs_are_compared_by_their_names(served: str, tmp_path: Path) -> None:
    folders.sample_folder(tmp_path / "runs" / "c", noise=(), seed=6)
    b, c = (runs(served)[name].rstrip("/").rpartition("/")[2] for name in "bc")
    assert "interventions: noise steps" in get(f"{served}/").decode()
    page = get(f"{served}/run/{b}+{c}/").decode()
    labels = [view["label"] for view in data_of(page)["views"]]
    assert labels[:2] == ["b, seed 0", "c, seed 0"]
    assert f'href="/run/{c}/planes.npz"' in page
    assert "What differs" in page
    refused(404, f"{served}/run/{b}+none/")


def test_changes_and_damage_are_said_where_they_are_looked_at(served: str, tmp_path: Path) -> None:
    address, folder = runs(served)["b"], tmp_path / "runs" / "b"
    get(address)
    (folder / "new.csv").write_text("a\n1\n")
    assert "new.csv" in get(address).decode()
    with np.load(folder / "planes.npz") as stored:
        whole = {name: stored[name] for name in stored.files if name != "x0_3"}
    np.savez_compressed(folder / "planes.npz", allow_pickle=False, **whole)
    assert "x0_3" in json.loads(get(f"{address}explore.data/view-3.json"))["error"]
    assert "sheet" in json.loads(get(f"{address}explore.data/view-0.json"))


def test_every_run_has_a_row_and_most_a_picture(served: str, tmp_path: Path) -> None:
    folders.look(1, 1).save(tmp_path / "runs" / "look", command="jcos demo")
    folders.generate_folder(tmp_path / "runs" / "gen")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{<b>")
    assert "run.json cannot be read" in get(f"{served}/").decode()
    pictures = {}
    for name, address in runs(served).items():
        with urllib.request.urlopen(f"{address}explore.thumbnail") as answer:
            pictures[name] = answer.headers["Content-Type"].removeprefix("image/")
            if name == "gen":
                with Image.open(answer) as last:
                    film = formats.read_mp4(tmp_path / "runs" / "gen" / "seed-0.mp4")
                    np.testing.assert_array_equal(np.asarray(last), film[-1])
    drawn = {"a": "svg+xml", "b": "png", "look": "png", "gen": "png"}
    assert pictures == drawn | {"broken": "svg+xml"}


def test_runs_of_two_checkpoints_differ_in_the_table(tmp_path: Path) -> None:
    said = {"a": ("small", "x"), "b": ("small", "x"), "c": ("large", "y" * 70)}
    for name, (model, text) in said.items():
        whose = {"name": model, "files": 32 * text[:1] + 32 * "0"}
        about = {"command": "jcos sample", "model": whose, "text": text}
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(about))
    rows = table.rows_of(tmp_path, {name: tmp_path / name for name in said})
    differs = {row["key"]: row["differs"] for row in rows}
    assert differs["a"] == differs["b"] == ""
    assert differs["c"].startswith("model: name large; ")
    assert differs["c"].endswith(f"text {'y' * 59}…")
