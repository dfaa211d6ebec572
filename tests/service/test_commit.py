"""The commit point: a plan becomes fact whole or not at all, and only if nothing has changed since it was made."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.exc import IntegrityError

from protocol.states import AttemptState, EndReason
from scheduler.plan import MemberPlacement, Placement
from service.cycle.commit import Overtaken, TermOver
from service.cycle.leadership import Leadership
from service.models import allocations, attempts, devices, members
from tests.service.cluster import Cluster, placement_on


@pytest.fixture
def two_nodes(cluster: Cluster) -> Cluster:
    cluster.lead()
    cluster.join("n1")
    cluster.join("n2")
    return cluster


def test_a_gang_gets_what_the_plan_says(two_nodes: Cluster) -> None:
    job = two_nodes.submit(nodes=2, devices_per_node=2, cpu_cores_per_node=0.5, memory_bytes_per_node=1 << 20)
    attempt = two_nodes.place(job, "n2", "n1")
    assert [(member.node, member.devices) for member in attempt.members] == [
        ("n2", ["cpu:n2:0", "cpu:n2:1"]),
        ("n1", ["cpu:n1:0", "cpu:n1:1"]),
    ]
    view = two_nodes.job(job)
    assert (view.state, view.epoch, attempt.state) == ("starting", 1, AttemptState.GRANTED)
    problem, _ = two_nodes.problem()
    assert problem.jobs == ()
    for node in problem.nodes:
        assert (node.free_millicores, node.free_memory_bytes) == (1500, (2 << 30) - (1 << 20))
        assert [device.free for device in node.devices] == [0, 0]


def test_of_two_plans_for_one_device_exactly_one_is_committed(two_nodes: Cluster) -> None:
    jobs = [two_nodes.submit(), two_nodes.submit()]
    problem, seen = two_nodes.problem()
    first, second = (placement_on(problem, job, ("n1",)) for job in jobs)
    assert first.members == second.members
    two_nodes.commit(first, problem, seen)
    before = two_nodes.row_counts()
    with pytest.raises(Overtaken, match=f"a device for job {jobs[1]} is held by somebody else"):
        two_nodes.commit(second, problem, seen)
    assert two_nodes.row_counts() == before
    assert [two_nodes.job(job).state for job in jobs] == ["starting", "queued"]
    two_nodes.place(jobs[1], "n1")  # the next cycle sees the other device
    assert two_nodes.held_devices() == {"cpu:n1:0", "cpu:n1:1"}


def cancelled(cluster: Cluster, job: str) -> None:
    cluster.cancel(job)


def placed_and_requeued(cluster: Cluster, job: str) -> None:
    for node in ("n1", "n2"):
        cluster.join(f"{node}x")
    attempt = cluster.place(job, "n1x", "n2x")
    for node in ("n1x", "n2x"):
        cluster.end(node, attempt, EndReason.UNKNOWN_START, None)


def placed(cluster: Cluster, job: str) -> None:
    for node in ("n1", "n2"):
        cluster.join(f"{node}x")
    cluster.place(job, "n1x", "n2x")


def registered_again(cluster: Cluster, job: str) -> None:
    cluster.join("n2")


def lost(cluster: Cluster, job: str) -> None:
    cluster.lose("n2")


def without_devices(cluster: Cluster, job: str) -> None:
    """The device has moved on, though the node looks the same."""
    with cluster.engine.begin() as tx:
        tx.execute(update(devices).where(devices.c.id == "cpu:n2:0").values(present=False))


def full_of_cores(cluster: Cluster, job: str) -> None:
    cluster.place(cluster.submit(devices_per_node=1, cpu_cores_per_node=2), "n2")


def full_of_memory(cluster: Cluster, job: str) -> None:
    cluster.place(cluster.submit(memory_bytes_per_node=2 << 30, cpu_cores_per_node=0.001), "n2")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (cancelled, "job job-0001 is not as the plan saw it"),
        (placed, "job job-0001 is not as the plan saw it"),
        (placed_and_requeued, "job job-0001 is not as the plan saw it"),
        (registered_again, "node n2 is not as the plan saw it"),
        (lost, "node n2 is not as the plan saw it"),
        (without_devices, "node n2 does not offer all devices any more"),
        (full_of_cores, "node n2 has no room left"),
        (full_of_memory, "node n2 has no room left"),
    ],
)
def test_a_plan_that_was_overtaken_changes_nothing(
    two_nodes: Cluster, change: Callable[[Cluster, str], None], says: str
) -> None:
    job = two_nodes.submit(nodes=2, memory_bytes_per_node=1 << 20)
    assert job == "job-0001"
    problem, seen = two_nodes.problem()
    plan = placement_on(problem, job, ("n1", "n2"))
    change(two_nodes, job)
    before = two_nodes.job(job), two_nodes.held_devices(), two_nodes.row_counts()
    with pytest.raises(Overtaken, match=says):
        two_nodes.commit(plan, problem, seen)
    assert (two_nodes.job(job), two_nodes.held_devices(), two_nodes.row_counts()) == before


def test_a_gang_is_granted_whole_or_not_at_all(two_nodes: Cluster) -> None:
    gang, other = two_nodes.submit(nodes=2, cpu_cores_per_node=0.5), two_nodes.submit(cpu_cores_per_node=0.5)
    problem, seen = two_nodes.problem()
    plan = placement_on(problem, gang, ("n1", "n2"))
    two_nodes.commit(placement_on(problem, other, ("n2",)), problem, seen)  # the device of the second member
    before = two_nodes.row_counts()
    with pytest.raises(Overtaken):
        two_nodes.commit(plan, problem, seen)
    assert two_nodes.row_counts() == before
    assert two_nodes.held_devices() == {"cpu:n2:0"}


def test_a_plan_for_a_node_that_never_was_is_refused(two_nodes: Cluster) -> None:
    job = two_nodes.submit()
    problem, seen = two_nodes.problem()
    nowhere = Placement(job=job, shape=0, members=(MemberPlacement(node="n9", devices=("cpu:n9:0",)),))
    with pytest.raises(Overtaken, match="a node is gone"):
        two_nodes.commit(nowhere, problem, seen)


def test_who_does_not_lead_any_more_commits_nothing(two_nodes: Cluster) -> None:
    job = two_nodes.submit()
    problem, seen = two_nodes.problem()
    plan, term = placement_on(problem, job, ("n1",)), two_nodes.lead()
    other = Leadership(two_nodes.engine, "other")
    assert other.lead(0.0) == term + 1
    before = two_nodes.row_counts()
    for wrong in (term, term + 2):
        with pytest.raises(TermOver, match=f"term {wrong} is over"):
            two_nodes.commit(plan, problem, seen, term=wrong)
    assert two_nodes.row_counts() == before
    two_nodes.commit(plan, problem, seen, term=term + 1)
    with two_nodes.engine.begin() as tx:
        assert tx.execute(select(attempts.c.term)).scalars().all() == [term + 1]


def test_the_database_itself_forbids_two_holders_of_one_share(two_nodes: Cluster) -> None:
    attempt = two_nodes.place(two_nodes.submit(), "n1")
    with two_nodes.engine.begin() as tx:
        held = tx.execute(select(allocations)).one()
        free = tx.execute(select(devices.c.seq).where(devices.c.id == "cpu:n1:1")).scalar_one()
    first = held.span.lower

    def hold(lower: int, upper: int) -> None:
        with two_nodes.engine.begin() as tx:
            values = {"attempt_id": attempt.id, "member": 0, "device_id": held.device_id, "granted_at": two_nodes.now}
            tx.execute(insert(allocations).values(**values, span=Range(lower, upper)))

    for lower, upper in (
        (first, first + 1000),
        (first, first + 1),
        (first + 999, first + 1000),
        (first + 1, first + 2),
    ):
        with pytest.raises(IntegrityError, match="allocations_one_holder_excl"):
            hold(lower, upper)
    with pytest.raises(IntegrityError, match="allocations_span_check"):
        hold(free * 1000, free * 1000)
    hold(free * 1000, free * 1000 + 300)
    hold(free * 1000 + 300, free * 1000 + 1000)  # shares of one device, side by side
    with two_nodes.engine.begin() as tx:
        tx.execute(update(allocations).values(released_at=two_nodes.now))
    hold(first, first + 1000)


def test_the_database_itself_forbids_two_live_attempts_of_one_job(two_nodes: Cluster) -> None:
    job = two_nodes.submit()
    attempt = two_nodes.place(job, "n1")

    def start(epoch: int) -> None:
        values = {"id": f"try-x{epoch}", "job_id": job, "epoch": epoch, "term": 1, "state": "granted", "desired": "run"}
        with two_nodes.engine.begin() as tx:
            tx.execute(insert(attempts).values(**values, granted_at=two_nodes.now))

    with pytest.raises(IntegrityError, match="attempts_live_key"):
        start(2)
    two_nodes.end("n1", attempt)
    with pytest.raises(IntegrityError, match="attempts_job_id_epoch_key"):
        start(1)
    start(2)


def test_the_database_itself_forbids_two_members_of_a_gang_on_one_node(two_nodes: Cluster) -> None:
    attempt = two_nodes.place(two_nodes.submit(), "n1")
    values = {"attempt_id": attempt.id, "node_id": "n1", "millicores": 1, "memory_bytes": 0, "state": "granted"}
    second = insert(members).values(**values, member=1, granted_at=two_nodes.now)
    with two_nodes.engine.begin() as tx, pytest.raises(IntegrityError, match="members_attempt_id_node_id_key"):
        tx.execute(second)


def test_a_plan_with_one_node_twice_is_overtaken_by_the_database(two_nodes: Cluster) -> None:
    job = two_nodes.submit(nodes=2, cpu_cores_per_node=0.5)
    problem, seen = two_nodes.problem()
    plan = placement_on(problem, job, ("n1",))
    twice = replace(plan, members=(*plan.members, MemberPlacement(node="n1", devices=("cpu:n1:1",))))
    before = two_nodes.row_counts()
    with pytest.raises(Overtaken):
        two_nodes.commit(twice, problem, seen)
    assert two_nodes.row_counts() == before
