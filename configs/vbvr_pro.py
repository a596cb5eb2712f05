"""VBVR-Pro-Bench (2608.26105) at the settings of its published TI2V-5B numbers, with every sampler.

    jcos bench run configs/vbvr_pro.py --samples VBVR-Pro-Bench-Video --checkpoint vbvr-pro-5b \
      --out out/pro --arms cps-0.7 unipc
    jcos bench score out/pro/cps-0.7 out/pro/unipc --samples VBVR-Pro-Bench-Video \
      --scorer "python VBVR-Pro-Bench/run_evaluation_video.py"

512 × 512 pixels, 81 frames, 30 steps, shift 5, no guidance, the first frame stretched (LANCZOS),
seed = place of the sample; videos are brought to the size of the picture (1024) and written with
crf 12. `euler` and `unipc` are those of diffusers, with float32 state and timesteps. The same
config serves base, SFT and RL checkpoints, and with another --out I2V-A14B and Wan2.1-I2V-14B.

On the small tasks, in a minute on two cores:

    jcos bench export out/small-pro --benchmark vbvr-pro --per-task 1
    jcos bench run configs/vbvr_pro.py --samples out/small-pro --out out/pro-small --arms cps-0.7 \
      --set profile=none --set size=none --set frames=none --set scale=0.125
"""

from typing import Any

from jcos.bench.arm import Arm
from jcos.experiments.experiment import Settings

benchmark = "vbvr-pro"
LAYERS = tuple((layer + 0.5) / 40 for layer in range(20, 30))
STEPS = 30


def arm(solver: Any, eta: float | None = None, cold: float | None = None, **more: Any) -> Arm:
    """An arm on the grid of the published Flow-CPS runs. cold: its temperature."""
    sampling: dict[str, Any] = {"steps": STEPS, "shift": 5.0, "grid": "vbvr-pro"}
    sampling |= {"solver": solver, "eta": eta, "temperature": cold, "guidance": (1.0,)}
    return pro("vbvr-pro", Settings(**sampling), **more)


def pro(profile: Any, sampling: Settings, **more: Any) -> Arm:
    frame: dict[str, Any] = {"size": (512, 512), "frames": 81, "resample": "lanczos", "crf": 12}
    return Arm(profile=profile, sampling=sampling, seed=0, by_index=True, **frame, **more)


def flow_match(steps: int, shift: float = 5.0) -> tuple[float, ...]:
    """Levels of diffusers' FlowMatchEulerDiscreteScheduler, whose shift acts on the least twice."""
    least = shift * 0.001 / (1 + (shift - 1) * 0.001)
    grid = [1 + (least - 1) * i / (steps - 1) for i in range(steps)]
    return tuple(shift * u / (1 + (shift - 1) * u) for u in grid)


UNIPC = Settings(steps=STEPS, shift=5.0, solver="unipc", grid="diffusers", guidance=(1.0,))
EULER = Settings(sigmas=flow_match(STEPS), solver="euler", guidance=(1.0,))

arms = {f"cps-{eta}": arm("cps", eta) for eta in (0.1, 0.3, 0.7, 0.9)}
arms |= {"unipc": pro("diffusers", UNIPC), "euler": pro("diffusers", EULER)}
arms |= {
    "sde": arm("sde"),
    "dance": arm("dance"),
    "cpws": arm("cpws"),
    "renoise": arm("renoise"),
    # The control of cps-0.7: as low a temperature (docs/search.md), without noise.
    "euler-cold": arm("euler", cold=0.845),
    # The paper's arms
    "noise-step": arm("cps", 0.7, noise_steps=(0.5,)),
    "noise-frame": arm("cps", 0.7, noise_frames=(0.5,)),
    "ensemble": arm("cps", 0.7, ensemble=3, ensemble_layers=LAYERS),
}
