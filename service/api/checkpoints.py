"""Routes by which agents keep checkpoints with the service, and fetch them."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection

from protocol.checkpoints import CheckpointPart, ExpiredFolders, KeptFolders, PartAnswer, StoredCheckpoint
from service import checkpoints
from service.api.archives import AttemptId, Digest, receive
from service.api.deps import BlobsDep, NodeDep, PartsDep
from service.api.errors import RESPONSES, refused
from service.archives import Stored
from service.refusals import CheckpointQuota, Invalid, NoSpace, UnknownAttempt, UnknownCheckpoint

router = APIRouter(prefix="/v1/agent", tags=["agent"], responses=RESPONSES)

Step = Annotated[int, Path(ge=0, le=2**62, description="Step of the checkpoint.")]
RankNumber = Annotated[int, Path(ge=0, le=2**31 - 1, description="Number of the rank in its gang.")]
Epoch = Annotated[int, Path(ge=1, le=2**31 - 1, description="The attempt that wrote it, by its epoch.")]

MEDIA_TYPE = "application/octet-stream"
SCHEMA = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
BODY: dict[str, Any] = {"requestBody": {"required": True, "content": SCHEMA}}
STREAM: dict[int | str, dict[str, Any]] = {200: {"description": "The file.", "content": SCHEMA}}


class File(StreamingResponse):
    """Bytes."""

    media_type = MEDIA_TYPE


@router.put(
    "/attempts/{attempt}/checkpoints/{step}/ranks/{rank}", responses=refused(UnknownAttempt, Invalid, CheckpointQuota)
)
def put_part(
    attempt: AttemptId,
    step: Step,
    rank: RankNumber,
    part: CheckpointPart,
    parts: PartsDep,
    blobs: BlobsDep,
    node: NodeDep,
) -> PartAnswer:
    """Tell what a rank has saved; the answer names the files to send. Told again once they were sent, it is stored."""
    with parts.engine.begin() as tx:
        answer, doomed = checkpoints.put_part(
            tx,
            node,
            part,
            attempt_id=attempt,
            step=step,
            rank=rank,
            quota_bytes=parts.settings.checkpoint_quota_bytes,
            now=parts.now(),
        )
    for name in doomed:
        blobs.delete(name)
    return answer


@router.put(
    "/attempts/{attempt}/checkpoint-files/{sha256}",
    status_code=204,
    responses=refused(UnknownAttempt, UnknownCheckpoint, CheckpointQuota, NoSpace),
    openapi_extra=BODY,
)
async def put_file(
    attempt: AttemptId, sha256: Digest, request: Request, parts: PartsDep, blobs: BlobsDep, node: NodeDep
) -> Response:
    """Store a file that a rank has saved. Sending it again changes nothing."""

    def known() -> bool:
        with parts.engine.begin() as tx:
            return checkpoints.check_file(tx, node, attempt_id=attempt, digest=sha256)

    def keep(tx: Connection, stored: Stored) -> list[str]:
        quota_bytes = parts.settings.checkpoint_quota_bytes
        return checkpoints.keep_file(tx, node, stored, attempt_id=attempt, quota_bytes=quota_bytes)

    if not await run_in_threadpool(known):
        await receive(request, parts, blobs, sha256, keep)
    return Response(status_code=204)


@router.get("/attempts/{attempt}/checkpoints/{epoch}/{step}", responses=refused(UnknownAttempt, UnknownCheckpoint))
def get_checkpoint(attempt: AttemptId, epoch: Epoch, step: Step, parts: PartsDep, node: NodeDep) -> StoredCheckpoint:
    """What the job's ranks had saved, of a checkpoint that is stored."""
    with parts.engine.begin() as tx:
        return checkpoints.find_stored(tx, node, attempt_id=attempt, epoch=epoch, step=step)


@router.get(
    "/attempts/{attempt}/checkpoint-files/{sha256}",
    responses=refused(UnknownAttempt, UnknownCheckpoint) | STREAM,
    response_class=File,
)
def get_file(attempt: AttemptId, sha256: Digest, parts: PartsDep, blobs: BlobsDep, node: NodeDep) -> File:
    """A file of the job's checkpoints."""
    with parts.engine.begin() as tx:
        found = checkpoints.find_file(tx, node, attempt_id=attempt, digest=sha256)
    return File(blobs.read(found.blob), headers={"Content-Length": str(found.size)})


@router.post("/checkpoint-folders")
def list_expired(kept: KeptFolders, parts: PartsDep, node: NodeDep) -> ExpiredFolders:
    """Which of these jobs' folders may be deleted, where all nodes share one for checkpoints."""
    keep_days = parts.settings.keep_output_days
    with parts.engine.begin() as tx:
        return checkpoints.expired_folders(tx, kept.jobs, keep_days=keep_days, now=parts.now())
