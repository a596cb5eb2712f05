"""Every program that calls attention compiles for a GPU, without one, and calls cuDNN there."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.extra("gpu")
def test_programs_compile_for_a_gpu_that_is_not_here() -> None:
    """In a process of its own, since jax fills classes with other things than arrays when it
    lowers, which the shape checks of these tests do not allow."""
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}  # as users run it
    command = [sys.executable, "scripts/gpu_programs.py", "--tiny"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    rows = [line.split("|")[1:-1] for line in run.stdout.splitlines() if line.startswith("|")]
    calls = {row[0].strip(): row[4:6] for row in rows if len(row) == 8 and row[4].strip().isdigit()}
    assert len(calls) == 8
    *runs, learning = calls.items()
    for what, (attention, products) in runs:
        # Three blocks attend to themselves and to the prompt, and multiply ten times each.
        assert int(attention) == 6, what
        assert 30 > int(products) >= 24, what
    assert "training step in bfloat16" in learning[0]
    assert int(learning[1][0]) > 0
