"""The `jcos` command. Thin: it reads arguments, calls the library, and turns its errors into one
sentence."""

import dataclasses
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jcos import demo as demonstration
from jcos import media, tasks, wan
from jcos.experiments.puzzles import held_out, play, score
from jcos.probes import Chain, Noise, Probe, SeedEnsemble, chain
from jcos.wan import Wan

console = Console(stderr=True)
FAILURES = (ValueError, IndexError, FloatingPointError, OSError)
"""What a wrong input or a full disk raises; anything else is a bug and shows its traceback."""

Checkpoint = Annotated[
    Path, tyro.conf.arg(help="A checkpoint folder; by default the small model of the package.")
]


@dataclasses.dataclass(frozen=True)
class Demo:
    """See a small video model solve puzzles, denoising step by denoising step: one page, about a
    minute.

    Writes OUT/index.html. The same seeds give the same numbers every time.
    """

    out: Path = Path("out/demo")
    checkpoint: Checkpoint = wan.TINY

    def run(self) -> None:
        model = wan.load(self.checkpoint)
        command = shlex.join(["jcos", *sys.argv[1:]])
        with console.status("starting") as status:
            for part in demonstration.run(model, self.out, command):
                status.update(f"{part} …")
        page = (self.out / "index.html").resolve()
        print(f"The page is at {page}")
        print("Look at the maze first: several routes at once in early steps, one in late ones.")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Let the model solve held-out puzzles of a task, with or without an intervention.

    For each puzzle, writes OUT/puzzle-N.png (rows: clean estimates at some steps, then the final
    video and a right answer; columns: frames), OUT/puzzle-N.webp (the final video), and for all of
    them OUT/arrays.npz (latents and every clean estimate) and OUT/run.json (what was run, scores).

    Examples:
      jcos sample maze
      jcos sample maze --noise-steps 10 --out out/noised
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
    noise_steps: tuple[int, ...] = ()
    """Replace all frames by noise before these steps."""
    noise_frames: tuple[int, ...] = ()
    """Replace these frames by noise before every step."""
    ensemble_layers: tuple[int, ...] = ()
    """Average the tokens of all seeds after these layers …"""
    ensemble_steps: tuple[int, ...] = (0,)
    """… in these steps."""
    out: Path = Path("out/sample")
    checkpoint: Checkpoint = wan.TINY

    def run(self) -> None:
        task = tasks.get(self.task)
        if self.puzzles < 1:
            raise ValueError(f"{self.puzzles} puzzles asked for; at least 1 is needed")
        model = wan.load(self.checkpoint)
        sampling = model.config.sampling
        if self.steps is not None:
            sampling = dataclasses.replace(sampling, steps=self.steps)
        probe = self._probe(model, sampling.steps, task.frames)
        puzzles = held_out(task, self.puzzles, self.puzzle_seed)
        with console.status(
            f"{self.puzzles} puzzles × {len(self.seeds)} seeds × {sampling.steps} steps …"
        ):
            trace = play(
                model,
                task,
                puzzles,
                self.seeds,
                probes=[probe],
                sampling=sampling,
                keep=range(sampling.steps),
            )
            latents, x0 = trace.latents[0], trace.x0[0]
            scores, solved = score(model, task, puzzles, latents)
        self.out.mkdir(parents=True, exist_ok=True)
        arrays = io.BytesIO()
        np.savez_compressed(arrays, latents=np.asarray(latents), x0=np.asarray(x0))
        _write(self.out / "arrays.npz", arrays.getvalue())
        shown = np.unique(np.linspace(0, sampling.steps - 1, 9).round().astype(int))
        for i, puzzle in enumerate(puzzles):
            video = model.decode(latents[i, 0])
            rows = [*model.decode(x0[i, 0, shown]), video, task.routes(puzzle)[0]]
            _write(
                self.out / f"puzzle-{i}.png",
                media.png(media.contact_sheet(np.stack(rows), scale=4)),
            )
            _write(self.out / f"puzzle-{i}.webp", media.webp(media.upscale(video, 8)))
        run = {
            "command": shlex.join(["jcos", *sys.argv[1:]]),
            "model": model.config.name,
            "sampling": dataclasses.asdict(sampling),
            "puzzles": [{"prompt": p.prompt, "right_answers": len(p.answers)} for p in puzzles],
            "seeds": list(self.seeds),
            "shown_steps": shown.tolist(),
            "scores": scores.round(4).tolist(),
            "solved": solved.tolist(),
        }
        _write(self.out / "run.json", (json.dumps(run, indent=1) + "\n").encode())
        print(f"Solved {int(solved.sum())} of {solved.size}; pictures and arrays are in {self.out}")

    def _probe(self, model: Wan, steps: int, frames: int) -> Chain:
        """All interventions, most of them off: one program serves every choice."""
        parts: list[Probe] = [
            Noise.at_steps(steps, frames, self.noise_steps),
            Noise.at_frames(steps, frames, self.noise_frames),
        ]
        on = self.ensemble_steps if self.ensemble_layers else ()
        parts.append(SeedEnsemble.window(steps, model.config.dit.layers, on, self.ensemble_layers))
        return chain(*parts)


@dataclasses.dataclass(frozen=True)
class Tasks:
    """List the reasoning tasks, or draw puzzles with their answers.

    Examples:
      jcos tasks
      jcos tasks --draw 4 --out out/tasks
    """

    draw: int = 0
    """Draw this many puzzles per task into OUT/TASK.png (rows: puzzles, columns: frames)."""
    only: str | None = None
    """Just this task."""
    out: Path = Path("out/tasks")

    def run(self) -> None:
        chosen = tasks.TASKS if self.only is None else {self.only: tasks.get(self.only)}
        table = Table(title="Tasks")
        for column in ("task", "kin to", "what is asked, and how"):
            table.add_column(column, no_wrap=column == "task")
        for name, task in chosen.items():
            kin = task.faculty + (" (hard)" if task.hard else "")
            table.add_row(name, kin, f"{task.about} [dim]“{task.sample(0).prompt}”[/dim]")
        Console().print(table)
        for name, task in chosen.items() if self.draw > 0 else ():
            rows = [task.routes(p)[0] for p in held_out(task, self.draw)]
            self.out.mkdir(parents=True, exist_ok=True)
            sheet = media.contact_sheet(np.stack(rows), scale=6)
            _write(self.out / f"{name}.png", media.png(sheet))
        if self.draw > 0:
            print(f"Drawn into {self.out}")


def _write(path: Path, content: bytes) -> None:
    """Writes beside and renames: a file under its final name is whole."""
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(content)
    beside.replace(path)


COMMANDS: dict[str, Callable[..., Demo | Sample | Tasks]] = {
    "demo": Demo,
    "sample": Sample,
    "tasks": Tasks,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; a wrong input ends in one sentence and exit code 2."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "jcos" / "jax"))
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="jcos",
        description="Where does a video diffusion model reason? Try `jcos demo` first.",
        args=arguments,
    )
    try:
        command.run()
    except FAILURES as error:
        print(f"jcos: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
