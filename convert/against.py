"""The same weights in PyTorch (diffusers, transformers) and in jcos, in float32, layer by layer.

Every layer gets the same input in both, PyTorch's output of the layer before it: so an error is
named where it arises. One block of each is in memory at a time, whatever the size of the model.
Errors are max|a − b| / max|b|; what is allowed is three times what an exact port shows.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from jcos import flow, trajectory
from jcos.checkpoint import leaves, with_leaves
from jcos.config import FLOAT32, OFFICIAL, Sampling, UMT5Config, VaeConfig
from jcos.dit import Block, DiT
from jcos.layers import rope_angles, time_features
from jcos.names import (
    DIT_OF_DIFFUSERS,
    UMT5_OF_TRANSFORMERS,
    VAE_2_1_OF_DIFFUSERS,
    VAE_2_2_OF_DIFFUSERS,
    Renaming,
    original_name,
)
from jcos.probes import Probe
from jcos.released import Released
from jcos.text import EncoderBlock, relative_buckets
from jcos.vae import Vae

M = TypeVar("M")
BFLOAT16 = 1.1
"""With products in bfloat16, errors are in root mean square; those of PyTorch's own rounding times
this are allowed."""
SMALL = 50_000_000
"""Parameters of an expert up to which a whole sampling run is compared."""


class Row(NamedTuple):
    """What was compared, the relative error, and the largest that is allowed."""

    part: str
    place: str
    error: float
    allowed: float


def compare(source: Released) -> Iterator[Row]:
    """All parts that the folder has, one row per place."""
    yield solver()
    for part in source.parts:
        yield from {"text": text, "vae": vae}.get(part, expert)(source, part)
    count = sum(leaf.size for path, leaf in source.leaves.items() if path.startswith("experts.0."))
    if count <= SMALL:
        yield sampling_run(source)


# ---- weights


def ours(source: Released, part: str, model: M, layer: int | None = None) -> M:
    """An abstract model with the weights of a part, or of one of its blocks, in float32."""
    inside = f"{part}." if layer is None else f"{part}.blocks."
    found = {}
    for path in leaves(model):
        leaf = source.leaves[inside + path]
        if layer is None:
            found[path] = leaf.build(lambda name: source.tensors[name].read(), np.dtype(np.float32))
        else:
            name, change = leaf.sources[layer]
            found[path] = change(source.tensors[name].read().astype(np.float32))
    return with_leaves(model, found)


def theirs(
    source: Released,
    part: str,
    module: Any,
    renaming: Renaming,
    within: str = "",
) -> None:
    """Loads the folder's weights into a PyTorch module; within: what it is of the whole model."""
    state = {}
    for name in module.state_dict():
        tensor = source.tensors[f"{part}.{original_name(within + name, renaming)}"]
        state[name] = torch.from_numpy(tensor.read().astype(np.float32))
    module.load_state_dict(state)


def relative(found: Any, want: torch.Tensor) -> float:
    a, b = np.asarray(found), want.numpy()
    return float(np.abs(a - b).max() / np.abs(b).max())


def deviation(found: Any, want: torch.Tensor) -> float:
    """Root mean square of the error, of that of the values."""
    a, b = np.asarray(found, np.float64), want.numpy()
    return float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))


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
    ).eval()


def expert(source: Released, part: str) -> Iterator[Row]:
    """Embeddings, every block (also as the original runs it, with products in bfloat16), head.

    diffusers computes the sinusoid of the timestep in float32, the original in float64 as jcos
    does: that row allows for it, and both go on with the exact one.
    """
    cfg = source.config.dit
    one = dataclasses.replace(cfg, layers=1)
    module, dit = dit_module(cfg, 1), ours(source, part, jax.eval_shape(lambda: Outside(one)))
    theirs(source, part, module, DIT_OF_DIFFUSERS)
    embedder = module.condition_embedder

    def row(place: str, found: Any, want: torch.Tensor, allowed: float = 2e-6) -> Row:
        return Row(part, place, relative(found, want), allowed)

    t = 871.0
    features = time_features(jnp.full(1, t), cfg.freq_dim)
    yield row("sinusoid", features, embedder.timesteps_proj(torch.tensor([t])), 2e-4)
    e = embedder.time_embedder(torch.from_numpy(np.array(features)))
    yield row("time embedding", dit.time_embedding(features), e)
    six = embedder.time_proj(torch.nn.functional.silu(e))
    yield row("time projection", dit.time_projection(jax.nn.silu(array(e))), six)
    context = numbers(1, cfg.text_len, cfg.text_dim)
    words = embedder.text_embedder(torch.from_numpy(context)[None])
    yield row("text embedding", dit.text_embedding(jnp.asarray(context)), words[0])
    latents = numbers(0, 2, 4, 6, cfg.in_channels)
    video = torch.from_numpy(latents).permute(3, 0, 1, 2)[None]
    x = module.patch_embedding(video).flatten(2).transpose(1, 2)
    chained = dit.patch_embedding(DiT.patchify(dit, jnp.asarray(latents)))
    yield row("patch embedding", chained, x[0])

    six, rope = six.unflatten(1, (6, -1)), module.rope(video)
    angles = rope_angles(cfg.tokens(2, 4, 6), cfg.head_dim, cfg.rope_theta)
    fixed = array(six), array(words[0]), angles
    run = jax.jit(lambda block, *given: block(*given))
    abstract, narrow = (
        jax.eval_shape(lambda n=n: Block(cfg, n, nnx.Rngs(0))) for n in (FLOAT32, OFFICIAL)
    )
    for i in range(cfg.layers):
        theirs(source, part, module.blocks[0], DIT_OF_DIFFUSERS, f"blocks.{i}.")
        block = ours(source, part, abstract, i)
        y = module.blocks[0](x, words, six, rope)
        yield row(f"block {i}", run(block, array(x[0]), *fixed), y[0])
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module.blocks[0](x, words, six, rope)
        allowed = BFLOAT16 * deviation(rounded[0].numpy(), y[0])
        rounded = run(with_leaves(narrow, leaves(block)), array(x[0]), *fixed)
        yield Row(part, f"block {i}, bfloat16", deviation(rounded, y[0]), allowed)
        chained, x = run(block, chained, *fixed), y
    yield row("all blocks, one after the other", chained, x[0], 1e-5)
    shift, scale = (module.scale_shift_table + e[:, None]).chunk(2, dim=1)
    want = module.proj_out(module.norm_out(x) * (1 + scale) + shift)
    yield row("head", dit.head(array(x[0]), array(e)), want[0])


class Outside(nnx.Module):
    """A DiT without its blocks."""

    def __init__(self, cfg: Any):
        whole = DiT(cfg, rngs=nnx.Rngs(0))
        for name in (
            "patch_embedding",
            "text_embedding",
            "time_embedding",
            "time_projection",
            "head",
        ):
            setattr(self, name, getattr(whole, name))
        self.cfg = cfg


# ---- text encoder, VAE, solver


def text(source: Released, part: str) -> Iterator[Row]:
    """Every block."""
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
    stack.final_layer_norm = torch.nn.Identity()  # the next block takes what it would norm
    length = 24
    x = torch.from_numpy(numbers(2, 1, length, cfg.dim))
    places = np.arange(length)
    buckets = relative_buckets(places[None] - places[:, None], cfg.buckets, cfg.max_distance)
    abstract = jax.eval_shape(lambda: EncoderBlock(cfg, "float32", nnx.Rngs(0)))
    run = jax.jit(lambda block, x: block(x, jnp.ones(length, bool), jnp.asarray(buckets)))
    for i in range(cfg.layers):
        theirs(source, part, stack.block[0], UMT5_OF_TRANSFORMERS, f"encoder.block.{i}.")
        y = stack(inputs_embeds=x).last_hidden_state
        found = run(ours(source, part, abstract, i), array(x[0]))
        yield Row(part, f"block {i}", relative(found, y[0]), 2e-6)
        x = y


def vae(source: Released, part: str) -> Iterator[Row]:
    """A short clip encoded, latents decoded."""
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
    model = ours(source, part, jax.eval_shape(lambda: Vae(cfg, rngs=nnx.Rngs(0))))
    video, z = np.tanh(numbers(3, 5, height, width, 3)), numbers(4, 2, 2, 2, cfg.channels)
    mean, std = (torch.tensor(a).reshape(-1, 1, 1, 1) for a in (cfg.mean, cfg.std))
    found = jax.jit(lambda m, v: m.encode(v))(model, jnp.asarray(video))
    mu = module.encode(torch.from_numpy(video).permute(3, 0, 1, 2)[None]).latent_dist.mode()[0]
    yield Row(part, "encode", relative(found, ((mu - mean) / std).permute(1, 2, 3, 0)), 5e-6)
    found = jax.jit(lambda m, z: m.decode(z))(model, jnp.asarray(z))
    wide = torch.from_numpy(z).permute(3, 0, 1, 2) * std + mean
    want = module.decode(wide[None]).sample[0].permute(1, 2, 3, 0)
    yield Row(part, "decode", relative(found, want), 5e-6)


def scheduler(steps: int, shift: float) -> Any:
    made = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    made.set_timesteps(steps)
    return made


def solver() -> Row:
    """Ten UniPC steps over a velocity that is a formula."""
    plan, made = flow.schedule(Sampling(10, 5.0, "unipc", "diffusers")), scheduler(10, 5.0)
    x = torch.from_numpy(numbers(5, 2, 3, 4, 5))
    state = flow.solver_init(jnp.asarray(x.numpy()))
    for i, t in enumerate(made.timesteps):
        sigma = float(plan.sigmas[i])
        v = 0.3 * x + 0.5 * torch.sin(2 * x + 3 * sigma)
        x = made.step(v, t, x, return_dict=False)[0]
        velocity = 0.3 * state.x + 0.5 * jnp.sin(2 * state.x + 3 * sigma)
        x0 = flow.clean_estimate(state.x, velocity, jnp.float32(sigma))
        state = flow.solver_step(state, state.x, x0, jnp.asarray(plan.table[i]))
    return Row("solver", "UniPC, 10 steps", relative(state.x, x), 3e-6)


def sampling_run(source: Released) -> Row:
    """Three steps with guidance through all experts, the sinusoid of each code its own."""
    config, cfg, scale = source.config, source.config.dit, 4.0
    settings = Sampling(3, 5.0, "unipc", "diffusers", (scale,) * config.experts)
    plan, made = flow.plan(settings, config.boundary), scheduler(3, 5.0)
    noise = numbers(6, 2, 4, 6, cfg.out_channels)
    extra = numbers(7, 2, 4, 6, cfg.in_channels - cfg.out_channels)
    rows = numbers(8, 2, cfg.text_len, cfg.text_dim)
    models, modules = [], []
    for i in range(config.experts):
        abstract = jax.eval_shape(lambda: DiT(cfg, rngs=nnx.Rngs(0)))
        models.append(ours(source, f"experts.{i}", abstract))
        modules.append(dit_module(cfg, cfg.layers))
        theirs(source, f"experts.{i}", modules[-1], DIT_OF_DIFFUSERS)
    condition = trajectory.Condition(*(jnp.asarray(a)[None] for a in (*rows, extra)))
    keys = jax.vmap(jax.random.key)(jnp.zeros(1, jnp.uint32))
    run = jax.jit(
        lambda models: trajectory.run(
            models, plan, condition, jnp.asarray(noise)[None], keys, Probe()
        )
    )
    x = torch.from_numpy(noise).permute(3, 0, 1, 2)[None]
    beside = torch.from_numpy(extra).permute(3, 0, 1, 2)[None]
    for i, t in enumerate(made.timesteps):
        module = modules[0 if plan.high_steps is None or i < plan.high_steps else 1]
        given = torch.cat([x, beside], 1)
        v, v_negative = (
            module(given, t[None], torch.from_numpy(r)[None], return_dict=False)[0] for r in rows
        )
        x = made.step(v_negative + scale * (v - v_negative), t, x, return_dict=False)[0]
    found = run(models).latents[0, 0]
    return Row("run", "3 steps, guidance", relative(found, x[0].permute(1, 2, 3, 0)), 5e-5)
