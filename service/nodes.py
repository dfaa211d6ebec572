"""What happens to nodes: they register, are looked at, and are lost."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from protocol.nodes import DeviceReport, NodePage, NodeReport, NodeView
from protocol.states import AttemptState, NodeState
from protocol.sync import RegisterRequest, RegisterResponse
from protocol.version import why_mismatched
from scheduler.power import InstalledDevice, Inventory, node_power
from service import attempts, fencing, power, staging, views
from service.auth import Person
from service.cycle.leases import QUIET_S
from service.db import Record, notify
from service.power_states import Event
from service.refusals import AnotherMachine, DeviceTaken, ProtocolMismatch, UnknownNode
from service.store import attempts as attempt_store
from service.store import nodes as store

OTHER_USER = "(another user)"
"""Stands for a job that the caller may not see."""


def register(
    tx: Connection,
    name: str,
    request: RegisterRequest,
    *,
    lease_s: float,
    max_attempts: int,
    now: datetime,
) -> RegisterResponse:
    """An agent presents itself as the node `name`. It gets a new incarnation; an older one is refused from now on.

    Attempts of before go on if the machine has not booted since; otherwise they are over.

    Raises:
        ProtocolMismatch: agent and service do not speak the same version.
        DeviceTaken: a node that is ready offers one of the devices.
        AnotherMachine: so it would be for the node, and the one before is there or may still run something.
    """
    check_protocol(request.protocol)
    report = request.report
    node = store.find_node(tx, name, lock=True)
    _check_devices_free(tx, name, report)
    if node is not None and node.boot_id != report.boot_id:
        _check_same_machine(tx, node, report)
    values: dict[str, object] = {
        "boot_id": report.boot_id,
        "state": NodeState.READY.value,
        "address": report.address,
        "cpu_model": report.cpu_model,
        "millicores": round(report.cpu_cores * 1000),
        "cpu_threads": report.cpu_threads,
        "memory_bytes": report.memory_bytes,
        "labels": report.labels,
        "containment": report.containment,
        "limits": None,  # its agent says so when it is heard next
        "container_runtime": report.container_runtime,
        "container_fault": None if report.container_runtime else report.container_fault or None,
        "registered_at": now,
        "last_seen_at": now,
    }
    incarnation = max((node.incarnation if node else 0) + 1, fencing.least(now))
    if node is None:
        store.add_node(tx, id=name, incarnation=incarnation, cordoned=False, **values)
    else:
        values |= {"report_seq": 0, "samples_taken": 0}
        store.close_session(tx, name, ended_at=node.last_seen_at)
        store.change_node(tx, name, incarnation=incarnation, **values)
        booted = node.boot_id != report.boot_id
        power.happen(tx, node, Event.BOOTED if booted else Event.HEARD, now=now)
        if booted:
            attempts.lose_node(tx, name, release=True, max_attempts=max_attempts, now=now)
    store.offer_devices(tx, name, [_device_row(device) for device in report.devices])
    store.open_session(
        tx,
        node_id=name,
        num_devices=len(report.devices),
        base_w=node_power(inventory_of(report)).base_w,
        now=now,
    )
    notify(tx, "cycle")
    return RegisterResponse(
        node=name,
        incarnation=incarnation,
        lease_s=lease_s,
        numbered_reports=True,
        checkpoints=True,
        stores_checkpoints=True,
        knows_out_of_memory=True,
        state_folders=True,
        knows_limits=True,
        knows_caps=True,
        knows_caches=True,
    )


def lose(tx: Connection, node_id: str, *, last_seen_at: datetime, max_attempts: int, now: datetime) -> bool:
    """The node has left, or its lease is over: its attempts end here, and nothing new goes there.

    False if it was heard since.
    """
    if not store.mark_lost(tx, node_id, last_seen_at=last_seen_at):
        return False
    store.close_session(tx, node_id, ended_at=last_seen_at)
    attempts.lose_node(tx, node_id, release=False, max_attempts=max_attempts, now=now)
    notify(tx, "cycle")
    return True


def list_page(tx: Connection, person: Person, *, after: str, limit: int) -> NodePage:
    """One page of nodes by name."""
    rows = store.list_nodes(tx, after=after, limit=limit + 1)
    holders = _holders(tx, person)
    base_w = store.current_base_w(tx)
    kept = staging.read_kept(tx)
    items = [
        views.node(row, store.list_devices(tx, row.id), holders, base_w.get(row.id, 0.0), kept[row.id])
        for row in rows[:limit]
    ]
    return NodePage(items=items, next=rows[limit - 1].id if len(rows) > limit else None)


def get(tx: Connection, person: Person, name: str) -> NodeView:
    """One node.

    Raises:
        UnknownNode: there is none of this name.
    """
    row = store.find_node(tx, name)
    if row is None:
        raise UnknownNode(f"there is no node {name!r}; `ergon nodes` lists them")
    holders = _holders(tx, person)
    base_w = store.current_base_w(tx).get(row.id, 0.0)
    return views.node(row, store.list_devices(tx, row.id), holders, base_w, staging.read_kept(tx)[name])


def _holders(tx: Connection, person: Person) -> dict[str, list[views.Holder]]:
    """Who holds each device that is held; a user is not told the ids of other people's jobs."""
    holders: dict[str, list[views.Holder]] = {}
    for held in attempt_store.held_devices(tx):
        holder = views.Holder(
            job=held.job_id if person.only_jobs_of in (None, held.user_id) else OTHER_USER,
            has_ended=held.state == AttemptState.ENDED.value,
            thousandths=int(held.thousandths),
        )
        holders.setdefault(held.device_id, []).append(holder)
    return holders


def check_protocol(version: int) -> None:
    """Raises ProtocolMismatch unless an agent speaks our version."""
    if why := why_mismatched("agent", version):
        raise ProtocolMismatch(why)


def inventory_of(report: NodeReport) -> Inventory:
    """What the power model needs of a node's report."""
    return Inventory(
        cpu_threads=report.cpu_threads,
        memory_bytes=report.memory_bytes,
        devices=tuple(
            InstalledDevice(id=device.id, kind=device.kind, limit_w=device.power_limit_w) for device in report.devices
        ),
        cpu_model=report.cpu_model,
    )


def _device_row(device: DeviceReport) -> dict[str, object]:
    return {
        "id": device.id,
        "kind": device.kind,
        "number": device.index,
        "memory_bytes": device.memory_bytes,
        "power_limit_w": device.power_limit_w,
        "unfit_reason": None,  # its agent says so anew if it is
        "least_cap_w": None,  # the same
    }


def _check_same_machine(tx: Connection, node: Record, report: NodeReport) -> None:
    """Another boot means that nothing of before still runs, if it is of the same machine: not if a credential was
    copied. Two machines have no GPU and no machine's id in common."""
    known = _marks([device.id for device in store.list_devices(tx, node.id)])
    told = _marks([device.id for device in report.devices])
    if not known or not told or known & told:
        return
    if node.state == NodeState.READY.value or attempt_store.held_members(tx, node.id):
        raise AnotherMachine(
            f"node {node.id!r} is another machine, heard at {views.timestamp(node.last_seen_at)}; let this one join "
            f"with a name and a credential of its own, or, if it replaces that one, switch that one off and say "
            f"`ergon node confirm-down {node.id}` {QUIET_S:g} s later"
        )


def _marks(device_ids: Sequence[str]) -> set[str]:
    """What of these ids only one machine has: GPUs, and of CPU slots the machine's id, for their numbers may change."""
    return {device.rpartition(":")[0] if device.startswith("cpu:") else device for device in device_ids}


def _check_devices_free(tx: Connection, node_id: str, report: NodeReport) -> None:
    for owner in store.owners_of_devices(tx, [device.id for device in report.devices]):
        if owner.node_id != node_id and owner.state == NodeState.READY.value:
            raise DeviceTaken(
                f"device {owner.id} is offered by node {owner.node_id!r}; stop that agent, or give each agent on a "
                "machine its own --cpu-slots and GPUs"
            )
