"""`python -m convert SRC DST`: a released checkpoint as a folder that `jcos.load` reads.

SRC is a folder of Wan2.2 or Wan2.1 as it is published, in the original layout or in that of
diffusers; nothing in it is changed. DST is written whole or not at all: stop the command when you
like and give it again to go on.
"""

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import tyro

from jcos.__main__ import stop
from jcos.cli.base import Loras, one_line_helps
from jcos.cli.paths import AnyOutFolder, Model, parse, refuse
from jcos.config import StoredType
from jcos.weights.faults import readable
from jcos.weights.loras import parse_all

if TYPE_CHECKING:  # what takes long to import is imported once the options are right
    from .stream import Plan


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Convert a released checkpoint into a folder that `jcos.load` reads."""

    source: tyro.conf.Positional[Model]
    """Folder as it is published: original layout, or that of diffusers; org/name[@revision] on
    Hugging Face; or a transformer's file as ComfyUI has it (safetensors, GGUF), with VAE and text
    encoder beside it."""
    target: tyro.conf.Positional[AnyOutFolder]
    """Folder to be written, which must not exist; a conversion that was stopped goes on."""
    dtype: StoredType = "bfloat16"
    """Of the weights that the original multiplies in bfloat16 anyway: linear layers of the
    transformers and text encoder. All others are float32, so bfloat16 halves the size and changes
    no result of the official numerics; float32 is for other numerics, and for training."""
    lora: Loras = ()
    allow_unused_lora: bool = False
    """Go on where LoRA files have keys that the model has no place for."""


def report(made: "Plan") -> str:
    """Return what was written, in a few lines."""
    released = made.released
    size = made.bytes_stored(released.leaves)
    parts = ", ".join(released.parts)
    lines = [f"{made.job.target}: {released.config.name}, {parts}; {size / 1e9:.2f} GB of weights"]
    lines += released.notes
    for part, adapter in made.adapters:
        lines.append(
            f"{adapter.file} into {part}: {len(adapter.used)} keys used, {len(adapter.skipped)} of "
            f"an image encoder skipped, {len(adapter.unused)} unused"
        )
        lines += [f"  {adapter.note}"] if adapter.note else []
        lines += [f"  unused: {key}" for key in adapter.unused]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m convert") -> None:
    """End in one sentence and exit code 2 for a wrong input, in exit code 130 for an interruption.

    prog: how the command was started.
    """
    one_line_helps(Arguments)
    read = partial(tyro.cli, Arguments, prog=prog)
    chosen = parse(prog, read, sys.argv[1:] if arguments is None else arguments)

    import jax

    from jcos.cli.common import bar

    from .stream import Job, convert

    jax.config.update("jax_platforms", "cpu")  # nothing is computed; accelerators stay free
    again = "the same command goes on where it stopped"
    try:
        loras, unused = parse_all(chosen.lora), chosen.allow_unused_lora
        job = Job(chosen.source, chosen.target, chosen.dtype, loras, unused)
        with bar() as progress:
            made = convert(job, progress)
    except KeyboardInterrupt:
        stop(f"{prog}: stopped; {again}")
    except (ValueError, FileExistsError) as error:
        refuse(prog, error)
    except OSError as error:
        refuse(prog, f"{error}; when that is mended, {again}")
    print(readable(report(made)))


if __name__ == "__main__":
    main()
