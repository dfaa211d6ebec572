"""Nodes over HTTP: an agent registers what it has, people see who holds it, and what cannot be is refused by field."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from protocol.states import AttemptState, EndReason
from protocol.version import PROTOCOL_VERSION
from service.cycle.commit import Overtaken
from tests.service.cluster import Cluster, member_report, node_report
from tests.service.conftest import bearer

REPORT = node_report("n1", 2).model_dump(mode="json")
DEVICE = REPORT["devices"][0]
SAMPLE = {"seconds": 1, "age_s": 0, "source": "proc"}


def register(client: TestClient, cluster: Cluster, name: str, report: dict[str, Any]) -> Any:
    body = {"protocol": PROTOCOL_VERSION, "report": report}
    return client.post("/v1/agent/register", json=body, headers=bearer(cluster.node_token(name)))


def test_a_registered_node_is_seen_with_its_devices(client: TestClient, cluster: Cluster) -> None:
    answer = register(client, cluster, "n1", REPORT)
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "node": "n1",
            "incarnation": 1,
            "lease_s": 60.0,
            "numbered_reports": True,
            "checkpoints": True,
            "knows_out_of_memory": True,
            "stores_checkpoints": True,
            "state_folders": True,
            "knows_limits": True,
            "knows_caps": True,
            "knows_caches": True,
        },
    )
    node = client.get("/v1/nodes/n1").json()
    assert node["containment"] == "cgroup-v2"
    assert (node["name"], node["state"], node["incarnation"], node["cpu_cores"]) == ("n1", "ready", 1, 2.0)
    assert (node["registered_at"], node["last_seen_at"]) == ("2026-01-01T00:00:00Z",) * 2
    assert [(device["id"], device["kind"], device["index"], device["job"]) for device in node["devices"]] == [
        ("cpu:n1:0", "cpu", 0, None),
        ("cpu:n1:1", "cpu", 1, None),
    ]
    assert node["base_w"] > 0
    assert client.get("/v1/nodes").json() == {"items": [node], "next": None, "power_budgets": []}


def test_what_a_node_limits_is_as_its_present_agent_says(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    assert client.get("/v1/nodes/n1").json()["limits"] is None, "not said yet"
    cluster.sync("n1", limits=["memory", "processes"])
    cluster.sync("n1")
    assert client.get("/v1/nodes/n1").json()["limits"] == ["memory", "processes"]
    cluster.sync("n1", limits=[])
    assert client.get("/v1/nodes/n1").json()["limits"] == []
    cluster.sync("n1", limits=["memory"])
    cluster.join("n1")
    assert client.get("/v1/nodes/n1").json()["limits"] is None, "an older agent may have come instead"


def test_registering_again_replaces_the_inventory(client: TestClient, cluster: Cluster) -> None:
    register(client, cluster, "n1", REPORT)
    smaller = REPORT | {"devices": [DEVICE | {"kind": "t4", "index": 7}], "cpu_cores": 1}
    assert register(client, cluster, "n1", smaller).json()["incarnation"] == 2
    node = client.get("/v1/nodes/n1").json()
    assert [(device["id"], device["kind"], device["index"]) for device in node["devices"]] == [("cpu:n1:0", "t4", 7)]
    assert node["cpu_cores"] == 1.0
    assert register(client, cluster, "n1", REPORT | {"devices": []}).status_code == 200
    assert client.get("/v1/nodes/n1").json()["devices"] == []


def test_one_device_is_offered_by_one_node(client: TestClient, cluster: Cluster) -> None:
    register(client, cluster, "n1", REPORT)
    refused = register(client, cluster, "n2", REPORT)
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:ergon:device-taken")
    assert "device cpu:n1:0 is offered by node 'n1'; stop that agent" in refused.json()["detail"]
    assert client.get("/v1/nodes/n2").status_code == 404
    cluster.lose("n1")  # its agent was started under another name
    assert register(client, cluster, "n2", REPORT).status_code == 200
    assert [device["id"] for device in client.get("/v1/nodes/n2").json()["devices"]] == ["cpu:n1:0", "cpu:n1:1"]
    assert client.get("/v1/nodes/n1").json()["devices"] == []


def test_who_holds_a_device_is_shown_without_other_peoples_jobs(
    client: TestClient, cluster: Cluster, as_bob: dict[str, str], as_root: dict[str, str]
) -> None:
    cluster.join("n1")
    job = cluster.submit("alice")
    cluster.place(job, "n1")
    for headers, holder in ((None, job), (as_bob, "(another user)"), (as_root, job)):
        devices = client.get("/v1/nodes/n1", headers=headers).json()["devices"]
        assert [device["job"] for device in devices] == [holder, None]


def conditions(client: TestClient) -> list[tuple[str, str | None]]:
    return [(device["condition"], device["reason"]) for device in client.get("/v1/nodes/n1").json()["devices"]]


def test_an_unfit_device_gets_no_new_work_and_comes_back(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    running = cluster.submit()
    attempt = cluster.place(running, "n1")
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    waiting = cluster.submit()
    problem, seen = cluster.problem()
    cluster.sync("n1", unfit={"cpu:n1:0": "too hot", "cpu:n1:1": "too hot"})
    assert conditions(client) == [("unfit", "too hot"), ("unfit", "too hot")]
    assert cluster.job(running).state == "running", "what runs is left alone"
    assert cluster.held_devices() == {"cpu:n1:0", "cpu:n1:1"}
    with pytest.raises(Overtaken, match="does not offer all devices any more"):
        cluster.commit_on(waiting, problem, seen, "n1")
    cluster.sync("n1")
    assert conditions(client) == [("unfit", "too hot"), ("unfit", "too hot")], "nothing said, nothing changed"
    cluster.sync("n1", unfit={"cpu:n1:0": "still hot"})
    assert conditions(client) == [("unfit", "still hot"), ("ok", None)]
    cluster.place(waiting, "n1")
    cluster.join("n1")
    assert conditions(client) == [("ok", None), ("ok", None)], "a new agent says it anew"


def test_an_agent_cannot_take_out_what_it_does_not_offer(client: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    cluster.join("n2")
    cluster.sync("n2", unfit={"cpu:n1:0": "mine is better", "cpu:n9:0": "unknown"})
    assert conditions(client) == [("ok", None), ("ok", None)]


def test_a_device_with_a_process_that_does_not_die_is_quarantined_until_it_has(
    client: TestClient, cluster: Cluster
) -> None:
    cluster.join("n1")
    cluster.join("n2")
    job = cluster.submit()
    attempt = cluster.place(job, "n1")
    cluster.tell("n1", attempt, AttemptState.RUNNING)
    lost = {"reason": EndReason.FENCED, "message": "process 7 does not die (state D)"}
    cluster.tell("n1", attempt, AttemptState.ENDED, **lost)
    assert cluster.job(job).state == "queued"
    assert [condition for condition, _reason in conditions(client)] == ["quarantined", "ok"]
    assert "process" in str(conditions(client)[0][1])
    cluster.place(job, "n2")
    assert cluster.held_devices() == {"cpu:n1:0", "cpu:n2:0"}
    cluster.tell("n1", attempt, AttemptState.ENDED, clean=True, **lost)
    assert conditions(client) == [("ok", None), ("ok", None)]
    assert cluster.held_devices() == {"cpu:n2:0"}


def test_pages_of_nodes_add_up(client: TestClient, cluster: Cluster) -> None:
    names = sorted(f"n{number}" for number in range(11))
    for name in names:
        cluster.join(name, slots=1)
    found, cursor = [], ""
    while cursor is not None:
        page = client.get("/v1/nodes", params={"limit": 4, "cursor": cursor}).json()
        found.extend(node["name"] for node in page["items"])
        cursor = page["next"]
    assert found == names


REFUSED_INVENTORIES: list[tuple[str, object, str]] = [
    ("cpu_cores", 0, "greater than 0"),
    ("cpu_cores", 1e9, "less than or equal to 65536"),
    ("cpu_threads", 0, "greater than or equal to 1"),
    ("memory_bytes", 0, "greater than 0"),
    ("memory_bytes", 2**62, "less than or equal to"),
    ("boot_id", "b" * 65, "at most 64 characters"),
    ("address", "a\x00b", "NUL cannot be kept"),
    ("cpu_model", "\x00", "NUL cannot be kept"),
    ("labels", {"rack": "\x00"}, "NUL cannot be kept"),
    ("gpus", 8, "unknown field"),
    ("devices", [DEVICE | {"id": "a b"}], "use letters, digits, dots, colons"),
    ("devices", [DEVICE | {"kind": "H100"}], "use small letters"),
    ("devices", [DEVICE | {"index": 2**31}], "less than"),
    ("devices", [DEVICE | {"memory_bytes": -1}], "greater than or equal to 0"),
    ("devices", [DEVICE | {"power_limit_w": 1e300}], "less than or equal to 100000"),
    ("devices", [DEVICE, DEVICE], "device cpu:n1:0 is listed twice"),
]


def test_an_inventory_that_cannot_be_is_refused_by_field(
    client: TestClient, cluster: Cluster, subtests: pytest.Subtests
) -> None:
    for field, value, says in REFUSED_INVENTORIES:
        with subtests.test(field=field, says=says):
            refused = register(client, cluster, "n1", REPORT | {field: value})
            assert refused.status_code == 422
            (error,) = refused.json()["errors"]
            assert error["field"].startswith(f"report.{field}")
            assert says in error["message"]
            assert cluster.row_counts()["nodes"] == 0


REFUSED_EXCHANGES: list[tuple[str, Any, str, str]] = [
    ("incarnation", 2**31, "incarnation", "less than"),
    ("wait_s", -1, "wait_s", "greater than or equal to 0"),
    ("members", [{"state": "ended", "exit_code": 0}], "members.0", "a member that has ended needs a `reason`"),
    ("members", [{"state": "ended", "reason": "bored"}], "members.0.reason", "Input should be 'completed'"),
    ("members", [{"state": "done"}], "members.0.state", "Input should be 'granted'"),
    ("members", [{"state": "running", "epoch": 0}], "members.0.epoch", "greater than or equal to 1"),
    ("members", [{"state": "running", "exit_code": 2**31}], "members.0.exit_code", "less than"),
    ("members", [{"state": "running", "message": "\x00"}], "members.0.message", "NUL cannot be kept"),
    ("members", [{"state": "running", "rendezvous": "\x00"}], "members.0.rendezvous", "NUL cannot be kept"),
    ("samples", [SAMPLE | {"energy_j": -1}], "samples.0.energy_j", "greater than or equal to 0"),
    ("samples", [SAMPLE | {"utilisation": 1.5}], "samples.0.utilisation", "less than or equal to 1"),
    ("samples", [SAMPLE | {"source": "guess"}], "samples.0.source", "Input should be 'nvml'"),
    ("samples", [SAMPLE] * 10_001, "samples", "at most 10000 items"),
]


def test_an_exchange_that_cannot_be_is_refused_by_field_and_changes_nothing(
    client: TestClient, cluster: Cluster, subtests: pytest.Subtests
) -> None:
    cluster.join("n1")
    job = cluster.submit()
    attempt = cluster.place(job, "n1")
    before, headers = cluster.job(job), bearer(cluster.node_token("n1"))
    good = member_report(attempt, AttemptState.RUNNING).model_dump(mode="json")
    for part, value, field, says in REFUSED_EXCHANGES:
        with subtests.test(part=part, says=says):
            sent = [good | value[0]] if part == "members" else value
            body = {"protocol": PROTOCOL_VERSION, "incarnation": 1, "samples": [SAMPLE], part: sent}
            refused = client.post("/v1/agent/sync", json=body, headers=headers)
            assert refused.status_code == 422
            (error,) = refused.json()["errors"]
            assert error["field"] == field
            assert says in error["message"]
            assert cluster.job(job) == before
            assert cluster.row_counts()["samples"] == 0


def test_the_numbers_for_monitoring_add_up(client: TestClient, cluster: Cluster) -> None:
    def gauges() -> dict[str, float]:
        text = client.get("/metrics").text
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {
            name: float(value)
            for name, value in samples
            if not name.startswith(("ergon_alarms", "ergon_cycle_renewals"))
        }

    uses = ("allocated", "unfit", "off", "idle")
    assert gauges() == {f'ergon_devices{{use="{use}"}}': 0.0 for use in uses}
    cluster.join("n1", slots=3)
    cluster.join("n2", slots=1)
    cluster.lose("n2")
    done, running = cluster.submit(), cluster.submit(devices_per_node=2)
    cluster.submit()
    cluster.end("n1", cluster.place(done, "n1"), EndReason.FAILED, 1)
    cluster.place(running, "n1")
    cluster.join("n3", slots=1)
    cluster.sync("n3", unfit={"cpu:n3:0": "too hot"})
    cluster.lose("n3")
    assert gauges() == {
        'ergon_jobs{state="failed"}': 1.0,
        'ergon_jobs{state="starting"}': 1.0,
        'ergon_jobs{state="queued"}': 1.0,
        'ergon_nodes{state="ready"}': 1.0,
        'ergon_nodes{state="lost"}': 2.0,
        'ergon_devices{use="allocated"}': 2.0,
        'ergon_devices{use="unfit"}': 1.0,
        'ergon_devices{use="off"}': 0.0,
        'ergon_devices{use="idle"}': 2.0,
    }
