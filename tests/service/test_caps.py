"""Power caps in the service: who is offered them, what agents are told, and what is learned from capped runs."""

import pytest
from fastapi.testclient import TestClient

from protocol.nodes import PowerSample
from protocol.states import AttemptState, EndReason
from scheduler.power import active_w, device_power
from service.cycle.commit import Overtaken
from service.web.units import power
from tests.service.cluster import Cluster
from tests.service.conftest import SignIn
from tests.service.test_cycle import new_cycle, states
from tests.service.test_power_budgets import limit

CAPS = {f"a100:n1:{number}": 100.0 for number in range(2)}
SLOW = {"device_kinds": ["a100"], "devices_per_node": 1, "may_slow": 0.1}
A100 = device_power("a100")


@pytest.fixture(autouse=True)
def _node(cluster: Cluster) -> None:
    cluster.join("n1", kind="a100", slots=2)


def caps_offered(cluster: Cluster, job: str) -> list[float]:
    found = next(one for one in cluster.problem()[0].jobs if one.id == job)
    return [shape.cap_w for shape in found.shapes if shape.cap_w]


def test_only_what_an_agent_says_that_it_can_set_is_offered(cluster: Cluster, client: TestClient) -> None:
    job, rigid = cluster.submit(**SLOW), cluster.submit(**SLOW | {"may_slow": 0.0})
    assert caps_offered(cluster, job) == [], "its agent has not said so, or is an older one"
    cluster.sync("n1", caps=CAPS)
    assert len(caps_offered(cluster, job)) == 2
    assert caps_offered(cluster, rigid) == []
    assert {device["least_cap_w"] for device in client.get("/v1/nodes/n1").json()["devices"]} == {100.0}
    cluster.sync("n1", caps=CAPS | {"a100:n1:1": 280.0})
    assert caps_offered(cluster, job) == [280.0], "all devices must take it"
    cluster.sync("n1", caps={"a100:n1:0": 100.0})
    problem, _ = cluster.problem()
    assert not problem.nodes[0].can_cap
    cluster.sync("n1", caps=CAPS)
    cluster.join("n1", kind="a100", slots=2, boot_id="boot-2")
    assert caps_offered(cluster, job) == [], "an older agent may have come instead"


def test_a_cap_goes_with_the_assignment_and_is_shown(cluster: Cluster, client: TestClient, sign_in: SignIn) -> None:
    cluster.sync("n1", caps=CAPS)
    job, rigid = cluster.submit(**SLOW), cluster.submit(**SLOW | {"may_slow": 0.0})
    new_cycle(cluster).step(woken=True)
    assigned = {one.job: one.cap_w for one in cluster.sync("n1").assignments}
    assert assigned.keys() == {job, rigid}
    assert assigned[rigid] is None
    cap_w = assigned[job]
    assert cap_w is not None
    (attempt,) = client.get(f"/v1/jobs/{job}").json()["attempts"]
    assert attempt["cap_w"] == cap_w
    assert 1.0 < attempt["slower"] <= 1.1
    assert f"capped at {power(cap_w)}" in sign_in("alice").get(f"/jobs/{job}").text
    busy_w = cluster.problem()[0].nodes[0].busy_w
    assert busy_w == pytest.approx(cap_w - A100.bare_idle_w + active_w("a100"))


def test_a_job_that_may_be_slowed_down_starts_under_a_budget_where_others_wait(cluster: Cluster) -> None:
    cluster.sync("n1", caps=CAPS)
    limit(cluster, cluster.node("n1").base_w + 0.9 * active_w("a100"))
    rigid, slow = cluster.submit(**SLOW | {"may_slow": 0.0}), cluster.submit(**SLOW)
    new_cycle(cluster).step(woken=True)
    assert states(cluster, rigid, slow) == ["queued", "starting"]


def test_a_cap_that_cannot_be_set_any_more_is_not_committed(cluster: Cluster) -> None:
    cluster.sync("n1", caps=CAPS)
    job = cluster.submit(**SLOW)
    problem, seen = cluster.problem()
    cluster.sync("n1", caps={})
    with pytest.raises(Overtaken, match="cannot cap"):
        cluster.commit_on(job, problem, seen, "n1", shape=1)
    cluster.commit_on(job, problem, seen, "n1", shape=0)


def test_a_capped_run_teaches_how_long_and_hungry_the_work_is_without(cluster: Cluster) -> None:
    cluster.sync("n1", caps=CAPS)
    work = {**SLOW, "command": ["python", "train.py"]}
    job = cluster.submit(**work)
    new_cycle(cluster).step(woken=True)
    (attempt,) = cluster.job(job).attempts
    assert attempt.cap_w is not None
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    run_s = 1000.0 * attempt.slower
    cluster.advance(run_s)
    (device,) = attempt.members[0].devices
    drawn = PowerSample(seconds=run_s, age_s=0.0, device=device, energy_j=150.0 * run_s, source="nvml")
    cluster.sync("n1", samples=[drawn])
    cluster.end("n1", attempt, EndReason.COMPLETED, 0)
    again = cluster.submit(**work | {"may_slow": 0.0})
    (planned,) = (one for one in cluster.problem()[0].jobs if one.id == again)
    assert planned.shapes[0].run_s == pytest.approx(1000.0)
    assert planned.shapes[0].active_w == active_w("a100"), "what it draws under a cap says nothing of that"


@pytest.mark.parametrize("spec", [{"device_share": 0.5}, {"devices_per_node": 0, "device_kinds": []}])
def test_shares_are_not_capped(cluster: Cluster, client: TestClient, spec: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="`may_slow` is about power caps on whole devices"):
        cluster.submit(**SLOW | spec)
