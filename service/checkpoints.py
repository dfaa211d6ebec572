"""Checkpoints of nodes that share no folder: their agents bring the files here, and fetch them for the next attempt.

A checkpoint counts once every file of every rank has arrived: only then the job's `latest` moves. Two are kept.
"""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from archives.limits import show_bytes
from protocol.checkpoints import (
    CheckpointFile,
    CheckpointPart,
    ExpiredFolders,
    PartAnswer,
    StoredCheckpoint,
    StoredPart,
)
from protocol.jobs import JobSpec
from service.archives import Stored
from service.db import Record
from service.refusals import CheckpointQuota, Invalid, UnknownAttempt, UnknownCheckpoint
from service.store import checkpoints as store
from service.store import jobs as job_store

KEPT = 2
"""Complete checkpoints of a job that stay: should the newest be of no use, one interval more is lost."""


def put_part(
    tx: Connection,
    node_id: str,
    part: CheckpointPart,
    *,
    attempt_id: str,
    step: int,
    rank: int,
    quota_bytes: int,
    now: datetime,
) -> tuple[PartAnswer, list[str]]:
    """A rank has saved something: what of it is still to be sent. With the last file of the last rank it is stored.

    Returns:
        The answer, and blobs to delete once the transaction has been committed.

    Raises:
        UnknownAttempt: the attempt is not one that this node holds.
        Invalid: the node has no such rank, or the gang another size.
        CheckpointQuota: the user's checkpoints would take too much.
    """
    held = _held(tx, node_id, attempt_id)
    job = job_store.lock_job(tx, held.job_id)
    _check_rank(JobSpec.model_validate(job.spec), held, rank=rank, world_size=part.world_size)
    if job.epoch != held.epoch:
        return PartAnswer(missing=[]), []
    if _is_old(job, held.epoch, step):
        return PartAnswer(missing=[], begun=_begun(tx, job, held.member, rank)), []
    sizes = {file.sha256: file.size for file in part.files}
    missing = sizes.keys() - store.held_of(tx, job.id, sizes.keys())
    _check_quota(tx, job.user_id, sum(sizes[digest] for digest in missing), quota_bytes)
    store.put_part(
        tx,
        job.id,
        epoch=held.epoch,
        step=step,
        rank=rank,
        world_size=part.world_size,
        files={file.path: [file.size, file.sha256] for file in part.files},
        arrived=not missing,
    )
    parts = [row for row in store.list_parts(tx, job.id) if (row.epoch, row.step) == (held.epoch, step)]
    if not _is_complete(parts):
        begun = _begun(tx, job, held.member, rank)
        return PartAnswer(missing=sorted(missing), complete=False, begun=begun), []
    job_store.advance_checkpoint(tx, job.id, epoch=held.epoch, step=step, now=now, stored=True)
    return PartAnswer(missing=[]), _prune(tx, job.id)


def _begun(tx: Connection, job: Record, member: int, rank: int) -> int | None:
    """The newest step of this attempt that other members have begun to bring and `rank` has not brought."""
    ranks = JobSpec.model_validate(job.spec).ranks
    fresh = [
        row for row in store.list_parts(tx, job.id) if row.epoch == job.epoch and not _is_old(job, row.epoch, row.step)
    ]
    brought = {row.step for row in fresh if row.rank == rank and row.arrived}
    return max((row.step for row in fresh if row.rank // ranks != member and row.step not in brought), default=None)


def check_file(tx: Connection, node_id: str, *, attempt_id: str, digest: str) -> bool:
    """Whether the job has this file already. Raises as `keep_file`."""
    held = _held(tx, node_id, attempt_id)
    if store.find_file(tx, held.job_id, digest) is not None:
        return True
    _announced_size(tx, held.job_id, digest)
    return False


def keep_file(tx: Connection, node_id: str, stored: Stored, *, attempt_id: str, quota_bytes: int) -> list[str]:
    """Make a blob a file of the job's checkpoints; blobs to delete once the transaction has been committed.

    Raises:
        UnknownAttempt: the attempt is not one that this node holds.
        UnknownCheckpoint: no rank of the job has said that it has such a file, or its checkpoint is old by now.
        Invalid: it was said to have another size.
        CheckpointQuota: the user's checkpoints would take too much.
    """
    held = _held(tx, node_id, attempt_id)
    job = job_store.lock_job(tx, held.job_id)
    if store.find_file(tx, job.id, stored.digest) is not None:
        return [stored.blob]
    if stored.size != (said := _announced_size(tx, job.id, stored.digest)):
        raise Invalid(f"the file has {stored.size} bytes and was said to have {said}")
    _check_quota(tx, job.user_id, stored.size, quota_bytes)
    store.add_file(tx, job.id, digest=stored.digest, size=stored.size, blob=stored.blob)
    return []


def find_stored(tx: Connection, node_id: str, *, attempt_id: str, epoch: int, step: int) -> StoredCheckpoint:
    """A complete checkpoint of the job of an attempt that this node holds. Raises UnknownAttempt, UnknownCheckpoint."""
    held = _held(tx, node_id, attempt_id)
    parts = [row for row in store.list_parts(tx, held.job_id) if (row.epoch, row.step) == (epoch, step)]
    if not _is_complete(parts):
        raise UnknownCheckpoint(f"the service holds no complete checkpoint of step {step} of attempt {epoch}")
    return StoredCheckpoint(
        parts=[
            StoredPart(
                rank=row.rank,
                files=[
                    CheckpointFile(path=path, size=size, sha256=digest) for path, (size, digest) in row.files.items()
                ],
            )
            for row in parts
        ]
    )


def find_file(tx: Connection, node_id: str, *, attempt_id: str, digest: str) -> Stored:
    """A file of the job of an attempt that this node holds. Raises UnknownAttempt, UnknownCheckpoint."""
    held = _held(tx, node_id, attempt_id)
    found = store.find_file(tx, held.job_id, digest)
    if found is None:
        raise UnknownCheckpoint(f"no checkpoint of job {held.job_id} has a file {digest}, or it is gone")
    return Stored(digest=found.digest, size=found.size, blob=found.blob)


def expired_folders(tx: Connection, job_ids: list[str], *, keep_days: float, now: datetime) -> ExpiredFolders:
    """Whose checkpoints in a shared folder may be deleted, of these jobs.

    A job that is not known may be another service's, or one that this database forgot when it was restored.
    """
    return ExpiredFolders(jobs=list(store.ended_before(tx, job_ids, now - timedelta(days=keep_days))))


def _held(tx: Connection, node_id: str, attempt_id: str) -> Record:
    held = store.find_held(tx, attempt_id=attempt_id, node_id=node_id)
    if held is None:
        raise UnknownAttempt(f"node {node_id!r} holds nothing of attempt {attempt_id!r}")
    return held


def _check_rank(spec: JobSpec, held: Record, *, rank: int, world_size: int) -> None:
    if world_size != held.nodes * spec.ranks:
        raise Invalid(f"the gang has {held.nodes * spec.ranks} ranks, not {world_size}")
    if rank // spec.ranks != held.member:
        raise Invalid(f"rank {rank} is not of member {held.member}, which is this node's")


def _is_old(job: Record, epoch: int, step: int) -> bool:
    return job.checkpoint_epoch is not None and (epoch, step) <= (job.checkpoint_epoch, job.checkpoint_step)


def _check_quota(tx: Connection, user_id: str, more: int, quota_bytes: int) -> None:
    held = store.size_of_user(tx, user_id)
    if more and held + more > quota_bytes:
        raise CheckpointQuota(
            f"checkpoints of your jobs hold {show_bytes(held)} and this is {show_bytes(more)} more; the limit is "
            f"{show_bytes(quota_bytes)} for each user: save less, or have an administrator raise "
            "ERGON_CHECKPOINT_QUOTA_BYTES"
        )


def _announced_size(tx: Connection, job_id: str, digest: str) -> int:
    for row in store.list_parts(tx, job_id):
        for size, known in row.files.values():
            if known == digest:
                return size
    raise UnknownCheckpoint(f"no checkpoint of job {job_id} that is wanted has a file {digest}")


def _is_complete(parts: list[Any]) -> bool:
    """Whether these parts of one checkpoint are all of it."""
    return bool(parts) and len(parts) == parts[0].world_size and all(part.arrived for part in parts)


def _prune(tx: Connection, job_id: str) -> list[str]:
    """Forget what is older than the job's newest complete checkpoints; blobs to delete."""
    by_mark: dict[tuple[int, int], list[Any]] = {}
    for row in store.list_parts(tx, job_id):
        by_mark.setdefault((row.epoch, row.step), []).append(row)
    complete = [mark for mark, parts in by_mark.items() if _is_complete(parts)]
    oldest = complete[:KEPT][-1]
    store.drop_parts_before(tx, job_id, epoch=oldest[0], step=oldest[1])
    kept = [row for mark, parts in by_mark.items() if mark >= oldest for row in parts]
    return store.drop_files_but(tx, job_id, {digest for row in kept for _size, digest in row.files.values()})
