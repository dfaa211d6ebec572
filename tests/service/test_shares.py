"""Jobs that share a device, and jobs without one: from the request to the grant, the pages and the bill."""

import json
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.exc import IntegrityError

from protocol.nodes import DeviceReport
from protocol.states import Role
from service.cycle.commit import Overtaken
from service.db import snapshot
from service.models import allocations
from service.reports.allocation import report
from service.tariffs import Tariff
from tests.service.cluster import Cluster, placement_on
from tests.service.test_cycle import new_cycle, reasons, states


@pytest.fixture
def one_device(cluster: Cluster) -> Cluster:
    cluster.lead()
    cluster.join("n1", slots=1, kind="t4")
    return cluster


def holders(cluster: Cluster, node: str = "n1") -> list[list[tuple[str, float]]]:
    """Who holds how much of each device of the node."""
    return [[(holder.job, holder.share) for holder in device.holders] for device in cluster.node(node).devices]


def test_jobs_share_a_device_until_it_is_full(one_device: Cluster) -> None:
    jobs = [one_device.submit(device_share=0.4) for _ in range(3)]
    cycle = new_cycle(one_device)
    cycle.step(woken=True)
    assert states(one_device, *jobs) == ["starting", "starting", "queued"]
    assert holders(one_device) == [[(jobs[0], 0.4), (jobs[1], 0.4)]]
    cycle.step(woken=True)
    assert reasons(one_device, jobs[2]) == ("waiting", ["devices_busy"])
    (first, second) = one_device.sync("n1").assignments
    assert [(grant.id, grant.thousandths) for grant in first.devices + second.devices] == [("t4:n1:0", 400)] * 2
    one_device.end("n1", one_device.job(jobs[0]).attempts[0])
    cycle.step(woken=True)
    assert holders(one_device) == [[(jobs[1], 0.4), (jobs[2], 0.4)]]


def test_a_share_may_lie_in_pieces_and_counts_once(one_device: Cluster) -> None:
    ends = [one_device.place(one_device.submit(device_share=0.3), "n1") for _ in range(3)]
    for attempt in (ends[0], ends[2]):
        one_device.end("n1", attempt)
    job = one_device.submit(device_share=0.7)
    attempt = one_device.place(job, "n1")
    with one_device.engine.begin() as tx:
        query = select(allocations.c.span).where(allocations.c.attempt_id == attempt.id).order_by(allocations.c.span)
        spans = [(span.lower % 1000, (span.upper - 1) % 1000 + 1) for span in tx.execute(query).scalars()]
    assert spans == [(0, 300), (600, 1000)]
    assert attempt.members[0].devices == ["t4:n1:0"]
    grants = {item.job: item.devices for item in one_device.sync("n1").assignments}
    assert [grant.thousandths for grant in grants[job]] == [700]
    assert holders(one_device)[0][-1] == (job, 0.7)


def test_the_database_refuses_more_than_the_whole(one_device: Cluster) -> None:
    attempt = one_device.place(one_device.submit(device_share=0.6), "n1")
    with one_device.engine.begin() as tx:
        row = tx.execute(select(allocations).where(allocations.c.attempt_id == attempt.id)).one()
    values = {"attempt_id": attempt.id, "member": 0, "device_id": row.device_id, "granted_at": one_device.now}
    over = insert(allocations).values(**values, span=Range(row.span.upper - 1, row.span.upper + 400))
    with pytest.raises(IntegrityError, match="allocations_one_holder_excl"), one_device.engine.begin() as tx:
        tx.execute(over)


@pytest.mark.parametrize(("first", "second"), [(0.6, 0.6), (0.001, 1.0), (1.0, 0.001)])
def test_of_two_plans_for_too_much_of_a_device_one_is_committed(
    one_device: Cluster, first: float, second: float
) -> None:
    jobs = [one_device.submit(device_share=share, cpu_cores_per_node=0.1) for share in (first, second)]
    problem, seen = one_device.problem()
    one_device.commit(placement_on(problem, jobs[0], ("n1",)), problem, seen)
    before = one_device.row_counts()
    with pytest.raises(Overtaken, match="is held by somebody else"):
        one_device.commit(placement_on(problem, jobs[1], ("n1",)), problem, seen)
    assert one_device.row_counts() == before


def test_a_job_without_devices_takes_cores_and_memory_only(one_device: Cluster) -> None:
    whole = one_device.submit(cpu_cores_per_node=0.25)
    plain = one_device.submit(devices_per_node=0, cpu_cores_per_node=0.5, memory_bytes_per_node=1 << 20)
    late = one_device.submit(devices_per_node=0, cpu_cores_per_node=0.5)
    cycle = new_cycle(one_device)
    cycle.step(woken=True)
    assert states(one_device, whole, plain, late) == ["starting", "starting", "queued"]
    assert one_device.job(plain).attempts[0].members[0].devices == []
    cycle.step(woken=True)
    assert reasons(one_device, late) == ("waiting", ["cores_busy"])
    grants = {item.job: item for item in one_device.sync("n1").assignments}
    assert (grants[plain].devices, grants[plain].ranks, grants[plain].cpu_cores) == ([], 1, 0.5)
    one_device.end("n1", one_device.job(plain).attempts[0])
    cycle.step(woken=True)
    assert states(one_device, plain, late) == ["succeeded", "starting"]


def test_isolation_that_no_device_gives_is_impossible(one_device: Cluster) -> None:
    job = one_device.submit(device_share=0.5, device_isolation="memory")
    new_cycle(one_device).step(woken=True)
    assert reasons(one_device, job) == ("impossible", ["too_little_isolation"])


def test_nodes_with_devices_of_several_kinds_take_shares_and_jobs_without_devices(cluster: Cluster) -> None:
    gpu = DeviceReport(id="t4:n1:0", kind="t4", index=2)
    slots = [DeviceReport(id=f"cpu:n1:{slot}", kind="cpu", index=slot) for slot in range(2)]
    cluster.join("n1", devices=[*slots, gpu])
    cores: dict[str, Any] = {"cpu_cores_per_node": 0.2}
    jobs = [
        cluster.submit(device_share=0.5, device_kinds=["t4"], **cores),
        cluster.submit(devices_per_node=2, device_kinds=["cpu"], **cores),
        cluster.submit(devices_per_node=0, **cores),
        cluster.submit(device_share=0.5, **cores),
        cluster.submit(device_share=0.5, **cores),
    ]
    new_cycle(cluster).step(woken=True)
    assert states(cluster, *jobs) == ["starting"] * 4 + ["queued"]
    assert holders(cluster) == [[(jobs[1], 1.0)], [(jobs[1], 1.0)], [(jobs[0], 0.5), (jobs[3], 0.5)]]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"device_share": 0}, "device_share"),
        ({"device_share": 1.5}, "device_share"),
        ({"device_share": 0.0005}, "write 0.25 or 0.125"),
        ({"device_share": 0.5, "devices_per_node": 2}, "it goes with `devices_per_node` 1, not 2"),
        ({"device_share": 0.5, "devices_per_node": 0}, "it goes with `devices_per_node` 1, not 0"),
        ({"device_isolation": "memory"}, "goes with a `device_share` below 1"),
        ({"device_share": 0.5, "device_isolation": "time-sliced"}, "device_isolation"),
        ({"devices_per_node": 0, "device_kinds": ["t4"]}, "leave one of them out"),
        ({"devices_per_node": -1}, "devices_per_node"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_the_remedy(
    client: TestClient, spec: dict[str, object], says: str
) -> None:
    answer = client.post("/v1/jobs", json={"command": ["true"], **spec})
    assert answer.status_code == 422
    assert says in answer.text


def test_a_dry_run_weighs_shares(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1", slots=1)
    jobs = [{"command": ["true"], "device_share": 0.6}, {"command": ["true"], "device_share": 0.6}]
    items = client.post("/v1/jobs/dry-run", json={"jobs": jobs}).json()["items"]
    assert [item["verdict"]["outcome"] for item in items] == ["placed", "waiting"]


def test_sharers_divide_the_bill_by_their_shares(one_device: Cluster) -> None:
    start = one_device.now
    one_device.place(one_device.submit("alice", device_share=0.2, cpu_cores_per_node=0.001), "n1")
    one_device.place(one_device.submit("bob", device_share=0.6, cpu_cores_per_node=0.001), "n1")
    one_device.place(one_device.submit("carol", devices_per_node=0, cpu_cores_per_node=0.001), "n1")
    one_device.advance(3600)
    with snapshot(one_device.engine) as tx:
        person = one_device.person("root", Role.ADMIN)
        found = report(tx, person, start=start, end=start + timedelta(hours=1), tariff=Tariff())
    users = {user.user: user for user in found.users}
    assert {name: user.allocated_device_hours for name, user in users.items()} == pytest.approx(
        {"alice": 0.2, "bob": 0.6, "carol": 0.0}
    )
    cpu_kwh = users["carol"].energy_kwh
    assert cpu_kwh > 0
    assert users["bob"].energy_kwh - cpu_kwh == pytest.approx(3 * (users["alice"].energy_kwh - cpu_kwh))
    assert found.idle_energy_kwh is not None
    assert found.idle_energy_kwh + sum(user.energy_kwh for user in found.users) == pytest.approx(found.total_energy_kwh)
    assert found.nodes[0].idle_device_hours == pytest.approx(0.2)


def test_a_recorded_cycle_with_shares_is_solved_again_from_outside(
    client: TestClient, cluster: Cluster, as_root: dict[str, str]
) -> None:
    for name in ("n1", "n2"):
        cluster.join(name)
    asked: list[dict[str, Any]] = [{"device_share": 0.3}, {"device_share": 0.7}, {"devices_per_node": 0}]
    for spec in [*asked, {"devices_per_node": 2}]:
        cluster.submit(**spec, cpu_cores_per_node=0.3)
    new_cycle(cluster).step(woken=True)
    (number,) = (item["id"] for item in client.get("/v1/cycles", headers=as_root).json()["items"])
    recorded = client.get(f"/v1/cycles/{number}", headers=as_root).json()
    command = [sys.executable, "-m", "bench.again"]
    again = subprocess.run(command, input=json.dumps(recorded), capture_output=True, text=True, check=False)
    assert again.stdout.startswith("2 nodes, 4 jobs, 4 placed by packed, ")
    assert again.stdout.endswith(": the same plan\n")
    assert again.returncode == 0
    recorded["plan"]["placements"].pop()
    other = subprocess.run(command, input=json.dumps(recorded), capture_output=True, text=True, check=False)
    assert (other.returncode, "ANOTHER PLAN" in other.stdout) == (1, True)
