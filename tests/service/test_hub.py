"""Waiting without a thread: who waits is woken by what happens, and nothing is missed between looking and waiting."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from protocol.states import EndReason
from protocol.sync import StreamChunk
from protocol.version import PROTOCOL_VERSION
from service.api.app import create_app
from service.api.deps import Parts
from service.api.hub import Hub
from service.db import Listener
from service.tariff_source import TariffSource
from tests.service.cluster import Cluster
from tests.service.conftest import bearer

LONG_S = 3_600.0


def on_a_loop(test: Callable[[Hub], Awaitable[None]]) -> None:
    """Run with a hub that is attached to the loop; what waits for ever fails."""

    async def attached() -> None:
        hub = Hub()
        hub.attach(asyncio.get_running_loop())
        async with asyncio.timeout(30):
            await test(hub)

    asyncio.run(attached())


async def parked(hub: Hub, topic: str, timeout_s: float = LONG_S) -> asyncio.Task[None]:
    """Somebody who waits on the topic by now."""
    task = asyncio.create_task(hub.wait(topic, hub.ticket(topic), timeout_s))
    await settled()
    return task


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_waits_is_woken_by_own_topic_only() -> None:
    async def test(hub: Hub) -> None:
        mine, too, other = [await parked(hub, topic) for topic in ("job:1", "job:1", "job:2")]
        hub.heard("job:1")
        await mine
        await too
        await settled()
        assert not other.done()
        hub.heard("job:2")
        await other

    on_a_loop(test)


def test_what_may_have_been_missed_wakes_everybody() -> None:
    async def test(hub: Hub) -> None:
        everybody = [await parked(hub, topic) for topic in ("job:1", "node:1", "cycle")]
        hub.heard("")
        await asyncio.gather(*everybody)

    on_a_loop(test)


@pytest.mark.parametrize("topic", ["job:1", ""])
def test_what_happens_after_the_ticket_was_taken_is_not_missed(topic: str) -> None:
    async def test(hub: Hub) -> None:
        ticket = hub.ticket("job:1")
        hub.heard(topic)
        await settled()
        await hub.wait("job:1", ticket, LONG_S)
        later = asyncio.create_task(hub.wait("job:1", hub.ticket("job:1"), LONG_S))
        await settled()
        assert not later.done(), "with a fresh ticket there is something to wait for again"
        later.cancel()

    on_a_loop(test)


def test_a_notification_comes_from_another_thread() -> None:
    async def test(hub: Hub) -> None:
        waiting = await parked(hub, "job:1")
        thread = threading.Thread(target=hub.heard, args=("job:1",))
        thread.start()
        await waiting
        thread.join()

    on_a_loop(test)


def test_waiting_ends_when_its_time_is_over() -> None:
    async def test(hub: Hub) -> None:
        await hub.wait("job:1", hub.ticket("job:1"), 0.0)
        still = await parked(hub, "job:1")
        await hub.wait("job:1", hub.ticket("job:1"), 0.0)
        assert not still.done(), "one's time is not the other's"
        hub.heard("job:1")
        await still

    on_a_loop(test)


def test_when_the_process_stops_nobody_waits_any_more() -> None:
    async def test(hub: Hub) -> None:
        waiting = await parked(hub, "job:1")
        hub.close_soon()
        await waiting
        assert hub.closed
        await hub.wait("job:1", hub.ticket("job:1"), LONG_S)

    on_a_loop(test)


def test_what_is_heard_without_a_loop_is_let_be() -> None:
    hub = Hub()
    hub.heard("job:1")
    loop = asyncio.new_event_loop()
    hub.attach(loop)
    loop.close()
    hub.heard("job:1")


@pytest.fixture
def live(cluster: Cluster, database_url: str) -> Iterator[TestClient]:
    """The API with its ear at the database, as in a process of its own, and alice's token."""
    hub = Hub()
    parts = Parts(
        engine=cluster.engine,
        settings=cluster.settings,
        tariffs=TariffSource(cluster.settings),
        hub=hub,
        now=lambda: cluster.now,
        new_id=cluster.new_id,
    )
    app = create_app(parts, Listener(database_url, hub.heard))
    cluster.person("alice")
    with TestClient(app, "http://127.0.0.1", headers=bearer(cluster.tokens["alice"])) as client:
        yield client


@pytest.mark.timeout(25)  # a long poll that nobody wakes takes 30 s
def test_an_agent_that_polls_is_answered_as_soon_as_its_assignments_change(live: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    headers = bearer(cluster.node_token("n1"))

    def poll(version: str) -> dict[str, Any]:
        body = {"protocol": PROTOCOL_VERSION, "incarnation": 1, "wait_s": 300, "version": version}
        return live.post("/v1/agent/sync", json=body, headers=headers).json()

    with ThreadPoolExecutor() as threads:
        idle = cluster.sync("n1").version
        answer = threads.submit(poll, idle)
        job = cluster.submit()
        cluster.place(job, "n1")
        granted = answer.result()
        assert [item["desired"] for item in granted["assignments"]] == ["run"]
        answer = threads.submit(poll, granted["version"])
        cluster.cancel(job)
        stopped = answer.result()
        assert [item["desired"] for item in stopped["assignments"]] == ["stop"]
        assert poll(granted["version"]) == stopped, "who holds something older is answered at once"


@pytest.mark.timeout(25)
def test_output_is_followed_until_the_job_has_ended(live: TestClient, cluster: Cluster) -> None:
    cluster.join("n1")
    job = cluster.submit()
    with ThreadPoolExecutor() as threads:
        following = threads.submit(live.get, f"/v1/jobs/{job}/logs", params={"follow": True})
        attempt = cluster.place(job, "n1")
        for number in range(3):
            piece = StreamChunk(attempt=attempt.id, rank=0, stream="stdout", offset=2 * number, data=b"%d\n" % number)
            cluster.sync("n1", chunks=[piece])
        cluster.end("n1", attempt, EndReason.COMPLETED)
        text = following.result().text
    assert "".join(json.loads(line)["text"] for line in text.splitlines() if line) == "0\n1\n2\n"
