"""`jcos sample`."""

import dataclasses
import hashlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from jcos import runs, wan
from jcos.cli import options
from jcos.cli.common import Interventions, bar, command_line
from jcos.config import Sampling, WanConfig
from jcos.experiments.answers import answers_of, blend
from jcos.experiments.experiment import Progress
from jcos.experiments.sweeps import held_out, play, score
from jcos.files import check_room, keep, write
from jcos.lab import tasks
from jcos.lab.tasks import Puzzle, Task
from jcos.media import formats
from jcos.report import explorer
from jcos.sampling.noise import seed_words
from jcos.sampling.probes import Probe
from jcos.weights.checkpoint import identify

ARRAYS = "arrays.npz"
ROOM = 2**20
"""Bytes that the small files of a run take, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(options.Sample, Interventions):
    """`jcos sample`, at work."""

    def run(self) -> None:
        task = tasks.get(self.task)
        if self.puzzles < 1:
            raise ValueError(f"{self.puzzles} puzzles asked for; at least 1 is needed")
        seed_words(self.seeds)  # which of them are no seeds
        config = wan.read_config(self.checkpoint)
        if self.steps is not None:
            sampling = config.sampling_with(steps=self.steps)
            config = dataclasses.replace(config, sampling=sampling)
        seeds = len(self.seeds)
        probe = self.probe(config.sampling.steps, task.frames, config.dit.layers, seeds)
        puzzles = held_out(task, self.puzzles, self.puzzle_seed)
        settings = self._settings(config, puzzles)
        done = runs.holds(self.out, "puzzles", settings) and (self.out / ARRAYS).is_file()
        videos = len(puzzles) * len(self.seeds) * (config.sampling.steps + 1)
        room = ROOM + 12 * videos * task.frames * task.height * task.width
        check_room(self.out, 0 if done else room)
        model = wan.load(self.checkpoint)
        parts = len(puzzles) + 3
        with bar() as told:
            if not done:
                shape = f"{len(puzzles)} puzzles × {len(self.seeds)} seeds"
                told(f"{shape} × {config.sampling.steps} steps", 0, parts)
                manifest = settings | runs.made(command_line())
                with runs.begun(self.out, manifest, room):
                    arrays = self._play(model, task, puzzles, config.sampling, probe)
                keep(self.out / ARRAYS, arrays)
            page, solved = self._show(model, task, puzzles, told, parts)
        print(f"Solved {int(solved.sum())} of {solved.size}; the page is at {page.resolve()}")

    def _settings(self, config: WanConfig, puzzles: list[Puzzle]) -> dict[str, Any]:
        """Everything that decides what comes out."""
        return {
            "task": self.task,
            "puzzle_seed": self.puzzle_seed,
            "puzzles": [
                {
                    "prompt": p.prompt,
                    "right_answers": len(p.answers),
                    "sha256": hashlib.sha256(repr(p).encode()).hexdigest(),
                }
                for p in puzzles
            ],
            "seeds": list(self.seeds),
            "model": config.name,
            "weights": identify(self.checkpoint),
            "layers": config.dit.layers,
            "sampling": dataclasses.asdict(config.sampling),
            "numerics": dataclasses.asdict(config.numerics),
            "codec": config.codec and dataclasses.asdict(config.codec),
            "interventions": self.interventions(),
        }

    def _play(
        self,
        model: wan.Wan,
        task: Task,
        puzzles: list[Puzzle],
        sampling: Sampling,
        probe: Probe,
    ) -> bytes:
        """Play the puzzles; what is written of them."""
        trace = play(
            model,
            task,
            puzzles,
            self.seeds,
            probes=[probe],
            sampling=sampling,
            keep=range(sampling.steps),
            alike=True,
        )
        latents, x0 = trace.latents[0], trace.x0[0]
        x0_scores, _ = score(model, task, puzzles, x0)
        mass = jax.jit(jax.vmap(blend))(x0, answers_of(model, puzzles))
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
        return arrays.getvalue()

    def _show(
        self,
        model: wan.Wan,
        task: Task,
        puzzles: list[Puzzle],
        told: Progress,
        parts: int,
    ) -> tuple[Path, Bool[np.ndarray, "P K"]]:
        """Write pictures, scores and the page of the arrays; the page, and what is solved."""
        told("scoring", 1, parts)
        try:
            with (self.out / ARRAYS).open("rb") as file, np.load(file) as arrays:
                latents, x0 = arrays["latents"], arrays["x0"]
        except (ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.out / ARRAYS} is damaged ({error}); remove it") from None
        scores, solved = score(model, task, puzzles, latents)
        steps = x0.shape[2]
        shown = np.unique(np.linspace(0, steps - 1, 9).round().astype(int))
        for i, puzzle in enumerate(puzzles):
            told(f"pictures of puzzle {i}", 2 + i, parts)
            video = model.decode(latents[i, 0])
            rows = [*model.decode(x0[i, 0, shown]), video, task.routes(puzzle)[0]]
            sheet = formats.contact_sheet(np.stack(rows), scale=4)
            write(self.out / f"puzzle-{i}.png", formats.png(sheet))
            write(self.out / f"puzzle-{i}.webp", formats.webp(formats.upscale(video, 8)))
        manifest = (runs.read(self.out / runs.MANIFEST) or {}) | {
            "shown_steps": shown.tolist(),
            "scores": scores.round(4).tolist(),
            "solved": solved.tolist(),
        }
        write(self.out / runs.MANIFEST, runs.as_text(manifest))
        told("the page", parts - 1, parts)
        page = explorer.make(self.out)
        told("the page", parts, parts)
        return page, solved
