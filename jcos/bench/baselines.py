"""What arms are held against: videos of the first frame held, and of the ground truth."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from jcos.bench.arm import Arm, resized
from jcos.bench.folder import Bench, Sample
from jcos.bench.results import Folder
from jcos.files import read_json, write
from jcos.media.formats import write_mp4
from jcos.media.image import read_picture
from jcos.runs import MANIFEST

STILL, TRUTH = "still", "truth"
"""Arms that `score` makes itself."""


class Codec(NamedTuple):
    """Of an arm's files: frames per second, and crf of H.264."""

    fps: int = Arm.fps
    crf: int = Arm.crf


def codec_of(arm: Path) -> Codec:
    """What the videos in an arm's folder were written with, by its manifest; what arms are written
    with by default where there is none."""
    settings = read_json(arm / MANIFEST).get("arm")
    if not isinstance(settings, dict):
        return Codec()
    return Codec(*(int(settings.get(k, default)) for k, default in Codec()._asdict().items()))


def make(bench: Bench, out: Path, codec: Codec) -> tuple[Path, Path]:
    """Return the folders of both in `out`, laid out as an arm's. A video that is there is left
    alone if it was made of the same files and with the same codec.

    codec: of the still pictures. It is that of the arms, because some rules see the difference (a
    still of G-174 loses 0.2).
    """
    still, truth = Folder(out / STILL), Folder(out / TRUTH)
    for sample in bench.samples:
        content = sample.truth.read_bytes()
        for folder, about in (
            (still, {"digest": sample.digest, **codec._asdict()}),
            (truth, {"digest": hashlib.sha256(content).hexdigest()}),
        ):
            video, made = folder.video(sample.name), folder.about(sample.name, "made")
            if video.exists() and about.items() <= read_json(made).items():
                continue
            if folder is still:
                write_mp4(video, still_of(sample), codec.fps, crf=codec.crf)
            else:
                write(video, content)
            folder.note(sample.name, "made", about)
    return still.path, truth.path


def still_of(sample: Sample) -> UInt8[np.ndarray, "F H W 3"]:
    """The first frame held for the whole clip, sides even as H.264 needs them."""
    height, width = (side + side % 2 for side in (sample.height, sample.width))
    first = resized(read_picture(sample.picture), height, width, exact=False)
    return np.broadcast_to(first, (sample.frames, *first.shape)).copy()
