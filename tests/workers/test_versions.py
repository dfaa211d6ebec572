"""An agent of today and the first service: what it says there, and what it hears."""

import os
from typing import Any

import pytest

from protocol.states import EndReason
from protocol.sync import RegisterResponse, SyncResponse
from tests.recorded import first_version
from tests.workers.builders import assignment

PARTS = {
    "members": "MemberReport",
    "chunks": "StreamChunk",
    "samples": "PowerSample",
}


def unknown_to_the_first(body: dict[str, Any], message: str) -> set[str]:
    """Fields of a request that the first service would have refused."""
    found = {f"{message}.{field}" for field in body.keys() - first_version.REQUEST_FIELDS[message]}
    for field in body.keys() & PARTS.keys():
        for part in body[field]:
            found |= unknown_to_the_first(part, PARTS[field])
    return found


@pytest.mark.system
def test_an_agent_says_nothing_new_of_a_job_that_is_nothing_new(service, agent, tmp_path):
    """Only its registration may: an older service names the field then, and the agent says to upgrade it and leaves."""
    attempt = f"versions-{os.getpid()}"
    script = "echo hello; echo '{\"step\": 1}' > $ERGON_PROGRESS; test -z $ERGON_CHECKPOINT_DIR"
    service.numbers_reports = service.knows_checkpoints = False
    service.knows_state_folders = service.knows_limits = service.knows_caches = False
    service.grant(assignment(attempt, command=["sh", "-c", script]))
    one = agent("--sample-every", "0.1", "--checkpoint-dir", str(tmp_path)).wait_ready()
    assert service.wait_forgotten(attempt).reason == EndReason.COMPLETED
    service.wait(lambda: service.samples)
    assert one.terminate()[0] == 0
    syncs = [body for path, body in service.bodies if path == "/v1/agent/sync"]
    assert {field for body in syncs for field in body} >= {"members", "chunks", "samples", "leaving"}
    assert [fault for body in syncs for fault in unknown_to_the_first(body, "SyncRequest")] == []


def test_an_agent_reads_what_the_first_service_answered():
    register, *syncs = first_version.AGENT
    assert RegisterResponse.model_validate(register.answer).node == "old-node"
    heard = [SyncResponse.model_validate(exchange.answer) for exchange in syncs]
    [granted] = {found.attempt: found for answer in heard for found in answer.assignments}.values()
    assert (granted.members, granted.disk_bytes, granted.code, granted.datasets) == (2, None, None, {})
