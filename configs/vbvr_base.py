"""VBVR-Bench as the paper's tools run it: no intervention.

    jcos bench run configs/vbvr_base.py --samples VBVR-Bench-Data --checkpoint wan-vbvr
    jcos bench score out/vbvr/base --samples VBVR-Bench-Data --scorer "python run_evaluation.py"

Size and aspect of the first frame, as many frames as the ground truth, 50 Euler steps, shift 5,
guidance 5, seed 1; Wan2.2-I2V-A14B for comparison with --checkpoint wan-i2v --out out/vbvr-i2v.
docs/vbvr.md says how many hours the configs of VBVR-Bench take, and on which mesh.
"""

from jcos.bench.arm import Arm

arms = {"base": Arm()}
