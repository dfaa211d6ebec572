"""Jobs of a range of nodes that run are made larger and smaller through real cycles."""

import zlib

import pytest

from protocol.jobs import AttemptView
from protocol.states import AttemptState, EndReason
from scheduler import codec
from scheduler.solve import solve
from service.cycle.loop import GATHER_EVERY_S, Cycle
from service.cycle.running import MOST_MOVES
from service.db import snapshot
from service.store import cycles as cycle_store
from tests.service.cluster import Cluster
from tests.service.test_cycle import new_cycle, reasons, states

TRAIN = {"command": ["python", "train.py"], "nodes": "1-3", "may_move": True}
HOURS_S = 36_000.0


def learn(cluster: Cluster, *hours: float) -> None:
    """The work has run on one node for so many hours, on two, and so on."""
    for number, each in enumerate(hours, start=1):
        names = [f"n{node}" for node in range(1, number + 1)]
        attempt = cluster.place(cluster.submit(**TRAIN), *names)
        for name in names:
            cluster.tell(name, attempt, AttemptState.RUNNING)
        cluster.advance(3600.0 * each)
        for name in names:
            cluster.end(name, attempt)


def latest(cluster: Cluster, job: str) -> AttemptView:
    return cluster.job(job).attempts[-1]


def where(cluster: Cluster, job: str) -> list[str]:
    return [member.node for member in latest(cluster, job).members]


def save(cluster: Cluster, job: str, step: int) -> None:
    """All members run, and the checkpoint of the step is complete."""
    attempt = latest(cluster, job)
    for member in attempt.members:
        cluster.tell(member.node, attempt, AttemptState.RUNNING, checkpoint=step)


def leave(cluster: Cluster, job: str) -> None:
    """The job's ranks have left as they were told."""
    attempt = latest(cluster, job)
    for member in attempt.members:
        cluster.end(member.node, attempt, EndReason.CANCELLED, 1)


def replays(cluster: Cluster) -> list[int]:
    """How many nodes each job gets that the latest recorded plan resizes; its problem solves to the same plan again."""
    with snapshot(cluster.engine) as tx:
        stored = cycle_store.find_cycle(tx, cycle_store.list_cycles(tx, before=None, limit=1)[0].id)
    assert stored is not None
    plan = codec.decode_plan(zlib.decompress(stored.plan))
    assert solve(codec.decode_problem(zlib.decompress(stored.problem))) == plan
    return [len(move.members) for move in plan.moves]


def turn(cycle: Cycle, cluster: Cluster) -> None:
    """A cycle that also looks whether jobs that run had better be larger."""
    cluster.advance(GATHER_EVERY_S)
    cycle.step(woken=True)


def test_a_job_grows_onto_nodes_that_are_free_and_makes_room_for_one_that_waits(three: Cluster) -> None:
    cycle = new_cycle(three)
    learn(three, 10.0, 5.2, 3.6)
    others = [three.place(three.submit(expected_run_s=HOURS_S), name) for name in ("n2", "n3")]
    job = three.submit(**TRAIN)
    turn(cycle, three)
    save(three, job, 10)
    turn(cycle, three)
    assert (where(three, job), three.events(job)[-1]) == (["n1"], "running")
    for name, other in zip(("n2", "n3"), others, strict=True):
        three.end(name, other)
    turn(cycle, three)
    assert three.events(job)[-1] == "resizing"
    assert replays(three) == [3]
    assert [(each.job, each.desired) for each in three.sync("n1").assignments] == [(job, "stop")]
    leave(three, job)
    turn(cycle, three)
    assert where(three, job) == ["n1", "n2", "n3"]
    given = three.sync("n3").assignments[-1].checkpoint
    assert given is not None
    assert given.step == 10
    # Another comes: nothing happens before the job has saved again, then it leaves one node.
    wants = three.submit(expected_run_s=HOURS_S)
    for name in ("n1", "n2", "n3"):
        three.tell(name, latest(three, job), AttemptState.RUNNING)
    turn(cycle, three)
    assert reasons(three, wants) == ("waiting", ["devices_busy"])
    save(three, job, 20)
    turn(cycle, three)
    assert reasons(three, wants) == ("waiting", ["room_is_made"])
    assert replays(three) == [2]
    leave(three, job)
    turn(cycle, three)
    assert states(three, job, wants) == ["starting", "starting"]
    assert (where(three, job), where(three, wants)) == (["n1", "n2"], ["n3"])
    view = three.job(job)
    assert [attempt.reason for attempt in view.attempts] == [EndReason.MOVED, EndReason.MOVED, None]
    assert view.not_before is None, "a resize is no loss"


@pytest.mark.parametrize(
    ("moves_per_job", "learned", "saved", "spec"),
    [
        (1.0, (), 10, {}),
        (1.0, (10.0, 9.9, 9.8), 10, {}),
        (1.0, (10.0, 5.2, 3.6), None, {}),
        (1.0, (10.0, 5.2, 3.6), 10, {"may_move": False}),
        (0.0, (10.0, 5.2, 3.6), 10, {}),
    ],
    ids=[
        "nothing is known of the work",
        "it would not pay",
        "it has not saved",
        "it did not allow it",
        "nothing moves",
    ],
)
def test_otherwise_a_job_does_not_grow(
    three: Cluster, moves_per_job: float, learned: tuple[float, ...], saved: int | None, spec: dict[str, object]
) -> None:
    three.settings = three.settings.model_copy(update={"moves_per_job": moves_per_job})
    cycle = new_cycle(three)
    learn(three, *learned)
    three.tell("n3", three.place(three.submit(may_move=True), "n3"), AttemptState.RUNNING)
    job = three.submit(**TRAIN | spec)
    three.tell("n1", three.place(job, "n1"), AttemptState.RUNNING, checkpoint=saved)
    turn(cycle, three)
    turn(cycle, three)
    assert "resizing" not in three.events(job)


def test_a_job_is_resized_only_so_often_within_an_hour(three: Cluster) -> None:
    cycle = new_cycle(three)
    learn(three, 10.0, 5.2, 3.6)
    job = three.submit(**TRAIN)
    turn(cycle, three)
    for step in range(1, MOST_MOVES + 1):
        save(three, job, step)
        if step % 2:
            wants = three.submit(expected_run_s=HOURS_S)
        else:
            three.end(where(three, wants)[0], latest(three, wants))
        turn(cycle, three)
        assert three.events(job).count("resizing") == step
        leave(three, job)
        turn(cycle, three)
    save(three, job, 9)
    three.submit(expected_run_s=HOURS_S)
    turn(cycle, three)
    assert three.events(job).count("resizing") == MOST_MOVES
    three.advance(3600.0)
    save(three, job, 10)
    turn(cycle, three)
    assert three.events(job).count("resizing") == MOST_MOVES + 1
