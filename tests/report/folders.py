"""Small folders of results as the commands leave them, made without a model."""

import contextlib
import csv
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from jcos.lab import results
from jcos.media import formats
from jcos.report import live
from jcos.report.plane import Line, Look, Plane, answer_lines, save_planes, sigma_line
from jcos.sampling.probes import Noise, SeedEnsemble, chain

STEPS, LAYERS, FRAMES, SIDE = 12, 4, 5, 20
SAMPLING = {"steps": STEPS, "shift": 3.0, "solver": "euler", "grid": "euler", "guidance": None}
HOSTILE = (
    "<script>window.hacked=1</script>\"'><img src=x onerror='hacked=1'> 🦆 &amp; " + "x" * 4000
)


def pictures(*lead: int, seed: int = 0) -> np.ndarray:
    """Noise that no other cell has: whatever is shown can be told."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*lead, FRAMES, SIDE, SIDE, 3), dtype=np.uint8)


def plane(
    label: str = "seed 0",
    group: str = "puzzle 0",
    seed: int = 0,
    pixels: np.ndarray | None = None,
    **more: Any,
) -> Plane:
    """A run of these estimates and a video, noise by default."""
    steps = range(STEPS)
    pixels = pictures(STEPS + 1, seed=seed) if pixels is None else pixels
    score = Line("score of x̂0", "score", [0, 5, 11], [0.1, None, 0.9])
    usual = {"prompt": "find the way", "solved": seed % 2 == 0}
    usual["lines"] = [sigma_line(np.linspace(1, 0.1, STEPS)), score]
    clips = {"x0": pixels[:-1], "video": pixels[-1], "reference": pictures(seed=seed + 1000)}
    return Plane(label=label, group=group, steps=steps, **clips, **usual | more)


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


def sample_folder(
    folder: Path, *, prompt: str = "find the way", noise: tuple[int, ...] = (3,), seed: int = 5
) -> np.ndarray:
    """Like `jcos sample`, 2 puzzles × 2 seeds; returns the pixels of its estimates and videos."""
    pixels = pictures(2, 2, STEPS + 1, seed=seed)
    answers, drawn = answer_lines(
        range(STEPS), np.full((STEPS, 3), 0.3), pictures(1, seed=8)[0, :3]
    )
    planes = [
        plane(
            f"seed {name}",
            f"puzzle {p}",
            prompt=prompt,
            solved=p != k,
            pixels=pixels[p, k],
            lines=[sigma_line(np.linspace(1, 0.1, STEPS)), *(answers if p else ())],
            answers=drawn if p else {},
            changes=Noise.at_steps(STEPS, FRAMES, noise).changes(),
        )
        for p in (0, 1)
        for k, name in enumerate((0, 7))
    ]
    manifest = {
        "command": "jcos sample maze --puzzles 2 --seeds 0 7",
        "model": "toy",
        "sampling": SAMPLING,
        "interventions": {"noise_steps": list(noise), "noise_frames": []},
        "puzzles": [{"prompt": prompt}] * 2,
        "seeds": [0, 7],
        "solved": [[False, True], [True, False]],
    }
    save_planes(folder, planes, manifest)
    return pixels


def dataset() -> xr.Dataset:
    """Like an experiment's: 3 puzzles of two tasks × 2 seeds; curves with baselines, also of the
    ideal denoiser; noise at steps and in cells; energies by step, layer and frame."""
    rng = np.random.default_rng(4)
    cases = [("without noise", "none", np.nan, np.nan)]
    cases += [(f"step {s}", "one step", s, np.nan) for s in range(STEPS)]
    cases += [(f"step {s}, frame {f}", "one cell", s, f) for s in (0, 4, 8) for f in range(FRAMES)]
    named = zip(("case", "kind", "at_step", "at_frame"), zip(*cases, strict=True), strict=True)
    share = rng.random((2, 3, 2, STEPS)).astype(np.float32) * np.linspace(0.2, 1, STEPS, dtype="f4")
    share[:, 2] = 1
    energy = rng.random((3, 2, STEPS, LAYERS, FRAMES))
    measures = {
        "solved": ("denoiser puzzle seed step", share, "Solved"),
        "energy": ("puzzle seed step layer frame", energy, "Token energy"),
        "score": ("case puzzle seed", rng.random((len(cases), 3, 2)), "Score with noise"),
    }
    data = xr.Dataset(
        {
            name: results.measure(dims, values, title, f"What {title} means.")
            for name, (dims, values, title) in measures.items()
        },
        {
            "denoiser": ["model", "ideal denoiser"],
            "task": ("puzzle", ["maze", "maze", "bounce"]),
            "step": np.arange(STEPS),
            **{name: ("case", list(values)) for name, values in named},
        },
        {"experiment": "noise"},
    )
    data["chance_solved"] = ("puzzle", [0.25, 0.25, 0.5])
    data["hidden"] = (("puzzle", "seed", "step"), np.zeros((3, 2, STEPS)))
    return results.with_levels(data)


def experiment_folder(folder: Path) -> xr.Dataset:
    """Like `jcos run`: a dataset, a table, a figure, and a section that names some of them."""
    data = dataset()
    (folder / "figures").mkdir(parents=True)
    results.save(data, folder / "results.nc")
    run = {
        "experiment": "noise",
        "title": "Where does noise hurt?",
        "lead": "What noise <does>.",
        "sections": [
            {"title": "Late & early", "text": "One.\n\nTwo <b>.", "figures": ["noise"]},
            {"title": "Solved by step", "charts": ["solved"]},
        ],
        "command": "jcos run configs/noise.py",
        "sampling": SAMPLING,
        "model": {"name": "toy"},
        "seconds": 12.5,
        "figures": {"noise": "Noise <hurts> late."},
    }
    (folder / "run.json").write_text(json.dumps(run))
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["task", "measure", "value", "low", "high", "n"])
        for i, value in enumerate([0.25, 0.5, 0.125]):
            table.writerow([f"task {i}", "<b>score</b>", value, value - 0.1, value + 0.1, 64])
    (folder / "figures" / "noise.svg").write_text(FIGURE)
    return data


FIGURE = """<svg xmlns="http://www.w3.org/2000/svg" width="230.4pt" height="165.6pt"
 viewBox="0 0 230.4 165.6"><script>hacked = 1</script>
<path d="M0 0L200 9" style="stroke: #0072b2; fill: none"/><text x="20" y="40">step</text></svg>
"""


def generate_folder(folder: Path) -> tuple[np.ndarray, int]:
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
        for step, film in zip(steps, own, strict=True):
            formats.write_mp4(folder / formats.X0_FILM.format(seed=seed, step=step), film)
        video = np.zeros((frames, *size, 3), np.uint8) + np.uint8(10 * seed)
        formats.write_mp4(folder / f"seed-{seed}.mp4", video, 16)
    probe = Noise.at_steps(STEPS, 4, [4]) | Noise.at_frames(STEPS, 4, [1])
    run = {
        "command": "jcos generate wan-t2v --x0 0 4 11",
        "checkpoint": "wan-t2v",
        "model": "wan2.1-t2v-1.3b",
        "prompt": "a cat finds the way",
        "size": {"height": 48, "width": 80, "frames": frames, "fps": 16},
        "sampling": SAMPLING | {"boundary": None, "guidance": [5.0]},
        "interventions": {"noise_steps": [4], "noise_frames": [1]},
        "changes": [change.to_json() for change in probe.changes()],
        "seeds": [0, 1],
        "sigmas": np.linspace(1, 0.1, STEPS).tolist(),
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
    names = [f"{task}/{number}" for task in ARM_TASKS for number in ("00000", "00001")]
    for name in names:
        film, note = folder / f"{name}.mp4", folder / "state" / "made" / f"{name}.json"
        for file in (film, note):
            file.parent.mkdir(parents=True, exist_ok=True)
        formats.write_mp4(film, video)
        note.write_text(json.dumps({"seconds": 1, "prompt": f"Find the way of {name} <b>."}))
    run = {
        "arm": {"noise_steps": noise_steps or [], "sampling": {"steps": 4}},
        "model": {"name": "toy"},
        "command": "jcos bench run configs/vbvr_base.py",
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "summary.json").write_text(json.dumps({"total": 4}))


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Yield the address at which `jcos explore` shows a folder."""
    running = live.server(folder, 0)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()
