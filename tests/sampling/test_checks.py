"""What a probe's fields and methods may be: everything else is refused before a run begins."""

import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcos import generation
from jcos.generation import generate
from jcos.loop import Runs
from jcos.sampling import trajectory
from jcos.sampling.checks import check_probe
from jcos.sampling.inside import Capture, Swap
from jcos.sampling.probes import InWorlds, Noise, Probe, SeedEnsemble, TokenEnergy, chain
from jcos.wan import Wan
from jcos.weights.checkpoint import abstract_model
from tests.models import CONFIG, FRAMES, LAYERS, STEPS, TOKENS, frame


@cache
def worlds() -> trajectory.Condition:
    """Two, as shapes."""
    one = trajectory.abstract_condition(CONFIG, (FRAMES, 4, 4))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape[1:]), a.dtype), one)


def check(probe: Any, guided: bool = False) -> Any:
    """Return what is observed in a run of three seeds."""
    sampling = CONFIG.sampling_with(guidance=(2.0,) if guided else None)
    return Runs(abstract_model(Wan, CONFIG), worlds(), probe, sampling).observed(3)


class Mute(Probe):
    layer: int
    steps: int

    def on_block(self, site, tokens):
        here = (site.layer == self.layer) & (site.step < self.steps)
        return jnp.where(here, 0.0, tokens), jnp.linalg.norm(tokens, axis=-1).mean()


def field(name: str, value: Any, **attributes: Any) -> Probe:
    """A probe with one field, which is not static."""
    annotated = {"__annotations__": {name: Any}, **attributes}
    kind: Any = type("Mine", (Probe,), annotated)
    return kind(value)


@pytest.mark.parametrize(
    ("probe", "number"),
    [
        (Mute(LAYERS, 1), "layer 3 is out of range"),
        (Mute(-1, 1), "layer -1"),
        (Mute(0, STEPS + 1), "step 5"),
        (Mute(0, -1), "step -1"),
        (field("layers", jnp.array([0, 99])), "layer 99"),
        (field("layers", (0, 99)), "layer 99"),
        (field("steps", np.array([STEPS])), "step 4"),
        (field("at_frame", FRAMES), "frame 3"),
        (field("head", 2), "head 2"),
        (field("tokens", jnp.array([TOKENS])), "token 12"),
        (field("donor_world", 2), "world 2"),
        (field("seed", 3), "seed 3"),
        (field("block", np.int64(7)), "layer 7"),
        (field("depth", 7, field_axes={"depth": "layers"}), "layer 7"),
        (field("depth", 7, field_axes={"depth": "layrs"}), "field_axes has 'layrs'"),
        (type("Fixed", (Probe,), {"layer": 7})(), "layer 7"),
        (chain(TokenEnergy(), InWorlds(Mute(9, 1), jnp.array([True, False]))), "layer 9"),
        (Capture("block", (1, 9)), "layer 9"),
        (Capture("block", (0,), jnp.array([TOKENS, 1])), "token 12"),
        (Capture("block", jnp.array([-2])), "layer -2"),
        (type("Last", (Probe,), {"slots": lambda self: jnp.array([LAYERS])})(), "layer 3"),
        (field("seeds", jnp.array([True, False])), "a mask of 2 seeds; this run has 3"),
    ],
)
def test_what_a_run_does_not_have_is_refused(probe: Probe, number: str) -> None:
    with pytest.raises((IndexError, ValueError), match=number):
        check(probe)


@pytest.mark.parametrize(
    "probe",
    [
        Mute(LAYERS - 1, STEPS),
        Mute(0, 0),
        field("steps", jnp.ones(2)),
        field("layers", True),
        field("seed", 1234, field_axes={"seed": None}),
        field("seeds", jnp.array([True, False, True])),
        field("frames", FRAMES),
        Capture("block", ()),
    ],
)
def test_what_a_run_has_is_taken(probe: Probe) -> None:
    check_probe(probe, CONFIG.dit, STEPS, (2, 3, FRAMES, 4, 4))


def test_a_number_of_a_sweep_is_refused_before_anything_runs(
    model: Wan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("this run was to be refused")

    monkeypatch.setattr(generation, "generate_worlds", never)
    condition = model.condition(frame(0), "left", FRAMES)
    probes, layers = trajectory.tree_stack([Mute(0, 1), Mute(99, 1)]), jnp.array([0, 99])
    for chunk in (None, 1):
        with pytest.raises(IndexError, match="layer 99"):
            trajectory.sweep(lambda p: generate(model, condition, probe=p), probes, chunk=chunk)
        with pytest.raises(IndexError, match="layer 99"):
            trajectory.sweep(
                lambda a: generate(model, condition, probe=Mute(a, 1)),  # type: ignore[arg-type]
                layers,
                chunk=chunk,
            )
    with pytest.raises(IndexError, match="layer 99"):
        generate(model, condition, probe=Mute(99, 1))


@pytest.mark.parametrize(
    "name", ["on_blok", "onblock", "on_Block", "on_blocks", "on_layer", "on_head"]
)
def test_a_method_that_would_never_be_called_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=rf"Mine.{name} .*is on_"):
        type("Mine", (Probe,), {name: lambda self, site, tokens: (tokens, ())})


TOLD = "float32[12, 32]"


def hook(name: str, f: Any) -> Probe:
    return type("Mine", (Probe,), {name: lambda self, site, *a: f(site, *a)})()


def fails(site: Any, x: Any) -> Any:
    raise KeyError("no such thing")


WRONG: list[tuple[str, Any, tuple[str, ...]]] = [
    ("on_block", lambda site, t: t, ("Mine.on_block", TOLD, "two things", "observation")),
    ("on_block", lambda site, t: (t, 0, 0), ("Mine.on_block", "3 things", "two")),
    ("on_block", lambda site, t: None, ("Mine.on_block", "None", TOLD)),
    ("on_block", lambda site, t: (t[:1], ()), ("float32[1, 32]", TOLD)),
    ("on_block", lambda site, t: (t.astype(jnp.bfloat16), ()), ("bfloat16[12, 32]", TOLD)),
    ("on_block", lambda site, t: (t, "seen"), ("Mine.on_block", "'seen'", "arrays")),
    ("on_block", lambda site, t: (t if site.step == 1 else 0 * t, ()), ("`if`", "jnp.where")),
    ("on_block", lambda site, t: (t * int(site.layer), ()), ("`int`",)),
    ("on_block", lambda site, t: (t, np.asarray(t)), ("numpy",)),
    ("on_latents", lambda site, x: (x, ()), ("Mine.on_latents", "float32[3, 4, 4, 12]")),
    ("on_latents", fails, ("Mine.on_latents", "KeyError", "no such thing")),
    ("on_latents", lambda site: None, ("Mine.on_latents", "TypeError", "positional")),
    ("on_estimate", lambda site, x, x0: x0, ("Mine.on_estimate", "clean estimate")),
    ("on_step", lambda site, seen: seen[0], ("Mine.on_step", "IndexError")),
    ("on_heads", lambda site, z: z, ("on_heads", "two things: the heads' outputs float32[12,")),
    ("on_mlp", lambda site, z: (z[1:], ()), ("Mine.on_mlp returned float32[11, 48]",)),
    ("on_attention", lambda site, z: (z[0], ()), ("expected queries and keys 2",)),
    ("on_input", lambda site, z: (z, "seen"), ("Mine.on_input observed 'seen'",)),
    ("slots", lambda *a: jnp.array(1), ("Mine.slots", "int32[]")),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "f", "words", "guided"),
    [*((*row, False) for row in WRONG), (*WRONG[0], True), (*WRONG[-1], True)],
)
def test_what_a_method_returns_is_told(name: str, f: Any, words: Any, guided: bool) -> None:
    probe = hook(name, f) if name != "slots" else type("Mine", (Probe,), {"slots": f})()
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        check(chain(TokenEnergy(), probe), guided)
    said = str(error.value)
    assert all(word in said for word in words), said
    assert len(said) < 600


def test_collectives_and_every_probe_of_the_package_pass() -> None:
    def mean(site: Any, x: Any, x0: Any) -> Any:
        other = jax.lax.ppermute(x0, "world", [(0, 1), (1, 0)])
        return jax.lax.pmean(other, "seed"), jax.lax.axis_index("seed")

    probe = chain(
        Noise.at_steps(STEPS, FRAMES, [1]),
        SeedEnsemble.window(STEPS, LAYERS),
        InWorlds(Swap.at_layers(STEPS, LAYERS, np.int64(TOKENS), [0]), jnp.array([True, False])),
        hook("on_estimate", mean),
        Capture("block", (0, 2), jnp.array([1])),
    )
    for guided in (False, True):
        features, seeds = jax.tree.leaves(check(probe, guided))
        assert (features.shape, seeds.shape) == ((2, 3, 1, 2, 1, 32), (2, 3, 1))
