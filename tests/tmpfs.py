"""A small file system of its own, to be filled."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system")

BLOCK = b"\0" * (1 << 20)


class SmallDisk:
    """A folder with `size_mib` MiB to write and no more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Take all that is free but for `leave` bytes."""
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while (free := self.free() - leave) > 0:
                file.write(BLOCK[:free])

    def make_room(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink()

    def free(self) -> int:
        """Bytes."""
        status = os.statvfs(self.folder)
        return status.f_bavail * status.f_frsize


@contextlib.contextmanager
def small_disk(size_mib: int) -> Iterator[SmallDisk]:
    """Mounted while inside; open for passing through, as the database's user may need it."""
    with tempfile.TemporaryDirectory(prefix="ergon-disk-") as name:
        options = f"size={size_mib}m,mode=0711"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "ergon-test", name], check=True)
        try:
            yield SmallDisk(Path(name))
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)
