"""What nodes keep for the next attempt: archives of code, Python environments, datasets.

    CACHE/KIND/KEY.lock       held while the entry is made
    CACHE/KIND/KEY/made.json  written last: without it the entry is not whole
    CACHE/KIND/KEY/...        the entry

An entry is in use as long as the folder of an attempt says so in `uses.json`; of the others the least recently used
ones go when the cache has grown too large. Several processes use one cache at a time.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from workers import files

LIMIT_BYTES = 50 << 30


class Cache:
    """The cache of one node, as one attempt uses it."""

    def __init__(self, folder: Path, attempt_folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        """`attempt_folder` lies among those of all attempts of the node."""
        self._folder = folder
        self._attempt_folder = attempt_folder
        self._limit = limit_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def get(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of an entry, made by `make` unless it is there. Of several that ask at once one makes it.

        Whatever `make` raises is passed on; nothing of the entry stays then.
        """
        name = f"{kind}/{key}"
        entry = self._folder / name
        entry.parent.mkdir(mode=0o700, exist_ok=True)
        self._note_use(name)
        with _locked(self._folder / f"{name}.lock"):
            if not (entry / "made.json").exists():
                shutil.rmtree(entry, ignore_errors=True)
                entry.mkdir(mode=0o700)
                try:
                    make(entry)
                except BaseException:
                    shutil.rmtree(entry, ignore_errors=True)
                    raise
                files.write_record(str(entry / "made.json"), {"bytes": _size(entry)})
            os.utime(entry / "made.json")
        self._make_room()
        return entry

    def locked(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold this name against everybody who uses the cache."""
        return _locked(self._folder / f"{name}.lock")

    def _note_use(self, name: str) -> None:
        with _locked(self._folder / "lock"):
            path = str(self._attempt_folder / "uses.json")
            names = (files.read_record(path) or {"names": []})["names"]
            files.write_record(path, {"names": [*names, name]}, durable=False)

    def _make_room(self) -> None:
        """Delete entries that nobody uses until the rest is within the limit."""
        with _locked(self._folder / "lock"):
            used: set[str] = set()
            for record in self._attempt_folder.parent.glob("*/uses.json"):
                used |= set((files.read_record(str(record)) or {"names": []})["names"])
            entries = [
                (record.stat().st_mtime, (files.read_record(str(record)) or {"bytes": 0})["bytes"], record.parent)
                for record in self._folder.glob("*/*/made.json")
            ]
            total = sum(size for _, size, _ in entries)
            for _, size, entry in sorted(entries):
                if total <= self._limit:
                    return
                if f"{entry.parent.name}/{entry.name}" not in used:
                    (entry / "made.json").unlink()
                    shutil.rmtree(entry, ignore_errors=True)
                    total -= size


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _size(folder: Path) -> int:
    """Bytes of all files below, links not followed."""
    return sum(os.lstat(os.path.join(root, name)).st_size for root, _, names in os.walk(folder) for name in names)
