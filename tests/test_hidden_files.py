"""What systems leave beside files (`.DS_Store`, `._name`) is nowhere taken for content."""

from pathlib import Path

from jcos.bench.export import export
from jcos.bench.folder import read_bench
from jcos.files import visible
from jcos.report.reading import files_of
from jcos.weights.checkpoint import identify


def litter(folder: Path) -> None:
    """Leave hidden files and a hidden folder beside everything in a folder."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            (path / ".DS_Store").write_bytes(b"\0")
        else:
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "a.json").write_text("{}")


def test_visible_files_of_a_folder(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("a.json", "b/c.json", "b/c.txt"):
        (tmp_path / name).write_text("{}")
    litter(tmp_path)
    assert visible(tmp_path) == [tmp_path / "a.json", tmp_path / "b"]
    assert visible(tmp_path, "**/*.json") == [tmp_path / "a.json", tmp_path / "b" / "c.json"]
    assert visible(tmp_path / "none") == []
    # Where the folder itself is hidden, what is in it is not.
    assert visible(tmp_path / ".cache") == [tmp_path / ".cache" / "a.json"]


def test_a_benchmark_is_the_same_with_them(tmp_path):
    bench = tmp_path / "bench"
    bench.mkdir()
    (bench / ".DS_Store").write_bytes(b"\0")
    export(bench, ("maze",), 1)  # into a folder that counts as empty
    before = read_bench(bench)
    litter(bench)
    assert read_bench(bench) == before


def test_weights_and_results_are_the_same_with_them(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    (tmp_path / "config.json").write_text("{}")
    weights, files = identify(tmp_path), files_of(tmp_path)
    litter(tmp_path)
    assert identify(tmp_path) == weights
    assert files_of(tmp_path) == files
