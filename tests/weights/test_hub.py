"""Models by name, from a stand-in of the hub on this machine: what is fetched, and what is read."""

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jcos import wan
from jcos.variants import BASES, variant_of
from jcos.weights import hub
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.released import open_released
from tests.releases import I2V, as_diffusers

BASE, PARTS = BASES["Video-Reason/VBVR-Wan2.2"]
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Hub(http.server.ThreadingHTTPServer):
    """Serves folders as repositories, ORG/NAME under `root`, with one commit per revision."""

    def __init__(self, root: Path):
        self.root, self.fetched = root, []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Any

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            org, name, *rest = path.removeprefix("/api/models/").split("/")
            what, revision = rest or ("revision", "main")
            folder = self.server.root / org / name
            files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
            rows = [
                {
                    "type": "file",
                    "path": p.relative_to(folder).as_posix(),
                    "size": p.stat().st_size,
                    "oid": hashlib.sha1(p.read_bytes()).hexdigest(),
                }
                for p in files
            ]
            sha = COMMITS.get(revision, revision)
            about = rows if what == "tree" else {"id": f"{org}/{name}", "sha": sha}
            if not folder.is_dir():
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif revision not in {*COMMITS, *COMMITS.values()}:
                self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                self.answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})
            return
        if "/resolve/" not in path:
            self.answer(404, b"", {})
            return
        org, name, _, revision, *rest = path.removeprefix("/").split("/")
        data = self.server.root.joinpath(org, name, *rest).read_bytes()
        if self.command == "GET":
            self.server.fetched.append("/".join([org, name, *rest]))
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self.answer(200, data, {"X-Repo-Commit": revision, "ETag": etag})

    def answer(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[Hub]:
    """The hub with VBVR's two transformers, their base release, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    release = as_diffusers(I2V, tmp_path / "hub" / BASE)
    (release / "tokenizer").mkdir()
    (release / "tokenizer" / "tokenizer.json").write_text("{}")
    (release / "README.md").write_text("not needed")
    tuned = tmp_path / "hub" / "Video-Reason" / "VBVR-Wan2.2"
    for name in ("transformer", "transformer_2"):
        shutil.copytree(release / name, tuned / name)
    shutil.copy(release / "model_index.json", tuned)
    (tmp_path / "hub" / "Other" / "Pictures").mkdir(parents=True)
    (tmp_path / "hub" / "Other" / "Pictures" / "a.png").write_text("not needed")
    server = Hub(tmp_path / "hub")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    files = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def links(cache: Path) -> set[str]:
    return {p.relative_to(cache).as_posix() for p in cache.rglob("*") if "snapshots" in p.parts}


def test_a_fine_tuned_release_comes_with_the_parts_of_its_base(served, tmp_path):
    folder = hub.find("Video-Reason/VBVR-Wan2.2")
    assert not any("README" in name for name in served.fetched)
    assert {n.split("/")[2] for n in served.fetched if n.startswith(BASE)} == set(PARTS)
    source = open_released(folder)
    assert source.parts == ["experts.0", "experts.1", "vae", "text"]
    base = hub.base_of(folder)
    assert base is not None
    assert source.tokenizer == base / "tokenizer"
    want = open_released(served.root / BASE)
    for name in ("vae.conv1.weight", "experts.1.blocks.0.ffn.0.bias"):
        np.testing.assert_array_equal(source.tensors[name].read(), want.tensors[name].read())
    wan.check_vae(source.config, folder)
    # Nothing is fetched twice, and nothing of jcos's own lies in the cache.
    before, fetched = links(tmp_path / "cache"), list(served.fetched)
    assert wan.read_config("Video-Reason/VBVR-Wan2.2").name == "wan2.2-i2v-a14b"
    assert (links(tmp_path / "cache"), served.fetched) == (before, fetched)
    # The cache, and the model's folder in it, are names too.
    model = tmp_path / "cache" / "models--Video-Reason--VBVR-Wan2.2"
    assert hub.find(model) == folder
    (tmp_path / "link").symlink_to(folder)
    assert open_released(hub.find(tmp_path / "link")).parts == source.parts
    with pytest.raises(ValueError, match="several models; name one: Video-Reason"):
        hub.find(tmp_path / "cache")


def test_without_the_hub_what_is_cached_is_read(served, tmp_path):
    name = "Video-Reason/VBVR-Wan2.2@v1"
    folder = hub.find(name)
    assert folder.name == COMMITS["v1"]
    served.shutdown()
    served.server_close()
    assert hub.find(name) == folder
    with pytest.raises(ValueError, match=r"cannot be reached .*: hf download Wan-AI/Other-5B$"):
        hub.find("Wan-AI/Other-5B")
    shutil.rmtree(tmp_path / "cache" / f"models--{BASE.replace('/', '--')}")
    with pytest.raises(ValueError, match=r'--include "vae/\*" "text_enc'):
        hub.find(name)


def test_a_model_that_is_cached_in_part_says_how_to_get_the_rest(served):
    name = "Video-Reason/VBVR-Wan2.2@v1"
    folder = hub.find(name)
    (shard, *_) = sorted(folder.glob("transformer/*.safetensors"))
    shard.unlink()
    command = f"hf download Video-Reason/VBVR-Wan2.2 --revision {COMMITS['v1']}"
    with pytest.raises(CheckpointError, match=rf"cut short: {command}.*{shard.name} is missing"):
        open_released(folder)
    served.shutdown()
    served.server_close()
    with pytest.raises(ValueError, match=r"hf download Video-Reason/VBVR-Wan2\.2 --revision"):
        open_released(hub.find(name))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Wan-AI/None", "there is no folder Wan-AI/None, and Hugging Face has no such model"),
        (f"{BASE}@v7", "on Hugging Face has no revision v7"),
        ("Other/Pictures", "Other/Pictures on Hugging Face has no files of a model"),
    ],
)
def test_a_wrong_name_ends_in_one_sentence(served, name, reason):
    with pytest.raises(ValueError, match=reason):
        hub.find(name)


def test_what_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "wan").mkdir(parents=True)
    for given in ("out/wan", "wan", "./out/x", "/out/x", "a/b/c", "../x", "a/b@"):
        assert not hub.is_name(given), given
    for given in ("out/x", "Wan-AI/Wan2.2-I2V-A14B", "a/b@refs/pr/1"):
        assert hub.is_name(given), given
    assert hub.find(tmp_path) == tmp_path
    assert variant_of("Video-Reason/VBVR-Wan2.2") == "wan2.2-i2v-a14b"
    assert variant_of("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") == "wan2.1-t2v-1.3b"
    assert variant_of("Video-Reason/VBVR-Pro-Wan2.2-TI2V-5B-RLVR@v1") == "wan2.2-ti2v-5b"
    assert variant_of("Video-Reason/VBVR-Pro-Wan2.1-I2V-14B") == "wan2.1-i2v-14b"
    assert variant_of("Wan-AI/Wan2.2-S2V-14B") is None
