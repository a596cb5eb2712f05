"""Files that are whole or absent: written beside their final names and renamed."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A hidden file beside `path` to write into, which gets that name if all goes well; else it is
    removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, content: bytes | str) -> None:
    """A whole file; text as UTF-8. What was there under this name is replaced."""
    with beside(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


# ---- reading folders


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
