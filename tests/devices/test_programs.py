"""Programs that are kept in a folder are found there again, that of the sampler among them."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jcos.devices import programs
from jcos.generation import generate
from jcos.loop import _advance
from tests.conftest import optimized

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_enable_xla_caches",
)


@pytest.fixture
def events() -> Iterator[list[str]]:
    """What jax says of its cache; afterwards it is where it was."""
    seen: list[str] = []
    before = {name: getattr(jax.config, name) for name in OPTIONS}

    def listen(event: str, **_: object) -> None:
        seen.append(event)

    jax.monitoring.register_event_listener(listen)
    yield seen
    jax.monitoring.unregister_event_listener(listen)
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.slow
def test_a_step_is_compiled_once_for_all_processes(small_model, tmp_path, events):
    """With the bar that tells how far it is: a call back to the host would keep jax from keeping
    the program."""
    programs.keep(tmp_path / "programs")
    condition = small_model.condition(np.zeros((20, 20, 3), np.uint8), "", 5)
    made = []
    for _ in range(2):
        _advance.clear_cache()  # type: ignore[attr-defined]  # as in a new process
        events.clear()
        made.append(generate(small_model, condition, on_step=lambda step: None).x0)
        assert list((tmp_path / "programs").glob("jit_advance-*"))
    assert "/jax/compilation_cache/cache_hits" in events
    assert "/jax/compilation_cache/cache_misses" not in events
    np.testing.assert_array_equal(*made)


@pytest.mark.slow
def test_what_is_compiled_with_few_passes_gives_the_same_noise():
    def noise(key):
        return 0.9 * jax.random.normal(key, (3, 7, 5, 9))

    key = jax.random.key(1)
    quick = programs.jit(noise)
    with optimized():
        np.testing.assert_array_equal(quick(key), jax.jit(noise)(key))
        inside = jax.jit(lambda scale: scale * quick(key))  # as a part of another program
        np.testing.assert_allclose(inside(2.0), 2 * quick(key), rtol=1e-6)
