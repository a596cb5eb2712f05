"""Compiled programs in a folder, for instance beside a checkpoint: what was compiled once, on any
machine of one kind, is only read on the others."""

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from jcos.files import local_path


def keep(folder: Path | str) -> None:
    """From now on, every program is looked for in the folder before it is compiled, and kept there
    after.

    The folder can be copied with the checkpoint to machines with the same devices and versions of
    jax; what does not fit is compiled anew (jax names every program by all that went into it).
    Programs are code, and what lies there is run: take such a folder only from where you would take
    code. Raises OSError where it cannot be made.
    """
    folder = local_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    # Small ones too: a process begins with a hundred of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA's own notes lie in the folder under its full name, by which programs would be called.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    compilation_cache.reset_cache()


def keep_in_cache() -> None:
    """Programs are kept in the user's cache folder, `$XDG_CACHE_HOME/jcos/jax` (by default under
    `~/.cache`), unless JAX_COMPILATION_CACHE_DIR names another. What every command begins with."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "jcos" / "jax"))
