"""How programs are compiled, and the folder of compiled ones: what was compiled once is read on all
machines of one kind."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.experimental.compilation_cache import compilation_cache

from jcos.files import local_path


def jit(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Jit a function whose program draws noise. options: of `jax.jit`.

    On a CPU, LLVM takes a second for every program with random bits in it. With its first level of
    optimization it takes 0.2 s; sampling is as fast, and the numbers are the same bit for bit.
    """
    plain: Any = jax.jit(f, **options)
    quick: Any = jax.jit(f, compiler_options={"xla_backend_optimization_level": 1}, **options)

    @functools.wraps(f)
    def call(*arguments: Any, **named: Any) -> Any:
        # Inside another program there is one level for all; tests may ask for less.
        here = jnp.zeros(()), arguments, named
        inside = any(isinstance(a, Tracer) for a in jax.tree.leaves(here))
        fixed = inside or jax.config.read("jax_disable_most_optimizations")
        cpu = jax.default_backend() == "cpu"
        return (quick if cpu and not fixed else plain)(*arguments, **named)

    def clear_cache() -> None:
        plain.clear_cache()
        quick.clear_cache()

    about = {"lower": plain.lower, "clear_cache": clear_cache}
    about["_cache_size"] = lambda: plain._cache_size() + quick._cache_size()
    for name, value in about.items():
        setattr(call, name, value)
    return call


def keep(folder: Path | str) -> None:
    """Look every program up in the folder before it is compiled, and store it there after.

    The folder can be copied with a checkpoint to machines with the same devices and versions of
    jax; what does not fit is compiled anew (jax names a program by all that went into it). Programs
    are code that will run: take such a folder only from where you would take code. Raises OSError
    where it cannot be made.
    """
    folder = local_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    # Small ones too: a process starts with a hundred of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA's own caches hold the folder's full name, which would become part of a program's name.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    compilation_cache.reset_cache()


def keep_in_cache() -> None:
    """Store programs in the user's cache folder, `$XDG_CACHE_HOME/jcos/jax` (by default under
    `~/.cache`), unless JAX_COMPILATION_CACHE_DIR names another."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "jcos" / "jax"))
