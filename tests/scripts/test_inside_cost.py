"""Knocking out heads is all but free, as the compiler counts a block of A14B at 480p."""

import pytest

from tests.scripts.test_measuring import run


@pytest.mark.slow
def test_knocked_out_heads_cost_at_most_two_percent() -> None:
    plain, heads = run("inside_cost", "--only", "heads, by zero").splitlines()[1:]
    assert plain.startswith("none")
    assert "KnockOut of heads, by zero" in heads
    operations, moved = map(float, heads.split()[-2:])
    assert max(operations, moved) <= 1.02
