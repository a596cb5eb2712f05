"""The benchmark on a local Ray cluster of two actors, one of which is killed."""

import os
import signal
import time
from pathlib import Path
from threading import Thread

import pytest

from jcos import cli
from jcos.bench import cluster
from jcos.bench.export import export
from jcos.bench.folder import read_bench
from jcos.bench.results import Folder, read_json
from tests.conftest import ROOT
from tests.many_devices import free_port


def actors() -> list[int]:
    """Processes of Ray that hold a model."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if (entry / "cmdline").read_bytes().startswith(b"ray::_Actor"):
                    found.append(int(entry.name))
            except OSError:  # it has just ended
                continue
    return found


@pytest.mark.slow
@pytest.mark.extra("ray")
@pytest.mark.filterwarnings("ignore")  # Ray leaves files and threads open
def test_an_actor_that_is_killed_is_started_again(tmp_path, monkeypatch) -> None:
    samples, out, before = tmp_path / "small", tmp_path / "out", set(actors())
    export(samples, ("maze",), 6)
    arms = "from tests.bench.test_run import SMALL\narms = {'base': SMALL}\n"
    (tmp_path / "arms.py").write_text(arms)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    killed: list[int] = []

    def kill() -> None:
        """Kill an actor of this test once the first video is there."""
        while not list(out.rglob("*.mp4")):
            time.sleep(0.05)
        victim = min(set(actors()) - before)
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    Thread(target=kill, daemon=True).start()
    words = ["bench", "run", tmp_path / "arms.py", "--samples", samples, "--out", out, "--ray"]
    monkeypatch.setattr("jcos.bench.cluster.CORES", 2)
    cli.main([str(word) for word in words])
    assert killed
    bench = read_bench(samples)
    assert Folder(out / "base").status(bench).complete
    assert len(list(out.rglob("*.mp4"))) == 6
    assert read_json(out / "base" / "run.json")["arm"]


@pytest.mark.extra("ray")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--ray", "--shard", "0/2"), "leave out --join and --shard"),
        (("--address", "localhost:1"), "give --ray, too"),
        (("--ray", "--address", "here"), "it is HOST:PORT"),
        (("--ray", "--address", "localhost:PORT"), "no Ray cluster answers at localhost:"),
        (("--shard", "3/2"), "shard is '3/2'; it is I/N with I below N"),
    ],
)
def test_wrong_input_is_one_sentence(words: tuple[str, ...], says: str, tmp_path, refused) -> None:
    export(tmp_path / "small", ("maze",), 1)
    given = [word.replace(":PORT", f":{free_port()}") for word in words]
    run = ("bench", "run", "vbvr_base", "--samples", tmp_path / "small", "--out", tmp_path / "out")
    assert says in refused(*run, *given)
    assert not (tmp_path / "out").exists()


MESHED = [{"GPU": 3.0, "CPU": 8.0}, {"GPU": 3.0, "CPU": 8.0}, {"CPU": 64.0}]


@pytest.mark.parametrize(
    ("nodes", "devices", "share"),
    [
        (MESHED, 1, ({"num_gpus": 1}, 6)),
        (MESHED, 2, ({"num_gpus": 2}, 2)),  # not 6 // 2
        ([{"TPU": 4.0}, {"TPU": 4.0}], 4, ({"resources": {"TPU": 4}}, 2)),
        ([{"CPU": 3.0}, {"CPU": 1.0}, {}], 1, ({"num_cpus": 1}, 4)),
        (MESHED, 6, "no machine of the cluster has 6 GPUs"),
        ([{"CPU": 8.0}], 2, "--mesh takes 2 devices; this cluster has CPU cores alone"),
        ([{}], 1, "no machine of the cluster has 1 CPUs"),
    ],
)
def test_an_actor_is_on_one_machine(nodes: list, devices: int, share: tuple | str) -> None:
    if isinstance(share, str):
        with pytest.raises(ValueError, match=share):
            cluster._share(nodes, devices)
    else:
        assert cluster._share(nodes, devices) == share


def test_a_cluster_is_not_asked_for_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the extra ray: pip install 'jcos\[ray\]'"):
        cluster.Cluster()
