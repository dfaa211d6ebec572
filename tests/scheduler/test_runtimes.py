"""What is believed of a run time, in which order, and what is left of it after a while."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.kinds import fit_speeds
from scheduler.runtimes import (
    DEFAULT_RUN_S,
    LONGEST_RUN_S,
    SHORTEST_RUN_S,
    Known,
    Run,
    RunTime,
    Size,
    Source,
    whole_run,
)

TWO = Size(nodes=1, devices=2, kind="t4")
FOUR = Size(nodes=1, devices=4, kind="t4")
H100 = Size(nodes=1, devices=2, kind="h100")


def runs(*seconds: float, size: Size = TWO) -> tuple[Run, ...]:
    return tuple(Run(size=size, run_s=each) for each in seconds)


STATED = {"stated_s": 1_000.0, "limit_s": 50_000.0, "ratios": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize(
    ("known", "source", "median_s"),
    [
        (Known(runs=runs(90, 100, 400), **STATED), Source.PAST_RUNS, 100),
        (Known(runs=(*runs(100), *runs(1, size=FOUR))), Source.PAST_RUNS, 100),
        (Known(runs=runs(3_000, size=FOUR), **STATED), Source.OTHER_SIZES, 5_684),
        (Known(runs=runs(100, size=H100), **STATED), Source.OTHER_KINDS, 100),
        (Known(runs=(*runs(100, size=H100), *runs(3_000, size=FOUR))), Source.OTHER_SIZES, 5_684),
        (Known(runs=runs(100, size=Size(nodes=2, devices=0, kind="")), **STATED), Source.CORRECTED_ESTIMATE, 500),
        (Known(runs=runs(100, size=Size(nodes=1, devices=1, kind="t4", share=500))), Source.DEFAULT, DEFAULT_RUN_S),
        (Known(**{**STATED, "ratios": (0.5, 0.5)}), Source.ESTIMATE, 1_000),
        (Known(stated_s=1_000.0, limit_s=600.0), Source.ESTIMATE, 600),
        (Known(stated_s=5e-324), Source.ESTIMATE, SHORTEST_RUN_S),
        (Known(limit_s=600.0, ratios=(0.5, 0.5, 0.5)), Source.TIME_LIMIT, 300),
        (Known(limit_s=5e-324), Source.TIME_LIMIT, SHORTEST_RUN_S),
        (Known(runs=runs(0.0)), Source.PAST_RUNS, SHORTEST_RUN_S),
        (Known(stated_s=1e9, ratios=(1e9, 1e9, 1e9)), Source.CORRECTED_ESTIMATE, LONGEST_RUN_S),
        (Known(), Source.DEFAULT, DEFAULT_RUN_S),
    ],
)
def test_the_best_that_is_known_is_believed(known: Known, source: Source, median_s: float) -> None:
    time = whole_run(known, TWO)
    assert (time.source, time.median_s) == (source, pytest.approx(median_s, rel=0.01))
    assert time.median_s <= time.high_s <= max(SHORTEST_RUN_S, known.limit_s or LONGEST_RUN_S)


FAST = fit_speeds([{"h100": 1.0, "t4": 8.0}] * 50)
BY = FAST.factor("h100", "t4")


@pytest.mark.parametrize(
    ("known", "on_t4_s", "on_h100_s"),
    [
        (Known(runs=runs(100, size=H100), speeds=FAST), 100 * BY, 100),
        (Known(runs=runs(100), speeds=FAST), 100, 100 / BY),
        (Known(stated_s=100, kinds=("t4",), speeds=FAST), 100, 100 / BY),
        (Known(stated_s=100, kinds=("t4", "h100"), speeds=FAST), 100 * BY**0.5, 100 / BY**0.5),
        (Known(stated_s=100, speeds=FAST), 100, 100),
        (Known(limit_s=100, kinds=("t4", "h100"), speeds=FAST), 100, 50 / BY**0.5),
    ],
)
def test_other_kinds_are_as_fast_as_works_showed_that_ran_on_both(
    known: Known, on_t4_s: float, on_h100_s: float
) -> None:
    assert pytest.approx(8, rel=0.05) == BY
    assert whole_run(known, TWO).median_s == pytest.approx(on_t4_s)
    assert whole_run(known, H100).median_s == pytest.approx(on_h100_s)


def test_runs_that_scatter_and_other_sizes_make_the_spread_wider() -> None:
    alike = whole_run(Known(runs=runs(99, 100, 101)), TWO)
    apart = whole_run(Known(runs=runs(50, 100, 200)), TWO)
    other = whole_run(Known(runs=runs(99, 100, 101)), FOUR)
    assert alike.sigma < other.sigma < apart.sigma < whole_run(Known(runs=runs(99, 100, 101)), H100).sigma
    assert alike.low_s < 99
    assert alike.high_s > 101


def test_without_devices_runs_on_as_many_nodes_count() -> None:
    cores = Size(nodes=1, devices=0, kind="")
    assert whole_run(Known(runs=runs(100, size=cores)), cores).source == Source.PAST_RUNS
    assert whole_run(Known(runs=runs(100, size=cores)), Size(nodes=2, devices=0, kind="")).source == Source.DEFAULT


def test_what_is_left_is_what_still_can_be() -> None:
    whole = RunTime(median_s=1_000.0, sigma=0.1, source=Source.PAST_RUNS)
    assert whole.after(0.0) == whole
    assert whole.after(500.0).median_s == pytest.approx(500, rel=0.01)
    assert whole.after(500.0).high_s == pytest.approx(whole.high_s - 500, rel=0.05)
    assert 50 < whole.after(1_000.0).median_s < 100, "half of the runs are longer than the median, by 7 % or more"
    late = whole.after(5_000.0)
    assert late.median_s > 500, "far beyond what was expected nobody knows"


TIMES = st.builds(
    RunTime,
    median_s=st.floats(SHORTEST_RUN_S, LONGEST_RUN_S),
    sigma=st.floats(0.01, 5),
    source=st.just(Source.ESTIMATE),
)
SECONDS = st.floats(0, LONGEST_RUN_S)


@example(RunTime(median_s=100.0, sigma=0.5, source=Source.ESTIMATE), 5e-324, 50.0)
@given(TIMES, SECONDS, SECONDS)
def test_what_is_left_is_sane_whatever_was_expected(whole: RunTime, elapsed_s: float, limit_s: float) -> None:
    left = whole.after(elapsed_s).within(limit_s)
    assert 0 < left.low_s <= left.median_s <= left.high_s <= max(limit_s, SHORTEST_RUN_S)
    assert left.median_s >= SHORTEST_RUN_S
