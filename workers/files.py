"""Small records on disk that are either there whole or not at all. Standard library only."""

import contextlib
import json
import os


def write_record(path: str, value: dict, *, durable: bool = True) -> None:
    """Replace `path` by `value` as JSON, readable by its owner only.

    Args:
        durable: survive a crash of the machine. Without it only a crash of the process is survived, which is enough
            for what means nothing after a boot.
    """
    draft = f"{path}.{os.getpid()}.draft"
    _write(draft, value, durable=durable)
    os.replace(draft, path)
    if durable:
        sync(os.path.dirname(path))


def create_record(path: str, value: dict) -> bool:
    """Write `path` unless it exists. Of several that try, exactly one is told True. A boot may undo it."""
    draft = f"{path}.{os.getpid()}.draft"
    _write(draft, value, durable=False)
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(draft)
    return True


def read_record(path: str) -> dict | None:
    """The record in `path`; None if there is no such file, or one that a crash of the machine left unfinished."""
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return None


def sync(path: str) -> None:
    """Make a file's contents, or the names in a folder, survive a crash of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def ring(bell: str) -> None:
    """Wake whoever listens at the FIFO `bell`. Nobody listening, or a bell that already rings, is fine."""
    with contextlib.suppress(OSError):
        fifo = os.open(bell, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(fifo, b"!")
        finally:
            os.close(fifo)


def _write(path: str, value: dict, *, durable: bool) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        data = memoryview(json.dumps(value).encode())
        while data:
            data = data[os.write(file, data) :]
        if durable:
            os.fsync(file)
    finally:
        os.close(file)
