"""Small folders of results as the commands leave them, made without a model."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from jcos import media
from jcos.config import PixelCodec
from jcos.report.plane import Line, Look, Marks, Plane

STEPS, FRAMES, SIDE = 12, 5, 20
SAMPLING = {"steps": STEPS, "shift": 3.0, "solver": "euler", "grid": "euler", "guidance": None}
HOSTILE = (
    "<script>window.hacked=1</script>\"'><img src=x onerror='hacked=1'> 🦆 &amp; " + "x" * 4000
)


def pictures(*lead: int, seed: int = 0, side: int = SIDE) -> np.ndarray:
    """Noise that no other cell has: whatever is shown can be told."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*lead, FRAMES, side, side, 3), dtype=np.uint8)


def plane(label: str = "seed 0", group: str = "puzzle 0", seed: int = 0, **more: Any) -> Plane:
    video, reference = pictures(2, seed=seed + 1000)
    steps = range(STEPS)
    told = {
        "prompt": "find the way",
        "solved": seed % 2 == 0,
        "lines": [
            Line("noise level σ", "σ", steps, np.linspace(1, 0.1, STEPS).tolist()),
            Line("score of x̂0", "score", [0, 5, 11], [0.1, None, 0.9]),
        ],
    } | more
    return Plane(
        label=label,
        group=group,
        steps=steps,
        x0=pictures(STEPS, seed=seed),
        video=video,
        reference=reference,
        **told,
    )


def look(puzzles: int = 2, seeds: int = 2, **more: Any) -> Look:
    return Look(
        plane(f"seed {k}", f"puzzle {p}", 10 * p + k, **more)
        for p in range(puzzles)
        for k in range(seeds)
    )


def changed(seed: int = 0) -> Plane:
    """A run with every kind of intervention."""
    marks = Marks(steps=(3, 7), frames=(2,), layers=(1, 4), layer_steps=(0,))
    return plane(group="changed", seed=seed, marks=marks)


def sample_folder(folder: Path, *, prompt: str = "find the way") -> np.ndarray:
    """Like `jcos sample`, 2 puzzles × 2 seeds; returns the pixels that its latents stand for."""
    codec = PixelCodec()
    pixels = pictures(2, 2, STEPS + 1, seed=5)
    folded = rearrange(pixels / 255, "p k s f (h a) (w b) c -> p k s f h w (a b c)", a=2, b=2)
    latents = ((folded - codec.mean) / codec.std).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / "arrays.npz",
        x0=latents[:, :, :-1],
        latents=latents[:, :, -1],
        x0_scores=np.linspace(0, 1, 4 * STEPS).reshape(2, 2, STEPS),
        mass=np.full((2, 2, STEPS, 3), 0.3),
        off=np.full((2, 2, STEPS), 0.1),
        reference=pictures(2, seed=6),
    )
    run = {
        "command": "jcos sample maze --puzzles 2 --seeds 0 7",
        "model": "toy",
        "sampling": SAMPLING,
        "interventions": {"noise_steps": [3], "noise_frames": []},
        "puzzles": [{"prompt": prompt, "right_answers": n} for n in (1, 3)],
        "seeds": [0, 7],
        "scores": [[1.0, 0.0], [0.5, 1.0]],
        "solved": [[True, False], [False, True]],
    }
    (folder / "run.json").write_text(json.dumps(run))
    return pixels


def experiment_folder(folder: Path, *, question: str = "Where does noise hurt?") -> None:
    """Like `jcos run`: curves by task, and cases of noise at steps and frames."""
    rng = np.random.default_rng(0)
    cases = [(-1, -1, "none")]
    cases += [(s, -1, "step") for s in range(STEPS)]
    cases += [(s, f, "cell") for s in (0, 4, 8) for f in range(FRAMES)]
    step, frame, kind = zip(*cases, strict=True)
    (folder / "figures").mkdir(parents=True)
    np.savez_compressed(
        folder / "arrays.npz",
        task=np.array(["maze", "maze", "bounce", "bounce"]),
        solved_by_step=rng.random((4, 2, STEPS)) < np.linspace(0, 1, STEPS),
        kind=np.array(kind),
        step=np.array(step),
        frame=np.array(frame),
        score=rng.random((len(cases), 4, 2)),
    )
    config = {
        "experiment": "noise",
        "question": question,
        "command": "jcos run configs/noise.py",
        "sampling": SAMPLING,
        "model": {"name": "toy"},
        "seconds": 12.5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["task", "measure", "value", "low", "high", "n"])
        for i, value in enumerate([0.25, 0.5, 0.125]):
            table.writerow([f"task {i}", "<b>score</b>", value, value - 0.1, value + 0.1, 64])
    (folder / "figures" / "noise.png").write_bytes(media.png(pictures(seed=1)[0]))


def generate_folder(folder: Path, *, prompt: str = "a cat finds the way") -> tuple[np.ndarray, int]:
    """Like `jcos generate --x0`: a film and a sheet for each of two seeds. Returns the pictures of
    the first sheet [steps, frames, …], and how many frames a film has."""
    steps, frames, size = [0, 4, 11], 13, (48, 80)
    rng = np.random.default_rng(3)
    shown = np.unique(np.linspace(0, frames - 1, 9).round().astype(int))
    colours = rng.integers(0, 256, (2, len(steps), len(shown), 1, 1, 3), dtype=np.uint8)
    sheets = np.broadcast_to(colours, (*colours.shape[:3], *size, 3))
    folder.mkdir(parents=True, exist_ok=True)
    for seed, sheet in enumerate(sheets):
        png = media.png(media.contact_sheet(sheet))
        (folder / f"seed-{seed}-x0.png").write_bytes(png)
        video = np.zeros((frames, *size, 3), np.uint8) + np.uint8(10 * seed)
        media.write_mp4(folder / f"seed-{seed}.mp4", video, 16)
    run = {
        "command": "jcos generate wan-t2v --x0 0 4 11",
        "checkpoint": "wan-t2v",
        "model": "wan2.1-t2v-1.3b",
        "prompt": prompt,
        "size": {"height": 48, "width": 80, "frames": frames, "fps": 16},
        "sampling": SAMPLING | {"boundary": None, "guidance": [5.0]},
        "interventions": {"noise_steps": [4], "noise_frames": [1]},
        "seeds": [0, 1],
        "x0": steps,
    }
    (folder / "run.json").write_text(json.dumps(run, ensure_ascii=False))
    return sheets[0], frames
