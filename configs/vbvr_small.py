"""The small tasks as a benchmark folder, through the small model: the whole path on a laptop.

    jcos bench export out/small --per-task 2
    jcos bench run configs/vbvr_small.py --samples out/small --out out/vbvr-small
    jcos bench score out/vbvr-small/base out/vbvr-small/{step-25,search} --samples out/small

Noise at one step, and a search: of four seeds the most decided one goes on. Two cores: about two
minutes for 18 samples in three arms.
"""

from jcos.bench.arm import Arm
from jcos.bench.export import SCALE
from jcos.experiments.experiment import Settings
from jcos.lab.methods import epbs

BASE = Arm(profile=None, sampling=Settings(), scale=1 / SCALE)

arms = {
    "base": BASE,
    "step-25": Arm(profile=None, sampling=Settings(), scale=1 / SCALE, noise_steps=(0.5,)),
    "search": Arm(profile=None, sampling=Settings(), scale=1 / SCALE, search=epbs(4)),
}
