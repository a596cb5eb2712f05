"""`python -m convert.verify SRC`: proves on a checkpoint that jcos computes what PyTorch does.

SRC is a folder as it is published, in either layout. Every module is run in both, in float32 and
with the same weights and inputs, a block at a time, so memory for one block is enough. Prints a
table, names the first place beyond what is allowed, and ends with exit code 1 if there is one.
Needs PyTorch, diffusers and transformers: pip install 'jcos[verify]'.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import tyro
from rich.console import Console
from rich.table import Table

from jcos.released import open_released

PARTS = {"vae": "VAE", "text": "text encoder"}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare a released checkpoint's modules in PyTorch and in jcos."""

    source: tyro.conf.Positional[Path]
    """Folder as it is published: original layout, or that of diffusers."""
    json: Path | None = None
    """Also write the table here."""


def main(arguments: Sequence[str] | None = None) -> None:
    given = tyro.cli(Arguments, prog="python -m convert.verify", args=arguments)
    try:
        from convert.against import compare
    except ImportError as error:
        message = f"{error.name} is missing; install it: pip install 'jcos[verify]'"
        print(message, file=sys.stderr)
        raise SystemExit(2) from None
    import torch

    try:
        source = open_released(given.source)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    rows = []
    precision, status = jax.default_matmul_precision("highest"), Console(stderr=True).status("…")
    with precision, torch.no_grad(), status:
        for row in compare(source):
            rows.append(row)
            status.update(f"{row.part}, {row.place}: {row.error:.1e} …")
    table = Table("part", "place", "error", "allowed", title=source.config.name)
    for row in rows:
        style = None if row.error <= row.allowed else "bold red"
        table.add_row(row.part, row.place, f"{row.error:.1e}", f"{row.allowed:.0e}", style=style)
    Console().print(table)
    for part, name in PARTS.items():
        if part not in source.parts:
            print(f"The folder has no {name}: it was left out.")
    if given.json is not None:
        given.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    # Also a nan is no success.
    wrong = [row for row in rows if not row.error <= row.allowed]
    if wrong:
        first = wrong[0]
        print(
            f"The first difference is at {first.part}, {first.place}: {first.error:.1e} of the "
            f"largest value, where {first.allowed:.0e} is allowed.",
            file=sys.stderr,
        )
        raise SystemExit(1)
    print(f"All {len(rows)} places agree.")


if __name__ == "__main__":
    main()
