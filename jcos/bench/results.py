"""An arm's folder: which samples are done, which failed and why, how long is left.

    ARM/{In-Domain_50,Out-of-Domain_50}/<task>/<00000>.mp4    where the scorer looks
    ARM/run.json                                              what decides the videos
    ARM/summary.json                                          how far it is (summary-0-of-4.json:
                                                              of a shard)
    ARM/state/{made,failed,latents,x0}                        a file for each sample

A video under its final name is whole, and its sample is done. There is no other book-keeping, so a
run may be killed at any time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from jcos.bench.folder import Bench, Sample
from jcos.files import read_json, write
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
        """Return where something of a sample is; kind: made, failed, latents or x0."""
        return self.path / "state" / kind / f"{name}.{ending}"

    def latents(self, name: str) -> Path:
        """Return where the end of a sample is until its video is written."""
        return self.about(name, "latents", "safetensors")

    def is_settled(self, name: str) -> bool:
        return self.video(name).exists() or self.about(name, "failed").exists()

    def is_denoised(self, sample: Sample) -> bool:
        """Return whether only the video is missing."""
        made = read_json(self.about(sample.name, "made"))
        return self.latents(sample.name).exists() and made.get("digest") == sample.digest

    def note(self, name: str, kind: str, about: Mapping[str, Any]) -> None:
        """Write something down, which other processes may do at the same time."""
        write(self.about(name, kind), as_text({**about, "date": now()}), shared=True)

    def store(self, name: str, kind: str, array: np.ndarray) -> None:
        write(self.about(name, kind, "safetensors"), save({kind: array}))

    def fail(self, name: str, error: Exception) -> None:
        """Write down why a sample failed. Raises OSError where the disk has no room for that."""
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        self.note(name, "failed", {"reason": reason})

    def settle(self, settings: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """Write the manifest, or make sure that the one which is there has these settings.

        Raises ValueError where the folder belongs to other settings, or to another command.
        """
        file = self.path / MANIFEST
        if not file.exists():
            write(file, as_text({**settings, **made}), shared=True)
        check_same(self.path, read(file, "arm") or {}, settings)

    def status(self, bench: Bench, summary: str = "summary.json") -> Status:
        """Return how far it is, which is also written to `summary`."""
        failed, seconds, stale = {}, [], []
        for sample in bench.samples:
            if self.video(sample.name).exists():
                made = read_json(self.about(sample.name, "made"))
                seconds.append(made.get("seconds", 0.0))
                stale += [] if made.get("digest") == sample.digest else [sample.name]
            elif (note := self.about(sample.name, "failed")).exists():
                failed[sample.name] = read_json(note).get("reason", "unknown")
        mean = sum(seconds) / max(len(seconds), 1)
        status = Status(len(bench.names), len(seconds), mean, failed, bench.faults, tuple(stale))
        left = len(bench.samples) - status.done - len(failed)
        about = {"date": now(), "left": left, "hours_left": left * mean / 3600}
        write(self.path / summary, as_text(about | status._asdict()))
        return status
