"""Jobs that run are moved through real cycles: within a budget, only those that allow it, and never in two places."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from protocol.jobs import AttemptView
from protocol.states import AttemptState, EndReason
from scheduler.plan import Plan
from scheduler.problem import Budget, Problem
from scheduler.solve import solve
from service.cycle.claims import PATIENCE_S, Allowance
from service.cycle.loop import GATHER_EVERY_S, Cycle
from service.cycle.running import RESTART_S
from service.power_pools import PowerPool
from tests.builders import job
from tests.service.cluster import Cluster
from tests.service.test_cycle import new_cycle, reasons, states

LONG_S = 36_000.0


def allow(cluster: Cluster, moves_per_job: float) -> Cycle:
    """A cycle that leads and has seen the empty queue."""
    cluster.settings = cluster.settings.model_copy(update={"moves_per_job": moves_per_job})
    cycle = new_cycle(cluster)
    cycle.step(woken=True)
    return cycle


def run(cluster: Cluster, node: str, *, saved: int | None = 10, may_move: bool = True, **spec: object) -> str:
    """A job that runs on the node and has saved a checkpoint."""
    name = cluster.submit(may_move=may_move, expected_run_s=LONG_S, **spec)
    cluster.tell(node, cluster.place(name, node), AttemptState.RUNNING, checkpoint=saved)
    return name


def latest(cluster: Cluster, name: str) -> AttemptView:
    return cluster.job(name).attempts[-1]


def leave(cluster: Cluster, name: str) -> None:
    """The job's ranks have left as they were told."""
    attempt = latest(cluster, name)
    cluster.end(attempt.members[0].node, attempt, EndReason.CANCELLED, 1)


@pytest.fixture
def two(cluster: Cluster) -> Cluster:
    """Two nodes of two devices."""
    cluster.lead()
    for name in ("n1", "n2"):
        cluster.join(name, kind="t4")
    return cluster


def test_a_job_is_moved_to_make_room_and_both_go_where_the_plan_has_them(two: Cluster) -> None:
    cycle = allow(two, 1.0)
    stays, moves = run(two, "n1", may_move=False), run(two, "n2")
    wide = two.submit(devices_per_node=2)
    cycle.step(woken=True)
    assert two.events(moves)[-1] == "moving"
    assert [(item.job, item.desired) for item in two.sync("n2").assignments] == [(moves, "stop")]
    assert states(two, stays, moves, wide) == ["running", "running", "queued"]
    assert reasons(two, wide) == ("waiting", ["room_is_made"])
    # What came later gets neither the room that is made nor the place that the moved job goes to.
    small = two.submit()
    cycle.step(woken=True)
    assert reasons(two, small) == ("waiting", ["devices_busy"])
    assert two.events(moves).count("moving") == 1
    leave(two, moves)
    assert two.job(moves).not_before is None, "a move is no loss"
    cycle.step(woken=True)
    assert states(two, stays, moves, wide, small) == ["running", "starting", "starting", "queued"]
    where = {name: [member.node for member in latest(two, name).members] for name in (stays, moves, wide)}
    assert where == {stays: ["n1"], moves: ["n1"], wide: ["n2"]}
    assert [attempt.reason for attempt in two.job(moves).attempts] == [EndReason.MOVED, None]
    assert reasons(two, wide) == reasons(two, moves) == ("placed", [])
    assert two.sync("n1").assignments[-1].checkpoint is not None


@pytest.mark.parametrize(
    ("moves_per_job", "spec"),
    [
        (0.0, {}),
        (0.5, {}),
        (1.0, {"may_move": False}),
        (1.0, {"saved": None}),
    ],
    ids=["no budget", "too small a budget", "it did not allow it", "it has not saved"],
)
def test_otherwise_jobs_stay_where_they_are(two: Cluster, moves_per_job: float, spec: dict[str, object]) -> None:
    cycle = allow(two, moves_per_job)
    jobs = [run(two, node, **spec) for node in ("n1", "n2")]  # pyright: ignore[reportArgumentType]
    wide = two.submit(devices_per_node=2)
    cycle.step(woken=True)
    assert states(two, *jobs, wide) == ["running", "running", "queued"]
    assert reasons(two, wide) == ("waiting", ["devices_busy"])
    assert "moving" not in two.events(jobs[0]) + two.events(jobs[1])


def test_a_job_that_was_moved_is_not_moved_again_before_it_has_saved_again(two: Cluster) -> None:
    cycle = allow(two, 1.0)
    stays, moves = run(two, "n1", may_move=False), run(two, "n2")
    wide = two.submit(devices_per_node=2)
    cycle.step(woken=True)
    leave(two, moves)
    cycle.step(woken=True)
    two.end("n2", latest(two, wide))
    two.tell("n1", latest(two, moves), AttemptState.RUNNING)
    two.end("n1", latest(two, stays))
    other = run(two, "n2", may_move=False)
    wider = two.submit(devices_per_node=2)
    cycle.step(woken=True)
    assert states(two, moves, other, wider) == ["running", "running", "queued"]
    assert two.events(moves).count("moving") == 1
    two.tell("n1", latest(two, moves), AttemptState.RUNNING, checkpoint=20)
    cycle.step(woken=True)
    assert two.events(moves).count("moving") == 2


def expensive(cluster: Cluster) -> str:
    """A job on an H100 that a T4 would do for, and an arrival that has its own place."""
    cluster.lead()
    cluster.join("n1", kind="h100")
    cluster.join("n2", kind="t4")
    return run(cluster, "n1", device_kinds=["h100", "t4"])


def test_a_job_is_moved_for_the_power_that_saves(cluster: Cluster) -> None:
    name = expensive(cluster)
    cycle = allow(cluster, 1.0)
    arrival = cluster.submit(device_kinds=["t4"])
    cycle.step(woken=True)
    assert states(cluster, name, arrival) == ["running", "starting"]
    leave(cluster, name)
    cycle.step(woken=True)
    assert [member.node for member in latest(cluster, name).members] == ["n2"]


def test_a_move_pays_for_the_restart_and_the_work_since_the_latest_checkpoint(cluster: Cluster) -> None:
    name = expensive(cluster)
    seen: list[Problem] = []

    def remember(problem: Problem, budget: Budget) -> Plan:
        seen.append(problem)
        return solve(problem, budget)

    cluster.settings = cluster.settings.model_copy(update={"moves_per_job": 1.0})
    cycle = new_cycle(cluster, solve=remember)
    cycle.step(woken=True)
    cluster.advance(LONG_S / 2)
    for node in ("n1", "n2"):
        cluster.sync(node)
    cluster.submit(device_kinds=["t4"])
    cycle.step(woken=True)
    (now,) = seen[-1].running
    shape = now.job.shapes[now.shape]
    assert (shape.kind, now.may_move) == ("h100", True)
    assert LONG_S / 2 < shape.run_s < 0.6 * LONG_S, "what is left of an estimate that has a spread"
    assert now.move_j == pytest.approx((RESTART_S + LONG_S / 2) * (shape.active_w + now.job.wait_w))
    assert cluster.events(name)[-1] != "moving", "half of the work would be lost"
    cluster.tell("n1", latest(cluster, name), AttemptState.RUNNING, checkpoint=20)
    cluster.submit(device_kinds=["t4"], devices_per_node=2)
    cycle.step(woken=True)
    assert seen[-1].running[0].move_j == pytest.approx(RESTART_S * (shape.active_w + now.job.wait_w))
    assert cluster.events(name)[-1] == "moving"


def test_a_job_that_ends_while_it_should_leave_has_ended_and_room_is_still_made(two: Cluster) -> None:
    cycle = allow(two, 1.0)
    run(two, "n1", may_move=False)
    moves = run(two, "n2")
    wide = two.submit(devices_per_node=2)
    cycle.step(woken=True)
    two.end("n2", latest(two, moves))
    cycle.step(woken=True)
    assert states(two, moves, wide) == ["succeeded", "starting"]
    assert two.job(moves).epoch == 1


def test_a_new_leader_plans_what_was_to_move_like_any_other(two: Cluster) -> None:
    cycle = allow(two, 1.0)
    run(two, "n1", may_move=False)
    moves = run(two, "n2")
    wide = two.submit(devices_per_node=2)
    cycle.step(woken=True)
    cycle.resign()
    leave(two, moves)
    new_cycle(two, "cycle-2").step(woken=True)
    assert sorted(states(two, moves, wide)) in (["queued", "starting"], ["starting", "starting"])
    assert two.job(moves).state == "starting"


def test_room_that_does_not_become_free_is_given_up(two: Cluster) -> None:
    cycle = allow(two, 1.0)
    run(two, "n1", may_move=False)
    moves = run(two, "n2")
    wide = two.submit(devices_per_node=2)
    cycle.step(woken=True)
    for _ in range(int(PATIENCE_S / 10)):
        two.advance(10)
        two.sync("n1")
        two.sync("n2")
        cycle.step(woken=True)
    assert reasons(two, wide) == ("waiting", ["devices_busy"])
    assert states(two, moves, wide) == ["running", "queued"]
    small = two.submit()
    cycle.step(woken=True)
    assert [member.node for member in latest(two, small).members] == ["n1"], "nobody claims it any more"


def test_a_plan_that_moves_what_may_not_be_is_dropped(two: Cluster) -> None:
    def forceful(problem: Problem, budget: Budget) -> Plan:
        free = replace(problem, running=tuple(replace(one, may_move=True) for one in problem.running))
        return solve(free, budget)

    two.settings = two.settings.model_copy(update={"moves_per_job": 2.0})
    cycle = new_cycle(two, solve=forceful)
    cycle.step(woken=True)
    jobs = [run(two, "n1", may_move=False), run(two, "n2", saved=None)]
    wide = two.submit(devices_per_node=2)
    cycle.step(woken=True)
    assert states(two, *jobs, wide) == ["running", "running", "queued"]
    assert not any("moving" in two.events(name) for name in jobs)


def test_a_recorded_cycle_with_moves_is_solved_again_from_outside(
    client: TestClient, two: Cluster, as_root: dict[str, str]
) -> None:
    cycle = allow(two, 1.0)
    run(two, "n1", may_move=False)
    run(two, "n2")
    two.submit(devices_per_node=2)
    cycle.step(woken=True)
    (number,) = (item["id"] for item in client.get("/v1/cycles", headers=as_root).json()["items"])
    recorded = client.get(f"/v1/cycles/{number}", headers=as_root).json()
    assert (recorded["problem"]["moves"], len(recorded["plan"]["moves"])) == (1, 1)
    command = [sys.executable, "-m", "bench.again"]
    again = subprocess.run(command, input=json.dumps(recorded), capture_output=True, text=True, check=False)
    assert again.stdout.startswith("2 nodes, 1 jobs, 1 placed by packed, ")
    assert again.stdout.endswith(": the same plan\n")
    recorded["plan"]["moves"].pop()
    other = subprocess.run(command, input=json.dumps(recorded), capture_output=True, text=True, check=False)
    assert (other.returncode, "ANOTHER PLAN" in other.stdout) == (1, True)


def test_moves_are_counted_against_the_jobs_that_came() -> None:
    allowance = Allowance(0.5)
    old, new = [job(f"j{number}") for number in range(4)], [job(f"j{number}") for number in range(4, 9)]
    allowance.note(old)
    assert allowance.left == 0, "those that waited already do not count"
    allowance.note([*old, *new])
    assert allowance.left == 2
    allowance.note(new)
    allowance.spend(2)
    assert allowance.left == 0
    allowance.note([job(f"j{number}") for number in range(9, 300)])
    assert allowance.left == 15


def test_where_nodes_can_go_off_jobs_are_brought_together_though_none_waits(two: Cluster) -> None:
    pool = PowerPool(name="p", nodes=("n*",), on=("wake", "{name}"), off=("halt", "{name}"))
    two.settings = two.settings.model_copy(update={"power_pools": (pool,)})
    cycle = allow(two, 1.0)
    stays, moves = run(two, "n1", may_move=False), run(two, "n2")
    third = two.submit()  # one move for each job that comes
    cycle.step(woken=True)
    assert "moving" not in two.events(moves), "neither node would be empty"
    two.end(latest(two, third).members[0].node, latest(two, third))
    cycle.step(woken=True)
    assert "moving" not in two.events(moves), "it has just been looked at"
    two.advance(GATHER_EVERY_S)
    for node in ("n1", "n2"):
        two.sync(node)
    cycle.step(woken=True)
    assert two.events(moves)[-1] == "moving"
    leave(two, moves)
    cycle.step(woken=True)
    assert [member.node for member in latest(two, moves).members] == ["n1"]
    assert states(two, stays, moves) == ["running", "starting"]
