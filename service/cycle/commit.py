"""The only place where a plan becomes fact: each gang whole or not at all, and only if nothing has changed since."""

from datetime import datetime

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from protocol.states import AttemptState, Desired, EndReason, JobState, NodeState, PowerState
from scheduler.plan import Placement
from scheduler.problem import Shape
from service import attempts, power
from service.cycle.problem import Seen
from service.db import Record, notify
from service.ids import NewId
from service.power_states import Event
from service.store import arrays as array_store
from service.store import attempts as attempt_store
from service.store import cycles as cycle_store
from service.store import jobs as job_store
from service.store import nodes as node_store


class TermOver(Exception):
    """Another process leads now. Nothing of this plan may be committed."""


class Overtaken(Exception):
    """The cluster has changed under this placement: an ordinary outcome, the next cycle plans anew."""


def commit_gang(
    tx: Connection, placement: Placement, shape: Shape, seen: Seen, *, term: int, now: datetime, new_id: NewId
) -> None:
    """Grant one gang its devices.

    Args:
        tx: a transaction of its own; on an exception the caller must roll it back.
        seen: the versions that the plan was made from.

    Raises:
        TermOver: another process leads.
        Overtaken: the job, a node or a device is not as the plan saw it.
    """
    least_epoch = cycle_store.guard_term(tx, term)
    if least_epoch is None:
        raise TermOver(f"term {term} is over")
    wanted = {member.node: member for member in placement.members}
    rows = node_store.lock_nodes(tx, list(wanted))
    if len(rows) < len(wanted):
        raise Overtaken("a node is gone")
    for row in rows:
        if row.state != NodeState.READY.value or row.cordoned or row.incarnation != seen.incarnations[row.id]:
            raise Overtaken(f"node {row.id} is not as the plan saw it")
        if row.power != PowerState.ON.value or row.power_kept == PowerState.OFF.value:
            raise Overtaken(f"node {row.id} is off or to go off")
        millicores, memory_bytes = attempt_store.held_on_node(tx, row.id)
        if millicores + shape.millicores > row.millicores or memory_bytes + shape.memory_bytes > row.memory_bytes:
            raise Overtaken(f"node {row.id} has no room left")
        devices = wanted[row.id].devices
        if attempt_store.offered_devices(tx, row.id, devices, cap_w=shape.cap_w or None) != len(devices):
            raise Overtaken(f"node {row.id} does not offer all devices any more, or cannot cap them")
    array_id = seen.arrays.get(placement.job)
    if array_id is not None and not array_store.has_room(tx, array_id):
        raise Overtaken(f"array {array_id} has as many jobs running as it may")
    epoch = max(seen.epochs[placement.job] + 1, least_epoch)
    state = JobState.STARTING.value
    version = seen.versions[placement.job]
    if not job_store.change_job(tx, placement.job, old=JobState.QUEUED, version=version, state=state, epoch=epoch):
        raise Overtaken(f"job {placement.job} is not as the plan saw it")
    attempt_id = new_id("try")
    try:
        attempt_store.add_attempt(
            tx,
            attempt_id=attempt_id,
            job_id=placement.job,
            epoch=epoch,
            term=term,
            cap_w=shape.cap_w or None,
            slower=shape.slower,
            now=now,
        )
        for number, member in enumerate(placement.members):
            attempt_store.add_member(
                tx,
                attempt_id=attempt_id,
                member=number,
                node_id=member.node,
                millicores=shape.millicores,
                memory_bytes=shape.memory_bytes,
                device_ids=member.devices,
                share=shape.share,
                now=now,
            )
    except IntegrityError as error:
        raise Overtaken(f"a device for job {placement.job} is held by somebody else") from error
    names = [row.id for row in rows]
    job_store.add_event(tx, placement.job, kind="placed", now=now, epoch=epoch, nodes=names)
    for row in rows:
        notify(tx, f"node:{row.id}")
    notify(tx, f"job:{placement.job}")


def commit_move(tx: Connection, placement: Placement, *, resizes: bool, term: int, now: datetime) -> int:
    """Ask a job that runs to leave, so that it goes on at another place. The epoch of the attempt that is stopped.

    Args:
        tx: a transaction of its own; on an exception the caller must roll it back.
        resizes: it goes on on another number of nodes.

    Raises:
        TermOver: another process leads.
        Overtaken: the job does not run any more, or is being stopped.
    """
    if cycle_store.guard_term(tx, term) is None:
        raise TermOver(f"term {term} is over")
    live = attempt_store.live_attempt(tx, placement.job)
    attempt = live and attempt_store.lock_attempt(tx, live.id)
    if not attempt or attempt.state != AttemptState.RUNNING.value or attempt.desired != Desired.RUN.value:
        raise Overtaken(f"job {placement.job} does not run as the plan saw it")
    names = [member.node for member in placement.members]
    job_store.add_event(
        tx, placement.job, kind="resizing" if resizes else "moving", now=now, epoch=attempt.epoch, nodes=names
    )
    attempts.stop(tx, attempt, EndReason.MOVED, now=now)
    return attempt.epoch


def commit_off(tx: Connection, node_id: str, *, term: int, now: datetime) -> None:
    """Close an empty node, so that it can be switched off.

    Args:
        tx: a transaction of its own; on an exception the caller must roll it back.

    Raises:
        TermOver: another process leads.
        Overtaken: it is not on, is to stay on, or an attempt holds some of it.
    """
    row = _locked_node(tx, node_id, term)
    if row.power != PowerState.ON.value or row.power_kept == PowerState.ON.value:
        raise Overtaken(f"node {node_id} is not as the plan saw it")
    if attempt_store.held_members(tx, node_id):
        raise Overtaken(f"node {node_id} is not empty any more")
    power.happen(tx, row, Event.CLOSE, now=now)


def commit_boot(tx: Connection, node_id: str, *, term: int, now: datetime) -> None:
    """Have a node switched on. One that boots already, or is on, is as good.

    Args:
        tx: a transaction of its own; on an exception the caller must roll it back.

    Raises:
        TermOver: another process leads.
        Overtaken: it is closed to new work, or on its way off.
    """
    row = _locked_node(tx, node_id, term)
    if row.cordoned or row.power_kept == PowerState.OFF.value or row.power == PowerState.SUSPENDING.value:
        raise Overtaken(f"node {node_id} is not as the plan saw it")
    if row.power == PowerState.OFF.value:
        power.happen(tx, row, Event.CALL, now=now)


def _locked_node(tx: Connection, node_id: str, term: int) -> Record:
    if cycle_store.guard_term(tx, term) is None:
        raise TermOver(f"term {term} is over")
    row = node_store.find_node(tx, node_id, lock=True)
    if row is None:
        raise Overtaken(f"node {node_id} is gone")
    return row
