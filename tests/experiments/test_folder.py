"""A folder of results: whole or absent, never done twice, never mixed up."""

import csv
import dataclasses
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import save_file

from jcos import cli
from jcos.experiments import folder as folders
from jcos.experiments import plots, sweeps
from jcos.experiments.experiment import Experiment, Picture, Progress, Settings
from jcos.experiments.folder import run_to
from jcos.experiments.jacobian import Jacobian
from jcos.experiments.noise import Noise
from jcos.experiments.settings import override
from jcos.experiments.sweeps import sweep
from jcos.lab import results
from jcos.lab.results import Row, measure
from jcos.wan import TINY, Wan
from jcos.weights.checkpoint import identify

WHOLE = ["figures", "results.nc", "run.json", "table.csv"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coin(Experiment):
    """Needs no model; `broken` fails half-way."""

    question = "Is <this> a fair coin?"

    sides: int = 2
    broken: bool = False

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        progress("tossing", 1, 2)
        if self.broken:
            raise FloatingPointError("the coin is not finite")
        values = np.arange(self.puzzles) % self.sides == 0
        variables = {
            "heads": measure("puzzle", values, "heads"),
            "forwards": ((), self.forwards(model.config), {}),
        }
        return xr.Dataset(variables, {"task": ("puzzle", ["coin"] * self.puzzles)})

    def figures(self, data: xr.Dataset) -> Iterator[tuple[str, Picture]]:
        yield "heads", Picture(plots.paired(data["heads"], "heads"), "a < b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ends(Coin):
    """Two sweeps of a model, by default in chunks of one puzzle."""

    question = "How does it end?"

    def measure(self, model: Wan, progress: Progress) -> xr.Dataset:
        conditions = self.samples(model).conditions
        how: dict[str, Any] = {"chunk": self.chunk or 1, "progress": progress}
        ends = [sweep(model, conditions, (seed,), **how).latents for seed in (0, 1)]
        size = np.square(ends).mean((1, 3, 4, 5, 6, 7, 8))
        variables = {"heads": measure("seed puzzle", size, "size", span=(0, np.inf))}
        return xr.Dataset(variables, self.samples(model).coordinates())


Run = Callable[..., bool]


@pytest.fixture
def done(small_model: Wan) -> Run:
    """Runs an experiment of the small model into a folder."""

    def run(experiment: Experiment, folder: Path, weights: str = "0", **more: Any) -> bool:
        more = {"load": lambda: small_model, "weights": {"manifest": weights}} | more
        return run_to(folder, experiment, small_model.config, command="x", **more)

    return run


def heads(folder: Path) -> xr.DataArray:
    return results.load(folder / "results.nc")["heads"]


class Killed(BaseException):
    """As by a signal: nothing that handles errors sees it."""


def kill_at(what: str, number: int) -> Progress:
    """Return a callback that stops at the n-th call of this name."""
    calls = []

    def progress(name: str, done: int, total: int) -> None:
        del done, total
        calls.append(name)
        if calls.count(what) == number:
            raise Killed

    return progress


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of runs in each chunk that is kept."""
    computed: list[int] = []
    remember = sweeps._remember

    def counting(file: Path, tree: Any) -> None:
        computed.append(len(tree[0]))
        remember(file, tree)

    monkeypatch.setattr(sweeps, "_remember", counting)
    return computed


def test_a_folder_holds_what_was_run_and_measured(done: Run, tmp_path: Path) -> None:
    experiment = override(Coin(), ["puzzles=10", "sampling.steps=3"])
    assert done(experiment, tmp_path / "a" / "coin")
    folder = tmp_path / "a" / "coin"
    assert sorted(p.name for p in folder.iterdir()) == WHOLE
    assert [p.name for p in folder.parent.iterdir()] == ["coin"]
    manifest = json.loads((folder / "run.json").read_text())
    assert (manifest["experiment"], manifest["title"]) == ("coin", "Is <this> a fair coin?")
    assert manifest["parameters"]["puzzles"] == 10
    assert manifest["sampling"]["steps"] == 3
    assert manifest["model"] == {"name": "jcos-tiny", "manifest": "0"}
    assert {"jcos", "jax", "numpy"} <= manifest["versions"].keys()
    assert manifest["figures"] == {"heads": "a < b"}
    with (folder / "table.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert list(line) == list(Row._fields)
    assert (line["value"], line["n"], line["forwards"]) == ("0.5", "10", "3")
    assert 0.1 < float(line["low"]) < 0.5 < float(line["high"]) < 0.9
    assert results.load(folder / "results.nc", "coin")["heads"].sum() == 5
    assert ">heads</text>" in (folder / "figures" / "heads.svg").read_text()


def unneeded() -> Wan:
    raise AssertionError("weights were read")


def test_no_weights_are_read_for_what_is_there_already_or_refused(
    done: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "coin"
    assert done(Coin(), folder)
    before = (folder / "run.json").stat().st_mtime_ns
    for same in (Coin(), Coin(chunk=3)):  # chunk does not change results
        assert not done(same, folder, load=unneeded)
    with pytest.raises(ValueError, match=r"sides 2, not 3.*--out"):
        done(Coin(sides=3), folder, load=unneeded)
    with pytest.raises(ValueError, match="manifest 0, not 1"):
        done(Coin(), folder, weights="1", load=unneeded)
    assert (folder / "run.json").stat().st_mtime_ns == before
    for wrong in (Coin(puzzles=0), Coin(clips=tmp_path / "none.json"), Noise(steps=(50,))):
        with pytest.raises((ValueError, IndexError)):
            done(wrong, tmp_path / "x", load=unneeded)


def full(*_: object) -> bytes:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("drawn", [False, True])
def test_what_fails_leaves_nothing(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: bool
) -> None:
    """Whether it is the measuring or the drawing."""
    folder = tmp_path / "coin"
    with monkeypatch.context() as patch:
        patch.setattr(folders, "to_svg", full)
        with pytest.raises((FloatingPointError, OSError)):
            done(Coin(broken=not drawn), folder)
    assert [p.name for p in tmp_path.iterdir()] == [".coin.unfinished"]


def test_activations_come_from_another_disk(
    done: Run, small_model: Wan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, activations, rename = tmp_path / "store", tmp_path / "activations", os.rename

    def across(source: Any, target: Any) -> None:
        if Path(source) == activations:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    folder.mkdir()
    activations.mkdir()
    (activations / "new.nc").touch()
    monkeypatch.setattr(os, "rename", across)
    folders.write(folder, Coin(), Coin().run(small_model), {}, activations)
    assert [p.name for p in (folder / "activations").iterdir()] == ["new.nc"]
    assert (folder / "run.json").exists()
    assert not activations.exists()


def test_in_a_folder_that_is_there_the_manifest_comes_last(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be the one here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text('{"experiment": "coin"}')
    rename, moved = Path.rename, []

    def failing(source: Path, target: Path) -> Path:
        moved.append(source.name)
        if source.name == "run.json":
            raise OSError(5, "Input/output error")
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match="Input/output"):
            done(Coin(), Path())
    assert sorted(moved) == sorted(WHOLE)
    with pytest.raises(ValueError, match=r"figures, but no run\.json.*remove"):
        done(Coin(), Path())


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with larger chunks, and without those that were damaged."""
    computed = counted(monkeypatch)
    assert done(Ends(puzzles=3), tmp_path / "plain")
    assert computed == [1] * 6
    computed.clear()
    folder = tmp_path / "ends"
    with pytest.raises(Killed):  # before the second chunk of the second sweep
        done(Ends(puzzles=3), folder, progress=kill_at("sampling", 6))
    assert computed == [1] * 4
    assert not folder.exists()
    chunks = sorted((tmp_path / ".ends.unfinished").glob("*.npz"))
    assert len(chunks) == 4
    manifest = chunks[0].with_name("run.json")
    settings = manifest.read_bytes()
    manifest.write_bytes(b"")
    with pytest.raises(ValueError, match=r"ends\.unfinished holds .*remove it"):
        done(Ends(puzzles=3), folder)
    manifest.write_bytes(settings)
    whole = chunks[0].read_bytes()
    chunks[0].write_bytes(whole[:100])
    chunks[1].write_bytes(whole[:500] + b"damaged" + whole[507:])
    computed.clear()
    assert done(Ends(puzzles=3, chunk=2), folder)
    assert sum(computed) == 4, "two chunks were kept whole"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ends", "plain"]
    np.testing.assert_allclose(heads(folder), heads(tmp_path / "plain"), rtol=1e-5)


@pytest.mark.slow
def test_what_is_no_sweep_is_kept_too(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Jacobian(tasks=("rotation",), puzzles=2, sampling=Settings(steps=2), directions=1)
    computed = counted(monkeypatch)
    with pytest.raises(Killed):
        done(experiment, tmp_path / "killed", progress=kill_at("differentiating every step", 2))
    assert len(computed) == 1
    assert done(experiment, tmp_path / "killed")
    assert len(computed) == 2
    assert np.isfinite(results.load(tmp_path / "killed" / "results.nc")["size"]).all()


@pytest.mark.slow
def test_a_killed_run_is_not_mixed_with_other_settings_or_code(
    done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ends"

    def kill(**changes: Any) -> None:
        with pytest.raises(Killed):
            done(Ends(puzzles=3, **changes), folder, progress=kill_at("sampling", 2))

    kill()
    with pytest.raises(ValueError, match=r"sides 2, not 3.*remove it, or finish it"):
        done(Ends(puzzles=3, sides=3), folder)
    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "_code", lambda: "0123")
        with pytest.raises(ValueError, match=r"code .*, not 0123"):
            done(Ends(puzzles=3), folder)


def test_fine_tuned_weights_of_the_same_layout_are_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {f"blocks.{i}": rng.normal(size=(512, 512)).astype(np.float32) for i in range(6)}
    folders = [tmp_path / name for name in ("base", "copy", "tuned", "one-block")]
    tuned = {name: 1.01 * a for name, a in weights.items()}
    one = weights | {"blocks.3": tuned["blocks.3"]}
    for folder, tensors in zip(folders, (weights, weights, tuned, one), strict=True):
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        (folder / "README.md").write_text(folder.name[:4])
    base, copy, *others = map(identify, folders)
    assert base == copy
    assert base != identify(TINY)
    for other in others:
        assert other["files"] == base["files"]
        assert other["weights"] != base["weights"]


@pytest.mark.slow
def test_the_command_runs_an_experiment_of_the_shipped_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("puzzles=2", "tasks=maze", "sampling.steps=2")
    config_file = Path(__file__).parents[2] / "configs" / "steps.py"
    command = ["run", str(config_file), "--out", str(tmp_path / "steps")]
    cli.main([*command, *(word for change in changes for word in ("--set", change))])
    page = tmp_path / "steps" / "index.html"
    assert f"the page to look inside is at {page}" in capsys.readouterr().out
    assert 'id="figures"' in page.read_text()
    page.unlink()
    config = json.loads((tmp_path / "steps" / "run.json").read_text())
    assert config["model"]["manifest"] == identify(TINY)["manifest"]
    assert config["parameters"]["tasks"] == ["maze"]
    cli.main([*command, *(word for change in changes for word in ("--set", change))])
    assert "there already" in capsys.readouterr().out
    assert page.is_file(), "a page that is missing is made again"
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "puzzles 2, not 64" in capsys.readouterr().err
