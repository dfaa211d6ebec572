"""Where the databases of tests lie."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

MEMORY_BYTES = 1 << 30
"""What one server of tests may take."""


@contextlib.contextmanager
def short_folder(prefix: str, where: str | None = None) -> Iterator[Path]:
    """A folder with a short path that PostgreSQL's user can reach, as pytest's own are not when root runs the tests."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=where) as name:
        path = Path(name)
        path.chmod(0o711)
        yield path


def memory() -> str | None:
    """A folder in memory, where a database is copied four times as fast as on a disk; None where there is no room."""
    folder = Path("/dev/shm")
    roomy = folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > MEMORY_BYTES
    return str(folder) if roomy else None
