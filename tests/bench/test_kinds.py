"""The comparison of kinds of devices: each guess is right where the kinds are as it says."""

import pytest

from bench.runtimes.kinds import Pair, errors
from scheduler.power import active_w


def pairs(ratio: float) -> list[Pair]:
    return [Pair(program=name, slow="t4", fast="a100", ratio=ratio) for name in ("one", "two")]


def test_a_guess_that_is_right_has_no_error() -> None:
    by_power = active_w("a100") / active_w("t4")
    assert errors(pairs(1.0)) == (0.0, pytest.approx(1.71, abs=0.01), 0.0)
    assert errors(pairs(by_power)) == (pytest.approx(1.71, abs=0.01), pytest.approx(0.0), 0.0)
