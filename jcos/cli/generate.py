"""`jcos generate`."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from jcos.cli.base import Command, Frames, Loras, OnMesh, ProfileName, Sampled
from jcos.cli.paths import AnyCacheFolder, AnyInFile, AnyOutFolder, Model
from jcos.sampling.interventions import Interventions, Place
from jcos.weights.loras import parse_all

if TYPE_CHECKING:
    from jcos.lab.methods import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(Interventions, Sampled, OnMesh, Command):
    """Make videos with a Wan model: of a prompt, of a first frame, or of both.

    Writes OUT/seed-N.mp4, OUT/latents.safetensors (final latents and the clean estimates of --x0,
    float32 [seeds, …], channels last), with --x0 OUT/seed-N-x0-step-S.mp4 and OUT/seed-N-x0.png
    (rows: steps), OUT/run.json and the page OUT/index.html. A call that is repeated after a kill
    goes on with the latents it finds, a search after its last step.

    Examples:
      jcos generate Video-Reason/VBVR-Wan2.2 --image maze.png --prompt "Solve the maze."
      jcos generate wan-t2v --prompt "A maze is solved." --size 832x480 --steps 50 --x0 0 5 10 20 49
      jcos generate wan-i2v --image maze.png --prompt "…" --profile diffsynth --noise-steps 25
      jcos generate wan-i2v --image cat.png --prompt "…" --preset lightning-4 --lora \\
        high=high_noise.safetensors low=low_noise.safetensors:0.9
      jcos generate wan-i2v --image cat.png --prompt "…" --mesh branch=2,context=4
      jcos generate wan-i2v --image maze.png --prompt "…" --seeds 8 --search decided
    """

    checkpoint: tyro.conf.Positional[Model]
    """org/name[@revision] on Hugging Face; a released folder; one that `jcos convert` made; or a
    transformer's file as ComfyUI has it (safetensors, GGUF)."""
    prompt: str
    """What is to happen; or a .txt file of it, or a .npy file of its embedding."""
    image: AnyInFile | None = None
    """The first frame; image-to-video models need one. EXIF turns it in the profile diffusers
    alone, as by its loader."""
    negative: str | None = None
    """The negative prompt, or a .txt or .npy file as for --prompt; by default the authors'."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels; with an image its area, the shape is the picture's."""
    frames: Frames = None
    profile: ProfileName = None
    lora: Loras = ()
    seeds: tuple[int, ...] = (0,)
    """One video per seed, side by side. With --search one number: how many begin, from seed 0; or
    seeds that follow each other."""
    search: str | None = None
    """Let several seeds begin and one go on: a preset (docs/search.md: best-of, epbs, latsearch,
    smc, tbs, chain, evosearch), or the judge of an early choice, such as decided."""
    judge: str | None = None
    """Of a preset: decided (the default), change, peak, agreement, energy, norm, motion or random.
    For decided, released models take the sign that docs/search.md names."""
    noise: str | None = None
    """Of the first latents: torch (what PyTorch draws on a CPU for the seed; the default of
    released models), jax, or a file (.npy, .npz, .safetensors) of [C, F, h, w]."""
    x0: tuple[Place, ...] = ()
    """Steps, or fractions of the run, whose clean estimates are stored."""
    text_cache: AnyCacheFolder | None = None
    """Folder of embedded prompts; with all of them in it, the text encoder is not loaded."""
    tiles: tuple[int, int] | None = None
    """Code pictures and videos in tiles of so many latent cells, height and width, that overlap by
    half: less memory for the VAE, slightly other colours. 30 52 are DiffSynth's."""
    resident: bool | None = None
    """Whether both experts lie on the device together, or each waits in host memory for its steps;
    the videos are the same. By default together if they take at most 55 % of jax's memory."""
    together: int | None = None
    """How many seeds are denoised at a time, all by default: fewer need less memory, and the videos
    are the same."""
    trace: bool = False
    """Keep the whole trajectory in OUT/trace, an Orbax folder of which each host writes its part
    (`jcos.Trace.load`)."""
    out: AnyOutFolder = Path("out/generate")

    def check(self) -> None:
        super().check()
        parse_all(self.lora)
        self.sampling()
        if self.search is None and self.judge is not None:
            raise ValueError("--judge belongs to a search; give --search")

    def run(self) -> None:
        with self.at_work():
            self._run()

    def _run(self) -> None:
        from jcos import staged
        from jcos.cli.common import bar, command_line, make_page, read_size
        from jcos.devices import sharding
        from jcos.report import explorer

        explorer.check_page(self.out / explorer.PAGE)
        arguments = self.arguments(staged.run)
        arguments["size"], devices = read_size(self.size), self.devices()
        if self.search is not None:
            arguments["search"], arguments["seeds"] = self._method(self.search)
        with bar() as progress:
            staged.run(
                self.checkpoint,
                picture=self.image,
                probe=self,
                devices=devices,
                command=command_line(),
                progress=progress,
                **(arguments | self.sampling()),
            )
        if sharding.is_first_host():
            page = make_page(self.out)
            print(f"Videos and latents are in {self.out}; the page is at {page}")

    def _method(self, name: str) -> "tuple[Method, tuple[int]]":
        """Return the search and its first seed; say what it will do and cost.

        Raises ValueError, in one sentence, where it is none or its seeds do not follow each other.
        """
        from jcos import wan
        from jcos.bench.arm import MANY
        from jcos.lab import search

        first, count = self.seeds[0], len(self.seeds)
        if count == 1:
            first, count = 0, self.seeds[0] or 1
        elif self.seeds != tuple(range(first, first + count)):
            raise ValueError(f"a search begins with seeds that follow each other, not {self.seeds}")
        if name in ("early-failure", "calibrated"):
            raise ValueError(f"{name} needs scores of this model; use it from Python")
        config = wan.read_config(self.checkpoint, self.profile)
        sampling = config.sampling_with(**self.sampling())
        judges = list(search.standard(config))
        method = search.named(name, count, self.judge, judges)
        probe = self.probe(sampling.steps, MANY, config.dit.layers, method.seeds)
        search.check(method, config, search.sampling_of(method, sampling), judges, MANY, probe)
        print(f"Search: {search.plan_in_words(method, sampling)}", file=sys.stderr, flush=True)
        return method, (first,)
