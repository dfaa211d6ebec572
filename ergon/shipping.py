"""Code on its way to the nodes, and outputs on their way back."""

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from archives.limits import CODE, OUTPUT, ArchiveError
from archives.pack import pack
from archives.unpack import unpack
from ergon.client import Client
from ergon.errors import ErgonError, Unreachable
from ergon.ignore import ignored_in
from protocol.jobs import OutputView


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """A directory, packed: the SHA-256 of the archive, the archive, the directory, the paths of its files."""

    digest: str
    archive: bytes
    folder: Path
    files: frozenset[str]


def pack_directory(folder: Path) -> Shipment:
    """Pack a directory without what its ignore files leave out.

    Raises:
        ErgonError: it does not exist, is too large, or holds what cannot be shipped. The message names it.
    """
    target = io.BytesIO()
    try:
        folder = folder.resolve(strict=True)
        packed = pack(folder, target, CODE, ignored=ignored_in(folder), strict=True)
    except ArchiveError as error:
        raise ErgonError(
            f"{folder} cannot be shipped: {error}. Lines in .ergonignore leave things out, --dir names another "
            "directory, --no-ship ships nothing"
        ) from error
    except OSError as error:
        raise ErgonError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    return Shipment(digest=packed.digest, archive=target.getvalue(), folder=folder, files=packed.files)


def fetch_output(client: Client, job_id: str, output: OutputView, folder: Path, *, overwrite: bool) -> list[str]:
    """Unpack what one member has stored into `folder`, which is made if it is not there; the paths that were written.

    Raises:
        ErgonError: the folder cannot be used, the archive must not be unpacked, or a file is there already.
    """
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        with _gone_if_empty(folder if is_new else None), tempfile.TemporaryFile() as archive:
            hashed = hashlib.sha256()
            for block in client.output(job_id, output.member, epoch=output.epoch):
                hashed.update(block)
                archive.write(block)
            if hashed.hexdigest() != output.sha256:
                raise Unreachable(f"the output of member {output.member} did not arrive whole; try again")
            return unpack(archive, folder, OUTPUT, overwrite=overwrite)
    except ArchiveError as error:
        raise ErgonError(f"{folder}: {error}") from error
    except OSError as error:
        raise ErgonError(f"{error.filename or folder} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _gone_if_empty(folder: Path | None) -> Iterator[None]:
    """Remove the folder if what is inside breaks off before anything is in it."""
    try:
        yield
    except BaseException:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
