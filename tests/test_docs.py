"""The examples of the documentation run as they stand, one after the other."""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import jcos
from jcos.experiments.clips import EXAMPLE
from jcos.wan import Wan
from tests.conftest import ROOT, optimized

PROBES = ROOT / "docs" / "probes.md"
SEARCH = ROOT / "docs" / "search.md"
INSIDE = ROOT / "docs" / "inside.md"


def words(text: str) -> Iterator[tuple[int, str]]:
    """The number of words in every sentence outside tables and programs; a code span is one, and so
    is a number with its interval."""
    text = re.sub(r"```.*?```|<!--.*?-->", "\n\n", text, flags=re.DOTALL)
    for what, plain in (
        (r"`[^`]+`", "code"),
        (r"\[([^]]*)\]\([^)]*\)", r"\1"),
        (r"[\d.,]+ \[[^]]*\]", "1"),
    ):
        text = re.sub(what, plain, text)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|#>]|\d+\.)\s)", text):
        for sentence in re.split(r"(?<=[.!?])[*)]*\s+", block.strip()):
            if not block.startswith(("|", "    ")):
                yield len(re.findall(r"\S*\w\S*", sentence)), sentence


def test_sentences_are_short() -> None:
    """At most 35 words, in pages as they are made."""
    pages = {ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")}
    pages -= {*ROOT.glob("docs/*.in.md")}
    assert not [(p.name, s) for p in pages for n, s in words(p.read_text()) if n > 35]


@pytest.mark.slow
def test_the_examples_of_the_page_on_probes_run(small_model: Wan, monkeypatch) -> None:
    monkeypatch.setattr(jcos, "load", lambda: small_model)
    blocks = re.findall(r"```python\n(.*?)```", PROBES.read_text(), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, str(PROBES), "exec"), names)
    steps = small_model.config.sampling.steps
    assert names["traces"].x0.shape == (steps, 1, steps, 5, 10, 10, 12)
    assert names["videos"].shape == (steps, 1, 5, 20, 20, 3)
    assert names["runs"].state.seeds in ((0,), (1,), (2,), (3,))
    assert names["video"].shape == (5, 20, 20, 3)
    assert names["trace"].latents.shape == (2, 1, 5, 10, 10, 12)


@pytest.mark.slow
def test_the_examples_of_the_page_on_search_run(small_model: Wan, monkeypatch) -> None:
    monkeypatch.setattr(jcos, "load", lambda: small_model)
    blocks = re.findall(r"```python\n(.*?)```", SEARCH.read_text(), re.DOTALL)
    assert len(blocks) == 4
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 5, 4))
    solved = scores[..., -1] + rng.normal(size=(6, 5)) > 0
    names: dict[str, Any] = {"__name__": "docs", "scores": scores, "solved": solved}
    methods = []
    for block in blocks:
        exec(compile(block, str(SEARCH), "exec"), names)
        methods.append(names["method"])
    known = [names[name].known for name in ("condition", "again", "after")]
    assert [k if k is None else len(k) for k in known] == [2, 3, None]
    given, made = names["result"].latents[:3], names["trace"]
    np.testing.assert_array_equal(made.x0[0, :, :3], np.stack([given] * 4))
    np.testing.assert_allclose(made.latents[0, :3], given, atol=1e-4)
    assert float(np.abs(made.latents[0, 3:] - names["result"].latents[3:]).max()) > 1e-3
    assert small_model.config.sampling.steps == 4  # after three of them one seed is left
    assert names["result"].cost.forwards.tolist() == [4 * 3 + 1]
    assert methods[1].rows[0].keep == 4
    assert methods[2].seeds == 1


@pytest.mark.slow
def test_the_programs_of_the_page_on_the_inside_of_blocks_do_what_they_say() -> None:
    """On the shipped model: heads cost something, a patch is the donor's run, a direction on the
    tokens of a route makes runs take it, and one of all tokens turns nothing, though it moves the
    run."""
    blocks = re.findall(r"```python\n(.*?)```", INSIDE.read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "docs"}
    with optimized():
        for block in blocks[:4]:
            exec(compile(block, str(INSIDE), "exec"), names)
    assert names["scores"].shape == (25, 4)
    assert names["lost"].shape == (6, 4)
    assert names["lost"].max() > 0.1
    own, donor = names["way"]
    assert abs(own) < 1e-3
    assert donor > 0.3
    plain, steered, noise, turned = np.array(names["taken"])
    assert plain[0] > 0.9
    assert plain[1:].max() < 0.1
    assert steered.min() > 0.9
    assert np.abs(noise - plain).max() < 0.1
    assert turned.max() < 0.1
    assert abs(names["turned"]) < 0.01
    assert np.abs(names["steered"] - names["own"].latents).max() > 1e-4


@pytest.mark.slow
def test_the_lens_and_the_attribution_of_the_page_run(small_model: Wan, monkeypatch) -> None:
    monkeypatch.setattr(jcos, "load", lambda: small_model)
    blocks = re.findall(r"```python\n(.*?)```", INSIDE.read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "docs"}
    for block in blocks[4:]:
        exec(compile(block, str(INSIDE), "exec"), names)
    away = names["away"]
    assert away.shape == (4, 2)
    assert (away[:, 0] > 0.01).all()
    assert not away[:, -1].any()
    assert names["videos"].shape == (2, 5, 20, 20, 3)
    assert {place: a.shape[1:] for place, a in names["scores"].items()} == {
        **dict.fromkeys(("heads", "cross"), (4, 2, 2)),
        **dict.fromkeys(("mlp", "block"), (4, 2, 5)),
    }
    estimate = names["scores"]["heads"][0, names["step"], names["layer"], names["head"]]
    exact = names["exact"][0, 0]
    assert 0.3 < estimate / exact < 3


def test_the_file_of_clips_of_the_page_is_the_one_that_is_written() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "wan.md").read_text(), re.DOTALL)
    assert json.loads(block) == EXAMPLE
