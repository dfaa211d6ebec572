"""Code that users upload and nodes fetch, and outputs that nodes upload and users fetch."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from archives.limits import show_bytes
from protocol.jobs import OutputList, OutputView
from service import jobs
from service.auth import Person
from service.refusals import ArchiveQuota, OutputExists, UnknownArchive, UnknownAttempt, UnknownOutput
from service.store import archives as store

QUOTA_BYTES = 10 << 30
"""What all archives of one user may take together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A blob that was written and checked: its SHA-256, its size in bytes, its name in the store."""

    digest: str
    size: int
    blob: str


def look_up(tx: Connection, person: Person, digest: str, *, now: datetime) -> None:
    """Note that the person is about to use an archive of theirs. Raises UnknownArchive if they have no such."""
    if store.touch_owner(tx, digest=digest, user_id=person.id, now=now) is None:
        raise UnknownArchive(f"you have uploaded no archive {digest}; send it with PUT")


def keep_archive(tx: Connection, person: Person, stored: Stored, *, now: datetime) -> list[str]:
    """Make an archive the person's. Their oldest ones that no unfinished job needs make room for it.

    Returns:
        Blobs to delete once the transaction has been committed.

    Raises:
        ArchiveQuota: there is no room, even so.
    """
    doomed: list[str] = []
    if store.touch_owner(tx, digest=stored.digest, user_id=person.id, now=now) is not None:
        return [stored.blob]
    if not store.add_archive(tx, digest=stored.digest, size=stored.size, blob=stored.blob, now=now):
        doomed.append(stored.blob)
    held = store.size_of_user(tx, person.id)
    for old in store.list_unneeded(tx, person.id):
        if held + stored.size <= QUOTA_BYTES:
            break
        held -= old.size
        blob = store.drop_owner(tx, digest=old.digest, user_id=person.id)
        doomed += [blob] if blob else []
    if held + stored.size > QUOTA_BYTES:
        raise ArchiveQuota(
            f"your unfinished jobs hold {show_bytes(held)} of code and this is {show_bytes(stored.size)} more; "
            f"the limit is {show_bytes(QUOTA_BYTES)} for each user: wait for some to end, or ship less"
        )
    store.add_owner(tx, digest=stored.digest, user_id=person.id, now=now)
    return doomed


def find_for_node(tx: Connection, node_id: str, digest: str) -> Stored:
    """An archive that an attempt on this node runs. Raises UnknownArchive for every other."""
    found = store.find_archive(tx, digest) if store.is_needed_on_node(tx, digest=digest, node_id=node_id) else None
    if found is None:
        raise UnknownArchive(f"no attempt on node {node_id!r} runs an archive {digest}, or it is gone")
    return Stored(digest=found.digest, size=found.size, blob=found.blob)


def missing(tx: Connection, user_id: str, digests: Sequence[str]) -> set[str]:
    """Which of these archives the user has not uploaded. The others stay until the transaction ends."""
    return set(digests) - store.owned_of(tx, digests=set(digests), user_id=user_id)


def check_output(tx: Connection, node_id: str, *, attempt_id: str, member: int, digest: str) -> bool:
    """Whether the node's member has stored this output before.

    Raises:
        UnknownAttempt: it is not a member that this node holds.
        OutputExists: it has stored another one.
    """
    if store.find_held_member(tx, attempt_id=attempt_id, member=member, node_id=node_id) is None:
        raise UnknownAttempt(f"node {node_id!r} holds no member {member} of attempt {attempt_id!r}")
    found = store.find_output(tx, attempt_id=attempt_id, member=member)
    if found is None:
        return False
    if found.digest != digest:
        raise OutputExists(f"member {member} of attempt {attempt_id!r} has stored another output: {found.digest}")
    return True


def keep_output(
    tx: Connection, node_id: str, stored: Stored, *, attempt_id: str, member: int, now: datetime
) -> list[str]:
    """Make a blob the member's output; blobs to delete once the transaction has been committed.

    Raises:
        UnknownAttempt, OutputExists: as `check_output`.
        sqlalchemy.exc.IntegrityError: the same is being stored at this very moment.
    """
    if check_output(tx, node_id, attempt_id=attempt_id, member=member, digest=stored.digest):
        return [stored.blob]
    store.add_output(
        tx,
        attempt_id=attempt_id,
        member=member,
        digest=stored.digest,
        size=stored.size,
        blob=stored.blob,
        now=now,
    )
    return []


def list_outputs(tx: Connection, person: Person, job_id: str) -> OutputList:
    """Every output of a job, the latest attempt first. Raises UnknownJob."""
    jobs.find(tx, person, job_id)
    items = [
        OutputView(
            epoch=row.epoch,
            member=row.member,
            node=row.node_id,
            size_bytes=row.size,
            sha256=row.digest,
            stored_at=row.stored_at,
        )
        for row in store.list_outputs(tx, job_id)
    ]
    return OutputList(items=items)


def find_output(tx: Connection, person: Person, job_id: str, *, member: int, epoch: int | None) -> Stored:
    """The output of a member, of its latest attempt unless `epoch` names one.

    Raises:
        UnknownJob: there is none of this id, or it is another user's.
        UnknownOutput: it stored nothing.
    """
    jobs.find(tx, person, job_id)
    for row in store.list_outputs(tx, job_id):
        if row.member == member and epoch in (None, row.epoch):
            return Stored(digest=row.digest, size=row.size, blob=row.blob)
    raise UnknownOutput(f"member {member} of job {job_id} has stored no output; `ergon fetch` takes what there is")
