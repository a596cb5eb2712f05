"""`python -m convert SRC DST`: a released checkpoint as a folder that `jcos.load` reads.

SRC is a folder of Wan2.2 or Wan2.1 as it is published, in the original layout or in that of
diffusers; nothing in it is changed. DST is written whole or not at all: stop the command when you
like and give it again to go on.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jcos.cli.paths import AnyOutFolder, InPath, Model, parse, refuse
from jcos.config import StoredType
from jcos.weights import hub
from jcos.weights.faults import readable
from jcos.weights.loras import Lora

from . import Only

if TYPE_CHECKING:  # what takes long to import is imported once the options are right
    from .stream import Job, Plan


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Convert a released checkpoint into a folder that `jcos.load` reads."""

    source: tyro.conf.Positional[Model]
    """Folder as it is published: original layout, or that of diffusers; org/name[@revision] on
    Hugging Face; or a transformer's file as ComfyUI has it (safetensors, GGUF), with VAE and text
    encoder beside it."""
    target: tyro.conf.Positional[AnyOutFolder]
    """Folder to be written. It must not exist."""
    dtype: StoredType = "bfloat16"
    """Of the weights that the original multiplies in bfloat16 anyway: linear layers of the
    transformers and text encoder. All others are float32, so bfloat16 halves the size and changes
    no result of the official numerics; float32 is for other numerics, and for training."""
    only: tuple[Only, ...] = ()
    """Convert these parts alone."""
    lora: tuple[InPath, ...] = ()
    """LoRA files, or folders of PEFT adapters, to merge into a model with one expert."""
    lora_scale: tuple[float, ...] = ()
    """A factor for each of these; 1 by default."""
    lora_high: tuple[InPath, ...] = ()
    """The same, to merge into the expert for high noise."""
    lora_high_scale: tuple[float, ...] = ()
    """A factor for each of these."""
    lora_low: tuple[InPath, ...] = ()
    """The same, to merge into the expert for low noise."""
    lora_low_scale: tuple[float, ...] = ()
    """A factor for each of these."""
    allow_unused_lora: Annotated[bool, tyro.conf.arg(name="allow-unused-lora")] = False
    """Go on where LoRA files have keys that the model has no place for."""

    time: bool = False
    """Also say how long each stage took, and how long the disk takes to write the same bytes."""

    def job(self) -> "Job":
        """Return the job. ValueError where factors are not as many as files, or no numbers."""
        from .stream import Job

        loras = [
            *_loras(self.lora, self.lora_scale, None),
            *_loras(self.lora_high, self.lora_high_scale, 0),
            *_loras(self.lora_low, self.lora_low_scale, 1),
        ]
        only, unused = self.only, self.allow_unused_lora
        return Job(hub.find(self.source), self.target, self.dtype, only, tuple(loras), unused)


def _loras(files: Sequence[Path], scales: Sequence[float], expert: int | None) -> list[Lora]:
    if scales and len(scales) != len(files):
        raise ValueError(f"{len(scales)} factors are given for {len(files)} LoRA file(s)")
    if wrong := [scale for scale in scales if not math.isfinite(scale)]:
        raise ValueError(f"a factor for a LoRA file is {wrong[0]}; give a number")
    factors = scales or [1.0] * len(files)
    return [Lora(file, expert, scale) for file, scale in zip(files, factors, strict=True)]


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
    if "text" in released.parts and released.tokenizer is None:
        lines.append(
            "the folder has no tokenizer: give embedded prompts (.npy), or copy one into it"
        )
    return "\n".join(lines)


def speed(made: "Plan", times: dict[str, float]) -> str:
    """Return how fast the conversion was, by stage, and how fast its disk is."""
    from .stream import disk_seconds

    target = made.job.target
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    read = sum(tensor.nbytes for tensor in made.released.tensors.values())
    seconds, plain = sum(times.values()), disk_seconds(target.parent, size)
    stages = ", ".join(f"{stage} {took:.1f} s" for stage, took in times.items())
    return (
        f"{read / 1e9:.2f} GB read and {size / 1e9:.2f} GB written in {seconds:.1f} s "
        f"({stages}): {read / 1e9 / seconds:.2f} GB/s; the disk takes {plain:.1f} s to write the "
        "same bytes"
    )


def main(arguments: Sequence[str] | None = None, prog: str = "python -m convert") -> None:
    """End in one sentence and exit code 2 for a wrong input, in exit code 130 for an interruption.

    prog: how the command was started.
    """
    read = partial(tyro.cli, Arguments, prog=prog)
    chosen = parse(prog, read, sys.argv[1:] if arguments is None else arguments)

    import jax
    from rich import progress as bars
    from rich.console import Console

    from .stream import convert

    jax.config.update("jax_platforms", "cpu")  # nothing is computed; accelerators stay free
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    again = "the same command goes on where it stopped"
    try:
        job = chosen.job()
        times: dict[str, float] = {}
        with bars.Progress(*columns, console=Console(stderr=True)) as progress:
            made = convert(job, progress, times)
    except KeyboardInterrupt:
        print(f"{prog}: stopped; {again}", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, FileExistsError) as error:
        refuse(prog, error)
    except OSError as error:
        refuse(prog, f"{error}; when that is mended, {again}")
    print(readable(report(made)))
    if chosen.time:
        try:
            print(speed(made, times))
        except OSError as error:
            note = f"{prog}: converted, but the disk's own speed cannot be measured: {error}"
            print(note, file=sys.stderr)


if __name__ == "__main__":
    main()
