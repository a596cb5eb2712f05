"""What `jcos explore` serves: the runs below a folder, to this machine alone."""

import base64
import io
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jcos.report import live
from tests.report import folders
from tests.report.test_explorer import data_of


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a folder with an experiment in `a` and a sample in `b`."""
    folders.experiment_folder(tmp_path / "runs" / "a")
    folders.sample_folder(tmp_path / "runs" / "b")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "runs" / "b" / "out").symlink_to(tmp_path / "secret.txt")
    running = live.server(tmp_path / "runs", 0)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def get(address: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        return answer.read()


def test_live_lists_runs_and_serves_only_them(served: str, tmp_path: Path) -> None:
    listed = get(f"{served}/").decode()
    a, b = sorted(re.findall(r'href="(run/\w+/)"><b>(\w)</b>', listed), key=lambda run: run[1])
    assert ">solved</small>" in listed
    assert "Where does noise hurt?" in get(f"{served}/{a[0]}").decode()
    page = get(f"{served}/{b[0]}").decode()
    assert len(data_of(page)["views"]) == 4
    assert 'id="view-0"' not in page  # runs are asked for when they are looked at
    view = json.loads(get(f"{served}/{b[0]}explore.data/view-2.json"))
    with Image.open(io.BytesIO(base64.b64decode(view["sheet"].partition(",")[2]))) as picture:
        assert picture.format == "PNG"
    chart = json.loads(get(f"{served}/{a[0]}explore.data/chart-0.json"))
    assert chart["title"] == "Solved"
    assert len(get(f"{served}/{b[0]}arrays.npz")) == (
        (tmp_path / "runs" / "b" / "arrays.npz").stat().st_size
    )
    with urllib.request.urlopen(f"{served}/{a[0]}figures/noise.svg") as figure:
        assert "sandbox" in figure.headers["Content-Security-Policy"]
    for wrong in (
        *("../../secret.txt", "..%2f..%2fsecret.txt", "out", "none", "%00"),
        *("explore.data/view-9.json", "explore.data/chart-x.json", "explore.data/view--1.json"),
    ):
        with pytest.raises(urllib.error.HTTPError, match="404") as error:
            get(f"{served}/{b[0]}{wrong}")
        error.value.close()


def test_live_answers_to_this_machine_alone(served: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403") as error:
        get(f"{served}/", Host="elsewhere.example:80")
    error.value.close()
    assert served.startswith("http://127.0.0.1:")


def run_b(served: str) -> str:
    """The address of the sample."""
    found = re.search(r'href="(run/\w+/)"><b>b<', get(f"{served}/").decode())
    assert found
    return f"{served}/{found[1]}"


@pytest.mark.parametrize(
    ("asked", "part", "told"),
    [
        ("bytes=2-5", slice(2, 6), "2-5"),
        ("bytes=999990-", slice(999_990, None), "999990-999999"),
        ("bytes=-7", slice(-7, None), "999993-999999"),
        ("bytes=0-2000000", slice(None), "0-999999"),
        ("bytes=-2000000", slice(None), "0-999999"),
        # What is no single range is answered with all.
        ("bytes=5-2", slice(None), None),
        ("bytes=0-1,4-5", slice(None), None),
        ("words=0-1", slice(None), None),
        ("bytes=-", slice(None), None),
    ],
)
def test_players_may_ask_for_a_part(
    served: str, tmp_path: Path, asked: str, part: slice, told: str | None
) -> None:
    content = bytes(range(250)) * 4000
    (tmp_path / "runs" / "b" / "film.mp4").write_bytes(content)
    request = urllib.request.Request(f"{run_b(served)}film.mp4", headers={"Range": asked})
    with urllib.request.urlopen(request) as answer:
        assert answer.read() == content[part]
        assert answer.status == (200 if told is None else 206)
        assert answer.headers["Content-Range"] == (told and f"bytes {told}/1000000")
        assert answer.headers["Content-Length"] == str(len(content[part]))
        assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_a_part_that_is_not_there_is_refused(served: str, tmp_path: Path, asked: str) -> None:
    (tmp_path / "runs" / "b" / "film.mp4").write_bytes(bytes(10))
    with pytest.raises(urllib.error.HTTPError, match="416") as error:
        get(f"{run_b(served)}film.mp4", Range=asked)
    assert error.value.headers["Content-Range"] == "bytes */10"
    error.value.close()


def test_runs_are_compared_by_their_names(served: str, tmp_path: Path) -> None:
    folders.sample_folder(tmp_path / "runs" / "c", noise=(), seed=6)
    listed = get(f"{served}/").decode()
    b, c = (re.findall(rf'href="run/(\w+)/"><b>{name}<', listed)[0] for name in "bc")
    assert "interventions: noise steps" in listed
    page = get(f"{served}/run/{b}+{c}/").decode()
    labels = [view["label"] for view in data_of(page)["views"]]
    assert labels[:2] == ["b, seed 0", "c, seed 0"]
    assert f'href="/run/{c}/arrays.npz"' in page
    assert "What differs" in page
    with pytest.raises(urllib.error.HTTPError, match="404") as error:
        get(f"{served}/run/{b}+none/")
    error.value.close()


def test_what_changes_is_read_again(served: str, tmp_path: Path) -> None:
    address = run_b(served)
    get(address)
    (tmp_path / "runs" / "b" / "new.csv").write_text("a\n1\n")
    assert "new.csv" in get(address).decode()


def test_damage_is_said_where_it_is_looked_at(served: str, tmp_path: Path) -> None:
    file = tmp_path / "runs" / "b" / "arrays.npz"
    whole = dict(np.load(file))
    np.savez_compressed(file, allow_pickle=False, **whole | {"x0": whole["x0"][:1]})
    view = json.loads(get(f"{run_b(served)}explore.data/view-3.json"))
    assert "cannot be read" in view["error"]
    assert "sheet" in json.loads(get(f"{run_b(served)}explore.data/view-0.json"))


def test_every_run_has_a_row_and_most_a_picture(served: str, tmp_path: Path) -> None:
    folders.look(1, 1).save(tmp_path / "runs" / "look", command="jcos demo")
    folders.generate_folder(tmp_path / "runs" / "gen")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{<b>")
    listed = get(f"{served}/").decode()
    assert "run.json cannot be read" in listed
    kinds = {}
    for key, name in re.findall(r'href="(run/\w+/)"><b>(\w+)<', listed):
        with urllib.request.urlopen(f"{served}/{key}explore.thumbnail") as answer:
            kinds[name] = answer.headers["Content-Type"]
    pictures = {name: kind.removeprefix("image/") for name, kind in kinds.items()}
    drawn = {"a": "svg+xml", "look": "png", "gen": "png"}
    assert pictures == drawn | {"b": "svg+xml", "broken": "svg+xml"}
