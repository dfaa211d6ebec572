"""Backups that break off and files that are none: nothing half done is taken for whole, and the reason is named."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from service.backups.file import DUMP, HEADER, STORE, BackupFile, BackupWriter, BadBackup, Header
from service.backups.make import BackupFailed, BackupRefused, make
from service.backups.restore import NotEmpty, check_complete, restore
from service.db import connect
from service.settings import Settings, SettingsError
from service.store import archives as archive_store
from service.store import restores as restore_store
from tests.service.backups import get_blob, put_blob

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def filled(engine: Engine, origin: Settings) -> Settings:
    """A service with one archive."""
    put_blob(origin, "blob-1", b"code")
    with engine.begin() as tx:
        archive_store.add_archive(tx, digest="sha", size=4, blob="blob-1", now=NOW)
    return origin


@pytest.fixture
def backup(filled: Settings, tmp_path: Path) -> Path:
    make(filled, tmp_path / "backup", now=NOW)
    return tmp_path / "backup"


def command(settings: Settings, *arguments: object, limit_bytes: int | None = None) -> subprocess.Popen[str]:
    """A command of the service as a process; it cannot write a file beyond `limit_bytes`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}
    environment |= {"ERGON_DATA_DIR": str(settings.data_dir), "ERGON_STORE_URL": str(settings.store_url)}
    environment["ERGON_DATABASE_URL"] = str(settings.database_url)
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))) if limit_bytes else None
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "service", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,  # noqa: PLW1509 - no other thread runs
    )


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    said, errors = process.communicate(timeout=120)
    return process.returncode, said, errors


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- files that are no backup


def test_any_byte_that_is_wrong_is_noticed(backup: Path, target: Settings) -> None:
    """Before anything is changed. Every 97th byte, and all of the beginning and the end."""
    whole = backup.read_bytes()
    places = {*range(300), *range(0, len(whole), 97), *range(len(whole) - 300, len(whole))}
    right = checked(backup)
    taken = {}
    for place in sorted(places):
        backup.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(BadBackup):
            taken[place] = checked(backup)
    assert {place: parts for place, parts in taken.items() if parts != right} == {}, "what is taken is what was saved"
    assert len(taken) < len(places) / 4, "a byte may be one that nobody reads, such as a file's time"


def checked(path: Path) -> dict[str, bytes]:
    """The parts of a backup that has passed its check."""
    with BackupFile(path) as file:
        file.check()
        return {name: b"".join(file.read(name)) for name in (HEADER, DUMP, STORE + "blob-1")}


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(backup: Path, target: Settings, part: float) -> None:
    whole = backup.read_bytes()
    backup.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(BadBackup, match=r"is damaged: .*; restore another backup|is not a backup of Ergon"):
        restore(target, backup, clock=lambda: NOW)
    with psycopg.connect(str(target.database_url)) as connection:
        assert connection.execute("SELECT FROM pg_tables WHERE schemaname = 'public'").fetchall() == []


def write_backup(path: Path, *, header: dict[str, object] | None = None, blob: str | None = None) -> None:
    """A whole file with another header, or a blob of any name."""
    with path.open("w+b") as file, BackupWriter(file, Header(schema="0005", version="9", made_at=NOW)) as writer:
        writer.add(DUMP, [b"dump"])
        if blob:
            writer.add(STORE + blob, [b"data"])
        writer.finish()
    if header:
        with zipfile.ZipFile(path) as old:
            parts = {name: old.read(name) for name in old.namelist()}
        parts[HEADER] = json.dumps(json.loads(parts[HEADER]) | header).encode()
        with zipfile.ZipFile(path, "w") as new:
            for name, data in parts.items():
                new.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "9999"}, r"newer version of Ergon \(9, schema 9999; this one knows up to \d{4}\): upgrade first"),
        ({"format": 2}, "newer version of Ergon, 9: upgrade first"),
        ({"made_at": "2026-03-01T00:00:01+00:00"}, "yet to come: set this machine's clock"),
        ({"made_at": "2026-03-01T00:00:00"}, "names no time zone"),
        ({"made_at": 5}, "is damaged: ergon-backup.json cannot be read"),
        ({"version": "10"}, "is damaged: ergon-backup.json is not what was saved"),
    ],
)
def test_a_header_that_says_something_else(
    tmp_path: Path, target: Settings, change: dict[str, object], message: str
) -> None:
    write_backup(tmp_path / "file", header=change)
    with pytest.raises(BadBackup, match=message):
        restore(target, tmp_path / "file", clock=lambda: NOW)


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/x", "a/b", "..", ".", "A", "a\n"])
def test_no_name_in_a_backup_leads_out_of_the_store(tmp_path: Path, target: Settings, name: str) -> None:
    write_backup(tmp_path / "file", blob=name)
    with pytest.raises(BadBackup, match="cannot name a blob"):
        restore(target, tmp_path / "file", clock=lambda: NOW)


def test_files_that_are_something_else(tmp_path: Path, target: Settings) -> None:
    (tmp_path / "text").write_text("hello\n")
    with zipfile.ZipFile(tmp_path / "zip", "w") as other:
        other.writestr("x", "y")
    for name, message in {
        "text": "is not a backup of Ergon",
        "zip": "is not a backup of Ergon",
        "none": "cannot be read: No such file or directory",
        ".": "cannot be read: Is a directory",
    }.items():
        with pytest.raises(BadBackup, match=message):
            restore(target, tmp_path / name, clock=lambda: NOW)
    code, said, errors = end_of(command(target, "restore", tmp_path / "text"))
    assert (code, said, errors) == (2, "", f"service: {tmp_path / 'text'} is not a backup of Ergon\n")


# -- backups that break off


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/file", "cannot be written: No such file or directory; name a file in a folder of yours"),
        ("taken", "exists already; name another file"),
        ("file/below", "cannot be written: Not a directory"),
    ],
)
def test_a_file_that_cannot_be_written(filled: Settings, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "taken").write_text("kept")
    (tmp_path / "file").touch()
    before = names(tmp_path)
    with pytest.raises(BackupRefused, match=message):
        make(filled, tmp_path / name, now=NOW)
    assert names(tmp_path) == before
    assert (tmp_path / "taken").read_text() == "kept"


def test_a_command_that_is_refused_says_so_in_one_line(filled: Settings, tmp_path: Path) -> None:
    code, said, errors = end_of(command(filled, "backup", tmp_path / "missing" / "file"))
    assert (code, said, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"service: {tmp_path / 'missing' / 'file'} cannot be written")


def test_no_room_leaves_nothing(filled: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "to"
    folder.mkdir()
    code, said, errors = end_of(command(filled, "backup", folder / "backup", limit_bytes=10_000))
    assert (code, said, errors.count("\n")) == (1, "", 1), errors
    assert "cannot be written: File too large; nothing of it is left" in errors
    assert names(folder) == set()


def test_a_store_that_lacks_what_the_database_names_is_no_backup(filled: Settings, tmp_path: Path) -> None:
    """As with another ERGON_STORE_URL than the service's."""
    wrong = filled.model_copy(update={"store_url": str(tmp_path / "other")})
    with pytest.raises(BackupFailed, match="does not hold blob-1; is ERGON_STORE_URL the one that the service uses"):
        make(wrong, tmp_path / "backup", now=NOW)
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_backup_that_is_stopped_never_gets_its_name(
    filled: Settings, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """It waits for a table that somebody has locked, as a migration does."""
    folder = tmp_path / "to"
    folder.mkdir()
    with psycopg.connect(str(filled.database_url)) as holder, psycopg.connect(str(filled.database_url)) as watcher:
        watcher.autocommit = True
        holder.execute("LOCK TABLE chunks IN ACCESS EXCLUSIVE MODE")
        process = command(filled, "backup", folder / "backup")
        waiting = "SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE NOT granted AND datname = %s"
        while not watcher.execute(waiting, [watcher.info.dbname]).fetchone():
            assert process.poll() is None, end_of(process)
        process.send_signal(number)
        found, said, errors = end_of(process)
    assert (found, said) == (code, "")
    assert errors == ("service: interrupted\n" if number == signal.SIGINT else "")
    left = names(folder)
    assert "backup" not in left
    if number != signal.SIGKILL:
        assert left == set()


# -- restores that break off


@pytest.fixture
def stuck(target: Settings) -> Path:
    """A pipe where the restored blob goes: writing it waits for a reader that never comes."""
    path = Path(str(target.store_url)) / "-1" / "blob-1"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    return path


def test_a_restore_that_is_stopped_is_recognised_and_can_be_repeated(
    backup: Path, target: Settings, stuck: Path
) -> None:
    url = str(target.database_url)
    process = command(target, "restore", backup)
    engine = connect(url, pool_size=1)
    while True:
        with engine.connect() as tx:
            if restore_store.is_unfinished(tx):
                break
        assert process.poll() is None, end_of(process)
    process.kill()
    end_of(process)
    with pytest.raises(SettingsError, match="a restore into this database was broken off: start `ergon restore` again"):
        check_complete(url)
    for name in ("migrate", "cycle"):
        code, said, errors = end_of(command(target, name))
        assert (code, said) == (2, "")
        assert "a restore into this database was broken off" in errors
    stuck.unlink()
    restore(target, backup, clock=lambda: NOW)
    assert get_blob(target, "blob-1") == b"code"
    check_complete(url)
    engine.dispose()


def test_what_a_restore_left_after_the_tables_were_there_is_replaced(
    backup: Path, target: Settings, engine: Engine
) -> None:
    """The mark is the last to go: a database with tables and the mark is not taken for whole."""
    restore(target, backup, clock=lambda: NOW)
    other = connect(str(target.database_url), pool_size=1)
    with other.begin() as tx:
        tx.exec_driver_sql(f"CREATE TABLE {restore_store.UNFINISHED.name} (id int)")
        tx.exec_driver_sql("DELETE FROM archives")
    restore(target, backup, clock=lambda: NOW + timedelta(seconds=1))
    with other.begin() as tx:
        assert restore_store.is_named(tx, "blob-1")
    other.dispose()


def test_two_restores_at_once_do_not_mix(backup: Path, target: Settings) -> None:
    engine = connect(str(target.database_url), pool_size=1)
    with engine.connect() as holder:
        assert restore_store.lock_for_restore(holder)
        with pytest.raises(NotEmpty, match="another restore into this database is at work"):
            restore(target, backup, clock=lambda: NOW)
    engine.dispose()
