"""Unpacking an archive that somebody else made.

Nothing of `tarfile`'s own extraction is used: each entry is checked, then written relative to an open folder, and no
link is ever followed, whether the archive brought it or it was there before.
"""

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from archives.limits import ArchiveError, Limits, show_bytes
from archives.pack import link_stays_inside

BLOCK_BYTES = 1 << 20
HEADER_BYTES = 8 * 1024
"""Headers of one entry, at most: two long names and the block itself."""


def unpack(archive: BinaryIO, folder: Path, limits: Limits, *, overwrite: bool = False) -> list[str]:
    """Unpack a tar.gz into `folder`, which must exist; the paths of the files and links that were written.

    The whole archive is checked before anything is written.

    Args:
        archive: open for reading, seekable.
        overwrite: whether files that are there may be replaced. A folder is never replaced by a file or a link.

    Raises:
        ArchiveError: the archive is damaged, passes a limit, holds an entry that could reach out of the folder, or a
            file is there already.
        OSError: something cannot be written.
    """
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _check(archive, root, limits, overwrite=overwrite)
        return list(_write_all(archive, root, limits))
    finally:
        os.close(root)


def _check(archive: BinaryIO, root: int, limits: Limits, *, overwrite: bool) -> None:
    """Read through the archive once. Raises ArchiveError at the first entry that must not be written."""
    kinds: dict[str, bytes] = {}
    total = 0
    for record in _records(archive, limits):
        path = _safe_path(record)
        total += record.size
        if len(kinds) >= limits.entries:
            raise ArchiveError(f"the archive holds more than {limits.entries} entries")
        if total > limits.unpacked_bytes:
            raise ArchiveError(f"the archive unpacks to more than {show_bytes(limits.unpacked_bytes)}")
        if path in kinds and not (kinds[path] == record.type == tarfile.DIRTYPE):
            raise ArchiveError(f"the archive holds {path} twice")
        kinds[path] = record.type
    for path, kind in kinds.items():
        for above in _folders_above(path):
            if kinds.get(above, tarfile.DIRTYPE) != tarfile.DIRTYPE:
                raise ArchiveError(f"the archive holds {path} below {above}, which is no folder")
        _check_place(root, path, is_folder=kind == tarfile.DIRTYPE, overwrite=overwrite)


def _check_place(root: int, path: str, *, is_folder: bool, overwrite: bool) -> None:
    """Raises ArchiveError if what is there already is in the way."""
    *folders, name = path.split("/")
    here = os.dup(root)
    try:
        for folder in folders:
            below = _open_folder(folder, here, path)
            if below is None:
                return
            os.close(here)
            here = below
        if is_folder:
            below = _open_folder(name, here, path)
            if below is not None:
                os.close(below)
        elif _exists(name, here):
            if not overwrite:
                raise ArchiveError(f"{path} is there already; name another folder, or allow to overwrite")
            if _is_folder(name, here):
                raise ArchiveError(f"{path} is a folder there and a file in the archive; name another folder")
    finally:
        os.close(here)


def _write_all(archive: BinaryIO, root: int, limits: Limits) -> Iterator[str]:
    for record, source in _records_with_data(archive, limits):
        path = _safe_path(record)
        *folders, name = path.split("/")
        here = os.dup(root)
        try:
            for folder in [*folders, name] if record.isdir() else folders:
                if not _exists(folder, here):
                    os.mkdir(folder, 0o755, dir_fd=here)
                below = _open_folder(folder, here, path)
                assert below is not None, "it was made just now"
                os.close(here)
                here = below
            if record.isdir():
                continue
            if _exists(name, here):
                os.unlink(name, dir_fd=here)
            if record.issym():
                os.symlink(record.linkname, name, dir_fd=here)
            else:
                assert source is not None
                _write_file(source, name, here, mode=0o755 if record.mode & 0o100 else 0o644)
        finally:
            os.close(here)
        yield path


def _write_file(source: BinaryIO, name: str, folder: int, *, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(name, flags, mode, dir_fd=folder), "wb") as file:
        while block := source.read(BLOCK_BYTES):
            file.write(block)


def _records(archive: BinaryIO, limits: Limits) -> Iterator[tarfile.TarInfo]:
    for record, _ in _records_with_data(archive, limits):
        yield record


def _records_with_data(archive: BinaryIO, limits: Limits) -> Iterator[tuple[tarfile.TarInfo, BinaryIO | None]]:
    """Entries in order. Reads no more than the limits allow, whatever the archive claims to be."""
    archive.seek(0)
    most = limits.unpacked_bytes + (limits.entries + 1) * HEADER_BYTES + (1 << 20)
    try:
        with (
            gzip.GzipFile(fileobj=archive, mode="rb") as plain,
            tarfile.open(fileobj=_Bounded(plain, most), mode="r|", errorlevel=2) as tar,  # pyright: ignore[reportCallIssue, reportArgumentType]
        ):
            for record in tar:
                yield record, tar.extractfile(record) if record.isreg() else None  # pyright: ignore[reportReturnType]
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, UnicodeError, ValueError) as error:
        raise ArchiveError(f"the archive is damaged: {error}") from error


class _Bounded:
    """A stream that ends in an error once more than `most` bytes were read: headers can lie about anything else."""

    def __init__(self, stream: gzip.GzipFile, most: int) -> None:
        self._stream = stream
        self._left = most

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ArchiveError("the archive unpacks to more than its limit")
        return data


def _safe_path(record: tarfile.TarInfo) -> str:
    """The entry's path, relative and with no way out. Raises ArchiveError for an entry that must not be written."""
    path = record.name
    parts = path.split("/")
    if not path or path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ArchiveError(f"the archive holds {path!r}, which is no plain relative path")
    if record.issparse() or record.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE):
        raise ArchiveError(f"the archive holds {path!r}, which is neither a file nor a folder nor a link")
    if record.issym() and not link_stays_inside(path, record.linkname):
        raise ArchiveError(f"the archive holds {path!r}, a link that leads out, to {record.linkname!r}")
    return path


def _folders_above(path: str) -> Iterator[str]:
    parts = path.split("/")
    for length in range(1, len(parts)):
        yield "/".join(parts[:length])


def _open_folder(name: str, folder: int, path: str) -> int | None:
    """An open folder below an open folder, None if there is nothing. Raises ArchiveError if it is something else."""
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return None
    except (NotADirectoryError, OSError) as error:
        raise ArchiveError(
            f"{name} on the way to {path} is there already and is no folder: {error.strerror}"
        ) from error


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_folder(name: str, folder: int) -> bool:
    try:
        os.close(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder))
    except OSError:
        return False
    return True
