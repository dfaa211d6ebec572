"""Jobs that may wait start when energy is cheaper, and reports price what was drawn when it was drawn."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from protocol.jobs import JobSpec
from protocol.reports import AllocationReport
from protocol.states import Role
from scheduler import codec
from scheduler.plan import Plan
from scheduler.problem import Budget, Problem
from scheduler.solve import solve
from service import cycles, dry_run
from service.db import snapshot
from service.reports.allocation import report
from service.tariff_source import TariffSource
from tests.service.cluster import Cluster
from tests.service.test_cycle import new_cycle, reasons, states

HOUR_S = 3_600.0


@pytest.fixture
def dear_now(cluster: Cluster, tmp_path: Path) -> Cluster:
    """A node, and energy that is dear for two hours from now and cheap for two hours after them."""
    lines = [f"{cluster.now + timedelta(hours=n):%Y-%m-%dT%H:%M:%SZ},{price}" for n, price in ((0, 0.4), (2, 0.1))]
    path = tmp_path / "prices.csv"
    path.write_text("\n".join(["start,price_per_kwh", *lines]))
    cluster.settings = cluster.settings.model_copy(update={"tariff": str(path), "currency": "SEK"})
    cluster.join("n1", slots=4)
    return cluster


def test_a_job_that_may_wait_starts_when_it_is_cheap(dear_now: Cluster) -> None:
    cluster = dear_now
    patient, other = cluster.submit(may_wait_s=9_000, expected_run_s=HOUR_S), cluster.submit()
    cycle = new_cycle(cluster)
    cycle.step(woken=True)
    assert states(cluster, patient, other) == ["queued", "starting"]
    assert reasons(cluster, patient) == ("waiting", ["cheaper_later"])
    verdict = cluster.job(patient).verdict
    assert verdict is not None
    until = cluster.now + timedelta(hours=2)
    assert verdict.reasons[0].message == (
        f"it may wait, and is planned for {until:%Y-%m-%d %H:%M} UTC, when a kWh costs 0.1 SEK: its energy is "
        "expected to cost 75% less than now"
    )
    cluster.advance(2 * HOUR_S - 180)
    cluster.sync("n1")
    cycle.step(woken=True)
    assert states(cluster, patient) == ["queued"]
    cluster.advance(180)
    cycle.step(woken=True)
    assert states(cluster, patient) == ["starting"]


def test_one_that_has_started_before_goes_on_at_once(dear_now: Cluster) -> None:
    cluster = dear_now
    job = cluster.submit(may_wait_s=9_000, max_retries=1)
    attempt = cluster.place(job, "n1")
    cluster.lose("n1")
    cluster.join("n1", slots=4, boot_id="boot-2")
    cluster.advance(600)
    cluster.sync("n1")
    new_cycle(cluster).step(woken=True)
    assert states(cluster, job) == ["starting"]
    assert cluster.job(job).attempts[-1].id != attempt


def test_nothing_is_kept_for_a_job_that_waits_of_its_own_will(dear_now: Cluster) -> None:
    cluster = dear_now
    asked: list[Problem] = []

    def remember(problem: Problem, budget: Budget) -> Plan:
        asked.append(problem)
        return solve(problem, budget)

    cluster.submit(may_wait_s=9_000, devices_per_node=4)
    cluster.advance(cluster.settings.overtaken_s + 1)
    cluster.sync("n1")
    other = cluster.submit()
    new_cycle(cluster, solve=remember).step(woken=True)
    assert asked[-1].reservation is None
    assert states(cluster, other) == ["starting"]


def test_jobs_that_want_the_same_hour_are_planned_together(dear_now: Cluster) -> None:
    """Four slots, cheap hours from 2 h on, starts by 3 h: of eight jobs of an hour four wait for the one, four for the
    other; the cycle that told so is recorded with all that its plan follows from, and is not repeated without need.
    """
    cluster = dear_now
    asked: list[Problem] = []

    def remember(problem: Problem, budget: Budget) -> Plan:
        asked.append(problem)
        return solve(problem, budget)

    jobs = [cluster.submit(may_wait_s=3 * HOUR_S, expected_run_s=HOUR_S) for _ in range(8)]
    cycle = new_cycle(cluster, solve=remember)
    cycle.step(woken=True)

    def planned(those: list[str]) -> list[str]:
        said = [cluster.job(job).verdict for job in those]
        return [verdict.reasons[0].message.split(" UTC")[0][-5:] for verdict in said if verdict is not None]

    first, second = (f"{cluster.now + timedelta(hours=n):%H:%M}" for n in (2, 3))
    assert planned(jobs) == [first] * 4 + [second] * 4
    with snapshot(cluster.engine) as tx:
        (summary,) = cycles.list_page(tx, before=None, limit=5).items
        record = cycles.get(tx, summary.id)
    plan = solve(codec.decode_problem(json.dumps(record.problem).encode()))
    assert plan == codec.decode_plan(json.dumps(record.plan).encode())
    assert plan.timetable is not None
    cycle.step(woken=True)
    assert len(asked) == 1  # all are to start later
    cluster.advance(2 * HOUR_S)
    cluster.sync("n1")
    cycle.step(woken=True)
    assert states(cluster, *jobs) == ["starting"] * 4 + ["queued"] * 4
    assert planned(jobs[4:]) == [second] * 4


def test_a_dry_run_tells_it(dear_now: Cluster) -> None:
    cluster = dear_now
    specs = [JobSpec.model_validate({"command": ["true"], "may_wait_s": wait_s}) for wait_s in (None, 9_000)]
    with snapshot(cluster.engine) as tx:
        run = dry_run.read(
            tx,
            cluster.person("alice"),
            specs,
            queues=cluster.settings.queues,
            pue=1.0,
            overtaken_s=600.0,
            power=cluster.settings.power,
            tariff=TariffSource(cluster.settings).current(),
            now=cluster.now,
        )
    items = dry_run.weigh(run).items
    assert [item.verdict.outcome for item in items] == ["placed", "waiting"]
    assert [reason.code for reason in items[1].verdict.reasons] == ["cheaper_later"]


def test_energy_is_priced_when_it_is_drawn(dear_now: Cluster) -> None:
    """3 h dear and cheap, then 3 h of which nobody knows: at a steady draw (0.4 + 0.4 + 0.1 + 0.1) / 6 h."""
    cluster = dear_now
    start = cluster.now
    attempt = cluster.place(cluster.submit("alice"), "n1")
    cluster.advance(HOUR_S)
    cluster.end("n1", attempt)
    cluster.place(cluster.submit("bob"), "n1")
    cluster.advance(5 * HOUR_S)
    tariff = TariffSource(cluster.settings).current()

    def told(name: str = "root") -> AllocationReport:
        role = Role.ADMIN if name == "root" else Role.USER
        with snapshot(cluster.engine) as tx:
            return report(tx, cluster.person(name, role), start=start, end=cluster.now, tariff=tariff)

    found = told()
    assert found.total_energy_kwh is not None
    assert found.cost == pytest.approx(found.total_energy_kwh / 6 * 1.0)
    assert found.priced_share == pytest.approx(4 / 6)
    assert found.price_per_kwh == pytest.approx(0.25)
    alice, bob = found.users
    assert alice.cost == pytest.approx(alice.energy_kwh * 0.4)
    assert bob.cost == pytest.approx(bob.energy_kwh / 5 * 0.6)
    assert (found.carbon_kg, found.carbon_share, alice.carbon_kg) == (None, None, None)
    assert told("alice").users == [alice]


def test_a_tariff_that_cannot_be_read_any_more_is_an_alarm(dear_now: Cluster) -> None:
    cluster = dear_now
    path = Path(str(cluster.settings.tariff))
    good = path.read_text()
    cycle = new_cycle(cluster)
    path.write_text("start,price_per_kwh\nsoon,1\n")
    cycle.step(woken=True)
    assert cluster.alarms() == {"tariff_unreadable": ""}
    path.write_text(good)
    cycle.step(woken=True)
    assert cluster.alarms() == {}
