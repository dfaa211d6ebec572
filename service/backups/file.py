"""The file of a backup: a ZIP that says what it is first and what it must hold last.

    ergon-backup.json    format, schema, version, time
    database.dump        what `pg_dump` wrote, in its custom format
    store/BLOB           every blob that the database names
    manifest.json        size and SHA-256 of each of the above

Its table of contents is written last of all, so that a file that was cut off anywhere is no ZIP at all.
"""

import contextlib
import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Self

FORMAT = 1
HEADER, DUMP, MANIFEST, STORE = "ergon-backup.json", "database.dump", "manifest.json", "store/"
BLOCK_BYTES = 1 << 20
BLOB_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
"""What `service.ids` makes. A name is a path in the store, so nothing else may become one."""


UNREADABLE = (OSError, EOFError, LookupError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What `zipfile` raises, depending on which bytes are wrong."""


class BadBackup(ValueError):
    """The file cannot be restored. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a backup is of. `schema` is the revision of the database, `version` that of Ergon."""

    schema: str
    version: str
    made_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What the manifest says of one part of the file."""

    size: int
    sha256: str


class BackupWriter:
    """Writes the parts of a backup one after the other. Errors are the file's: OSError. Use as a context manager."""

    def __init__(self, file: IO[bytes], header: Header) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
        self._parts: dict[str, Part] = {}
        said = {"format": FORMAT, **asdict(header), "made_at": header.made_at.isoformat()}
        self.add(HEADER, [json.dumps(said).encode()])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._zip.close()

    def add(self, name: str, blocks: Iterable[bytes]) -> None:
        """One part, from blocks that may be made while it is written."""
        size, digest = 0, hashlib.sha256()
        with self._zip.open(name, "w", force_zip64=True) as part:
            for block in blocks:
                part.write(block)
                digest.update(block)
                size += len(block)
        self._parts[name] = Part(size=size, sha256=digest.hexdigest())

    def finish(self) -> None:
        """Write the manifest and the table of contents: without them the file is no backup."""
        parts = {name: asdict(part) for name, part in self._parts.items()}
        self._zip.writestr(MANIFEST, json.dumps({"parts": parts}))
        self._zip.close()


class BackupFile:
    """A backup that is read. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open the file and read what it says of itself.

        Raises:
            BadBackup: it is none, is damaged, or is of a format that came later.
        """
        self._path = path
        try:
            with path.open("rb") as file:
                is_ours = HEADER.encode() in file.read(128)
        except OSError as error:
            raise BadBackup(f"{path} cannot be read: {error.strerror}") from error
        if not is_ours:
            raise BadBackup(f"{path} is not a backup of Ergon")
        try:
            self._zip = zipfile.ZipFile(path)
        except UNREADABLE as error:
            raise self._damaged("it is not complete") from error
        self.header = self._read_header()
        self._parts = self._read_manifest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def blobs(self) -> list[str]:
        """Names of the blobs it holds."""
        return [name.removeprefix(STORE) for name in self._parts if name.startswith(STORE)]

    def check(self) -> None:
        """Read all of it. Raises BadBackup unless every part is what the manifest says and nothing else is there."""
        if set(self._zip.namelist()) != {*self._parts, MANIFEST} or DUMP not in self._parts:
            raise self._damaged("it does not hold what its manifest names")
        for name, part in self._parts.items():
            digest = hashlib.sha256()
            for block in self.read(name):
                digest.update(block)
            if digest.hexdigest() != part.sha256 or self._zip.getinfo(name).file_size != part.size:
                raise self._damaged(f"{name} is not what was saved")
        for blob in self.blobs():
            if not BLOB_NAME.fullmatch(blob):
                raise self._damaged(f"{blob!r} cannot name a blob")

    def read(self, name: str) -> Iterator[bytes]:
        """One part in blocks. Raises BadBackup where it is damaged."""
        try:
            with self._zip.open(name) as part:
                while block := part.read(BLOCK_BYTES):
                    yield block
        except UNREADABLE as error:
            raise self._damaged(f"{name} cannot be read") from error

    def _read_header(self) -> Header:
        try:
            said = json.loads(b"".join(self.read(HEADER)))
            if said["format"] > FORMAT:
                raise BadBackup(f"{self._path} was made by a newer version of Ergon, {said['version']}: upgrade first")
            made_at = datetime.fromisoformat(said["made_at"])
            if made_at.tzinfo is None:
                raise self._damaged(f"{HEADER} names no time zone")
            return Header(schema=str(said["schema"]), version=str(said["version"]), made_at=made_at)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise error if isinstance(error, BadBackup) else self._damaged(f"{HEADER} cannot be read") from error

    def _read_manifest(self) -> dict[str, Part]:
        try:
            said = json.loads(b"".join(self.read(MANIFEST)))
            return {str(name): Part(size=part["size"], sha256=part["sha256"]) for name, part in said["parts"].items()}
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise self._damaged(f"{MANIFEST} cannot be read") from error

    def _damaged(self, what: str) -> BadBackup:
        return BadBackup(f"{self._path} is damaged: {what}; restore another backup")
