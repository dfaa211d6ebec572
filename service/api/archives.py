"""Routes that carry archives: code from users to nodes, outputs from nodes to users."""

import hashlib
from collections.abc import Callable
from typing import IO, Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from protocol.jobs import OutputList
from service import archives
from service.api.deps import BlobsDep, NodeDep, Parts, PartsDep, PersonDep
from service.api.errors import RESPONSES, refused
from service.api.jobs import JobId
from service.archives import Stored
from service.blobs import BLOCK_BYTES, Blobs
from service.refusals import (
    ArchiveQuota,
    Invalid,
    NoSpace,
    OutputExists,
    UnknownArchive,
    UnknownAttempt,
    UnknownJob,
    UnknownOutput,
)

router = APIRouter(tags=["archives"], responses=RESPONSES)

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the archive in hexadecimal.")]
MemberNumber = Annotated[int, Path(ge=0, le=2**31 - 1, description="Number of the member in its gang.")]
AttemptId = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9-]+$", description="The attempt's id.")]

MEDIA_TYPE = "application/gzip"
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "The archive.", "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
}


class Archive(StreamingResponse):
    """A tar.gz."""

    media_type = MEDIA_TYPE


@router.head("/v1/archives/{sha256}", status_code=204, responses=refused(UnknownArchive))
def look_up_archive(sha256: Digest, parts: PartsDep, person: PersonDep) -> Response:
    """Whether you have uploaded this archive."""
    with parts.engine.begin() as tx:
        archives.look_up(tx, person, sha256, now=parts.now())
    return Response(status_code=204)


@router.put("/v1/archives/{sha256}", status_code=204, responses=refused(ArchiveQuota, NoSpace), openapi_extra=BODY)
async def put_archive(
    sha256: Digest, request: Request, parts: PartsDep, blobs: BlobsDep, person: PersonDep
) -> Response:
    """Upload an archive of code, a tar.gz. Sending it again changes nothing."""

    def keep(tx: Connection, stored: Stored) -> list[str]:
        return archives.keep_archive(tx, person, stored, now=parts.now())

    await receive(request, parts, blobs, sha256, keep)
    return Response(status_code=204)


@router.get(
    "/v1/agent/archives/{sha256}",
    responses=refused(UnknownArchive) | STREAM,
    response_class=Archive,
)
def get_archive(sha256: Digest, parts: PartsDep, blobs: BlobsDep, node: NodeDep) -> Archive:
    """Code of an attempt that this node holds."""
    with parts.engine.begin() as tx:
        found = archives.find_for_node(tx, node, sha256)
    return _send(blobs, found)


@router.put(
    "/v1/agent/attempts/{attempt}/outputs/{member}",
    status_code=204,
    responses=refused(UnknownAttempt, OutputExists, NoSpace),
    openapi_extra=BODY,
)
async def put_output(
    attempt: AttemptId,
    member: MemberNumber,
    request: Request,
    parts: PartsDep,
    blobs: BlobsDep,
    node: NodeDep,
    sha256: Annotated[str, Query(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the archive in hexadecimal.")],
) -> Response:
    """Store what a member left in $ERGON_OUTPUT, a tar.gz. Sending it again changes nothing."""

    def known() -> bool:
        with parts.engine.begin() as tx:
            return archives.check_output(tx, node, attempt_id=attempt, member=member, digest=sha256)

    def keep(tx: Connection, stored: Stored) -> list[str]:
        return archives.keep_output(tx, node, stored, attempt_id=attempt, member=member, now=parts.now())

    if not await run_in_threadpool(known):
        await receive(request, parts, blobs, sha256, keep)
    return Response(status_code=204)


@router.get("/v1/jobs/{job_id}/outputs", responses=refused(UnknownJob))
def list_outputs(job_id: JobId, parts: PartsDep, person: PersonDep) -> OutputList:
    """What the members of the job have stored, the latest attempt first."""
    with parts.engine.begin() as tx:
        return archives.list_outputs(tx, person, job_id)


@router.get(
    "/v1/jobs/{job_id}/outputs/{member}",
    responses=refused(UnknownJob, UnknownOutput) | STREAM,
    response_class=Archive,
)
def get_output(
    job_id: JobId,
    member: MemberNumber,
    parts: PartsDep,
    blobs: BlobsDep,
    person: PersonDep,
    epoch: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="Of this attempt; the latest if absent.")
    ] = None,
) -> Archive:
    """What one member has stored, as tar.gz."""
    with parts.engine.begin() as tx:
        found = archives.find_output(tx, person, job_id, member=member, epoch=epoch)
    return _send(blobs, found)


def _send(blobs: Blobs, found: Stored) -> Archive:
    headers = {"Content-Length": str(found.size), "ETag": f'"{found.digest}"'}
    return Archive(blobs.read(found.blob), headers=headers)


async def receive(
    request: Request, parts: Parts, blobs: Blobs, digest: str, keep: Callable[[Connection, Stored], list[str]]
) -> None:
    """Write the body to the store, check its digest, and make it known by `keep`. Nothing stays of what fails.

    Raises:
        Invalid: the body is not what its digest says.
    """
    blob = parts.new_id("blob")
    file = await run_in_threadpool(blobs.create, blob)
    try:
        stored = await _copy(request, blobs, file, digest, blob)
        doomed = await run_in_threadpool(_commit, parts, stored, keep)
    except BaseException:
        await run_in_threadpool(blobs.delete, blob)
        raise
    for name in doomed:
        await run_in_threadpool(blobs.delete, name)


async def _copy(request: Request, blobs: Blobs, file: IO[bytes], digest: str, blob: str) -> Stored:
    hashed, size, waiting = hashlib.sha256(), 0, bytearray()

    def write(data: bytes) -> None:
        hashed.update(data)
        blobs.write(file, data)

    try:
        async for chunk in request.stream():
            size += len(chunk)
            waiting += chunk
            if len(waiting) >= BLOCK_BYTES:
                await run_in_threadpool(write, bytes(waiting))
                waiting.clear()
        await run_in_threadpool(write, bytes(waiting))
    finally:
        await run_in_threadpool(blobs.close, file)
    if hashed.hexdigest() != digest:
        raise Invalid(f"the body has the SHA-256 {hashed.hexdigest()} and not {digest}; send it again whole")
    return Stored(digest=digest, size=size, blob=blob)


def _commit(parts: Parts, stored: Stored, keep: Callable[[Connection, Stored], list[str]]) -> list[str]:
    """What `keep` says is to be deleted. Of two that store the same at once, the later one finds it stored."""
    try:
        with parts.engine.begin() as tx:
            return keep(tx, stored)
    except IntegrityError:
        with parts.engine.begin() as tx:
            return keep(tx, stored)
