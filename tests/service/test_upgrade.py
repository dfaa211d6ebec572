"""A database of the first revision, filled, comes through every upgrade with all it had, and the service goes on with
it. The rows are in `upgrade_rows.py`."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from psycopg.rows import dict_row
from sqlalchemy import Engine

from protocol.states import AttemptState, EndReason, JobState
from scheduler.learning import outlook_of_past
from scheduler.solve import solve
from service import auth, migrate
from service.cycle.leadership import PATIENCE_S
from service.cycle.loop import Cycle
from service.db import connect
from service.settings import Settings
from tests.service.cluster import Cluster
from tests.service.conftest import bearer
from tests.service.upgrade_rows import ALICE, NODE, ROOT, ROWS

Rows = dict[str, list[dict[str, object]]]
REVISIONS = migrate.revisions()[::-1]
NOW = datetime(2026, 1, 1, 3, 0, 5, tzinfo=UTC)


def contents(url: str) -> Rows:
    """Every row of every table but alembic's."""
    with psycopg.connect(url, row_factory=dict_row) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        names = sorted(str(row["tablename"]) for row in found if row["tablename"] != "alembic_version")
        return {name: connection.execute(f"SELECT * FROM {name}".encode()).fetchall() for name in names}


def add_rows(url: str, revision: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in ROWS.get(revision, ()):
            connection.execute(statement.encode())


def cut(rows: Rows, shape: Rows) -> dict[str, list[str]]:
    """The rows with the columns that `shape` has as well, in an order of their own."""
    kept = {name: set(found[0]) & set(shape[name][0]) for name, found in rows.items() if name in shape}
    return {
        name: sorted(repr(sorted((column, row[column]) for column in columns)) for row in rows[name])
        for name, columns in kept.items()
    }


def test_every_revision_keeps_every_row(empty_url: str) -> None:
    before: Rows = {}
    for revision in REVISIONS:
        migrate.upgrade(empty_url, revision)
        after = contents(empty_url)
        assert {name: len(rows) for name, rows in before.items()} == {name: len(after[name]) for name in before}, (
            revision
        )
        assert cut(before, after) == cut({name: after[name] for name in before}, before), revision
        add_rows(empty_url, revision)
        before = contents(empty_url)
        empty = [name for name, rows in before.items() if not rows]
        assert empty == [], f"write rows for the tables that {revision} brings"
    assert migrate.is_current(empty_url)


@pytest.fixture
def engine(empty_url: str) -> Iterator[Engine]:
    """A database that was filled at each revision and has come to the newest."""
    for revision in REVISIONS:
        migrate.upgrade(empty_url, revision)
        add_rows(empty_url, revision)
    engine = connect(empty_url, pool_size=5)
    yield engine
    engine.dispose()


@pytest.fixture
def cluster(engine: Engine, settings: Settings) -> Cluster:
    """The service of today, with the people and the agents of then."""
    cluster = Cluster(engine, settings, now=NOW, tokens={"alice": ALICE, "root": ROOT}, incarnations={"n1": 7, "n2": 8})
    with engine.begin() as tx:
        cluster.people = {name: auth.identify_person(tx, f"Bearer {token}") for name, token in cluster.tokens.items()}
        assert auth.identify_node(tx, f"Bearer {NODE}") == "n1"
    return cluster


def test_all_of_it_is_shown(app: FastAPI) -> None:
    with TestClient(app, "http://127.0.0.1", headers=bearer(ALICE)) as alice:
        states = {job["id"]: job["state"] for job in alice.get("/v1/jobs").json()["items"]}
        assert states == {
            "j-ended": "succeeded",
            "j-runs": "running",
            "j-waits": "queued",
            "j-r0": "held",
            "j-after": "held",
        }
        ended = alice.get("/v1/jobs/j-ended").json()
        assert ended["progress"]["metrics"] == {"loss": 0.25}
        assert [attempt["id"] for attempt in ended["attempts"]] == ["a-ended"]
        logs = [json.loads(line)["text"] for line in alice.get("/v1/jobs/j-ended/logs").text.splitlines()]
        assert logs == ["hello\n", "again\n"]
        assert [output["size_bytes"] for output in alice.get("/v1/jobs/j-ended/outputs").json()["items"]] == [50]
        assert [event["kind"] for event in alice.get("/v1/jobs/j-ended/events").json()["items"]] == [
            "submitted",
            "ended",
        ]
        assert [point["value"] for point in alice.get("/v1/jobs/j-ended/metrics").json()["items"]] == [0.25]
    with TestClient(app, "http://127.0.0.1", headers=bearer(ROOT)) as root:
        report = root.get("/v1/reports/allocation")
        assert report.status_code == 200, report.text
        assert report.json()["users"][0]["user"] == "alice"
        [cycle] = root.get("/v1/cycles").json()["items"]
        assert root.get(f"/v1/cycles/{cycle['id']}").json()["objective_j"] == 1000.5
        assert [alarm["subject"] for alarm in root.get("/v1/alarms").json()["items"]] == ["n9"]
        assert len(root.get("/v1/nodes").json()["items"]) == 2


def test_the_work_goes_on(cluster: Cluster) -> None:
    runs = cluster.job("j-runs").attempts[-1]
    assert [item.attempt for item in cluster.sync("n1").assignments] == ["a-runs"]
    assert cluster.held_devices() == {"cpu:n1:0", "cpu:n2:0"}

    cycle = Cycle(
        cluster.engine,
        cluster.settings,
        holder="today",
        solve=solve,
        now=lambda: cluster.now,
        clock_s=cluster.clock_s,
        new_id=cluster.new_id,
        learn=outlook_of_past,
    )
    cycle.step(woken=True)
    cluster.advance(PATIENCE_S + 1)  # whoever led before does not any more
    for node in ("n1", "n2"):
        cluster.tell(node, runs, AttemptState.RUNNING)
    cycle.step(woken=True)
    waits = cluster.job("j-waits")
    assert waits.state is JobState.STARTING
    assert sorted(member.devices[0] for member in waits.attempts[-1].members) == ["cpu:n1:1", "cpu:n2:1"]

    for node in ("n1", "n2"):
        cluster.end(node, runs)
    assert cluster.job("j-runs").state is JobState.SUCCEEDED
    assert cluster.job("j-after").state is JobState.QUEUED, "it waited for that"
    for node in ("n1", "n2"):
        cluster.end(node, waits.attempts[-1], EndReason.FAILED, 1)
    assert cluster.job("j-waits").state is JobState.FAILED
    assert cluster.control("j-r0", "release").state is JobState.QUEUED
    assert cluster.held_devices() == set()
    assert cluster.job(cluster.resubmit("j-ended")).spec.env == {"A": "1"}
