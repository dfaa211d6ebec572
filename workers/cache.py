"""What nodes keep for the next attempt: archives of code, Python environments, datasets.

    CACHE/KIND/KEY.lock       held while the entry is made
    CACHE/KIND/KEY/made.json  written last: without it the entry is not whole; its size, and how it was fetched
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

from pydantic import ValidationError

from protocol.caches import MAX_ENTRIES, CacheEntry, Fetch
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

    def get(self, kind: str, key: str, make: Callable[[Path], Fetch | None]) -> Path:
        """The folder of an entry, made by `make` unless it is there, which says how it was fetched if it was. Of
        several that ask at once one makes it.

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
                    fetch = make(entry)
                except BaseException:
                    shutil.rmtree(entry, ignore_errors=True)
                    raise
                told = {"fetch": fetch.model_dump()} if fetch else {}
                files.write_record(str(entry / "made.json"), {"bytes": size_of(entry), **told})
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


class Shelf:
    """What the service is told of a node's cache: its code and data, those used last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: object = None
        self._told: set[str] | None = None
        self._entries: dict[str, CacheEntry] = {}

    def look(self, when: object) -> None:
        """Look again if it is another time than the last: when what runs has changed, the cache may have too."""
        if when != self._seen:
            self._seen = when
            self._entries = _entries(self._folder)

    def news(self) -> list[CacheEntry] | None:
        """All of it, if it is not what the service was told last."""
        return None if self._entries.keys() == self._told else list(self._entries.values())

    def told(self) -> None:
        """The service knows what there was when it was last looked."""
        self._told = set(self._entries)

    def forget(self) -> None:
        """Somebody new has to be told."""
        self._told = None


def _entries(folder: Path) -> dict[str, CacheEntry]:
    """The entries used last, by name."""
    made: list[tuple[float, Path]] = []
    for kind in ("archives", "datasets"):
        for record in folder.glob(f"{kind}/*/made.json"):
            with contextlib.suppress(OSError):  # it has just gone
                made.append((record.stat().st_mtime, record))
    found: dict[str, CacheEntry] = {}
    for _, record in sorted(made, reverse=True)[:MAX_ENTRIES]:
        kind, key, _ = record.parts[-3:]
        with contextlib.suppress(OSError, ValidationError):  # gone, or no work of ours
            said = files.read_record(str(record)) or {}
            entry = {"kind": kind, "key": key, "size_bytes": said.get("bytes"), "fetch": said.get("fetch")}
            found[f"{kind}/{key}"] = CacheEntry.model_validate(entry)
    return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def size_of(place: Path) -> int:
    """Bytes of a file, or of all files below a folder; links not followed."""
    if not place.is_dir():
        return place.lstat().st_size
    return sum(os.lstat(os.path.join(root, name)).st_size for root, _, names in os.walk(place) for name in names)
