"""The same weights in PyTorch (diffusers, transformers) and in jcos, in float32, layer by layer.

Every layer gets the same input in both, PyTorch's output of the layer before it: so an error is
named where it arises. One block of each is in memory at a time, whatever the size of the model.
Errors are max|a − b| / max|b|; what is allowed is three times what an exact port shows.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from jcos.config import FLOAT32, OFFICIAL, Sampling, Solver, UMT5Config, VaeConfig
from jcos.model.dit import Block, DiT
from jcos.model.layers import RMSNorm, rope_angles, time_features
from jcos.model.text import EncoderBlock, relative_buckets
from jcos.model.vae import Vae
from jcos.model.vision import MEAN, STD, VisionBlock, VisionTower
from jcos.sampling import flow, trajectory
from jcos.sampling.probes import Probe
from jcos.weights.checkpoint import abstract_model, leaves, with_leaves
from jcos.weights.names import (
    DIT_OF_DIFFUSERS,
    UMT5_OF_TRANSFORMERS,
    VAE_2_1_OF_DIFFUSERS,
    VAE_2_2_OF_DIFFUSERS,
    VISION_OF_RELEASES,
    Renaming,
    original_name,
)
from jcos.weights.released import Released

M = TypeVar("M")
BFLOAT16 = 1.1
"""With products in bfloat16, errors are in root mean square; those of PyTorch's own rounding times
this are allowed, and what chance adds (`allowed_in_bfloat16`)."""
VALUES, SIGMAS = 4096, 5.0
"""Values, at least, that such an error is taken of, and standard deviations that chance may add."""
SMALL = 50_000_000
"""Parameters of an expert up to which a whole sampling run is compared."""


class Row(NamedTuple):
    """What was compared, the relative error, and the largest that is allowed."""

    part: str
    place: str
    error: float
    allowed: float


def row(part: str, place: str, value: Any, want: torch.Tensor, allowed: float = 2e-6) -> Row:
    """Return the relative error of a place."""
    a, b = np.asarray(value), want.numpy()
    return Row(part, place, float(np.abs(a - b).max() / np.abs(b).max()), allowed)


def compare(source: Released) -> Iterator[Row]:
    """Compare all parts that the folder has, one row per place."""
    yield from solvers()
    for part in source.parts:
        yield from {"text": text, "vae": vae, "vision": vision}.get(part, expert)(source, part)
    count = sum(leaf.size for path, leaf in source.leaves.items() if path.startswith("experts.0."))
    if count <= SMALL:
        yield sampling_run(source, pinned=False)
        if source.config.image == "pin":
            yield sampling_run(source, pinned=True)


# ---- weights


def ours(source: Released, place: str, model: M, layer: int | None = None) -> M:
    """Return an abstract module with the float32 weights of a place, or of one of its layers."""
    found = {}
    for path in leaves(model):
        leaf = source.leaves[f"{place}.{path}"]
        if layer is None:
            found[path] = leaf.build(lambda name: source.tensors[name].read(), np.dtype(np.float32))
        else:
            name, change = leaf.sources[layer]
            found[path] = change(source.tensors[name].read().astype(np.float32))
    return with_leaves(model, found)


def theirs(source: Released, part: str, module: Any, renaming: Renaming, within: str = "") -> None:
    """Load the folder's weights into a PyTorch module; within: what it is of the whole model."""
    state = {}
    for name, like in module.state_dict().items():
        tensor = source.tensors[f"{part}.{original_name(within + name, renaming)}"]
        state[name] = torch.from_numpy(tensor.read().astype(np.float32)).reshape(like.shape)
    module.load_state_dict(state)


def deviation(value: Any, want: torch.Tensor) -> float:
    """Return the root mean square of the error, relative to that of the values."""
    a, b = np.asarray(value, np.float64), want.numpy()
    return float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))


def allowed_in_bfloat16(of_pytorch: float, values: int) -> float:
    """Return what the same products, rounded in another order, may err where PyTorch's do so much.

    The square mean of n independent errors scatters by √(2/n) of itself, its root by √(1/2n), the
    ratio of two of them by √(1/n). A residual stream in bfloat16 errs 1.35 to 1.5 times as much.
    """
    return BFLOAT16 * (1 + SIGMAS * values**-0.5) * of_pytorch


def array(tensor: torch.Tensor) -> jax.Array:
    return jnp.asarray(tensor.numpy())


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- transformer


def dit_module(cfg: Any, layers: int) -> Any:
    return diffusers.WanTransformer3DModel(
        patch_size=cfg.patch,
        num_attention_heads=cfg.heads,
        attention_head_dim=cfg.head_dim,
        in_channels=cfg.in_channels,
        out_channels=cfg.out_channels,
        text_dim=cfg.text_dim,
        freq_dim=cfg.freq_dim,
        ffn_dim=cfg.ffn_dim,
        num_layers=layers,
        eps=cfg.eps,
        image_dim=cfg.image_dim,
        added_kv_proj_dim=None if cfg.image_dim is None else cfg.dim,
    ).eval()


def expert(source: Released, part: str) -> Iterator[Row]:
    """Compare embeddings, every block (also as the original runs it, with products in bfloat16),
    head. Of a narrow model several videos are run, enough to tell its rounding errors from chance.
    """
    cfg = source.config.dit
    dit = abstract_model(DiT, cfg)
    dit.blocks = None  # which follow one by one
    module, dit = dit_module(cfg, 1), ours(source, part, dit)
    theirs(source, part, module, DIT_OF_DIFFUSERS)
    embedder = module.condition_embedder

    features = time_features(jnp.full(1, 871.0), cfg.freq_dim)
    e = embedder.time_embedder(torch.from_numpy(np.array(features)))
    yield row(part, "time embedding", dit.time_embedding(features), e)
    six = embedder.time_proj(torch.nn.functional.silu(e))
    yield row(part, "time projection", dit.time_projection(jax.nn.silu(array(e))), six)
    grid = 2, 4, 6
    tokens = cfg.tokens(*grid)
    copies = math.ceil(VALUES / (math.prod(tokens) * cfg.dim))
    # diffusers tells an image's tokens from a prompt of 512 rows by their number.
    length = cfg.text_len if cfg.image_dim is None else 512
    context = numbers(1, copies, length, cfg.text_dim)
    words = embedder.text_embedder(torch.from_numpy(context))
    yield row(part, "text embedding", jax.vmap(dit.text_embedding)(jnp.asarray(context)), words)
    both, image = words, None
    if source.config.vision is not None:
        seen = numbers(10, copies, source.config.vision.tokens, source.config.vision.dim)
        tokens_of = embedder.image_embedder(torch.from_numpy(seen))
        yield row(part, "image embedding", jax.vmap(dit.img_emb)(jnp.asarray(seen)), tokens_of)
        both, image = torch.cat([tokens_of, words], 1), array(tokens_of)
    latents = numbers(0, copies, *grid, cfg.in_channels)
    video = torch.from_numpy(latents).permute(0, 4, 1, 2, 3)
    x = module.patch_embedding(video).flatten(2).transpose(1, 2)
    embed = jax.vmap(lambda video: dit.patch_embedding(dit.patchify(video)))
    yield row(part, "patch embedding", embed(jnp.asarray(latents)), x)

    six, rope = six.unflatten(1, (6, -1)), module.rope(video)
    fixed = array(six), array(words), rope_angles(tokens, cfg.head_dim, cfg.rope_theta), image
    axes = (None, 0, None, 0, None, None if image is None else 0)
    run = jax.jit(jax.vmap(lambda block, *given: block(*given[:-1], image=given[-1]), axes))
    abstract, narrow = (
        jax.eval_shape(lambda n=n: Block(cfg, n, nnx.Rngs(0))) for n in (FLOAT32, OFFICIAL)
    )
    for i in range(cfg.layers):
        theirs(source, part, module.blocks[0], DIT_OF_DIFFUSERS, f"blocks.{i}.")
        block = ours(source, f"{part}.blocks", abstract, i)
        y = module.blocks[0](x, both, six, rope)
        yield row(part, f"block {i}", run(block, array(x), *fixed), y)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module.blocks[0](x, both, six, rope)
        allowed = allowed_in_bfloat16(deviation(rounded.numpy(), y), y.numel())
        rounded = run(with_leaves(narrow, leaves(block)), array(x), *fixed)
        yield Row(part, f"block {i}, bfloat16", deviation(rounded, y), allowed)
        x = y
    shift, scale = (module.scale_shift_table + e[:, None]).chunk(2, dim=1)
    want = module.proj_out(module.norm_out(x[:1]) * (1 + scale) + shift)
    yield row(part, "head", dit.head(array(x[0]), array(e)), want[0])


# ---- text encoder, VAE, solver


def text(source: Released, part: str) -> Iterator[Row]:
    """Compare token embedding, every block (with padding behind the prompt), the last norm."""
    cfg = source.config.text
    assert isinstance(cfg, UMT5Config)
    sizes = transformers.UMT5Config(
        vocab_size=8,
        d_model=cfg.dim,
        d_kv=cfg.head_dim,
        d_ff=cfg.ffn_dim,
        num_layers=1,
        num_heads=cfg.heads,
        relative_attention_num_buckets=cfg.buckets,
        relative_attention_max_distance=cfg.max_distance,
        layer_norm_epsilon=cfg.eps,
        feed_forward_proj="gated-gelu",
    )
    stack = transformers.UMT5EncoderModel(sizes).eval().encoder
    norm = stack.final_layer_norm
    stack.final_layer_norm = torch.nn.Identity()  # the next block takes what it would norm
    length, kept = 24, 17
    ids = np.linspace(0, cfg.vocabulary - 1, length).astype(np.int64)
    leaf = source.leaves[f"{part}.token_embedding"]
    read = source.tensors[leaf.sources[0][0]]
    found = leaf.build(lambda name: source.tensors[name].read(), read.dtype)[ids]
    rows = torch.from_numpy(read.read()[ids].astype(np.float32))
    yield row(part, "token embedding", found.astype(np.float32), rows, 0.0)
    x = torch.from_numpy(numbers(2, 1, length, cfg.dim))
    mask = np.arange(length) < kept
    given = torch.from_numpy(mask)[None].long()
    places = np.arange(length)
    buckets = relative_buckets(places[None] - places[:, None], cfg.buckets, cfg.max_distance)
    abstract = jax.eval_shape(lambda: EncoderBlock(cfg, "float32", nnx.Rngs(0)))
    run = jax.jit(lambda block, x: block(x, jnp.asarray(mask), jnp.asarray(buckets)))
    for i in range(cfg.layers):
        theirs(source, part, stack.block[0], UMT5_OF_TRANSFORMERS, f"encoder.block.{i}.")
        y = stack(inputs_embeds=x, attention_mask=given).last_hidden_state
        found = run(ours(source, f"{part}.blocks", abstract, i), array(x[0]))
        yield row(part, f"block {i}", found[:kept], y[0, :kept])
        x = y
    theirs(source, part, norm, UMT5_OF_TRANSFORMERS, "encoder.final_layer_norm.")
    end = ours(source, f"{part}.norm", jax.eval_shape(lambda: RMSNorm(cfg.dim, cfg.eps)))
    yield row(part, "final norm", end(array(x[0])), norm(x)[0])


def vision(source: Released, part: str) -> Iterator[Row]:
    """Compare the tokens of a picture before the first block, and every block."""
    cfg = source.config.vision
    assert cfg is not None
    sizes = transformers.CLIPVisionConfig(
        hidden_size=cfg.dim,
        intermediate_size=cfg.ffn_dim,
        num_hidden_layers=1,
        num_attention_heads=cfg.heads,
        image_size=cfg.size,
        patch_size=cfg.patch,
        hidden_act="gelu",
        layer_norm_eps=cfg.eps,
    )
    tower = transformers.CLIPVisionModel(sizes).eval()
    tower = getattr(tower, "vision_model", tower)
    for name in ("embeddings", "pre_layrnorm"):
        theirs(source, part, getattr(tower, name), VISION_OF_RELEASES, f"{name}.")
    abstract = abstract_model(VisionTower, cfg)
    abstract.blocks = None
    picture = np.tanh(numbers(11, cfg.size, cfg.size, 3))
    colours = (0.5 * torch.from_numpy(picture) + 0.5 - torch.tensor(MEAN)) / torch.tensor(STD)
    x = tower.pre_layrnorm(tower.embeddings(colours.permute(2, 0, 1)[None]))
    found = ours(source, part, abstract).embed(jnp.asarray(picture))
    yield row(part, "picture", found, x[0])
    block, layer = jax.eval_shape(lambda: VisionBlock(cfg, nnx.Rngs(0))), tower.encoder.layers[0]
    run = jax.jit(lambda block, x: block(x))
    for i in range(cfg.layers):
        theirs(source, part, layer, VISION_OF_RELEASES, f"encoder.layers.{i}.")
        y = layer(x, attention_mask=None)
        y = y[0] if isinstance(y, tuple) else y
        found = run(ours(source, f"{part}.blocks", block, i), array(x[0]))
        yield row(part, f"block {i}", found, y[0])
        x = y


def vae(source: Released, part: str) -> Iterator[Row]:
    """Compare a short clip encoded, latents decoded."""
    cfg = source.config.codec
    assert isinstance(cfg, VaeConfig)
    _, height, width = (2 * stride for stride in cfg.strides)
    folded = {"in_channels": 12, "out_channels": 12, "patch_size": 2} if cfg.patched else {}
    module = diffusers.AutoencoderKLWan(
        base_dim=cfg.encoder_dim,
        decoder_base_dim=cfg.decoder_dim,
        z_dim=cfg.channels,
        is_residual=cfg.patched,
        latents_mean=list(cfg.mean),
        latents_std=list(cfg.std),
        scale_factor_spatial=cfg.strides[1],
        **folded,
    ).eval()
    theirs(source, part, module, VAE_2_2_OF_DIFFUSERS if cfg.patched else VAE_2_1_OF_DIFFUSERS)
    model = ours(source, part, abstract_model(Vae, cfg))
    video, z = np.tanh(numbers(3, 5, height, width, 3)), numbers(4, 2, 2, 2, cfg.channels)
    mean, std = (torch.tensor(a).reshape(-1, 1, 1, 1) for a in (cfg.mean, cfg.std))
    found = jax.jit(lambda m, v: m.encode(v))(model, jnp.asarray(video))
    mu = module.encode(torch.from_numpy(video).permute(3, 0, 1, 2)[None]).latent_dist.mode()[0]
    yield row(part, "encode", found, ((mu - mean) / std).permute(1, 2, 3, 0), 5e-6)
    found = jax.jit(lambda m, z: m.decode(z))(model, jnp.asarray(z))
    wide = torch.from_numpy(z).permute(3, 0, 1, 2) * std + mean
    want = module.decode(wide[None]).sample[0].permute(1, 2, 3, 0)
    yield row(part, "decode", found, want, 5e-6)


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def solvers() -> Iterator[Row]:
    """Compare ten steps of each over a velocity that is a formula: UniPC on the grid of diffusers,
    which has not the others' grids; they are given jcos's."""
    compared: dict[Solver, tuple[str, Any]] = {
        "unipc": ("UniPC", diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=5.0)),
        "dpmpp": ("DPM++", diffusers.DPMSolverMultistepScheduler(**FLOW)),
        "euler": ("Euler", diffusers.FlowMatchEulerDiscreteScheduler()),
    }
    for solver, (name, made) in compared.items():
        grid = "diffusers" if solver == "unipc" else "unipc"
        plan = flow.schedule(Sampling(10, 5.0, solver, grid))
        made.set_timesteps(10)
        if grid == "unipc":
            made.sigmas = torch.from_numpy(np.asarray(plan.sigmas))
        x = torch.from_numpy(numbers(5, 2, 3, 4, 5))
        state = flow.solver_init(jnp.asarray(x.numpy()))
        for i, t in enumerate(made.timesteps):
            sigma = float(plan.sigmas[i])
            v = 0.3 * x + 0.5 * torch.sin(2 * x + 3 * sigma)
            x = made.step(v, t, x, return_dict=False)[0]
            velocity = 0.3 * state.x + 0.5 * jnp.sin(2 * state.x + 3 * sigma)
            x0 = flow.clean_estimate(state.x, velocity, jnp.float32(sigma))
            state = flow.solver_step(state, state.x, x0, jnp.asarray(plan.table[i]))
        yield row("solver", f"{name}, 10 steps", state.x, x, 3e-6)


def sampling_run(source: Released, pinned: bool) -> Row:
    """Compare three steps with guidance through all experts, the sinusoid of each code its own.
    pinned: with a first frame that stays in place, its tokens at timestep 0 (TI2V)."""
    config, cfg, scale = source.config, source.config.dit, 4.0
    settings = Sampling(3, 5.0, "unipc", "diffusers", (scale,) * config.experts)
    plan = flow.plan(settings, config.boundary)
    made = diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=5.0)
    made.set_timesteps(3)
    noise = numbers(6, 2, 4, 6, cfg.out_channels)
    extra = numbers(7, 2, 4, 6, cfg.in_channels - cfg.out_channels)
    rows = numbers(8, 2, cfg.text_len, cfg.text_dim)
    models, modules = [], []
    for i in range(config.experts):
        abstract = abstract_model(DiT, cfg)
        models.append(ours(source, f"experts.{i}", abstract))
        modules.append(dit_module(cfg, cfg.layers))
        theirs(source, f"experts.{i}", modules[-1], DIT_OF_DIFFUSERS)
    first, tower = numbers(9, 1, 4, 6, cfg.out_channels), config.vision
    seen = None if tower is None else numbers(10, tower.tokens, tower.dim)
    image = None if seen is None else torch.from_numpy(seen)[None]
    condition = trajectory.Condition(
        jnp.asarray(rows[0])[None],
        (2, 4, 6),
        jnp.asarray(rows[1])[None],
        jnp.asarray(extra)[None],
        jnp.asarray(first)[None] if pinned else None,
        image=None if seen is None else jnp.asarray(seen)[None],
    )
    keys = jax.vmap(jax.random.key)(jnp.zeros(1, jnp.uint32))
    run = jax.jit(
        lambda models: trajectory.run(
            models, plan, condition, jnp.asarray(noise)[None], keys, Probe()
        )
    )
    x = torch.from_numpy(noise).permute(3, 0, 1, 2)[None]
    beside = torch.from_numpy(extra).permute(3, 0, 1, 2)[None]
    kept = torch.zeros(1, 1, 2, 4, 6, dtype=torch.bool)
    kept[:, :, 0] = pinned
    frame = torch.from_numpy(first).permute(3, 0, 1, 2)[None]
    for i, t in enumerate(made.timesteps):
        module = modules[0 if plan.high_steps is None or i < plan.high_steps else 1]
        given = torch.cat([torch.where(kept, frame, x), beside], 1)
        # One timestep, or one per token of 2 x 2 cells.
        times = (t * ~kept[0, 0, :, ::2, ::2]).reshape(1, -1) if pinned else t[None]
        v, v_negative = (
            module(given, times, torch.from_numpy(r)[None], image, return_dict=False)[0]
            for r in rows
        )
        x = made.step(v_negative + scale * (v - v_negative), t, x, return_dict=False)[0]
    found, x = run(models).latents[0, 0], torch.where(kept, frame, x)
    place = f"3 steps, guidance{', first frame' if pinned else ''}"
    return row("run", place, found, x[0].permute(1, 2, 3, 0), 5e-5)
