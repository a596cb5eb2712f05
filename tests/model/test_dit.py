"""The transformer: equal to PyTorch block by block, and the laws of its implementation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jcos.config import FLOAT32, OFFICIAL
from jcos.devices import mesh
from jcos.model.dit import Block, DiT, Linear
from jcos.model.layers import rope_angles, rotate, time_features
from jcos.variants import VARIANTS
from jcos.weights.checkpoint import leaves, with_leaves
from jcos.weights.names import DIT, place
from tests.conftest import GOLDEN, load_golden, parameter_count
from tests.models import original_dit, relative, rms

# golden file -> weights it was made with
CASES = {
    "t2v_a": "t2v",
    "t2v_b": "t2v",
    "t2v_c": "t2v",
    "i2v_high_a": "i2v_high",
    "i2v_low_a": "i2v_low",
    "ti2v_a": "ti2v",
    "ti2v_b": "ti2v",
    "ti2v_c": "ti2v",
}
CLIPS = [(name, i) for name in CASES for i in range(2 if name == "t2v_b" else 1)]


def inputs(arrays: dict[str, np.ndarray], i: int) -> tuple[jax.Array, jax.Array, jax.Array, int]:
    """Latents (channels last), timestep(s), prompt and number of tokens of clip i."""
    x = arrays[f"in.x_{i}"]
    if f"in.y_{i}" in arrays:
        x = np.concatenate([x, arrays[f"in.y_{i}"]])
    x = np.moveaxis(x, 0, -1)
    count = x[..., 0].size // 4
    t = arrays["in.t"]
    t = np.float32(t[0]) if t.ndim == 1 else t[i, :count]
    return jnp.asarray(x), jnp.asarray(t), jnp.asarray(arrays[f"in.context_{i}"]), count


def keep_tokens(layer, tokens):
    del layer
    return tokens, tokens


@jax.jit
def played(model: DiT, latents: jax.Array, t: jax.Array, context: jax.Array):
    velocity, observed = model(latents, t, context, sites={"block": keep_tokens})
    return velocity, observed["block"]


def forward(*arguments) -> tuple[np.ndarray, np.ndarray]:
    """The velocity, and the tokens behind every block."""
    return jax.device_get(played(*arguments))


def one_clip(weights: str = "t2v", name: str = "t2v_a"):
    model = original_dit(weights)
    latents, t, context, _ = inputs(load_golden(f"dit/{name}"), 0)
    return model, latents, t, context


# ---- equal to PyTorch


@pytest.mark.slow
@pytest.mark.parametrize(("name", "i"), CLIPS)
def test_velocity_and_every_block_equal_the_original_dit(golden, name, i):
    """Clips that the original padded to a common length are given to ours without padding."""
    arrays = golden(f"dit/{name}")
    latents, t, context, count = inputs(arrays, i)
    assert (count < arrays["trace.block_00"].shape[1]) == name.endswith("_b")  # those are padded
    velocity, blocks = forward(original_dit(CASES[name]), latents, t, context)
    assert velocity.dtype == jnp.float32
    assert relative(np.moveaxis(velocity, -1, 0), arrays[f"out.{i}"]) <= 2e-6
    assert f"trace.block_{len(blocks):02d}" not in arrays
    for layer, tokens in enumerate(blocks):
        assert relative(tokens, arrays[f"trace.block_{layer:02d}"][i, :count]) <= 2e-6


@pytest.mark.slow
def test_a_clean_first_frame_equals_the_original_dit(golden):
    """Two timesteps as two rows of the embedding, without an array of six rows per token."""
    arrays, model = golden("dit/ti2v_a"), original_dit("ti2v")
    latents, t, context, count = inputs(arrays, 0)

    def by_row(model: DiT, latents, t, context):
        return model(latents, t.max(), context, clean=t == 0)[0]

    velocity = jax.jit(by_row)(model, latents, t, context)
    assert relative(np.moveaxis(velocity, -1, 0), arrays["out.0"]) <= 2e-6
    shapes = str(jax.make_jaxpr(by_row)(model, latents, t, context))
    assert f"[{count},6,{model.cfg.dim}]" not in shapes
    assert f"[{count},{model.cfg.dim}]" in shapes


def drawn(number: int, shape: tuple[int, ...], scale: float, mean: float = 0.0) -> np.ndarray:
    """How the weights and inputs of `dit/a14b_block` were made: in float64, a few at a time."""
    random, made = np.random.RandomState(1000 + number), np.empty(shape, np.float32)
    for some in np.split(made.reshape(-1), range(1 << 16, made.size, 1 << 16)):
        some[:] = mean + scale * random.standard_normal(some.size)
    return made


@pytest.mark.slow
def test_a_block_of_true_width_equals_the_original_dit(golden):
    """A14B's 351 million weights of a block; to 2e-5 at most and 2e-6 in root mean square."""
    config = VARIANTS["wan2.2-i2v-a14b"]().dit
    dim, ffn_dim = config.dim, config.ffn_dim
    norm, bias = (0.2, 1.0), (0.1, 0.0)
    made: dict[str, tuple[tuple[int, ...], float, float]] = {"modulation": ((1, 6, dim), 0.25, 0.0)}
    for kind in ("self_attn", "cross_attn"):
        for part in "qkvo":
            made[f"{kind}.{part}.weight"] = ((dim, dim), dim**-0.5, 0.0)
            made[f"{kind}.{part}.bias"] = ((dim,), *bias)
        made |= {f"{kind}.{part}.weight": ((dim,), *norm) for part in ("norm_q", "norm_k")}
    made |= {"norm3.weight": ((dim,), *norm), "norm3.bias": ((dim,), *bias)}
    for layer, n_out, n_in in ((0, ffn_dim, dim), (2, dim, ffn_dim)):
        made[f"ffn.{layer}.weight"] = ((n_out, n_in), n_in**-0.5, 0.0)
        made[f"ffn.{layer}.bias"] = ((n_out,), *bias)
    names = [f"blocks.0.{name}" for name in made]
    how = dict(zip(names, enumerate(made.values()), strict=True))
    placed, _ = place({name: shape for name, (_, (shape, *_)) in how.items()}, DIT)

    def read(name: str) -> np.ndarray:
        number, (shape, scale, mean) = how[name]
        return drawn(number, shape, scale, mean)

    block = with_leaves(
        jax.eval_shape(lambda: Block(config, FLOAT32, nnx.Rngs(0))),
        {
            path.removeprefix("blocks."): leaf.build(read, np.dtype(np.float32))[0]
            for path, leaf in placed.items()
        },
    )
    tokens, context = drawn(900, (24, dim), 1.0), drawn(902, (32, dim), 1.0)
    time = drawn(901, (24, 6, dim), 0.5)[[0] * 8 + [8] * 16]

    @jax.jit
    def run(block: Block, tokens, time, context):
        return block(tokens, time, context, rope_angles((2, 3, 4), config.head_dim, 10000.0))

    found = run(block, tokens, time, context)[::2]
    want = golden("dit/a14b_block")["out_tokens_0_2_4"]
    assert np.abs(found - want).max() <= 2e-5
    assert rms(found - want) <= 2e-6 * rms(want)


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(GOLDEN.glob("dit/rope_hd*")), ids=lambda p: p.stem)
def test_rotary_positions_equal_the_original_dit(golden, file):
    arrays = golden(f"dit/{file.stem}")
    frames, height, width = arrays["grid"][0].tolist()
    count = frames * height * width
    grid, channels = (frames, height, width), arrays["x"].shape[-1]
    rotated = jax.jit(lambda x: rotate(x, rope_angles(grid, channels, 10000.0)))(
        arrays["x"][0, :count]
    )
    assert relative(rotated, arrays["out"][0, :count]) <= 1e-6


def test_time_features_equal_the_original_dit(golden):
    arrays = golden("dit/sinusoid_256")
    features = jax.jit(lambda t: time_features(t, 256))(arrays["t"])
    assert np.abs(features - arrays["emb"]).max() <= 1e-6


# ---- laws


@pytest.mark.slow
def test_gradients_exist_and_recomputation_does_not_change_them():
    model, latents, t, context = one_clip()

    def loss(model: DiT, latents, remat: bool):
        velocity, _ = model(latents, t, context, remat=remat)
        return jnp.mean(jnp.square(velocity))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnames="remat")
    (plain, plain_x), (remat, remat_x) = (gradient(model, latents, remat=r) for r in (False, True))
    assert leaves(plain).keys() == leaves(model).keys()
    assert relative(remat_x, plain_x) <= 1e-5
    for name, value in leaves(plain).items():
        assert np.isfinite(value).all(), name
        assert np.abs(value).max() > 0, name
        assert relative(leaves(remat)[name], np.asarray(value)) <= 1e-5, name


NARROW = dataclasses.replace(OFFICIAL, residual="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "numerics", "residual", "bound"),
    [
        ("t2v_a", OFFICIAL, "float32", 8e-3),
        ("ti2v_a", OFFICIAL, "float32", 8e-3),
        ("t2v_a", NARROW, "bfloat16", 2e-2),
    ],
)
def test_bfloat16_stays_near_float32(golden, name, numerics, residual, bound):
    """Matrix products in bfloat16, as under the original's autocast; the velocity is float32."""
    latents, t, context, _ = inputs(golden(f"dit/{name}"), 0)
    exact, _ = forward(original_dit(CASES[name]), latents, t, context)
    velocity, blocks = forward(original_dit(CASES[name], numerics), latents, t, context)
    assert (velocity.dtype, blocks.dtype) == ("float32", residual)
    assert 1e-4 < rms(velocity - exact) / rms(exact) <= bound


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "roundings"), [("float32", 1), ("bfloat16", 2)])
def test_a_linear_layer_for_a_gpu_rounds_at_most_once_more(monkeypatch, dtype, roundings):
    """There the bias is left to cuBLAS, which adds it before it rounds; XLA's own code does not."""
    layer = Linear(64, 48, dtype, nnx.Rngs(0))
    random = np.random.default_rng(1)
    layer.bias[...] = jnp.asarray(random.standard_normal(48), layer.dtype)
    x = jnp.asarray(random.standard_normal((30, 64)), layer.dtype)
    here = np.asarray(layer(x), np.float64)
    monkeypatch.setattr(mesh, "platform", lambda: "gpu")
    there = np.asarray(layer(x), np.float64)
    exact = np.asarray(x, np.float64) @ np.asarray(layer.kernel[...], np.float64)
    largest = np.maximum(np.abs(exact), np.abs(exact + np.asarray(layer.bias[...], np.float64)))
    one = float(jnp.finfo(layer.dtype).eps) * largest + 1e-6
    assert (np.abs(there - here) <= roundings * one).all()


def test_weights_are_arguments_of_the_program_not_constants_in_it():
    """The 14B model is lowered from shapes alone, to a program smaller than one of its matrices."""
    config = VARIANTS["wan2.2-i2v-a14b"]().dit
    model = jax.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0)))
    assert parameter_count(model) > 14e9
    shape = jax.ShapeDtypeStruct
    given = (
        shape((3, 8, 8, config.in_channels), jnp.float32),
        shape((), jnp.float32),
        shape((5, config.text_dim), jnp.float32),
    )
    program = jax.jit(lambda m, *a: m(*a)).lower(model, *given)
    assert len(program.as_text()) < 5e6  # of which 2e6 are the table of time features
