"""`jcos bench` from the command line."""

import json
import sys

import pytest

from jcos import cli
from jcos.bench.arm import load_arms
from jcos.bench.export import export
from jcos.lab.methods import Method, forwards
from jcos.variants import VARIANTS, with_profile
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").glob("vbvr_*.py"))
FIRST = "In-Domain_50/T-1_maze_data-generator/00000"


def commanded(*arguments: object) -> int:
    """The exit code of a command."""
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.slow
def test_the_whole_path_from_the_command_line(
    tmp_path, calls, capsys, refused, monkeypatch
) -> None:
    small, out = tmp_path / "small", tmp_path / "out"
    arms = tmp_path / "arms.py"
    arms.write_text(
        "from jcos.bench.arm import Arm\n"
        "arms = {n: Arm(profile=None, scale=1 / 8, seed=s) for n, s in (('a', 1), ('b', 2))}\n"
    )
    given = ["--samples", small, "--out", out, "--set", "sampling.steps=2"]
    assert commanded("bench", "export", small, "--tasks", "maze", "--per-task", 2) == 0
    assert commanded("bench", "run", arms, *given) == 0
    told = capsys.readouterr()
    assert "b: 2 of 2 videos" in told.out
    assert "b: done: 2 of 2" in told.err  # no terminal: plain lines
    scored = ["bench", "score", out / "a", out / "b", "--samples", small, "--out", out / "s"]
    monkeypatch.setattr(sys, "argv", ["/bin/jcos", *map(str, scored)])
    assert commanded(*scored) == 0
    assert (out / "s" / "table.csv").read_text().startswith("kind,arm,group,mean,low,high,n,")
    about = json.loads((out / "s" / "run.json").read_text())
    assert about["arms"] == {"a": str(out / "a"), "b": str(out / "b")}
    assert about["command"].startswith("jcos bench score ")
    extent = "2 samples, 0 of them of the benchmark's 500"
    assert about["samples"] == {"folder": str(small), "extent": extent}
    assert {"jcos", "jax"} <= about["versions"].keys()
    (out / "a" / f"{FIRST}.mp4").write_bytes(b"half")
    assert commanded(*scored) == 1
    assert "remove it and run again" in capsys.readouterr().err
    (small / FIRST / "prompt.txt").unlink()
    assert commanded("bench", "run", arms, *given) == 1
    assert "prompt.txt" in capsys.readouterr().err
    for words, says in (
        (("--arms", "c"), "has no arm 'c'; it has a, b"),
        (("--shard", "1"), "shard is '1'"),
        (("--set", "sampling.steps=3"), "arm.sampling.steps 2, not 3"),
        (("--mesh", "fsdp=2"), "fsdp=2 does not make up 1 device"),
    ):
        assert says in refused("bench", "run", arms, *given, *words)
    assert "no arms; name at least one" in refused("bench", "score", "--samples", small)


def test_what_may_be_of_either_benchmark_is_not_scored(tmp_path, refused) -> None:
    """Videos that another program made, and arms of both."""
    small = tmp_path / "small"
    export(small, ("maze",), 1, benchmark="vbvr-pro")
    arms = [tmp_path / name for name in ("elsewhere", "pro", "plain")]
    for arm, about in zip(arms, (None, {"benchmark": "vbvr-pro"}, {"arm": {}}), strict=True):
        arm.mkdir()
        if about is not None:
            (arm / "run.json").write_text(json.dumps(about))
    end = ["--samples", small, "--out", tmp_path / "s"]
    for some in (arms[:1], arms[1:]):
        assert "give --benchmark vbvr or" in refused("bench", "score", *some, *end)
    for some in ((arms[0], "--benchmark", "vbvr-pro"), (arms[1],)):
        assert commanded("bench", "score", *some, *end) == 1  # no videos
        assert "VBVR-Pro-Bench" in json.loads((tmp_path / "s/run.json").read_text())["question"]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_describes_its_arms(file):
    arms, benchmark = load_arms(file)
    assert benchmark == ("vbvr-pro" if file.stem == "vbvr_pro" else "vbvr")
    counts = {"base": 1, "small": 3, "ensemble": 3, "noise": 8, "search": 4, "pro": 14}
    assert len(arms) == counts[file.stem[5:]]
    for name, arm in arms.items():
        for model in ("wan2.2-ti2v-5b", "wan2.2-i2v-a14b", "wan2.1-i2v-14b"):
            config = VARIANTS[model]()
            settled = arm.of(with_profile(config, arm.profile) if arm.profile else config).sampling
        if arm.sampling.sigmas is not None:
            assert (settled.solver, settled.grid, settled.steps) == ("euler", "euler", 30)
        if file.stem == "vbvr_search":  # as its text says
            most = 226 if name == "latsearch" else 286
            assert forwards(arm.search or Method(rows=(), seeds=1), settled) == most
    if file.stem == "vbvr_ensemble":  # the paper's layers
        assert arms["ensemble"].numbers(50, 21, 40)["ensemble_layers"] == list(range(20, 30))
