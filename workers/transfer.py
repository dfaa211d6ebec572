"""Archives between this node and the service, whole files at a time, and verified."""

import hashlib
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import httpx
from pydantic import ValidationError

from protocol.errors import ErrorBody
from workers.exchange import is_loopback

BLOCK_BYTES = 1 << 20
TIMEOUT = httpx.Timeout(60.0, connect=10.0)


class TransferRefused(Exception):
    """The service says no, and asking again would not help."""


class TransferFailed(Exception):
    """It did not work this time."""


class Transfer:
    """The service as one node sees it, for long transfers."""

    def __init__(self, credentials: Mapping[str, str | None]) -> None:
        """`credentials`: `server`, the node's `token`, and `ca`, the file with who vouches for the service, if any."""
        server = credentials["server"] or ""
        self._client = httpx.Client(
            base_url=server,
            headers={"Authorization": f"Bearer {credentials['token']}"},
            timeout=TIMEOUT,
            trust_env=not is_loopback(server),
            verify=ssl.create_default_context(cafile=credentials["ca"]) if credentials["ca"] else True,
        )

    def download(self, digest: str, target: BinaryIO) -> None:
        """Write the archive of this SHA-256 to `target`.

        Raises:
            TransferRefused, TransferFailed.
            OSError: `target` cannot be written.
        """
        hashed = hashlib.sha256()
        try:
            with self._client.stream("GET", f"/v1/agent/archives/{digest}") as response:
                _check(response)
                for block in response.iter_bytes(BLOCK_BYTES):
                    hashed.update(block)
                    target.write(block)
        except httpx.HTTPError as error:
            raise TransferFailed(str(error) or type(error).__name__) from error
        if hashed.hexdigest() != digest:
            raise TransferFailed("what arrived is not what was asked for: its SHA-256 differs")

    def upload(self, attempt: str, member: int, archive: Path, digest: str) -> None:
        """Store the member's output. Repeating it changes nothing.

        Raises:
            TransferRefused, TransferFailed.
            OSError: the archive cannot be read.
        """
        path = f"/v1/agent/attempts/{attempt}/outputs/{member}"
        headers = {"Content-Type": "application/gzip", "Content-Length": str(archive.stat().st_size)}
        try:
            with archive.open("rb") as file:
                response = self._client.put(path, params={"sha256": digest}, content=_blocks(file), headers=headers)
        except httpx.HTTPError as error:
            raise TransferFailed(str(error) or type(error).__name__) from error
        _check(response)


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        detail = ErrorBody.read(response.read()).detail
    except ValidationError:
        detail = f"HTTP status {response.status_code} from {response.url}"
    if 400 <= response.status_code < 500 and response.status_code not in (408, 425, 429):
        raise TransferRefused(detail)
    raise TransferFailed(detail)
