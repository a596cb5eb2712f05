"""`python -m convert.verify SRC`: proves on a checkpoint that jcos computes what PyTorch does.

SRC is a folder as it is published, in either layout. Every module is run in both, in float32 and
with the same weights and inputs, a block at a time, so memory for one block is enough. Prints a
table, names the first place beyond what is allowed, and ends with exit code 1 if there is one.
Needs PyTorch, diffusers and transformers: pip install 'jcos[lab,verify]'.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from functools import partial

import tyro

from jcos.cli.base import one_line_helps
from jcos.cli.paths import Model, OutFile, parse, refuse
from jcos.files import write

INSTALL = "pip install 'jcos[lab,verify]'"
PARTS = {"vae": "VAE", "text": "text encoder", "vision": "image encoder"}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare a released checkpoint's modules in PyTorch and in jcos."""

    source: tyro.conf.Positional[Model]
    """Folder as it is published: original layout, or that of diffusers; org/name[@revision] on
    Hugging Face; or a transformer's file as ComfyUI has it."""
    json: OutFile | None = None
    """Also write the table here."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m convert.verify") -> None:
    """End with exit code 1 where a place differs, with 2 and one sentence for a wrong input.

    prog: how the command was started.
    """
    one_line_helps(Arguments)
    read = partial(tyro.cli, Arguments, prog=prog)
    given = parse(prog, read, sys.argv[1:] if arguments is None else arguments)
    try:
        from .against import compare
    except ImportError as error:
        refuse(prog, f"{error.name} is missing; install it: {INSTALL}")
    import jax
    import torch
    from rich.console import Console
    from rich.table import Table

    from jcos.weights import hub
    from jcos.weights.released import open_released

    try:
        source = open_released(hub.find(given.source))
    except (ValueError, OSError) as error:
        refuse(prog, error)
    rows = []
    precision, status = jax.default_matmul_precision("highest"), Console(stderr=True).status("…")
    with precision, torch.no_grad(), status:
        for row in compare(source):
            rows.append(row)
            status.update(f"{row.part}, {row.place}: {row.error:.1e} …")
    shown = Table("part", "place", "error", "allowed", title=source.config.name)
    for row in rows:
        style = None if row.error <= row.allowed else "bold red"
        shown.add_row(row.part, row.place, f"{row.error:.3e}", f"{row.allowed:.3e}", style=style)
    Console().print(shown)
    for part, name in PARTS.items():
        if part not in source.parts and (part != "vision" or source.config.vision):
            print(f"The folder has no {name}: it was left out.")
    if given.json is not None:
        table = [row._asdict() for row in rows]
        for row in table:  # JSON has no nan
            row["error"] = row["error"] if math.isfinite(row["error"]) else None
        write(given.json, json.dumps(table, indent=1, allow_nan=False) + "\n")
    # Also a nan is no success.
    wrong = [row for row in rows if not row.error <= row.allowed]
    if wrong:
        first = wrong[0]
        print(
            f"The first difference is at {first.part}, {first.place}: {first.error:.3e} "
            f"relative, where {first.allowed:.3e} is allowed.",
            file=sys.stderr,
        )
        raise SystemExit(1)
    print(f"All {len(rows)} places agree.")


if __name__ == "__main__":
    main()
