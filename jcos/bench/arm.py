"""An arm of the benchmark: how all its samples are generated, as data."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jcos.bench.folder import Bench, Sample
from jcos.config import PixelCodec, Sampling, WanConfig
from jcos.experiments.experiment import Settings
from jcos.experiments.settings import names_in
from jcos.files import check_folder, local_path
from jcos.lab.judges import standard
from jcos.lab.methods import Method, sampling_of
from jcos.lab.refusals import check
from jcos.media import image
from jcos.sampling.interventions import Interventions, Place, places
from jcos.sampling.noise import noise_from_file
from jcos.sampling.probe import Probe
from jcos.variants import Profile, at_size
from jcos.wan import check_picture, latent_grid

MANY = 2**16
"""Latent frames, more than any video has: what does not depend on their number is checked."""
PAPER = Settings(steps=50, shift=5.0, solver="euler", guidance=(5.0,))


class Shape(NamedTuple):
    """Of a video as it is generated, in frames and pixels."""

    frames: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm(Interventions):
    """What the paper's tools do, and what can be done otherwise.

    profile: whose data types and schedule; None for the model's. lora: files merged into the
    weights while they are read, as `[high=|low=]FILE[:SCALE]`. seed: of the noise
    (`loop.first_noise`); by_index: to which a sample's place in the benchmark is added.
    noise_files: a folder of first noises, SPLIT/TASK/00000.npy, instead; a video
    is known by the content of its own. size: height and width of the generated video; scale: the
    same against the first frame's. The video is brought to the size of the frame before it is
    written (resample: Pillow's filter). frames: instead of the ground truth's, rounded up to what
    the model makes. fps, crf: of the files, 25 being the quality of the paper's.
    ensemble: how many seeds, from `seed` on, are averaged after `ensemble_layers` at
    `ensemble_steps`; the first goes on. search: a method (`jcos.search`) whose seeds are those from
    `seed` on, and whose choice is written. x0: steps whose clean estimates are stored, of the first
    `x0_samples` samples of the benchmark (of each shard).
    """

    profile: Profile | None = "diffsynth"
    sampling: Settings = PAPER
    lora: tuple[str, ...] = ()
    seed: int = 1
    by_index: bool = False
    noise_files: Path | None = None
    size: tuple[int, int] | None = None
    scale: float = 1.0
    resample: Literal["bicubic", "lanczos"] = "bicubic"
    frames: int | None = None
    fps: int = 16
    crf: int = 25
    ensemble: int = 1
    search: Method | None = None
    x0: tuple[Place, ...] = ()
    x0_samples: int = 8

    def __post_init__(self) -> None:
        for name in ("scale", "fps", "ensemble"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.noise_files is not None and (self.ensemble > 1 or self.search is not None):
            raise ValueError("a file has the noise of one seed; ensembles and searches have more")
        if (self.ensemble > 1) != bool(self.ensemble_layers):
            raise ValueError(
                f"ensemble is {self.ensemble} and ensemble_layers are {self.ensemble_layers}: to "
                "average needs at least 2 seeds and 1 layer"
            )
        if self.search is not None and (self.ensemble > 1 or self.x0):
            raise ValueError("an arm that searches averages no seeds and keeps no x0")
        if self.search is not None and any(row.copy == "chain" for row in self.search.rows):
            raise ValueError("chained clips are longer than the ground truth; search otherwise")

    def of(self, config: WanConfig) -> WanConfig:
        """The model as this arm samples it. Raises ValueError or IndexError where it cannot."""
        check_picture(config, True)
        if self.size is not None:
            config = at_size(config, self.profile, *self.size)
        config = dataclasses.replace(config, sampling=self.sampling.of(config))
        steps = self.steps(config)
        for chosen in (self.noise_steps, self.ensemble_steps, self.x0):
            places(chosen, steps, "step")
        places(self.ensemble_layers, config.dit.layers, "layer")
        self._check_search(config, MANY)
        return config

    def steps(self, config: WanConfig) -> int:
        """Return how many steps its runs take."""
        return (self.search and self.search.steps) or config.sampling.steps

    def _check_search(self, config: WanConfig, frames: int) -> None:
        if self.search is not None:
            known = list(standard(config))
            sampling = sampling_of(self.search, config.sampling)
            check(self.search, config, sampling, known, frames, Probe())

    def shape(self, config: WanConfig, sample: Sample) -> Shape:
        """Raises ValueError where the model makes no video of that size."""
        size = self._size(sample)
        if not isinstance(config.codec, PixelCodec):
            rule = image.rule_for(config, self.profile)
            size = rule.size((sample.height, sample.width), size, rule.multiple)
        stride = 1 if config.codec is None else config.codec.strides[0]
        frames = image.round_frames(self.frames or sample.frames, "diffsynth", stride)
        self._check_search(config, latent_grid(config, frames, *size)[0])
        return Shape(frames, *size)

    def first_frame(
        self, config: WanConfig, sample: Sample
    ) -> tuple[UInt8[np.ndarray, "h w 3"] | Float[np.ndarray, "h w 3"], Any]:
        """Return the picture that the model starts from, and what its image encoder sees of it
        (`image.first_frame`)."""
        picture, shape = image.read_picture(sample.picture), self.shape(config, sample)
        if isinstance(config.codec, PixelCodec):
            return resized(picture, shape.height, shape.width, exact=True), None
        return image.first_frame(picture, config, self.profile, *self._size(sample))

    def _size(self, sample: Sample) -> tuple[int, int]:
        scaled = round(sample.height * self.scale), round(sample.width * self.scale)
        return self.size or scaled

    def seeds(self, samples: Sequence[Sample], count: int) -> Sequence[int] | list[list[int]]:
        """Return `count` seeds, for all samples or a row for each."""
        if not self.by_index and self.noise_files is None:
            return range(self.seed, self.seed + count)
        firsts = [self.seed + self.by_index * sample.place for sample in samples]
        return [list(range(first, first + count)) for first in firsts]

    def noise(
        self, samples: Sequence[Sample], shape: tuple[int, int, int, int]
    ) -> Float[np.ndarray, "B F h w C"] | None:
        """Return the first noise of samples, where it is in files. Raises ValueError as
        `noise_from_file`."""
        if self.noise_files is None:
            return None
        files = (self.noise_files / f"{sample.name}.npy" for sample in samples)
        return np.stack([noise_from_file(file, shape) for file in files])

    def with_noise(self, bench: Bench) -> Bench:
        """Return a benchmark in whose digests each sample's noise file counts. ValueError where one
        is lacking."""
        if self.noise_files is None:
            return bench
        check_folder(local_path(self.noise_files))
        files = {sample: self.noise_files / f"{sample.name}.npy" for sample in bench.samples}
        if lacking := [file for file in files.values() if not file.is_file()]:
            raise ValueError(f"the noise of {len(lacking)} samples is lacking, {lacking[0]} first")
        marked = []
        for sample, file in files.items():
            digest = hashlib.sha256(sample.digest.encode() + file.read_bytes()).hexdigest()
            marked.append(sample._replace(digest=digest))
        return bench._replace(samples=tuple(marked))

    def together(self, config: WanConfig) -> int:
        """Return after how many steps the first seed goes on alone."""
        if self.ensemble == 1:
            return 0
        return max(places(self.ensemble_steps, config.sampling.steps, "step"), default=-1) + 1


def resized(
    picture: UInt8[np.ndarray, "H W 3"],
    height: int,
    width: int,
    *,
    exact: bool,
    resample: str = "bicubic",
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in another size; exact: by whole pixels, as pictures of tiles want it. resample:
    the filter else."""
    if picture.shape[:2] == (height, width):
        return picture
    how = Image.Resampling["NEAREST" if exact else resample.upper()]
    return np.array(Image.fromarray(picture).resize((width, height), how))


def load_arms(file: Path) -> tuple[dict[str, Arm], str]:
    """Return the `arms` of a Python file, by name, and the `benchmark` that it names, by default
    vbvr. Raises ValueError where there are no arms."""
    names = names_in(file)
    arms = names.get("arms")
    if not (isinstance(arms, dict) and arms and all(isinstance(a, Arm) for a in arms.values())):
        hint = "it must set `arms = {name: Arm(…), …}`"
        hint = f"it runs with `jcos run {file.stem}`" if "experiment" in names else hint
        raise ValueError(f"{file} describes no arms: {hint}")
    return arms, str(names.get("benchmark", "vbvr"))


def as_json(arm: Arm, sampling: Sampling) -> dict[str, Any]:
    """Return all of an arm that decides what comes out, with the sampling that it comes to."""
    fields = dataclasses.asdict(arm) | {"sampling": dataclasses.asdict(sampling)}
    fields["noise_files"] = arm.noise_files and str(arm.noise_files)
    for row in (fields["search"] or {"rows": ()})["rows"]:
        del row["fitted"]  # decides what is refused alone
    return {name: value for name, value in fields.items() if not name.startswith("x0")}
