"""What does noise destroy on VBVR-Bench: one step in all frames, or one frame at all steps? (Paper,
section 3.2: the score falls from 0.685 to below 0.3 for a step, and much less for a frame.)

    jcos bench run configs/vbvr_noise.py --samples BENCH --checkpoint wan-vbvr --per-task 2
    jcos bench score out/vbvr/base out/vbvr/{step,frame}-* --samples BENCH --per-task 2 --scorer …

Positions are fractions: of the 50 steps, and of the latent frames, whose number differs from sample
to sample. The base arm is the same program with the noise off. `--per-task 2` makes 200 samples,
about as many as the paper probes.
"""

from jcos.bench.arm import Arm

STEPS = (0.1, 0.3, 0.5, 0.7, 0.9)
FRAMES = (0.25, 0.5, 0.75)

arms = {f"step-{50 * place:.0f}": Arm(noise_steps=(place,)) for place in STEPS}
arms |= {f"frame-{100 * place:.0f}%": Arm(noise_frames=(place,)) for place in FRAMES}
