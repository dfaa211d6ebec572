"""The leader's part in switching nodes: commands are run, what comes of them is noted, and spare nodes are counted."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine

from protocol.states import NodeState, PowerState
from scheduler.budgets import boots_within
from scheduler.feasibility import is_empty
from scheduler.plan import Placement
from scheduler.problem import Problem
from service import nodes, power
from service.alarms import Alarm
from service.cycle.commit import Overtaken, TermOver, commit_boot, commit_off
from service.cycle.hooks import Ended, Hooks
from service.db import Record, snapshot
from service.power_pools import PowerPool, pool_of
from service.power_states import LINGER_S, Due, Event, Way, due
from service.store import alarms as alarm_store
from service.store import attempts as attempt_store
from service.store import cycles as cycle_store
from service.store import nodes as node_store
from service.store import power as store

log = logging.getLogger(__name__)

ON_THE_WAY = (PowerState.SUSPENDING.value, PowerState.BOOTING.value)


class Switching:
    """Carries out what was committed about power states. Only the leader calls it.

    Args:
        now: the time in UTC, for records.
        max_attempts: attempts that a job gets in all when nodes are lost under it.
    """

    def __init__(
        self,
        engine: Engine,
        pools: Sequence[PowerPool],
        hooks: Hooks,
        *,
        now: Callable[[], datetime],
        max_attempts: int,
    ) -> None:
        self._engine = engine
        self._pools = pools
        self._hooks = hooks
        self._now = now
        self._max_attempts = max_attempts

    def tend(self, term: int) -> None:
        """Note what commands have ended, and do what is due. Raises TermOver."""
        if not self._pools:
            return
        for end in self._hooks.ended():
            self._note(end, term)
        with snapshot(self._engine) as tx:
            rows = store.unsettled(tx)
        for row in rows:
            pool = pool_of(self._pools, row.id)
            if pool is None:
                continue
            if row.power in ON_THE_WAY:
                self._go_on(row, pool, term)
            elif _may_have_gone(row):
                self._change(row, Event.CALL, term)
            elif row.hook_retry_at is None or row.hook_retry_at <= self._now():
                self._keep(row, term)

    def boot(self, names: Collection[str], term: int) -> set[str]:
        """Have these nodes switched on; those that cannot be any more. Raises TermOver."""
        return {name for name in names if not self._commit(commit_boot, name, term)}

    def switch_off(self, names: Collection[str], term: int) -> None:
        """Close these nodes, if they are still empty, to switch them off. Raises TermOver."""
        for name in names:
            self._commit(commit_off, name, term)

    def stop(self) -> None:
        """Another process leads: end the commands that run here."""
        self._hooks.stop()

    def _keep(self, row: Record, term: int) -> None:
        """What an administrator wants of a node that is on or off, as soon as it can be."""
        if row.power_kept != row.power:
            self._commit(commit_off if row.power_kept == PowerState.OFF.value else commit_boot, row.id, term)

    def _commit(self, commit: Callable[..., None], name: str, term: int) -> bool:
        try:
            with self._engine.begin() as tx:
                commit(tx, name, term=term, now=self._now())
        except Overtaken as race:
            log.debug("not switched: %s", race)
            return False
        return True

    def _go_on(self, row: Record, pool: PowerPool, term: int) -> None:
        match due(_way(row), pool, self._now()):
            case Due.RUN_HOOK if not self._hooks.runs(row.id):
                self._run_hook(row, pool, term)
            case Due.WENT:
                self._change(row, Event.WENT, term)
            case Due.STAYED:
                why = f"its command ended well, but its agent was still heard {LINGER_S:g} s later"
                self._change(row, Event.STAYED, term, fault=why)
            case Due.MISSING:
                self._change(row, Event.MISSING, term, boot_limit_s=pool.boot_limit_s)
            case _:
                pass

    def _run_hook(self, row: Record, pool: PowerPool, term: int) -> None:
        with self._engine.begin() as tx:
            node = _locked(tx, row, term)
            if node is None:
                return
            node_store.change_node(tx, node.id, hook_began_at=self._now())
        on = row.power == PowerState.BOOTING.value
        log.info("switching node %s %s", row.id, "on" if on else "off")
        try:
            command = pool.command(on=on, name=row.id, address=row.address)
        except ValueError as error:
            self._note(Ended(node=row.id, fault=str(error)), term)
            return
        self._hooks.start(row.id, command, pool.hook_limit_s)

    def _note(self, end: Ended, term: int) -> None:
        """A command has ended. One that failed to switch a node off leaves it on and open until it is tried again."""
        with self._engine.begin() as tx:
            _guard(tx, term)
            node = node_store.find_node(tx, end.node, lock=True)
            if node is None or node.hook_began_at is None:
                return  # the node was heard before its command ended
            if end.fault is None:
                node_store.change_node(tx, node.id, hook_began_at=None, hook_ended_at=self._now())
                return
            power.note_failure(tx, node, end.fault, now=self._now())
            power.happen(tx, node, Event.STAYED, now=self._now())
        log.error("node %s could not be switched: %s", end.node, end.fault)

    def _change(
        self, row: Record, event: Event, term: int, *, fault: str | None = None, boot_limit_s: float = 0.0
    ) -> None:
        now = self._now()
        with self._engine.begin() as tx:
            node = _locked(tx, row, term)
            if node is None:
                return
            if event is Event.WENT and node.state == NodeState.READY.value:
                seen_at = node.last_seen_at
                nodes.lose(tx, node.id, last_seen_at=seen_at, max_attempts=self._max_attempts, now=now)
            if fault is not None:
                power.note_failure(tx, node, fault, now=now)
            if event is Event.MISSING:
                _set_aside(tx, node, boot_limit_s, now)
                event = Event.SILENT if attempt_store.held_members(tx, node.id) else event
            power.happen(tx, node, event, now=now)


def _set_aside(tx: Connection, node: Record, limit_s: float, now: datetime) -> None:
    said = f" ({node.hook_error})" if node.hook_error else ""
    why = f"it was not heard within {limit_s:g} s since it was to boot{said}"
    node_store.change_node(tx, node.id, cordoned=True, closed_because=why)
    message = f"{node.id} gets nothing new: {why}; mend it, then `ergon node uncordon {node.id}`"
    alarm_store.put(tx, Alarm.NODE_CLOSED, node.id, message, now=now)
    log.error("node %s is set aside: %s", node.id, why)


def _guard(tx: Connection, term: int) -> None:
    if cycle_store.guard_term(tx, term) is None:
        raise TermOver(f"term {term} is over")


def _locked(tx: Connection, row: Record, term: int) -> Record | None:
    """The node's row, locked, if it is still as it was read: in the same state since then, and not heard meanwhile."""
    _guard(tx, term)
    node = node_store.find_node(tx, row.id, lock=True)
    if node is None or (node.power, node.power_since, node.last_seen_at) != (
        row.power,
        row.power_since,
        row.last_seen_at,
    ):
        return None
    return node


def _may_have_gone(row: Record) -> bool:
    """Whether it is lost, and may be off although it counts as on: its `off` command failed and may have worked, or it
    was heard without a boot, which may have been an old message. Not if it was set aside: a person looks at it then.
    """
    lost = row.power == PowerState.ON.value and row.state == NodeState.LOST.value
    return lost and row.hook_failures > 0 and row.power_kept != PowerState.OFF.value and not row.cordoned


def _way(row: Record) -> Way:
    return Way(
        state=PowerState(row.power),
        since=row.power_since,
        hook_began_at=row.hook_began_at,
        hook_ended_at=row.hook_ended_at,
        retry_at=row.hook_retry_at,
        left=row.state == NodeState.LOST.value,
        last_seen_at=row.last_seen_at,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spare:
    """A node of a pool with nothing to do, on or booting, that draws `base_w` (W) idle.

    `goes_at` is when it may be switched off, None while it boots.
    """

    node: str
    pool: PowerPool
    base_w: float
    goes_at: datetime | None


def read_spares(tx: Connection, problem: Problem, pools: Sequence[PowerPool], *, now: datetime) -> tuple[Spare, ...]:
    """The nodes of `problem` that nothing runs on and nothing has claimed, as far as they may be switched."""
    if not pools:
        return ()
    rows = {row.id: row for row in node_store.list_nodes(tx)}
    released = store.last_releases(tx, now - timedelta(seconds=max(pool.idle_s for pool in pools)))
    found: list[Spare] = []
    for node in problem.nodes:
        pool, row = pool_of(pools, node.id), rows[node.id]
        if pool is None or not (node.on and node.open and node.can_switch and is_empty(node)):
            continue
        goes_at = None
        if row.power == PowerState.ON.value:
            begun = row.power_since or row.registered_at
            idle_since = max(begun, row.registered_at, released.get(node.id, begun))
            goes_at = max(idle_since + timedelta(seconds=pool.idle_s), row.hook_retry_at or idle_since)
            if row.power_since is not None:
                goes_at = max(goes_at, row.power_since + timedelta(seconds=pool.min_on_s))
        found.append(Spare(node=node.id, pool=pool, base_w=node.power.base_w, goes_at=goes_at))
    return tuple(found)


def may_go(spares: Sequence[Spare], now: datetime) -> set[str]:
    """Which of them need not stay on, those that draw most first: each pool's reserve does, and those that were not
    idle for long."""
    left = {spare.pool.name: -spare.pool.warm for spare in spares}
    for spare in spares:
        left[spare.pool.name] += 1
    going: set[str] = set()
    for spare in sorted(spares, key=lambda spare: (-spare.base_w, spare.node)):
        if spare.goes_at is not None and spare.goes_at <= now and left[spare.pool.name] > 0:
            left[spare.pool.name] -= 1
            going.add(spare.node)
    return going


def to_warm_up(
    problem: Problem, placements: Sequence[Placement], spares: Sequence[Spare], pools: Sequence[PowerPool]
) -> list[str]:
    """Nodes to boot so that every pool has its reserve, those whose boot costs least first, as far as the power budgets
    let them beside what starts. None that work is placed on: those boot anyway.
    """
    used = {member.node for placement in placements for member in placement.members}
    names: list[str] = []
    for pool in pools:
        short = pool.warm - sum(spare.pool.name == pool.name for spare in spares)
        off = [node for node in problem.nodes if not node.on and node.open and pool_of(pools, node.id) == pool]
        off.sort(key=lambda node: (node.power.boot_j, node.id))
        names += [node.id for node in off[: max(0, short)] if node.id not in used]
    return boots_within(problem, placements, names)
