"""Does averaging three seeds early help on VBVR-Bench? (Paper, section 6: from 0.685 to 0.716.)

    jcos bench run configs/vbvr_ensemble.py --samples VBVR-Bench-Data --checkpoint wan-vbvr
    jcos bench score out/vbvr/base out/vbvr/ensemble --samples VBVR-Bench-Data --scorer …

Seeds 1, 2 and 3 of the same model; tokens after layers 20 to 29 of 40 are averaged in the first
step, in both branches, and the first seed goes on alone. `seed-2` and `seed-3` are the base with
other seeds: what a gain has to be held against.

One H200, at the pace that `vbvr_base.py` assumes: about 125 hours for the ensemble (4 % more than
the base; the first step needs memory for three seeds with guidance) and 120 for each other seed.
"""

from jcos.bench.arm import Arm

arms = {"ensemble": Arm(ensemble=3), "seed-2": Arm(seed=2), "seed-3": Arm(seed=3)}
