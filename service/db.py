"""Connections to PostgreSQL: one engine per process, short transactions, notifications between processes, one clock."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, Row, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

CHANNEL = "ergon"
"""The one channel of notifications. Payloads are `cycle`, `node:<id>` and `job:<id>`: where to look again."""

Record = Row[*tuple[Any, ...]]
"""A row of a result; its columns are attributes."""

STATEMENT_TIMEOUT_MS = 15_000
LOCK_TIMEOUT_MS = 5_000
CONNECT_TIMEOUT_S = 5
RENEW_S = 1800
"""Connections older than this, in s, are made anew: a database whose name or clock has been set is followed."""

VANISHED: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 14_000,
}
"""How a server that is gone without a word is noticed, within 14 s: silence in s, between probes in s, probes, and
unconfirmed data in ms. A network's own limits are hours. Of no effect on a Unix socket."""


def connect(url: str, *, pool_size: int = 10) -> Engine:
    """An engine whose every statement, lock and connection attempt has a time limit."""
    return create_engine(
        _with_driver(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_S,
        pool_pre_ping=True,
        pool_recycle=RENEW_S,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "ergon",
            **VANISHED,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS} -c timezone=UTC "
            "-c synchronous_commit=on",  # whatever the server's default is: what was answered is on its disk
        },
    )


@contextlib.contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """One consistent, read-only view of the whole database."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True) as tx:
        yield tx


def notify(tx: Connection, payload: str) -> None:
    """Tell every process that something changed, when and only when this transaction commits."""
    tx.execute(text("SELECT pg_notify(:channel, :payload)"), {"channel": CHANNEL, "payload": payload})


def unsafe_settings(engine: Engine) -> list[str]:
    """Settings of the server by which a loss of power takes what was acknowledged, such as `fsync=off`.

    They are the server's: no connection can set them.
    """
    with engine.connect() as tx:
        found = {name: tx.execute(text(f"SHOW {name}")).scalar_one() for name in ("fsync", "full_page_writes")}
    return [f"{name}={value}" for name, value in found.items() if value != "on"]


class Clock:
    """One wall clock for all processes of the service: the database's.

    It shows what that showed when the last new connection was made, and the time that has passed here since.
    Processes of the service run on several machines, whose own clocks differ, and jump when somebody sets them: times
    that one writes and another compares must not come from them. Until the first connection there is nothing better
    than the own clock. Connections are renewed (`RENEW_S`), so a database whose clock is set is followed.
    """

    def __init__(self, engine: Engine) -> None:
        self._at_boot_s: float | None = None
        event.listen(engine, "connect", self._measure)

    def __call__(self) -> datetime:
        if self._at_boot_s is None:
            return datetime.now(UTC)
        return datetime.fromtimestamp(self._at_boot_s + _since_boot_s(), UTC)

    def _measure(self, connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        ((shown_s,),) = cursor.fetchall()
        self._at_boot_s = shown_s - _since_boot_s()
        cursor.close()
        connection.rollback()


class Listener:
    """One LISTEN connection, read by a thread of its own, that calls `heard(payload)`.

    A notification may be lost when the connection breaks: after each new connection `heard("")` is called, and means
    that anything may have changed.
    """

    def __init__(self, url: str, heard: Callable[[str], None]) -> None:
        self._url = url
        self._heard = heard
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listen", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; returns when the thread has ended."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(psycopg.OperationalError):
                self._listen()
            self._stopped.wait(0.5)

    def _listen(self) -> None:
        with psycopg.connect(
            self._url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, application_name="ergon-listen", **VANISHED
        ) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            self._heard("")
            while not self._stopped.is_set():
                for notification in connection.notifies(timeout=0.5):
                    self._heard(notification.payload)


def _with_driver(url: str) -> str:
    return "postgresql+psycopg://" + url.split("://", 1)[1]


def _since_boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
