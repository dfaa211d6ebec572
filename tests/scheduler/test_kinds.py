"""How fast kinds of devices are: what works that ran on several say, and how sure that is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.kinds import SPEED_SIGMA, WORK_SIGMA, Speeds, fit_speeds

KINDS = ("a100", "h100", "t4")
WORKS = st.lists(st.dictionaries(st.sampled_from(KINDS), st.floats(1.0, 1e6), min_size=1))


def test_nothing_is_known_before_a_work_ran_on_two_kinds() -> None:
    assert fit_speeds([{"t4": 100.0}, {"a100": 10.0}]) == Speeds() == fit_speeds([])
    assert Speeds().factor("a100", "t4") == 1.0
    assert Speeds().sigma("a100", "t4") == pytest.approx(math.sqrt(2 * WORK_SIGMA**2 + 2 * SPEED_SIGMA**2))


def test_one_work_says_half_of_it_and_many_say_all() -> None:
    """The prior of a ratio has the variance 2 * 0.5^2, and so has what one work says of it."""
    assert fit_speeds([{"t4": 400.0, "a100": 100.0}]).factor("a100", "t4") == pytest.approx(2.0)
    many = fit_speeds([{"t4": 400.0, "a100": 100.0}] * 200)
    assert many.factor("a100", "t4") == pytest.approx(4.0, rel=0.02)
    assert many.factor("t4", "a100") == pytest.approx(1 / many.factor("a100", "t4"))
    once = fit_speeds([{"t4": 4.0, "a100": 1.0}])
    assert many.sigma("a100", "t4") < once.sigma("a100", "t4") < Speeds().sigma("a100", "t4")


def test_kinds_that_no_work_shares_are_compared_through_a_third() -> None:
    found = fit_speeds([{"t4": 4.0, "a100": 1.0}] * 100 + [{"a100": 2.0, "h100": 1.0}] * 100)
    assert found.factor("h100", "t4") == pytest.approx(8.0, rel=0.05)


def test_among_the_accepted_the_mean_is_one() -> None:
    speeds = fit_speeds([{"t4": 4.0, "a100": 1.0}] * 100)
    assert speeds.among("t4", ("t4",)) == 1.0
    assert speeds.among("t4", ("t4", "a100")) * speeds.among("a100", ("t4", "a100")) == pytest.approx(1.0)
    assert speeds.among("", ("t4", "a100")) == speeds.among("t4", ()) == 1.0


@given(works=WORKS, unit=st.floats(0.01, 100.0))
def test_how_long_a_work_takes_says_nothing_of_the_kinds(works: list[dict[str, float]], unit: float) -> None:
    longer = fit_speeds([{kind: time * unit for kind, time in work.items()} for work in works])
    for kind, speed in fit_speeds(works).by_kind.items():
        assert longer.by_kind[kind].log == pytest.approx(speed.log, abs=1e-6)
