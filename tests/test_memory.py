"""Reports of exhausted memory become one sentence."""

import jax
import jax.numpy as jnp
import pytest

from jcos.memory import Run, explained, knobs, sentence

RUN = Run(seeds=3, worlds=1, guided=True, probed=False, float32=False, devices=1)
GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 34359738368 bytes."
TPU = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.50G of 15.75G hbm."


@pytest.mark.parametrize(
    ("report", "limit", "words"),
    [
        (GPU, 139 * 2**30, "3 seeds asked a device for 32.0 GiB of its 139.0 GiB. "),
        (GPU.replace("34359738368 bytes", "32.00GiB"), None, "a device for 32.0 GiB. "),
        (TPU, None, "a device for 22.5 GiB of its 15.8 GiB. "),
        ("RESOURCE_EXHAUSTED: it is full", None, "for more memory than there is. "),
    ],
)
def test_the_sentence_says_what_was_asked_and_what_there_is(report, limit, words):
    assert words in sentence(report, "3 seeds", RUN, limit)


def test_knobs_are_those_that_this_run_has():
    assert knobs(RUN)[0].startswith("fewer than 3 seeds")
    assert not any("mesh" in knob for knob in knobs(RUN))
    many = knobs(RUN._replace(devices=8, seeds=1))
    assert [knob.split(":")[0] for knob in many[:3]] == [
        "a mesh with branch=2",
        "a mesh with a larger fsdp",
        "a mesh with a larger context",
    ]
    assert many[-1] == "a smaller or shorter video"


def test_a_real_report_is_explained():
    why = r"a petabyte asked a device for \d+\.\d GiB\. What"
    with pytest.raises(MemoryError, match=why), explained("a petabyte", RUN):
        jax.block_until_ready(jnp.ones(2**48, jnp.float32))


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), explained("nothing", RUN):
        raise ZeroDivisionError
