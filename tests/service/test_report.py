"""The allocation and energy report: windows computed by hand, sums that must agree, and who may see what."""

import csv
import io
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.jobs import AttemptView
from protocol.nodes import PowerSample
from protocol.reports import AllocationReport
from protocol.states import EndReason, PowerState, Role
from scheduler.objective import evaluate
from scheduler.power import cpu_active_w, device_power, host_base_w, node_power
from service.db import snapshot
from service.nodes import inventory_of
from service.reports.allocation import report
from service.reports.table import COLUMNS, to_csv
from service.store import power as power_store
from service.tariffs import Tariff
from tests.builders import job, placement, problem, shape
from tests.builders import node as node_of
from tests.service.cluster import Cluster, node_report

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
KWH = 3.6e6


def at(hours: float) -> datetime:
    return START + hours * HOUR


def between(cluster: Cluster, first: float, last: float, user: str = "root") -> AllocationReport:
    """The report of a window, in hours since the start, as this person sees it."""
    person = cluster.person(user, Role.ADMIN if user == "root" else Role.USER)
    with snapshot(cluster.engine) as tx:
        return report(tx, person, start=at(first), end=at(last), tariff=Tariff.of(cluster.settings))


@pytest.fixture
def day(cluster: Cluster) -> Cluster:
    """n1 with two CPU slots joins at 0 h; alice holds one from 1 h to 3 h; it is 4 h."""
    cluster.join("n1")
    cluster.now = at(1)
    attempt = cluster.place(cluster.submit("alice"), "n1")
    cluster.now = at(3)
    cluster.end("n1", attempt)
    cluster.now = at(4)
    return cluster


WINDOWS: list[tuple[float, float, float, float]] = [
    (0, 4, 8, 2),
    (1, 3, 4, 2),
    (1.5, 2.5, 2, 1),  # inside the allocation
    (0, 2, 4, 1),  # across its beginning
    (2, 4, 4, 1),  # across its end
    (0, 1, 2, 0),
    (3, 4, 2, 0),
    (-2, 0.5, 1, 0),  # before the node joined nothing was available
    (-1, 2, 4, 1),
]


def test_a_window_counts_what_lies_inside_it(day: Cluster, subtests: pytest.Subtests) -> None:
    for first, last, available, allocated in WINDOWS:
        with subtests.test(first=first, last=last):
            found = between(day, first, last)
            (node,) = found.nodes
            assert (node.node, node.devices) == ("n1", 2)
            assert node.available_device_hours == pytest.approx(available)
            assert node.allocated_device_hours == pytest.approx(allocated)
            assert node.idle_device_hours == pytest.approx(available - allocated)
            assert [(user.user, user.jobs) for user in found.users] == ([("alice", 1)] if allocated else [])
            inventory = inventory_of(node_report("n1", 2))
            base_w, busy_w = host_base_w(inventory), cpu_active_w(inventory, 1.0)
            alice_j = allocated * 3600 * (base_w / 2 + busy_w)
            idle_j = (available / 2 * base_w - allocated * base_w / 2) * 3600
            assert sum(user.energy_kwh for user in found.users) * KWH == pytest.approx(alice_j)
            assert found.idle_energy_kwh == pytest.approx(idle_j / KWH)
            assert node.energy_kwh == pytest.approx((alice_j + idle_j) / KWH)
            assert found.total_energy_kwh == pytest.approx(node.energy_kwh)
            assert node.quality == found.quality == "modelled"
            off_w = node_power(inventory).off_w
            least_j = alice_j + idle_j * off_w / base_w
            assert found.least_energy_kwh == pytest.approx(least_j / KWH)
            assert found.energy_gap == pytest.approx((alice_j + idle_j - least_j) / least_j)


def test_outside_of_everything_there_is_nothing(day: Cluster) -> None:
    found = between(day, -3, -1)
    assert (found.nodes, found.users) == ([], [])
    assert (found.total_energy_kwh, found.idle_device_hours, found.energy_gap) == (0.0, 0.0, None)


def test_a_job_that_still_runs_counts_until_the_end_of_the_window(cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.place(cluster.submit("bob", devices_per_node=2), "n1")
    cluster.now = at(5)
    assert [user.allocated_device_hours for user in between(cluster, 0, 3).users] == [pytest.approx(6)]


def test_a_lost_node_is_not_available_and_costs_nobody(cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.place(cluster.submit(), "n1")
    cluster.now = at(1)
    cluster.sync("n1")
    cluster.now = at(2)
    cluster.lose("n1")  # last heard of at 1 h
    cluster.now = at(5)
    cluster.sync("n1")  # back, with the device still held
    cluster.now = at(6)
    found = between(cluster, 0, 6)
    assert found.nodes[0].available_device_hours == pytest.approx(2 * (1 + 1))
    assert found.users[0].allocated_device_hours == pytest.approx(1 + 1)


def test_facility_energy_has_the_overhead_of_the_site(cluster: Cluster) -> None:
    cluster.settings = cluster.settings.model_copy(update={"pue": 1.5})
    cluster.join("n1")
    found = between(cluster, 0, 1)
    assert found.pue == 1.5
    assert found.total_energy_kwh
    assert found.facility_energy_kwh == pytest.approx(1.5 * found.total_energy_kwh)


def test_a_clock_that_steps_back_makes_no_device_count_twice(cluster: Cluster) -> None:
    cluster.join("n1", slots=1)
    cluster.now = at(1)
    first = cluster.place(cluster.submit("alice"), "n1")
    cluster.now = at(3)
    cluster.end("n1", first)
    cluster.now = at(2)
    second = cluster.place(cluster.submit("bob"), "n1")
    cluster.now = at(4)
    cluster.end("n1", second)
    found = between(cluster, 0, 5)
    assert found.nodes[0].allocated_device_hours == pytest.approx(3)
    assert {user.user: round(user.allocated_device_hours, 6) for user in found.users} == {"alice": 2, "bob": 1}


def measured(device: str | None, seconds: float, energy_j: float, age_s: float = 0) -> PowerSample:
    source = "rapl" if device is None else "nvml"
    return PowerSample(seconds=seconds, age_s=age_s, device=device, energy_j=energy_j, source=source)


@pytest.mark.parametrize(
    ("seconds", "expected_w", "quality"),
    [
        (3600, 500.0, "mixed"),  # the rest of the node is modelled
        (1800, 500.0, "mixed"),  # half an hour that was counted stands for the whole
        (1700, None, "modelled"),
    ],
)
def test_a_device_that_was_measured_is_charged_what_it_counted(
    cluster: Cluster, seconds: float, expected_w: float | None, quality: str
) -> None:
    cluster.join("g1", kind="h100", slots=2)
    attempt = cluster.place(cluster.submit("alice", device_kinds=["h100"], cpu_cores_per_node=1), "g1")
    cluster.now = at(1)
    cluster.sync("g1", samples=[measured("h100:g1:0", seconds, 500.0 * seconds)])
    cluster.end("g1", attempt)
    inventory = inventory_of(node_report("g1", 2, kind="h100"))
    host_w, busy_w = host_base_w(inventory) / 2, cpu_active_w(inventory, 1.0)
    device_w = device_power("h100").training_w if expected_w is None else expected_w
    found = between(cluster, 0, 1)
    assert found.users[0].energy_kwh * 1000 == pytest.approx(device_w + host_w + busy_w)
    assert found.idle_energy_kwh is not None
    assert found.idle_energy_kwh * 1000 == pytest.approx(device_power("h100").bare_idle_w + host_w)
    assert found.nodes[0].quality == found.users[0].quality == quality


def test_a_sample_is_charged_to_the_time_it_was_taken_in(cluster: Cluster) -> None:
    cluster.join("g1", kind="h100", slots=1)
    first = cluster.place(cluster.submit("alice"), "g1")
    cluster.now = at(0.5)
    cluster.end("g1", first)
    second = cluster.place(cluster.submit("bob"), "g1")
    cluster.now = at(1)
    hour_ago = [measured("h100:g1:0", 1800, 900_000, age_s=1800), measured("h100:g1:0", 1800, 90_000)]
    cluster.sync("g1", samples=hour_ago)
    cluster.end("g1", second)
    users = {user.user: user.energy_kwh * KWH for user in between(cluster, 0, 1).users}
    assert users["alice"] - users["bob"] == pytest.approx(900_000 - 90_000)


def test_cores_that_were_busy_are_charged_to_who_holds_them(cluster: Cluster) -> None:
    cluster.join("n1", slots=4)
    cluster.place(cluster.submit("alice", devices_per_node=1), "n1")
    cluster.place(cluster.submit("bob", devices_per_node=3), "n1")
    cluster.now = at(1)
    cluster.sync("n1", samples=[PowerSample(seconds=3600, age_s=0, busy_cores=2.0, source="proc")])
    inventory = inventory_of(node_report("n1", 4))
    users = {user.user: user.energy_kwh * 1000 for user in between(cluster, 0, 1).users}
    whole_w = host_base_w(inventory) + cpu_active_w(inventory, 2.0)
    assert users == {"alice": pytest.approx(whole_w / 4), "bob": pytest.approx(whole_w * 3 / 4)}


_numbers = itertools.count()
_steps = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "end", "lose", "hear", "boot"]),
        st.integers(0, 5),
        st.floats(0.01, 3.0),
    ),
    min_size=1,
    max_size=12,
)


def live(cluster: Cluster, steps: list[tuple[str, int, float]]) -> Iterator[None]:
    """Two nodes and three users, some hours of their life; yields after every step."""
    names = [f"n{next(_numbers)}" for _ in range(2)]
    running: list[tuple[AttemptView, str]] = []
    for name in names:
        cluster.join(name, slots=3)
    for verb, choice, hours in steps:
        name = names[choice % 2]
        if verb == "start":
            problem, _ = cluster.problem()
            node = next(node for node in problem.nodes if node.id == name)
            wanted = 1 + choice % 3
            if node.open and sum(device.free > 0 for device in node.devices) >= wanted:
                job = cluster.submit(("alice", "bob", "carol")[choice % 3], devices_per_node=wanted)
                running.append((cluster.place(job, name), name))
        elif verb == "end" and running:
            attempt, where = running.pop(choice % len(running))
            cluster.end(where, attempt, EndReason.FAILED, 1)
        elif verb == "lose":
            cluster.lose(name)
        elif verb == "hear":
            cluster.sync(name)
        elif verb == "boot":
            cluster.join(name, slots=3, boot_id=f"boot-{next(_numbers)}")
            running = [(attempt, where) for attempt, where in running if where != name]
        cluster.advance(hours * 3600)
        yield


def hours_of(when: datetime) -> float:
    return (when - START) / HOUR


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=_steps, cut=st.floats(0.05, 0.95))
def test_sums_agree_and_windows_add_up(cluster: Cluster, steps: list[tuple[str, int, float]], cut: float) -> None:
    first = hours_of(cluster.now)
    for _ in live(cluster, steps):
        pass
    last = hours_of(cluster.now)
    whole = between(cluster, first, last)
    assert whole.idle_device_hours is not None
    assert whole.idle_energy_kwh is not None
    for node in whole.nodes:
        assert node.allocated_device_hours + node.idle_device_hours == pytest.approx(node.available_device_hours)
    available = sum(node.available_device_hours for node in whole.nodes)
    allocated = sum(user.allocated_device_hours for user in whole.users)
    assert allocated + whole.idle_device_hours == pytest.approx(available)
    assert sum(user.energy_kwh for user in whole.users) + whole.idle_energy_kwh == pytest.approx(whole.total_energy_kwh)
    assert sum(node.energy_kwh for node in whole.nodes) == pytest.approx(whole.total_energy_kwh)
    assert whole.least_energy_kwh is not None
    assert whole.total_energy_kwh is not None
    assert (
        sum(user.energy_kwh for user in whole.users) <= whole.least_energy_kwh + 1e-12 <= whole.total_energy_kwh + 2e-12
    )
    middle = first + cut * (last - first)
    parts = [between(cluster, first, middle), between(cluster, middle, last)]
    assert sums(*parts) == pytest.approx(sums(whole))
    for name in ("alice", "bob", "carol"):
        own = between(cluster, first, last, name)
        assert own.users == [user for user in whole.users if user.user == name]
        assert (own.nodes, own.idle_device_hours, own.idle_energy_kwh, own.total_energy_kwh) == ([], None, None, None)
        assert (own.facility_energy_kwh, own.quality) == (None, None)


def sums(*parts: AllocationReport) -> dict[str, float]:
    """Hours and energy of every node and user over all these windows."""
    totals: dict[str, float] = {}
    for part in parts:
        for node in part.nodes:
            for name in ("available_device_hours", "allocated_device_hours", "energy_kwh", "idle_energy_kwh"):
                totals[f"{node.node} {name}"] = totals.get(f"{node.node} {name}", 0.0) + getattr(node, name)
        for user in part.users:
            for name in ("allocated_device_hours", "energy_kwh"):
                totals[f"{user.user} {name}"] = totals.get(f"{user.user} {name}", 0.0) + getattr(user, name)
    return totals


def test_the_table_has_the_same_columns_for_everybody(day: Cluster) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(between(day, 0, 4)))))
    assert list(rows[0]) == list(COLUMNS)
    assert [(row["kind"], row["name"]) for row in rows] == [("node", "n1"), ("user", "alice"), ("total", "")]
    node, user, total = rows
    assert (node["devices"], node["jobs"], user["devices"], user["jobs"]) == ("2", "", "", "1")
    assert float(node["available_device_hours"]) == float(total["available_device_hours"]) == pytest.approx(8)
    assert float(user["energy_kwh"]) + float(total["idle_energy_kwh"]) == pytest.approx(float(total["energy_kwh"]))
    assert all((row["start"], row["end"], row["pue"]) == (at(0).isoformat(), at(4).isoformat(), "1.0") for row in rows)
    own = list(csv.DictReader(io.StringIO(to_csv(between(day, 0, 4, "alice")))))
    assert own == [user]


def test_energy_has_a_price_where_one_is_set(day: Cluster) -> None:
    day.settings = day.settings.model_copy(
        update={"pue": 1.5, "price_per_kwh": 0.2, "currency": "SEK", "carbon_g_per_kwh": 400.0}
    )
    found = between(day, 0, 4)
    (alice,) = found.users
    assert (found.price_per_kwh, found.currency, found.carbon_g_per_kwh) == (0.2, "SEK", 400.0)
    assert found.total_energy_kwh is not None
    assert found.cost == pytest.approx(found.total_energy_kwh * 1.5 * 0.2)
    assert found.carbon_kg == pytest.approx(found.total_energy_kwh * 1.5 * 0.4)
    assert alice.cost == pytest.approx(alice.energy_kwh * 1.5 * 0.2)
    assert alice.carbon_kg == pytest.approx(alice.energy_kwh * 1.5 * 0.4)
    own = between(day, 0, 4, "alice")
    assert (own.users, own.currency, own.cost, own.carbon_kg) == ([alice], "SEK", None, None)
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [row["currency"] for row in rows] == ["SEK"] * 3
    assert [row["cost"] for row in rows] == ["", str(alice.cost), str(found.cost)]


def test_without_a_price_there_is_no_cost(day: Cluster) -> None:
    found = between(day, 0, 4)
    assert (found.currency, found.cost, found.carbon_kg, found.users[0].cost) == (None, None, None, None)


def test_a_name_that_looks_like_a_formula_stays_a_name(day: Cluster) -> None:
    found = between(day, 0, 4)
    for name in ("=1+1", "+1", "-1", "@sum"):
        users = [found.users[0].model_copy(update={"user": name})]
        nodes = [found.nodes[0].model_copy(update={"node": name})]
        renamed = found.model_copy(update={"users": users, "nodes": nodes})
        rows = list(csv.DictReader(io.StringIO(to_csv(renamed))))
        assert [row["name"] for row in rows] == [f"'{name}", f"'{name}", ""]


def test_the_report_over_http(client: TestClient, day: Cluster, as_root: dict[str, str]) -> None:
    window = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T04:00:00Z"}
    own = client.get("/v1/reports/allocation", params=window).json()
    assert (own["nodes"], [user["user"] for user in own["users"]]) == ([], ["alice"])
    whole = client.get("/v1/reports/allocation", params=window, headers=as_root)
    assert AllocationReport.model_validate(whole.json()) == between(day, 0, 4)
    table = client.get("/v1/reports/allocation", params=window | {"format": "csv"}, headers=as_root)
    assert table.headers["Content-Type"].startswith("text/csv")
    assert table.text == to_csv(between(day, 0, 4))
    last_day = client.get("/v1/reports/allocation", headers=as_root).json()
    assert (last_day["start"], last_day["end"]) == ("2025-12-31T04:00:00Z", "2026-01-01T04:00:00Z")
    future = client.get("/v1/reports/allocation", params={"end": "2030-01-01T00:00:00Z"}, headers=as_root).json()
    assert future["end"] == "2026-01-01T04:00:00Z", "what has not happened cannot be reported"


REFUSED_WINDOWS: list[tuple[dict[str, str], str, str]] = [
    ({"start": "2026-01-01T02:00:00Z", "end": "2026-01-01T01:00:00Z"}, "query.start", "must be before `end`"),
    ({"start": "2026-01-01T02:00:00Z", "end": "2026-01-01T02:00:00Z"}, "query.start", "must be before `end`"),
    ({"start": "2027-01-01T00:00:00Z"}, "query.start", "and in the past"),
    ({"start": "2024-12-30T00:00:00Z"}, "query.start", "the window is longer than 366 days"),
    ({"start": "0001-01-01T00:00:00+14:00"}, "query.start", "the window is longer than 366 days"),
    ({"end": "0001-01-01T00:00:00Z"}, "query.start", "must be before `end`"),
    ({"start": "2026-01-01T00:00:00"}, "query.start", "timezone"),
    ({"start": "yesterday"}, "query.start", "write date and time out"),
    ({"format": "xml"}, "query.format", "'json' or 'csv'"),
]


def test_a_window_that_cannot_be_is_refused(client: TestClient, day: Cluster, subtests: pytest.Subtests) -> None:
    for query, field, says in REFUSED_WINDOWS:
        with subtests.test(query=query):
            refused = client.get("/v1/reports/allocation", params=query)
            assert refused.status_code == 422
            (error,) = refused.json()["errors"]
            assert error["field"] == field
            assert says in error["message"]


def test_a_node_that_is_switched_costs_what_the_planner_says(cluster: Cluster) -> None:
    def change(hours: float, state: PowerState) -> None:
        cluster.now = at(hours)
        with cluster.engine.begin() as tx:
            power_store.change_power(tx, "n1", state, now=cluster.now)

    cluster.join("n1")
    cluster.now = at(1)
    change(1, PowerState.SUSPENDING)
    cluster.sync("n1", leaving=True)
    change(1.5, PowerState.OFF)
    change(4, PowerState.BOOTING)
    cluster.now = at(4.25)
    cluster.join("n1")
    cluster.now = at(5)
    found = between(cluster, 0, 5)
    (node,) = found.nodes
    power = node_power(inventory_of(node_report("n1", 2)), boot_s=900)
    off_j, boot_j = power.off_w * 2.75 * 3600, power.boot_j
    idle_j = power.base_w * (1 + 0.5 + 0.75) * 3600  # half an hour from its agent's leave to off
    assert (node.off_hours, node.boots) == (pytest.approx(2.5), 1)
    assert node.off_energy_kwh == found.off_energy_kwh == pytest.approx(off_j / KWH)
    assert node.boot_energy_kwh == found.boot_energy_kwh == pytest.approx(boot_j / KWH)
    assert node.idle_energy_kwh == pytest.approx(idle_j / KWH)
    assert found.total_energy_kwh == pytest.approx((off_j + boot_j + idle_j) / KWH)
    # Nothing ran: all that was needed is what the node draws off, at all times.
    assert found.least_energy_kwh == pytest.approx(power.off_w * 5 * 3600 / KWH)
    parts = [between(cluster, first, last) for first, last in ((0, 1.25), (1.25, 4.1), (4.1, 5))]
    assert sum(part.total_energy_kwh or 0.0 for part in parts) == pytest.approx(found.total_energy_kwh)
    assert sum(line.boots for part in parts for line in part.nodes) == 1
    # The objective of the same hours, as the planner would have promised it: a horizon of 5 h, a boot of 15 min.
    off = node_of("n1", power=power, cpu=1, on=False, can_switch=True)
    promised = evaluate(
        problem([off], [job("j", shape(kind="cpu", run_s=0.75 * 3600))], horizon_s=3600),
        [placement("j", ("n1", ["n1-cpu-0"]))],
    )
    window = between(cluster, 4, 5)
    assert promised.off_j + promised.boot_j + promised.on_j == pytest.approx((window.total_energy_kwh or 0.0) * KWH)
