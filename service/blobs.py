"""Bytes too large for the database: archives of code and outputs, in any place that fsspec reaches.

A blob's name is fresh each time and its row in the database is written after it: no reader ever meets half a blob, and
what a crash leaves behind is never read.
"""

import errno
from collections.abc import Iterator
from typing import IO, Any

from fsspec.core import url_to_fs  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from service.refusals import NoSpace, Refusal, Unavailable
from service.settings import Settings, SettingsError

BLOCK_BYTES = 1 << 20


class NoBlob(Unavailable):
    """The store does not hold a blob of this name."""


class Blobs:
    """The store of one cluster. Every method raises Unavailable if the store does not do as told, NoSpace if it is
    full.
    """

    def __init__(self, url: str) -> None:
        """`url` is any that fsspec understands, or a folder.

        Raises:
            SettingsError: there is nothing for such a URL here.
        """
        try:
            self._files, self._root = url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise SettingsError(
                f"ERGON_STORE_URL {url!r} cannot be used ({error}); name a folder or a URL, and install its package"
            ) from error

    def create(self, name: str) -> IO[bytes]:
        """A new blob, open for writing; it is there once this is closed."""
        try:
            path = self._path(name)
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            return self._files.open(path, "wb")
        except OSError as error:
            raise _unavailable(error) from error

    def write(self, file: IO[bytes], data: bytes) -> None:
        """Write to a blob that `create` gave."""
        try:
            file.write(data)
        except OSError as error:
            raise _unavailable(error) from error

    def close(self, file: IO[bytes]) -> None:
        """Finish a blob that `create` gave."""
        try:
            file.close()
        except OSError as error:
            raise _unavailable(error) from error

    def read(self, name: str) -> Iterator[bytes]:
        """The blob in blocks. What can fail at its beginning fails before this returns; raises NoBlob if it is not
        there."""
        try:
            file = self._files.open(self._path(name), "rb")
        except FileNotFoundError as error:
            raise NoBlob(f"the store of code and outputs does not hold {name}") from error
        except OSError as error:
            raise _unavailable(error) from error
        return _blocks(file)

    def delete(self, name: str) -> None:
        """Remove the blob, if it is there."""
        try:
            self._files.rm_file(self._path(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unavailable(error) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name[-2:]}/{name}"


def open_blobs(settings: Settings) -> Blobs:
    """The store that the settings name; the folder `store` of the data folder by default."""
    return Blobs(settings.store_url or str(settings.data_dir / "store"))


def _blocks(file: Any) -> Iterator[bytes]:
    try:
        with file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        raise _unavailable(error) from error


def _unavailable(error: OSError) -> Refusal:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            "the store of code and outputs is full and nothing of this was kept; an administrator has to make room at "
            "ERGON_STORE_URL (the folder `store` of the data folder by default), then send it again"
        )
    return Unavailable(f"the store of code and outputs does not work ({error.strerror or error}); see ERGON_STORE_URL")
