"""The released models and the small one as configurations, and how reference codes run them."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from jcos.config import (
    FLOAT32,
    OFFICIAL,
    Clip,
    DiTConfig,
    Numerics,
    PixelCodec,
    Sampling,
    UMT5Config,
    VaeConfig,
    VisionConfig,
    WanConfig,
    Words,
)

TINY = Path(__file__).parent / "tiny"
"""The trained small model that comes with the package."""

DIFFUSERS = Numerics(linear="bfloat16", residual="bfloat16", head="bfloat16", text="bfloat16")
DIFFSYNTH = Numerics(*["bfloat16"] * 6)
"""The code that the paper's released tools run on."""


def vae_2_1() -> VaeConfig:
    """The VAE of Wan2.1 and of the A14B models."""
    return VaeConfig(96, 96, 16, False, _MEAN_2_1, _STD_2_1)


def vae_2_2() -> VaeConfig:
    """The VAE of TI2V-5B."""
    return VaeConfig(160, 256, 48, True, _MEAN_2_2, _STD_2_2)


# fmt: off
_MEAN_2_1 = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715,
    0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
_STD_2_1 = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652,
    1.5579, 1.6382, 1.1253, 2.8251, 1.916,
)
_MEAN_2_2 = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542,
    0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665,
    -0.2108, -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799,
    -0.123, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957,
    0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
_STD_2_2 = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894,
    1.0901, 0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146,
    0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709,
    0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537,
    0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on


_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，"
    "毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


def _released(
    name: str,
    dit: DiTConfig,
    guidance: tuple[float, ...],
    *,
    codec: VaeConfig | None = None,
    steps: int = 50,
    shift: float = 5.0,
    **options: Any,
) -> WanConfig:
    """A release as the original code samples it. options: of `WanConfig`."""
    sampling = Sampling(steps, shift, solver="unipc", grid="unipc", guidance=guidance)
    options |= dict(numerics=OFFICIAL, negative=_NEGATIVE)
    return WanConfig(name, dit, codec or vae_2_1(), UMT5Config(), sampling, **options)


_720P = Clip(height=720, width=1280)
_A14B = DiTConfig(dim=5120, ffn_dim=13824, heads=40, layers=40, in_channels=16, out_channels=16)
_A14B_I2V = dataclasses.replace(_A14B, in_channels=36)
_5B = DiTConfig(dim=3072, ffn_dim=14336, heads=24, layers=30, in_channels=48, out_channels=48)
_1_3B = DiTConfig(dim=1536, ffn_dim=8960, heads=12, layers=30, in_channels=16, out_channels=16)
_40_STEPS: dict[str, Any] = {"steps": 40, "clip": _720P}
_RELEASES: dict[str, dict[str, Any]] = {
    "wan2.2-t2v-a14b": _40_STEPS
    | {"dit": _A14B, "guidance": (4.0, 3.0), "shift": 12.0, "boundary": 0.875},
    "wan2.2-i2v-a14b": _40_STEPS
    | {"dit": _A14B_I2V, "guidance": (3.5, 3.5), "image": "concat", "boundary": 0.9},
    "wan2.2-ti2v-5b": {
        "dit": _5B,
        "guidance": (5.0,),
        "codec": vae_2_2(),
        "image": "pin",
        "clip": Clip(frames=121, height=704, width=1280, fps=24),
    },
    "wan2.1-t2v-1.3b": {"dit": _1_3B, "guidance": (5.0,)},
    "wan2.1-t2v-14b": {"dit": _A14B, "guidance": (5.0,), "clip": _720P},
    "wan2.1-i2v-14b": _40_STEPS
    | {
        "dit": dataclasses.replace(_A14B_I2V, image_dim=VisionConfig.dim),
        "guidance": (5.0,),
        "image": "concat",
        "vision": VisionConfig(),
    },
}


def toy(vocabulary: tuple[str, ...] = ()) -> WanConfig:
    """The small model of the package: Wan's block at 1/40 of its width, pixels instead of a VAE.

    In-channels: 12 latent + 4 mask + 12 first frame, concatenated as Wan's I2V models do. The
    rotary base is 100 because grids are 5 to 7 tokens wide. Sampling: the paper's Euler solver and
    50 steps.
    """
    codec = PixelCodec()
    dit = DiTConfig(
        dim=128,
        ffn_dim=512,
        heads=4,
        layers=6,
        in_channels=2 * codec.channels + 4,
        out_channels=codec.channels,
        text_dim=64,
        text_len=8,
        freq_dim=128,
        rope_theta=100.0,
    )
    sampling = Sampling(steps=50, shift=3.0)
    return WanConfig(
        "jcos-tiny",
        dit,
        codec,
        Words(vocabulary, dit.text_dim),
        sampling,
        image="repeat",
        clip=Clip(5, 20, 20, 4),
    )


Profile = Literal["official", "float32", "diffusers", "diffsynth", "vbvr-pro"]


def with_profile(config: WanConfig, profile: Profile) -> WanConfig:
    """A release sampled as one of the reference codes does: data types, schedule, guidance.

    official: the original repository (what the configurations are made for). float32: the same
    without bfloat16. diffusers: its pipelines' defaults. diffsynth: what the paper's released tools
    run (Euler, 50 steps, shift 5, guidance 5 for both experts, boundary 0.875). vbvr-pro: the
    Flow-CPS runs of VBVR-Pro-Bench (30 steps, shift 5, η 0.7, no guidance), which keep state and
    timesteps in bfloat16.
    """
    match profile:
        case "official":
            return dataclasses.replace(config, numerics=OFFICIAL)
        case "float32":
            return dataclasses.replace(config, numerics=FLOAT32)
        case "diffusers":
            shift = 5.0 if config.boundary is None else 3.0
            sampling = Sampling(50, shift, "unipc", "diffusers", (5.0,) * config.experts)
            return dataclasses.replace(config, numerics=DIFFUSERS, sampling=sampling, negative="")
        case "diffsynth":
            sampling = Sampling(50, 5.0, "euler", "euler", (5.0,) * config.experts)
            boundary = None if config.boundary is None else 0.875
            return dataclasses.replace(
                config, numerics=DIFFSYNTH, sampling=sampling, boundary=boundary
            )
        case "vbvr-pro":
            numerics = dataclasses.replace(DIFFUSERS, latents="bfloat16")
            sampling = Sampling(30, 5.0, "cps", "vbvr-pro", eta=0.7)
            return dataclasses.replace(config, numerics=numerics, sampling=sampling)
    raise ValueError(f"profile is {profile!r}; known are {', '.join(get_args(Profile))}")


def at_size(config: WanConfig, profile: Profile | None, height: int, width: int) -> WanConfig:
    """Return a release as the original samples it at a size: Wan2.1's image-to-video models have
    shift 3 at 832 × 480 and 480 × 832, else 5. Other models and codes have one shift."""
    original = config.vision is not None and profile in (None, "official", "float32")
    if not original or {height, width} != {480, 832}:
        return config
    return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, shift=3.0))


VARIANTS: dict[str, Callable[[], WanConfig]] = {
    **{name: partial(_released, name, **about) for name, about in _RELEASES.items()},
    "jcos-tiny": toy,
}

BASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Video-Reason/VBVR-Wan2.2": (
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        ("vae", "text_encoder", "tokenizer"),
    ),
}
"""Fine-tuned releases on Hugging Face, in the layout of diffusers, that come without some parts:
whose those are, and which."""


TUNED = {
    "vbvr-wan2.2": "wan2.2-i2v-a14b",
    "vbvr-wan2.1": "wan2.1-i2v-14b",
}
"""Fine-tuned releases whose names do not hold that of the model they were made of."""


def variant_of(name: str) -> str | None:
    """Return which model a repository or folder of this name holds, or was made of; None if that
    says not."""
    last = name.partition("@")[0].rpartition("/")[2].lower()
    known = {variant: variant for variant in VARIANTS} | TUNED
    return next((known[key] for key in sorted(known, key=len)[::-1] if key in last), None)


PRESETS: dict[str, dict[str, Any]] = {
    f"lightning-{steps}": {"steps": steps, "shift": 5.0, "solver": "euler", "guidance": (1.0,)}
    for steps in (4, 8)
}
"""Schedules of distilled models, by name: lightx2v's Wan2.2-Lightning LoRAs, of 4 and 8 steps. The
authors' timesteps are 1000, 937.5, 833.3, 625, and 1000, 972.2, 937.5, 892.9, 833.3, 750, 625,
416.7; guidance is left out."""


def with_preset(name: str | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings for `WanConfig.sampling_with`: a preset's, but for those that are given."""
    if name is None:
        return dict(changes)
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}; known are {', '.join(PRESETS)}")
    given = {key: value for key, value in changes.items() if value is not None}
    whole = ("steps", "shift") if "sigmas" in given else ()
    return {k: v for k, v in PRESETS[name].items() if k not in whole} | given
