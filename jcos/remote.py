"""Places in buckets, gs:// and s3://, as paths: etils.epath over fsspec (extras `gcs` and `s3`).

A bucket has objects, no folders: a folder is there while something is in it. An object is whole or
absent: it appears when its upload is complete.
"""

import errno
import fnmatch
import io
import logging
import os
import stat
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import fsspec.config
from etils.epath import backend, gpath

SCHEMES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
"""The package that knows a scheme, and the extra that brings it."""
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it raises what it reports
# What other processes write must be seen: listings are not remembered.
for _name in ("gs", "gcs", "s3"):
    fsspec.config.conf.setdefault(_name, {}).setdefault("use_listings_cache", False)


def remote_path(text: str) -> "RemotePath":
    """Return a place in a bucket. Raises ValueError where nothing here can open it."""
    scheme, _, rest = text.partition(":")
    text = f"{scheme}://{rest.lstrip('/')}"  # a Path has lost the second slash
    package, extra = SCHEMES[scheme]
    if not find_spec(package):
        raise ValueError(f"{text} needs the extra {extra}: pip install 'jcos[{extra}]'")
    if not rest.strip("/"):
        raise ValueError(f"{text} names no bucket; write {scheme}://BUCKET/FOLDER")
    if ".." in rest.split("/"):
        raise ValueError(f"{text} has a '..', which buckets do not know; write the whole path")
    return RemotePath(text)


class RemotePath(gpath.PosixGPath, PosixPath):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A place in a bucket, used as any other `Path`.

    Whatever goes wrong with the bucket is an OSError.
    """

    __slots__ = ()

    @property
    def _backend(self) -> Any:
        return _Backend(backend.fsspec_backend)

    @property
    def scheme(self) -> str:
        return self.parts[1]

    def bucket_is_there(self) -> bool:
        """Return False where the bucket is certainly missing."""
        try:
            self._backend.info("://".join(self.parts[1:3]))
        except OSError as error:
            return not isinstance(error, FileNotFoundError)
        return True

    def absolute(self) -> "RemotePath":
        return self

    def resolve(self, strict: bool = False) -> "RemotePath":
        return self

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:  # type: ignore[override]
        about = self._backend.info(str(self))
        kind = stat.S_IFDIR if about["type"] == "directory" else stat.S_IFREG
        changed = about.get("mtime") or about.get("LastModified")  # of gcsfs, of s3fs
        seconds = changed.timestamp() if changed else 0.0
        entries = (kind | 0o644, 0, 0, 1, 0, 0, about.get("size") or 0, *(int(seconds),) * 3)
        return os.stat_result(entries, {"st_mtime_ns": round(seconds * 1e9)})

    def open(self, mode: str = "r", *_: Any, **how: Any) -> Any:  # type: ignore[override]
        file = super().open(mode.replace("b", "") + "b")
        words = {name: how.get(name) for name in ("encoding", "errors")}
        return file if "b" in mode else io.TextIOWrapper(file, **words)  # type: ignore[arg-type]

    def is_dir(self, **_: Any) -> bool:
        return self._backend.isdir(str(self))

    def is_file(self, **_: Any) -> bool:
        return self.exists() and not self.is_dir()

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: folders come with their objects."""

    def rmdir(self) -> None:
        """Do nothing: folders go with their objects, and buckets stay."""

    def read_bytes(self) -> bytes:
        return self._backend.cat_file(str(self))

    def read_text(self, encoding: str | None = None, *_: Any) -> str:  # type: ignore[override]
        return self.read_bytes().decode(encoding or "utf-8")

    def write_bytes(self, data: Any) -> int:
        self._backend.pipe_file(str(self), bytes(data))
        return len(data)

    def glob(self, pattern: str, **_: Any) -> Iterator["RemotePath"]:  # type: ignore[override]
        """Yield what fits, folders too. `**/` at the beginning is any number of folders."""
        wanted = pattern.removeprefix("**/").split("/")
        below = {PurePosixPath(name) for name in self.sizes()}
        for path in sorted(below.union(*(path.parents for path in below)) - {PurePosixPath()}):
            parts = path.parts[-len(wanted) :] if pattern.startswith("**/") else path.parts
            if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
                yield self / path

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every object below, by its path from here, with one request."""
        found = self._backend.find(str(self), detail=True)
        start = len("/".join(self.parts[2:])) + 1
        return {name[start:]: about["size"] for name, about in sorted(found.items())}

    def rglob(self, pattern: str, **_: Any) -> Iterator["RemotePath"]:  # type: ignore[override]
        return self.glob(f"**/{pattern}")

    def upload(self, source: Path) -> None:
        """Write a local file, or all files of a folder, here."""
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if file.is_file():
                self._backend.put_file(str(file), str(self / file.relative_to(source)))

    def download(self, target: Path) -> Path:
        """Copy this object, or all in this folder, to a local path, and return that."""
        for name in self.sizes():
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            self._backend.get_file(str(self / name), str(place))
        return target


class _Backend:
    """A backend of epath, or its file system, that raises OSError alone."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            place = next(a for a in args if isinstance(a, str) and "://" in a)
            try:
                owner = self.inner if hasattr(self.inner, name) else self.inner.fs(place)
                return getattr(owner, name)(*args, **options)
            except OSError:
                raise
            except Exception as error:  # clients of buckets raise their own kinds
                why = " ".join(str(error).split()) or type(error).__name__
                raise OSError(errno.EIO, why, place) from error

        return call
