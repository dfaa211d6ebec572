"""Power budgets: no plan lets a group of nodes draw more than it may.

What a node draws, at most, from now until its jobs end:

- off: `off_w`. On: `base_w`, with all CPU sockets awake, and what the jobs on it add: `active_w` for each whole device,
  and for a device that is shared the largest `active_w` of those that woke it up.
- one that boots: what a boot draws in the mean (`boot_j / boot_s`), or what it will draw when on if that is more.

A group draws the sum of these, as if all its nodes drew most at the same time. All is counted in whole milliwatts, each
term rounded up and each budget down, so that no order of adding up matters. Where a group draws more than its budget
already, nothing may be added; what runs goes on.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scheduler.feasibility import Room, fits, free_room, takes_work, total_room
from scheduler.plan import Placement, Reason
from scheduler.problem import WHOLE_DEVICE, Job, Node, PowerBudget, Problem, Shape

NEVER_WITHIN_BUDGET = "never_within_budget"
"""Code of the reason of a job that a budget will never let start, as things are."""

MOST_STEPS = 1_000
"""Steps in the search for nodes on which a gang keeps within budgets that overlap in part, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What a node draws, in mW: `now`; `least` as soon as it has new work; and `on` before that work adds anything."""

    now: int
    least: int
    on: int

    def adds(self, active_mw: int) -> int:
        """What the node draws more than now when new work adds `active_mw` to it."""
        return max(self.least, self.on + active_mw) - self.now


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What may still be added to the draw of a group of nodes, in mW; nothing where it draws too much already."""

    budget: PowerBudget
    free: int
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """`count` nodes of the same budgets (names) that could each take a member, which adds `adds` mW to each."""

    budgets: frozenset[str]
    adds: int
    count: int = 1


def milliwatts(watts: float) -> int:
    """Whole milliwatts, rounded up."""
    return math.ceil(watts * 1000)


def member_mw(shape: Shape) -> int:
    """What a member of the shape adds to its node, where no device it shares is in use."""
    return shape.devices * milliwatts(shape.active_w)


def draw_of(node: Node) -> Draw:
    """What the node draws now and with more work."""
    power = node.power
    sockets = -(-node.cpu_millicores // power.socket_millicores) if power.socket_millicores else 0
    on = milliwatts(power.base_w) + sockets * milliwatts(power.socket_w) + milliwatts(node.busy_w)
    boot = milliwatts(power.boot_j / power.boot_s) if power.boot_s > 0 else 0
    if not node.on:
        return Draw(now=milliwatts(power.off_w), least=boot, on=on)
    least = boot if node.booting else 0
    return Draw(now=max(least, on), least=least, on=on)


def drawn_mw(budget: PowerBudget, nodes: Mapping[str, Node]) -> int:
    """What the group draws as its nodes are, in mW."""
    return sum(draw_of(nodes[name]).now for name in budget.nodes)


def limits(problem: Problem) -> tuple[Limit, ...]:
    """What each budget leaves free."""
    nodes = {node.id: node for node in problem.nodes}
    return tuple(
        Limit(
            budget=budget,
            free=max(0, math.floor(budget.watts * 1000) - drawn_mw(budget, nodes)),
            nodes=frozenset(budget.nodes),
        )
        for budget in problem.budgets
    )


def memberships(limits: Iterable[Limit]) -> dict[str, frozenset[str]]:
    """The names of the budgets that each node counts towards, by its id; nodes of none are left out."""
    found: dict[str, frozenset[str]] = {}
    for limit in limits:
        for name in limit.nodes:
            found[name] = found.get(name, frozenset()) | {limit.budget.name}
    return found


class Headroom:
    """What the budgets leave free while jobs are placed."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._free = {limit.budget.name: limit.free for limit in limits}
        self._of = memberships(limits)

    def take(self, node: str, adds: int) -> None:
        """Counts what a member adds to a node, in mW."""
        for name in self._of.get(node, ()):
            self._free[name] -= adds

    def pick(self, offers: Sequence[tuple[str, int]], members: int) -> list[int] | None:
        """Indices of so many offers (a node, and what a member adds to it in mW) that fit together: the first ones, or
        else those that add least; None if neither will do and none is found.
        """
        if not self._of:
            return list(range(members)) if len(offers) >= members else None
        free = dict(self._free)
        chosen: list[int] = []
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for index, (node, adds) in enumerate(offers):
            names = tuple(sorted(self._of.get(node, ())))
            alike.setdefault((adds, names), []).append(index)
            if all(adds <= free[name] for name in names):
                chosen.append(index)
                for name in names:
                    free[name] -= adds
                if len(chosen) == members:
                    return chosen
        kinds = sorted(alike)
        counts = _Search([Offer(budgets=frozenset(key[1]), adds=key[0], count=len(alike[key])) for key in kinds])
        found = counts.choose(members, self._free)
        if found is None:
            return None
        return sorted(index for key, count in zip(kinds, found, strict=True) for index in alike[key][:count])


class _Search:
    """Tries how many of each kind of offer, those that add least first, up to `MOST_STEPS`."""

    def __init__(self, offers: Sequence[Offer]) -> None:
        self._offers = offers
        self._steps = 0

    def choose(self, members: int, free: Mapping[str, int]) -> list[int] | None:
        """How many of each to take, so that no budget is passed."""
        if _shortage(self._offers, members, free) is not None:
            return None
        return self._from(0, members, dict(free))

    def _from(self, first: int, members: int, free: dict[str, int]) -> list[int] | None:
        rest = self._offers[first:]
        self._steps += 1
        if members == 0:
            return [0] * len(rest)
        if self._steps > MOST_STEPS or sum(offer.count for offer in rest) < members:
            return None
        offer = rest[0]
        most = min([members, offer.count, *(free[name] // offer.adds for name in offer.budgets if offer.adds)])
        for count in range(most, -1, -1):
            left = {name: value - count * offer.adds * (name in offer.budgets) for name, value in free.items()}
            found = self._from(first + 1, members - count, left)
            if found is not None:
                return [count, *found]
        return None


def short(offers: Sequence[Offer], members: int, limits: Sequence[Limit]) -> tuple[Limit, int] | None:
    """The budget that lacks most for a gang of so many members, and what it would add there at least, in mW; None if
    each budget, looked at alone, leaves enough.
    """
    found = _shortage(offers, members, {limit.budget.name: limit.free for limit in limits})
    return found and next((limit, found[1]) for limit in limits if limit.budget.name == found[0])


def _shortage(offers: Sequence[Offer], members: int, free: Mapping[str, int]) -> tuple[str, int] | None:
    found: tuple[str, int] | None = None
    ordered = sorted(offers, key=lambda offer: offer.adds)
    for name, left_mw in free.items():
        left = members - sum(offer.count for offer in offers if name not in offer.budgets)
        need = 0
        for offer in ordered:
            if name in offer.budgets and left > 0:
                need += offer.adds * min(left, offer.count)
                left -= offer.count
        if need > left_mw and (found is None or need - left_mw > found[1] - free[found[0]]):
            found = (name, need)
    return found


class Ceilings:
    """Why jobs wait for no other reason than the budgets, once the `placements` have started."""

    def __init__(self, problem: Problem, placements: Sequence[Placement]) -> None:
        self._problem = problem
        after = _after(problem, placements) if problem.budgets else problem
        self._limits = limits(after)
        self._rooms = free_room(after.nodes)
        self._places = _places(after, self._limits, empty=False)
        self._never = Never(problem.nodes, problem.budgets)
        self._known: dict[tuple[Shape, ...], tuple[Reason, ...]] = {}

    def why(self, job: Job) -> tuple[Reason, ...]:
        """Reasons for a job that waits; none if something else keeps it from starting too."""
        if not self._problem.budgets:
            return ()
        if job.shapes not in self._known:
            self._known[job.shapes] = self._never.why(job.shapes) or self._why(job.shapes)
        return self._known[job.shapes]

    def _why(self, shapes: Sequence[Shape]) -> tuple[Reason, ...]:
        reasons: list[Reason] = []
        for shape in shapes:
            if fits(shape, self._rooms):
                lacks = short(_offers(shape, self._places), shape.members, self._limits)
                reasons.append(_waits(*lacks) if lacks else _TOGETHER)
        return tuple(dict.fromkeys(reasons))


class Never:
    """Which jobs the budgets of some nodes could never let start, were the nodes empty and all but theirs off."""

    def __init__(self, nodes: Sequence[Node], budgets: Sequence[PowerBudget]) -> None:
        self._budgets = budgets
        resting = Problem(nodes=tuple(map(_at_rest, nodes)), jobs=(), budgets=tuple(budgets))
        by_id = {node.id: node for node in resting.nodes}
        self._rest = {budget.name: drawn_mw(budget, by_id) for budget in budgets}
        self._limits = limits(resting)
        self._places = _places(resting, self._limits, empty=True) if budgets else []
        self._total = total_room(nodes)

    def why(self, shapes: Sequence[Shape]) -> tuple[Reason, ...]:
        """Why none of the shapes could ever start, budget by budget; empty if one could, or if none fits on the nodes
        anyway.
        """
        if not self._budgets:
            return ()
        reasons: list[Reason] = []
        for shape in shapes:
            if fits(shape, self._total):
                lacks = short(_offers(shape, self._places), shape.members, self._limits)
                if lacks is None:
                    return ()
                limit, need = lacks
                message = (
                    f"power budget {limit.budget.name} allows {in_watts(math.floor(limit.budget.watts * 1000))} W, its "
                    f"nodes draw {in_watts(self._rest[limit.budget.name])} W of that with all that can be off switched "
                    f"off, and the job needs {in_watts(need)} W there: it can never start; ask for less, or have the "
                    f"budget raised"
                )
                reasons.append(Reason(code=NEVER_WITHIN_BUDGET, message=message))
        return tuple(dict.fromkeys(reasons))


def boots_within(problem: Problem, placements: Sequence[Placement], names: Sequence[str]) -> list[str]:
    """Which of these nodes, which are off, the budgets let boot one after the other, once the placements started."""
    after = _after(problem, placements)
    nodes = {node.id: node for node in after.nodes}
    headroom = Headroom(limits(after))
    found: list[str] = []
    for name in names:
        adds = draw_of(nodes[name]).adds(0)
        if headroom.pick([(name, adds)], 1):
            headroom.take(name, adds)
            found.append(name)
    return found


def in_watts(milliwatts: int) -> str:
    """Watts for people: `1200`, `3.5`."""
    return f"{milliwatts / 1000:.1f}".removesuffix(".0")


_TOGETHER = Reason(
    code="power_budget",
    message="each power budget leaves enough for the job alone, but on no nodes do all of them together",
)


def _waits(limit: Limit, need: int) -> Reason:
    message = (
        f"devices are free, but power budget {limit.budget.name} leaves {in_watts(limit.free)} of "
        f"{in_watts(math.floor(limit.budget.watts * 1000))} W free, and the job needs {in_watts(need)} W there"
    )
    return Reason(code="power_budget", message=message)


def _at_rest(node: Node) -> Node:
    """The node as it draws least: empty, and off if it can be. Switched on again it is at once."""
    power = replace(node.power, boot_s=0.0)
    on = node.on and not node.can_switch
    return replace(node, on=on, busy_w=0.0, booting=False, power=power)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Alike nodes: their room, draw and budgets."""

    room: Room
    draw: Draw
    budgets: frozenset[str]


def _places(problem: Problem, limits: Sequence[Limit], *, empty: bool) -> list[_Place]:
    """The nodes, were they empty, or those that take work as they are."""
    of = memberships(limits)
    alike: dict[tuple[Draw, frozenset[str]], list[Node]] = {}
    for node in problem.nodes:
        if empty or takes_work(node):
            alike.setdefault((draw_of(node), of.get(node.id, frozenset())), []).append(node)
    return [
        _Place(room=room, draw=draw, budgets=names)
        for (draw, names), nodes in alike.items()
        for room in (total_room(nodes) if empty else free_room(nodes))
    ]


def _offers(shape: Shape, places: Sequence[_Place]) -> list[Offer]:
    return [
        Offer(budgets=place.budgets, adds=place.draw.adds(member_mw(shape)), count=place.room.count)
        for place in places
        if place.room.holds(shape)
    ]


def _after(problem: Problem, placements: Sequence[Placement]) -> Problem:
    """The problem as it is once the placements have started: their nodes on, or booting, with less free."""
    jobs = {job.id: job for job in problem.jobs}
    cores: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    shares: Counter[str] = Counter()
    active: dict[str, dict[str, float]] = {}
    for placement in placements:
        shape = jobs[placement.job].shapes[placement.shape]
        for member in placement.members:
            cores[member.node] += shape.millicores
            memory[member.node] += shape.memory_bytes
            woken = active.setdefault(member.node, {})
            for device in member.devices:
                shares[device] += shape.share
                woken[device] = max(woken.get(device, 0.0), shape.active_w)
    nodes = tuple(
        replace(
            node,
            on=True,
            booting=node.booting or not node.on,
            busy_w=node.busy_w
            + sum(active[node.id].get(device.id, 0.0) for device in node.devices if device.free == WHOLE_DEVICE),
            free_millicores=node.free_millicores - cores[node.id],
            free_memory_bytes=node.free_memory_bytes - memory[node.id],
            devices=tuple(replace(device, free=device.free - shares[device.id]) for device in node.devices),
        )
        if node.id in active
        else node
        for node in problem.nodes
    )
    return replace(problem, nodes=nodes)
