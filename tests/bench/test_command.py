"""`jcos bench` from the command line."""

import csv
import itertools
import json
import re
import sys

import pytest

from jcos import cli
from jcos.bench.arm import Arm, load_arms
from jcos.bench.export import export
from jcos.cli.common import console
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


def test_the_time_left_is_told_however_long_a_sample_takes(
    tmp_path, calls, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(console, "get_time", itertools.count(0, 3600).__next__)
    assert commanded("bench", "export", tmp_path / "small", "--tasks", "maze", "--per-task", 6) == 0
    run = ["bench", "run", CONFIGS[-1], "--arms", "base", "--samples", tmp_path / "small"]
    assert commanded(*run, "--out", tmp_path / "out", "--batch", 1) == 0
    assert re.search(
        r"^base: .*: [345] of 6, .*\d:00:00 left$", capsys.readouterr().err, re.MULTILINE
    )


def test_two_arms_of_one_name_stand_in_one_table(bench_folder, tmp_path, capsys, refused) -> None:
    assert "no arms; name at least one" in refused("bench", "score", "--samples", tmp_path)
    for name in ("1/base", "2/base"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "1/base/run.json").write_text(json.dumps({"arm": {"crf": 20}}))
    score = ["bench", "score", tmp_path / "1/base", tmp_path / "2/base", "--samples", bench_folder]
    assert commanded(*score, "--out", tmp_path / "s") == 1
    assert "1/base 20; still 25" in capsys.readouterr().err
    with (tmp_path / "s" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    arms = dict.fromkeys(row["arm"] for row in rows if row["kind"] == "score")
    assert list(arms) == ["1/base", "2/base", "still", "truth"]
    assert {row["arm"] for row in rows if row["kind"] == "less 1/base"} == {"2/base"}


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
        assert "give --benchmark vbvr or --benchmark vbvr-pro" in refused(
            *("bench", "score", *some, *end)
        )
        assert commanded("bench", "score", *some, *end, "--benchmark", "vbvr-pro") == 1
    assert commanded("bench", "score", arms[1], *end) == 1  # no videos


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_describes_its_arms(file):
    arms, _ = load_arms(file)
    counts = {"base": 1, "small": 3, "ensemble": 3, "noise": 8, "search": 4, "pro": 14}
    assert len(arms) == counts[file.stem[5:]]
    assert all(isinstance(arm, Arm) for arm in arms.values())
    assert f"jcos bench run configs/{file.name}" in file.read_text()
    if file.stem == "vbvr_ensemble":  # the paper's layers
        assert arms["ensemble"].numbers(50, 21, 40)["ensemble_layers"] == list(range(20, 30))
    if file.stem == "vbvr_search":  # as its text says
        config = with_profile(VARIANTS["wan2.2-i2v-a14b"](), "diffsynth")
        for name, arm in arms.items():
            method = arm.search or Method(rows=(), seeds=1)
            most = 226 if name == "latsearch" else 286
            assert forwards(method, arm.of(config).sampling) == most
