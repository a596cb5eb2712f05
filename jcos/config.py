"""Models and their sampling: frozen dataclasses that refuse impossible values. Without jax, so that
a configuration can be read anywhere."""

import dataclasses
import math
from numbers import Real
from typing import Any, Literal, get_args, get_type_hints

Solver = Literal["euler", "unipc", "dpmpp", "cps", "sde", "dance", "cpws", "renoise"]
Grid = Literal["euler", "unipc", "dpmpp", "diffusers", "vbvr-pro"]
ETA: dict[Solver, float] = {"cps": 0.7, "sde": 0.7, "dance": 0.3, "cpws": 0.7}
"""Solvers whose noise has a size, and the size by default; `renoise` has noise of one size."""
STOCHASTIC: tuple[Solver, ...] = (*ETA, "renoise")
"""Solvers that add noise in every step (`sampling/stochastic.py`)."""
StoredType = Literal["bfloat16", "float32"]
"""Of weights on disk."""
ImageMode = Literal["none", "concat", "pin", "repeat"]
"""How a first frame enters: not at all; as extra channels (A14B I2V); as the fixed first latent
frame (TI2V); as extra channels of every frame (the small model)."""


@dataclasses.dataclass(frozen=True)
class Numerics:
    """Data types of the forward pass, by name, in which the reference codes differ.

    linear: inputs and weights of attention, feed-forward and text projections.
    residual: the token stream between blocks.
    time: timestep, its embedding and the modulation. head: last norm and projection.
    latents: what a latent is rounded to after every step. text: the text encoder.
    Weights are stored in the type that they are used in. VAEs always compute in float32.
    """

    linear: str = "float32"
    residual: str = "float32"
    time: str = "float32"
    head: str = "float32"
    latents: str = "float32"
    text: str = "float32"


FLOAT32 = Numerics()
OFFICIAL = Numerics(linear="bfloat16", text="bfloat16")
"""The original code under its bfloat16 autocast: the residual stream stays float32."""


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Sizes of one diffusion transformer (one expert).

    in_channels: latent channels plus whatever is concatenated to them; out_channels: latent
    channels.
    text_len: rows the prompt is padded to (padding is attended to, as in the original).
    rope_theta: base of the rotary frequencies; 10000 in every release.
    image_dim: width of an image encoder's tokens, which are read beside the prompt; None for none.
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
    image_dim: int | None = None

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"DiTConfig: dim {self.dim} is not a multiple of heads {self.heads}")
        if self.head_dim % 2 or self.freq_dim % 2:
            raise ValueError(f"head size {self.head_dim} and freq_dim {self.freq_dim} must be even")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def tokens(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Token grid of a latent [F, H, W]; ValueError where the patch does not divide it."""
        for name, size, step in zip(
            ("frames", "height", "width"), (frames, height, width), self.patch, strict=True
        ):
            if size < 1 or size % step:
                raise ValueError(f"latent {name} is {size}, no positive multiple of {step}")
        return frames // self.patch[0], height // self.patch[1], width // self.patch[2]


@dataclasses.dataclass(frozen=True)
class PixelCodec:
    """An exact codec: colours normalised, `stride` × `stride` pixels folded into channels."""

    stride: int = 2
    mean: float = 0.55
    std: float = 0.42

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


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision tower as Wan2.1 reads it, without its last block; the sizes are those of the
    release (ViT-H/14). size: side of the picture in pixels. patch: of a token."""

    dim: int = 1280
    ffn_dim: int = 5120
    heads: int = 16
    layers: int = 31
    size: int = 224
    patch: int = 14
    eps: float = 1e-5

    @property
    def tokens(self) -> int:
        """Return the number of tokens, the class token included."""
        return (self.size // self.patch) ** 2 + 1


Codec = PixelCodec | VaeConfig
TextEncoder = Words | UMT5Config


MOST_STEPS = 10_000
"""More are refused before anything is computed or stored of each."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a video is sampled.

    shift: k in σ' = kσ / (1 + (k−1)σ). grid: the sigma grid before the shift (`flow.GRIDS`).
    guidance: v = v_u + g (v_c − v_u), one scale, or one per expert, high noise first; None leaves
        the unconditional branch out (the same as 1.0 at half the cost).
    sigmas: explicit noise levels in place of grid, shift and number of steps, as distilled models
        want them. Numbers above 1 are timesteps: (1000, 750, 500, 250) is (1, 0.75, 0.5, 0.25).
    eta: size of the noise that a stochastic solver adds (`ETA`); 0 is Euler.
    temperature: the first noise is multiplied by it.
    Arrays and a single scale of guidance become tuples.
    """

    steps: int = 50
    shift: float = 5.0
    solver: Solver = "euler"
    grid: Grid = "euler"
    guidance: tuple[float, ...] | Any = None
    sigmas: tuple[float, ...] | Any = None
    eta: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS or self.steps != int(self.steps):
            raise ValueError(f"steps is {self.steps}; give a whole number from 1 to {MOST_STEPS}")
        for what, value, known in (("solver", self.solver, Solver), ("grid", self.grid, Grid)):
            if value not in get_args(known):
                raise ValueError(f"{what} is {value!r}; known are {', '.join(get_args(known))}")
        if not (self.shift > 0 and math.isfinite(self.shift)):
            raise ValueError(f"shift is {self.shift}; it must be a positive number")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it scales noise: 0 or more")
        if self.eta is None:
            object.__setattr__(self, "eta", ETA.get(self.solver))
        elif self.solver not in ETA:
            noisy = ", ".join(ETA)
            raise ValueError(f"eta is {self.eta}; {self.solver} takes none, but {noisy} do")
        elif not 0 <= self.eta <= (1 if self.solver == "cps" else 1e6):
            raise ValueError(f"eta is {self.eta}; {self.solver} takes 0 and more, cps up to 1")
        if self.guidance is not None:
            scales = (self.guidance,) if isinstance(self.guidance, Real) else self.guidance
            object.__setattr__(self, "guidance", tuple(map(float, scales)))
        if self.sigmas is not None:
            sigmas = tuple(map(float, self.sigmas))
            unit = 1000 if max(sigmas, default=0) > 1 else 1
            levels = [sigma / unit for sigma in sigmas or (0,)]
            if not all(1 >= a > b for a, b in zip(levels, [*levels[1:], 0.0], strict=True)):
                raise ValueError(f"sigmas {sigmas} must descend within (0, 1] or (0, 1000]")
            object.__setattr__(self, "sigmas", tuple(levels))
            object.__setattr__(self, "steps", len(levels))

    def scales(self, experts: int) -> tuple[float, ...] | None:
        """Return a guidance scale for each expert, of which a single one serves all; ValueError
        for another number of them."""
        if self.guidance is None or len(self.guidance) == experts:
            return self.guidance
        if len(self.guidance) != 1:
            raise ValueError(
                f"guidance has {len(self.guidance)} scales; this model has {experts} expert(s)"
            )
        return self.guidance * experts


@dataclasses.dataclass(frozen=True)
class Clip:
    """The default video; sizes in pixels."""

    frames: int = 81
    height: int = 480
    width: int = 832
    fps: int = 16


@dataclasses.dataclass(frozen=True)
class WanConfig:
    """A whole model: expert(s), codec, text and the defaults its authors sample with.

    boundary: timestep / 1000 from which upwards the first (high-noise) of two experts is used.
    negative: the default prompt of the unconditional branch. vision: the image encoder of models
    that read one (`DiTConfig.image_dim`).
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
    vision: VisionConfig | None = None

    def __post_init__(self) -> None:
        if self.boundary is not None and not 0 < self.boundary < 1:
            raise ValueError(f"boundary is {self.boundary}; it is timestep / 1000, between 0 and 1")
        scales = self.sampling.scales(self.experts)
        sampling = dataclasses.replace(self.sampling, guidance=scales)
        object.__setattr__(self, "sampling", sampling)

    @property
    def noise(self) -> Literal["torch", "jax"]:
        """The generator of first noise: PyTorch's for Wan's models, as reference codes; else
        jax's."""
        return "torch" if isinstance(self.codec, VaeConfig) else "jax"

    @property
    def experts(self) -> int:
        return 1 if self.boundary is None else 2

    def sampling_with(self, **changes: Any) -> Sampling:
        """Return this model's sampling with other settings; None leaves one as it is.

        Another solver brings its own grid and noise, and steps, shift or a grid take the place of
        explicit sigmas. Guidance scales that are all 1 leave guidance out. Raises ValueError where
        the model cannot be sampled so.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        planned = changes.keys() & {"steps", "shift", "grid"}
        if "sigmas" in changes and planned:
            raise ValueError("sigmas are the whole schedule: leave out steps, shift and grid")
        if planned:
            changes["sigmas"] = None
        if changes.get("solver", self.sampling.solver) != self.sampling.solver:
            solver = changes["solver"]
            changes.setdefault("grid", "euler" if solver in STOCHASTIC else solver)
            changes.setdefault("eta", None)
        sampling = dataclasses.replace(self.sampling, **changes)
        sampling = dataclasses.replace(self, sampling=sampling).sampling
        plain = sampling.guidance is not None and set(sampling.guidance) == {1}
        return dataclasses.replace(sampling, guidance=None) if plain else sampling


def to_json(config: WanConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def from_json(data: Any, cls: Any = WanConfig) -> Any:
    """Invert `to_json`; ValueError or TypeError where a field is missing or unknown."""
    types, fields = get_type_hints(cls), {}
    for name, value in dict(data).items():
        options = (types.get(name), *get_args(types.get(name)))
        kinds = [kind for kind in options if dataclasses.is_dataclass(kind)]
        if kinds and not (value is None and type(None) in options):
            # Of several kinds the one with these fields; the last raises the error.
            fit = [k for k in kinds if {f.name for f in dataclasses.fields(k)} == set(value or ())]
            value = from_json(value, [*kinds, *fit][-1])
        # Configurations are static, so they must hash: tuples for lists.
        fields[name] = tuple(value) if isinstance(value, list) else value
    return cls(**fields)
