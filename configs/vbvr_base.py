"""VBVR-Bench as the paper's tools run it: no intervention.

    jcos bench run configs/vbvr_base.py --samples VBVR-Bench-Data --checkpoint wan-vbvr
    jcos bench score out/vbvr/base --samples VBVR-Bench-Data --scorer "python run_evaluation.py"

Own size and aspect, as many frames as the ground truth, 50 Euler steps, shift 5, guidance 5,
seed 1; Wan2.2-I2V-A14B for comparison with --checkpoint wan-i2v --out out/vbvr-i2v.

Hours for all 500 samples, if each has 60 frames of 1024 × 1024 pixels (33 frames: 0.4 times as
many, 81: 1.6 times), VAE not counted, at the pace that `jcos plan` expects of such machines; none
was measured with jcos:

    one H200                                                    109
    8 × H200    --mesh branch=2,context=4                        14
    8 × H100    --mesh branch=2,fsdp=4                           14
    v5p-32      --join --mesh fsdp=4, on each of its 4 hosts     35
    v6e-8       --mesh fsdp=8                                    35
"""

from jcos.bench.arm import Arm

arms = {"base": Arm()}
