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
