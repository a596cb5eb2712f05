"""The benchmark on a local Ray cluster whose actors are killed, die or raise."""

import os
import signal
import socket
import time

import pytest

from jcos.bench import cluster
from jcos.bench.arm import Arm
from jcos.bench.export import export
from jcos.bench.folder import read_bench
from jcos.bench.results import Folder
from jcos.config import WanConfig
from jcos.weights import hub
from tests.conftest import ROOT
from tests.many_devices import free_port

ARMS = "from tests.bench.test_run import SMALL\narms = {'base': SMALL}\n"


class Faulty(cluster._Actor):
    """Dies of the first sample, is killed once at the second, and raises at the last."""

    def make(self, name: str, arm: Arm, config: WanConfig, sample: str) -> str:
        number, killed = sample.rpartition("/")[2], self.out / "killed"
        if number == "00000":
            os._exit(1)
        if number == "00001" and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == "00003":
            while len(list(self.out.rglob("*.mp4"))) < 2:
                time.sleep(0.05)
            raise ValueError("a sentence")
        return super().make(name, arm, config, sample)


@pytest.mark.slow
@pytest.mark.extra("ray")
@pytest.mark.filterwarnings("ignore")  # Ray leaves files and threads open
def test_lost_actors_are_started_again(tmp_path, monkeypatch, refused) -> None:
    """Of two workers. A sample whose actor always dies is written down, and the run goes on; what
    an actor raises is the sentence that the command ends in."""
    samples, out = tmp_path / "small", tmp_path / "out"
    export(samples, ("maze",), 4)
    (tmp_path / "arms.py").write_text(ARMS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(cluster, "CORES", 2)
    monkeypatch.setattr(cluster, "RETRIES", 1)
    monkeypatch.setattr(cluster, "_Actor", Faulty)
    words = ("bench", "run", tmp_path / "arms.py", "--samples", samples, "--out", out, "--ray")
    assert refused(*words) == "jcos: a sentence"
    assert (out / "killed").exists()
    status = Folder(out / "base").status(read_bench(samples))
    assert status.done == 2
    (reason,) = status.failed.values()
    assert reason.startswith("its actor was lost 2 times: ")


@pytest.mark.extra("ray")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--ray", "--shard", "0/2"), "leave out --join and --shard"),
        (("--join", "--mesh", "fsdp=2", "--shard", "0/2"), "leave out --shard"),
        (("--ray", "--scalars", "OUT/scalars"), "--scalars and --trace-profile watch this process"),
        (("--ray", "--trace-profile", "OUT/profile"), "--ray makes others"),
        (("--ray", "--mesh", "context=-1"), "mesh is 'context=-1'; with --ray"),
        (("--ray", "--mesh", "world=2"), "a mesh of world=2"),
        (("--ray", "--mesh", "worlds=2"), "a mesh has no axis 'worlds'"),
        (("--ray", "--address", "..:6379"), "no Ray cluster answers at ..:6379"),
        (("--ray", "--address", "localhost:99999"), "'localhost:99999'; it is HOST:PORT"),
        (("--ray", "--address", "localhost:SILENT"), "(what answers is something else)"),
        (("--address", "localhost:1"), "give --ray, too"),
        (("--ray", "--address", "here"), "it is HOST:PORT"),
        (("--ray", "--address", "ray://localhost:10001"), "without ray://"),
        (("--ray", "--address", "localhost:PORT"), "no Ray cluster answers at localhost:"),
        (("--shard", "3/2"), "shard is '3/2'; it is I/N with I below N"),
    ],
)
def test_wrong_input_is_one_sentence(
    words: tuple[str, ...], says: str, tmp_path, refused, monkeypatch
) -> None:
    export(tmp_path / "small", ("maze",), 1)
    monkeypatch.setattr(cluster, "SECONDS", 0.5)
    given = [word.replace(":PORT", f":{free_port()}") for word in words]
    given = [word.replace("OUT", str(tmp_path / "out")) for word in given]
    silent = socket.create_server(("localhost", 0))
    given = [word.replace("SILENT", str(silent.getsockname()[1])) for word in given]
    run = ("bench", "run", "vbvr_base", "--samples", tmp_path / "small", "--out", tmp_path / "out")
    run += ("--checkpoint", "Video-Reason/VBVR-Wan2.2")  # which is not downloaded
    monkeypatch.setattr(hub, "_download", None)
    with silent:
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
