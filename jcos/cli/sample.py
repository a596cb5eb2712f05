"""`jcos sample`."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tyro
from jaxtyping import Bool

from jcos import wan
from jcos.cli.common import Checkpoint, Interventions, bar, command_line
from jcos.config import Sampling
from jcos.experiments.answers import answers_of, blend
from jcos.experiments.puzzles import Progress, held_out, play, score
from jcos.files import write
from jcos.lab import tasks
from jcos.lab.tasks import Puzzle, Task
from jcos.media import formats
from jcos.report import explorer
from jcos.sampling.noise import seed_words
from jcos.sampling.probes import Probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Interventions):
    """Let the model solve held-out puzzles of a task, with or without an intervention.

    For each puzzle, writes OUT/puzzle-N.png (rows: clean estimates at some steps, then the final
    video and a right answer; columns: frames), OUT/puzzle-N.webp (the final video), and for all of
    them OUT/arrays.npz (latents, every clean estimate, its score and its mass on each right
    answer), OUT/run.json (what was run, scores) and the page OUT/index.html.

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
    out: Path = Path("out/sample")
    checkpoint: Checkpoint = wan.TINY

    def run(self) -> None:
        task = tasks.get(self.task)
        if self.puzzles < 1:
            raise ValueError(f"{self.puzzles} puzzles asked for; at least 1 is needed")
        seed_words(self.seeds)  # which of them are no seeds
        model = wan.load(self.checkpoint)
        sampling = model.config.sampling
        if self.steps is not None:
            sampling = dataclasses.replace(sampling, steps=self.steps)
        probe = self.probe(sampling.steps, task.frames, model.config.dit.layers)
        puzzles = held_out(task, self.puzzles, self.puzzle_seed)
        with bar() as told:
            page, solved = self._make(model, task, puzzles, sampling, probe, told)
        print(f"Solved {int(solved.sum())} of {solved.size}; the page is at {page.resolve()}")

    def _make(
        self,
        model: wan.Wan,
        task: Task,
        puzzles: list[Puzzle],
        sampling: Sampling,
        probe: Probe,
        told: Callable[[Progress], None],
    ) -> tuple[Path, Bool[np.ndarray, "P K"]]:
        """Plays and writes everything; the page, and what is solved."""
        parts = len(puzzles) + 3
        runs = f"{len(puzzles)} puzzles × {len(self.seeds)} seeds × {sampling.steps} steps"
        told(Progress(runs, 0, parts))
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
        told(Progress("scoring every step", 1, parts))
        scores, solved = score(model, task, puzzles, latents)
        x0_scores, _ = score(model, task, puzzles, x0)
        mass = jax.jit(jax.vmap(blend))(x0, answers_of(model, puzzles))
        self.out.mkdir(parents=True, exist_ok=True)
        arrays = io.BytesIO()
        np.savez_compressed(
            arrays,
            latents=np.asarray(latents),
            x0=np.asarray(x0),
            x0_scores=x0_scores,
            mass=np.asarray(mass.on),
            off=np.asarray(mass.off),
            reference=np.stack([task.routes(p)[0] for p in puzzles]),
        )
        write(self.out / "arrays.npz", arrays.getvalue())
        shown = np.unique(np.linspace(0, sampling.steps - 1, 9).round().astype(int))
        for i, puzzle in enumerate(puzzles):
            told(Progress(f"pictures of puzzle {i}", 2 + i, parts))
            video = model.decode(latents[i, 0])
            rows = [*model.decode(x0[i, 0, shown]), video, task.routes(puzzle)[0]]
            write(
                self.out / f"puzzle-{i}.png",
                formats.png(formats.contact_sheet(np.stack(rows), scale=4)),
            )
            write(self.out / f"puzzle-{i}.webp", formats.webp(formats.upscale(video, 8)))
        run = {
            "command": command_line(),
            "model": model.config.name,
            "layers": model.config.dit.layers,
            "sampling": dataclasses.asdict(sampling),
            "codec": model.config.codec and dataclasses.asdict(model.config.codec),
            "interventions": self.interventions(),
            "puzzles": [{"prompt": p.prompt, "right_answers": len(p.answers)} for p in puzzles],
            "seeds": list(self.seeds),
            "shown_steps": shown.tolist(),
            "scores": scores.round(4).tolist(),
            "solved": solved.tolist(),
        }
        write(self.out / "run.json", (json.dumps(run, indent=1) + "\n").encode())
        told(Progress("the page", parts - 1, parts))
        page = explorer.make(self.out)
        told(Progress("the page", parts, parts))
        return page, solved
