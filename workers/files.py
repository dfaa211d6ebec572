"""Small records on disk that are either there whole or not at all. Standard library only."""

import contextlib
import errno
import json
import os

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
SPARE = ".spare-"
RECORD_BYTES = 4096
"""Room for one record: a block of most disks, and more than any record of an attempt's end takes."""


def write_record(path: str, value: dict, *, durable: bool = True) -> None:
    """Replace `path` by `value` as JSON, readable by its owner only.

    Args:
        durable: survive a crash of the machine. Without it only a crash of the process is survived, which is enough
            for what means nothing after a boot.

    Raises:
        OSError: it cannot be written. Of a full disk only where no room was set aside and `path` is new.
    """
    draft = _draft(path, value, durable=durable)
    if draft is None:
        _fill(path, value, durable=durable)
    else:
        os.replace(draft, path)
    if durable:
        sync(os.path.dirname(path))


def set_aside(folder: str, records: int) -> None:
    """Keep room on the disk for so many records in `folder`: what a node does must be told also when its disk is full.

    Raises:
        OSError: there is none.
    """
    for number in range(records):
        file = os.open(os.path.join(folder, f"{SPARE}{number}"), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if os.fstat(file).st_size < RECORD_BYTES:
                os.write(file, b" " * RECORD_BYTES)
        finally:
            os.close(file)


def create_record(path: str, value: dict) -> bool:
    """Write `path` unless it exists. Of several that try, exactly one is told True. A boot may undo it.

    Raises:
        OSError: it cannot be written. Of a full disk only where no room was set aside.
    """
    draft = _draft(path, value, durable=False)
    if draft is None:
        if os.path.exists(path):
            return False
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
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


def _draft(path: str, value: dict, *, durable: bool) -> str | None:
    """A file beside `path` with the value in it, on a full disk in room that was set aside; None if none is left."""
    draft = f"{path}.{os.getpid()}.draft"
    try:
        _write(draft, value, durable=durable)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        if error.errno not in FULL or len(json.dumps(value)) > RECORD_BYTES:
            raise
        if not _take_spare(path, draft):
            return None
        _fill(draft, value, durable=durable)
    return draft


def _take_spare(path: str, draft: str) -> bool:
    """Make room that was set aside beside `path` the draft; False if none is left."""
    folder = os.path.dirname(path)
    for name in sorted(os.listdir(folder)):
        if name.startswith(SPARE):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                os.rename(os.path.join(folder, name), draft)
                return True
    return False


def _fill(path: str, value: dict, *, durable: bool) -> None:
    """Overwrite a file that has its room already, in one call: a reader finds the old record, the new one or none."""
    data = json.dumps(value).encode()
    file = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(file, data.ljust(RECORD_BYTES), 0)
        if durable:
            os.fsync(file)
    finally:
        os.close(file)


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
