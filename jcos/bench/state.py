"""What an arm's folder tells: which samples are done, which failed and why, how long is left.

    ARM/{In-Domain_50,Out-of-Domain_50}/<task>/<00000>.mp4    where the scorer looks
    ARM/run.json                                              what decides the videos
    ARM/summary.json                                          how far it is (summary-0-of-4.json:
                                                              of a shard)
    ARM/state/{made,failed,claims,x0}                         a file for each sample

A video under its final name is whole, and its sample is done. There is no other book-keeping, so
any number of workers may be killed at any time.
"""

import contextlib
import datetime as dt
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from jcos.bench.folder import Bench
from jcos.files import write

MANIFEST = "run.json"
FREE = ("command", "versions")
"""Entries of the manifest that the videos do not depend on."""


class Status(NamedTuple):
    """total: samples of the benchmark, faulty ones too. seconds: that a sample takes, on average.
    failed: reasons. faults: of the benchmark's folders. stale: done, but the sample's files have
    changed since."""

    total: int
    done: int
    seconds: float
    failed: dict[str, str]
    faults: dict[str, str]
    stale: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return self.done == self.total and not (self.failed or self.faults or self.stale)


class Folder(NamedTuple):
    """Of an arm."""

    path: Path

    def video(self, name: str) -> Path:
        return self.path / f"{name}.mp4"

    def about(self, name: str, kind: str, ending: str = "json") -> Path:
        """What is known of a sample; kind: made, failed or x0."""
        return self.path / "state" / kind / f"{name}.{ending}"

    def settled(self, name: str) -> bool:
        return self.video(name).exists() or self.about(name, "failed").exists()

    def note(self, name: str, kind: str, about: Mapping[str, Any]) -> None:
        write(self.about(name, kind), as_text({**about, "date": now()}))

    def forgive(self, names: Sequence[str]) -> None:
        """Failed samples may be tried again."""
        for name in names:
            self.about(name, "failed").unlink(missing_ok=True)

    def settle(self, about: Mapping[str, Any]) -> None:
        """Writes the manifest, or makes sure that the one which is there says the same.

        Raises ValueError where the folder belongs to other settings.
        """
        about = json.loads(json.dumps(about))
        file = self.path / MANIFEST
        if not file.exists():
            with contextlib.suppress(FileExistsError):  # another worker was first
                _write_new(file, as_text(about))
        found = read_json(file)
        old, new = (_flat({k: v for k, v in a.items() if k not in FREE}) for a in (found, about))
        changed = [
            f"{k} {old.get(k)}, not {new.get(k)}" for k in old | new if old.get(k) != new.get(k)
        ]
        if changed:
            raise ValueError(
                f"{self.path} holds videos of other settings ({'; '.join(changed)}): choose "
                "another --out"
            )

    def status(self, bench: Bench, summary: str = "summary.json") -> Status:
        """How far it is, also written to `summary`."""
        failed, seconds, stale = {}, [], []
        for sample in bench.samples:
            if self.video(sample.name).exists():
                made = read_json(self.about(sample.name, "made"))
                seconds.append(made.get("seconds", 0.0))
                stale += [] if made.get("digest") == sample.digest else [sample.name]
            elif (note := self.about(sample.name, "failed")).exists():
                failed[sample.name] = read_json(note).get("reason", "unknown")
        mean = sum(seconds) / max(len(seconds), 1)
        found = Status(len(bench.names), len(seconds), mean, failed, bench.faults, tuple(stale))
        left = len(bench.samples) - found.done - len(failed)
        about = {
            "date": now(),
            "left": left,
            "hours_left_for_one_worker": left * mean / 3600,
            "absent": bench.absent,
        }
        with contextlib.suppress(OSError):  # a full disk stops no run
            _write_shared(self.path / summary, as_text(about | found._asdict()))
        return found


def _write_shared(file: Path, content: str) -> None:
    """As `files.write`, for a file that several workers may write at the same time."""
    with _own(file) as part:
        part.write_text(content, encoding="utf-8")
        part.replace(file)


def _write_new(file: Path, content: str) -> None:
    """FileExistsError where the file is there already, also if it was made this moment."""
    with _own(file) as part:
        part.write_text(content, encoding="utf-8")
        os.link(part, file)


@contextlib.contextmanager
def _own(file: Path) -> Iterator[Path]:
    """A place beside the file that no other worker uses."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{secrets.token_hex(8)}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested entries by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return flat


def read_json(file: Path) -> dict[str, Any]:
    """Nothing where there is no such file, or a damaged one."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return {}


def as_text(about: Mapping[str, Any]) -> str:
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def versions() -> dict[str, str]:
    """Of what the results depend on."""
    return {name: metadata.version(name) for name in ("jcos", "jax", "flax")}


def now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
