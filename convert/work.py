"""The folder in which a conversion is made, and the journal that lets a killed one go on."""

import contextlib
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jcos import runs
from jcos.files import is_hidden, is_remote, read_json, remove, sizes, visible, write

JOURNAL, LOCK = "journal.json", "lock"


class Work:
    """An unfinished conversion: `weights/` with the finished parts, and a journal of what they were
    made from. Of one process at a time, as far as the disk has locks.

    settings: what must be the same to go on; `parts` names the folders in `weights/`. In a bucket
    nothing else is ever removed.
    Raises ValueError where the folder belongs to another conversion, or another process writes in
    it, or a bucket's folder holds anything else.
    """

    def __init__(self, target: Path, settings: Mapping[str, Any]):
        self.target = target
        # A folder in a bucket cannot be renamed: it is whole with its manifest.
        hidden = target.with_name(f".{target.name}.unfinished")
        self.folder = target if is_remote(target) else hidden
        self._names = set(settings["parts"])
        self._lock = contextlib.ExitStack()
        try:
            self._begin(settings)
        except BaseException:
            self._lock.close()
            raise

    def _begin(self, settings: Mapping[str, Any]) -> None:
        if not is_remote(self.target):
            self._take_lock()
        target = self.target
        journal = read_json(self.folder / JOURNAL)
        inside = () if journal or self.folder != target else sizes(target)
        if others := [name for name in inside if name and not is_hidden(Path(name))]:
            raise ValueError(
                f"{target} holds {others[0]}, and no conversion: choose another folder"
            )
        if journal:
            remedy = f"convert as before to finish it, or remove {self.folder} to start anew"
            runs.check_same(self.folder, journal.get("settings", {}), settings, remedy)
        self._journal = journal or {"settings": settings, "parts": {}}
        self._write()  # before the first part: what is in a bucket is known to be ours
        self._remove_halves()

    @property
    def parts(self) -> dict[str, Any]:
        """Return the finished parts: what `checkpoint.write_part` returned, by name."""
        return {name: part["leaves"] for name, part in self._journal["parts"].items()}

    @property
    def files(self) -> dict[str, Any]:
        """Return `checkpoint.digests` of all finished parts."""
        return {k: v for part in self._journal["parts"].values() for k, v in part["files"].items()}

    def finish_part(self, name: str, leaves: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        """Note that a part is written. FileNotFoundError where another process removed it."""
        if not files:
            part = self.folder / "weights" / name
            raise FileNotFoundError(f"{part} is gone; let one process convert to {self.target}")
        self._journal["parts"][name] = {"leaves": leaves, "files": files}
        self._write()

    def finish(self) -> None:
        """Give the folder, now a checkpoint, its final name."""
        if self.folder != self.target:
            self.folder.rename(self.target)
        (self.target / JOURNAL).unlink()
        (self.target / LOCK).unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the folder to be gone on with; remove it if nothing in it is finished."""
        if not self._journal["parts"]:
            self._remove_halves()
            (self.folder / JOURNAL).unlink(missing_ok=True)
            if self.folder != self.target:
                remove(self.folder)
        self._lock.close()

    def _take_lock(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._lock.enter_context((self.folder / LOCK).open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is converting to {self.target}") from None
        except OSError:
            pass  # a disk without locks

    def _write(self) -> None:
        write(self.folder / JOURNAL, json.dumps(self._journal) + "\n")

    def _remove_halves(self) -> None:
        """What a killed process was writing."""
        for path in visible(self.folder / "weights"):
            if path.name not in self.parts and path.name.partition(".")[0] in self._names:
                remove(path)
