"""Files that are whole or absent, written beside their final names and renamed; room for them."""

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

LONGEST = 600
"""Characters of a message at most."""


@contextlib.contextmanager
def beside(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a hidden file beside `path` to write into, which gets that name if all goes well; else
    it is removed. A link of that name is replaced, what it points to stays as it is.

    shared: several processes may write the same file at the same time; the last one counts.
    Raises OSError with the name of the file.
    """
    part = path.with_name(f".{path.name}.{f'{secrets.token_hex(8)}.' if shared else ''}part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        yield part
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


def keep(path: Path, content: bytes) -> None:
    """Write a file that took hours. Where that fails, it goes to a folder for temporary files,
    which the OSError names."""
    try:
        write(path, content)
    except OSError as error:
        spare = Path(tempfile.mkdtemp(prefix="jcos-")) / path.name
        write(spare, content)
        raise OSError(
            f"{path}: {error.strerror}; its content is in {spare}: move it there, and repeat the "
            "command"
        ) from None


def shortened(message: str, longest: int = LONGEST) -> str:
    """Return a message of at most `longest` characters; all of a longer one is in a file that it
    names, as far as the disk takes it."""
    if len(message) <= longest:
        return message
    rest = " …"
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(prefix="jcos-", suffix=".txt")
        with os.fdopen(handle, "wb") as file:
            file.write(message.encode(errors="backslashreplace"))
        rest = f" … (all of it is in {name})"
    return message[: longest - len(rest)] + rest


@contextlib.contextmanager
def reserved(folder: Path, size: int) -> Iterator[None]:
    """Hold `size` bytes of a folder's disk, in a file without a name.

    Raises OSError where the folder cannot be written to, or has no room."""
    with tempfile.TemporaryFile(dir=folder) as file:
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:  # others: a disk that cannot do this
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
        yield


def check_room(folder: Path, size: int = 0, more: int = 0) -> None:
    """Raise OSError where a folder cannot be made, or has no room, before hours are spent on what
    is to be written. Nothing is left there.

    size: bytes of the largest file. more: of all others, as far as is known.
    """
    whole = Path(os.path.abspath(folder))
    place = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
    if not place.is_dir():
        raise OSError(f"{place} is no folder that can be written to; choose another --out")
    free = shutil.disk_usage(place).free
    if free < size + more:
        raise OSError(
            f"{place} has {free / 1e9:.2f} GB free; about {(size + more) / 1e9:.2f} GB are to be "
            "written: make room, or choose another --out"
        )
    try:
        with tempfile.TemporaryDirectory(prefix=".jcos-", dir=place) as probe:
            (Path(probe) / whole.relative_to(place)).mkdir(parents=True, exist_ok=True)
            with reserved(Path(probe), size):
                pass
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written to ({error.strerror}); choose another --out"
        ) from None
