"""Connections to PostgreSQL: limits, snapshots, and notifications that come when something is committed."""

import queue
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.exc import InternalError, OperationalError

from service.db import Listener, connect, notify, snapshot
from service.models import leadership

LEADER = insert(leadership).values(id=1, term=1, holder="me", renewals=0)


def test_every_statement_and_lock_has_a_limit_and_times_are_utc(engine: Engine) -> None:
    with engine.connect() as tx:
        shown = [tx.execute(text(f"SHOW {name}")).scalar_one() for name in ("statement_timeout", "lock_timeout")]
        assert shown == ["15s", "5s"]
        assert tx.execute(text("SHOW timezone")).scalar_one() == "UTC"


def test_a_snapshot_sees_one_moment_and_changes_nothing(engine: Engine) -> None:
    with snapshot(engine) as before:
        assert before.execute(select(leadership.c.term)).all() == []
        with engine.begin() as tx:
            tx.execute(LEADER)
        assert before.execute(select(leadership.c.term)).all() == []
        with pytest.raises(InternalError, match="read-only transaction"):
            before.execute(LEADER.values(holder="other"))
    with snapshot(engine) as after:
        assert after.execute(select(leadership.c.term)).scalars().all() == [1]


def test_a_connection_of_a_snapshot_writes_again_afterwards(database_url: str) -> None:
    engine = connect(database_url, pool_size=1)
    with snapshot(engine):
        pass
    with engine.begin() as tx:
        tx.execute(LEADER)
        assert tx.execute(text("SHOW transaction_isolation")).scalar_one() == "read committed"
    engine.dispose()


def test_a_database_that_is_not_there_is_an_error_at_once() -> None:
    engine = connect("postgresql://nobody@/nothing?host=/nonexistent")
    with pytest.raises(OperationalError), engine.connect():
        pass
    engine.dispose()


class Ear:
    """A listener, and what it has heard so far."""

    def __init__(self, url: str) -> None:
        self._heard: queue.Queue[str] = queue.Queue()
        self.listener = Listener(url, self._heard.put)

    def next(self) -> str:
        return self._heard.get(timeout=30)


@pytest.fixture
def ear(database_url: str) -> Iterator[Ear]:
    ear = Ear(database_url)
    ear.listener.start()
    yield ear
    ear.listener.stop()


def tell(engine: Engine, payload: str) -> None:
    with engine.begin() as tx:
        notify(tx, payload)


def test_what_is_committed_is_heard_and_nothing_else(engine: Engine, ear: Ear) -> None:
    assert ear.next() == "", "anything may have happened before"
    with engine.connect() as tx:
        notify(tx, "job:rolled-back")
        tx.rollback()
    for payload in ("job:1", "node:n1", "cycle"):
        tell(engine, payload)
    assert [ear.next() for _ in range(3)] == ["job:1", "node:n1", "cycle"]


def test_a_listener_whose_connection_broke_listens_again_and_says_that_it_may_have_missed_something(
    engine: Engine, ear: Ear
) -> None:
    assert ear.next() == ""
    with engine.begin() as tx:
        ended = tx.execute(
            text(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'ergon-listen'"
            )
        ).scalar_one()
        assert ended == 1
    assert ear.next() == ""
    tell(engine, "job:2")
    assert ear.next() == "job:2"
