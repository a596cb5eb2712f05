"""Interventions inside the blocks: what they must do on a model whose answer is known."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos.generation import generate
from jcos.model.dit import DiT
from jcos.sampling import trajectory
from jcos.sampling.inside import Capture, KnockOut, Patch, Steer, Swap, difference, until
from jcos.sampling.probe import Probe
from jcos.sampling.probes import InWorlds, Noise, chain
from jcos.sampling.trace import Trace
from jcos.wan import Wan
from tests.models import CONFIG, FRAMES, LAYERS, STEPS, TOKENS, at, close, frame, randomised

DIM, HEADS = CONFIG.dit.dim, CONFIG.dit.heads
EVERY_HEAD = [(k, h) for k in range(LAYERS) for h in range(HEADS)]


def untyped(probe: Any, **fields: Any) -> Any:
    """Set fields to what the types refuse, as long as tests check these."""
    for name, value in fields.items():
        object.__setattr__(probe, name, value)
    return probe


def numbered(probe: Any) -> Any:
    return untyped(probe, tokens=jnp.arange(TOKENS))


def moved(a: Any, b: Any) -> float:
    return float(jnp.abs(a.x0 - b.x0).max())


def without(model: Wan, part: str, rows: slice) -> Wan:
    """A model in which some rows of output projections are 0, which is a removal by zero."""
    bare = jax.tree.map(lambda a: a, model)
    block = bare.experts[0].blocks
    kernel = {
        "heads": block.self_attn.o.kernel,
        "cross": block.cross_attn.o.kernel,
        "mlp": block.ffn.layers_2.kernel,
    }[part]
    kernel[...] = kernel[...].at[:, rows].set(0)
    return bare


@pytest.mark.slow
@pytest.mark.parametrize(("place", "width"), [("heads", 16), ("cross", 16), ("mlp", 1)])
def test_removal_by_zero_is_a_model_without_these_weights(
    model: Wan, condition, place: str, width: int
) -> None:
    probe = KnockOut.at(CONFIG, place, [(k, 1) for k in range(LAYERS)])
    found = generate(model, condition, probe=probe)
    close(found.x0, generate(without(model, place, slice(width, 2 * width)), condition).x0)
    assert moved(found, generate(model, condition)) > 1e-3


def test_what_enters_the_first_block_is_removed(model: Wan, condition) -> None:
    probe = chain(KnockOut.at(CONFIG, "input", [0]), Capture("input"))
    assert not generate(model, condition, probe=probe).block_obs[1].any()


def test_fractions_are_places_of_the_run() -> None:
    half = [STEPS // 2]
    assert Noise.at_steps(STEPS, FRAMES, [0.5]).mask.any(1).nonzero()[0].tolist() == half
    steered = Steer.at(CONFIG, jnp.ones(DIM), [1], when=[0.5]).weight
    assert np.argwhere(steered).tolist() == [[0, *half, 1]]
    removed = KnockOut.at(CONFIG, "block", [0.5], at_steps=[0.5]).mask
    assert np.argwhere(removed).tolist() == [[*half, LAYERS // 2, 0]]
    stored = np.zeros((1, STEPS, 1, TOKENS, DIM))
    assert Patch.of("block", stored, [0], from_step=0.5).source.tolist() == half * STEPS


@pytest.mark.slow
def test_a_sweep_of_all_heads_and_steps_is_one_program(model: Wan, condition) -> None:
    """Removed at the last step, a head leaves all earlier estimates as they are."""
    probes = [KnockOut.at(CONFIG, "heads", [pair], at_steps=[STEPS - 1]) for pair in EVERY_HEAD]
    probes.append(KnockOut.at(CONFIG, "heads", []))
    swept = trajectory.sweep(
        lambda p: generate(model, condition, probe=p).x0[0], trajectory.tree_stack(probes)
    )
    plain = generate(model, condition).x0[0]
    close(swept[-1], plain)
    close(swept[:, :-1], jnp.stack([plain[:-1]] * len(probes)))
    assert (jnp.abs(swept[:-1, -1:] - plain[None, -1:]).max((1, 2, 3, 4, 5)) > 1e-3).all()


@pytest.mark.slow
def test_what_takes_the_place_of_a_part(model: Wan, condition) -> None:
    """Seen by a probe behind: the mean over tokens, the other seed's, the other world's."""
    every, tokens = {"chosen": EVERY_HEAD}, jnp.arange(TOKENS) < 3
    capture = Capture("heads", (0,))

    def left(by: str, **options: Any) -> list[np.ndarray]:
        """What is there before and behind."""
        probe = KnockOut.at(CONFIG, "heads", by=by, **every, **options)
        seen = chain(capture, probe, capture)
        before, _, behind = generate(model, condition, (0, 1), probe=seen).block_obs
        return [np.asarray(a)[:, 0, 0] for a in (before, behind)]

    plain, mean = left("mean")
    close(mean, np.broadcast_to(plain.mean(1, keepdims=True), plain.shape))
    close(left("seed")[1], plain[::-1])
    some = left("zero", tokens=tokens)[1]
    assert not some[:, :3].any()
    close(some[:, 3:], plain[:, 3:])
    worlds = trajectory.tree_stack([condition, model.condition(frame(1), "left", FRAMES)])
    capture = Capture("block", (0,))
    swap = Swap.at_layers(STEPS, LAYERS, TOKENS, [0], receivers=(True, True))
    for probe in (swap, KnockOut.at(CONFIG, "block", [0], by="world", at_steps=[0])):
        plain, _, both = generate(model, worlds, probe=chain(capture, probe, capture)).block_obs
        close(both[:, 0, 0, 0], plain[::-1, 0, 0, 0])


@pytest.mark.slow
def test_a_patch_of_a_runs_own_values_changes_nothing_and_of_anothers_is_that_run(
    model: Wan, condition
) -> None:
    """At all places together, and at each."""
    every = tuple(range(LAYERS))
    layers = dict.fromkeys(("heads", "cross", "mlp", "block"), every) | {"input": ()}
    tail, other = jnp.arange(TOKENS - 4, TOKENS), model.condition(frame(1), "left", FRAMES)

    def patches(trace: Trace, **options: Any) -> list[Patch]:
        rows = zip(layers.items(), trace.block_obs, strict=True)
        return [Patch.of(place, seen, chosen, **options) for (place, chosen), seen in rows]

    capture = chain(*(Capture(place, chosen) for place, chosen in layers.items()))
    own, donor = (generate(model, c, (0, 1), probe=capture) for c in (condition, other))
    close(generate(model, condition, (0, 1), probe=chain(*patches(own))).x0, own.x0)
    here, off = (patches(donor, at_steps=at) for at in ([0], []))
    for i, place in enumerate(layers):
        moved_to = chain(*off[:i], here[i], *off[i + 1 :])
        found = generate(model, condition, (0, 1), probe=moved_to)
        assert moved(found, own) > 1e-3, place
        if place in ("input", "block"):  # then all of the first step is the donor's, but for x
            close(found.x0[:, 0], donor.x0[:, 0])
    capture = chain(*(Capture(place, chosen, tail) for place, chosen in layers.items()))
    back = chain(*patches(generate(model, condition, probe=capture), tokens=tail))
    close(generate(model, condition, (0, 1), probe=back).x0[:1], own.x0[:1])


@pytest.mark.slow
def test_a_stored_trace_of_another_kind_of_run_is_refused(
    model: Wan, condition, tmp_path, monkeypatch
) -> None:
    """Its model, grid and step plan are compared, where they are known; the folder of a trace is
    the trace."""
    capture, layers = Capture("block", (1,)), (1,)
    own = generate(model, condition, probe=capture)
    own.save(tmp_path / "own", model)
    own.save(tmp_path / "other", randomised(CONFIG, 7))
    wide = model.condition(np.zeros((4, 16, 3), np.uint8), "left", FRAMES)
    steep = dataclasses.replace(CONFIG.sampling, shift=5.0)
    whole = generate(model, condition, probe=Patch.of("block", tmp_path / "own", layers))
    close(whole.x0, own.x0)
    others = {
        "another model": tmp_path / "other",
        "another grid: 3×2×8 latent cells, this run has 3×4×4": generate(
            model, wide, probe=capture
        ),
        "another step plan: its noise levels": generate(
            model, condition, probe=capture, sampling=steep
        ),
    }
    few = Patch.of("block", others["another step plan: its noise levels"], layers, steps=STEPS)
    assert moved(generate(model, condition, probe=few), own) > 1e-3
    several = generate(model, condition, probe=chain(capture, capture))
    monkeypatch.setattr(DiT, "__call__", None)  # nothing may run
    for words, donor in others.items():
        with pytest.raises(ValueError, match=words):
            generate(model, condition, probe=chain(Patch.of("block", donor, layers)))
    with pytest.raises(ValueError, match="the trace is of several probes"):
        Patch.of("block", several, layers)


@pytest.mark.slow
def test_numbers_of_tokens_are_an_array_or_a_sequence(model: Wan, condition) -> None:
    """Patched back, they leave the run as it is."""
    kinds = (((1,), jnp.array([0, 5])), ([1], (0, 5)), (jnp.array([1]), [0, 5]))
    probes = [Capture("block", *kind) for kind in kinds]
    seen = generate(model, condition, probe=chain(Capture("block", (1,)), *probes))
    every, *some = seen.block_obs
    for found in some:
        np.testing.assert_array_equal(found, every[:, :, :, np.array([0, 5])])
    back = Patch.of("block", some[0], (1,), tokens=(0, 5))
    close(generate(model, condition, probe=back).x0, seen.x0)


@pytest.mark.slow
def test_a_patched_subspace_leaves_the_rest(model: Wan, condition) -> None:
    """Two halves of an orthonormal basis, one after the other, are the whole patch."""
    other = model.condition(frame(1), "right", FRAMES)
    donor = generate(model, other, probe=Capture("block", (1,))).block_obs
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (DIM, DIM)))[0]
    halves = [Patch.of("block", donor, (1,), basis=b) for b in jnp.split(basis, 2)]
    whole = generate(model, condition, probe=Patch.of("block", donor, (1,))).x0
    close(generate(model, condition, probe=chain(*halves)).x0, whole, 1e-4)
    one = generate(model, condition, probe=halves[0]).x0
    assert float(jnp.abs(one - whole).max()) > 1e-3
    late = Patch.of("block", donor, (1,), at_steps=[2], from_step=0)
    found = generate(model, condition, probe=chain(late, Capture("block", (1,)))).block_obs[1]
    close(found[0, 2, 0], donor[0, 0, 0])


@pytest.mark.slow
def test_steering_adds_a_direction_where_and_while_it_says(model: Wan, condition) -> None:
    direction = jnp.linspace(-1, 1, DIM)
    when = until([1, np.nan], STEPS)
    np.testing.assert_array_equal(when.sum(1), [1, STEPS])
    steer = Steer.at(CONFIG, direction, [1], when=when, strength=2.0)
    seen = generate(
        model, condition, (0, 1), probe=chain(Capture("block", (1,)), steer, Capture("block", (1,)))
    ).block_obs
    added = (seen[2] - seen[0])[:, :, 0]
    for seed, step in np.ndindex(2, STEPS):
        want = 2 * direction * bool(when[seed, step])
        close(added[seed, step], jnp.broadcast_to(want, (TOKENS, DIM)), 1e-4 if want.any() else 1)
    watch, few = Capture("block", (0, 1)), steer.replace(tokens=jnp.arange(TOKENS) == 5)
    seen = generate(model, condition, (0, 1), probe=chain(watch, few, watch)).block_obs
    added = (seen[2] - seen[0])[1, 2]  # of the seed that is steered at every step
    close(added, jnp.zeros((2, TOKENS, DIM)).at[1, 5].set(2 * direction), 1e-4)
    np.testing.assert_array_equal(difference(np.ones((2, 3, DIM)), np.zeros((1, DIM))), 1)


@pytest.mark.slow
def test_a_block_that_is_skipped_is_not_there(model: Wan, condition) -> None:
    shallow = jax.tree.map(lambda a: a, model)
    for name, leaf in (("o", "self_attn"), ("o", "cross_attn"), ("layers_2", "ffn")):
        layer = getattr(getattr(shallow.experts[0].blocks, leaf), name)
        for weights in (layer.kernel, layer.bias):
            weights[...] = weights[...].at[1].set(0)
    skip = KnockOut.at(CONFIG, "update", [1])
    skipped = generate(model, condition, probe=chain(skip, Capture("update", (0, 1))))
    close(skipped.x0, generate(shallow, condition).x0)
    assert not skipped.block_obs[1][:, :, 1].any()
    assert skipped.block_obs[1][:, :, 0].all()
    off = generate(model, condition, probe=skip.replace(mask=jnp.zeros_like(skip.mask)))
    np.testing.assert_array_equal(off.x0, generate(model, condition, probe=Capture("block")).x0)


def other_run(rows: int = TOKENS, dim: int = DIM) -> Patch:
    return Patch.of("block", np.zeros((1, STEPS, 1, rows, dim)), (0,))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KnockOut.at(CONFIG, "heads", [(0, 2)]), "head 2 is out of range: .* 0 to 1"),
        (lambda: KnockOut.at(CONFIG, "heads", [(3, 0)]), "layer 3 is out of range"),
        (lambda: KnockOut.at(CONFIG, "mlp", [(0, 48)]), "neuron 48 is out of range"),
        (lambda: KnockOut.at(CONFIG, "head", [(0, 0)]), "no place is called 'head'"),
        (lambda: KnockOut.at(CONFIG, "heads", [], by="none"), "by is 'none'; there are zero"),
        (lambda: KnockOut.at(CONFIG, "heads", [], by="seed"), "another seed, but there is one"),
        (lambda: KnockOut.at(CONFIG, "input", [1]), "layer 1 is out of range"),
        (lambda: numbered(KnockOut.at(CONFIG, "block", [0])), "KnockOut.tokens .* a mask"),
        (
            lambda: untyped(InWorlds(Probe(), jnp.ones(1, bool)), worlds=jnp.zeros(1, int)),
            "InWorlds.worlds .* a mask",
        ),
        (lambda: numbered(Steer.at(CONFIG, jnp.ones(DIM), [0])), "Steer.tokens .* a mask"),
        (lambda: KnockOut("heads", jnp.zeros((STEPS, LAYERS, 3), bool)), "made for 3 heads"),
        (lambda: other_run(rows=11), "holds 11×32 .* has 12×32: .* another model or grid"),
        (lambda: other_run(dim=16), "holds 12×16 .* another model or grid"),
        (lambda: Patch.of("block", np.zeros((3, STEPS, 1, TOKENS, DIM)), (0,)), "holds 3 seeds"),
        (lambda: Patch.of("block", np.zeros((1, 2, 1, 1, 1)), (0,), steps=4), "stored step 2"),
        (lambda: Patch.of("block", np.zeros((1, 2, 1, 1, 1)), (0, 1)), "1 layers are stored"),
        (lambda: Steer.at(CONFIG, jnp.ones(5), [0]), r"shape \(5,\); .* 32 channels"),
        (lambda: Steer.at(CONFIG, jnp.ones(DIM), [7]), "layer 7"),
        (lambda: KnockOut.at(CONFIG, "update", [0], at_steps=[4]), "step 4"),
        (lambda: Patch.of("update", np.zeros((1, STEPS, 1, TOKENS, DIM)), (0,)), "patch .block."),
        (lambda: difference(np.ones((1, 2)), np.ones((1, 3))), "2 and 3 channels"),
        (lambda: difference(np.ones((1, 2)), np.ones((0, 2))), "have no mean"),
        (lambda: Capture("heads", (0.5,)), "Capture.layers holds float32 values"),
        (lambda: Capture("mlp", (0,), jnp.arange(TOKENS) < 3), "Capture.tokens holds bool values"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    model: Wan, condition, make: Any, words: str, monkeypatch
) -> None:
    monkeypatch.setattr(trajectory, "joined", None)  # no program is made
    with pytest.raises((ValueError, IndexError), match=words) as error:
        generate(model, condition, probe=make())
    assert len(str(error.value)) < 250


class Halved(Probe):
    """Of another probe, at every second step."""

    probe: Probe

    def on_heads(self, site, z):
        acted, observation = self.probe.on_heads(site, z)
        return jnp.where(site.step % 2 == 0, acted, z), observation


class Doubled(KnockOut):
    """Its own method is called in place of the knock-out."""

    def on_heads(self, site, z):
        return 2 * z, ()


def test_probes_are_wrapped_and_overridden_by_their_methods() -> None:
    knock, z = KnockOut.at(CONFIG, "heads", [(0, 1)]), jnp.ones((3, CONFIG.dit.heads, 2))
    for probe in (knock, chain(knock), chain(chain(knock), knock)):
        halved = Halved(probe)
        assert (halved.sites(), halved.changes(), halved.made_for()) == (("heads",), [], ())
        here = (at(step, 0.5)._replace(layer=jnp.int32(0)) for step in (0, 1))
        acted, same = (halved.call("on_heads", site, z)[0] for site in here)
        np.testing.assert_array_equal(acted[:, 1], 0)
        np.testing.assert_array_equal(same, z)
    own = Doubled(knock.place, knock.mask)
    np.testing.assert_array_equal(chain(own).call("on_heads", at(0, 0.5), z)[0], 2 * z)
