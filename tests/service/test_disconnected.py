"""Nodes that are cut off, reports that come late, nodes on which nothing starts."""

import pytest
from fastapi.testclient import TestClient

from protocol.states import AttemptState, EndReason
from protocol.version import PROTOCOL_VERSION
from service.broken_nodes import IN_A_ROW
from service.cycle.leases import QUIET_S
from service.models import samples
from service.refusals import AnotherMachine, NodeHeard, StaleReport, UnknownNode
from tests.service.cluster import Cluster, member_report, node_report
from tests.service.conftest import bearer


def reason_of(cluster: Cluster, job: str) -> EndReason | None:
    return cluster.job(job).attempts[-1].reason


@pytest.mark.parametrize(
    ("on_disconnect", "state", "epochs"), [("fence", "queued", ["node_lost"]), ("wait", "running", [None])]
)
def test_a_job_on_a_lost_node_is_run_again_or_waits_for_it(
    cluster: Cluster, on_disconnect: str, state: str, epochs: list[str | None]
) -> None:
    cluster.join("n1")
    job = cluster.submit(on_disconnect=on_disconnect)
    attempt = cluster.place(job, "n1")
    assert cluster.sync("n1").assignments[0].on_disconnect == on_disconnect
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    assert cluster.lose("n1")
    view = cluster.job(job)
    assert (view.state, [attempt.reason for attempt in view.attempts]) == (state, epochs)
    assert cluster.held_devices() == {"cpu:n1:0"}, "nobody has said that they are clean"


def test_a_job_that_waits_goes_on_when_its_node_is_heard_again(cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit(on_disconnect="wait")
    attempt = cluster.place(job, "n1")
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    cluster.lose("n1")
    assert cluster.events(job)[-1] == "disconnected"
    cluster.end("n1", attempt)
    assert (cluster.job(job).state, cluster.job(job).epoch) == ("succeeded", 1)
    assert cluster.held_devices() == set()


def test_an_agent_with_another_memory_is_told_that_what_was_granted_may_have_started(cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.sync("n1", state_folder="first")
    job = cluster.submit()
    attempt = cluster.place(job, "n1")
    assert [held.observed for held in cluster.sync("n1", state_folder="first").assignments] == ["granted"]
    cluster.join("n1")
    assert [held.observed for held in cluster.sync("n1").assignments] == ["granted"], "it does not say which it has"
    assert [held.observed for held in cluster.sync("n1", state_folder="first").assignments] == ["granted"]
    cluster.join("n1")
    assert [held.observed for held in cluster.sync("n1", state_folder="second").assignments] == ["starting"]
    report = member_report(attempt, AttemptState.ENDED, reason=EndReason.UNKNOWN_START, clean=True)
    cluster.sync("n1", report, state_folder="second")
    assert (cluster.job(job).state, cluster.job(job).epoch) == ("queued", 1)
    cluster.place(job, "n1")
    assert [held.observed for held in cluster.sync("n1", state_folder="second").assignments] == ["granted"]


def test_a_parked_agent_hears_nothing_that_is_for_the_one_that_came_after_it(
    client: TestClient, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.join("n1")
    job = cluster.submit()
    body = {"protocol": PROTOCOL_VERSION, "incarnation": 1, "wait_s": 20, "version": cluster.sync("n1").version}

    async def replace_meanwhile(*_: object) -> None:
        cluster.join("n1")
        cluster.place(job, "n1")

    monkeypatch.setattr("service.api.hub.Hub.wait", replace_meanwhile)
    refused = client.post("/v1/agent/sync", json=body, headers=bearer(cluster.node_token("n1")))
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:ergon:stale-incarnation")


@pytest.mark.parametrize("word", ["boot", "administrator"])
def test_a_job_that_waits_is_run_again_once_its_node_is_surely_gone(cluster: Cluster, word: str) -> None:
    cluster.join("n1")
    cluster.join("n2")
    waits, fences = cluster.submit(on_disconnect="wait", nodes=2), cluster.submit()
    cluster.place(waits, "n1", "n2")
    cluster.place(fences, "n1")
    cluster.lose("n1")
    assert (reason_of(cluster, waits), reason_of(cluster, fences)) == (None, EndReason.NODE_LOST)
    if word == "boot":
        cluster.join("n1", boot_id="boot-2")
    else:
        assert cluster.confirm_down("n1").state == "lost"
    assert cluster.job(waits).attempts[0].state == "stopping", "its other member is stopped first"
    cluster.end("n2", cluster.job(waits).attempts[0], EndReason.CANCELLED, None)
    assert (cluster.job(waits).state, reason_of(cluster, waits)) == ("queued", EndReason.NODE_LOST)
    assert cluster.held_devices() == set()


def test_another_machine_with_a_copied_credential_is_not_taken_for_a_reboot(cluster: Cluster) -> None:
    """The first one runs something, and so it stays the node: heard, quiet, and lost, until somebody says it is off."""
    cluster.join("n1")
    job = cluster.submit(on_disconnect="wait")
    attempt = cluster.place(job, "n1")
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    incarnation = cluster.incarnations["n1"]
    copied = {"boot_id": "boot-2", "devices": node_report("twin", 2).devices}
    for become in (lambda: None, lambda: cluster.advance(QUIET_S), lambda: cluster.lose("n1")):
        become()
        with pytest.raises(AnotherMachine, match="`ergon node confirm-down n1` 30 s later"):
            cluster.join("n1", **copied)
    assert cluster.incarnations["n1"] == incarnation
    assert [held.attempt for held in cluster.sync("n1").assignments] == [attempt.id]
    assert cluster.job(job).state == "running"
    cluster.advance(QUIET_S)
    cluster.confirm_down("n1")
    cluster.join("n1", **copied)
    assert cluster.sync("n1").assignments == []
    with pytest.raises(AnotherMachine):
        cluster.join("n1")


def test_a_machine_whose_slots_are_others_after_a_boot_is_the_same(cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit()
    cluster.place(job, "n1")
    [_first, _second, third] = node_report("n1", 3).devices
    cluster.join("n1", boot_id="boot-2", devices=[third])
    assert (cluster.job(job).state, reason_of(cluster, job)) == ("queued", EndReason.NODE_LOST)


def test_another_machine_may_replace_one_that_is_lost_and_runs_nothing(cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.lose("n1")
    cluster.join("n1", boot_id="boot-2", devices=node_report("twin", 2).devices)
    assert cluster.node("n1").state == "ready"


def test_a_node_that_is_heard_is_not_down(cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit()
    cluster.place(job, "n1")
    with pytest.raises(NodeHeard, match="was heard 0 s ago; `ergon node drain n1`"):
        cluster.confirm_down("n1")
    assert cluster.job(job).state == "starting"
    with pytest.raises(UnknownNode):
        cluster.confirm_down("n2")
    cluster.advance(QUIET_S)
    assert cluster.confirm_down("n1").state == "lost"
    assert (cluster.job(job).state, cluster.held_devices()) == ("queued", set())


def test_a_node_that_comes_back_from_the_dead_is_told_to_hold_nothing(cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit()
    attempt = cluster.place(job, "n1")
    cluster.advance(QUIET_S)
    cluster.confirm_down("n1")
    assert cluster.tell("n1", attempt, AttemptState.RUNNING).assignments == []
    assert cluster.job(job).state == "queued"


def test_only_administrators_say_that_a_node_is_down(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    answer = client.post("/v1/nodes/n1/confirm-down")
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:ergon:forbidden")


def test_a_report_that_comes_after_a_later_one_changes_nothing(cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit()
    attempt = cluster.place(job, "n1")
    cluster.sync("n1", member_report(attempt, AttemptState.STARTING), seq=2)
    seen = cluster.now
    cluster.advance(5)
    for seq in (1, 2):
        with pytest.raises(StaleReport):
            cluster.sync("n1", member_report(attempt, AttemptState.RUNNING), seq=seq)
    assert cluster.job(job).attempts[0].state == "starting"
    assert cluster.node("n1").last_seen_at == seen, "nor does it renew a lease"
    cluster.sync("n1", member_report(attempt, AttemptState.RUNNING), seq=3)
    assert cluster.job(job).state == "running"
    cluster.join("n1")
    cluster.sync("n1", seq=1)  # a new incarnation counts from the beginning


def test_a_late_report_is_refused_over_http(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    headers = {"Authorization": f"Bearer {cluster.node_token('n1')}"}
    body = {"protocol": 1, "incarnation": 1, "seq": 5}
    assert client.post("/v1/agent/sync", json=body, headers=headers).status_code == 200
    answer = client.post("/v1/agent/sync", json={**body, "seq": 4}, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (410, "urn:ergon:stale-report")


def test_samples_that_are_sent_again_count_once(cluster: Cluster) -> None:
    def sent(seq: int, first: int, *watts: float) -> None:
        told = [{"seconds": 1, "age_s": 0, "energy_j": value, "source": "rapl"} for value in watts]
        cluster.sync("n1", seq=seq, samples=told, first_sample=first)

    cluster.join("n1")
    sent(1, 0, 10, 11)
    sent(2, 0, 10, 11, 12)  # the first answer was lost
    sent(3, 2, 12)  # so was the second
    sent(4, 3, 13)
    with cluster.engine.begin() as tx:
        stored = [row.energy_j for row in tx.execute(samples.select().order_by(samples.c.seq))]
    assert stored == [10, 11, 12, 13]
    cluster.join("n1")
    sent(1, 0, 14)
    assert cluster.row_counts()["samples"] == 5


def fail_to_start(cluster: Cluster, node: str) -> str:
    job = cluster.submit()
    cluster.end(node, cluster.place(job, node), EndReason.UNKNOWN_START, None)
    return job


def test_a_node_on_which_nothing_starts_is_closed_and_no_job_fails_by_it(cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.join("n2")
    jobs = [fail_to_start(cluster, "n1") for _ in range(IN_A_ROW)]
    node = cluster.node("n1")
    assert node.cordoned
    assert node.closed_because == "the last 3 attempts could not start there; the latest: it did not say why"
    assert cluster.alarms() == {"node_closed": "n1"}
    assert [cluster.job(job).state for job in jobs] == ["queued"] * IN_A_ROW
    cluster.uncordon("n1")
    assert (cluster.node("n1").closed_because, cluster.alarms()) == (None, {})


@pytest.mark.parametrize("reason", [EndReason.COMPLETED, EndReason.START_FAILED])
def test_a_node_on_which_something_started_or_a_program_was_missing_is_not_closed(
    cluster: Cluster, reason: EndReason
) -> None:
    cluster.join("n1")
    for _ in range(3):
        for _ in range(IN_A_ROW - 1):
            fail_to_start(cluster, "n1")
        cluster.end("n1", cluster.place(cluster.submit(), "n1"), reason, 0)
    assert not cluster.node("n1").cordoned
