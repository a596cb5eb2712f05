"""The small tasks as a benchmark folder of the same layout, to run the whole path where no
benchmark is at hand. Scored by the tasks' judges."""

import json
from pathlib import Path

import numpy as np

from jcos.bench.folder import SPLITS, Sample
from jcos.experiments.sweeps import held_out
from jcos.files import check_room, json_object, visible, write
from jcos.lab.tasks import TASKS, Puzzle, get
from jcos.media.formats import png, read_mp4, upscale, write_mp4

SCALE = 8
"""Pixels of a picture to a pixel of the task: H.264 keeps colours at half the resolution, and the
official scorer wants large pictures."""
PUZZLE = "puzzle.json"


def export(folder: Path, tasks: tuple[str, ...], number: int, benchmark: str = "vbvr") -> None:
    """`number` held-out puzzles of each task; hard tasks are out of domain. benchmark: vbvr-pro
    samples have a metadata.json too.

    Raises ValueError where a task is unknown, or the folder is not empty: an older export would be
    mixed with this one.
    """
    chosen = [get(name) for name in tasks]
    if number < 1:
        raise ValueError(f"{number} puzzles are asked for; at least 1 is needed")
    if folder.exists() and (inside := visible(folder)):
        raise ValueError(f"{folder} holds {inside[0].name} already; choose another folder")
    check_room(folder)
    inside, outside = SPLITS
    for task in chosen:
        name = f"T-{list(TASKS).index(task.name) + 1}_{task.name}_data-generator"
        for i, puzzle in enumerate(held_out(task, number)):
            sample = folder / (outside if task.hard else inside) / name / f"{i:05d}"
            video = upscale(task.draw(puzzle, puzzle.answers[0]), SCALE)
            write(sample / "first_frame.png", png(video[0]))
            write(sample / "final_frame.png", png(video[-1]))
            write_mp4(sample / "ground_truth.mp4", video, 16)
            write(sample / "prompt.txt", puzzle.prompt.encode())
            about = {"task": task.name, "seed": [0, i]}
            write(sample / PUZZLE, json.dumps(about).encode())
            if benchmark == "vbvr-pro":
                about = {"task_id": f"{task.name}_{i:08d}", "generator": name, "parameters": about}
                write(sample / "metadata.json", json.dumps(about).encode())


def puzzle_of(sample: Sample) -> Puzzle | None:
    """The puzzle that an exported sample shows; None for samples of other origin."""
    file = sample.folder / PUZZLE
    if not file.is_file():
        return None
    about = json_object(file)
    return get(about["task"]).sample(tuple(about["seed"]), "test")


def score(puzzle: Puzzle, video: Path) -> float:
    """By the task's judge, 0..1. Raises ValueError where it is no video of the task's size."""
    big = read_mp4(video)
    frames, height, width, _ = big.shape
    tiles = big.reshape(frames, height // SCALE, SCALE, width // SCALE, SCALE, 3)
    inner = tiles[:, :, 2:-2, :, 2:-2]  # colours of neighbours run into the edge
    small = inner.mean((2, 4)).round().astype(np.uint8)
    return TASKS[puzzle.task].score(puzzle, small).score
