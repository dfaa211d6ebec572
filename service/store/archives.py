"""Archives of code and who uploaded them; outputs of attempts."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, exists, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from protocol.states import FINAL_JOB_STATES
from service.db import Record
from service.models import archive_owners, archives, attempts, jobs, members, outputs


def find_archive(tx: Connection, digest: str) -> Record | None:
    """Columns `digest`, `size`, `blob`; whoever owns it. It cannot be deleted before the transaction ends."""
    query = select(archives).where(archives.c.digest == digest)
    return tx.execute(query.with_for_update(key_share=True)).one_or_none()


def touch_owner(tx: Connection, *, digest: str, user_id: str, now: datetime) -> Record | None:
    """Note that the user uses the archive. None if the user has not uploaded it."""
    query = update(archive_owners).where(archive_owners.c.digest == digest, archive_owners.c.user_id == user_id)
    return tx.execute(query.values(used_at=now).returning(archive_owners)).one_or_none()


def owned_of(tx: Connection, *, digests: Collection[str], user_id: str) -> set[str]:
    """Which of these the user has uploaded. They stay the user's until the transaction ends."""
    query = select(archive_owners.c.digest).where(
        archive_owners.c.digest.in_(digests), archive_owners.c.user_id == user_id
    )
    return set(tx.execute(query.order_by(archive_owners.c.digest).with_for_update(read=True)).scalars())


def add_archive(tx: Connection, *, digest: str, size: int, blob: str, now: datetime) -> bool:
    """False if somebody else has stored the same meanwhile."""
    statement = upsert(archives).values(digest=digest, size=size, blob=blob, created_at=now)
    statement = statement.on_conflict_do_nothing().returning(archives.c.digest)
    return tx.execute(statement).one_or_none() is not None


def add_owner(tx: Connection, *, digest: str, user_id: str, now: datetime) -> None:
    statement = upsert(archive_owners).values(digest=digest, user_id=user_id, used_at=now)
    tx.execute(statement.on_conflict_do_update(index_elements=["digest", "user_id"], set_={"used_at": now}))


def size_of_user(tx: Connection, user_id: str) -> int:
    """Bytes of all archives of the user."""
    query = select(func.coalesce(func.sum(archives.c.size), 0)).join(archive_owners)
    return int(tx.execute(query.where(archive_owners.c.user_id == user_id)).scalar_one())


def list_unneeded(tx: Connection, user_id: str) -> Sequence[Record]:
    """The user's archives that no unfinished job names, least recently used first: columns `digest`, `size`."""
    needed = exists().where(
        jobs.c.spec["code"].astext == archives.c.digest,
        jobs.c.user_id == user_id,
        jobs.c.state.not_in([state.value for state in FINAL_JOB_STATES]),
    )
    query = select(archives.c.digest, archives.c.size).join(archive_owners)
    query = query.where(archive_owners.c.user_id == user_id, ~needed)
    return tx.execute(query.order_by(archive_owners.c.used_at, archives.c.digest).with_for_update()).all()


def drop_owner(tx: Connection, *, digest: str, user_id: str) -> str | None:
    """The user's no more; the blob to delete if it was nobody else's either."""
    tx.execute(delete(archive_owners).where(archive_owners.c.digest == digest, archive_owners.c.user_id == user_id))
    orphan = delete(archives).where(
        archives.c.digest == digest, ~exists().where(archive_owners.c.digest == archives.c.digest)
    )
    return tx.execute(orphan.returning(archives.c.blob)).scalar_one_or_none()


def is_needed_on_node(tx: Connection, *, digest: str, node_id: str) -> bool:
    """Whether an attempt that the node holds runs this archive."""
    query = (
        select(members.c.attempt_id)
        .join(attempts, members.c.attempt_id == attempts.c.id)
        .join(jobs, attempts.c.job_id == jobs.c.id)
        .where(
            members.c.node_id == node_id,
            members.c.released_at.is_(None),
            jobs.c.spec["code"].astext == digest,
        )
    )
    return tx.execute(query.limit(1)).one_or_none() is not None


def find_held_member(tx: Connection, *, attempt_id: str, member: int, node_id: str) -> Record | None:
    """The member, if it is this node's and not released yet."""
    query = select(members).where(
        members.c.attempt_id == attempt_id,
        members.c.member == member,
        members.c.node_id == node_id,
        members.c.released_at.is_(None),
    )
    return tx.execute(query).one_or_none()


def find_output(tx: Connection, *, attempt_id: str, member: int, lock: bool = False) -> Record | None:
    query = select(outputs).where(outputs.c.attempt_id == attempt_id, outputs.c.member == member)
    return tx.execute(query.with_for_update() if lock else query).one_or_none()


def add_output(
    tx: Connection, *, attempt_id: str, member: int, digest: str, size: int, blob: str, now: datetime
) -> None:
    """Raises sqlalchemy.exc.IntegrityError if there is one already."""
    values = {"digest": digest, "size": size, "blob": blob, "stored_at": now}
    tx.execute(insert(outputs).values(attempt_id=attempt_id, member=member, **values))


def list_outputs(tx: Connection, job_id: str) -> Sequence[Record]:
    """Every output of the job, the latest attempt first, with `epoch` and `node_id`."""
    query = (
        select(outputs, attempts.c.epoch, members.c.node_id)
        .join(members, (outputs.c.attempt_id == members.c.attempt_id) & (outputs.c.member == members.c.member))
        .join(attempts, outputs.c.attempt_id == attempts.c.id)
        .where(attempts.c.job_id == job_id)
        .order_by(attempts.c.epoch.desc(), outputs.c.member)
    )
    return tx.execute(query).all()
