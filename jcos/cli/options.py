"""What can be typed: the options of every command, and nothing that takes long to import.

A command's work is in the file of its name, in a class that adds methods to its options here.
"""

import dataclasses
import pkgutil
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from jcos.cli.paths import CacheFolder, ConfigFile, InFile, InFolder, OutFile, OutFolder
from jcos.config import Solver
from jcos.variants import TINY, Profile

Checkpoint = Annotated[
    InFolder, tyro.conf.arg(help="A checkpoint folder; by default the small model of the package.")
]
Samples = Annotated[
    InFolder,
    tyro.conf.arg(help="The benchmark's folder, with In-Domain_50 and Out-of-Domain_50."),
]
PerTask = Annotated[int | None, tyro.conf.arg(help="Only the first so many samples of each task.")]
PORT = 8642


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Options that can be run. work: the class that does it, as `module:name`."""

    work: ClassVar[str]

    def run(self) -> None:
        """Import what the command needs, which takes seconds, and do it."""
        pkgutil.resolve_name(self.work)(**vars(self)).run()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interventions:
    """Options of every command that samples: what is done to the runs."""

    noise_steps: tuple[int, ...] = ()
    """Replace all frames by noise before these steps."""
    noise_frames: tuple[int, ...] = ()
    """Replace these latent frames by noise before every step."""
    ensemble_layers: tuple[int, ...] = ()
    """Average the tokens of all seeds after these layers …"""
    ensemble_steps: tuple[int, ...] = (0,)
    """… in these steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnMesh:
    """The option of every command that can use many devices."""

    mesh: str | None = None
    """How all devices of this process share the work, like branch=2,context=4: seeds over seed, the
    two passes of guidance over branch, a video's tokens over context or fsdp, which slices the
    weights too, heads over tensor; runs of an experiment and samples of a benchmark (which has no
    use for seed) over world. The videos are the same. One device by default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """See a small video model solve puzzles, denoising step by denoising step: one page, about a
    minute.

    Writes OUT/index.html, and its runs for `jcos report OUT`. The same seeds give the same numbers
    every time.
    """

    work = "jcos.cli.demo:Demo"

    out: OutFolder = Path("out/demo")
    checkpoint: Checkpoint = TINY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Interventions, Command):
    """Let the model solve held-out puzzles of a task, with or without an intervention.

    For each puzzle, writes OUT/puzzle-N.png (rows: clean estimates at some steps, then the final
    video and a right answer; columns: frames), OUT/puzzle-N.webp (the final video), and for all of
    them OUT/arrays.npz (latents, every clean estimate, its score and its mass on each right
    answer), OUT/run.json (what was run, scores) and the page OUT/index.html. A repeated call finds
    its arrays; a folder of another run is refused.

    Examples:
      jcos sample maze
      jcos sample maze --noise-steps 30 --out out/noised
      jcos sample tictactoe --seeds 0 1 2 --ensemble-layers 3 4 --ensemble-steps 0
    """

    work = "jcos.cli.sample:Sample"

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Command):
    """Search along the denoising steps: several seeds begin, the best early estimates go on.

    Writes OUT/puzzle-N.png (rows: every particle's clean estimate at each step where some are
    chosen, those that go on first; the chosen video; a right answer), OUT/puzzle-N.webp (the chosen
    video) and OUT/run.json (the tree of who came from whom, and what it cost).

    Examples:
      jcos search maze7 --preset epbs --seeds 8
      jcos search maze7 --preset early-failure --seeds 8 --steps 10 --puzzles 16
      jcos search maze7 --preset best-of --judge oracle --out out/oracle
    """

    work = "jcos.cli.search:Search"

    task: tyro.conf.Positional[str]
    """Which task: `jcos tasks` lists them."""
    preset: str = "epbs"
    """Which method (docs/search.md): best-of, epbs, latsearch, smc, early-failure, tbs or
    evosearch."""
    seeds: int = 8
    """How many begin; of early-failure how many may be tried."""
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
    out: OutFolder = Path("out/search")
    checkpoint: Checkpoint = TINY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(OnMesh, Command):
    """Run an experiment of the paper: a question to a model, its numbers, its figures.

    Writes OUT/config.json (settings, weights, versions), OUT/arrays.npz, OUT/table.csv, OUT/figures
    and OUT/index.html, the page to look inside (`jcos report`). Results that are there already are
    not made again.

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
    out: OutFolder | None = None
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
    float32 [seeds, …], channels last), with --x0 OUT/seed-N-x0-step-S.mp4 (the clean estimates as
    films) and OUT/seed-N-x0.png (rows: steps, columns: some frames), OUT/run.json (all that is
    needed to make them again) and the page OUT/index.html. A call that is repeated after a kill
    goes on with the latents it finds.

    Examples:
      jcos generate wan-i2v --image cat.png --prompt "The cat finds the way out."
      jcos generate wan-t2v --prompt "A maze is solved." --size 832x480 --steps 50 --x0 0 5 10 20 49
      jcos generate wan-i2v --image maze.png --prompt "…" --profile diffsynth --noise-steps 25
      jcos generate wan-i2v --image cat.png --prompt "…" --mesh branch=2,context=4
    """

    work = "jcos.cli.generate:Generate"

    checkpoint: tyro.conf.Positional[InFolder]
    """A folder that `python -m convert` made, or one with released safetensors."""
    prompt: str
    """What is to happen; or a .txt file of it, or a .npy file of its embedding."""
    image: InFile | None = None
    """The first frame; image-to-video models need one. How a camera says that it is turned (EXIF)
    is applied in the profile diffusers alone, as by its loader."""
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
    """With its own grid of noise levels, unless it is the profile's solver anyway."""
    profile: Profile | None = None
    """Whose data types, schedule and defaults: by default those of the checkpoint's authors."""
    seeds: tuple[int, ...] = (0,)
    """One video per seed, side by side."""
    noise: str | None = None
    """Where the first noise comes from: torch (what PyTorch draws on a CPU for the seed), jax, or a
    file (.npy, .npz, .safetensors) of [C, F, h, w]. By default torch, of the small model jax; the
    same as in Python."""
    x0: tuple[int, ...] = ()
    """Steps whose clean estimates are kept."""
    text_cache: CacheFolder | None = None
    """Folder of embedded prompts; with all of them in it, the text encoder is not loaded."""
    tiles: tuple[int, int] | None = None
    """Code pictures and videos in tiles of so many latent cells, height and width, that overlap by
    half: less memory for the VAE, slightly other colours. 30 52 are DiffSynth's."""
    resident: bool | None = None
    """Whether the weights of both experts lie on the device together, or wait in host memory, each
    until its steps begin; the videos are the same. By default together if they take at most 55 % of
    the memory that jax has on the device."""
    programs: OutFolder | None = None
    """Folder of compiled programs, for instance CHECKPOINT/programs, that can go with the
    checkpoint to other machines with the same devices; what is not there is compiled and put there.
    What lies there is run: take it only from where you would take code. By default they are kept
    in your cache folder."""
    out: OutFolder = Path("out/generate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchRun(OnMesh, Command):
    """Make the videos of a benchmark, for each arm of a config in a folder of its own.

    Writes OUT/ARM/SPLIT/TASK/00000.mp4, where the official scorer looks for them, OUT/ARM/run.json
    and OUT/ARM/summary.json. Goes on where it was stopped; any number of workers may share OUT.
    Ends with exit code 1 where videos are missing.

    Examples:
      jcos bench run configs/vbvr_base.py --samples VBVR-Bench-Data --checkpoint wan-vbvr
      jcos bench run configs/vbvr_base.py --samples VBVR-Bench-Data --checkpoint wan-vbvr \\
        --mesh branch=2,context=4
      jcos bench run configs/vbvr_noise.py --samples VBVR-Bench-Data --checkpoint wan-vbvr --plan
      jcos bench run configs/vbvr_base.py --samples out/small --set scale=0.125 --set profile=none
    """

    work = "jcos.cli.bench:Run"

    config: tyro.conf.Positional[ConfigFile]
    """A Python file that describes arms, or the name of one that comes with jcos, like
    vbvr_base."""
    samples: Samples
    out: Path = Path("out/vbvr")
    """Where the arms' folders go; may be shared by workers."""
    checkpoint: Checkpoint = TINY
    arms: tuple[str, ...] = ()
    """Only these arms of the config."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Changes every arm, as FIELD=VALUE; can be given several times."""
    per_task: PerTask = None
    shard: str = "0/1"
    """I/N: only every N-th sample, from the I-th on, for workers that do not share OUT; `host`:
    this one's of all that --join. Those that share OUT need none: each takes what no other has."""
    join: bool = False
    """This is one of a pod's hosts, which must start together: joins the others first. Each still
    takes samples of its own."""
    batch: int | None = None
    """Samples generated at a time; by default as many of one shape as memory holds."""
    retry: bool = False
    """Try the failed samples again."""
    text_cache: CacheFolder | None = None
    """Folder of embedded prompts; OUT/text by default."""
    plan: bool = False
    """Only say what would be done, and how long it takes."""
    machine: str = "gpu:h200:1"
    """For --plan: a machine as `jcos plan` names them, with all its devices in --mesh."""
    step_seconds: float | None = None
    """For --plan: what a guided step of 81 frames of 832 × 480 pixels takes on your machine, if you
    have measured it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchScore(Command):
    """The paper's table of one or more arms, beside a still picture, paired by sample.

    Reads what the official scorer wrote, or runs it; the exported small tasks judge themselves.
    Writes OUT/scores.json (every sample), OUT/table.csv, OUT/run.json (what was compared), and the
    baselines' videos.

    Examples:
      jcos bench score out/vbvr/base out/vbvr/ensemble --samples VBVR-Bench-Data \\
        --scorer "python VBVR-EvalKit/run_evaluation.py"
    """

    work = "jcos.cli.bench:Score"

    arms: tyro.conf.Positional[tuple[InFolder, ...]]
    """Folders of arms; the others are compared with the first."""
    samples: Samples
    out: OutFolder = Path("out/vbvr/scores")
    """Where results, tables and baselines go."""
    scorer: str | None = None
    """How the official scorer is started, if it is installed."""
    per_task: PerTask = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchExport(Command):
    """Write small tasks out as a benchmark folder, to try the whole path on the small model.

    Examples:
      jcos bench export out/small
      jcos bench run configs/vbvr_base.py --samples out/small --set scale=0.125 --set profile=none
      jcos bench score out/vbvr/base --samples out/small
    """

    work = "jcos.cli.bench:Export"

    folder: tyro.conf.Positional[OutFolder]
    tasks: tuple[str, ...] = ()
    """Which tasks; by default all."""
    per_task: int = 5
    """Held-out puzzles of each task."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Command):
    """Whether a run fits a machine and how long it takes, before the machine is rented.

    Compiles the whole run (all steps, both experts, guidance, all seeds; weights as shapes) for
    the most promising meshes, with the compiler of the extra `tpu` or `gpu`; no such device is
    needed. Without the extra `gpu`, GPUs are calculated.

    Examples:
      jcos plan --model wan2.2-i2v-a14b --topology v5p:2x2x4 --size 832x480 --frames 81 --seeds 3
      jcos plan --model wan2.2-t2v-a14b --topology v5e:2x4 --mesh fsdp=8 --mesh branch=2,fsdp=4
      jcos plan --model wan2.2-ti2v-5b --topology gpu:h200:1 --json plan.json
    """

    work = "jcos.cli.plan:Plan"

    model: str
    """A released model, by its name."""
    topology: str
    """v5e:2x4, v5p:2x2x4, v6e:2x4 or any other slice; gpu:h100:8, gpu:h200:1."""
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
class Report(Command):
    """Make a page of results to look inside: steps × frames, curves, heat maps, tables, files.

    RESULTS is what any command left: sample, run and generate, which make this page themselves at
    their end, or demo, which has a page of its own. Several folders are compared: the first is the
    baseline, and runs of the same puzzle and seed stand side by side. Writes index.html into the
    folder, or explore.html beside a page of another making; of several folders compared.html into
    the first. It opens from disk, without network; large results leave a folder of the page's name
    and .files beside it.

    Examples:
      jcos report out/sample
      jcos report out/sample out/noised --out out/compared.html
      jcos report out --serve
    """

    work = "jcos.cli.report:Report"

    results: tyro.conf.Positional[tuple[InFolder, ...]]
    """Folders of results; with --serve one folder, all of whose runs are listed."""
    out: OutFile | None = None
    """The page, where it is to be another."""
    serve: bool = False
    """Show it live, to this machine only."""
    port: Annotated[int, tyro.conf.arg(help="Of --serve; 0 takes any that is free.")] = PORT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explore(Command):
    """List the runs below a folder and look inside them, live, in the browser of this machine.

    Examples:
      jcos explore
      jcos explore out/sample --port 9000
    """

    work = "jcos.cli.report:Explore"

    folder: tyro.conf.Positional[InFolder] = Path("out")
    """A folder of results, or one with such folders in it."""
    port: int = PORT
    """0 takes any that is free."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks(Command):
    """List the reasoning tasks, or draw puzzles with their answers.

    Examples:
      jcos tasks
      jcos tasks --draw 4 --out out/tasks
    """

    work = "jcos.cli.tasks:Tasks"

    draw: int = 0
    """Draw this many puzzles per task into OUT/TASK.png (rows: puzzles, columns: frames)."""
    only: str | None = None
    """Just this task."""
    out: Path = Path("out/tasks")


@dataclasses.dataclass(frozen=True)
class Bench:
    """VBVR-Bench: videos of its samples, and their scores."""

    what: tyro.conf.OmitSubcommandPrefixes[
        Annotated[BenchRun, tyro.conf.subcommand("run")]
        | Annotated[BenchScore, tyro.conf.subcommand("score")]
        | Annotated[BenchExport, tyro.conf.subcommand("export")]
    ]

    def run(self) -> None:
        self.what.run()
