"""A folder of results: whole or absent, never done twice, never mixed up."""

import csv
import dataclasses
import json
from collections.abc import Generator
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from safetensors.numpy import save_file

from jcos import cli
from jcos.experiments import plots
from jcos.experiments.experiment import Experiment, Findings, Picture, Row, row
from jcos.experiments.noise import Noise
from jcos.experiments.puzzles import Progress, finish
from jcos.experiments.results import conduct, describe, finished
from jcos.experiments.settings import override
from jcos.lab.measures import Estimate
from jcos.wan import TINY, Wan
from jcos.weights.checkpoint import identify


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coin(Experiment):
    """Needs no model; `broken` fails half-way."""

    question = "Is <this> a fair coin?"
    axes = MappingProxyType({"values": "puzzle"})

    sides: int = 2
    broken: bool = False

    def measure(self, model: Wan) -> Generator[Progress, None, Findings]:
        yield Progress("tossing", 1, 2)
        if self.broken:
            raise FloatingPointError("the coin is not finite")
        figure = plots.panels(1)
        plots.curve(figure.axes[0], range(3), np.eye(3)[:, :, None], "heads")
        values = np.arange(self.puzzles) % self.sides == 0
        rows = [
            row("coin", "heads", "first", values, self.forwards(model.config)),
            row("coin", "tails", "none", Estimate(float("nan"), float("nan"), float("nan"), 0), 0),
        ]
        return Findings({"values": values}, rows, {"heads": Picture(figure, "a < b")})


def done(experiment: Experiment, model: Wan, folder: Path, redo: bool = False) -> bool:
    steps = conduct(
        experiment,
        model.config,
        lambda: model,
        folder,
        weights={"manifest": "0"},
        command="x",
        redo=redo,
    )
    return finish(steps)


def test_a_folder_holds_what_was_run_and_found(small_model: Wan, tmp_path: Path) -> None:
    experiment = override(Coin(), ["puzzles=10", "sampling.steps=3"])
    assert done(experiment, small_model, tmp_path / "a" / "coin")
    folder = tmp_path / "a" / "coin"
    assert sorted(p.name for p in folder.iterdir()) == [
        "arrays.npz",
        "config.json",
        "figures",
        "table.csv",
    ]
    assert [p.name for p in folder.parent.iterdir()] == ["coin"]
    config = json.loads((folder / "config.json").read_text())
    assert config["parameters"]["puzzles"] == 10
    assert config["sampling"]["steps"] == 3
    assert config["model"] == {"name": "jcos-tiny", "manifest": "0"}
    assert {"jcos", "jax", "numpy"} <= config["versions"].keys()
    with (folder / "table.csv").open() as file:
        first, second = csv.DictReader(file)
    assert list(first) == list(Row._fields)
    assert (first["value"], first["n"], first["forwards"]) == ("0.5", "10", "3")
    assert 0.1 < float(first["low"]) < 0.5 < float(first["high"]) < 0.9
    assert (second["value"], second["chance"]) == ("", "")
    assert np.load(folder / "arrays.npz")["values"].sum() == 5
    assert (folder / "figures" / "heads.png").read_bytes().startswith(b"\x89PNG")
    assert config["figures"] == {"heads": "a < b"}
    assert config["axes"] == {"values": "puzzle"}


def test_finished_results_are_left_alone(small_model: Wan, tmp_path: Path) -> None:
    folder = tmp_path / "coin"
    assert done(Coin(), small_model, folder)
    before = (folder / "config.json").stat().st_mtime_ns
    assert not done(Coin(), small_model, folder)
    assert not done(Coin(chunk=3), small_model, folder), "chunk does not change results"
    assert (folder / "config.json").stat().st_mtime_ns == before
    assert done(Coin(), small_model, folder, redo=True)
    assert (folder / "config.json").stat().st_mtime_ns > before


def test_results_of_other_settings_are_not_overwritten(small_model: Wan, tmp_path: Path) -> None:
    folder = tmp_path / "coin"
    done(Coin(), small_model, folder)
    with pytest.raises(ValueError, match=r"sides 2, not 3.*--redo"):
        done(Coin(sides=3), small_model, folder)
    assert done(Coin(sides=3), small_model, folder, redo=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for redo in (False, True):
        with pytest.raises(ValueError, match=r"notes\.txt"):
            done(Coin(), small_model, other, redo)
    (other / "notes.txt").unlink()
    assert done(Coin(), small_model, other), "an empty folder is as good as none"


def test_what_fails_leaves_nothing_behind(small_model: Wan, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        done(Coin(broken=True), small_model, tmp_path / "coin")
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_is_checked_before_its_folder_is_looked_at(
    small_model: Wan, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="puzzles is 0; at least 1"):
        done(Coin(puzzles=0), small_model, tmp_path / "coin")


def unneeded() -> Wan:
    raise AssertionError("weights were read")


def test_no_weights_are_read_for_what_is_refused_or_there_already(
    small_model: Wan, tmp_path: Path
) -> None:
    config, weights = small_model.config, {"manifest": "0"}
    for wrong in (Coin(puzzles=0), Coin(clips=tmp_path / "none.json"), Noise(steps=(50,))):
        run = conduct(wrong, config, unneeded, tmp_path / "x", weights=weights, command="x")
        with pytest.raises((ValueError, IndexError)):
            finish(run)
    folder = tmp_path / "coin"
    assert done(Coin(), small_model, folder)
    args = (config, unneeded, folder)
    assert not finish(conduct(Coin(), *args, weights=weights, command="x"))
    with pytest.raises(ValueError, match="other settings"):
        finish(conduct(Coin(sides=3), *args, weights=weights, command="x"))


def test_results_older_than_a_parameter_are_those_without_it(
    small_model: Wan, tmp_path: Path
) -> None:
    folder = tmp_path / "coin"
    done(Coin(), small_model, folder)
    about = json.loads((folder / "config.json").read_text())
    del about["parameters"]["profile"]
    (folder / "config.json").write_text(json.dumps(about))
    assert not done(Coin(), small_model, folder)
    with pytest.raises(ValueError, match="profile None, not float32"):
        done(Coin(profile="float32"), small_model, folder)


def test_weights_are_identified_by_what_they_are(tmp_path: Path) -> None:
    assert identify(TINY) == identify(TINY)
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    first = identify(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    assert identify(tmp_path) != first
    assert identify(tmp_path) != identify(TINY)


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
    for other in others:
        assert other["files"] == base["files"]
        assert other["weights"] != base["weights"]


def test_results_that_know_only_names_and_sizes_are_refused(
    small_model: Wan, tmp_path: Path
) -> None:
    folder = tmp_path / "coin"
    about = describe(Coin(), small_model.config, {"files": "0", "weights": "1"})
    old = describe(Coin(), small_model.config, {"files": "0"})
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "table.csv").touch()
    assert finished(folder, about)
    (folder / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="weights None, not 1"):
        finished(folder, about)


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
    assert '<section class="plane"' in page.read_text()
    page.unlink()
    config = json.loads((tmp_path / "steps" / "config.json").read_text())
    assert config["model"]["manifest"] == identify(TINY)["manifest"]
    assert config["parameters"]["tasks"] == ["maze"]
    cli.main([*command, *(word for change in changes for word in ("--set", change))])
    assert "there already" in capsys.readouterr().out
    assert page.is_file(), "a page that is missing is made again"
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "puzzles 2, not 64" in capsys.readouterr().err


def test_the_command_says_in_one_sentence_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["run", str(tmp_path / "none.py"), "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("jcos: there is no file")
    assert "\n" not in told
    assert list(tmp_path.iterdir()) == []
