"""Small folders of results as the commands leave them, made without a model."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from jcos.config import PixelCodec
from jcos.media import formats
from jcos.report.plane import Line, Look, Plane
from jcos.sampling.probes import Noise, Probe, SeedEnsemble, chain

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
    probe = chain(
        Noise.at_steps(STEPS, FRAMES, [3, 7]),
        Noise.at_frames(STEPS, FRAMES, [2]),
        SeedEnsemble.window(STEPS, 6, [0], [1, 4]),
    )
    return plane(group="changed", seed=seed, changes=probe.changes())


def changes_of(probe: Probe) -> list[dict[str, Any]]:
    """As a command writes them."""
    return [change.to_json() for change in probe.changes()]


def sample_folder(
    folder: Path, *, prompt: str = "find the way", noise: tuple[int, ...] = (3,), seed: int = 5
) -> np.ndarray:
    """Like `jcos sample`, 2 puzzles × 2 seeds; returns the pixels that its latents stand for."""
    codec = PixelCodec()
    pixels = pictures(2, 2, STEPS + 1, seed=seed)
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
        "interventions": {"noise_steps": list(noise), "noise_frames": []},
        "changes": changes_of(Noise.at_steps(STEPS, FRAMES, noise)),
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
        "figures": {"noise": "Noise <hurts> late."},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["task", "measure", "value", "low", "high", "n"])
        for i, value in enumerate([0.25, 0.5, 0.125]):
            table.writerow([f"task {i}", "<b>score</b>", value, value - 0.1, value + 0.1, 64])
    (folder / "figures" / "noise.png").write_bytes(formats.png(pictures(seed=1)[0]))


LAYERS, LOOKED = 4, [0, 5, 11]


def layered_arrays() -> dict[str, np.ndarray]:
    """Of 2 puzzles of a task and 1 of another × 2 seeds: energies [puzzle, seed, step, layer,
    frame] by task; probes at three steps; a perturbed run's distances; swaps of two sets."""
    rng = np.random.default_rng(4)
    swaps = [(-1, 0, "none"), *((k, s, "one") for k in range(LAYERS) for s in (0, 6))]
    swaps += [(k, 11, "kept up") for k in range(LAYERS)]
    layer, step, during = zip(*swaps, strict=True)
    return {
        "maze_energy": rng.random((2, 2, STEPS, LAYERS, FRAMES)),
        "bounce_energy": rng.random((1, 2, STEPS, LAYERS, FRAMES)),
        "decoded": rng.random((2, 3, len(LOOKED), 3, 2)),
        "looked": np.array(LOOKED),
        "reading": np.array(["answer", "choice"]),
        "source": np.array(["layer 0", "layer 1", "x̂0"]),
        "layer": np.array(layer),
        "step": np.array(step),
        "during": np.array(during),
        "flipped": rng.random((len(swaps), 3, 2)) < 0.5,
        "reach": rng.random((len(swaps), 3, 2, STEPS)),
        "task": np.array(["maze", "maze", "bounce"]),
    }


LAYERED = {
    "*_energy": "puzzle seed step layer frame: token energy",
    "decoded": "reading source step@looked puzzle seed",
    "reading": "reading",
    "source": "source",
    "flipped": "case puzzle seed",
    "reach": "case puzzle seed step",
    "layer": "case",
    "step": "case",
    "during": "case",
    "task": "puzzle",
}


def layered_folder(folder: Path) -> dict[str, np.ndarray]:
    """Like `jcos run` of experiments that look into layers."""
    experiment_folder(folder, question="What do layers do?")
    np.savez_compressed(folder / "arrays.npz", allow_pickle=False, **layered_arrays())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"axes": LAYERED}))
    return layered_arrays()


def generate_folder(
    folder: Path, *, prompt: str = "a cat finds the way", films: bool = True
) -> tuple[np.ndarray, int]:
    """Like `jcos generate --x0`: for each of two seeds a film, a sheet, and the films of its
    estimates. Returns the colours of the first seed's estimates [steps, frames, …], and how many
    frames a film has."""
    steps, frames, size = [0, 4, 11], 13, (48, 80)
    rng = np.random.default_rng(3)
    shown = np.unique(np.linspace(0, frames - 1, 9).round().astype(int))
    colours = rng.integers(64, 192, (2, len(steps), frames, 1, 1, 1), dtype=np.uint8)
    estimates = np.broadcast_to(colours, (*colours.shape[:3], *size, 3))
    folder.mkdir(parents=True, exist_ok=True)
    for seed, own in enumerate(estimates):
        png = formats.png(formats.contact_sheet(own[:, shown]))
        (folder / f"seed-{seed}-x0.png").write_bytes(png)
        for step, film in zip(steps, own, strict=True) if films else ():
            formats.write_mp4(folder / formats.X0_FILM.format(seed=seed, step=step), film)
        video = np.zeros((frames, *size, 3), np.uint8) + np.uint8(10 * seed)
        formats.write_mp4(folder / f"seed-{seed}.mp4", video, 16)
    run = {
        "command": "jcos generate wan-t2v --x0 0 4 11",
        "checkpoint": "wan-t2v",
        "model": "wan2.1-t2v-1.3b",
        "prompt": prompt,
        "size": {"height": 48, "width": 80, "frames": frames, "fps": 16},
        "sampling": SAMPLING | {"boundary": None, "guidance": [5.0]},
        "interventions": {"noise_steps": [4], "noise_frames": [1]},
        "changes": changes_of(Noise.at_steps(STEPS, 4, [4]) | Noise.at_frames(STEPS, 4, [1])),
        "seeds": [0, 1],
        "x0": steps,
    }
    (folder / "run.json").write_text(json.dumps(run, ensure_ascii=False))
    return estimates[0], frames


ARM_TASKS = (
    "In-Domain_50/T-1_maze_data-generator",
    "Out-of-Domain_50/T-2_sort_data-generator",
)


def arm_folder(folder: Path, *, noise_steps: list[int] | None = None) -> None:
    """Like an arm of `jcos bench run`: two films of each of two tasks, and their notes."""
    video = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    for task in ARM_TASKS:
        for number in ("00000", "00001"):
            name = f"{task}/{number}"
            film = folder / f"{name}.mp4"
            film.parent.mkdir(parents=True, exist_ok=True)
            formats.write_mp4(film, video)
            note = folder / "state" / "made" / f"{name}.json"
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps({"seconds": 1, "prompt": f"Find the way of {name} <b>."}))
    run = {
        "arm": {"noise_steps": noise_steps or [], "sampling": {"steps": 4}},
        "model": {"name": "toy"},
        "command": "jcos bench run configs/vbvr_base.py",
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "summary.json").write_text(json.dumps({"total": 4, "faults": {}}))
