"""The cycle: jobs are placed or told why not, what was decided can be decided again, and only one process decides."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from protocol.cycles import CycleDetail
from protocol.states import EndReason
from scheduler import codec
from scheduler.learning import outlook_of_past
from scheduler.plan import Plan
from scheduler.problem import Budget, Problem
from scheduler.solve import solve
from service.cycle.hooks import Hooks
from service.cycle.leadership import PATIENCE_S, Leadership
from service.cycle.leases import MARGIN_S, QUIET_S
from service.cycle.loop import LONGEST_STEP_S, Cycle
from service.cycle.outlook import Learn
from service.lifecycle import back_off_s
from service.store import cycles as cycle_store
from tests.service.cluster import Cluster

Solve = Callable[[Problem, Budget], Plan]


def new_cycle(
    cluster: Cluster,
    holder: str = "cycle-1",
    solve: Solve = solve,
    learn: Learn = outlook_of_past,
    hooks: Hooks | None = None,
) -> Cycle:
    return Cycle(
        cluster.engine,
        cluster.settings,
        holder=holder,
        solve=solve,
        now=lambda: cluster.now,
        clock_s=cluster.clock_s,
        new_id=cluster.new_id,
        learn=learn,
        hooks=hooks,
    )


def states(cluster: Cluster, *jobs: str) -> list[str]:
    return [cluster.job(job).state for job in jobs]


def reasons(cluster: Cluster, job: str) -> tuple[str, list[str]]:
    verdict = cluster.job(job).verdict
    assert verdict is not None
    assert all(reason.message for reason in verdict.reasons)
    return verdict.outcome, [reason.code for reason in verdict.reasons]


def test_a_job_that_fits_is_placed(cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.join("n2")
    gang = cluster.submit(nodes=2, devices_per_node=2)
    new_cycle(cluster).step(woken=True)
    view = cluster.job(gang)
    assert (view.state, view.epoch) == ("starting", 1)
    assert reasons(cluster, gang) == ("placed", [])
    assert {member.node: member.devices for member in view.attempts[0].members} == {
        "n1": ["cpu:n1:0", "cpu:n1:1"],
        "n2": ["cpu:n2:0", "cpu:n2:1"],
    }
    assert cluster.events(gang) == ["submitted", "placed"]
    assert [item.job for item in cluster.sync("n2").assignments] == [gang]


def test_jobs_that_wait_are_told_why_and_come_in_turn(cluster: Cluster) -> None:
    cluster.join("n1")
    first, second, third = (cluster.submit(devices_per_node=2) for _ in range(3))
    cycle = new_cycle(cluster)
    cycle.step(woken=True)
    assert states(cluster, first, second, third) == ["starting", "queued", "queued"]
    for job in (second, third):
        outcome, codes = reasons(cluster, job)
        assert outcome == "waiting"
        assert codes
    for done, following in ((first, second), (second, third)):
        cluster.end("n1", cluster.job(done).attempts[0])
        cycle.step(woken=True)
        assert states(cluster, done, following) == ["succeeded", "starting"]


def test_a_job_that_is_impossible_stays_in_line_until_a_node_comes(cluster: Cluster) -> None:
    cluster.join("n1")
    large = cluster.submit(devices_per_node=4)
    cycle = new_cycle(cluster)
    cycle.step(woken=True)
    assert states(cluster, large) == ["queued"]
    assert reasons(cluster, large) == ("impossible", ["too_few_devices"])
    cluster.join("n2", slots=4)
    cycle.step(woken=True)
    assert states(cluster, large) == ["starting"]


def test_a_lost_node_gets_nothing(cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.lose("n1")
    job = cluster.submit()
    new_cycle(cluster).step(woken=True)
    assert states(cluster, job) == ["queued"]
    assert reasons(cluster, job)[0] == "waiting"


def test_without_jobs_there_is_nothing_to_decide_or_record(cluster: Cluster) -> None:
    cluster.join("n1")
    new_cycle(cluster).step(woken=True)
    assert cluster.row_counts()["cycles"] == 0


def test_between_ticks_only_news_makes_a_plan(cluster: Cluster) -> None:
    cycle = new_cycle(cluster)
    cluster.submit()
    cycle.step(woken=False)
    assert cluster.row_counts()["cycles"] == 1, "who begins to lead plans"
    cluster.advance(cluster.settings.tick_s - 1)
    cycle.step(woken=False)
    assert cluster.row_counts()["cycles"] == 1
    cycle.step(woken=True)
    assert cluster.row_counts()["cycles"] == 2
    cluster.advance(cluster.settings.tick_s)
    cycle.step(woken=False)
    assert cluster.row_counts()["cycles"] == 3


def test_a_recorded_cycle_solves_to_the_same_plan_again(
    client: TestClient, cluster: Cluster, as_root: dict[str, str]
) -> None:
    for name, slots in (("n1", 4), ("n2", 3), ("n3", 2)):
        cluster.join(name, slots=slots)
    cluster.place(cluster.submit(expected_run_s=500), "n1")
    for number in range(8):
        cluster.submit(nodes=1 + number % 2, devices_per_node=1 + number % 3, priority=number % 2, expected_run_s=600)
    solved: list[Plan] = []

    def remember(problem: Problem, budget: Budget) -> Plan:
        solved.append(solve(problem, budget))
        return solved[-1]

    new_cycle(cluster, solve=remember).step(woken=True)
    with cluster.engine.begin() as tx:
        (row,) = cycle_store.list_cycles(tx, before=None, limit=10)
        stored = cycle_store.find_cycle(tx, row.id)
    assert stored is not None
    problem = codec.decode_problem(zlib.decompress(stored.problem))
    assert codec.encode_plan(solve(problem)) == zlib.decompress(stored.plan) == codec.encode_plan(solved[0])
    assert (row.pending, row.term, row.at) == (8, 2, cluster.now)
    assert row.placed == row.committed == len(solved[0].placements) > 0
    assert (row.objective_j, row.bound_j, row.gap) == (solved[0].objective_j, solved[0].bound_j, solved[0].gap)
    shown = client.get(f"/v1/cycles/{row.id}", headers=as_root).json()
    detail = CycleDetail.model_validate(shown)
    assert (detail.method, detail.status) == (solved[0].method, solved[0].status)
    assert [job["id"] for job in shown["problem"]["jobs"]] == [job.id for job in problem.jobs]
    assert len(shown["plan"]["placements"]) == row.placed
    listed = client.get("/v1/cycles", headers=as_root).json()["items"]
    assert [item["id"] for item in listed] == [row.id]
    assert "problem" not in listed[0]
    missing = client.get(f"/v1/cycles/{row.id + 1}", headers=as_root)
    assert (missing.status_code, missing.json()["type"]) == (404, "urn:ergon:unknown-cycle")


def test_a_plan_that_breaks_the_rules_is_dropped_whole(cluster: Cluster) -> None:
    cluster.join("n1")
    first, second = cluster.submit(), cluster.submit()

    def greedy_for_trouble(problem: Problem, budget: Budget) -> Plan:
        plan = solve(problem, budget)
        one, other = plan.placements
        return replace(plan, placements=(one, replace(other, members=one.members)))  # both on one device

    before = cluster.job(first).verdict
    new_cycle(cluster, solve=greedy_for_trouble).step(woken=True)
    assert states(cluster, first, second) == ["queued", "queued"]
    assert cluster.job(first).verdict == before
    assert cluster.row_counts()["cycles"] == cluster.row_counts()["attempts"] == 0


def test_what_changes_while_the_solver_works_is_not_committed_and_the_rest_is(
    client: TestClient, cluster: Cluster, as_root: dict[str, str]
) -> None:
    cluster.join("n1")
    doomed, lucky = cluster.submit(), cluster.submit()

    def slow(problem: Problem, budget: Budget) -> Plan:
        cluster.cancel(doomed)
        return solve(problem, budget)

    new_cycle(cluster, solve=slow).step(woken=True)
    assert states(cluster, doomed, lucky) == ["cancelled", "starting"]
    (row,) = client.get("/v1/cycles", headers=as_root).json()["items"]
    assert (row["pending"], row["placed"], row["committed"]) == (2, 2, 1)
    assert reasons(cluster, doomed)[0] == "waiting", "it was never placed"
    assert cluster.held_devices() == {device for m in cluster.job(lucky).attempts[0].members for device in m.devices}


def test_a_silent_node_is_lost_and_its_job_goes_elsewhere(cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit(devices_per_node=2)
    cycle = new_cycle(cluster)
    cycle.step(woken=True)
    cluster.join("n2")
    for _ in range(int(cluster.settings.lease_s + MARGIN_S)):
        cluster.advance(1)
        cluster.sync("n2")
        cycle.step(woken=False)
    assert states(cluster, job) == ["starting"], "the lease and its margin are not over"
    for _ in range(3 + int(back_off_s(1))):
        cluster.advance(1)
        cluster.sync("n2")
        cycle.step(woken=True)
    view = cluster.job(job)
    assert [(attempt.reason, attempt.members[0].node) for attempt in view.attempts] == [
        (EndReason.NODE_LOST, "n1"),
        (None, "n2"),
    ]
    assert (view.state, view.epoch) == ("starting", 2)
    assert cluster.held_devices() == {"cpu:n1:0", "cpu:n1:1", "cpu:n2:0", "cpu:n2:1"}


def test_a_node_that_offers_less_than_its_jobs_hold_does_not_stop_the_planner(cluster: Cluster) -> None:
    cluster.join("n1", slots=4)
    cluster.place(cluster.submit(devices_per_node=4, memory_bytes_per_node=4 << 30), "n1")
    cluster.join("n1", slots=1)  # its agent was started again with less
    cluster.join("n2", slots=1)
    job = cluster.submit()
    new_cycle(cluster).step(woken=True)
    assert [member.node for member in cluster.job(job).attempts[0].members] == ["n2"]


@pytest.mark.parametrize("limit", [{"time_limit_s": 5e-324}, {"expected_run_s": 5e-324}, {"time_limit_s": 1e9}])
def test_no_estimate_of_a_user_stops_the_planner(cluster: Cluster, limit: dict[str, Any]) -> None:
    cluster.join("n1")
    job = cluster.submit("alice", **limit)
    new_cycle(cluster).step(woken=True)
    assert states(cluster, job) == ["starting"]


def test_a_second_process_stands_by_and_takes_over_when_the_first_stands_still(cluster: Cluster) -> None:
    cluster.join("n1")
    first, second = new_cycle(cluster, "first"), new_cycle(cluster, "second")
    first.step(woken=True)
    for _ in range(10):
        cluster.advance(PATIENCE_S / 3)
        first.step(woken=False)
        second.step(woken=True)
    job = cluster.submit()
    second.step(woken=True)
    assert states(cluster, job) == ["queued"], "the first one still renews"
    cluster.advance(PATIENCE_S)
    second.step(woken=True)
    assert states(cluster, job) == ["starting"]
    with cluster.engine.begin() as tx:
        row = cycle_store.read_leadership(tx)
    assert row is not None
    assert (row.holder, row.term) == ("second", 2)


def test_who_was_overtaken_while_solving_commits_nothing_and_stands_by(cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit()
    second = new_cycle(cluster, "second")

    def stalled(problem: Problem, budget: Budget) -> Plan:
        second.step(woken=True)
        cluster.advance(PATIENCE_S)
        second.step(woken=True)
        return solve(problem, budget)

    first = new_cycle(cluster, "first", stalled)
    first.step(woken=True)
    view = cluster.job(job)
    assert (view.state, len(view.attempts)) == ("starting", 1)
    with cluster.engine.begin() as tx:
        (row,) = cycle_store.list_cycles(tx, before=None, limit=10)
    assert (row.term, row.committed) == (2, 1), "the second one's plan, and no other"
    cluster.end("n1", view.attempts[0])
    waiting = cluster.submit()
    first.step(woken=True)
    assert states(cluster, waiting) == ["queued"]
    second.step(woken=True)
    assert states(cluster, waiting) == ["starting"]


def test_who_resigns_is_followed_at_once(cluster: Cluster) -> None:
    cluster.join("n1")
    first, second = new_cycle(cluster, "first"), new_cycle(cluster, "second")
    first.step(woken=True)
    second.step(woken=True)
    job = cluster.submit()
    first.resign()
    second.step(woken=True)
    assert states(cluster, job) == ["starting"]


def test_of_two_that_reach_for_the_lead_one_gets_it(cluster: Cluster) -> None:
    both = [Leadership(cluster.engine, name) for name in ("a", "b")]
    assert [each.lead(0.0) for each in both] == [1, None]
    later = [Leadership(cluster.engine, name) for name in ("c", "d")]
    assert [each.lead(0.0) for each in later] == [None, None]
    assert [each.lead(PATIENCE_S) for each in later] == [2, None]
    assert both[0].lead(PATIENCE_S) is None
    assert [each.lead(1.5 * PATIENCE_S) for each in later] == [2, None]
    assert later[1].lead(2.6 * PATIENCE_S) == 3, "on its own clock the leader has stood still for long enough"


def test_a_leader_that_solves_for_long_stays_the_leader(cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit()
    second = new_cycle(cluster, "second")

    def long(problem: Problem, budget: Budget) -> Plan:
        for _ in range(10):
            cluster.advance(PATIENCE_S / 3)
            first.keep_leading()  # as another thread does meanwhile
            second.step(woken=True)
        return solve(problem, budget)

    first = new_cycle(cluster, "first", long)
    first.step(woken=True)
    assert states(cluster, job) == ["starting"]
    with cluster.engine.begin() as tx:
        (row,) = cycle_store.list_cycles(tx, before=None, limit=10)
    assert (row.term, row.committed) == (1, 1)


def test_a_leader_that_hangs_is_not_kept(cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit()
    second = new_cycle(cluster, "second")

    def hangs(problem: Problem, budget: Budget) -> Plan:
        second.step(woken=True)
        for _ in range(int(LONGEST_STEP_S + PATIENCE_S) + 1):
            cluster.advance(1)
            first.keep_leading()
            second.step(woken=True)
        return solve(problem, budget)

    first = new_cycle(cluster, "first", hangs)
    first.step(woken=True)
    assert states(cluster, job) == ["starting"]
    with cluster.engine.begin() as tx:
        assert [row.term for row in cycle_store.list_cycles(tx, before=None, limit=10)] == [2]


def test_a_node_that_is_quiet_keeps_what_it_has_and_gets_nothing_new(cluster: Cluster) -> None:
    cluster.join("n1")
    has = cluster.submit()
    cycle = new_cycle(cluster)
    cycle.step(woken=True)
    for _ in range(int(min(QUIET_S, cluster.settings.lease_s / 2)) + 2):
        cluster.advance(1)
        cycle.step(woken=False)
    waits = cluster.submit()
    cycle.step(woken=True)
    assert states(cluster, has, waits) == ["starting", "queued"]
    assert reasons(cluster, waits)[1][0] == "nodes_closed"
    cluster.sync("n1")
    cluster.advance(1)
    cycle.step(woken=True)
    assert states(cluster, has, waits) == ["starting", "starting"]


def test_when_most_nodes_fall_silent_at_once_no_job_is_taken_from_them(cluster: Cluster) -> None:
    names = ["n1", "n2", "n3", "n4"]
    for name in names:
        cluster.join(name)
    running = [cluster.submit(devices_per_node=2) for _ in names]
    cycle = new_cycle(cluster)
    cycle.step(woken=True)
    for _ in range(3 * int(cluster.settings.lease_s + MARGIN_S)):
        cluster.advance(1)
        cluster.sync("n1")
        cycle.step(woken=False)
    assert states(cluster, *running) == ["starting"] * 4
    assert cluster.alarms() == {"nodes_silent": ""}
    cluster.sync("n2")
    for _ in range(2):
        cluster.advance(1)
        cycle.step(woken=False)
    epochs = {cluster.job(job).attempts[0].members[0].node: len(cluster.events(job)) for job in running}
    assert [epochs[name] > 2 for name in names] == [False, False, True, True], "n3 and n4 are silent by themselves"
    assert cluster.alarms() == {}
