"""`pg_dump` and `pg_restore`, those beside the embedded PostgreSQL, as streams of bytes."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from service.backups.file import BLOCK_BYTES
from service.postgres import program


class ProgramFailed(RuntimeError):
    """A program ended badly; the message is the last it said."""


def dump(url: str, snapshot: str) -> Iterator[bytes]:
    """The database as a snapshot sees it, in `pg_dump`'s custom format. Raises ProgramFailed."""
    with tempfile.TemporaryFile() as said:
        process = _start("pg_dump", url, ["--format=custom", f"--snapshot={snapshot}"], said, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            while block := process.stdout.read(BLOCK_BYTES):
                yield block
            _check("pg_dump", process, said)
        finally:
            _end(process)


def load(url: str, blocks: Iterable[bytes]) -> None:
    """Load what `dump` gave into a database, all of it or nothing. Raises ProgramFailed."""
    with tempfile.TemporaryFile() as said:
        options = ["--single-transaction", "--exit-on-error"]
        process = _start("pg_restore", url, options, said, stdin=subprocess.PIPE)
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and says why
                for block in blocks:
                    process.stdin.write(block)
                process.stdin.close()
            _check("pg_restore", process, said)
        finally:
            _end(process)


def _start(
    name: str, url: str, options: Sequence[str], said: IO[bytes], *, stdin: int | None = None, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    """The password goes by the environment: everybody can read a command line."""
    address = conninfo_to_dict(url)
    password = address.pop("password", None)
    environment = dict(os.environ)
    if password is not None:
        environment["PGPASSWORD"] = str(password)
    return subprocess.Popen(
        [str(program(name)), "--no-owner", "--no-privileges", f"--dbname={make_conninfo('', **address)}", *options],
        stdin=stdin if stdin is not None else subprocess.DEVNULL,
        stdout=stdout if stdout is not None else subprocess.DEVNULL,
        stderr=said,
        env=environment,
        cwd="/",
    )


def _check(name: str, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    if process.wait() != 0:
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
        reason = lines[0] if lines else f"it ended with code {process.returncode}"
        raise ProgramFailed(f"{name} failed: {reason}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
