"""What the commands share."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

console = Console(stderr=True)

Checkpoint = Annotated[
    Path, tyro.conf.arg(help="A checkpoint folder; by default the small model of the package.")
]


def write(path: Path, content: bytes) -> None:
    """Writes beside and renames: a file under its final name is whole."""
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(content)
    beside.replace(path)
