"""Checkpoints on disk: written whole or not at all, and found again only if nothing of them has changed since.

    FOLDER/                             the job's own
        epoch-2-step-120/               of one attempt, so that two never share a path
            rank-0/...                  what rank 0 wrote
            rank-0/ergon-manifest.json  size and SHA-256 of each of its files; written last
            rank-1/...                  with the folder of the last rank the checkpoint is complete
            .rank-1.4711                being written, or torn

Standard library only: training scripts import it, in containers too, and so does the agent. The job may write here
what it wants, so nothing is followed, and no file is opened but to be hashed.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

MANIFEST = "ergon-manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
BLOCK_BYTES = 1 << 20
KEPT = 2
"""Complete checkpoints of one attempt that stay: should the newest turn out damaged, one interval more is lost."""

_FOLDER = re.compile(r"epoch-([0-9]{1,9})-step-([0-9]{1,18})")


class Mark(NamedTuple):
    """Which checkpoint of a job. The later attempt counts as newer, and within an attempt the later step."""

    epoch: int
    step: int

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"epoch-{self.epoch}-step-{self.step}"


@contextlib.contextmanager
def written(folder: Path, mark: Mark, *, rank: int, world_size: int) -> Iterator[Path]:
    """A new folder for what this rank saves, put into its place when the block ends well. What is there stays.

    Raises:
        ValueError: something in it is neither a file nor a folder, or has the manifest's name.
        OSError: the disk does not take it. Nothing of it is left then.
    """
    target = folder / mark.folder
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = target / f".rank-{rank}.{os.getpid()}"
    draft.mkdir(mode=0o700)
    try:
        yield draft
        if not (target / f"rank-{rank}").exists():
            _seal(draft, mark, rank=rank, world_size=world_size)
            draft.rename(target / f"rank-{rank}")
            for path in (target, folder):
                _sync(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def prune(folder: Path, epoch: int, ranks: Iterable[int]) -> None:
    """Delete what is older than the two newest complete checkpoints of attempt `epoch`, once there are two.

    `ranks` are those that save in this folder.

    An attempt that has a successor deletes nothing: the successor may be reading.
    """
    found = marks(folder)
    if any(mark.epoch > epoch for mark in found):
        return
    complete = [mark for mark in found if mark.epoch == epoch and has_ranks(folder / mark.folder, ranks)]
    if len(complete) < KEPT:
        return
    for mark in found:
        if mark < complete[KEPT - 1]:
            shutil.rmtree(folder / mark.folder, ignore_errors=True)


def marks(folder: Path) -> list[Mark]:
    """Every checkpoint in the job's folder, complete or not, the newest first."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (_FOLDER.fullmatch(name) for name in names)
    return sorted((Mark(int(match[1]), int(match[2])) for match in found if match), reverse=True)


def has_ranks(path: Path, ranks: Iterable[int]) -> bool:
    """Whether the folder of each of these ranks is in its place. Looks at names only."""
    return all(_is_folder(path / f"rank-{rank}") for rank in ranks)


def is_intact(path: Path, mark: Mark) -> bool:
    """Whether every rank's files are as they were written: reads the whole checkpoint."""
    first = _manifest(path, 0)
    world_size = first.get("world_size") if first else None
    if not isinstance(world_size, int):
        return False
    return all(is_part_intact(path, mark, rank=rank, world_size=world_size) for rank in range(max(1, world_size)))


def is_part_intact(path: Path, mark: Mark, *, rank: int, world_size: int) -> bool:
    """Whether the files of one rank are as they were written."""
    manifest = _manifest(path, rank)
    expected = {"epoch": mark.epoch, "step": mark.step, "rank": rank, "world_size": world_size}
    if manifest is None or {key: manifest.get(key) for key in expected} != expected:
        return False
    entries = manifest.get("files")
    return isinstance(entries, dict) and all(
        isinstance(entry, dict) and _facts(path / f"rank-{rank}", name) == entry for name, entry in entries.items()
    )


def files_of(path: Path, rank: int) -> dict[str, tuple[int, str]]:
    """Size in bytes and SHA-256 of each file of one rank as its manifest has it, and of the manifest, by path.

    Raises:
        ValueError: there is no manifest that can be read.
    """
    manifest, own = _manifest(path, rank), _facts(path / f"rank-{rank}", MANIFEST)
    entries = manifest.get("files") if manifest else None
    if not isinstance(entries, dict) or own is None:
        raise ValueError(f"{path.name}/rank-{rank} has no manifest that can be read")
    files: dict[str, tuple[int, str]] = {}
    for name, entry in {**entries, MANIFEST: own}.items():
        size, digest = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(size, int) and isinstance(digest, str)):
            raise ValueError(f"the manifest of {path.name}/rank-{rank} does not tell what {name!r} is")
        files[name] = (size, digest)
    return files


def newest_intact(folder: Path, *, known: Mark | None, epoch: int) -> Path | None:
    """The newest checkpoint that is complete and as it was written.

    Args:
        known: the latest one the service knows of; what other attempts wrote after it does not count. None where there
            is no service to ask.
        epoch: the attempt that asks: its own ones count in any case.
    """
    for mark in marks(folder):
        counts = known is None or mark <= known or mark.epoch == epoch
        if counts and is_intact(folder / mark.folder, mark):
            return folder / mark.folder
    return None


def _seal(draft: Path, mark: Mark, *, rank: int, world_size: int) -> None:
    """Make all of it durable, and write down what it is."""
    if (draft / MANIFEST).exists():
        raise ValueError(f"{MANIFEST} is the name of the manifest; save under another name")
    entries: dict[str, dict[str, object]] = {}
    for at, folders, names in os.walk(draft):
        for name in (*folders, *names):
            path = Path(at, name)
            kind = path.lstat().st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise ValueError(f"a checkpoint holds files and folders only, and {path.relative_to(draft)} is neither")
            if stat.S_ISREG(kind):
                _sync(path)
                relative = path.relative_to(draft).as_posix()
                entries[relative] = _facts(draft, relative) or {}
        _sync(Path(at))
    manifest = {"epoch": mark.epoch, "step": mark.step, "rank": rank, "world_size": world_size, "files": entries}
    with open(draft / MANIFEST, "xb") as file:
        file.write(json.dumps(manifest).encode())
        file.flush()
        os.fsync(file.fileno())
    _sync(draft)


def _manifest(path: Path, rank: int) -> dict[str, object] | None:
    """The manifest of one rank; None if there is none that can be read."""
    try:
        with opened(path / f"rank-{rank}", MANIFEST) as file:
            if os.fstat(file).st_size > MAX_MANIFEST_BYTES:
                return None
            with os.fdopen(os.dup(file), "rb") as reader:
                manifest = json.loads(reader.read())
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _facts(folder: Path, name: str) -> dict[str, object] | None:
    """Size in bytes and SHA-256 of a file; None if it cannot be read."""
    hashed, size = hashlib.sha256(), 0
    try:
        with opened(folder, name) as file:
            while block := os.read(file, BLOCK_BYTES):
                hashed.update(block)
                size += len(block)
    except (OSError, ValueError):
        return None
    return {"size": size, "sha256": hashed.hexdigest()}


@contextlib.contextmanager
def opened(folder: Path, name: str) -> Iterator[int]:
    """Open a regular file below `folder`. No part of the path below it may be a link, and none leads up."""
    *folders, last = name.split("/")
    if any(part in ("", ".", "..") for part in (*folders, last)):
        raise ValueError(f"{name!r} is no path of a file")
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for part in folders:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
    finally:
        os.close(here)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError(f"{name!r} is no file")
        yield file
    finally:
        os.close(file)


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
