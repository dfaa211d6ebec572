"""A database that hangs: it has the connections, and answers nothing on them. And one that is killed under load."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from protocol.errors import PROBLEM_MEDIA_TYPE
from service import migrate
from service.api.app import create_app
from service.api.deadline import Deadline
from service.api.deps import Parts
from service.api.hub import Hub
from service.db import VANISHED, connect
from service.postgres import EmbeddedPostgres
from service.settings import Settings
from service.tariff_source import TariffSource
from tests.freezing import frozen
from tests.service.cluster import Cluster
from tests.service.conftest import ORIGIN, bearer

MORE_THAN_THREADS = 60
"""Requests at once; the API has 40 threads."""


def browser(app: FastAPI, cluster: Cluster, *, answer_s: float = 0.5) -> httpx.AsyncClient:
    hasty = Deadline(app, answer_s=answer_s)
    headers = bearer(cluster.tokens["alice"])
    return httpx.AsyncClient(transport=httpx.ASGITransport(hasty), base_url=ORIGIN, headers=headers)


def test_while_the_database_hangs_everything_is_answered_and_afterwards_nothing_is_left_of_it(
    app: FastAPI, cluster: Cluster, postgres: EmbeddedPostgres
) -> None:
    cluster.person("alice")

    async def submit(client: httpx.AsyncClient, key: int) -> httpx.Response:
        body = {"command": ["true"]}
        return await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": f"key-{key}"})

    async def scenario() -> None:
        async with browser(app, cluster) as client:
            with frozen(postgres.pid or 0):
                flood = [submit(client, key) for key in range(MORE_THAN_THREADS)]
                alive, *silent = await asyncio.gather(client.get("/livez"), *flood, client.get("/readyz"))
                assert alive.status_code == 200
                for answer in silent:
                    assert answer.status_code == 503
                    assert answer.headers["Content-Type"] == PROBLEM_MEDIA_TYPE
                    assert answer.headers["Retry-After"] == "1"
                    assert answer.json()["type"] == "urn:ergon:unavailable"
            again = [await submit(client, key) for key in range(MORE_THAN_THREADS)]
            assert {answer.status_code for answer in again} == {201}
            assert len({answer.json()["id"] for answer in again}) == MORE_THAN_THREADS
            assert (await client.get("/readyz")).status_code == 200

    asyncio.run(scenario())
    with cluster.engine.connect() as tx:
        assert tx.execute(text("SELECT count(*) FROM jobs")).scalar_one() == MORE_THAN_THREADS


def test_an_answer_that_has_begun_is_not_cut_off() -> None:
    async def slow(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.05)
        await send({"type": "http.response.body", "body": b"all of it"})

    async def scenario() -> str:
        transport = httpx.ASGITransport(Deadline(slow, answer_s=0.02))
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
            return (await client.get("/v1/jobs/1/logs")).text

    assert asyncio.run(scenario()) == "all of it"


def test_a_failure_before_the_deadline_is_not_swallowed() -> None:
    async def broken(scope, receive, send) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Deadline(broken)), base_url=ORIGIN) as client:
            await client.get("/v1/jobs")

    with pytest.raises(ZeroDivisionError):
        asyncio.run(scenario())


def test_a_server_that_is_gone_without_a_word_is_noticed(database_url: str) -> None:
    engine = connect(database_url)
    with engine.connect() as tx:
        assert tx.connection.driver_connection is not None
        used = tx.connection.driver_connection.info.get_parameters()
    assert {name: used.get(name) for name in VANISHED} == {name: str(value) for name, value in VANISHED.items()}
    engine.dispose()


CLIENTS, EACH, KILLS = 6, 6, 1


def test_a_database_that_is_killed_under_load_loses_nothing_that_was_acknowledged(
    short_dir: Path, settings: Settings
) -> None:
    with EmbeddedPostgres(short_dir / "killed") as server:
        migrate.upgrade(server.url)
        engine = connect(server.url, pool_size=20)
        cluster = Cluster(engine=engine, settings=settings)
        cluster.person("alice")
        parts = Parts(
            engine=engine,
            settings=settings,
            tariffs=TariffSource(settings),
            hub=Hub(),
            now=lambda: cluster.now,
            new_id=cluster.new_id,
        )
        acknowledged: dict[str, str] = {}
        refused: list[httpx.Response] = []
        answered = [asyncio.Event() for _ in range(CLIENTS * EACH)]

        async def person(client: httpx.AsyncClient, number: int) -> None:
            for turn in range(EACH):
                key = f"key-{number}-{turn}"
                while True:  # until it is answered, as every client of ours does
                    answer = await client.post(
                        "/v1/jobs", json={"command": ["true"], "name": key}, headers={"Idempotency-Key": key}
                    )
                    if answer.status_code != 503:
                        break
                    refused.append(answer)
                assert answer.status_code in (200, 201), answer.text
                answered[len(acknowledged)].set()
                acknowledged[key] = answer.json()["id"]

        async def murderer() -> None:
            for kill in range(KILLS):
                await answered[(kill + 1) * len(answered) // (KILLS + 1)].wait()
                assert server.pid is not None
                os.kill(server.pid, signal.SIGKILL)
                await asyncio.to_thread(server.wait)
                await asyncio.to_thread(server.restart)

        async def scenario() -> None:
            async with browser(create_app(parts), cluster, answer_s=60.0) as client:
                await asyncio.gather(murderer(), *(person(client, number) for number in range(CLIENTS)))

        asyncio.run(scenario())
        with engine.connect() as tx:
            rows = tx.execute(text("SELECT spec->>'name', id FROM jobs")).all()
        engine.dispose()
    assert sorted(map(tuple, rows)) == sorted(acknowledged.items())
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
