"""Who works at which sample: lock files in a folder that all workers see.

The owner of a claim touches its file every few seconds. A claim that is not touched for long
enough, by the clock of whoever looks, or whose process has ended on the same machine, is dead, and
is taken over by making the file of the next generation: only one worker can create that, and an
owner that was only asleep sees that it is no longer the newest.
"""

import contextlib
import json
import os
import platform
import threading
import time
from pathlib import Path


class Claims:
    """The claims of this process; use it in a `with`, which lets them go at the end.

    beat: seconds between touches. dead: seconds without one after which a claim is taken over; much
    more than `beat`, because shared file systems show changes late.
    """

    def __init__(self, folder: Path, *, beat: float = 15.0, dead: float = 240.0):
        self.folder, self.beat, self.dead = folder, beat, dead
        self.held: dict[str, Path] = {}
        self._seen: dict[Path, tuple[int, float]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> "Claims":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for name in list(self.held):
            self.release(name)

    def take(self, name: str) -> bool:
        """Whether the sample is now ours; False where another worker has it. Raises OSError where
        the claim cannot be written."""
        newest = self._newest(name)
        if newest is not None and (newest in self.held.values() or self._alive(newest)):
            return False
        claim = self._file(name, 0 if newest is None else _generation(newest) + 1)
        try:
            file = claim.open("x")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(json.dumps(_here()))
        except OSError:  # no room even for this
            claim.unlink(missing_ok=True)
            raise
        self.held[name] = claim
        return True

    def keeps(self, name: str) -> bool:
        """Whether a sample that was taken is still ours."""
        return self._newest(name) == self.held.get(name)

    def release(self, name: str) -> None:
        mine = self.held.pop(name)
        for generation in range(_generation(mine) + 1):
            self._file(name, generation).unlink(missing_ok=True)

    def _file(self, name: str, generation: int) -> Path:
        return self.folder / f"{name.replace('/', '+')}.{generation}"

    def _newest(self, name: str) -> Path | None:
        prefix = f"{name.replace('/', '+')}."
        found = [p for p in self.folder.iterdir() if p.name.startswith(prefix)]
        return max(found, key=_generation, default=None)

    def _alive(self, claim: Path) -> bool:
        owner = {}
        try:
            touched = claim.stat().st_mtime_ns
            with contextlib.suppress(ValueError):  # it is being written
                owner = json.loads(claim.read_text())
        except FileNotFoundError:
            return True  # let go this moment: look again later
        if {**_here(), "pid": owner.get("pid")} == owner and not _runs(owner["pid"]):
            return False
        seen = self._seen.get(claim)
        if seen is None or seen[0] != touched:
            self._seen[claim] = (touched, time.monotonic())
            return True
        return time.monotonic() - seen[1] < self.dead

    def _touch(self) -> None:
        while not self._end.wait(self.beat):
            for claim in list(self.held.values()):
                with contextlib.suppress(OSError):
                    os.utime(claim)


def _generation(claim: Path) -> int:
    return int(claim.name.rpartition(".")[2])


def _here() -> dict[str, str | int]:
    """This process. Process numbers mean something on one host and in one container only."""
    space = Path("/proc/self/ns/pid")
    inode = space.stat().st_ino if space.exists() else 0
    return {"host": platform.node(), "space": inode, "pid": os.getpid()}


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
