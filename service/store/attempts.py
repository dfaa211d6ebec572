"""Attempts, their members on nodes, and the devices these hold."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, distinct, exists, func, insert, select, update
from sqlalchemy.dialects.postgresql import Range

from protocol.states import AttemptState, Desired, EndReason
from scheduler.demand import WHOLE_DEVICE
from service.db import Record
from service.models import allocations, attempts, devices, jobs, members, users

DEVICE_SPAN = 1000
"""Thousandths of a device: the width of the range a whole device takes in `allocations.span`."""

HELD = func.sum(func.upper(allocations.c.span) - func.lower(allocations.c.span))
"""Thousandths of a device that a group of rows of `allocations` hold: a share may lie in several pieces."""


def add_attempt(
    tx: Connection,
    *,
    attempt_id: str,
    job_id: str,
    epoch: int,
    term: int,
    cap_w: float | None = None,
    slower: float = 1.0,
    now: datetime,
) -> None:
    """With `cap_w` its devices get that power limit, and it is expected to run `slower` times as long.

    Raises sqlalchemy.exc.IntegrityError if the job has a live attempt."""
    tx.execute(
        insert(attempts).values(
            id=attempt_id,
            job_id=job_id,
            epoch=epoch,
            term=term,
            state=AttemptState.GRANTED.value,
            desired=Desired.RUN.value,
            cap_w=cap_w,
            slower=slower,
            granted_at=now,
        )
    )


def add_member(
    tx: Connection,
    *,
    attempt_id: str,
    member: int,
    node_id: str,
    millicores: int,
    memory_bytes: int,
    device_ids: Sequence[str],
    share: int = DEVICE_SPAN,
    now: datetime,
) -> None:
    """Grant a member its part of a node: `share` thousandths of each device.

    Raises:
        sqlalchemy.exc.IntegrityError: not so much of one of the devices is free.
    """
    tx.execute(
        insert(members).values(
            attempt_id=attempt_id,
            member=member,
            node_id=node_id,
            millicores=millicores,
            memory_bytes=memory_bytes,
            state=AttemptState.GRANTED.value,
            granted_at=now,
        )
    )
    seqs = tx.execute(
        select(devices.c.id, devices.c.seq).where(
            devices.c.id.in_(device_ids), devices.c.node_id == node_id, devices.c.present
        )
    ).all()
    assert len(seqs) == len(device_ids), "the caller checks that the node offers these devices"
    held = [
        {"attempt_id": attempt_id, "member": member, "device_id": device_id, "span": span, "granted_at": now}
        for device_id, seq in seqs
        for span in _free_spans(tx, device_id, seq * DEVICE_SPAN, share)
    ]
    if held:
        tx.execute(insert(allocations), held)


def _free_spans(tx: Connection, device_id: str, first: int, share: int) -> list[Range[int]]:
    """Ranges of the device, `share` wide together, that nobody holds; the first ones. What is free may lie in pieces.

    Where too little is free, a range that somebody holds, which the table then refuses.
    """
    query = select(allocations.c.span).where(allocations.c.device_id == device_id, allocations.c.released_at.is_(None))
    end = first + DEVICE_SPAN
    spans: list[Range[int]] = []
    begin, lacking = first, share
    for span in [*tx.execute(query.order_by(allocations.c.span)).scalars(), Range(end, end + 1)]:
        if width := min(lacking, span.lower - begin):
            spans.append(Range(begin, begin + width))
        begin, lacking = span.upper, lacking - width
    return [Range(first, end)] if lacking else spans


def offered_devices(tx: Connection, node_id: str, device_ids: Sequence[str], *, cap_w: float | None = None) -> int:
    """How many of these devices the node offers now, fit for work, and for this power limit if there is one (W)."""
    query = select(func.count()).where(
        devices.c.id.in_(device_ids),
        devices.c.node_id == node_id,
        devices.c.present,
        devices.c.unfit_reason.is_(None),
    )
    if cap_w is not None:
        query = query.where(devices.c.least_cap_w <= cap_w)
    return tx.execute(query).scalar_one()


def held_on_node(tx: Connection, node_id: str) -> tuple[int, int]:
    """CPU in thousandths of a core and memory in bytes that members hold on the node."""
    query = select(
        func.coalesce(func.sum(members.c.millicores), 0), func.coalesce(func.sum(members.c.memory_bytes), 0)
    ).where(members.c.node_id == node_id, members.c.released_at.is_(None))
    millicores, memory_bytes = tx.execute(query).one()
    return int(millicores), int(memory_bytes)


def lock_attempt(tx: Connection, attempt_id: str) -> Record | None:
    """The attempt's row, held until the transaction ends."""
    return tx.execute(select(attempts).where(attempts.c.id == attempt_id).with_for_update()).one_or_none()


def lock_attempts(tx: Connection, attempt_ids: Collection[str]) -> None:
    """Hold these rows until the transaction ends; always locked in the same order."""
    query = select(attempts.c.id).where(attempts.c.id.in_(attempt_ids)).order_by(attempts.c.id)
    tx.execute(query.with_for_update()).all()


def live_attempt(tx: Connection, job_id: str) -> Record | None:
    query = select(attempts).where(attempts.c.job_id == job_id, attempts.c.state != AttemptState.ENDED.value)
    return tx.execute(query).one_or_none()


def change_attempt(tx: Connection, attempt_id: str, **values: object) -> None:
    tx.execute(update(attempts).where(attempts.c.id == attempt_id).values(**values))


def stop_attempt(tx: Connection, attempt_id: str, reason: EndReason) -> None:
    """Ask the agents to stop it. The first reason stays."""
    query = update(attempts).where(attempts.c.id == attempt_id, attempts.c.desired == Desired.RUN.value)
    tx.execute(query.values(desired=Desired.STOP.value, reason=reason.value))


def list_members(tx: Connection, attempt_id: str) -> Sequence[Record]:
    query = select(members).where(members.c.attempt_id == attempt_id).order_by(members.c.member)
    return tx.execute(query).all()


def change_member(tx: Connection, attempt_id: str, member: int, **values: object) -> None:
    query = update(members).where(members.c.attempt_id == attempt_id, members.c.member == member)
    tx.execute(query.values(**values))


def release_member(tx: Connection, attempt_id: str, member: int, *, now: datetime) -> None:
    """The node said that nothing of the member is left: its devices, CPU and memory are free."""
    change_member(tx, attempt_id, member, released_at=now)
    held = update(allocations).where(allocations.c.attempt_id == attempt_id, allocations.c.member == member)
    tx.execute(held.where(allocations.c.released_at.is_(None)).values(released_at=now))


def held_members(tx: Connection, node_id: str) -> Sequence[Record]:
    """Members on this node whose devices are not released, with attempt, its number of nodes, job and user: what its
    agent should hold."""
    query = (
        select(
            members.c.attempt_id,
            members.c.member,
            members.c.state.label("observed"),
            members.c.millicores,
            members.c.memory_bytes,
            attempts.c.epoch,
            attempts.c.state.label("attempt_state"),
            attempts.c.desired,
            attempts.c.rendezvous,
            attempts.c.cap_w,
            jobs.c.id.label("job_id"),
            jobs.c.name.label("job_name"),
            jobs.c.spec,
            jobs.c.array_index,
            jobs.c.checkpoint_epoch,
            jobs.c.checkpoint_step,
            jobs.c.checkpoint_stored,
            users.c.name.label("user_name"),
            size_of(attempts.c.id).label("nodes"),
        )
        .join(attempts, members.c.attempt_id == attempts.c.id)
        .join(jobs, attempts.c.job_id == jobs.c.id)
        .join(users, jobs.c.user_id == users.c.id)
        .where(members.c.node_id == node_id, members.c.released_at.is_(None))
        .order_by(members.c.granted_at, members.c.attempt_id)
    )
    return tx.execute(query).all()


def devices_of_members(tx: Connection, node_id: str) -> Sequence[Record]:
    """Devices held on this node: columns `attempt_id`, `id`, `kind`, `number`, `thousandths`."""
    query = (
        select(allocations.c.attempt_id, devices.c.id, devices.c.kind, devices.c.number, HELD.label("thousandths"))
        .join(devices, allocations.c.device_id == devices.c.id)
        .where(devices.c.node_id == node_id, allocations.c.released_at.is_(None))
        .group_by(allocations.c.attempt_id, devices.c.id)
        .order_by(devices.c.number, devices.c.id)
    )
    return tx.execute(query).all()


def computing_on(tx: Connection, node_id: str) -> Sequence[Record]:
    """Devices of this node that a running attempt has whole: columns `device_id`, `attempt_id`, and `started_at` of
    the attempt."""
    query = (
        select(allocations.c.device_id, attempts.c.id.label("attempt_id"), attempts.c.started_at)
        .join(devices, allocations.c.device_id == devices.c.id)
        .join(attempts, allocations.c.attempt_id == attempts.c.id)
        .where(devices.c.node_id == node_id, allocations.c.released_at.is_(None))
        .where(attempts.c.state == AttemptState.RUNNING.value)
        .group_by(allocations.c.device_id, attempts.c.id)
        .having(HELD == WHOLE_DEVICE)
    )
    return tx.execute(query).all()


def add_metered(tx: Connection, attempt_id: str, node_id: str, energy_j: float, device_s: float) -> None:
    """A member's devices drew so much more over so many more device-seconds."""
    of_member = (members.c.attempt_id == attempt_id) & (members.c.node_id == node_id)
    counted = {
        "metered_j": members.c.metered_j + energy_j,
        "metered_s": members.c.metered_s + device_s,
    }
    tx.execute(update(members).where(of_member).values(counted))


def held_devices(tx: Connection) -> Sequence[Record]:
    """Every live hold, by device: columns `device_id`, `thousandths`, `attempt_id`, `job_id`, `user_id`, `state`, and
    `cap_w` of the attempt."""
    query = (
        select(
            allocations.c.device_id,
            HELD.label("thousandths"),
            allocations.c.attempt_id,
            attempts.c.job_id,
            jobs.c.user_id,
            members.c.state,
            attempts.c.cap_w,
        )
        .join(attempts, allocations.c.attempt_id == attempts.c.id)
        .join(
            members,
            (allocations.c.attempt_id == members.c.attempt_id) & (allocations.c.member == members.c.member),
        )
        .join(jobs, attempts.c.job_id == jobs.c.id)
        .where(allocations.c.released_at.is_(None))
        .group_by(
            allocations.c.device_id,
            allocations.c.attempt_id,
            attempts.c.job_id,
            attempts.c.cap_w,
            jobs.c.user_id,
            members.c.state,
        )
        .order_by(allocations.c.device_id, func.min(allocations.c.id))
    )
    return tx.execute(query).all()


def held_work(tx: Connection, job_id: str | None = None) -> Sequence[Record]:
    """Every member that holds a node, with its attempt and job: what the snapshot takes off each node. With `job_id`,
    only those of one job.
    """
    query = (
        select(
            members.c.attempt_id,
            members.c.member,
            members.c.node_id,
            members.c.millicores,
            members.c.memory_bytes,
            members.c.granted_at,
            attempts.c.epoch,
            attempts.c.state.label("attempt_state"),
            attempts.c.desired,
            attempts.c.started_at,
            attempts.c.job_id,
            attempts.c.cap_w,
            attempts.c.slower,
            jobs.c.seq,
            jobs.c.priority,
            jobs.c.checkpoint_epoch,
            jobs.c.checkpoint_step,
            jobs.c.checkpoint_at,
            jobs.c.user_id,
            jobs.c.signature,
            jobs.c.pace,
            jobs.c.spec,
            kind_of(attempts.c.id).label("kind"),
            size_of(attempts.c.id).label("nodes"),
        )
        .join(attempts, members.c.attempt_id == attempts.c.id)
        .join(jobs, attempts.c.job_id == jobs.c.id)
        .where(members.c.released_at.is_(None))
        .order_by(members.c.attempt_id, members.c.member)
    )
    return tx.execute(query if job_id is None else query.where(jobs.c.id == job_id)).all()


def kind_of(attempt_id: ColumnElement[str]) -> ColumnElement[str]:
    """The kind of an attempt's devices; empty if it has none."""
    query = select(devices.c.kind).join(allocations, allocations.c.device_id == devices.c.id)
    query = query.where(allocations.c.attempt_id == attempt_id).limit(1)
    return func.coalesce(query.correlate(attempts).scalar_subquery(), "")


def kind_held(tx: Connection, attempt_id: str) -> str:
    """The kind of the devices that an attempt has or had; empty if it had none, or they are forgotten."""
    return tx.execute(select(kind_of(attempts.c.id)).where(attempts.c.id == attempt_id)).scalar_one()


def size_of(attempt_id: ColumnElement[str]) -> ColumnElement[int]:
    """How many nodes an attempt has."""
    gang = members.alias("gang")
    query = select(func.count()).where(gang.c.attempt_id == attempt_id)
    return query.correlate(attempts).scalar_subquery()


def any_may_move(tx: Connection) -> bool:
    """Whether a job holds a node that allowed to be moved."""
    held = select(members.c.attempt_id).where(members.c.released_at.is_(None))
    held = held.join(attempts, members.c.attempt_id == attempts.c.id).join(jobs, attempts.c.job_id == jobs.c.id)
    return tx.execute(select(held.where(jobs.c.spec.contains({"may_move": True})).exists())).scalar_one()


def count_ends(tx: Connection, reason: EndReason, *, since: datetime) -> dict[str, int]:
    """How many attempts of each job have ended for this reason since then, of the jobs of which any has."""
    query = select(attempts.c.job_id, func.count().label("ends")).where(attempts.c.reason == reason.value)
    query = query.where(attempts.c.ended_at >= since).group_by(attempts.c.job_id)
    return {row.job_id: row.ends for row in tx.execute(query)}


def list_attempts(tx: Connection, job_id: str) -> Sequence[Record]:
    return tx.execute(select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.epoch)).all()


def members_of_job(tx: Connection, job_id: str) -> Sequence[Record]:
    """Members of all attempts of a job, with the devices' ids (`device_ids`)."""
    device_ids = (
        select(func.array_agg(distinct(allocations.c.device_id)))
        .where(allocations.c.attempt_id == members.c.attempt_id, allocations.c.member == members.c.member)
        .scalar_subquery()
    )
    query = (
        select(members, device_ids.label("device_ids"))
        .join(attempts, members.c.attempt_id == attempts.c.id)
        .where(attempts.c.job_id == job_id)
        .order_by(members.c.attempt_id, members.c.member)
    )
    return tx.execute(query).all()


def live_attempts_on_node(tx: Connection, node_id: str) -> Sequence[Record]:
    """Attempts that are not over and have a member on this node that is not over."""
    query = select(attempts).where(
        attempts.c.state != AttemptState.ENDED.value,
        exists().where(
            members.c.attempt_id == attempts.c.id,
            members.c.node_id == node_id,
            members.c.state != AttemptState.ENDED.value,
        ),
    )
    return tx.execute(query.order_by(attempts.c.id)).all()


def latest_ends_on_node(tx: Connection, node_id: str, limit: int) -> Sequence[tuple[str, str | None]]:
    """Reason and message of the latest members that ended on the node, the newest grant first."""
    query = select(members.c.reason, members.c.message).where(
        members.c.node_id == node_id, members.c.state == AttemptState.ENDED.value
    )
    query = query.order_by(members.c.granted_at.desc(), members.c.attempt_id.desc()).limit(limit)
    return [(reason, message) for reason, message in tx.execute(query)]


def nodes_of_attempt(tx: Connection, attempt_id: str) -> Sequence[str]:
    """In the order of the members."""
    query = select(members.c.node_id).where(members.c.attempt_id == attempt_id).order_by(members.c.member)
    return tx.execute(query).scalars().all()
