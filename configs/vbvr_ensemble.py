"""Does averaging three seeds early help on VBVR-Bench? (Paper, section 6: from 0.685 to 0.716.)

    jcos bench run configs/vbvr_ensemble.py --samples VBVR-Bench-Data --checkpoint wan-vbvr \
      --mesh branch=2,context=4
    jcos bench score out/vbvr/base out/vbvr/ensemble --samples VBVR-Bench-Data --scorer …

Seeds 1, 2 and 3 of the same model; tokens after layers 20 to 29 of 40 are averaged in the first
step, in both branches, and the first seed goes on alone. `seed-2` and `seed-3` are the base with
other seeds: what a gain has to be held against.

The first step makes six passes at once. Compiled (`jcos plan --seeds 3`), that is 82 GiB for 60
frames of 1024 × 1024 pixels, 91 for 81, which one H200 has; or one GPU of 80 GB with --set
scale=0.5, for the base too. The ensemble takes 4 % more hours than each other seed.
"""

from jcos.bench.arm import Arm

LAYERS = tuple((layer + 0.5) / 40 for layer in range(20, 30))

arms = {
    "ensemble": Arm(ensemble=3, ensemble_layers=LAYERS),
    "seed-2": Arm(seed=2),
    "seed-3": Arm(seed=3),
}
