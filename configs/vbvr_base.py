"""VBVR-Bench as the paper's tools run it: no intervention.

    jcos bench run configs/vbvr_base.py --samples VBVR-Bench-Data --checkpoint wan-vbvr
    jcos bench score out/vbvr/base --samples VBVR-Bench-Data --scorer "python run_evaluation.py"

Own size and aspect, as many frames as the ground truth, 50 Euler steps, shift 5, guidance 5,
seed 1; Wan2.2-I2V-A14B for comparison with --checkpoint wan-i2v --out out/vbvr-i2v.

One H200: about 120 hours for all 500 samples, VAE not counted, if a guided step of 81 frames of
832 × 480 pixels takes 5.6 s (what other implementations need on an H100; not measured with jcos)
and a sample has 60 frames of 1024 × 1024 pixels (33 frames: 47 hours, 81: 190). --plan says it for
your samples and --step-seconds. A worker on each of d devices needs a d-th of it.
"""

from jcos.bench.arm import Arm

arms = {"base": Arm()}
