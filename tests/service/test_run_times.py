"""Run times in the service: learned from progress and past jobs, used in plans, shown with their source."""

import json

import pytest
from fastapi.testclient import TestClient

from protocol.jobs import AttemptView, ExpectedView, JobSpec
from protocol.states import AttemptState, EndReason
from protocol.sync import StreamChunk
from scheduler.solve import solve
from service import run_times
from service.cycle.running import read_running
from service.db import snapshot
from tests.service.cluster import Cluster
from tests.service.conftest import SignIn
from tests.service.test_cycle import new_cycle

TRAIN = {"command": ["python", "train.py"]}


def start(cluster: Cluster, job: str, *nodes: str) -> AttemptView:
    attempt = cluster.place(job, *nodes)
    for node in nodes:
        cluster.tell(node, attempt, AttemptState.RUNNING)
    return attempt


def ran(cluster: Cluster, seconds: float, reason: EndReason = EndReason.COMPLETED, **spec: object) -> str:
    """A job that has run so long on n1."""
    job = cluster.submit(**spec)
    attempt = start(cluster, job, "n1")
    cluster.advance(seconds)
    cluster.end("n1", attempt, reason, 0 if reason is EndReason.COMPLETED else 1)
    return job


def report(cluster: Cluster, attempt: AttemptView, offset: int = 0, **counts: int) -> int:
    """One line of progress of rank 0; where the next one begins."""
    data = json.dumps({**counts, "metrics": {}}).encode() + b"\n"
    fields = {"attempt": attempt.id, "rank": 0, "stream": "progress", "offset": offset, "data": data}
    cluster.sync("n1", chunks=[StreamChunk.model_validate(fields)])
    return offset + len(data)


def expected(client: TestClient, job: str) -> ExpectedView | None:
    found = client.get(f"/v1/jobs/{job}").json()["expected"]
    return found and ExpectedView.model_validate(found)


def planned_s(cluster: Cluster, job: str) -> dict[str, float]:
    """Run time by kind in the problem that the planner gets."""
    found = next(one for one in cluster.problem()[0].jobs if one.id == job)
    return {shape.kind: shape.run_s for shape in found.shapes}


@pytest.fixture
def node(cluster: Cluster, client: TestClient) -> str:
    cluster.join("n1", kind="t4", slots=4)
    return "n1"


def test_progress_tells_planner_and_user_when_the_devices_come_free(
    cluster: Cluster, client: TestClient, sign_in: SignIn, node: str
) -> None:
    job = cluster.submit(expected_run_s=100_000.0)
    attempt = start(cluster, job, node)
    offset = 0
    for step in range(500, 551, 10):  # it goes on from a checkpoint
        offset = report(cluster, attempt, offset, step=step, total_steps=1000)
        cluster.advance(20.0)
    shown = expected(client, job)
    assert shown is not None
    assert (shown.source, shown.because, shown.kind) == ("progress", "from its progress", "t4")
    assert shown.seconds == pytest.approx(450 * 2.0 - 20)
    assert shown.low_s < shown.seconds < shown.high_s
    problem, _ = cluster.problem()
    assert problem.nodes[0].busy_s == pytest.approx(shown.seconds)
    with snapshot(cluster.engine) as tx:
        (running,) = read_running(tx, problem.nodes, now=cluster.now)
    assert running.job.shapes[running.shape].run_s == pytest.approx(shown.seconds)
    page = " ".join(sign_in("alice").get(f"/jobs/{job}").text.split())
    assert 'in about 14 min 40 s <span class="muted">' in page


def test_the_pace_of_an_attempt_is_not_that_of_the_next(cluster: Cluster, client: TestClient, node: str) -> None:
    job = cluster.submit(max_retries=1, expected_run_s=600.0)
    first = start(cluster, job, node)
    offset = report(cluster, first, step=0, total_steps=1000)
    cluster.advance(100.0)
    report(cluster, first, offset, step=500, total_steps=1000)
    cluster.end(node, first, EndReason.FAILED, 1)
    second = start(cluster, job, node)
    report(cluster, second, step=500, total_steps=1000)
    cluster.advance(50.0)
    shown = expected(client, job)
    assert shown is not None
    assert shown.source == "estimate"


def test_a_time_limit_bounds_what_is_left(cluster: Cluster, client: TestClient, node: str) -> None:
    job = cluster.submit(time_limit_s=1_000.0)
    attempt = start(cluster, job, node)
    offset = report(cluster, attempt, step=0, total_steps=1000)
    cluster.advance(400.0)
    report(cluster, attempt, offset, step=10, total_steps=1000)
    shown = expected(client, job)
    assert shown is not None
    assert (shown.source, shown.seconds, shown.high_s) == ("progress", 600.0, 600.0)


def test_runs_of_the_same_work_tell_how_long_the_next_one_runs(cluster: Cluster, client: TestClient, node: str) -> None:
    for seconds in (700, 800, 780):
        ran(cluster, seconds, **TRAIN)
    ran(cluster, 5, **TRAIN, reason=EndReason.FAILED)
    other_work = ran(cluster, 60, command=["python", "other.py"])
    again = cluster.submit(name="again", queue="default", priority=3, expected_run_s=9.0, **TRAIN)
    shown = expected(client, again)
    assert shown is not None
    assert (shown.source, shown.runs, shown.seconds, shown.kind) == ("past_runs", 3, 780.0, "t4")
    assert shown.because == "from 3 runs of the same work"
    assert planned_s(cluster, again) == {"t4": 780.0}
    wide = cluster.submit(devices_per_node=4, **TRAIN)
    assert 780 / 4 < planned_s(cluster, wide)["t4"] < 780 / 2, "through the curve of speed against devices"
    assert cluster.job(again).signature == cluster.job(wide).signature != cluster.job(other_work).signature
    assert planned_s(cluster, cluster.submit("bob", **TRAIN)) == {"t4": 3_600.0}, "another's file may be another one"
    cluster.join("n2", kind="h100")
    assert planned_s(cluster, again) == {"h100": 780.0, "t4": 780.0}, "nobody knows which is faster"


def test_a_job_that_ran_twice_tells_nothing(cluster: Cluster, node: str) -> None:
    job = cluster.submit(max_retries=1, **TRAIN)
    cluster.end(node, start(cluster, job, node), EndReason.FAILED, 1)
    second = start(cluster, job, node)
    cluster.advance(50.0)
    cluster.end(node, second)
    assert cluster.job(job).state == "succeeded"
    assert planned_s(cluster, cluster.submit(**TRAIN)) == {"t4": 3_600.0}


def test_a_job_that_goes_on_from_a_checkpoint_has_the_other_steps_before_it(
    cluster: Cluster, client: TestClient, node: str
) -> None:
    ran(cluster, 1_000, **TRAIN)
    job = cluster.submit(max_retries=1, **TRAIN)
    first = start(cluster, job, node)
    report(cluster, first, step=610, total_steps=1000)
    cluster.tell(node, first, AttemptState.RUNNING, checkpoint=600)
    cluster.advance(300)
    cluster.tell(node, first, AttemptState.ENDED, reason=EndReason.FAILED, exit_code=1)
    shown = expected(client, job)
    assert shown is not None
    assert (shown.source, shown.seconds) == ("past_runs", pytest.approx(400))
    cluster.end(node, first, EndReason.FAILED, 1)
    cluster.advance(700)
    assert planned_s(cluster, job) == {"t4": pytest.approx(400)}
    second = start(cluster, job, node)
    assert cluster.problem()[0].nodes[0].busy_s == pytest.approx(400)
    cluster.advance(300)
    cluster.tell(node, second, AttemptState.RUNNING, checkpoint=800)
    assert cluster.problem()[0].nodes[0].busy_s == pytest.approx(200), "counted from when it saved"


def test_estimates_are_corrected_by_what_became_of_those_of_before(
    cluster: Cluster, client: TestClient, node: str
) -> None:
    for number in range(3):
        ran(cluster, 300 + number, command=["sh", str(number)], expected_run_s=600.0)
    job = cluster.submit(command=["sh", "new"], expected_run_s=1_000.0)
    shown = expected(client, job)
    assert shown is not None
    assert (shown.source, shown.runs) == ("corrected_estimate", 3)
    assert shown.seconds == pytest.approx(501.7, abs=0.1)
    assert planned_s(cluster, cluster.submit("bob", command=["sh", "new"], expected_run_s=1_000.0)) == {"t4": 1_000.0}


def test_nothing_is_expected_of_a_job_that_has_ended(cluster: Cluster, client: TestClient, node: str) -> None:
    assert expected(client, ran(cluster, 10)) is None


def test_what_was_learned_is_in_the_recorded_problem_and_solves_to_the_same_plan(cluster: Cluster, node: str) -> None:
    ran(cluster, 700, **TRAIN)
    seen = []

    def remember(problem, budget):
        seen.append((problem, solve(problem, budget)))
        return seen[-1][1]

    job = cluster.submit(**TRAIN)
    new_cycle(cluster, solve=remember).step(woken=True)
    problem, plan = seen[-1]
    assert problem.jobs[0].shapes[0].run_s == 700.0
    assert solve(problem) == plan
    assert cluster.job(job).state == "starting"


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"name": "x", "queue": "q", "priority": 3, "nodes": 2, "devices_per_node": 2, "device_kinds": ["t4"]}, True),
        ({"expected_run_s": 5.0, "time_limit_s": 9.0, "max_retries": 2, "may_move": True}, True),
        ({"env": {"B": "2", "A": "1"}}, True),
        ({"env": {"A": "1"}}, False),
        ({"command": ["python", "train.py", "--lr", "0.1"]}, False),
        ({"code": "0" * 64}, False),
        ({"datasets": {"mnist": "/data"}}, False),
    ],
)
def test_the_signature_is_of_what_is_computed(change: dict[str, object], same: bool) -> None:
    base = {**TRAIN, "env": {"A": "1", "B": "2"}}
    one, other = (run_times.signature(JobSpec.model_validate(spec)) for spec in (base, {**base, **change}))
    assert (one == other) == same


def test_works_that_ran_on_two_kinds_tell_how_fast_those_are_for_others(
    cluster: Cluster, client: TestClient, node: str
) -> None:
    cluster.join("n2", kind="h100")
    for number in range(30):
        for name, kind, seconds in ((node, "t4", 800.0), ("n2", "h100", 100.0)):
            attempt = start(cluster, cluster.submit(command=["sh", str(number)], device_kinds=[kind]), name)
            cluster.advance(seconds)
            cluster.end(name, attempt)
    ran(cluster, 400, **TRAIN, device_kinds=["t4"])
    again = cluster.submit(**TRAIN, device_kinds=["h100"])
    assert planned_s(cluster, again) == {"h100": 400.0}, "learned every ten minutes, not at once"
    new_cycle(cluster).step(woken=True)
    waiting = cluster.submit(**TRAIN, device_kinds=["h100"])
    planned = planned_s(cluster, waiting)["h100"]
    assert planned == pytest.approx(400 / 8, rel=0.1)
    shown = expected(client, waiting)
    assert shown is not None
    assert shown.because == (
        f"from 1 run of the same work on another kind of device, h100 taken for {400 / planned:.1f} times as fast"
    )
    stated = planned_s(cluster, cluster.submit(command=["sh", "new"], expected_run_s=1_000.0))
    assert stated["t4"] / stated["h100"] == pytest.approx(400 / planned)
    assert stated["t4"] * stated["h100"] == pytest.approx(1_000.0**2)
