"""The allocation and energy report.

Each node's time is cut into stretches during which the same jobs hold it; `scheduler.power` prices every stretch, so
bills follow the same model as the planner's promises. Windows are half open, [start, end), in UTC.
"""

import statistics
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from sqlalchemy import Connection

from protocol.reports import AllocationReport, NodeUsage, PlanSummary, Quality, UserUsage
from protocol.states import PowerState
from scheduler.power import Holding, Inventory, Reading, node_power, price_stretch, switched_j
from scheduler.problem import WHOLE_DEVICE, NodePower
from service.auth import Person
from service.cycle.problem import inventory_of
from service.db import Record
from service.store import cycles as cycle_store
from service.store import nodes as node_store
from service.store import power as power_store
from service.store import usage as store
from service.tariffs import Measure, Tariff

J_PER_KWH = 3.6e6
S_PER_HOUR = 3600.0


@dataclass(slots=True)
class _Sum:
    """What adds up for one node or one user."""

    device_s: float = 0.0
    energy_j: float = 0.0
    idle_j: float = 0.0
    available_s: float = 0.0
    off_s: float = 0.0
    boots: int = 0
    off_j: float = 0.0
    boot_j: float = 0.0
    needless_j: float = 0.0
    cost: float = 0.0
    priced_j: float = 0.0
    carbon_g: float = 0.0
    counted_j: float = 0.0
    jobs: set[str] = field(default_factory=set)
    qualities: set[str] = field(default_factory=set)

    def draw(self, joules: float, at: datetime, tariff: Tariff) -> None:
        """Add energy, with its cost and CO2 where they are known; `at` is in the stretch, during which both hold."""
        self.energy_j += joules
        kwh = joules * tariff.pue / J_PER_KWH
        if (price := tariff.at(at, "price")) is not None:
            self.cost += kwh * price
            self.priced_j += joules
        if (carbon_g := tariff.at(at, "carbon")) is not None:
            self.carbon_g += kwh * carbon_g
            self.counted_j += joules


def report(tx: Connection, person: Person, *, start: datetime, end: datetime, tariff: Tariff) -> AllocationReport:
    """The report over [start, end). A user gets the own line only.

    Args:
        end: not after the present: what has not happened cannot be reported.
    """
    nodes, users = _add_up(tx, start, end, tariff)
    known = [*nodes.values(), *([] if nodes else users.values())]
    for_all = AllocationReport(
        start=start,
        end=end,
        pue=tariff.pue,
        price_per_kwh=_mean_rate(known, tariff, "price"),
        currency=tariff.currency if tariff.knows("price") else None,
        carbon_g_per_kwh=_mean_rate(known, tariff, "carbon"),
        nodes=[],
        users=[
            _user_usage(name, total, tariff)
            for name, total in sorted(users.items())
            if person.only_jobs_of is None or name == person.name
        ],
        plans=_plans(cycle_store.cycles_between(tx, start, end)),
    )
    if person.only_jobs_of is not None:
        return for_all
    devices = {node: len(rows) for node, rows in _by_node(node_store.list_devices(tx)).items()}
    node_lines = [_node_usage(node, devices.get(node, 0), total) for node, total in sorted(nodes.items())]
    total_kwh = sum(line.energy_kwh for line in node_lines)
    least_kwh = total_kwh - sum(total.needless_j for total in nodes.values()) / J_PER_KWH
    whole: dict[str, object] = {
        "nodes": node_lines,
        "idle_device_hours": sum(line.idle_device_hours for line in node_lines),
        "idle_energy_kwh": sum(line.idle_energy_kwh for line in node_lines),
        "total_energy_kwh": total_kwh,
        "facility_energy_kwh": total_kwh * tariff.pue,
        "off_energy_kwh": sum(line.off_energy_kwh for line in node_lines),
        "boot_energy_kwh": sum(line.boot_energy_kwh for line in node_lines),
        "least_energy_kwh": least_kwh,
        "energy_gap": (total_kwh - least_kwh) / least_kwh if least_kwh > 0 else None,
        "cost": sum(total.cost for total in nodes.values()) if tariff.knows("price") else None,
        "priced_share": _share(nodes.values(), "price") if tariff.knows("price") else None,
        "carbon_kg": sum(total.carbon_g for total in nodes.values()) / 1_000 if tariff.knows("carbon") else None,
        "carbon_share": _share(nodes.values(), "carbon") if tariff.knows("carbon") else None,
        "quality": _quality(line.quality for line in node_lines),
    }
    return for_all.model_copy(update=whole)


def _share(totals: Iterable[_Sum], of: Measure) -> float:
    """The part of the energy whose price (or CO2) is known."""
    sums = list(totals)
    energy_j = sum(total.energy_j for total in sums)
    return sum(total.priced_j if of == "price" else total.counted_j for total in sums) / energy_j if energy_j else 1.0


def _mean_rate(totals: Iterable[_Sum], tariff: Tariff, of: Measure) -> float | None:
    """What a kWh at the meter cost (or its CO2 in g) in the mean, as far as it is known."""
    sums = list(totals)
    kwh = sum(total.priced_j if of == "price" else total.counted_j for total in sums) * tariff.pue / J_PER_KWH
    if not tariff.steps or not kwh:
        return tariff.price_per_kwh if of == "price" else tariff.carbon_g_per_kwh
    return sum(total.cost if of == "price" else total.carbon_g for total in sums) / kwh


def _add_up(tx: Connection, start: datetime, end: datetime, tariff: Tariff) -> tuple[dict[str, _Sum], dict[str, _Sum]]:
    """Sums by node and by user."""
    sessions = _by_node(store.sessions_between(tx, start, end))
    holdings = _by_node(store.holdings_between(tx, start, end))
    samples = _by_node(store.samples_between(tx, start, end))
    spells = _by_node(power_store.spells_between(tx, start, end))
    devices = _by_node(node_store.list_devices(tx))
    nodes: dict[str, _Sum] = {}
    users: defaultdict[str, _Sum] = defaultdict(_Sum)
    for row in node_store.list_nodes(tx):
        if row.id not in sessions and row.id not in spells:
            continue
        total = nodes[row.id] = _Sum()
        inventory = inventory_of(row, devices.get(row.id, []))
        power = node_power(inventory)
        for spell in spells.get(row.id, []):
            _price_spell(power, spell, sessions.get(row.id, []), start, end, tariff, total)
        for session in sessions.get(row.id, []):
            first, last = max(start, session.started_at), min(end, session.ended_at or end)
            total.available_s += session.devices * max(0.0, (last - first).total_seconds())
            for begin, finish, held in _stretches(holdings.get(row.id, []), first, last, tariff):
                _price(inventory, samples.get(row.id, []), begin, finish, held, tariff, total, users)
        total.needless_j = total.boot_j + total.idle_j * (1 - power.off_w / power.base_w if power.base_w else 1.0)
    return nodes, users


def _price_spell(
    power: NodePower,
    spell: Record,
    sessions: Sequence[Record],
    start: datetime,
    end: datetime,
    tariff: Tariff,
    total: _Sum,
) -> None:
    """Add what the node drew while it was not on: off, booting, or on its way off with its agent gone already."""
    first, last = max(start, spell.began_at), min(end, spell.ended_at or end)
    boots, suspends = (spell.state == state.value for state in (PowerState.BOOTING, PowerState.SUSPENDING))
    total.qualities.add("modelled")
    total.boots += boots and spell.began_at >= start
    for begin, finish in tariff.pieces(first, last):
        seconds = (finish - begin).total_seconds()
        if suspends:
            heard = (min(finish, row.ended_at or end) - max(begin, row.started_at) for row in sessions)
            joules = power.base_w * max(0.0, seconds - sum(max(0.0, part.total_seconds()) for part in heard))
            total.draw(joules, begin, tariff)
            total.idle_j += joules
            continue
        off_j, boot_j = switched_j(power, off_s=0.0 if boots else seconds, boot_s=seconds if boots else 0.0)
        total.off_s += 0.0 if boots else seconds
        total.off_j += off_j
        total.boot_j += boot_j
        total.draw(off_j + boot_j, begin, tariff)


def _stretches(
    holdings: Sequence[Record], first: datetime, last: datetime, tariff: Tariff
) -> Iterable[tuple[datetime, datetime, list[Record]]]:
    """Cut [first, last) where a job gets or leaves the node, or the tariff changes; with each piece, what holds it."""
    cuts = {first, last, *tariff.changes(first, last)}
    for row in holdings:
        cuts.update(moment for moment in (row.granted_at, row.released_at) if moment and first < moment < last)
    ordered = sorted(cuts)
    for begin, finish in pairwise(ordered):
        held = [row for row in holdings if row.granted_at <= begin and (row.released_at or last) >= finish]
        yield begin, finish, held


def _price(
    inventory: Inventory,
    samples: Sequence[Record],
    begin: datetime,
    finish: datetime,
    held: Sequence[Record],
    tariff: Tariff,
    total: _Sum,
    users: dict[str, _Sum],
) -> None:
    """Add one stretch to the node's sum and to those of the users who hold it."""
    seconds = (finish - begin).total_seconds()
    present = {device.id for device in inventory.devices}
    own = _no_more_than_whole(held)
    work = [
        Holding(
            holder=row.user_name,
            devices={device: share for device, share in devices.items() if device in present},
            millicores=row.millicores,
        )
        for row, devices in zip(held, own, strict=True)
    ]
    bill = price_stretch(inventory, _reading(samples, begin, finish, held), work)
    total.draw(bill.total_j, begin, tariff)
    total.idle_j += bill.idle_j
    total.qualities.add(bill.quality)
    for row, devices in zip(held, own, strict=True):
        user = users[row.user_name]
        user.jobs.add(row.job_id)
        device_s = sum(devices.values()) / WHOLE_DEVICE * seconds
        user.device_s += device_s
        user.qualities.add(bill.quality)
        total.device_s += device_s
    for name, joules in bill.by_holder.items():
        users[name].draw(joules, begin, tariff)


def _no_more_than_whole(held: Sequence[Record]) -> list[dict[str, int]]:
    """Thousandths of each device that each holds.

    After a clock stepped back, a device may be granted anew before its release: what goes beyond the whole of it is
    not counted, the latest grant first.
    """
    left: defaultdict[str, int] = defaultdict(lambda: WHOLE_DEVICE)
    own: list[dict[str, int]] = []
    for row in held:
        shares: Counter[str] = Counter()
        for device, thousandths in zip(row.device_ids, row.thousandths, strict=True):
            counted = min(int(thousandths), left[device])
            left[device] -= counted
            shares[device] += counted
        own.append({device: share for device, share in shares.items() if share})
    return own


def _reading(samples: Sequence[Record], begin: datetime, finish: datetime, held: Sequence[Record]) -> Reading:
    """What was measured during the stretch. Time without a sample counts the held cores as busy, as the planner does.

    A counter that was read during at least half of the stretch stands for all of it; otherwise the model does.
    """
    seconds = (finish - begin).total_seconds()
    held_cores = sum(row.millicores for row in held) / 1000
    core_s, sampled_s = 0.0, 0.0
    counted: defaultdict[str | None, float] = defaultdict(float)
    counted_s: defaultdict[str | None, float] = defaultdict(float)
    busy: defaultdict[str, float] = defaultdict(float)
    covered: defaultdict[str, float] = defaultdict(float)
    for row in _overlapping(samples, begin, finish):
        length = (row.ended_at - row.started_at).total_seconds()
        overlap = (min(finish, row.ended_at) - max(begin, row.started_at)).total_seconds()
        if overlap <= 0 or length <= 0:
            continue
        if row.energy_j is not None:
            counted[row.device_id] += row.energy_j * overlap / length
            counted_s[row.device_id] += overlap
        if row.device_id is None and row.busy_cores is not None:
            core_s += row.busy_cores * overlap
            sampled_s += overlap
        if row.device_id is not None and row.utilisation is not None:
            busy[row.device_id] += row.utilisation * overlap
            covered[row.device_id] += overlap
    core_s += held_cores * max(0.0, seconds - sampled_s)
    energy_j = {
        device: joules * seconds / counted_s[device]
        for device, joules in counted.items()
        if counted_s[device] >= seconds / 2
    }
    return Reading(
        seconds=seconds,
        busy_cores=core_s / seconds if seconds else 0.0,
        cpu_energy_j=energy_j.get(None),
        device_energy_j={device: joules for device, joules in energy_j.items() if device is not None},
        utilisation={device: busy[device] / covered[device] for device in busy},
    )


LONGEST_SAMPLE_S = 3_600.0
"""A sample longer than this is not looked for: agents send one every few seconds."""


def _overlapping(samples: Sequence[Record], begin: datetime, finish: datetime) -> Iterable[Record]:
    earliest = bisect_left(samples, begin.timestamp() - LONGEST_SAMPLE_S, key=lambda row: row.started_at.timestamp())
    for row in samples[earliest:]:
        if row.started_at >= finish:
            return
        if row.ended_at > begin:
            yield row


def _plans(rows: Sequence[Record]) -> PlanSummary:
    gaps, times = [row.gap for row in rows], [row.solve_s for row in rows]
    return PlanSummary(
        cycles=len(rows),
        placements=sum(row.committed for row in rows),
        gap_median=statistics.median(gaps) if gaps else None,
        gap_max=max(gaps, default=None),
        solve_s_median=statistics.median(times) if times else None,
        solve_s_max=max(times, default=None),
    )


def _node_usage(node: str, devices: int, total: _Sum) -> NodeUsage:
    return NodeUsage(
        node=node,
        devices=devices,
        available_device_hours=total.available_s / S_PER_HOUR,
        allocated_device_hours=total.device_s / S_PER_HOUR,
        idle_device_hours=max(0.0, total.available_s - total.device_s) / S_PER_HOUR,
        energy_kwh=total.energy_j / J_PER_KWH,
        idle_energy_kwh=total.idle_j / J_PER_KWH,
        quality=_quality(total.qualities),
        off_hours=total.off_s / S_PER_HOUR,
        boots=total.boots,
        off_energy_kwh=total.off_j / J_PER_KWH,
        boot_energy_kwh=total.boot_j / J_PER_KWH,
    )


def _user_usage(name: str, total: _Sum, tariff: Tariff) -> UserUsage:
    return UserUsage(
        user=name,
        jobs=len(total.jobs),
        allocated_device_hours=total.device_s / S_PER_HOUR,
        energy_kwh=total.energy_j / J_PER_KWH,
        quality=_quality(total.qualities),
        cost=total.cost if tariff.knows("price") else None,
        carbon_kg=total.carbon_g / 1_000 if tariff.knows("carbon") else None,
    )


def _quality(parts: Iterable[str]) -> Quality:
    found = set(parts)
    if found == {"measured"}:
        return "measured"
    return "modelled" if found <= {"modelled"} else "mixed"


def _by_node(rows: Sequence[Record]) -> dict[str, list[Record]]:
    grouped: defaultdict[str, list[Record]] = defaultdict(list)
    for row in rows:
        grouped[row.node_id].append(row)
    return dict(grouped)
