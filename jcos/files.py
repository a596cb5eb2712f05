"""Paths: which of them can be used at all; files that are whole or absent; room for them.

What is in a bucket is a `Path` too (`jcos.remote`), where a function does not say otherwise.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

BUCKETS = {
    "gs": "gcloud auth application-default login",
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or aws configure",
}
"""Schemes of places in buckets, and where credentials for them come from."""
_SCHEME = re.compile(r"(gs|s3|[A-Za-z][A-Za-z0-9+.-]+(?=:/)):")


def any_path(given: Path | str) -> Path:
    """Return what was named as a path, on a disk or in a bucket (gs://, s3://), touching no file;
    every path that comes from outside goes through here or through `local_path`.

    Raises ValueError where it is empty, holds a NUL, or names a place that nothing here can open.
    """
    text = str(given)
    if (scheme := _SCHEME.match(text)) and scheme[1] in BUCKETS:
        slashes = "/" if isinstance(given, Path) else "//"  # a Path has lost the second
        if not text.startswith(slashes, scheme.end()):
            raise ValueError(
                f"{shown(text)} is no place in a bucket: it begins with {scheme[1]}://"
            )
        from jcos.remote import remote_path  # takes long, and few need it

        return remote_path(text)
    return local_path(given)


def is_remote(path: Path) -> bool:
    """Return whether a path is in a bucket."""
    return hasattr(path, "scheme")


def local_path(given: Path | str) -> Path:
    """Return `any_path` of a place on a disk.

    Raises ValueError also for one that is on no disk of this machine, like gs://bucket/folder.
    """
    text = str(given)
    scheme = _SCHEME.match(text)  # a Path has lost the second slash
    if scheme:
        raise ValueError(
            f"{shown(text)} is on no disk of this machine, where this must be (buckets elsewhere "
            f"begin with {' or '.join(f'{s}://' for s in BUCKETS)}): copy or mount it, and name "
            "the local folder or file"
        )
    if not text:
        raise ValueError("a path is empty; name a file or folder, '.' for this one")
    if "\0" in text:
        raise ValueError(f"{shown(text)!r} is no path: it holds a NUL byte")
    return Path(given)


def shown(path: Path | str) -> str:
    """Return a path as messages show it, the middle of a very long one left out."""
    text = str(path)
    return text if len(text) <= 240 else f"{text[:100]}…{text[-100:]}"


# ---- what can be known of a path before any work; all raise ValueError in one sentence


def check_there(path: Path, kind: str | None = None) -> None:
    """Check that it is a file or folder that can be read. kind: `file` or `folder`, which one."""
    there = _kind(path)
    if there is None:
        lacking = f"{kind or 'file'} {shown(path)}"
        if is_remote(path) and not path.bucket_is_there():  # type: ignore[attr-defined]
            lacking = f"bucket {path.parts[2]}, of {shown(path)}"
        raise ValueError(f"there is no {lacking}")
    if kind and there != kind:
        raise ValueError(f"{shown(path)} is a {there}; a {kind} is needed")
    if is_remote(path):
        return
    try:
        if there == "folder":
            os.scandir(path).close()
        else:
            path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be read: {error.strerror}") from None


check_file, check_folder = partial(check_there, kind="file"), partial(check_there, kind="folder")
"""Check that it is a file that can be read, a folder whose files can be listed."""


def check_new_file(path: Path) -> None:
    """Check that a file can be written there."""
    if _kind(path) == "folder":
        raise ValueError(f"{shown(path)} is a folder; a file is to be written: give it a name")
    check_new_folder(path.parent)


def check_new_folder(path: Path, size: int = 0) -> None:
    """Check, by trying, that a folder is there or can be made, and takes a file of `size` bytes. A
    bucket is no folder."""
    if is_remote(path):
        if len(path.parts) < 4:  # /, scheme, bucket
            raise ValueError(f"{path} is a whole bucket; name a folder in it, like {path}/out")
        probe = path / f".jcos-{secrets.token_hex(8)}"
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except FileNotFoundError:
            raise ValueError(
                f"{shown(path)} cannot be written: there is no bucket {path.parts[2]}"
            ) from None
        except OSError as error:
            raise ValueError(f"{shown(path)} cannot be written: {_why(error, path)}") from None
        return
    whole = Path(os.path.abspath(path))
    place = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
    if not place.is_dir():
        raise ValueError(f"{shown(place)} is a file or a broken link; a folder is needed there")
    try:
        with tempfile.TemporaryDirectory(prefix=".jcos-", dir=place) as probe:
            (Path(probe) / whole.relative_to(place)).mkdir(parents=True, exist_ok=True)
            with reserved(Path(probe), size):
                pass
    except OSError as error:
        raise ValueError(
            f"{shown(path)} cannot be written: {error.strerror} in {shown(place)}"
        ) from None


def check_room(folder: Path, size: int = 0, more: int = 0) -> None:
    """Check, as `check_new_folder`, before hours are spent on what is to be written, that there is
    room for it: OSError where there is not.

    size: bytes of the largest file. more: of all others, as far as is known.
    """
    if is_remote(folder):
        return check_new_folder(folder)
    whole = Path(os.path.abspath(folder))
    free = shutil.disk_usage(next(p for p in (whole, *whole.parents) if os.path.exists(p))).free
    if free < size + more:
        raise OSError(
            f"{shown(folder)} has {free / 1e9:.2f} GB free; about {(size + more) / 1e9:.2f} GB are "
            "to be written: make room, or choose another path"
        )
    check_new_folder(folder, size)


def check_cache(path: Path) -> None:
    """Check that it is a folder, which need not be writable, or can be made."""
    (check_new_folder if _kind(path) is None else check_folder)(path)


def _kind(path: Path) -> str | None:
    """Return `folder`, `file` (anything else that is there), or None."""
    try:
        return "folder" if stat.S_ISDIR(path.stat().st_mode) else "file"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be used: {_why(error, path)}") from None


def _why(error: OSError, path: Path) -> str:
    """Return what an error says; of a bucket, also where credentials come from."""
    why = error.strerror if error.filename or str(error).startswith("[Errno") else str(error)
    login = f" (credentials: {BUCKETS[path.scheme]})" if is_remote(path) else ""  # type: ignore
    return f"{why}{login}"


# ---- files of text


def read_text(path: Path) -> str:
    """Return a text file in UTF-8 as words, without a byte-order mark. ValueError where it cannot
    be read or holds bytes that are no text."""
    check_file(path)
    with contextlib.suppress(UnicodeDecodeError):
        if "\0" not in (text := path.read_bytes().decode("utf-8-sig")):
            return text
    raise ValueError(f"{shown(path)} is no text file in UTF-8; save it as one")


def json_object(path: Path, what: str = "JSON object") -> dict[str, Any]:
    """Return the JSON object in a file, ValueError where it holds none; what: for the message."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(found, dict):
            return found
    raise ValueError(f"{path} is damaged, or no {what}")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one where there is no such file, or one of another kind."""
    with contextlib.suppress(OSError, ValueError):
        return json_object(path)
    return {}


def check_python(path: Path) -> None:
    """Check that it is a Python file without mistakes in its syntax; it is not run."""
    check_file(path)
    if path.suffix != ".py":
        raise ValueError(f"{shown(path)} is no Python file; give one like configs/steps.py")
    try:
        compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ValueError(f"{shown(path)}, line {error.lineno}: {error.msg}") from None
    except ValueError as error:  # of NUL bytes
        raise ValueError(f"{shown(path)} is no Python file: {error}") from None


# ---- writing


@contextlib.contextmanager
def beside(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a hidden file beside `path` to write into, which gets that name if all goes well; else
    it is removed. A link of that name is replaced, what it points to stays as it is. For a place in
    a bucket it is a temporary file, which is uploaded.

    shared: several processes may write the same file at the same time; the last one counts.
    Raises OSError with the name of the file.
    """
    path = any_path(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            path.upload(Path(folder) / path.name)  # type: ignore[attr-defined]
        return
    part = path.with_name(f".{path.name}.{f'{secrets.token_hex(8)}.' if shared else ''}part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        yield part
        with part.open("rb+") as file:  # or a machine that loses power may leave the name alone
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write(path: Path, content: bytes | str, *, shared: bool = False) -> None:
    """Write a whole file; text as UTF-8, with escapes for what that does not have, such as the
    bytes of a file's name. What was there under this name is replaced."""
    with beside(path, shared=shared) as part:
        data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
        part.write_bytes(data)


def write_or_keep(path: Path, content: bytes) -> None:
    """Write a file that took hours. Raises OSError where a bucket does not take it, and names the
    temporary file that holds it."""
    try:
        write(path, content)
    except OSError as error:
        if not is_remote(path):
            raise
        local = Path(tempfile.mkdtemp(prefix="jcos-")) / path.name
        local.write_bytes(content)
        raise OSError(
            f"{path} cannot be written: {_why(error, path)}. It is {local}: copy it there, and "
            "repeat the command"
        ) from None


@contextlib.contextmanager
def reserved(folder: Path, size: int) -> Iterator[None]:
    """Hold `size` bytes of a folder's disk, in a file without a name.

    Raises OSError where the folder cannot be written to, or has no room. Of a bucket, nothing."""
    if is_remote(folder):
        yield
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:  # others: a disk that cannot do this
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
        yield


@contextlib.contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """Yield a file or folder on a disk: `path` itself, or a temporary copy of what is in a bucket,
    for libraries that read nothing else."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield path.download(Path(folder) / path.name)  # type: ignore[attr-defined]


def replace(source: Path, folder: Path, last: str) -> None:
    """Put a folder's files in a bucket in place of those of the same names; `last`, with which it
    is whole, goes first and comes last."""
    (folder / last).unlink(missing_ok=True)
    for path in sorted(source.iterdir(), key=lambda path: path.name == last):
        if path.is_dir():
            remove(folder / path.name)
        (folder / path.name).upload(path)  # type: ignore[attr-defined]


def remove(folder: Path) -> None:
    """Remove a folder and all that is in it, if it is there."""
    if is_remote(folder):
        folder.rmtree(missing_ok=True)  # type: ignore[attr-defined]
    else:
        shutil.rmtree(folder, ignore_errors=True)


# ---- reading folders


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of every file below a folder, by its path from there, in order."""
    if is_remote(folder):
        return folder.sizes()  # type: ignore[attr-defined]
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: found[name].stat().st_size for name in sorted(found)}


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """Return what of a folder fits a pattern, in order, but for what is hidden: a name that begins
    with a dot (`.DS_Store`, the `._name` that macOS leaves beside files) anywhere below it."""
    found = folder.glob(pattern)
    return sorted(p for p in found if not is_hidden(p.relative_to(folder)))


def is_hidden(path: Path) -> bool:
    """Return whether any part of a path begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is what Git LFS leaves in place of a large one that was not fetched."""
    with path.open("rb") as file:
        return file.read(40) == b"version https://git-lfs.github.com/spec/v"[:40]
