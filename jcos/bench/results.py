"""An arm's folder: which samples are done, which failed and why.

    ARM/{In-Domain_50,Out-of-Domain_50}/<task>/<00000>.mp4    where the scorer looks
    ARM/run.json                                              what decides the videos
    ARM/summary.json                                          how far it is
    ARM/state/{made,failed,latents,x0}                        a file for each sample

A video under its final name is whole, and its sample is done. There is no other book-keeping, so a
run may be killed at any time.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jcos.bench.folder import Bench, Sample
from jcos.files import beside, is_remote, read_json, write
from jcos.runs import MANIFEST, as_text, check_same, now, read


class Status(NamedTuple):
    """total: samples of the benchmark, faulty ones too. failed: reasons. faults: of the benchmark's
    folders. stale: done, but the sample's files have changed since."""

    total: int
    done: int
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

    def is_done(self, name: str) -> bool:
        """Return whether there is a video. A machine that loses power may leave an empty one."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self.video(name).stat().st_size > 0
        return False

    def is_settled(self, name: str) -> bool:
        return self.is_done(name) or self.about(name, "failed").exists()

    def is_denoised(self, sample: Sample) -> bool:
        """Return whether only the video is missing."""
        made = read_json(self.about(sample.name, "made"))
        return self.latents(sample.name).exists() and made.get("digest") == sample.digest

    def note(self, name: str, kind: str, about: Mapping[str, Any]) -> None:
        """Write something down, which other processes may do at the same time."""
        write(self.about(name, kind), as_text({**about, "date": now()}), shared=True)

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
            with contextlib.suppress(FileExistsError), beside(file, shared=True) as part:
                write(part, as_text({**settings, **made}))
                try:  # of several processes one is the first
                    None if is_remote(file) else os.link(part, file)
                except OSError as error:  # others: a disk without links
                    if isinstance(error, FileExistsError):
                        raise
        check_same(self.path, read(file, "arm") or {}, settings)

    def status(self, bench: Bench) -> Status:
        """Return how far it is."""
        failed, done, stale = {}, 0, []
        for sample in bench.samples:
            if self.is_done(sample.name):
                digest = read_json(self.about(sample.name, "made")).get("digest")
                done += 1
                stale += [] if digest == sample.digest else [sample.name]
            elif (note := self.about(sample.name, "failed")).exists():
                failed[sample.name] = read_json(note).get("reason", "unknown")
        return Status(len(bench.names), done, failed, bench.faults, tuple(stale))

    def summarize(self, bench: Bench) -> None:
        """Write how far it is, which several processes may do at the same time."""
        status = self.status(bench)._asdict()
        write(self.path / "summary.json", as_text({"date": now(), **status}), shared=True)
