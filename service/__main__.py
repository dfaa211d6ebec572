"""The processes of the service, and its commands: `python -P -m service database | migrate | api | cycle | ...`."""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import OperationalError

from archives.limits import show_bytes
from protocol.base import Name
from protocol.faults import in_words
from protocol.states import Role
from service import auth, migrate, retention
from service.backups.make import BackupFailed, make
from service.backups.restore import check_complete, restore
from service.blobs import open_blobs
from service.db import Clock, Listener, connect, unsafe_settings
from service.ids import new_id
from service.postgres import EmbeddedPostgres, PostgresError, url_of
from service.refusals import Refusal
from service.settings import Settings, SettingsError

log = logging.getLogger("service")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""Between two tries to start a database that has ended by itself."""


def main(arguments: list[str] | None = None) -> int:
    """Run one process of the service; its exit code. 2 means that something must be put right first."""
    options = command_line().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        settings = Settings.from_environment()
        return _COMMANDS[options.command](settings, options)
    except (SettingsError, PostgresError, Refusal, ValueError) as error:
        print(f"service: {error}", file=sys.stderr)
        return 2
    except BackupFailed as error:
        print(f"service: {error}", file=sys.stderr)
        return 1
    except (OperationalError, psycopg.OperationalError) as error:
        reason = error.orig if isinstance(error, OperationalError) else error
        said = " ".join(str(reason).split())
        print(f"service: the database does not answer, see ERGON_DATABASE_URL: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("service: interrupted", file=sys.stderr)
        return 130


def command_line() -> argparse.ArgumentParser:
    """What the processes and commands of the service are called, and what they take."""
    parser = argparse.ArgumentParser(prog="python -P -m service", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("database", help="supervise the embedded PostgreSQL, with all migrations applied")
    commands.add_parser("migrate", help="apply the migrations to the database that the settings name")
    commands.add_parser("api", help="serve the API")
    commands.add_parser("cycle", help="plan, or stand by to")
    token = commands.add_parser("token", help="make a token and print it once").add_subparsers(required=True)
    user = token.add_parser("user", help="a token for a person, who is created if new")
    user.add_argument("names", metavar="name", nargs=1)
    user.add_argument("--role", choices=[role.value for role in Role], default=Role.USER.value)
    user.set_defaults(kind="user")
    node = token.add_parser("node", help="a token with which an agent may be the node of this name, for each name")
    node.add_argument("names", metavar="name", nargs="+")
    node.set_defaults(kind="node")
    backup = commands.add_parser("backup", help="write the database and the store to one file; the service goes on")
    restore = commands.add_parser("restore", help="bring a backup back, into an empty database; the service is stopped")
    for command in (backup, restore):
        command.add_argument("file", type=Path)
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _database(settings: Settings, _: argparse.Namespace) -> int:
    if settings.database_url:
        raise SettingsError("ERGON_DATABASE_URL names a database: there is no embedded one to run; use `migrate`")
    stopped = _stop_on_signals()
    with EmbeddedPostgres(settings.data_dir, system_user=settings.postgres_user) as server:
        check_complete(server.url)
        migrate.upgrade(server.url)
        _ready("database")
        pause_s = FIRST_PAUSE_S
        while not stopped.is_set():
            if (code := server.wait(0.2)) is None:
                pause_s = FIRST_PAUSE_S
                continue
            log.error("PostgreSQL ended by itself with code %d and is started again", code)
            try:
                server.restart()
            except PostgresError as error:  # never given up: jobs run on, and a full disk has room again some day
                log.error("PostgreSQL does not start, next try in %g s: %s", pause_s, error)
                stopped.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    return 0


def _migrate(settings: Settings, _: argparse.Namespace) -> int:
    check_complete(_url(settings))
    migrate.upgrade(_url(settings))
    _ready("migrate")
    return 0


def _api(settings: Settings, _: argparse.Namespace) -> int:
    from service.api.server import check_exposure, serve  # noqa: PLC0415 - the other commands start faster without the web server

    check_exposure(settings)
    url = _checked_url(settings)
    try:
        listening = socket.create_server((settings.host, settings.port), family=_family(settings.host))
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; set ERGON_PORT to a free port "
            "(0 takes any) or ERGON_HOST to an address of this machine"
        ) from error
    serve(settings, url, listening, ready=lambda address: _ready("api", url=address))
    return 0


def _cycle(settings: Settings, _: argparse.Namespace) -> int:
    from service.cycle.loop import Cycle, run  # noqa: PLC0415 - loads the solver
    from service.cycle.solver import SolverProcess  # noqa: PLC0415

    url = _checked_url(settings)
    stopped, wake = _stop_on_signals(), threading.Event()
    engine, solver = connect(url, pool_size=4), SolverProcess()
    if unsafe := unsafe_settings(engine):
        log.error("a loss of power may take acknowledged jobs: PostgreSQL runs with %s; set it on", ", ".join(unsafe))
    now = Clock(engine)
    cycle = Cycle(
        engine,
        settings,
        holder=f"{socket.gethostname()}:{os.getpid()}",
        solve=solver.solve,
        now=now,
        clock_s=lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        new_id=new_id,
        learn=solver.learn,
    )
    listener = Listener(url, lambda payload: wake.set() if payload in {"", "cycle"} else None)
    listener.start()
    _ready("cycle")
    blobs = open_blobs(settings)
    run(
        cycle,
        solver,
        wake,
        stopped,
        sweep=lambda: retention.sweep(engine, settings, blobs, now=now()),
    )
    listener.stop()
    engine.dispose()
    return 0


def _token(settings: Settings, options: argparse.Namespace) -> int:
    names = [_name(text) for text in options.names]
    engine = connect(_checked_url(settings), pool_size=1)
    clock = Clock(engine)
    with engine.begin() as tx:
        now = clock()
        if options.kind == "node":
            tokens = [auth.make_node_token(tx, name=name, now=now) for name in names]
        else:
            role = Role(options.role)
            tokens = [auth.make_user_token(tx, name=name, role=role, now=now, new_id=new_id) for name in names]
    engine.dispose()
    print(*tokens, sep="\n")
    return 0


def _name(text: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(text)
    except ValidationError as error:
        raise SettingsError(f"the name {text!r} cannot be used: {in_words(error.errors()[0])}") from error


def _backup(settings: Settings, options: argparse.Namespace) -> int:
    _end_on_sigterm()
    made = make(settings, options.file, now=datetime.now(UTC))
    if options.json:
        print(json.dumps({"file": str(options.file), "bytes": made.size, "schema": made.schema, "blobs": made.blobs}))
    else:
        print(f"{options.file}: {show_bytes(made.size)}; the database (schema {made.schema}) and {made.blobs} blobs")
    return 0


def _restore(settings: Settings, options: argparse.Namespace) -> int:
    _end_on_sigterm()
    done = restore(settings, options.file, clock=lambda: datetime.now(UTC))
    if options.json:
        times = {"made_at": done.made_at.isoformat(), "not_before": done.not_before.isoformat()}
        print(json.dumps({"file": str(options.file), "blobs": done.blobs, "held": done.held, **times}))
    else:
        print(f"restored what {options.file} held at {done.made_at:%Y-%m-%d %H:%M:%S} UTC, {done.blobs} blobs among it")
        print(f"start the service now; jobs start from {done.not_before:%H:%M:%S} UTC on")
        if done.held:
            print(f"{done.held} jobs with `on_disconnect: wait` are held: they may run on nodes that are not heard yet")
    return 0


_COMMANDS: dict[str, Callable[[Settings, argparse.Namespace], int]] = {
    "database": _database,
    "migrate": _migrate,
    "api": _api,
    "cycle": _cycle,
    "token": _token,
    "backup": _backup,
    "restore": _restore,
}


def _url(settings: Settings) -> str:
    return settings.database_url or url_of(settings.data_dir)


def _checked_url(settings: Settings) -> str:
    url = _url(settings)
    check_complete(url)
    if not migrate.is_current(url):
        raise SettingsError("the database is not at this version's schema; run `python -P -m service migrate` first")
    return url


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _ready(process: str, **facts: str) -> None:
    """Tell whoever started us. The one line on standard output; everything else goes to standard error."""
    print(json.dumps({"ready": process, **facts}), flush=True)


def _end_on_sigterm() -> None:
    """Unwind the stack as Ctrl-C does, so that nothing half done stays."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _stop_on_signals() -> threading.Event:
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


if __name__ == "__main__":
    sys.exit(main())
