"""Buckets as paths: from a release to scored videos, against servers on loopback.

Each place is used by a process of its own: clients of buckets keep what they know of a server. Run
as `python -m tests.test_buckets PLACE FOLDER` it prints what it finds as JSON on the last line.
"""

import contextlib
import dataclasses
import errno
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import jax
import numpy as np
import pytest
from etils.epath.backend import fsspec_backend
from safetensors.numpy import load

import jcos
from convert import stream
from convert.stream import Job, convert
from convert.work import Work
from jcos import cli, runs
from jcos.bench.export import export
from jcos.files import any_path, sizes, visible, write_or_keep
from jcos.lab import results
from jcos.media.formats import read_mp4
from jcos.model.text import UMT5, cached
from jcos.model.tokenizer import Tokenizer
from jcos.weights import checkpoint
from jcos.weights.checkpoint import save
from tests.conftest import GOLDEN
from tests.many_devices import environment, find
from tests.models import CONFIG, DIT, randomised

TEXT_ALONE = dataclasses.replace(
    CONFIG, dit=dataclasses.replace(DIT, in_channels=DIT.out_channels), image="none"
)

SERVER = (
    "import socketserver, time\nsocketserver.StreamRequestHandler.disable_nagle_algorithm = True\n"
    "from {} import {} as make\nserver = make({})\nserver.start()\ntime.sleep(0.2)"
)
GCS = ("gcp_storage_emulator.server", "create_server")
S3 = ("moto.server", "ThreadedMotoServer")
GENERATIONS = """
from gcp_storage_emulator.handlers import objects
def download(request, response, storage, plain=objects.download, **named):
    plain(request, response, storage, **named)
    if response.status < 300:
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = found["generation"]
objects.download = download
"""
"""What the emulator leaves out, and tensorstore needs where it writes a manifest twice."""
PORTS = {"gs": "server._api._httpd.server_port", "s3": "server.get_host_and_port()[1]"}


def known(scheme: str, where: str) -> dict[str, str]:
    """What a process has to know to find a server."""
    if scheme == "gs":
        return {
            "STORAGE_EMULATOR_HOST": where,
            "TENSORSTORE_GCS_HTTP_URL": where,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anyone",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "anyone")
    return keys | {"AWS_ENDPOINT_URL": where, "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty bucket on a server that this process and its children know."""
    scheme = request.param
    options = '"localhost", 0, in_memory=True, default_bucket="bucket"'
    if scheme == "s3":
        options = '"localhost", 0, verbose=False'
    words = SERVER.format(*(GCS if scheme == "gs" else S3), options)
    words = GENERATIONS * (scheme == "gs") + words
    words += f"\nprint({PORTS[scheme]}, flush=True)\ntime.sleep(600)"
    with pytest.MonkeyPatch.context() as patched:
        command = [sys.executable, "-c", words]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, text=True) as server:
            try:
                assert server.stdout is not None
                where = f"http://localhost:{server.stdout.readline().strip()}"
                for name, value in known(scheme, where).items():
                    patched.setenv(name, value)
                if scheme == "s3":
                    make = "import s3fs; s3fs.S3FileSystem().mkdir('bucket')"
                    subprocess.run([sys.executable, "-c", make], check=True, env=environment())
                yield f"{scheme}://bucket"
            finally:
                server.kill()


@pytest.mark.extra("buckets")
@pytest.mark.slow
def test_from_a_release_to_scores(bucket: str, release: Path, tmp_path: Path) -> None:
    """In gs:// all of it, in s3:// as far as the videos, and what others have there."""
    (tokenizer,) = release.rglob("tokenizer.json")
    shutil.copy(tokenizer, tmp_path)
    found = find(bucket, str(tmp_path), module="tests.test_buckets")
    assert found["weights"]
    assert found["copied"]
    assert found["latents"] == [1, 5, 32, 32, 12]
    assert found["film"] == [5, 64, 64, 3]
    assert found["trace"] == [1, 2]
    assert found["again"]
    assert "is incomplete: weights/" in found["cut"]
    assert f"{bucket[:2]}://no/x cannot be written: there is no bucket no" in found["nowhere"]
    assert "there is no bucket no" in found["unread"]
    assert f"{bucket}/denied cannot be written: Access Denied" in found["denied"]
    assert found["kept"] == "hours"
    assert f"{bucket} is a whole bucket; name a folder in it" in found["whole"]
    assert found["left"] == []
    if bucket.startswith("gs"):
        assert found["steps"] == 2
        assert "add an empty file weights/commit_success.txt" in found["older"]
        assert found["score"] == [1.0]
        assert found["text"]
        assert "has no axis 'time'" in found["plan"]
        return
    assert f"{bucket} is a whole bucket; name a folder in it" in found["bucket"]
    assert f"{bucket}/theirs holds weights/000/mine, and no conversion" in found["theirs"]
    assert found["failed"] == "a nan"
    assert found["begun"] == ""
    assert found["empty"]
    stay = ["failed/notes.txt", "theirs/weights/000/mine", "theirs/weights/mine"]
    assert [name for name in found["stay"] if name.partition("/")[0] != "begun"] == stay
    assert {"begun/jcos.json", "begun/notes.txt", "begun/weights/mine"} < set(found["stay"])
    assert not [name for name in found["stay"] if name.endswith(("/half", "journal.json"))]


@pytest.mark.extra("buckets")
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_without_credentials_it_is_one_sentence(bucket: str) -> None:
    lacking = {k: v for k, v in environment().items() if not k.startswith("AWS_")}
    lacking |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "", "HOME": "/nowhere"}
    words = [sys.executable, "-m", "jcos", "generate", "jcos/tiny", "--prompt", "x", "--out"]
    done = subprocess.run([*words, f"{bucket}/x"], env=lacking, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"jcos: {bucket}/x cannot be written: Unable to locate cred")
    assert "AWS_ACCESS_KEY_ID" in done.stderr


def refused(*words: object) -> str:
    """Run a command; return the sentence that it ends in, if it does not succeed."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cli.main([str(word) for word in words])
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    return ""


def command(*words: object) -> None:
    assert not (said := refused(*words)), said


def way(place: str, folder: Path) -> dict[str, Any]:
    """Convert, load, generate in a bucket; read it back. Then `measured` or `others`."""
    bucket, release = any_path(place), folder / "release"
    whole = GOLDEN / "ckpt" / "Wan2.2-TI2V-5B"  # but for the many small weights of its VAE
    shutil.copytree(whole, release, ignore=shutil.ignore_patterns("*VAE*"))
    convert(Job(release, bucket / "wan"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "_digest", None)  # each file would be a request
        pairs = (jax.tree.leaves(jcos.load(f)) for f in (release, f"{place}/wan"))
        found: dict[str, Any] = {"weights": all(map(np.array_equal, *pairs))}

    save(bucket / "drawn", TEXT_ALONE, randomised(TEXT_ALONE), {})
    save(folder / "disk", TEXT_ALONE, randomised(TEXT_ALONE), {})
    copied: Any = bucket / "copied"
    copied.upload(folder / "disk")
    found["copied"] = len(jax.tree.leaves(jcos.load(f"{place}/copied"))) > 0
    about = copied / "jcos.json"  # of an earlier version, which left no note
    listed = json.loads(about.read_text())
    del listed["files"]["weights/commit_success.txt"]
    about.write_text(json.dumps(listed))
    (copied / "weights" / "commit_success.txt").unlink()
    try:
        jcos.load(f"{place}/copied")
    except ValueError as error:
        found["older"] = str(error)
    given = ("--prompt", "left", "--steps", 2, "--frames", 5, "--size", "64x64")
    video = ("--out", f"{place}/video")
    command("generate", f"{place}/drawn", *given, "--trace", *video)
    out = bucket / "video"
    found["latents"] = load((out / "latents.safetensors").read_bytes())["latents"].shape
    found["film"] = read_mp4(out / "seed-0.mp4").shape
    found["trace"] = jcos.Trace.load(out / "trace").x0.shape[:2]
    before = (out / "run.json").read_bytes()
    command("generate", f"{place}/drawn", *given, *video)
    found["again"] = (out / "run.json").read_bytes() == before

    found |= (measured if place.startswith("gs") else others)(place, folder)

    found["whole"] = refused("run", "steps", "--out", place)
    found["left"] = [str(p) for p in visible(bucket, "**/*") if ".part" in p.name]

    next(p for p in visible(bucket / "wan" / "weights", "**/*") if p.is_file()).unlink()
    try:
        jcos.load(f"{place}/wan")
    except ValueError as error:
        found["cut"] = str(error)
    scheme = place.partition(":")[0]
    found["nowhere"] = refused("generate", f"{place}/drawn", *given, "--out", f"{scheme}://no/x")
    found["unread"] = refused("plan", "--model", f"{scheme}://no/x", "--topology", "h200:1")
    with pytest.MonkeyPatch.context() as patched:
        denied = Mock(side_effect=PermissionError(errno.EACCES, "Access Denied"))
        patched.setattr(fsspec_backend.fs(place), "pipe_file", denied)
        found["denied"] = refused("generate", f"{place}/drawn", *given, "--out", f"{place}/denied")
        patched.setattr(fsspec_backend.fs(place), "put_file", denied)
        with pytest.raises(OSError, match=r"Access Denied.* It is /.*/lost: copy it") as error:
            write_or_keep(bucket / "lost", b"hours")
        kept = re.findall("/[^ ]*/lost(?=:)", str(error.value))
        found["kept"] = Path(kept[0]).read_text()
    return found


def measured(place: str, folder: Path) -> dict[str, Any]:
    """Plan, embed, run an experiment and the benchmark from what is in a bucket; read it back."""
    bucket, found = any_path(place), dict[str, Any]()
    plan = ("plan", "--model", f"{place}/wan", "--topology", "h200:1")
    found["plan"] = refused(*plan, "--mesh", "time=8")  # which is looked at after the model

    encoder, tokenizer = (
        jcos.load(folder / "release").text,
        Tokenizer.load(folder / "tokenizer.json"),
    )
    assert isinstance(encoder, UMT5)
    text = [(encoder, tokenizer), (None, None)]
    rows = [cached(f"{place}/text", [""], "float32", 12, lambda t=t: t)("") for t in text]
    found["text"] = np.array_equal(rows[0], rows[1])

    tiny = jcos.load()
    save(bucket / "tiny", tiny.config, tiny, {})
    small = ("--set", "puzzles=2", "--set", "sampling.steps=2", "--set", "tasks=maze")
    command("run", "steps", *small, "--checkpoint", f"{place}/tiny", "--out", f"{place}/steps")
    found["steps"] = results.load(bucket / "steps" / "results.nc").sizes["step"]

    export(folder / "bench", ("maze",), 1)
    (bucket / "bench").upload(folder / "bench")  # type: ignore[attr-defined]
    samples = ("--samples", f"{place}/bench")
    quick = [f"--set={s}" for s in ("scale=0.125", "profile=none", "sampling.steps=2")]
    quick += ["--checkpoint", f"{place}/tiny", "--out", f"{place}/vbvr"]
    command("bench", "run", "vbvr_base", *samples, *quick)
    command("bench", "score", f"{place}/vbvr/base", *samples, "--out", f"{place}/scores")
    about = json.loads((bucket / "scores" / "scores.json").read_text())
    found["score"] = list(about["arms"]["truth"]["scores"].values())
    return found


def others(place: str, folder: Path) -> dict[str, Any]:
    """Convert, and fail, where others have objects; list what is left."""
    bucket, release = any_path(place), folder / "release"
    found: dict[str, Any] = {}

    def to(target: Path) -> str:
        try:
            convert(Job(release, target))
        except (ValueError, OSError) as error:
            return str(error)
        return ""

    def fail(*_: object) -> None:
        (bucket / "failed" / "notes.txt").write_bytes(b"mine")
        raise ValueError("a nan")

    for name in ("weights/000/mine", "weights/mine"):
        (bucket / "theirs" / name).write_bytes(b"mine")
    found["bucket"], found["theirs"] = to(bucket), to(bucket / "theirs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "_read_part", fail)
        found["failed"] = to(bucket / "failed")
    begun = bucket / "begun"
    Work(begun, stream._settings(stream.plan(Job(release, begun))))  # and killed
    for name in ("notes.txt", "weights/mine", "weights/000/half"):
        (begun / name).write_bytes(b"mine")
    found["begun"] = to(begun)
    names = ("begun", "failed", "theirs")
    found["stay"] = [name for name in sizes(bucket) if name.partition("/")[0] in names]

    store, empty = fsspec.filesystem(place[:2]), any_path(f"{place[:2]}://empty")
    store.mkdir("empty")
    with contextlib.suppress(ZeroDivisionError), runs.begun(empty, {}, 0):
        raise ZeroDivisionError
    found["empty"] = store.exists("empty")
    return found


if __name__ == "__main__":
    print(json.dumps(way(sys.argv[1], Path(sys.argv[2])), default=str))
