"""What arms are held against: videos of the first frame held, and of the ground truth."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jcos.bench.arm import resized
from jcos.bench.folder import Bench, Sample
from jcos.bench.results import Folder
from jcos.files import read_json, write
from jcos.media.formats import write_mp4
from jcos.media.image import read_picture

STILL, TRUTH = "still", "truth"
"""Arms that `score` makes itself."""
CRF = {"vbvr": 25, "vbvr-pro": 12}
"""Of still pictures, as of a benchmark's arms: some rules see the difference (of G-174, by 0.2)."""


def make(bench: Bench, out: Path) -> tuple[Path, Path]:
    """Return the folders of both in `out`, laid out as an arm's. A video that is there is left
    alone if it was made of the same files."""
    still, truth, crf = Folder(out / STILL), Folder(out / TRUTH), CRF[bench.benchmark]
    for sample in bench.samples:
        video, content = truth.video(sample.name), sample.truth.read_bytes()
        if not video.exists() or video.read_bytes() != content:
            write(video, content)
        video, about = still.video(sample.name), {"digest": sample.digest, "crf": crf}
        made = read_json(still.about(sample.name, "made"))
        if not (video.exists() and about.items() <= made.items()):
            write_mp4(video, still_of(sample), crf=crf)
            still.note(sample.name, "made", about)
    return still.path, truth.path


def still_of(sample: Sample) -> UInt8[np.ndarray, "F H W 3"]:
    """The first frame held for the whole clip, sides even as H.264 needs them."""
    height, width = (side + side % 2 for side in (sample.height, sample.width))
    first = resized(read_picture(sample.picture), height, width, exact=False)
    return np.broadcast_to(first, (sample.frames, *first.shape)).copy()
