"""Programs that are kept in a folder are found there again, that of the sampler among them."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jcos.devices import programs
from jcos.generation import generate

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
    jax.clear_caches()  # what tests before this one compiled would not be kept again
    programs.keep(tmp_path / "programs")
    condition = small_model.condition(np.zeros((20, 20, 3), np.uint8), "", 5)
    first = generate(small_model, condition, on_step=lambda step: None)
    kept = sorted(file.name for file in (tmp_path / "programs").iterdir())
    assert any(name.startswith("jit_advance-") for name in kept)
    jax.clear_caches()  # as in a new process
    events.clear()
    again = generate(small_model, condition, on_step=lambda step: None)
    assert "/jax/compilation_cache/cache_hits" in events
    assert "/jax/compilation_cache/cache_misses" not in events
    np.testing.assert_array_equal(first.x0, again.x0)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        programs.keep(tmp_path / "file" / "programs")
