"""Paths: which of them are refused before any work, whichever option or function they came by."""

import datetime as dt
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from tyro.constructors import PrimitiveConstructorSpec

import jcos
from convert.__main__ import Arguments
from convert.__main__ import main as convert
from convert.verify import main as verify
from jcos import cli, files, remote, wan
from jcos.cli import bench
from jcos.devices import programs
from jcos.experiments.folder import run_to
from jcos.experiments.settings import load_experiment, override
from jcos.experiments.steps import Steps
from jcos.model.text import cached, read_prompt
from jcos.variants import toy
from jcos.weights import checkpoint
from tests.conftest import ROOT, Refused

REMOTE = ("gs://bucket/out", "s3://bucket/a", "hf://owner/name", "file:///tmp/x", "https://a.b/c")
STEPS = str(ROOT / "configs" / "steps.py")
TINY = str(wan.TINY)
BENCH = ("bench", "run", str(ROOT / "configs" / "vbvr_base.py"))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that opens buckets is installed."""
    monkeypatch.setattr(remote, "find_spec", lambda name: None)


COMMANDS = [  # of each kind of path one; test_no_option_of_a_path_is_read_otherwise
    ("demo", "--checkpoint", "{}"),
    ("run", "{}"),
    ("run", STEPS, "--set", "clips={}"),
    ("generate", TINY, "--prompt", "x", "--image", "{}"),
    ("generate", TINY, "--prompt", "x", "--text-cache", "{}"),
    (*BENCH, "--samples", TINY, "--out", "{}"),
    ("bench", "export", "{}"),
    ("run", "--example-clips", "{}"),
    ("report", "{}"),
    ("tasks", "--out", "{}"),
]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_option_refuses_what_is_on_no_disk(
    command: tuple[str, ...], refused, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in REMOTE:
        said = refused(*(word.format(path) for word in command))
        assert said.startswith(f"jcos: {path.partition('//')[0]}//")
    for path, word in (("a\0b", "NUL"), ("", "empty")):
        assert word in refused(*(word.format(path) for word in command))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("option", ["source", "target", "--lora"])
def test_convert_refuses_it_before_it_reads(option: str, refused, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"source": TINY, "target": "out"}
    for path in REMOTE:
        source, target = (given | {option: path})["source"], (given | {option: path})["target"]
        more = (option, path) if option.startswith("--") else ()
        said = refused(source, target, *more, main=convert)
        assert said.startswith(f"python -m convert: {path}")
    assert "gs://a" in refused("gs://a", main=verify)
    assert "gs://a" in refused(TINY, "--json", "gs://a", main=verify)
    assert list(tmp_path.iterdir()) == []


def test_no_option_of_a_path_is_read_otherwise() -> None:
    """All of them say what they are for."""

    def is_plain(hint: Any) -> bool:
        if get_origin(hint) is Annotated and get_args(hint)[0] is Path:
            return not any(isinstance(a, PrimitiveConstructorSpec) for a in get_args(hint)[1:])
        return hint is Path or any(map(is_plain, get_args(hint)))

    for kind in (*cli.COMMANDS.values(), bench.Run, bench.Score, bench.Export, Arguments):
        hints: Any = get_type_hints(kind, include_extras=True)
        assert not [name for name, hint in hints.items() if is_plain(hint)], kind


CONFIG = toy(("left",))
FUNCTIONS: list[Any] = [
    jcos.load,
    wan.read_config,
    checkpoint.read_manifest,
    programs.keep,
    load_experiment,
    lambda path: cached(path, [], "float32", 1, lambda: (None, None)),
    lambda path: checkpoint.save(path, CONFIG, {}, {}),
    lambda path: files.write(Path(path), "x"),
    lambda path: read_prompt(f"{path}.txt"),
    lambda path: override(Steps(), [f"clips={path}"]),
    lambda path: run_to(path, Steps(), CONFIG, lambda: wan.load(path), weights={}, command=""),
]


@pytest.mark.usefixtures("alone")
def test_functions_refuse_it_as_text_and_as_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for function in FUNCTIONS:
        with pytest.raises(ValueError, match="gs://"):
            function(Path("gs://bucket/folder"))
    assert list(tmp_path.iterdir()) == []


def test_a_place_in_a_bucket_is_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "find_spec", lambda name: name == "gcsfs")
    path = files.any_path(Path("gs://bucket/folder"))
    assert isinstance(path, Path)
    assert [str(p) for p in (path / "a.txt", path.parent, path.with_name("b"))] == [
        "gs://bucket/folder/a.txt",
        "gs://bucket",
        "gs://bucket/b",
    ]
    assert files.any_path(path) == path == pickle.loads(pickle.dumps(path))
    assert path.absolute() == path
    with pytest.raises(ValueError, match=r"needs the extra s3: pip install 'jcos\[s3\]'"):
        files.any_path("s3://bucket")
    with pytest.raises(ValueError, match="names no bucket; write gs://BUCKET/FOLDER"):
        files.any_path("gs://")
    for wrong in ("gs:bucket/x", "s3:bucket/x", "gs:/bucket/x", "gs://bucket/a/../b"):
        with pytest.raises(ValueError, match=rf"{wrong} (is no place in a bucket|has a '\.\.')"):
            files.any_path(wrong)


@pytest.mark.parametrize("name", ["mtime", "LastModified"])  # of gcsfs, of s3fs
def test_an_object_that_is_replaced_has_another_time(name: str, monkeypatch) -> None:
    """Also by one of the same size, from which scores would be taken for those of the old one."""
    times = iter(dt.datetime(2026, 1, 1, 0, 0, s, 500, dt.UTC) for s in (1, 2))

    def info(place: str) -> dict[str, Any]:
        return {"name": place, "type": "file", "size": 3, name: next(times)}

    monkeypatch.setattr(remote, "find_spec", lambda name: True)
    monkeypatch.setattr(remote.RemotePath, "_backend", SimpleNamespace(info=info))
    before, after = (files.any_path("s3://bucket/a.mp4").stat() for _ in range(2))
    assert after.st_mtime_ns - before.st_mtime_ns == 10**9
    assert (after.st_size, after.st_mtime) == (3, before.st_mtime + 1)
    with pytest.raises(ValueError, match="is on no disk of this machine"):
        files.local_path("gs://bucket/folder")


def test_a_colon_is_no_scheme() -> None:
    for path in ("C:/videos", "12:30/run", "a:b", "out/gs:/x", "/gs:/x"):
        assert files.local_path(path) == Path(path)


# ---- what is there


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (files.check_file, ["file"], ["folder", "none", "file/none"]),
        (files.check_folder, ["folder"], ["file", "none"]),
        (files.check_there, ["file", "folder"], ["none"]),
        (files.check_new_file, ["file", "none", "a/b/c"], ["folder", "file/none", "file/a/b"]),
        (files.check_new_folder, ["folder", "none", "a/b/c"], ["file", "file/none"]),
        (files.check_cache, ["folder", "none", "a/b"], ["file", "file/none"]),
    ],
)
def test_uses_are_checked_and_nothing_is_left(
    check: Any, right: list[str], wrong: list[str], here: Path
) -> None:
    before = sorted(here.rglob("*"))
    for name in right:
        check(here / name)
    for name in (*wrong, "x" * 3000):
        with pytest.raises(ValueError, match=re.escape(name.partition("/")[0][:60])) as error:
            check(here / name)
        assert len(str(error.value)) < 600
    assert sorted(here.rglob("*")) == before


@pytest.mark.skipif(not Path("/proc/1").exists(), reason="needs a folder that nobody can write to")
def test_what_cannot_be_written_is_refused_by_trying(refused: Refused, here: Path) -> None:
    """The rights of a folder say nothing to root, so it is tried."""
    for path in ("/proc/jcos", "/proc/jcos/a/b"):
        assert "/proc" in refused("sample", "maze", "--out", path)
    assert "/proc" in refused(TINY, "/proc/jcos", main=convert)
    if os.getuid():
        (here / "folder").chmod(0o500)
        assert "Permission" in refused("demo", "--out", str(here / "folder" / "out"))


def test_what_is_not_written_need_not_be_writable(capsys, refused) -> None:
    cli.main(["tasks", "--out", "/proc/jcos"])
    assert "maze" in capsys.readouterr().out
    assert "/proc" in refused("tasks", "--draw", "1", "--out", "/proc/jcos")


# ---- files of text


@pytest.mark.parametrize("data", [b"maze left\n", b"\xef\xbb\xbfmaze left\r\n"])
def test_a_prompt_is_read_from_a_file_of_any_editor(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(data)
    assert read_prompt("prompt.txt", tmp_path) == "maze left"
    assert read_prompt(str(tmp_path / "prompt.txt")) == "maze left"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"caf\xe9"),
        ("a.txt", b"a\0b"),
        ("a.txt", b" \n"),
        ("a.txt", None),
        ("a.npy", b""),
        ("a.npy", b"words"),
        ("a.npy", b"\x93NUMPY"),
        ("a.npy", None),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(name: str, data: bytes | None, tmp_path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(name)) as refusal:
        read_prompt(name, tmp_path)
    assert "pickle" not in str(refusal.value)


def test_rows_of_another_kind_are_refused(tmp_path: Path) -> None:
    for rows in (np.zeros(4, np.float32), np.zeros((2, 3), int), np.array([["a"]])):
        np.save(tmp_path / "rows.npy", rows)
        with pytest.raises(ValueError, match=r"rows\.npy"):
            read_prompt("rows.npy", tmp_path)


# ---- configs


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("README.md", "# hello", "README.md is no Python file"),
        ("a.py", "experiment = (", "a.py, line 1: "),
        ("a.py", "a = 1\nb = 1 / 0\n", "a.py, line 2: ZeroDivisionError"),
        ("a.py", "import nothing_of_that_name\n", "a.py, line 1: ModuleNotFoundError"),
        ("a.py", "from jcos.experiments.steps import Steps\n\nSteps(puzzels=3)\n", "line 3: TypeE"),
        ("a.py", "x = 3\n", "a.py describes no "),
        ("a.py", "experiment = 3\narms = 3\n", "a.py describes no "),
        ("a.py", "\0", "a.py"),
        ("a.py", "# caf\udce9", "a.py"),
        ("folder.py/x", "", "folder.py is a folder"),
        ("none.py", None, "there is no file "),
    ],
)
@pytest.mark.parametrize("bench", [False, True])
def test_a_config_that_is_none_is_one_sentence(
    name: str, content: str | None, says: str, bench: bool, tmp_path, refused
) -> None:
    file = tmp_path / name
    if content is not None:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
    config = str(tmp_path / Path(name).parts[0])
    command = ("bench", "run", config, "--samples", TINY) if bench else ("run", config)
    assert says in refused(*command, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
