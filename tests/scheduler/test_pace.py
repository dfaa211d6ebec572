"""How much longer, from progress: right for steady work, wide or silent for what makes no sense, never a surprise."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.pace import FINEST, JITTER_S, LAST_S, Line, Pace, heard, time_left
from scheduler.runtimes import LONGEST_RUN_S


def after(*lines: tuple[float, dict[str, int]]) -> Pace:
    """The pace after rank 0 said these at these times."""
    pace = None
    for at_s, said in lines:
        pace = heard(pace, Line(rank=0, **said), at_s)
    assert pace is not None
    return pace


def steady(*, first: int = 0, last: int, each_s: float = 1.0, total: int = 1000) -> Pace:
    return after(*((100.0 + step * each_s, {"step": step, "total_steps": total}) for step in range(first, last + 1)))


def left_s(pace: Pace, now_s: float) -> float | None:
    time = time_left(pace, now_s)
    return None if time is None else time.median_s


@pytest.mark.parametrize("first", [0, 500], ids=["from the beginning", "from a checkpoint"])
def test_what_is_left_takes_as_long_as_what_was_done(first: int) -> None:
    pace = steady(first=first, last=first + 400, each_s=2.0)
    said_s = 100.0 + (first + 400) * 2.0
    assert left_s(pace, said_s) == pytest.approx((600 - first) * 2.0)
    assert left_s(pace, said_s + 10) == pytest.approx((600 - first) * 2.0 - 10)
    time = time_left(pace, said_s)
    assert time is not None
    assert time.low_s < time.median_s < time.high_s < 1.2 * time.median_s


def test_a_few_marks_are_kept_and_they_are_far_apart() -> None:
    marks = steady(last=900).marks
    assert len(marks) <= 1 / FINEST + 2
    assert (marks[0][0], marks[-1][0]) == (0, 900)
    gaps = [later[1] - earlier[1] for earlier, later in itertools.pairwise(marks[:-1])]
    assert min(gaps) >= 0.8 * 900 * FINEST


def test_a_change_of_pace_counts_soon_and_makes_the_spread_wider() -> None:
    slow_then_fast = [(step * 10.0, step) for step in range(21)] + [(200.0 + step, 20 + step) for step in range(1, 401)]
    pace = after(*((at_s, {"step": step, "total_steps": 1000}) for at_s, step in slow_then_fast))
    assert left_s(pace, 600.0) == pytest.approx(580, rel=0.01)
    changed, calm = time_left(pace, 600.0), time_left(steady(last=420), 520.0)
    assert changed is not None
    assert calm is not None
    assert changed.sigma > 3 * calm.sigma


def test_a_long_silence_counts_as_time_that_the_steps_took() -> None:
    pace = steady(last=500)
    assert left_s(pace, 600 + 20.0) == pytest.approx(480)
    assert left_s(pace, 600 + 500.0) == pytest.approx(500 * 750 / 250, rel=0.1)
    assert time_left(pace, 600 + 100_000.0) is None, "it hangs: nothing follows from its pace"


def test_when_all_is_done_the_rest_is_short() -> None:
    assert left_s(steady(last=1000), 1_200.0) == LAST_S


@pytest.mark.parametrize(
    "said",
    [
        [],
        [{"step": 500, "total_steps": 1000}],
        [{"step": 500}, {"step": 900}],
        [{"step": 1, "total_steps": 0}, {"step": 2, "total_steps": 0}],
        [{"step": 5, "total_steps": 10}, {"step": 11, "total_steps": 10}],
        [{"step": 5, "total_steps": 10}, {"step": 5, "total_steps": 10}],
        [{"step": 5, "total_steps": 10}, {"step": 2, "total_steps": 10}, {"step": 9, "total_steps": 10}],
    ],
    ids=["nothing", "once", "no total", "a total of 0", "beyond the total", "no step", "back"],
)
def test_nothing_follows_from_what_makes_no_sense(said: list[dict[str, int]]) -> None:
    pace = after(*((100.0 * number, counts) for number, counts in enumerate([{}, *said])))
    assert time_left(pace, 100.0 * len(said)) is None


def test_too_short_a_look_is_not_believed() -> None:
    pace = after((0.0, {"step": 0, "total_steps": 1000}), (JITTER_S, {"step": 5}))
    assert time_left(pace, JITTER_S) is None


def test_more_at_once_after_a_pause_of_the_network_and_clocks_that_go_back() -> None:
    said = {"total_steps": 1000}
    pace = after((0.0, {"step": 0, **said}), (100.0, {"step": 60, **said}), (100.0, {"step": 100, **said}))
    assert pace.marks == ((0, 0.0), (100, 100.0))
    assert heard(pace, Line(rank=0, step=120, total_steps=1000), 50.0).marks == ((0, 0.0), (120, 100.0))


def test_only_the_first_rank_is_listened_to_and_a_new_total_counts() -> None:
    pace = steady(last=400)
    assert heard(pace, Line(rank=1, step=1, total_steps=7), 501.0) == pace
    assert left_s(heard(pace, Line(rank=0, step=401, total_steps=2000), 501.0), 501.0) == pytest.approx(1599, rel=0.01)


@pytest.mark.parametrize("totals", [True, False])
def test_steps_that_begin_anew_with_each_epoch_are_passed_over_for_the_epochs(totals: bool) -> None:
    total = {"total_steps": 100} if totals else {}
    pace = after(
        *(
            (epoch * 100.0 + step, {"step": step, "epoch": epoch, "total_epochs": 20, **total})
            for epoch in range(5)
            for step in range(0, 100, 10)
        )
    )
    assert pace.by == "epoch"
    assert left_s(pace, 400.0) == pytest.approx(1600)


def test_steps_that_disagree_with_the_epochs_are_not_believed_from_the_first_line_on() -> None:
    pace = after((0.0, {"step": 90, "total_steps": 100, "epoch": 3, "total_epochs": 20}))
    assert (pace.by, pace.marks, pace.total) == ("epoch", ((3, 0.0),), 20)


def test_steps_of_the_whole_run_count_beside_epochs() -> None:
    pace = after(
        *(
            (float(step), {"step": step, "total_steps": 1000, "epoch": step // 100, "total_epochs": 10})
            for step in range(0, 501, 10)
        )
    )
    assert (pace.by, left_s(pace, 500.0)) == ("step", pytest.approx(500))


COUNT = st.none() | st.integers(0, 20) | st.integers(0, 10**30)
LINES = st.builds(Line, rank=st.integers(0, 1), step=COUNT, total_steps=COUNT, epoch=COUNT, total_epochs=COUNT)
MOMENT = st.floats(-1e6, 1e9)


@given(st.lists(st.tuples(LINES, MOMENT), max_size=40), MOMENT)
def test_whatever_ranks_say_there_is_a_sane_answer_or_none(said: list[tuple[Line, float]], now_s: float) -> None:
    pace = None
    for line, at_s in said:
        pace = heard(pace, line, at_s)
    if pace is None:
        return
    assert len(pace.marks) <= 1 / FINEST + 2
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(pace.marks))
    time = time_left(pace, now_s)
    if time is not None:
        within = time.within(LONGEST_RUN_S)
        assert 0 < within.low_s <= within.median_s <= within.high_s <= LONGEST_RUN_S
        assert math.isfinite(time.sigma)
