"""What can be typed: the options of every command, and nothing that takes long to import before one
of them runs."""

import dataclasses
import pkgutil
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from jcos import files
from jcos.cli.on_mesh import OnMesh
from jcos.cli.paths import (
    AnyCacheFolder,
    AnyInFile,
    AnyOutFolder,
    AnyPath,
    ConfigFile,
    Model,
    OutFile,
    OutFolder,
)
from jcos.config import Solver
from jcos.sampling.interventions import Interventions
from jcos.variants import TINY, Profile, with_preset
from jcos.weights.loras import parse_all

Checkpoint = Annotated[
    Model, tyro.conf.arg(help="A folder, or org/name on Hugging Face; by default the small model.")
]
SAMPLING = ("steps", "shift", "solver", "eta", "temperature", "guidance", "sigmas")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Options that can be run, by default by a class with more methods: `module:name`."""

    work: ClassVar[str]

    def check(self) -> None:
        """Raise ValueError for what is wrong and can be known without importing jax."""

    def run(self) -> None:
        """Import what the command needs, which takes seconds, and do it."""
        pkgutil.resolve_name(self.work)(**vars(self)).run()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """See a small video model solve puzzles, denoising step by denoising step: one page, about a
    minute.

    Writes a folder of results whose page, OUT/index.html, can be opened after a few seconds and
    fills as parts arrive. The same seeds give the same numbers every time.
    """

    work = "jcos.cli.demo:Demo"

    out: OutFolder = Path("out/demo")
    checkpoint: Checkpoint = TINY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Interventions, Command):
    """Let the model solve held-out puzzles of a task, with or without an intervention.

    Writes OUT/puzzle-N.png (rows: clean estimates at some steps, the final video, a right answer),
    OUT/puzzle-N.webp (the final video), OUT/arrays.npz (latents, every clean estimate, its score
    and its mass on each right answer), OUT/run.json and the page OUT/index.html. A repeated call
    goes on with its arrays; a folder of another run is refused.

    Examples:
      jcos sample maze
      jcos sample maze --noise-steps 30 --out out/noised
      jcos sample tictactoe --seeds 0 1 2 --ensemble-layers 3 4 --ensemble-steps 0
    """

    task: tyro.conf.Positional[str]
    """Which task: `jcos tasks` lists them."""
    puzzles: int = 2
    """How many held-out puzzles."""
    puzzle_seed: int = 0
    """Which puzzles."""
    seeds: tuple[int, ...] = (0,)
    """Noise seeds; each gives its own video of every puzzle."""
    steps: int | None = None
    """Denoising steps; the model's own number by default."""
    out: OutFolder = Path("out/sample")
    checkpoint: Checkpoint = TINY

    def check(self) -> None:
        from jcos.lab.tasks import get

        get(self.task)

    def run(self) -> None:
        from jcos.cli.common import bar, command_line, make_page
        from jcos.experiments import sample

        with bar() as progress:
            solved = sample.run(
                self.task,
                self.out,
                puzzles=self.puzzles,
                puzzle_seed=self.puzzle_seed,
                seeds=self.seeds,
                steps=self.steps,
                interventions=self,
                checkpoint=self.checkpoint,
                command=command_line(),
                progress=progress,
            )
        page = make_page(self.out)
        print(f"Solved {int(solved.sum())} of {solved.size}; the page is at {page}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Command):
    """Search along the denoising steps: several seeds begin, the best early estimates go on.

    Writes OUT/puzzle-N.png (rows: every particle's clean estimate at each step where some are
    chosen, those that go on first; the chosen video; a right answer), OUT/puzzle-N.webp (the chosen
    video), OUT/run.json (the tree of who came from whom, and what it cost), OUT/tree.npz (its
    pictures) and OUT/index.html, the page that shows it.

    Examples:
      jcos search maze7 --preset epbs --seeds 8
      jcos search maze7 --preset early-failure --seeds 8 --steps 10 --puzzles 16
      jcos search maze7 --preset best-of --judge oracle --out out/oracle
    """

    work = "jcos.cli.search:Search"

    task: tyro.conf.Positional[str]
    """Which task: `jcos tasks` lists them."""
    preset: str = "epbs"
    """Which method (docs/search.md): best-of, epbs, latsearch, smc, early-failure, calibrated, tbs
    or evosearch."""
    seeds: int = 8
    """How many begin; of early-failure and calibrated how many may be tried."""
    judge: str = "decided"
    """Who says what is good: decided, pixels, change, agreement, energy, random, or the oracle."""
    first_seed: int = 0
    """The first noise seed; the others follow."""
    puzzles: int = 4
    """How many held-out puzzles."""
    puzzle_seed: int = 0
    """Which puzzles."""
    steps: int | None = 10
    """Denoising steps of a run."""
    solver: Solver | None = None
    """As of `jcos generate`; by default the model's own, cps where the preset makes copies that
    noise parts."""
    eta: float | None = None
    """Size of a stochastic solver's noise."""
    out: OutFolder = Path("out/search")
    checkpoint: Checkpoint = TINY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(OnMesh, Command):
    """Run an experiment of the paper: a question to a model, its numbers, its figures.

    Writes OUT/run.json (settings, weights, versions), OUT/results.nc (an xarray dataset),
    OUT/table.csv, OUT/figures and OUT/index.html, the page to look inside (`jcos report`). A
    repeated call goes on where the last one stopped.

    Examples:
      jcos run configs/steps.py
      jcos run configs/noise.py --set puzzles=16 --set sampling.steps=10 --out out/quick
      jcos run configs/steps.py --mesh world=8
      jcos run --example-clips clips.json
      jcos run configs/steps.py --checkpoint wan-i2v --set clips=clips.json
      jcos run configs/swap.py --checkpoint wan-i2v --set clips=pairs.json --mesh branch=2,context=4
    """

    work = "jcos.cli.run:Run"

    config: tyro.conf.Positional[ConfigFile | None] = None
    """A Python file that describes the experiment, or the name of one that comes with jcos, like
    noise."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Changes a parameter, as FIELD=VALUE; can be given several times."""
    out: AnyOutFolder | None = None
    """Where results go; out/NAME by default, NAME being the config's."""
    redo: bool = False
    """Run it again and replace the results that are there."""
    example_clips: OutFile | None = None
    """Write a file of prompts with pictures here, to be filled in for --set clips=FILE, and no
    more; docs/wan.md says what it may hold."""
    checkpoint: Checkpoint = TINY
    profile: Profile | None = None
    """Whose data types, schedule, defaults and rule for pictures: by default those of the
    checkpoint's authors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(Interventions, OnMesh, Command):
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
    """The negative prompt, or a .txt or .npy file as for --prompt; the authors' own by default."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels; with an image its area, the picture's own shape is kept."""
    frames: int | None = None
    """Number of frames, 4 n + 1."""
    steps: int | None = None
    """Denoising steps."""
    shift: float | None = None
    """Of the noise levels."""
    guidance: tuple[float, ...] | None = None
    """One scale, or one per expert, high noise first; 1 leaves the negative prompt out."""
    sigmas: tuple[float, ...] | None = None
    """Explicit noise levels in place of steps and shift, or timesteps, as distilled models want
    them: 1000 750 500 250."""
    solver: Solver | None = None
    """With its own grid of noise levels, unless it is the profile's solver anyway. cps, sde, dance,
    cpws and renoise add noise in every step (docs/search.md)."""
    eta: float | None = None
    """Size of that noise, 0 for none; cps takes up to 1."""
    temperature: float | None = None
    """Scale of the first noise, 1 by default."""
    profile: Profile | None = None
    """Whose data types, schedule and defaults: by default those of the checkpoint's authors."""
    preset: str | None = None
    """Schedule of a distilled model, where nothing else is given: lightning-4 or lightning-8."""
    lora: tuple[str, ...] = ()
    """LoRA files, merged while the weights are read: FILE[:SCALE], of models with two experts
    high=FILE[:SCALE] and low=FILE[:SCALE]."""
    seeds: tuple[int, ...] = (0,)
    """One video per seed, side by side. With --search one number: how many begin, from seed 0; or
    seeds that follow each other."""
    search: str | None = None
    """Let several seeds begin and one go on: a preset (docs/search.md: best-of, epbs, latsearch,
    smc, threshold, tbs, chain, evosearch), or the judge of an early choice, such as decided."""
    judge: str = "decided"
    """Of a preset: decided, change, peak, agreement, energy, norm, motion or random. For decided,
    released models take the sign that docs/search.md names."""
    search_at: float | None = None
    """The fraction of the steps after which is chosen; the preset's own by default."""
    search_least: float | None = None
    """The score that --search threshold asks for."""
    noise: str | None = None
    """Of the first latents: torch (what PyTorch draws on a CPU for the seed; the default of
    released models), jax, or a file (.npy, .npz, .safetensors) of [C, F, h, w]."""
    x0: tuple[int, ...] = ()
    """Steps whose clean estimates are kept."""
    preview: bool = False
    """Show the estimates of --x0 as squares of one colour for every latent cell, without decoding:
    by a linear map that is fitted to the VAE first."""
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
    programs: OutFolder | None = None
    """Folder of compiled programs, which can go to other machines with the same devices; by default
    your cache folder. What lies there is run: take it only from where you would take code."""
    trace: bool = False
    """Keep the whole trajectory in OUT/trace, an Orbax folder of which each host writes its part
    (`jcos.Trace.load`)."""
    out: AnyOutFolder = Path("out/generate")

    def check(self) -> None:
        parse_all(self.lora)
        with_preset(self.preset, {})

    def run(self) -> None:
        with self.at_work():
            self._run()

    def _run(self) -> None:
        from jcos import staged
        from jcos.cli.common import bar, command_line, make_page, read_size
        from jcos.cli.search import method_of
        from jcos.devices import programs, sharding

        if self.programs is not None:
            programs.keep(self.programs)
        size = None
        if self.size is not None:
            width, height = read_size(self.size)
            size = height, width
        method, seeds = method_of(self)
        with bar() as progress:
            staged.run(
                self.checkpoint,
                self.prompt,
                self.image,
                out=self.out,
                negative=self.negative,
                size=size,
                frames=self.frames,
                seeds=seeds,
                search=method,
                preview=self.preview,
                x0=self.x0,
                probe=self,
                noise=self.noise,
                profile=self.profile,
                text_cache=self.text_cache,
                tiles=self.tiles,
                resident=self.resident,
                trace=self.trace,
                together=self.together,
                devices=self.devices(),
                lora=self.lora,
                preset=self.preset,
                command=command_line(),
                progress=progress,
                **{name: getattr(self, name) for name in SAMPLING},
            )
        if not sharding.is_first_host():
            return
        page = make_page(self.out)
        print(f"Videos and latents are in {self.out}; the page is at {page}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Command):
    """Whether a run fits a machine and how long it takes, before the machine is rented.

    Compiles the whole run (all steps, both experts, guidance, all seeds; weights as shapes) for
    the most promising meshes, with the compiler of the extra `tpu` or `gpu`; no such device is
    needed. Without that extra, all is calculated.

    Examples:
      jcos plan --model wan2.2-i2v-a14b --topology v5p:2x2x4 --size 832x480 --frames 81 --seeds 3
      jcos plan --model wan2.2-t2v-a14b --topology v5e:2x4 --mesh fsdp=8 --mesh branch=2,fsdp=4
      jcos plan --model wan2.2-ti2v-5b --topology h200:1 --json plan.json
    """

    work = "jcos.cli.plan:Plan"

    model: str
    """A released model, by its name here or on Hugging Face, or a checkpoint folder."""
    topology: str
    """v5p-64, v6e-8, h200:8 as clouds sell them, or any slice by its shape, as v5p:2x2x4."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels; by default what the model is made for."""
    frames: int | None = None
    """Number of frames, 4 n + 1."""
    seeds: int = 1
    """How many videos are made side by side."""
    steps: int | None = None
    """Denoising steps."""
    profile: Profile | None = None
    """Whose data types, schedule and defaults: by default those of the model's authors."""
    mesh: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Try this mesh, like branch=2,context=8 (can be given several times); by default the most
    promising ones."""
    tries: int = 3
    """How many meshes to try where none are given."""
    json: OutFile | None = None
    """Write everything to this file, too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks(Command):
    """List the reasoning tasks, or draw puzzles with their answers.

    Examples:
      jcos tasks
      jcos tasks --draw 4 --out out/tasks
    """

    draw: int = 0
    """Draw this many puzzles per task into OUT/TASK.png (rows: puzzles, columns: frames)."""
    only: str | None = None
    """Just this task."""
    out: AnyPath = Path("out/tasks")

    def run(self) -> None:
        import numpy as np

        from jcos.cli.common import show_table
        from jcos.experiments.sweeps import held_out
        from jcos.lab.tasks import TASKS, get
        from jcos.media import formats

        if self.draw > 0:
            files.check_new_folder(self.out)
        chosen = TASKS if self.only is None else {self.only: get(self.only)}
        rows = [
            (
                name,
                task.faculty + (" (hard)" if task.hard else ""),
                f"score ≥ {task.solved_at:.2f}",
                f"{task.about} [dim]“{task.sample(0).prompt}”[/dim]",
            )
            for name, task in chosen.items()
        ]
        show_table("Tasks", ("task", "kin to", "solved at", "what is asked, and how"), rows)
        for name, task in chosen.items() if self.draw > 0 else ():
            answers = [task.routes(puzzle)[0] for puzzle in held_out(task, self.draw)]
            sheet = formats.contact_sheet(np.stack(answers), scale=6)
            files.write(self.out / f"{name}.png", formats.png(sheet))
        if self.draw > 0:
            print(f"Drawn into {self.out}")
