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
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jcos.bench.folder import Bench
from jcos.files import write
from jcos.runs import MANIFEST, as_text, check_same, now, read


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

    def settle(self, settings: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """Write the manifest, or make sure that the one which is there has these settings.

        Raises ValueError where the folder belongs to other settings, or to another command.
        """
        file = self.path / MANIFEST
        if not file.exists():
            _write_new(file, as_text({**settings, **made}))
        check_same(self.path, read(file, "arm") or {}, settings, "choose another --out")

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
            write(self.path / summary, as_text(about | found._asdict()), shared=True)
        return found


def _write_new(file: Path, content: str) -> None:
    """Write a whole file unless it is there already, also if it was made this moment."""
    spare = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    try:
        write(spare, content)
        os.link(spare, file)
    except FileExistsError:
        pass  # another worker was first
    except OSError:  # a disk without hard links
        with contextlib.suppress(FileExistsError), file.open("x", encoding="utf-8") as new:
            new.write(content)
    finally:
        spare.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any]:
    """Nothing where there is no such file, or a damaged one."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return {}
