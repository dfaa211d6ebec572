"""How long jobs ran that have succeeded."""

from collections.abc import Collection, Sequence

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Float,
    Integer,
    Text,
    and_,
    case,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by

from protocol.states import JobState
from service.db import Record
from service.models import attempts, jobs, kind_speeds, members
from service.store.attempts import kind_of, size_of

_STATED_S = cast(jobs.c.spec["expected_run_s"].astext, Float)
_LEAST_NODES = cast(func.split_part(jobs.c.spec["nodes"].astext, "-", 1), Integer)
_RAN_S = cast(func.extract("epoch", attempts.c.ended_at - attempts.c.started_at), Float) / attempts.c.slower
"""How long an attempt ran, or would have without the power cap it had."""
_UNCAPPED = attempts.c.cap_w.is_(None)


def past_runs(tx: Connection, works: Collection[tuple[str, str]], limit: int) -> Sequence[Record]:
    """The latest runs of each (user id, signature), by size, the size that ran last first: columns `user_id`,
    `signature`; `nodes`, how many it had; `devices_per_node` and `device_share` of the spec; `kind` of the devices;
    `ran_s`, a list; `metered_j` and `metered_s`, what meters counted of those without a power cap (J), over how many
    device-seconds.

    Only jobs count that ran once and succeeded: another try may have gone on from a checkpoint.
    """
    users, signatures = zip(*sorted(works), strict=True) if works else ((), ())
    unnested = func.unnest(literal(list(users), ARRAY(Text)), literal(list(signatures), ARRAY(Text)))
    asked = unnested.table_valued(column("user_id", Text), column("signature", Text)).render_derived("asked")
    latest = (
        select(jobs.c.id, jobs.c.user_id, jobs.c.signature, jobs.c.spec, jobs.c.epoch, jobs.c.ended_at)
        .where(jobs.c.user_id == asked.c.user_id, jobs.c.signature == asked.c.signature)
        .where(jobs.c.state == JobState.SUCCEEDED.value, jobs.c.signature.is_not(None))
        .order_by(jobs.c.ended_at.desc(), jobs.c.id)  # a restored or replayed history has one answer
        .limit(limit)
        .lateral("latest")
    )
    runs = (
        select(
            latest.c.id,
            latest.c.user_id,
            latest.c.signature,
            latest.c.ended_at,
            size_of(attempts.c.id).label("nodes"),
            cast(latest.c.spec["devices_per_node"].astext, Integer).label("devices_per_node"),
            cast(latest.c.spec["device_share"].astext, Float).label("device_share"),
            kind_of(attempts.c.id).label("kind"),
            _RAN_S.label("ran_s"),
            case((_UNCAPPED, _of_members(members.c.metered_j)), else_=0.0).label("metered_j"),
            case((_UNCAPPED, _of_members(members.c.metered_s)), else_=0.0).label("metered_s"),
        )
        .select_from(asked.join(latest, true()).join(attempts, attempts.c.job_id == latest.c.id))
        .where(_is_only_try(latest.c.epoch))
        .subquery()
    )
    alike = [runs.c[name] for name in ("user_id", "signature", "nodes", "devices_per_node", "device_share", "kind")]
    ran_s = func.array_agg(aggregate_order_by(runs.c.ran_s, runs.c.ended_at.desc(), runs.c.id))
    metered = [func.sum(runs.c[name]).label(name) for name in ("metered_j", "metered_s")]
    query = select(*alike, ran_s.label("ran_s"), *metered).group_by(*alike)
    return tx.execute(query.order_by(func.max(runs.c.ended_at).desc(), *alike)).all()


def past_estimates(tx: Connection, user_ids: Collection[str], limit: int) -> Sequence[Record]:
    """The latest jobs of each user that had an estimate, ran once, on the number of nodes that the estimate speaks of,
    and succeeded: columns `user_id`, `stated_s`, `ran_s`.
    """
    asked = func.unnest(literal(sorted(user_ids), ARRAY(Text))).table_valued(column("user_id", Text))
    asked = asked.render_derived("asked")
    latest = (
        select(
            jobs.c.id,
            jobs.c.user_id,
            _STATED_S.label("stated_s"),
            _LEAST_NODES.label("nodes"),
            jobs.c.epoch,
            jobs.c.ended_at,
        )
        .where(jobs.c.user_id == asked.c.user_id, jobs.c.state == JobState.SUCCEEDED.value)
        .where(jobs.c.spec["expected_run_s"].astext.is_not(None))
        .order_by(jobs.c.ended_at.desc(), jobs.c.id)  # a restored or replayed history has one answer
        .limit(limit)
        .lateral("latest")
    )
    query = select(latest.c.user_id, latest.c.stated_s, _RAN_S.label("ran_s"))
    query = query.select_from(asked.join(latest, true()).join(attempts, attempts.c.job_id == latest.c.id))
    query = query.where(_is_only_try(latest.c.epoch), size_of(attempts.c.id) == latest.c.nodes)
    query = query.order_by(latest.c.ended_at.desc(), latest.c.id)
    return tx.execute(query).all()


def works_by_kind(tx: Connection, limit: int, least_s: float) -> Sequence[Record]:
    """Of the latest jobs that succeeded and ran for `least_s` at least: columns `user_id`, `signature`; `nodes`, how
    many they had; `devices_per_node` and `device_share` of the spec; `kind` of the devices, and `log_s`, the mean of
    the logarithms of their times (s).
    """
    latest = (
        select(jobs.c.id, jobs.c.user_id, jobs.c.signature, jobs.c.spec, jobs.c.epoch)
        .where(jobs.c.state == JobState.SUCCEEDED.value, jobs.c.signature.is_not(None))
        .order_by(jobs.c.ended_at.desc(), jobs.c.id)
        .limit(limit)
        .subquery()
    )
    runs = (
        select(
            latest.c.user_id,
            latest.c.signature,
            size_of(attempts.c.id).label("nodes"),
            latest.c.spec["devices_per_node"].astext.label("devices_per_node"),
            latest.c.spec["device_share"].astext.label("device_share"),
            kind_of(attempts.c.id).label("kind"),
            _RAN_S.label("ran_s"),
        )
        .join(attempts, attempts.c.job_id == latest.c.id)
        .where(_is_only_try(latest.c.epoch), least_s <= _RAN_S)
        .subquery()
    )
    alike = [runs.c[name] for name in ("user_id", "signature", "nodes", "devices_per_node", "device_share", "kind")]
    query = select(*alike, func.avg(func.ln(runs.c.ran_s)).label("log_s")).where(runs.c.kind != "")
    return tx.execute(query.group_by(*alike).order_by(*alike)).all()


def set_kind_speeds(tx: Connection, rows: Sequence[dict[str, object]]) -> None:
    """What is known of kinds from now on."""
    tx.execute(text("LOCK TABLE kind_speeds IN SHARE ROW EXCLUSIVE MODE"))
    tx.execute(delete(kind_speeds))
    if rows:
        tx.execute(insert(kind_speeds), list(rows))


def kind_speeds_known(tx: Connection) -> Sequence[Record]:
    """Columns `kind`, `log_speed`, `works`."""
    return tx.execute(select(kind_speeds)).all()


def _of_members(column: ColumnElement[float]) -> ColumnElement[float]:
    """The column's sum over the members of an attempt."""
    return select(func.sum(column)).where(members.c.attempt_id == attempts.c.id).correlate(attempts).scalar_subquery()


def _is_only_try(epoch: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether an attempt is the job's last, the one at `epoch`, and none before it has run."""
    earlier = attempts.alias("earlier")
    ran_before = exists().where(
        earlier.c.job_id == attempts.c.job_id, earlier.c.epoch < attempts.c.epoch, earlier.c.started_at.is_not(None)
    )
    return and_(attempts.c.epoch == epoch, attempts.c.started_at.is_not(None), ~ran_before)
