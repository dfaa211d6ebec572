"""Output of ranks and the metrics found in it."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, func, insert, or_, select

from service.db import Record
from service.models import attempts, chunks, metrics


def add_chunk(
    tx: Connection, *, attempt_id: str, rank: int, stream: str, offset: int, data: bytes, now: datetime
) -> bytes:
    """Store a piece of output and return the part of it that is new. What is stored already is not stored again.

    A piece that leaves a gap is not taken: what is missing could not be put before it any more.
    """
    known = end_of_stream(tx, attempt_id=attempt_id, rank=rank, stream=stream) - offset
    fresh = data[known:] if known >= 0 else b""
    if fresh:
        values = {"attempt_id": attempt_id, "rank": rank, "stream": stream, "offset": offset + known, "data": fresh}
        tx.execute(insert(chunks).values(**values, received_at=now))
    return fresh


def end_of_stream(tx: Connection, *, attempt_id: str, rank: int, stream: str) -> int:
    """Bytes of the stream that are stored."""
    query = (
        select(chunks.c.offset + func.octet_length(chunks.c.data))
        .where(chunks.c.attempt_id == attempt_id, chunks.c.rank == rank, chunks.c.stream == stream)
        .order_by(chunks.c.offset.desc())
        .limit(1)
    )
    return tx.execute(query).scalar_one_or_none() or 0


def ends_of_streams(tx: Connection, attempt_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """For each attempt, bytes stored by `rank/stream`."""
    query = (
        select(
            chunks.c.attempt_id,
            chunks.c.rank,
            chunks.c.stream,
            func.max(chunks.c.offset + func.octet_length(chunks.c.data)),
        )
        .where(chunks.c.attempt_id.in_(attempt_ids))
        .group_by(chunks.c.attempt_id, chunks.c.rank, chunks.c.stream)
    )
    ends: dict[str, dict[str, int]] = {}
    for attempt_id, rank, stream, end in tx.execute(query).all():
        ends.setdefault(attempt_id, {})[f"{rank}/{stream}"] = end
    return ends


def read_chunks(
    tx: Connection,
    job_id: str,
    *,
    epoch: int | None,
    rank: int | None,
    streams: Sequence[str],
    after: int,
    limit: int,
) -> Sequence[Record]:
    """Pieces of output in order of arrival, with their `epoch`; `after` is the last `seq` that was read."""
    query = (
        select(chunks, attempts.c.epoch)
        .join(attempts, chunks.c.attempt_id == attempts.c.id)
        .where(attempts.c.job_id == job_id, chunks.c.seq > after, chunks.c.stream.in_(streams))
        .order_by(chunks.c.seq)
        .limit(limit)
    )
    if epoch is not None:
        query = query.where(attempts.c.epoch == epoch)
    if rank is not None:
        query = query.where(chunks.c.rank == rank)
    return tx.execute(query).all()


def last_chunks(tx: Connection, job_id: str, *, epoch: int, rank: int, limit: int, max_bytes: int) -> Sequence[Record]:
    """The latest pieces of one rank's output, newest first, each cut to its last bytes: `stream`, `data`, `whole`."""
    length = func.octet_length(chunks.c.data)
    query = (
        select(
            chunks.c.stream,
            func.substring(chunks.c.data, func.greatest(1, length - max_bytes + 1)).label("data"),
            (length <= max_bytes).label("whole"),
        )
        .join(attempts, chunks.c.attempt_id == attempts.c.id)
        .where(
            attempts.c.job_id == job_id,
            attempts.c.epoch == epoch,
            chunks.c.rank == rank,
            chunks.c.stream.in_(("stdout", "stderr")),
        )
        .order_by(chunks.c.seq.desc())
        .limit(limit)
    )
    return tx.execute(query).all()


def add_metrics(tx: Connection, rows: Sequence[dict[str, object]]) -> None:
    if rows:
        tx.execute(insert(metrics), list(rows))


def list_metrics(
    tx: Connection, job_id: str, *, name: str | None, rank: int | None, after: int, limit: int
) -> Sequence[Record]:
    """Oldest first."""
    query = select(metrics).where(metrics.c.job_id == job_id, metrics.c.seq > after)
    if name is not None:
        query = query.where(metrics.c.name == name)
    if rank is not None:
        query = query.where(metrics.c.rank == rank)
    return tx.execute(query.order_by(metrics.c.seq).limit(limit)).all()


def curves(tx: Connection, job_id: str, *, epoch: int, rank: int, max_names: int, max_points: int) -> Sequence[Record]:
    """What a rank reported in one attempt, thinned evenly; the last value of each metric stays.

    Columns `name`, `step`, `value`, by name and time.
    """
    numbered = (
        select(
            metrics.c.name,
            metrics.c.step,
            metrics.c.value,
            metrics.c.seq,
            func.dense_rank().over(order_by=metrics.c.name).label("name_number"),
            func.row_number().over(partition_by=metrics.c.name, order_by=metrics.c.seq).label("number"),
            func.count().over(partition_by=metrics.c.name).label("total"),
        )
        .where(metrics.c.job_id == job_id, metrics.c.epoch == epoch, metrics.c.rank == rank)
        .subquery()
    )
    stride = (numbered.c.total + max_points - 1) // max_points
    query = select(numbered.c.name, numbered.c.step, numbered.c.value).where(
        numbered.c.name_number <= max_names,
        or_(numbered.c.number % stride == 1 % stride, numbered.c.number == numbered.c.total),
    )
    return tx.execute(query.order_by(numbered.c.name, numbered.c.seq)).all()
