"""What a model is and how it is sampled: frozen dataclasses that refuse impossible values when they
are made.

Architectures of the released checkpoints are named constructors (`wan22_i2v_a14b()`, …); `toy()` is
the small model that ships with the package. Nothing here imports jax, so that a configuration can
be read anywhere.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

Solver = Literal["euler", "unipc", "dpmpp"]
Grid = Literal["euler", "unipc", "dpmpp", "diffusers"]
ImageMode = Literal["none", "concat", "pin", "repeat"]
"""How a first frame enters: not at all; as extra channels (A14B I2V); as the fixed first latent
frame (TI2V); as extra channels of every frame (the small model)."""


@dataclasses.dataclass(frozen=True)
class Numerics:
    """Data types of the forward pass, by name; which of them agree is what tells the reference
    codes apart.

    linear: inputs and weights of attention, feed-forward and text projections.
    residual: the token stream between blocks.
    time: timestep, its embedding and the modulation. head: last norm and projection.
    latents: what a latent is rounded to after every step.
    """

    linear: str = "float32"
    residual: str = "float32"
    time: str = "float32"
    head: str = "float32"
    latents: str = "float32"


FLOAT32 = Numerics()
OFFICIAL = Numerics(linear="bfloat16")
"""The original code under its bfloat16 autocast: the residual stream stays float32."""
DIFFUSERS = Numerics(linear="bfloat16", residual="bfloat16", head="bfloat16")
DIFFSYNTH = Numerics("bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16")
"""The code that the paper's released tools run on."""


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Sizes of one diffusion transformer (one expert).

    in_channels: latent channels plus whatever is concatenated to them; out_channels: latent
    channels.
    text_len: rows the prompt is padded to (padding is attended to, as in the original).
    rope_theta: base of the rotary frequencies; 10000 in every release.
    """

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    in_channels: int
    out_channels: int
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, value in sizes.items():
            if name not in ("patch", "eps", "rope_theta") and value < 1:
                raise ValueError(f"DiTConfig.{name} is {value}; it must be at least 1")
        if min(self.patch) < 1 or not self.eps > 0 or not self.rope_theta > 0:
            raise ValueError(
                f"DiTConfig: patch {self.patch}, eps {self.eps} and rope_theta {self.rope_theta} "
                "must be positive"
            )
        if self.dim % self.heads:
            raise ValueError(f"DiTConfig: dim {self.dim} is not a multiple of heads {self.heads}")
        if self.head_dim % 2 or self.freq_dim % 2:
            raise ValueError(
                f"DiTConfig: head size {self.head_dim} and freq_dim {self.freq_dim} must be even"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def tokens(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Token grid of a latent [F, H, W]; ValueError where the patch does not divide it."""
        for name, size, step in zip(
            ("frames", "height", "width"), (frames, height, width), self.patch, strict=True
        ):
            if size < 1 or size % step:
                raise ValueError(
                    f"latent {name} is {size}; the patch needs a positive multiple of {step}"
                )
        return frames // self.patch[0], height // self.patch[1], width // self.patch[2]


@dataclasses.dataclass(frozen=True)
class PixelCodec:
    """An exact, weightless codec: colours normalised, `stride` × `stride` pixels folded into
    channels."""

    stride: int = 2
    mean: float = 0.55
    std: float = 0.42

    def __post_init__(self) -> None:
        if self.stride < 1 or not self.std > 0:
            raise ValueError(
                f"PixelCodec: stride {self.stride} and std {self.std} must be positive"
            )

    @property
    def channels(self) -> int:
        return 3 * self.stride**2

    @property
    def strides(self) -> tuple[int, int, int]:
        """Pixels per latent cell along time, height and width."""
        return 1, self.stride, self.stride


@dataclasses.dataclass(frozen=True)
class Words:
    """A closed vocabulary: every word of a prompt is one row of an embedding table."""

    vocabulary: tuple[str, ...]
    dim: int


@dataclasses.dataclass(frozen=True)
class VaeConfig:
    """A causal video VAE of the Wan family; frames 1 + 4n become 1 + n latent frames.

    encoder_dim, decoder_dim: narrowest widths, multiplied by 1, 2, 4, 4 with depth.
    patched: 2.2's design (2 × 2 pixels folded into channels first, groups with averaging and
        duplicating shortcuts), else 2.1's. mean, std: of the latents, per channel.
    """

    encoder_dim: int
    decoder_dim: int
    channels: int
    patched: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if min(self.encoder_dim, self.decoder_dim, self.channels) < 1:
            raise ValueError(
                f"VaeConfig: widths {self.encoder_dim} and {self.decoder_dim} and {self.channels} "
                "channels must be at least 1"
            )
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise ValueError(
                f"VaeConfig: {self.channels} channels need as many means and positive deviations"
            )

    @property
    def strides(self) -> tuple[int, int, int]:
        """Pixels per latent cell along time (after the first frame), height and width."""
        return (4, 16, 16) if self.patched else (4, 8, 8)


@dataclasses.dataclass(frozen=True)
class UMT5Config:
    """UMT5's encoder; the sizes are those of XXL, which every release uses."""

    vocabulary: int = 256384
    dim: int = 4096
    heads: int = 64
    head_dim: int = 64
    ffn_dim: int = 10240
    layers: int = 24
    eps: float = 1e-6
    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise ValueError(f"UMT5Config.{name} is {value}; it must be positive")


Codec = PixelCodec | VaeConfig
TextEncoder = Words | UMT5Config


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a video is sampled.

    shift: k in σ' = kσ / (1 + (k−1)σ). grid: the sigma grid before the shift (`flow.GRIDS`).
    guidance: v = v_u + g (v_c − v_u), one scale per expert, high noise first; None leaves the
        unconditional branch out (the same as 1.0 at half the cost).
    """

    steps: int = 50
    shift: float = 5.0
    solver: Solver = "euler"
    grid: Grid = "euler"
    guidance: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.steps != int(self.steps):
            raise ValueError(f"steps is {self.steps}; sampling needs a whole number of at least 1")
        for what, value, known in (("solver", self.solver, Solver), ("grid", self.grid, Grid)):
            if value not in get_args(known):
                raise ValueError(f"{what} is {value!r}; known are {', '.join(get_args(known))}")
        if not (self.shift > 0 and math.isfinite(self.shift)):
            raise ValueError(f"shift is {self.shift}; it must be a positive number")


@dataclasses.dataclass(frozen=True)
class Clip:
    """The video made where nothing else is asked for; sizes in pixels."""

    frames: int = 81
    height: int = 480
    width: int = 832
    fps: int = 16


@dataclasses.dataclass(frozen=True)
class WanConfig:
    """A whole model: expert(s), codec, text and the defaults its authors sample with.

    boundary: timestep / 1000 from which upwards the first (high-noise) of two experts is used.
    negative: the prompt of the unconditional branch where none is given.
    """

    name: str
    dit: DiTConfig
    codec: Codec | None
    text: TextEncoder | None
    sampling: Sampling
    image: ImageMode = "none"
    boundary: float | None = None
    numerics: Numerics = FLOAT32
    negative: str = ""
    clip: Clip = Clip()

    def __post_init__(self) -> None:
        if self.boundary is not None and not 0 < self.boundary < 1:
            raise ValueError(
                f"boundary is {self.boundary}; it is a timestep / 1000, between 0 and 1"
            )
        guidance = self.sampling.guidance
        if guidance is not None and len(guidance) != self.experts:
            raise ValueError(
                f"guidance {guidance} has {len(guidance)} scales for {self.experts} expert(s)"
            )

    @property
    def experts(self) -> int:
        return 1 if self.boundary is None else 2


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


_A14B = DiTConfig(dim=5120, ffn_dim=13824, heads=40, layers=40, in_channels=16, out_channels=16)
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
    image: ImageMode = "none",
    boundary: float | None = None,
    clip: Clip = Clip(),
) -> WanConfig:
    """A release as the original code samples it."""
    sampling = Sampling(steps, shift, solver="unipc", grid="unipc", guidance=guidance)
    codec = codec or vae_2_1()
    return WanConfig(
        name,
        dit,
        codec,
        UMT5Config(),
        sampling,
        image=image,
        boundary=boundary,
        numerics=OFFICIAL,
        negative=_NEGATIVE,
        clip=clip,
    )


def wan22_t2v_a14b() -> WanConfig:
    return _released(
        "wan2.2-t2v-a14b", _A14B, (4.0, 3.0), steps=40, shift=12.0, boundary=0.875, clip=_720P
    )


def wan22_i2v_a14b() -> WanConfig:
    dit = dataclasses.replace(_A14B, in_channels=36)
    return _released(
        "wan2.2-i2v-a14b", dit, (3.5, 3.5), steps=40, image="concat", boundary=0.9, clip=_720P
    )


def wan22_ti2v_5b() -> WanConfig:
    dit = DiTConfig(dim=3072, ffn_dim=14336, heads=24, layers=30, in_channels=48, out_channels=48)
    clip = Clip(frames=121, height=704, width=1280, fps=24)
    return _released("wan2.2-ti2v-5b", dit, (5.0,), codec=vae_2_2(), image="pin", clip=clip)


def wan21_t2v_1_3b() -> WanConfig:
    dit = DiTConfig(dim=1536, ffn_dim=8960, heads=12, layers=30, in_channels=16, out_channels=16)
    return _released("wan2.1-t2v-1.3b", dit, (5.0,))


def wan21_t2v_14b() -> WanConfig:
    return _released("wan2.1-t2v-14b", _A14B, (5.0,), clip=_720P)


_720P = Clip(height=720, width=1280)


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


Profile = Literal["official", "float32", "diffusers", "diffsynth"]


def with_profile(config: WanConfig, profile: Profile) -> WanConfig:
    """A release sampled as one of the reference codes does: data types, schedule, guidance.

    official: the original repository (what the configurations are made for). float32: the same
    without bfloat16. diffusers: its pipelines' defaults. diffsynth: what the paper's released tools
    run (Euler, 50 steps, shift 5, guidance 5 for both experts, boundary 0.875).
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
    raise ValueError(f"profile is {profile!r}; known are {', '.join(get_args(Profile))}")


VARIANTS: dict[str, Callable[[], WanConfig]] = {
    "wan2.2-t2v-a14b": wan22_t2v_a14b,
    "wan2.2-i2v-a14b": wan22_i2v_a14b,
    "wan2.2-ti2v-5b": wan22_ti2v_5b,
    "wan2.1-t2v-1.3b": wan21_t2v_1_3b,
    "wan2.1-t2v-14b": wan21_t2v_14b,
    "jcos-tiny": toy,
}


def to_json(config: WanConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def from_json(data: dict[str, Any]) -> WanConfig:
    """The inverse of `to_json`; ValueError or TypeError where a field is missing or unknown."""

    def make(cls: type, value: Any) -> Any:
        # JSON has lists where the dataclasses have tuples (which must hash: configurations are
        # static).
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in dict(value).items()})

    def one_of(kinds: tuple[type, ...], value: Any) -> Any:
        # Of several kinds the one whose fields these are; the last is left to complain.
        named = [k for k in kinds if {f.name for f in dataclasses.fields(k)} == set(value)]
        return make((*kinds, *named)[-1], value)

    nested: dict[str, tuple[type, ...]] = {
        "dit": (DiTConfig,),
        "codec": get_args(Codec),
        "text": get_args(TextEncoder),
        "sampling": (Sampling,),
        "numerics": (Numerics,),
        "clip": (Clip,),
    }
    optional = ("codec", "text")
    fields: dict[str, Any] = {
        k: v if k not in nested or (v is None and k in optional) else one_of(nested[k], v)
        for k, v in data.items()
    }
    return WanConfig(**fields)
