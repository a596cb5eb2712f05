"""A benchmark folder: which samples it has, and what is wrong with the others.

    ROOT/{In-Domain_50,Out-of-Domain_50}/<task>/<00000>/{first_frame.png, ground_truth.mp4,
    prompt.txt}

Other files beside these are left alone. The scorer names its videos after the same folders.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av

from jcos.image import read_picture
from jcos.tasks import TASKS

SPLITS = {"In-Domain_50": "ID", "Out-of-Domain_50": "OOD"}
TASK = re.compile(r"(?P<id>[A-Z]-\d+)_(?P<name>.+)_data-generator")
SAMPLE = re.compile(r"\d{5}")
CATEGORIES = {
    "Abstraction": "O-9 O-10 O-11 O-12 O-13 O-14 O-21 O-29 O-30 O-37 O-43 O-45 O-47 O-49 O-54 O-56 "
    "G-29 G-41 G-51 G-131 G-134 G-135 G-193",
    "Knowledge": "O-15 O-18 O-19 O-23 O-24 O-34 O-52 O-53 O-62 O-75 G-160 G-217 G-247 G-273",
    "Perception": "O-2 O-16 O-31 O-33 O-38 O-65 G-3 G-5 G-9 G-39 G-43 G-54 G-136 G-138 G-147 G-158 "
    "G-161 G-167 G-168 G-169 G-174 G-189 G-202 G-206 G-212 G-218 G-222 G-223 G-248 G-250",
    "Spatiality": "O-25 O-39 O-55 G-13 G-15 G-16 G-18 G-31 G-45 G-47 G-140 G-219 G-221",
    "Transformation": "O-5 O-6 O-22 O-27 O-32 O-36 O-44 O-46 O-58 O-59 O-60 O-61 O-64 O-85 G-8 "
    "G-21 G-24 G-25 G-194 G-240",
}
"""The benchmark's own tasks, by the part of the name that stands first."""
_CATEGORY_OF = {task: name for name, tasks in CATEGORIES.items() for task in tasks.split()}


class Sample(NamedTuple):
    """One question.

    name: split/task/number, also where its video goes. frames, height, width: of the ground truth,
    and of the first frame in pixels. digest: of all that a model is given.
    """

    name: str
    folder: Path
    prompt: str
    frames: int
    height: int
    width: int
    digest: str

    @property
    def picture(self) -> Path:
        return self.folder / "first_frame.png"

    @property
    def truth(self) -> Path:
        return self.folder / "ground_truth.mp4"


class Bench(NamedTuple):
    """samples: the whole ones, in order. faults: what is wrong with the rest, by its name. names:
    all that count in a table, the faulty ones too."""

    root: Path
    samples: tuple[Sample, ...]
    faults: dict[str, str]
    names: tuple[str, ...]

    def part(self, i: int, n: int) -> "Bench":
        """Every n-th sample from the i-th on; what counts is its place among the names, so that all
        hosts agree even where one of them cannot read a sample."""
        names = self.names[i::n]
        others = set(self.names) - set(names)
        samples = tuple(s for s in self.samples if s.name not in others)
        faults = {name: why for name, why in self.faults.items() if name not in others}
        return Bench(self.root, samples, faults, names)


def task_of(name: str) -> str:
    """The task's folder in a sample's name, split/task/number."""
    return name.split("/")[1]


def category_of(task: str) -> str | None:
    """One of the five categories; None for tasks that are neither the benchmark's nor ours."""
    match = TASK.fullmatch(task)
    if match is None:
        return None
    if match["id"].startswith("T-") and match["name"] in TASKS:
        return TASKS[match["name"]].faculty
    return _CATEGORY_OF.get(match["id"])


def read_bench(root: Path, per_task: int | None = None) -> Bench:
    """All samples, or the first so many of each task.

    Raises ValueError where there is no benchmark at all; a sample that cannot be used is a fault.
    """
    if not any((root / split).is_dir() for split in SPLITS):
        raise ValueError(f"{root} is no benchmark folder: it has neither {' nor '.join(SPLITS)}")
    samples, faults, names = [], {}, []
    for task in _folders(root, [root / split for split in SPLITS]):
        found = 0
        for folder in _folders(root, [task]):
            name = folder.relative_to(root).as_posix()
            if category_of(task.name) is None:
                faults[task.relative_to(root).as_posix()] = "the benchmark has no task of this name"
            elif not SAMPLE.fullmatch(folder.name):
                faults[name] = "a sample is named with five digits, 00000"
            elif per_task is None or found < per_task:
                found += 1
                names.append(name)
                try:
                    samples.append(_read(name, folder))
                except (ValueError, OSError) as error:
                    faults[name] = str(error)
    if not names:
        raise ValueError(f"{root} has no samples: they are folders SPLIT/TASK/00000")
    return Bench(root, tuple(samples), faults, tuple(names))


def _folders(root: Path, parents: list[Path]) -> Iterator[Path]:
    for parent in parents:
        inside = sorted(parent.iterdir()) if parent.is_dir() else ()
        yield from (p for p in inside if p.is_dir() and not p.name.startswith("."))


def _read(name: str, folder: Path) -> Sample:
    """Raises ValueError or OSError where a file is missing, damaged or empty."""
    file = folder / "prompt.txt"
    if not file.is_file():
        raise ValueError(f"the prompt {file} is missing")
    prompt = file.read_text(encoding="utf-8").strip()  # UnicodeDecodeError is a ValueError
    if not prompt:
        raise ValueError(f"the prompt {file} is empty")
    picture = folder / "first_frame.png"
    height, width, _ = read_picture(picture).shape
    frames = count_frames(folder / "ground_truth.mp4")
    about = f"{frames} {prompt} ".encode() + picture.read_bytes()
    return Sample(name, folder, prompt, frames, height, width, hashlib.sha256(about).hexdigest())


def count_frames(path: Path) -> int:
    """How many frames a video file says that it has, counted where it does not say.

    Raises ValueError where it is missing, damaged, or no video.
    """
    if not path.is_file():
        raise ValueError(f"the video {path} is missing")
    frames = 0
    try:
        with av.open(str(path)) as file:
            for stream in file.streams.video[:1]:
                frames = stream.frames or sum(1 for _ in file.decode(stream))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path} is no video that can be read: {error.strerror}") from None
    if not frames:
        raise ValueError(f"{path} has no frames")
    return frames


def write(file: Path, content: bytes, *, new: bool = False) -> None:
    """Beside its final name, which no other worker uses, then renamed.

    new: FileExistsError where the file is there already, also if it was made this moment.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
        Path(beside).chmod(0o644)
        if new:
            os.link(beside, file)
        else:
            Path(beside).replace(file)
    finally:
        Path(beside).unlink(missing_ok=True)
