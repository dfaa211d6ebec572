"""What it saves to plan jobs that may wait together: the same jobs at the prices of three real days.

    python -m bench.prices [--seeds 8]

Two nodes of eight accelerators, always on. `evening`: 40 jobs come between 15 and 18 h, one in five may not wait.
`day`: jobs come all day and offer 60 % of what the accelerators can do, three in ten may not wait. The others may
wait for up to 12 hours. Each lot is run three times through `scheduler.solve.solve`, at every arrival, at every end
and every quarter of an hour: `at once`, where no job waits for a price; `each for itself`, where each is handed over
when the hour has come that would be cheapest if it had the nodes alone; `together`, as the service does it.

Counted is the energy of the jobs' own accelerators, which is all that differs, at the price of its time. `late` jobs
start after their time is up, as there was no room. The bound is a linear program: jobs could be stopped and resumed
and cut to any width, and none of those that may wait is late.

Prices: the day-ahead market of Belgium from 13 to 15 December 2022, hour by hour (ENTSO-E Transparency Platform).
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from bench.record import keep, quantile, table
from scheduler.ahead import J_PER_KWH, Model, own_best
from scheduler.plan import Plan
from scheduler.problem import Ahead, Device, Job, MayWait, Node, NodePower, Problem, Rate, Shape
from scheduler.solve import solve

H = 3_600.0
QUARTER_S = 900.0
NODES, DEVICES = 2, 8
ACTIVE_W = 400.0
WAIT_S = 12 * H
KIND = "h100"
EUR_PER_MWH = (
    *(311.7, 299.66, 288.53, 279.0, 284.16, 316.07, 368.9, 499.7, 571.76, 553.29, 550.1, 553.0),
    *(502.49, 506.03, 552.71, 570.25, 590.0, 665.01, 657.28, 555.2, 540.9, 455.99, 394.0, 345.8),
    *(325.0, 299.95, 301.08, 285.25, 287.47, 313.0, 368.82, 494.97, 539.99, 569.72, 565.18, 568.01),
    *(503.85, 494.7, 514.95, 528.53, 545.0, 590.0, 557.0, 520.57, 487.9, 396.67, 351.72, 342.0),
    *(310.41, 299.56, 294.46, 271.39, 274.14, 291.8, 344.16, 477.74, 490.03, 489.66, 474.55, 483.4),
    *(457.83, 452.89, 455.05, 469.93, 485.03, 500.0, 499.91, 485.53, 439.9, 367.7, 383.55, 320.59),
)
"""The last one holds from then on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One job: it comes, and runs for so long on so many accelerators of one node."""

    number: int
    at_s: float
    run_s: float
    devices: int
    may_wait: bool

    @property
    def until_s(self) -> float:
        """When it is to start at the latest."""
        return self.at_s + (WAIT_S if self.may_wait else 0.0)

    @property
    def job(self) -> Job:
        """As the planner sees it."""
        shape = Shape(
            members=1,
            devices=self.devices,
            kind=KIND,
            millicores=1000,
            memory_bytes=1 << 30,
            run_s=self.run_s,
            active_w=ACTIVE_W,
        )
        return Job(id=str(self.number), priority=0, order=self.number, shapes=(shape,), wait_w=125.0)


def evening(seed: int) -> list[Arrival]:
    """Runs of 1.5 h in the median."""
    draw = np.random.default_rng(seed)
    return [
        Arrival(
            number=number,
            at_s=at_s,
            run_s=float(np.clip(draw.lognormal(np.log(1.5 * H), 0.7), 600.0, 6 * H)),
            devices=int(draw.choice([1, 1, 2, 4])),
            may_wait=bool(draw.random() < 0.8),
        )
        for number, at_s in enumerate(sorted(draw.uniform(15 * H, 18 * H, 40).tolist()))
    ]


def day(seed: int) -> list[Arrival]:
    """Runs of 2 h in the mean."""
    draw = np.random.default_rng(seed)
    sizes = [1, 1, 2, 4, 8]
    gap_s = 2 * H * float(np.mean(sizes)) / (0.6 * NODES * DEVICES)
    found: list[Arrival] = []
    at_s = draw.exponential(gap_s)
    while at_s < 24 * H:
        found.append(
            Arrival(
                number=len(found),
                at_s=at_s,
                run_s=float(np.clip(draw.lognormal(np.log(2 * H) - 0.32, 0.8), 300.0, 10 * H)),
                devices=int(draw.choice(sizes)),
                may_wait=bool(draw.random() < 0.7),
            )
        )
        at_s += draw.exponential(gap_s)
    return found


def price(hour: int) -> float:
    """EUR/kWh."""
    return EUR_PER_MWH[min(hour, len(EUR_PER_MWH) - 1)] / 1000


def rates(now_s: float) -> tuple[Rate, ...]:
    """What is known of prices at a moment: all of them."""
    first = int(now_s // H)
    later = [Rate(start_s=hour * H - now_s, per_kwh=price(hour)) for hour in range(first + 1, len(EUR_PER_MWH))]
    return (Rate(start_s=0.0, per_kwh=price(first)), *later)


def cost(arrival: Arrival, start_s: float) -> float:
    """EUR."""
    end_s = start_s + arrival.run_s
    hours = range(int(start_s // H), int(end_s // H) + 1)
    parts = [price(hour) * max(0.0, min(end_s, (hour + 1) * H) - max(start_s, hour * H)) for hour in hours]
    return arrival.devices * ACTIVE_W * sum(parts) / J_PER_KWH


Waits = Callable[[float, Arrival], bool]
"""Whether a job is kept back at a moment."""


def never(_now_s: float, _arrival: Arrival) -> bool:
    """Every job is the planner's from the beginning."""
    return False


def each_for_itself(now_s: float, arrival: Arrival) -> bool:
    """Until the slot in which it would start if the nodes were empty, or its time is up."""
    if now_s >= arrival.until_s:
        return False
    alone = Ahead(rates=rates(now_s), waits=(MayWait(job=arrival.job.id, until_s=arrival.until_s - now_s),))
    model = Model(Problem(nodes=Cluster().nodes(now_s), jobs=(arrival.job,), ahead=alone))
    return own_best(model.groups[0])[1] > 0


@dataclass(slots=True)
class Cluster:
    """When each accelerator is free again, in s."""

    free_at_s: dict[str, float] = field(
        default_factory=lambda: {f"{node}/{device}": 0.0 for node in range(NODES) for device in range(DEVICES)}
    )

    def nodes(self, now_s: float) -> tuple[Node, ...]:
        """As the planner sees them."""
        return tuple(self._node(str(number), now_s) for number in range(NODES))

    def start(self, arrival: Arrival, devices: Sequence[str], now_s: float) -> None:
        """A job takes these."""
        self.free_at_s |= dict.fromkeys(devices, now_s + arrival.run_s)

    def next_end_s(self, now_s: float) -> float:
        """When the next one is free; infinity if all are."""
        return min((at_s for at_s in self.free_at_s.values() if at_s > now_s), default=float("inf"))

    def _node(self, name: str, now_s: float) -> Node:
        own = {device: at_s for device, at_s in self.free_at_s.items() if device.startswith(f"{name}/")}
        return Node(
            id=name,
            devices=tuple(Device(id=device, kind=KIND, free=1000 if at <= now_s else 0) for device, at in own.items()),
            cpu_millicores=256_000,
            free_millicores=256_000,
            memory_bytes=1 << 40,
            free_memory_bytes=1 << 40,
            power=NodePower(base_w=1000.0),
            busy_s=max(0.0, max(own.values()) - now_s),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One lot, one way: EUR; jobs that started late; the mean wait of those that may not wait; each solve's time."""

    cost: float
    late: int
    wait_s: float
    solves_s: list[float]


def run(arrivals: Sequence[Arrival], waits: Waits, *, together: bool) -> Run:
    """Through virtual time until all have started."""
    cluster, now_s = Cluster(), 0.0
    coming, line = list(arrivals), list[Arrival]()
    starts: dict[int, float] = {}
    before: dict[str, float] = {}
    solves_s: list[float] = []
    while coming or line:
        quarter_s = (now_s // QUARTER_S + 1) * QUARTER_S
        now_s = min([quarter_s, cluster.next_end_s(now_s), *(arrival.at_s for arrival in coming[:1])])
        while coming and coming[0].at_s <= now_s:
            line.append(coming.pop(0))
        asking = [arrival for arrival in line if not (arrival.may_wait and waits(now_s, arrival))]
        if not asking:
            continue
        ahead = _ahead(asking, before, now_s) if together else None
        problem = Problem(nodes=cluster.nodes(now_s), jobs=tuple(arrival.job for arrival in asking), ahead=ahead)
        began = time.perf_counter()
        plan = solve(problem)
        solves_s.append(time.perf_counter() - began)
        before = _meant(plan, now_s)
        for placement in plan.placements:
            arrival = arrivals[int(placement.job)]
            cluster.start(arrival, [device for member in placement.members for device in member.devices], now_s)
            starts[arrival.number] = now_s
            line.remove(arrival)
    rigid = [starts[arrival.number] - arrival.at_s for arrival in arrivals if not arrival.may_wait]
    return Run(
        cost=sum(cost(arrival, starts[arrival.number]) for arrival in arrivals),
        late=sum(arrival.may_wait and starts[arrival.number] > arrival.until_s + 1.0 for arrival in arrivals),
        wait_s=float(np.mean(rigid)),
        solves_s=solves_s,
    )


def _ahead(asking: Sequence[Arrival], before: Mapping[str, float], now_s: float) -> Ahead | None:
    waits = tuple(
        MayWait(
            job=arrival.job.id,
            until_s=arrival.until_s - now_s,
            before_s=before[arrival.job.id] - now_s if arrival.job.id in before else None,
        )
        for arrival in asking
        if arrival.may_wait and arrival.until_s > now_s
    )
    return Ahead(rates=rates(now_s), waits=waits) if waits else None


def _meant(plan: Plan, now_s: float) -> dict[str, float]:
    return {later.job: now_s + later.start_s for later in plan.timetable.later} if plan.timetable else {}


def bound(arrivals: Sequence[Arrival]) -> float:
    """EUR that no schedule without late jobs stays below: device-seconds of each job in each quarter of an hour."""
    slots = len(EUR_PER_MWH) * 4
    costs: list[float] = []
    most: list[float] = []
    entries: list[tuple[int, int]] = []
    for place, arrival in enumerate(arrivals):
        end_s = arrival.until_s + arrival.run_s if arrival.may_wait else slots * QUARTER_S
        for slot in range(int(arrival.at_s // QUARTER_S), min(slots, int(end_s // QUARTER_S) + 1)):
            inside_s = min((slot + 1) * QUARTER_S, end_s) - max(slot * QUARTER_S, arrival.at_s)
            entries += [(slot, len(costs)), (slots + place, len(costs))]
            costs.append(ACTIVE_W * price(slot // 4) / J_PER_KWH)
            most.append(arrival.devices * max(0.0, inside_s))
    rows, columns = zip(*entries, strict=True)
    matrix = coo_array((np.ones(len(rows)), (rows, columns)), shape=(slots + len(arrivals), len(costs))).tocsr()
    found = linprog(
        costs,
        A_ub=matrix[:slots],
        b_ub=np.full(slots, NODES * DEVICES * QUARTER_S),
        A_eq=matrix[slots:],
        b_eq=[arrival.devices * arrival.run_s for arrival in arrivals],
        bounds=[(0.0, limit) for limit in most],
    )
    assert found.success, found.message
    return float(found.fun)


LOTS: dict[str, Callable[[int], list[Arrival]]] = {"evening": evening, "day": day}
WAYS: dict[str, tuple[Waits, bool]] = {
    "at once": (never, False),
    "each for itself": (each_for_itself, False),
    "together": (never, True),
}
HEADER = ("lot", "way", "EUR", "above the bound", "late", "mean wait of the others s", "solve p95 s")


def main() -> int:
    """Run all and write the table: means over the seeds, late ones in all."""
    parser = argparse.ArgumentParser(prog="python -m bench.prices", description="Jobs that wait, planned together.")
    parser.add_argument("--seeds", type=int, default=8)
    seeds = parser.parse_args().seeds
    rows: list[tuple[object, ...]] = []
    figures: dict[str, object] = {}
    for lot, draw in LOTS.items():
        lots = [draw(seed) for seed in range(seeds)]
        least = [bound(arrivals) for arrivals in lots]
        may_wait = sum(arrival.may_wait for arrivals in lots for arrival in arrivals)
        for way, (waits, together) in WAYS.items():
            runs = [run(arrivals, waits, together=together) for arrivals in lots]
            above = float(np.mean([done.cost / eur - 1 for done, eur in zip(runs, least, strict=True)]))
            rows.append(
                (
                    lot,
                    way,
                    f"{np.mean([done.cost for done in runs]):.2f}",
                    f"{100 * above:.1f} %",
                    f"{sum(done.late for done in runs)} of {may_wait}",
                    round(float(np.mean([done.wait_s for done in runs]))),
                    f"{quantile([solve_s for done in runs for solve_s in done.solves_s], 0.95):.2f}",
                )
            )
            print(*rows[-1], sep="  ", file=sys.stderr)
            figures[f"{lot}, {way}"] = [{"eur": done.cost, "late": done.late, "wait_s": done.wait_s} for done in runs]
        figures[f"{lot}, bound"] = least
    text = table(HEADER, rows)
    print(text)
    keep("prices", command=f"python -m bench.prices --seeds {seeds}", text=text, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
