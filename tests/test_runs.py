"""A run's folder: which run it holds, what is refused, and that nothing is lost or written over."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from jcos import cli, files, runs, wan
from jcos.bench.export import export
from jcos.bench.results import Folder
from jcos.media import formats
from jcos.weights.faults import LONGEST
from tests.conftest import Refused
from tests.report import folders

SETTINGS = {"checkpoint": "wan", "prompt": "a cat", "sampling": {"steps": 50, "shift": 5.0}}


def held(folder: Path, settings: dict, **made: object) -> Path:
    """A finished run of `jcos generate`, as far as its folder shows."""
    files.write(folder / runs.MANIFEST, runs.as_text(settings | made))
    files.write(folder / "latents.safetensors", b"1234")
    return folder


def refusal(folder: Path, settings: dict, kind: str = "checkpoint") -> str:
    with pytest.raises(ValueError, match=r".") as error:
        runs.holds(folder, kind, settings)
    said = str(error.value)
    assert len(said) <= LONGEST
    assert "\n" not in said
    return said


def test_the_same_run_goes_on_and_another_is_refused_with_both_values(tmp_path: Path) -> None:
    assert not runs.holds(tmp_path / "none", "checkpoint", SETTINGS)
    assert not runs.holds(tmp_path, "checkpoint", SETTINGS), "an empty folder is as good as none"
    held(tmp_path, SETTINGS, command="jcos generate wan", date="then")
    assert runs.holds(tmp_path, "checkpoint", SETTINGS)
    said = refusal(tmp_path, SETTINGS | {"sampling": {"steps": 20, "shift": 5.0}})
    assert "sampling.steps 50, not 20" in said
    assert "jcos generate wan" in said
    assert "shift" not in said


def test_an_entry_that_an_older_run_lacks_is_as_none(tmp_path: Path) -> None:
    held(tmp_path, SETTINGS)
    assert runs.holds(tmp_path, "checkpoint", SETTINGS | {"tiles": None})
    assert "tiles None, not [30, 52]" in refusal(tmp_path, SETTINGS | {"tiles": [30, 52]})


def test_many_and_long_differences_are_told_shortly(tmp_path: Path) -> None:
    held(tmp_path, {"checkpoint": 1, "prompt": "a" * 5000 + "b"}, command="jcos " + "x " * 5000)
    assert "ab…, not …" in refusal(tmp_path, {"prompt": "a" * 5000 + "c"})
    short = refusal(tmp_path, {"checkpoint": 2, "prompt": "c" * 99})
    assert "(checkpoint 1, not 2; 1 more)" in short
    assert "96 more" in refusal(tmp_path, {f"setting {i}": "x" * 99 for i in range(100)})


@pytest.mark.parametrize("content", [b"", b'{"seeds": [0', b"[1]", b"\xff\xfe{}", b"[" * 100_000])
def test_a_manifest_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    held(tmp_path, SETTINGS)
    (tmp_path / runs.MANIFEST).write_bytes(content)
    assert str(tmp_path / runs.MANIFEST) in refusal(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="damaged"):
        Folder(tmp_path).settle({"arm": {}}, {})


def test_of_two_processes_that_begin_at_once_one_settles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Folder(tmp_path).settle({"arm": {"seed": 1}}, {})
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(ValueError, match=r"arm.seed 1, not 2"):
        Folder(tmp_path).settle({"arm": {"seed": 2}}, {})
    assert [path.name for path in tmp_path.iterdir()] == [runs.MANIFEST]


def test_a_folder_of_sampled_puzzles_is_no_demo(tmp_path: Path) -> None:
    """Though its pictures are planes, too."""
    file = tmp_path / "run.json"
    file.write_text('{"puzzles": [], "planes": [], "command": "jcos sample maze"}')
    assert runs.read(file, "puzzles") is not None
    with pytest.raises(ValueError, match="of something else, made by `jcos sample maze`"):
        runs.read(file, "planes")


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    assert "thesis.tex" in refusal(tmp_path, SETTINGS)
    held(tmp_path, {"arm": {}}, command="jcos bench run")
    assert "jcos bench run" in refusal(tmp_path, SETTINGS)


def test_a_manifest_alone_holds_nothing_back(tmp_path: Path) -> None:
    """As a run leaves it that was killed while it sampled."""
    files.write(tmp_path / runs.MANIFEST, runs.as_text(SETTINGS))
    assert not runs.holds(tmp_path, "checkpoint", SETTINGS | {"prompt": "a dog"})


@pytest.mark.parametrize("fails", [False, True])
def test_work_that_fails_leaves_nothing(tmp_path: Path, fails: bool) -> None:
    out = tmp_path / "a" / "out"
    try:
        with runs.begun(out, SETTINGS, 1000):
            assert runs.read(out / runs.MANIFEST) == SETTINGS
            if fails:
                raise FloatingPointError
    except FloatingPointError:
        pass
    assert out.exists() is not fails


def test_what_links_point_to_is_never_changed(tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(b"other")
    out = tmp_path / "out"
    out.mkdir()
    (out / "symbolic.png").symlink_to(other)
    os.link(other, out / "hard.png")
    (out / ".half.png.part").symlink_to(other)
    for name in ("symbolic.png", "hard.png", "half.png"):
        files.write(out / name, b"new")
        assert (out / name).read_bytes() == b"new"
        assert not (out / name).is_symlink()
    assert other.read_bytes() == b"other"
    assert sorted(p.name for p in out.iterdir()) == ["half.png", "hard.png", "symbolic.png"]


def test_a_name_that_is_no_unicode_is_written_and_comes_back(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"caf\xe9")
    files.check_room(out)
    manifest = {"command": f"jcos generate --out {out}", "prompt": "Ein Weg für 猫"}
    files.write(out / runs.MANIFEST, runs.as_text(manifest))
    assert runs.read(out / runs.MANIFEST) == manifest
    formats.write_mp4(out / "a.mp4", np.zeros((1, 16, 16, 3), np.uint8))
    assert formats.read_mp4(out / "a.mp4").shape == (1, 16, 16, 3)


def test_a_folder_that_cannot_be_made_is_told_first(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for out in ("file", "file/out", "gone", "gone/out", "n" * 300, f"a/{'猫' * 90}/b"):
        with pytest.raises(ValueError, match=r"folder is needed|cannot be"):
            files.check_room(tmp_path / out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "gone"]
    files.check_room(tmp_path / "a" / "b", 1000, 1000)
    full = OSError(errno.EDQUOT, "Disk quota exceeded")
    monkeypatch.setattr(os, "posix_fallocate", Mock(side_effect=full))
    with pytest.raises(ValueError, match="Disk quota exceeded"):
        files.check_room(tmp_path / "a" / "b", 1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "gone"]


LIMITED = """
import numpy as np
from pathlib import Path
from jcos import files
from jcos.media import formats
video = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
for what in (
    lambda: files.write(Path("notes.json"), "x" * 9000),
    lambda: formats.write_mp4("film.mp4", video),
    lambda: files.check_room(Path("out"), 9000),
):
    try:
        what()
    except (OSError, ValueError) as error:
        print(error)
"""


def test_a_full_disk_is_told_with_the_file_and_leaves_no_half_of_it(tmp_path: Path) -> None:
    command = ["bash", "-c", 'ulimit -f 4; exec "$0" -c "$1"', sys.executable, LIMITED]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    notes, film, out = done.stdout.splitlines()
    assert "notes.json" in notes
    assert "film.mp4" in film
    assert out.startswith("out ")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def home(folder: Path) -> None:
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "me.png").write_bytes(formats.png(np.zeros((8, 8, 3), np.uint8)))
    (folder / "table.csv").write_text("a,b\n1,2\n")


def model(folder: Path) -> None:
    """As Hugging Face has them."""
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "WanModel", "dim": 5120}')


def numbers(folder: Path) -> None:
    folder.mkdir()
    (folder / "run.json").write_text("[1, 2]")
    (folder / "thesis.txt").touch()


def several(folder: Path) -> None:
    folders.sample_folder(folder / "one")


@pytest.mark.parametrize("make", [home, model, numbers, several])
def test_a_folder_that_is_none_of_ours_gets_no_page(
    tmp_path, refused, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "other")
    before = listing(tmp_path)
    said = refused("report", tmp_path / "other")
    assert "holds no results" in said
    assert make is not several or str(tmp_path / "other" / "one") in said
    assert listing(tmp_path) == before


def test_two_processes_may_note_the_same(tmp_path: Path, monkeypatch) -> None:
    """As actors do that cannot make a sample: one writes its note while another gives its name."""
    folder, write = Folder(tmp_path), Path.write_bytes

    def meanwhile(path: Path, data: bytes) -> int:
        size = write(path, data)
        monkeypatch.undo()
        folder.fail("maze/0", ValueError("another's"))
        return size

    monkeypatch.setattr(Path, "write_bytes", meanwhile)
    folder.fail("maze/0", ValueError("mine"))
    assert files.read_json(folder.about("maze/0", "failed"))["reason"] == "mine"


def test_a_page_of_a_folder_whose_name_is_no_unicode(tmp_path: Path) -> None:
    run, page = tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / "page.html"
    folders.sample_folder(run)
    cli.main(["report", str(run), "--out", str(page)])
    assert 'href="caf%E9/planes.npz"' in page.read_text()
    cli.main(["report", str(run)])
    assert (run / "index.html").is_file()


def test_a_page_replaces_no_other_file(tmp_path: Path, refused: Refused) -> None:
    run, notes = tmp_path / "run", tmp_path / "notes.html"
    folders.sample_folder(run)
    notes.write_text("<p>mine")
    (tmp_path / "folder").mkdir()
    before = listing(tmp_path)
    for out in (notes, run / "run.json", tmp_path / "folder"):
        assert str(out) in refused("report", run, "--out", out)
    assert listing(tmp_path) == before
    page = run / "index.html"
    page.symlink_to(tmp_path / "elsewhere.html")
    (tmp_path / "elsewhere.html").write_text('<meta name="generator" content="jcos report">')
    cli.main(["report", str(run)])
    assert not page.is_symlink()
    assert len((tmp_path / "elsewhere.html").read_text()) < 99
    (tmp_path / "folder" / "sheet-0.webp").touch()
    (run / "index.files").symlink_to(tmp_path / "folder")
    cli.main(["report", str(run)])
    assert (tmp_path / "folder" / "sheet-0.webp").is_file()


def test_no_command_writes_into_another_ones_folder(tmp_path, refused, monkeypatch) -> None:
    """Whatever it would write there; before weights are read."""
    monkeypatch.setattr(wan, "load", None)
    folders.arm_folder(tmp_path / "arm")
    export(tmp_path / "bench", ("maze",), 1)
    files.write(tmp_path / "foreign" / "index.html", "<p>mine")
    config = Path(__file__).parent.parent / "configs" / "steps.py"
    before = listing(tmp_path)
    for command in (
        ["demo"],
        ["sample", "maze"],
        ["bench", "score", tmp_path / "arm", "--samples", tmp_path / "bench"],
        ["run", config],
    ):
        said = refused(*command, "--out", tmp_path / "arm")
        assert str(tmp_path / "arm") in said, command
    for command in (
        ["demo"],
        ["sample", "maze"],
        ["search", "maze"],
        ["generate", wan.TINY, "--prompt", "x"],
        ["run", config],
    ):
        said = refused(*command, "--out", tmp_path / "foreign")
        assert str(tmp_path / "foreign") in said, command
        assert "index.html" in said, command
    with pytest.raises(ValueError, match="bench run"):
        folders.look(1, 1).save(tmp_path / "arm")
    assert listing(tmp_path) == before
