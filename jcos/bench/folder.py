"""A benchmark folder: which samples it has, and what is wrong with the others.

    ROOT/{In-Domain_50,Out-of-Domain_50}/<task>/<00000>/{first_frame.png, ground_truth.mp4,
    prompt.txt}

VBVR-Pro-Bench has the same tasks, in other categories, and a metadata.json which its scorer reads.
Other files there are left alone. The scorer names its videos after the same folders, and ignores
tasks of any other name without a word.
"""

import csv
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import av

from jcos.files import any_path, check_file, fetched, json_object, read_text, visible
from jcos.lab.tasks import TASKS
from jcos.media.image import read_picture

SPLITS = {"In-Domain_50": "ID", "Out-of-Domain_50": "OOD"}
PER_TASK = 5
"""Samples of each task, 00000 to 00004."""
TITLES = {"vbvr": "VBVR-Bench", "vbvr-pro": "VBVR-Pro-Bench"}
CATEGORY = {"vbvr": "category", "vbvr-pro": "pro_category"}
"""The column of `OFFICIAL` that has a benchmark's categories."""
OFFICIAL = {
    row["task"]: row
    for row in csv.DictReader(Path(__file__).with_name("tasks.csv").read_text().splitlines())
}
"""Split and categories of the benchmark's tasks, in its order: In-Domain first, by name."""
TASK = re.compile(r"(?P<id>[A-Z]-\d+)_(?P<name>.+)_data-generator")
SAMPLE = re.compile(r"\d{5}")


class Sample(NamedTuple):
    """One question.

    name: split/task/number, also where its video goes. frames, height, width: of the ground truth,
    and of the first frame in pixels. digest: of all that a model is given. place: its index in the
    whole benchmark.
    """

    name: str
    folder: Path
    prompt: str
    frames: int
    height: int
    width: int
    digest: str
    place: int = 0

    @property
    def picture(self) -> Path:
        return self.folder / "first_frame.png"

    @property
    def truth(self) -> Path:
        return self.folder / "ground_truth.mp4"


class Bench(NamedTuple):
    """samples: the whole ones, in order. faults: what is wrong with the rest, by its name. names:
    all that count in a table, the faulty ones too. benchmark: vbvr or vbvr-pro.
    """

    root: Path
    samples: tuple[Sample, ...]
    faults: dict[str, str]
    names: tuple[str, ...]
    benchmark: str = "vbvr"

    @property
    def extent(self) -> str:
        """How much of the benchmark this is: scores of a part are not those of the whole."""
        whole = PER_TASK * len(OFFICIAL)
        official = sum(task_of(name) in OFFICIAL for name in self.names)
        if official != len(self.names):
            return f"{len(self.names)} samples, {official} of them of the benchmark's {whole}"
        if official == whole:
            return f"all {whole} samples"
        return f"{official} of the benchmark's {whole} samples"

    def part(self, i: int, n: int) -> "Bench":
        """Every n-th sample from the i-th on; what counts is its place among the names, so that all
        hosts agree even where one of them cannot read a sample."""
        names = self.names[i::n]
        others = set(self.names) - set(names)
        samples = tuple(s for s in self.samples if s.name not in others)
        faults = {name: why for name, why in self.faults.items() if name not in others}
        return self._replace(samples=samples, faults=faults, names=names)


def task_of(name: str) -> str:
    """The task's folder in a sample's name, split/task/number."""
    return name.split("/")[1]


def category_of(task: str, benchmark: str = "vbvr") -> str | None:
    """One of the five categories; None for tasks that are neither the benchmark's nor ours."""
    match = TASK.fullmatch(task)
    if match and match["id"].startswith("T-") and match["name"] in TASKS:
        return TASKS[match["name"]].faculty
    return OFFICIAL[task][CATEGORY[benchmark]] if task in OFFICIAL else None


def _misplaced(task: Path) -> str | None:
    """What is wrong with a task's folder; None where nothing is."""
    if category_of(task.name) is None:
        number = task.name.partition("_")[0]
        meant = [known for known in OFFICIAL if known.startswith(f"{number}_")]
        hint = f"; its {number} is {meant[0]}" if meant else ""
        return f"the benchmark has no task of this name{hint}"
    split = OFFICIAL[task.name]["split"] if task.name in OFFICIAL else task.parent.name
    return None if split == task.parent.name else f"the benchmark has this task in {split}"


def read_bench(root: Path, per_task: int | None = None, benchmark: str = "vbvr") -> Bench:
    """All samples, or the first so many of each task. benchmark: one of `TITLES`.

    Raises ValueError where there is no benchmark at all; a sample that cannot be used is a fault.
    """
    if per_task is not None and per_task < 1:
        raise ValueError(f"{per_task} samples of each task are asked for; at least 1 is needed")
    if benchmark not in TITLES:
        raise ValueError(f"benchmark is {benchmark!r}; there are {', '.join(TITLES)}")
    root, order = any_path(root), list(OFFICIAL)
    if not any((root / split).is_dir() for split in SPLITS):
        raise ValueError(f"{root} is no benchmark folder: it has neither {' nor '.join(SPLITS)}")
    samples, faults, names, before = [], {}, [], 0
    for task in visible(root, "*_50/*"):
        if not task.is_dir() or task.parent.name not in SPLITS:
            continue
        place = task.relative_to(root).as_posix()
        if (wrong := _misplaced(task)) is not None:
            faults[place] = wrong
            continue
        inside = [folder.name for folder in visible(task) if folder.is_dir()]
        numbers = [number for number in inside if SAMPLE.fullmatch(number)]
        for other in sorted(set(inside) - set(numbers)):
            faults[f"{place}/{other}"] = "a sample is named with five digits, 00000"
        last = max(map(int, numbers), default=-1)
        gaps = {f"{i:05d}" for i in range(min(last, PER_TASK))} - set(numbers)
        whole = sorted(gaps | set(numbers))
        for index, number in enumerate(whole[:per_task], before):
            name = f"{place}/{number}"
            if task.name in OFFICIAL:
                index = PER_TASK * order.index(task.name) + int(number)
            names.append(name)
            try:
                sample = _read(name, task / number, metadata=benchmark == "vbvr-pro")
                samples.append(sample._replace(place=index))
            except (ValueError, OSError) as error:
                faults[name] = "the folder is missing" if number in gaps else str(error)
        before += len(whole)
    if not names:
        raise ValueError(f"{root} has no samples: they are folders SPLIT/TASK/00000")
    return Bench(root, tuple(samples), faults, tuple(names), benchmark)


def _read(name: str, folder: Path, *, metadata: bool = False) -> Sample:
    """Raises ValueError or OSError where a file is missing, damaged or empty."""
    if metadata:
        json_object(folder / "metadata.json")
    prompt = read_text(folder / "prompt.txt").strip()
    if not prompt:
        raise ValueError(f"the prompt {folder / 'prompt.txt'} is empty")
    picture = folder / "first_frame.png"
    height, width, _ = read_picture(picture).shape
    frames = count_frames(folder / "ground_truth.mp4")
    about = f"{frames} {prompt} ".encode() + picture.read_bytes()
    return Sample(name, folder, prompt, frames, height, width, hashlib.sha256(about).hexdigest())


def count_frames(path: Path) -> int:
    """How many frames a video file says that it has, counted where it does not say.

    Raises ValueError where it is missing, damaged, or no video.
    """
    check_file(path)
    frames = 0
    try:
        with fetched(path) as there, av.open(str(there)) as file:
            for stream in file.streams.video[:1]:
                frames = stream.frames or sum(1 for _ in file.decode(stream))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path} is no video that can be read: {error.strerror}") from None
    if not frames:
        raise ValueError(f"{path} has no frames")
    return frames
