"""Attribution: the gradient is the patch's own derivative, and its memory is flat in the steps."""

from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jcos
from jcos.config import Sampling
from jcos.lab import attribution
from jcos.lab.attribution import attribute, jacobian, patch_effects
from jcos.loop import Runs
from jcos.wan import Wan
from tests.lab.test_lens import condition
from tests.test_wan import released

SHORT = Sampling(steps=2, shift=3.0)
PLACES = ("block", "heads", "cross", "mlp")
UNITS = {"block": 5, "heads": 2, "cross": 2, "mlp": 5}


def metric(x: jax.Array) -> jax.Array:
    """Not linear, and of all frames."""
    return jnp.mean(jnp.sin(3 * x) * jnp.linspace(0, 1, x.size).reshape(x.shape))


@pytest.mark.slow
def test_gradients_are_the_slope_of_the_exact_patch(small_model: Wan, monkeypatch) -> None:
    """Patches by a hundredth, each way, change the metric by a fiftieth of the estimate. One step
    knows nothing of what follows: the last step's gradients alone are those through the run."""
    a, b = condition(small_model, 3), condition(small_model, 4)
    cells = [(p, s, k, u) for p in PLACES for s in (0, 1) for k in (0, 1) for u in range(UNITS[p])]
    values, slopes, effects = attribution._values, {}, {}
    hows: dict[str, Any] = {
        name: {"other": b, "sampling": SHORT, "through": name} for name in ("run", "step")
    }
    for through, how in hows.items():
        slopes[through] = attribute(small_model, a, metric, PLACES, **how)
        effects[through] = []
    for little in (0.01, -0.01):

        def slightly(run, masks, *rest, little=little):
            return values(run, jax.tree.map(lambda m: little * m, masks), *rest)

        monkeypatch.setattr(attribution, "_values", slightly)
        for through, how in hows.items():
            effects[through].append(patch_effects(small_model, a, metric, cells, **how)[0])
    for through, found in slopes.items():
        assert {p: s.shape[1:] for p, s in found.items()} == {p: (2, 2, UNITS[p]) for p in PLACES}
        small, first = (effects[through][0] - effects[through][1]) / 0.02, 0
        for place in PLACES:
            want = found[place].reshape(-1)
            assert np.abs(want).max() > 1e-5
            near = {"atol": 0.03 * np.abs(want).max()}
            np.testing.assert_allclose(small[first : first + len(want)], want, **near)
            first += len(want)
    step, run = (slopes[through]["block"][0] for through in ("step", "run"))
    np.testing.assert_allclose(step[1], run[1], rtol=1e-3, atol=1e-6)
    assert np.abs(step[0] - run[0]).max() > 0.1 * np.abs(run[0]).max()


@pytest.mark.slow
def test_each_seed_has_its_own_noise_and_a_fraction_is_of_the_run(small_model: Wan) -> None:
    """One seed needs no list."""
    given, cells = condition(small_model), [("block", 0.5, 1.0)]
    noise = jax.random.normal(jax.random.key(0), (2, *given.grid, 12))
    how: dict[str, Any] = {"sampling": Sampling(steps=1, shift=3.0)}
    both = patch_effects(small_model, given, metric, cells, seeds=(3, 4), noise=noise, **how)
    cells = [("block", 0, 1)]
    alone = patch_effects(small_model, given, metric, cells, seeds=4, noise=noise[1:], **how)
    np.testing.assert_allclose(both[1], alone[0], atol=1e-6)
    assert abs(both[0, 0] - both[1, 0]) > 1e-4


@pytest.mark.slow
def test_a_patch_of_everything_is_the_other_run(small_model: Wan) -> None:
    """After the last block in the last of the steps that Euler ends with; nothing where both runs
    are the same."""
    a, b = condition(small_model, 3), condition(small_model, 4)
    last = [("block", 0, 1, None)]
    one = Sampling(steps=1, shift=3.0)
    effect = patch_effects(small_model, a, metric, last, other=b, sampling=one)
    values = [metric(jcos.generate(small_model, c, sampling=one).latents[0]) for c in (a, b)]
    np.testing.assert_allclose(effect[0, 0], values[1] - values[0], atol=1e-5)
    assert abs(values[1] - values[0]) > 1e-3
    same = attribute(small_model, a, metric, other=a, sampling=SHORT)["block"]
    np.testing.assert_allclose(same, 0, atol=1e-6)


@pytest.mark.slow
def test_memory_is_flat_in_the_steps(small_model: Wan) -> None:
    """A step more adds one latent to the gradient's working memory, as the compiler counts it."""
    given, function = condition(small_model), jax.tree_util.Partial(metric)

    def held(steps: int) -> int:
        runs = Runs(small_model, given, None, Sampling(steps=steps, shift=3.0))
        masks = {"block": jnp.zeros((steps, 2, 5))}
        (one,) = attribution._each(runs, [0], None, function)
        lowered = attribution._gradients.lower(one, masks, "run")
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    few, many = held(5), held(20)
    latent = 4 * 5 * 10 * 10 * 12
    assert many - few < 15 * 1.1 * latent
    assert few > 10 * latent


@pytest.mark.slow
def test_the_jacobian_of_a_known_model_is_known(small_model: Wan) -> None:
    """A head that says nothing leaves x̂0 = x: each value moves as far as it is moved. A
    frame that is given stays where it is."""
    deaf = jax.tree.map(lambda a: a, small_model)
    deaf.experts[0].head.head.kernel[...] *= 0
    deaf.experts[0].head.head.bias[...] *= 0
    found = jacobian(deaf, condition(deaf), directions=64, sampling=SHORT)
    assert found.shape == (1, 2, 5, 10, 10, 12)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(jnp.square(found))), 1, atol=0.02)
    given = jacobian(small_model, condition(small_model), directions=64, sampling=SHORT)
    assert np.isfinite(given).all()
    assert np.abs(given - 1).mean() > 0.05
    pinned = released("ti2v")
    picture = np.full((64, 64, 3), 90, np.uint8)
    text = np.random.default_rng(0).normal(size=(2, 3, pinned.config.dit.text_dim))
    clip = pinned.condition(picture, text[0], 5, negative=text[1])
    short = Sampling(steps=1, guidance=None)
    moved = jacobian(pinned, clip, directions=1, sampling=short)
    assert not moved[:, :, 0].any()
    assert moved[:, :, 1].all()


def test_bad_input_is_refused(small_model: Wan, monkeypatch) -> None:
    given = condition(small_model)
    with pytest.raises(ValueError, match=r"returns float32\[5, 10, 10, 12\]; it has to be one"):
        attribute(small_model, given, lambda x: x)
    with pytest.raises(ValueError, match="there is no place 'attn'"):
        attribute(small_model, given, metric, ("attn",))  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="head 2 is out of range: there are heads 0 to 1"):
        patch_effects(small_model, given, metric, [("heads", 0, 0, 2)])
    with pytest.raises(IndexError, match="layer 2 is out of range"):
        patch_effects(small_model, given, metric, [("block", 0, 2)])
    wrong: list[Any] = [[], [("block", 0)], [("block", 0, 0, 0, 0)]]
    for cells in wrong:
        with pytest.raises(ValueError, match="cells are"):
            patch_effects(small_model, given, metric, cells)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as of users
    calls: list[Any] = [(attribute, ("block",)), (patch_effects, [("block", 0, 0)])]
    for function, what in calls:
        with pytest.raises(ValueError, match="through is 'steps'"):
            function(small_model, given, metric, what, through="steps")
    with pytest.raises(ValueError, match="directions is 0"):
        jacobian(small_model, given, directions=0)
    with pytest.raises(ValueError, match="there are no seeds"):
        attribute(small_model, given, metric, seeds=())
    with pytest.raises(ValueError, match="2 seed"):
        attribute(small_model, given, metric, seeds=(0, 1), noise=jnp.zeros((1, 5, 10, 10, 12)))
