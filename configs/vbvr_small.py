"""The small tasks as a benchmark folder, through the small model: the whole path on a laptop.

    jcos bench export out/small --per-task 2
    jcos bench run configs/vbvr_small.py --samples out/small --out out/vbvr-small
    jcos bench score out/vbvr-small/base out/vbvr-small/step-25 --samples out/small

Two cores: about a minute for 18 samples in two arms.
"""

from jcos.bench.arm import Arm
from jcos.bench.export import SCALE
from jcos.experiments.experiment import Settings

BASE = Arm(profile=None, sampling=Settings(), scale=1 / SCALE)

arms = {
    "base": BASE,
    "step-25": Arm(profile=None, sampling=Settings(), scale=1 / SCALE, noise_steps=(0.5,)),
}
