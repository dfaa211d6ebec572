"""The comparison of kinds of devices: each guess is right where the kinds are as it says."""

import pytest

from bench.runtimes.kinds import Pair, errors
from scheduler.power import active_w


def pairs(ratio: float) -> list[Pair]:
    of_both = {"batch": "", "slow": "t4", "fast": "a100"}
    return [Pair(program=name, **of_both, slow_s=ratio, fast_s=1.0) for name in ("one", "two")]


def test_a_guess_that_is_right_has_no_error() -> None:
    by_power = active_w("a100") / active_w("t4")
    assert errors(pairs(1.0)) == (0.0, pytest.approx(1.71, abs=0.01), 0.0, 0.0, 0.0)
    equal, power, others, of_one, of_all = errors(pairs(by_power))
    assert (equal, power, others) == (pytest.approx(1.71, abs=0.01), pytest.approx(0.0), 0.0)
    assert 0 < of_one == of_all < equal
