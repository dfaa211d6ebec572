"""Jobs that may wait, planned together: against every plan there is, and what each rule of the plan is about."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import codec
from scheduler.ahead import LATE, LEAST_SAVING, REACH_S, SOONER, slots
from scheduler.horizon import KEEP, look_ahead
from scheduler.plan import Outcome, Timetable
from scheduler.problem import Ahead, Budget, Job, MayWait, Node, PowerBudget, Problem, Rate, Shape
from scheduler.solve import solve, solve_greedily
from scheduler.turns import look_ahead_simply
from scheduler.verify import verify
from tests.builders import HOUR, job, node, shape

QUARTER = HOUR / 4
NEAR = 1e-6
ABOVE_OFF_W, BOOT_J = 1000.0 - 10.0, 360_000.0
"""Of the builders' nodes."""


def problem(
    nodes: Sequence[Node],
    jobs: Sequence[Job],
    prices: Sequence[float],
    until: dict[str, float],
    *,
    step: float = HOUR,
    before: dict[str, float] | None = None,
    budgets: tuple[PowerBudget, ...] = (),
) -> Problem:
    """So many steps of a price, the last for good; who may wait until when and was meant to start when, in s."""
    rates = tuple(Rate(start_s=number * step, per_kwh=price) for number, price in enumerate(prices))
    waits = (MayWait(job=name, until_s=until_s, before_s=(before or {}).get(name)) for name, until_s in until.items())
    return Problem(nodes=tuple(nodes), jobs=tuple(jobs), ahead=Ahead(rates=rates, waits=tuple(waits)), budgets=budgets)


def alike(count: int, **what: float) -> list[Job]:
    return [job(f"j{number}", shape(1, **what), order=number) for number in range(count)]


def hours(table: Timetable) -> dict[str, float]:
    """When each job starts that starts later, in hours."""
    return {one.job: one.start_s / HOUR for one in table.later}


def look(this: Problem) -> Timetable:
    return look_ahead(this, Budget())


@st.composite
def small(draw: st.DrawFn) -> Problem:
    """Up to three jobs that may wait for up to five quarters of an hour, a node of two devices, and maybe a budget."""
    busy = draw(st.integers(0, 1))
    host = node("n", h100=2, busy=busy, busy_s=busy * draw(st.sampled_from([QUARTER, HOUR])), can_switch=True)
    jobs = [
        job(f"j{number}", shape(draw(st.integers(1, 2)), run_s=draw(st.sampled_from([0.5, 1, 2, 3])) * QUARTER))
        for number in range(draw(st.integers(1, 3)))
    ]
    prices = draw(st.lists(st.sampled_from([-0.1, 0.1, 0.2, 0.4, 0.5]), min_size=2, max_size=5))
    until = {one.id: draw(st.sampled_from([QUARTER, 2 * QUARTER, HOUR])) for one in jobs}
    watts = draw(st.sampled_from([None, 1000.0, 2000.0]))
    budgets = () if watts is None else (PowerBudget(name="all", watts=watts, nodes=("n",)),)
    return problem([host], jobs, prices, until, step=QUARTER, budgets=budgets)


Plan = dict[str, float | None]
"""When each job starts; None for those that find no room in time."""


class Oracle:
    """What plans for a node of two devices take and cost, worked out from the problem alone."""

    def __init__(self, this: Problem) -> None:
        assert this.ahead is not None
        self.this = this
        self.rates = this.ahead.rates
        self.until = {wait.job: wait.until_s for wait in this.ahead.waits}
        self.slots = list(pairwise(slots(self.rates, max(self.until.values()))))
        self.shapes = {one.id: one.shapes[0] for one in this.jobs}

    def best(self) -> float:
        """The least that any plan costs."""
        names = list(self.until)
        choices = [[None, *(begin for begin, _ in self.slots if begin <= self.until[name])] for name in names]
        plans = [dict(zip(names, plan, strict=True)) for plan in product(*choices)]
        return min(self.cost(plan) for plan in plans if self.has_room(plan))

    def has_room(self, plan: Plan) -> bool:
        """Whether no slot has more device-seconds or joules in it than there are."""
        (host,) = self.this.nodes
        for begin, end in self.slots:
            used = joules = 0.0
            for name, start_s in plan.items():
                if start_s is not None:
                    inside = max(0.0, min(end, start_s + self.shapes[name].run_s) - max(begin, start_s))
                    used += inside * self.shapes[name].size
                    joules += inside * watts(self.shapes[name])
            runs_s = max(0.0, min(end, host.busy_s) - begin)
            if used > 2 * (end - begin) - runs_s * sum(not device.free for device in host.devices) + NEAR:
                return False
            for budget in self.this.budgets:
                if joules > max(0.0, (budget.watts - 10) * (end - begin) - runs_s * ABOVE_OFF_W) + NEAR:
                    return False
        return True

    def cost(self, plan: Plan) -> float:
        total = 0.0
        for name, start_s in plan.items():
            every = [self._cost(name, begin) for begin, _ in self.slots]
            total += (1 + LATE) * max(map(abs, every)) if start_s is None else self._cost(name, start_s)
        return total

    def _cost(self, name: str, start_s: float) -> float:
        now = abs(self._energy(self.shapes[name], 0.0))
        put_off = LEAST_SAVING * (start_s > 0) + SOONER * start_s / REACH_S
        return self._energy(self.shapes[name], start_s) + put_off * now

    def _energy(self, what: Shape, start_s: float) -> float:
        """At the price of each second of the run, and a share of a boot at that of its start."""
        total = 0.0
        for rate, end in zip(self.rates, [*(rate.start_s for rate in self.rates[1:]), 1e9], strict=True):
            inside = max(0.0, min(end, start_s + what.run_s) - max(rate.start_s, start_s))
            total += rate.per_kwh * inside * watts(what)
            total += rate.per_kwh * (BOOT_J / 2 * what.size if rate.start_s <= start_s < end else 0.0)
        return total / 3.6e6


def watts(what: Shape) -> float:
    return what.size * (what.active_w + ABOVE_OFF_W / 2)


@settings(max_examples=40)
@given(small())
def test_no_plan_of_all_is_cheaper_than_the_bound_and_none_much_cheaper_than_ours(this: Problem) -> None:
    """Bound <= the best of all <= ours <= each for itself; nobody is late, nothing is overfull; verified as a whole."""
    oracle, table = Oracle(this), look(this)
    least = oracle.best()
    assert table.bound <= least + NEAR
    assert least - NEAR <= table.cost <= least + KEEP * abs(least) + NEAR
    assert table.cost <= table.alone + NEAR
    later = {one.job: one.start_s for one in table.later}
    assert all(0 < start_s <= oracle.until[name] for name, start_s in later.items())
    assert oracle.has_room(dict(later))
    simply = look_ahead_simply(this)
    assert least - NEAR <= simply.cost <= table.alone + NEAR
    assert simply.bound <= least + NEAR
    assert verify(this, solve(this)) == []
    assert verify(this, solve_greedily(this)) == []


def test_jobs_that_would_all_wait_for_one_hour_spread_over_the_cheap_ones() -> None:
    """One device, three jobs of an hour: alone each takes hour 2, and two of them are late."""
    until = dict.fromkeys(["j0", "j1", "j2"], 3 * HOUR)
    this = problem([node("n", h100=1)], alike(3), [0.5, 0.3, 0.1, 0.2, 0.4], until)
    table = look(this)
    assert hours(table) == {"j0": 1, "j1": 2, "j2": 3}
    assert {one.job: one.full for one in table.later} == {"j0": True, "j1": False, "j2": True}
    assert [one.per_kwh for one in table.later] == pytest.approx([0.3, 0.1, 0.2])
    assert [one.saving for one in table.later] == pytest.approx([0.4, 0.8, 0.6])
    assert table.alone > 5 * table.cost


@pytest.mark.parametrize(
    ("prices", "may_wait_h", "run_h", "start_h", "saving"),
    [
        ([0.3, 0.1, 0.3], 3, 1, 1, 2 / 3),
        ([0.1, 0.3], 3, 1, None, 0),  # now is best
        ([0.3, 0.29, 0.3], 3, 1, None, 0),  # it is not worth it
        ([0.3, 0.2, 0.1, 0.2, 0.3], 2, 1, 2, 2 / 3),
        ([0.3, 0.2, 0.1, 0.2, 0.3], 1.5, 1, 1.5, 0.5),  # no longer than it may
        ([0.4, 0.4, 0.1, 0.1, 0.4], 4, 2, 2, 0.75),
        ([0.4, 0.1, 0.1, 0.2, 0.4], 4, 3, 1, 1 - 0.4 / 0.6),
        ([0.4, 0.1, 0.3, 0.1, 0.4], 4, 2, 1, 0.2),  # of two that are as good the earlier
        ([0.4, 0.1], 40, 1, 1, 0.75),
        ([0.2, -0.1, 0.1], 3, 1, 1, 1.5),
    ],
)
def test_one_job_starts_in_its_best_hours(
    prices: list[float], may_wait_h: float, run_h: float, start_h: float | None, saving: float
) -> None:
    this = problem([node("n", h100=1)], alike(1, run_s=run_h * HOUR), prices, {"j0": may_wait_h * HOUR})
    table = look(this)
    assert hours(table) == ({} if start_h is None else {"j0": start_h})
    assert [(one.saving, one.full) for one in table.later] == (
        [] if start_h is None else [(pytest.approx(saving), False)]
    )


def test_what_runs_and_who_may_not_wait_come_first() -> None:
    """Of two devices one is busy for two hours, and a job that may not wait takes the other for an hour."""
    host = node("n", h100=2, busy=1, busy_s=2 * HOUR)
    urgent = job("urgent", shape(1), order=9)
    until = dict.fromkeys(["j0", "j1", "j2"], 2 * HOUR)
    table = look(problem([host], [*alike(3), urgent], [0.1, 0.1, 0.2], until))
    assert sorted(hours(table).values()) == [1, 2, 2]


def test_a_power_budget_spreads_starts_as_devices_do() -> None:
    host = node("n", h100=4)
    until = dict.fromkeys(["j0", "j1"], 2 * HOUR)
    prices = [0.5, 0.2, 0.1]
    free = problem([host], alike(2, active_w=400.0), prices, until)
    assert hours(look(free)) == {"j0": 2, "j1": 2}
    tight = replace(free, budgets=(PowerBudget(name="all", watts=1000 + 500, nodes=("n",)),))
    assert hours(look(tight)) == {"j0": 1, "j1": 2}


def test_who_finds_no_room_in_time_starts_as_soon_as_it_can() -> None:
    host = node("n", h100=1, busy=1, busy_s=9 * HOUR)
    this = problem([host], alike(1), [0.5, 0.1], {"j0": HOUR})
    assert hours(look(this)) == {}
    assert [verdict.outcome for verdict in solve(this).verdicts] == [Outcome.WAITING]


@pytest.mark.parametrize(("price", "kept"), [(0.0999, True), (0.09, False)])
def test_a_plan_is_kept_unless_another_saves_more(price: float, kept: bool) -> None:
    this = problem([node("n", h100=1)], alike(1), [0.5, 0.1, price], {"j0": 3 * HOUR}, before={"j0": HOUR})
    table = look(this)
    assert (table.kept, hours(table)) == (kept, {"j0": 1 if kept else 2})


def test_a_start_that_is_due_is_now() -> None:
    this = problem([node("n", h100=1)], alike(1), [0.1, 0.0999], {"j0": 3 * HOUR}, before={"j0": -5.0})
    assert hours(look(this)) == {}


def test_what_starts_now_is_planned_as_ever_and_the_record_tells_it_all() -> None:
    """The job that is first in line waits for its hour; the other starts, and neither cost nor precedence object."""
    this = problem([node("n", h100=1)], alike(2), [0.5, 0.1], {"j0": 3 * HOUR})
    plan = solve(this)
    assert [placement.job for placement in plan.placements] == ["j1"]
    assert [(verdict.job, verdict.outcome) for verdict in plan.verdicts] == [("j0", "waiting"), ("j1", "placed")]
    assert plan.cost == solve(replace(this, jobs=this.jobs[1:], ahead=None)).cost
    again = codec.decode_problem(codec.encode_problem(this))
    assert codec.decode_plan(codec.encode_plan(solve(again))) == plan


def test_the_checker_sees_who_is_late_or_was_not_asked() -> None:
    this = problem([node("n", h100=1)], alike(2), [0.5, 0.1], {"j0": HOUR})
    plan = solve(this)
    assert plan.timetable is not None
    (later,) = plan.timetable.later

    def codes(**changes: object) -> list[str]:
        table = replace(plan.timetable, later=(replace(later, **changes),))
        return [violation.code for violation in verify(this, replace(plan, timetable=table))]

    assert codes() == []
    assert "too_late" in codes(start_s=HOUR + 1)
    assert "too_late" in codes(start_s=0.0)
    assert {"too_late", "wrong_verdict"} <= set(codes(job="j1"))


@pytest.mark.parametrize(
    ("step", "until", "begins"),
    [
        (HOUR, HOUR, [0, 900, 1800, 2700, 3600]),
        (1800.0, 1000.0, [0, 900]),
        (60.0, 240.0, [0, 60, 120, 180, 240]),
    ],
)
def test_slots_follow_the_steps(step: float, until: float, begins: list[float]) -> None:
    rates = [Rate(start_s=number * step, per_kwh=0.1) for number in range(100)]
    assert slots(rates, until)[:-1] == begins


def test_slots_become_coarser() -> None:
    rates = [Rate(start_s=number * 300.0, per_kwh=0.1) for number in range(1000)]
    cuts = slots(rates, 48 * HOUR)
    assert all(end > begin for begin, end in pairwise(cuts))
    assert all(end - begin <= max(900.0, begin / 12) for begin, end in pairwise(cuts))
    assert len(cuts) < 120


@pytest.mark.parametrize(
    "changes",
    [
        {"rates": ()},
        {"rates": (Rate(start_s=5.0, per_kwh=0.1),)},
        {"rates": (Rate(start_s=0.0, per_kwh=0.1), Rate(start_s=0.0, per_kwh=0.2))},
        {"waits": (MayWait(job="nobody", until_s=5.0),)},
        {"waits": (MayWait(job="j0", until_s=-5.0),)},
    ],
)
def test_nonsense_is_refused(changes: dict[str, object]) -> None:
    this = problem([node("n", h100=1)], alike(1), [0.5, 0.1], {"j0": HOUR})
    assert this.ahead is not None
    with pytest.raises(ValueError, match="makes no sense"):
        solve(replace(this, ahead=replace(this.ahead, **changes)))
