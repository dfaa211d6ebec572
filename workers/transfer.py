"""Archives and checkpoints between this node and the service, whole files at a time, and verified."""

import hashlib
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import httpx
from pydantic import ValidationError

from protocol.caches import SERVICE, Fetch
from protocol.checkpoints import CheckpointPart, ExpiredFolders, KeptFolders, PartAnswer, StoredCheckpoint
from protocol.errors import ErrorBody
from workers.exchange import AnyView, is_loopback

BLOCK_BYTES = 1 << 20
NO_SPACE = 507
TIMEOUT = httpx.Timeout(60.0, connect=10.0)


class TransferRefused(Exception):
    """The service says no, and asking again would not help."""


class TransferFailed(Exception):
    """It did not work this time."""


class TransferFull(TransferFailed):
    """The disk of the service is full."""


class FetchClock:
    """Takes the time of one fetch: made when it is asked for, begun when the answer comes."""

    def __init__(self, source: str) -> None:
        self.size_bytes = 0
        self._source = source
        self._asked_s = self._began_s = time.monotonic()

    def begin(self) -> None:
        """The answer has come."""
        self._began_s = time.monotonic()

    def stop(self) -> Fetch:
        """All of it has come."""
        return Fetch(
            source=self._source,
            size_bytes=self.size_bytes,
            wait_s=self._began_s - self._asked_s,
            transfer_s=time.monotonic() - self._began_s,
        )


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

    def download(self, digest: str, target: BinaryIO) -> Fetch:
        """Write the archive of this SHA-256 to `target`; how it came.

        Raises:
            TransferRefused, TransferFailed.
            OSError: `target` cannot be written.
        """
        return self._download(f"/v1/agent/archives/{digest}", digest, target)

    def download_file(self, attempt: str, digest: str, target: BinaryIO) -> None:
        """Write a file of the job's checkpoints to `target`. Raises as `download`."""
        self._download(f"/v1/agent/attempts/{attempt}/checkpoint-files/{digest}", digest, target)

    def _download(self, path: str, digest: str, target: BinaryIO) -> Fetch:
        hashed = hashlib.sha256()
        clock = FetchClock(SERVICE)
        try:
            with self._client.stream("GET", path) as response:
                _check(response)
                clock.begin()
                for block in response.iter_bytes(BLOCK_BYTES):
                    hashed.update(block)
                    target.write(block)
                    clock.size_bytes += len(block)
        except httpx.HTTPError as error:
            raise TransferFailed(str(error) or type(error).__name__) from error
        if hashed.hexdigest() != digest:
            raise TransferFailed("what arrived is not what was asked for: its SHA-256 differs")
        return clock.stop()

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

    def tell_part(self, attempt: str, step: int, rank: int, part: CheckpointPart) -> PartAnswer:
        """What of it the service still lacks. Raises TransferRefused, TransferFailed."""
        path = f"/v1/agent/attempts/{attempt}/checkpoints/{step}/ranks/{rank}"
        headers = {"Content-Type": "application/json"}
        return self._ask("PUT", path, PartAnswer, content=part.model_dump_json(), headers=headers)

    def upload_file(self, attempt: str, file: int, digest: str) -> None:
        """Store a file of a checkpoint, an open one. Repeating it changes nothing.

        Raises:
            TransferRefused, TransferFailed.
            OSError: it cannot be read.
        """
        path = f"/v1/agent/attempts/{attempt}/checkpoint-files/{digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(os.fstat(file).st_size)}
        try:
            with os.fdopen(os.dup(file), "rb") as reader:
                response = self._client.put(path, content=_blocks(reader), headers=headers)
        except httpx.HTTPError as error:
            raise TransferFailed(str(error) or type(error).__name__) from error
        _check(response)

    def stored_checkpoint(self, attempt: str, epoch: int, step: int) -> StoredCheckpoint:
        """The files of a checkpoint of the attempt's job. Raises TransferRefused, TransferFailed."""
        return self._ask("GET", f"/v1/agent/attempts/{attempt}/checkpoints/{epoch}/{step}", StoredCheckpoint)

    def expired_folders(self, jobs: list[str]) -> list[str]:
        """Whose folders of checkpoints may be deleted, of these jobs. Raises TransferRefused, TransferFailed."""
        content, headers = KeptFolders(jobs=jobs).model_dump_json(), {"Content-Type": "application/json"}
        return self._ask("POST", "/v1/agent/checkpoint-folders", ExpiredFolders, content=content, headers=headers).jobs

    def _ask(
        self,
        method: str,
        path: str,
        answer: type[AnyView],
        *,
        content: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AnyView:
        try:
            response = self._client.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise TransferFailed(str(error) or type(error).__name__) from error
        _check(response)
        try:
            return answer.read(response.content)
        except ValidationError as error:
            raise TransferFailed(f"the answer cannot be read: {error}") from error


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
    raise (TransferFull if response.status_code == NO_SPACE else TransferFailed)(detail)
