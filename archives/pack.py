"""Packing a folder: the same files give the same bytes, whoever packs them and whenever."""

import gzip
import hashlib
import os
import stat
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from archives.limits import ArchiveError, Limits, show_bytes

MTIME_S = 315_619_200
"""1980-01-02, the time every entry gets: older ones cannot be put into a zip file, and so into no wheel."""

Ignored = Callable[[str, bool], bool]
"""Whether to leave out the entry at this path, relative to the folder; the flag says that it is a folder."""

LARGEST_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """An archive that was written: its SHA-256 in hexadecimal, its size in bytes, the paths of its files, and what was
    left out and why."""

    digest: str
    size: int
    entries: int
    files: frozenset[str]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    path: str
    kind: Literal["file", "folder", "link"]
    size: int = 0
    target: str = ""


@dataclass(slots=True, kw_only=True)
class _Tally:
    """Counts against the limits, and remembers what is large to name it."""

    limits: Limits
    entries: int = 0
    total: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    tops: Counter[str] = field(default_factory=Counter)

    def add(self, entry: _Entry) -> None:
        """Raises ArchiveError once a limit is passed. The total is judged by `finish`, which can name the largest."""
        self.entries += 1
        self.total += entry.size
        self.tops[entry.path.partition("/")[0]] += 1
        if entry.size:
            self.sizes[entry.path] = entry.size
        if self.entries > self.limits.entries:
            most = ", ".join(f"{name} ({count})" for name, count in self.tops.most_common(LARGEST_NAMED))
            raise ArchiveError(f"more than {self.limits.entries} files and folders; most so far are in: {most}")

    def finish(self) -> None:
        if self.total > self.limits.unpacked_bytes:
            raise ArchiveError(f"{show_bytes(self.total)} in all; {self._limit(self.limits.unpacked_bytes)}")

    def too_large_packed(self) -> ArchiveError:
        return ArchiveError(f"too large when packed; {self._limit(self.limits.packed_bytes)}")

    def _limit(self, limit: int) -> str:
        largest = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))[:LARGEST_NAMED]
        named = ", ".join(f"{path} ({show_bytes(size)})" for path, size in largest)
        return f"the limit is {show_bytes(limit)}; the largest are: {named}"


def pack(folder: Path, target: BinaryIO, limits: Limits, *, ignored: Ignored, strict: bool) -> Packed:
    """Write `folder` to `target` as tar.gz: sorted, without times and owners.

    Links that stay inside are kept as links, never followed, and `folder` itself must be none. The folder may belong
    to somebody hostile: every file is opened relative to its own folder and without following a link.

    Args:
        ignored: entries to leave out; of a folder that is left out nothing is looked at.
        strict: whether what cannot be kept (a link that leads out, a device, a socket, a pipe) is an error; otherwise
            it is left out and named.

    Raises:
        ArchiveError: a limit is passed, or with `strict` an entry cannot be kept.
        OSError: something cannot be read, or `target` not be written.
    """
    skipped: list[str] = []
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        tally = _Tally(limits=limits)
        entries: list[_Entry] = []
        for found in _scan(root, "", ignored):
            if isinstance(found, _Entry):
                tally.add(found)
                entries.append(found)
            elif strict:
                raise ArchiveError(f"{found}; leave it out with a line in .ergonignore, or remove it")
            else:
                skipped.append(found)
        tally.finish()
        entries.sort(key=lambda entry: entry.path)
        output = _Measured(target, limits.packed_bytes, tally)
        with (
            gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=output, mtime=0) as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for entry in entries:
                _add(tar, root, entry)
    finally:
        os.close(root)
    return Packed(
        digest=output.digest.hexdigest(),
        size=output.size,
        entries=len(entries),
        files=frozenset(entry.path for entry in entries if entry.kind == "file"),
        skipped=tuple(sorted(skipped)),
    )


class _Measured:
    """A file that hashes what goes through, and refuses to grow beyond the limit."""

    def __init__(self, target: BinaryIO, limit: int, tally: _Tally) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        self._target = target
        self._limit = limit
        self._tally = tally

    def write(self, data: bytes) -> int:
        self.size += len(data)
        if self.size > self._limit:
            raise self._tally.too_large_packed()
        self.digest.update(data)
        return self._target.write(data)

    def flush(self) -> None:
        self._target.flush()


def _scan(folder: int, prefix: str, ignored: Ignored) -> Iterator[_Entry | str]:
    """Entries below an open folder; a text for each that cannot be kept."""
    for name in sorted(os.listdir(folder)):
        path = prefix + name
        facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
        is_folder = stat.S_ISDIR(facts.st_mode)
        if ignored(path, is_folder):
            continue
        try:
            path.encode()
        except UnicodeEncodeError:
            yield f"the name {path!r} is not UTF-8"
            continue
        if is_folder:
            yield _Entry(path=path, kind="folder")
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            try:
                yield from _scan(below, f"{path}/", ignored)
            finally:
                os.close(below)
        elif stat.S_ISLNK(facts.st_mode):
            target = os.readlink(name, dir_fd=folder)
            if link_stays_inside(path, target):
                yield _Entry(path=path, kind="link", target=target)
            else:
                yield f"{path} is a link that leads out of the directory, to {target}"
        elif stat.S_ISREG(facts.st_mode):
            yield _Entry(path=path, kind="file", size=facts.st_size)
        else:
            yield f"{path} is neither a file nor a folder nor a link"


def link_stays_inside(path: str, target: str) -> bool:
    """Whether a link at `path` to `target` ends in the same folder, whatever other entries are.

    Only a target that goes up to a folder above the link and then down is kept: one that went through another link and
    up again would mean something else than it says.
    """
    if not target or target.startswith("/") or "\0" in target:
        return False
    depth = path.count("/")
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return up <= depth and ".." not in parts[up:]


def _add(tar: tarfile.TarFile, root: int, entry: _Entry) -> None:
    record = tarfile.TarInfo(entry.path)
    record.mtime = MTIME_S
    if entry.kind == "folder":
        record.type, record.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(record)
    elif entry.kind == "link":
        record.type, record.mode, record.linkname = tarfile.SYMTYPE, 0o777, entry.target
        tar.addfile(record)
    else:
        with _open_inside(root, entry.path) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ArchiveError(f"{entry.path} has changed while it was packed; try again")
            record.size = facts.st_size
            record.mode = 0o755 if facts.st_mode & stat.S_IXUSR else 0o644
            try:
                tar.addfile(record, file)
            except tarfile.ReadError as error:
                raise ArchiveError(f"{entry.path} has become shorter while it was packed; try again") from error


def _open_inside(root: int, path: str) -> BinaryIO:
    """Open a file below `root` for reading; no part of the path may be a link."""
    *folders, name = path.split("/")
    here = os.dup(root)
    try:
        for folder in folders:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        return os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here), "rb")
    finally:
        os.close(here)
