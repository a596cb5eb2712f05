"""The folder in which a conversion is made, and the journal that lets a killed one go on."""

import errno
import fcntl
import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jcos.files import is_hidden, is_remote, remove, sizes, visible, write
from jcos.weights.checkpoint import CheckpointError
from jcos.weights.faults import shorter

JOURNAL = "journal.json"
# What network and user-space file systems answer that have none.
_NO_LOCKS = ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK", "EINVAL", "ENOTTY")
Digests = dict[str, list[Any]]


class Busy(CheckpointError):
    """Another process writes in the folder of an unfinished conversion."""


class Work:
    """An unfinished conversion: `weights/` with the finished parts, and a journal of what they were
    made from.

    One process at a time: a second one is refused; where the disk has no locks, `locked` is false
    and nothing is. Raises CheckpointError where the folder belongs to a conversion with other
    settings or of files that have changed since, or a bucket's folder holds anything else.

    settings: `parts` names the folders in `weights/`; in a bucket nothing else is ever removed.
    """

    def __init__(self, target: Path, settings: Mapping[str, Any]):
        self.target = target
        # A folder in a bucket cannot be renamed: it is whole with its manifest.
        hidden = target.with_name(f".{target.name}.unfinished")
        self.folder = target if is_remote(target) else hidden
        new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = None if is_remote(target) else (self.folder / "lock").open("w")
        try:
            self.locked = self._take_lock()
            self._journal = self._read()
            self._compare(json.loads(json.dumps(settings)))
            self._write()  # before the first part: what is in a bucket is known to be ours
            self._remove_halves()
        except BaseException as error:
            if new and self.folder != target and not isinstance(error, Busy):
                remove(self.folder)
            self._unlock()
            raise

    @property
    def parts(self) -> dict[str, Any]:
        """Return the finished parts: what `checkpoint.write_part` returned, by name."""
        return {name: part["leaves"] for name, part in self._journal["parts"].items()}

    @property
    def files(self) -> Digests:
        """Return `checkpoint.digests` of all finished parts."""
        return {k: v for part in self._journal["parts"].values() for k, v in part["files"].items()}

    @property
    def sources(self) -> Digests:
        """Return size and hash of every source file."""
        return {name: [size, sha] for name, (size, _, sha) in self._journal["sources"].items()}

    def check_sources(self, files: Mapping[str, Path], advance: Callable[[int], object]) -> None:
        """Note the size and hash of all source files, or compare them with what was noted; those of
        the same size and time of change are taken to be the same.

        advance: called with numbers of bytes.
        """
        noted = self._journal.get("sources", {})

        def look(name: str) -> list[Any]:
            about = files[name].stat()
            size, changed = about.st_size, about.st_mtime_ns
            if noted.get(name, [])[:2] == [size, changed]:
                advance(size)
                return noted[name]
            return [size, changed, _sha256(files[name], advance)]

        with ThreadPoolExecutor(4) as pool:
            found = dict(zip(files, pool.map(look, files), strict=True))
        names = {**noted, **found} if noted else ()
        if changed := sorted(n for n in names if noted.get(n, "")[::2] != found.get(n, "")[::2]):
            raise CheckpointError(
                f"{shorter(', '.join(changed), 200)} changed since {self.folder} was begun; remove "
                "that folder to start anew"
            )
        self._journal["sources"] = found
        self._write()

    def finish_part(self, name: str, leaves: Mapping[str, Any], files: Digests) -> None:
        """Note that a part is written."""
        self._journal["parts"][name] = {"leaves": dict(leaves), "files": files}
        self._write()

    def finish(self) -> None:
        """Give the folder, now a checkpoint, its final name."""
        if self.folder != self.target:
            self.folder.rename(self.target)
        for name in (JOURNAL, "lock"):
            (self.target / name).unlink(missing_ok=True)
        self._unlock()

    def close(self) -> None:
        """Leave the folder to be gone on with; remove it if nothing in it is finished."""
        if not self._journal["parts"]:
            self._remove_halves()
            (self.folder / JOURNAL).unlink(missing_ok=True)
            if self.folder != self.target:
                remove(self.folder)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _take_lock(self) -> bool:
        if self._lock is None:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another process is converting to {self.target}") from None
        except OSError as error:
            if error.errno not in [getattr(errno, name) for name in _NO_LOCKS]:
                raise
            return False
        return True

    def _read(self) -> dict[str, Any]:
        try:
            journal = json.loads((self.folder / JOURNAL).read_text(encoding="utf-8"))
        except FileNotFoundError:
            others = sizes(self.folder) if self.folder == self.target else ()
            if other := next((n for n in others if n and not is_hidden(Path(n))), None):
                raise CheckpointError(
                    f"{self.folder} holds {other}, and no conversion: choose another folder"
                ) from None
            journal = {}
        except ValueError:
            raise CheckpointError(
                f"{self.folder / JOURNAL} is damaged; remove that folder to start anew"
            ) from None
        return {"parts": {}, **journal}

    def _compare(self, settings: dict[str, Any]) -> None:
        begun = self._journal.setdefault("settings", settings)
        if differing := [name for name in settings if begun.get(name) != settings[name]]:
            raise CheckpointError(
                f"{self.folder} is an unfinished conversion with another {', '.join(differing)}; "
                "convert as before to finish it, or remove that folder to start anew"
            )

    def _write(self) -> None:
        write(self.folder / JOURNAL, json.dumps(self._journal) + "\n")

    def _remove_halves(self) -> None:
        """What a killed process was writing."""
        names = self._journal["settings"].get("parts", ())
        for path in visible(self.folder / "weights"):
            if path.name not in self._journal["parts"] and path.name.partition(".")[0] in names:
                remove(path)


def _sha256(file: Path, advance: Callable[[int], object]) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 22))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(block):
            digest.update(block[:size])
            advance(size)
    return digest.hexdigest()
