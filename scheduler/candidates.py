"""Which job could start where, right now: the problem as the searches see it, with indices instead of ids.

Jobs stand in line by precedence, nodes by id, whatever their order in the problem, so that neither order matters.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from scheduler.budgets import Draw, Limit, Offer, draw_of, limits, member_mw, memberships, short
from scheduler.feasibility import can_host, free_devices, takes_work
from scheduler.objective import Stake, on_time_s, stakes, tiers
from scheduler.plan import MemberPlacement, Placement
from scheduler.problem import WHOLE_DEVICE, Job, Node, Problem, Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A node that takes work. `kinds` are its wholly free devices.

    Keeping it on costs `rate_w` (PUE included) for every second beyond `end_s`, up to the horizon; 0 for a node that
    stays on anyway. `boot_j` (PUE and the wait for it included) is charged once if it is off. `draw` and the names of
    its `budgets` say what work here does to those. Sites of one `group` are interchangeable.
    """

    node: Node
    kinds: Mapping[str, int]
    end_s: float
    rate_w: float
    boot_j: float
    group: int
    draw: Draw
    budgets: frozenset[str]

    @property
    def charged(self) -> bool:
        """Whether it costs anything to put work here."""
        return self.rate_w > 0 or self.boot_j > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One shape of a job that can start now. Each of `members` needs a site of its own among `sites` (indices).

    `end_s` is when it ends, cut at the horizon. `extra_j` (PUE included) is its work beyond the job's cheapest shape,
    and what it costs to be staged: none of `sites` takes longer than is paid for. Where sites take differently long
    there is an option for each length. `active_mw` is what a member adds to the draw of its site, in mW.
    """

    shape: int
    members: int
    devices: int
    kind: str
    millicores: int
    memory_bytes: int
    end_s: float
    extra_j: float
    active_mw: int
    sites: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A possible job in line. `tier` counts priorities from 0, the highest. Jobs of one `twin` number differ in nothing
    but their place in line. Without options it cannot start now.
    """

    job: Job
    stake: Stake
    tier: int
    twin: int
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """A line, the sites it competes for, how many tiers the whole problem has, and the budgets that may bind."""

    line: tuple[Candidate, ...]
    sites: tuple[Site, ...]
    tiers: int
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A job of the line starts with one of its options on these sites (indices, ascending)."""

    option: int
    sites: tuple[int, ...]


Choices = Mapping[int, Choice]
"""Which jobs start, by index in the line."""


def find_candidates(problem: Problem) -> Candidates:
    """The line of possible jobs with every way each could start on what is free now, at the prices of
    `Problem.shared_out` and in the order of `Problem.ranked`.
    """
    free = limits(problem)
    draws = {job.id: [member_mw(shape) for shape in job.shapes] for job in problem.jobs}
    sites = sites_of(problem)
    problem = problem.shared_out().ranked()
    kept, stagings = _Kept(problem, sites), _Stagings(sites)
    staked = stakes(problem)
    line = sorted((job for job in problem.jobs if job.id in staked), key=lambda job: (-job.priority, job.order, job.id))
    ranks = {priority: rank for rank, priority in enumerate(tiers(line))}
    twins: dict[object, int] = {}
    asked: dict[object, tuple[int, ...]] = {}
    candidates: list[Candidate] = []
    for job in line:
        stake = staked[job.id]
        candidates.append(
            Candidate(
                job=job,
                stake=stake,
                tier=ranks[job.priority],
                twin=twins.setdefault(job.likeness, len(twins)),
                options=_options(problem, job, draws[job.id], stake, sites, kept, stagings, asked, free),
            )
        )
    return Candidates(line=tuple(candidates), sites=sites, tiers=len(ranks), limits=_binding(free, candidates, sites))


def pools(candidates: Candidates) -> list[Candidates]:
    """The parts that share no site and no budget, which are solved one by one; jobs without an option are in none.

    Waiting of a tier and cost add up over the parts, so the best plan of the whole is the best plans of the parts.
    """
    root = list(range(len(candidates.sites)))

    def find(site: int) -> int:
        while root[site] != site:
            root[site] = root[root[site]]
            site = root[site]
        return site

    for candidate in candidates.line:
        sites = [site for option in candidate.options for site in option.sites]
        for site in sites[1:]:
            root[find(site)] = find(sites[0])
    for limit in candidates.limits:
        bound = [number for number, site in enumerate(candidates.sites) if site.node.id in limit.nodes]
        for site in bound[1:]:
            root[find(site)] = find(bound[0])
    members: dict[int, list[int]] = {}
    for site in range(len(candidates.sites)):
        members.setdefault(find(site), []).append(site)
    lines: dict[int, list[Candidate]] = {}
    for candidate in candidates.line:
        if candidate.options:
            lines.setdefault(find(candidate.options[0].sites[0]), []).append(candidate)
    return [_pool(candidates, lines[part], members[part]) for part in lines]


def charge_j(candidates: Candidates, choices: Choices) -> float:
    """The part of the objective that decisions change, in J: waits, dearer shapes, longer on-time and boots.

    Never negative. The rest is the off, on and deferred terms of the plan that starts nothing.
    """
    ends: dict[int, float] = {}
    joules = 0.0
    for index, candidate in enumerate(candidates.line):
        choice = choices.get(index)
        if choice is None:
            joules += candidate.stake.wait_j
            continue
        option = candidate.options[choice.option]
        joules += option.extra_j
        for site in choice.sites:
            ends[site] = max(ends.get(site, 0.0), option.end_s)
    for index, end_s in ends.items():
        site = candidates.sites[index]
        joules += site.rate_w * max(0.0, end_s - site.end_s) + site.boot_j
    return joules


def waiting_of(candidates: Candidates, choices: Choices) -> tuple[int, ...]:
    """Waiting of each tier under the choices, as `scheduler.objective.waiting` counts it."""
    sums = [0] * candidates.tiers
    for index, candidate in enumerate(candidates.line):
        if index not in choices:
            sums[candidate.tier] += candidate.stake.weight
    return tuple(sums)


def thinned(pool: Candidates, kept: Container[tuple[int, int, int]], choices: Choices) -> Candidates:
    """The same pool with fewer places: those in `kept`, by (twin, option's number, group of sites), and the chosen.

    Choices of the thinned pool are choices of the pool.
    """

    def thin(index: int, number: int) -> Option:
        candidate = pool.line[index]
        choice = choices.get(index)
        own = choice.sites if choice is not None and choice.option == number else ()
        return replace(
            candidate.options[number],
            sites=tuple(
                site
                for site in candidate.options[number].sites
                if (candidate.twin, number, pool.sites[site].group) in kept or site in own
            ),
        )

    return replace(
        pool,
        line=tuple(
            replace(candidate, options=tuple(thin(index, number) for number in range(len(candidate.options))))
            for index, candidate in enumerate(pool.line)
        ),
    )


def places(pool: Candidates) -> int:
    """How many pairs of option and site the pool has: the size of an exact model of it."""
    return sum(len(option.sites) for candidate in pool.line for option in candidate.options)


def device_limits(site: Site, options: Sequence[Option]) -> list[tuple[list[int], int]]:
    """For each kind of device: how many a member of each option takes on the site, and how many there are."""
    return [
        ([option.devices if option.kind == kind else 0 for option in options], free)
        for kind, free in site.kinds.items()
        if any(option.kind == kind for option in options)
    ]


def host_limits(site: Site, options: Sequence[Option]) -> list[tuple[list[int], int]]:
    """The same for CPU and for memory, where they can run out before the devices do.

    A row is divided by the common divisor of its needs, which loses nothing and keeps a solver's numbers small.
    """
    rows: list[tuple[list[int], int]] = []
    for needs, free in (
        ([option.millicores for option in options], site.node.free_millicores),
        ([option.memory_bytes for option in options], site.node.free_memory_bytes),
    ):
        per_device = dict.fromkeys(site.kinds, 0.0)
        for option, need in zip(options, needs, strict=True):
            per_device[option.kind] = max(per_device[option.kind], need / option.devices)
        if sum(site.kinds[kind] * most for kind, most in per_device.items()) > free:
            divisor = math.gcd(*needs)
            rows.append(([need // divisor for need in needs], free // divisor))
    return rows


def to_placements(candidates: Candidates, choices: Choices) -> tuple[Placement, ...]:
    """The choices with concrete devices: on each node the first wholly free ones, in the node's order."""
    free = [
        {
            kind: [device.id for device in site.node.devices if device.kind == kind and device.free == WHOLE_DEVICE][
                ::-1
            ]
            for kind in site.kinds
        }
        for site in candidates.sites
    ]
    placements: list[Placement] = []
    for index in sorted(choices):
        candidate, choice = candidates.line[index], choices[index]
        option = candidate.options[choice.option]
        members = tuple(
            MemberPlacement(
                node=candidates.sites[site].node.id,
                devices=tuple(free[site][option.kind].pop() for _ in range(option.devices)),
            )
            for site in choice.sites
        )
        placements.append(Placement(job=candidate.job.id, shape=option.shape, members=members))
    return tuple(placements)


def _binding(free: Sequence[Limit], line: Sequence[Candidate], sites: Sequence[Site]) -> tuple[Limit, ...]:
    """The limits that would be passed if as much as fits, and more, were placed on every node of theirs."""
    most: dict[int, float] = {}
    options = [option for candidate in line for option in candidate.options]
    for option in dict.fromkeys(options):
        for site in option.sites:
            each = option.active_mw / option.devices
            most[site] = max(most.get(site, 0.0), each * sum(sites[site].kinds.values()))
    adds = {site: sites[site].draw.adds(math.ceil(active_mw)) for site, active_mw in most.items()}
    return tuple(
        limit
        for limit in free
        if sum(mw for site, mw in adds.items() if sites[site].node.id in limit.nodes) > limit.free
    )


def _pool(candidates: Candidates, line: Sequence[Candidate], sites: Sequence[int]) -> Candidates:
    number = {site: index for index, site in enumerate(sites)}
    names = {candidates.sites[site].node.id for site in sites}
    return Candidates(
        line=tuple(
            replace(
                candidate,
                options=tuple(
                    replace(option, sites=tuple(number[site] for site in option.sites)) for option in candidate.options
                ),
            )
            for candidate in line
        ),
        sites=tuple(candidates.sites[site] for site in sites),
        tiers=candidates.tiers,
        limits=tuple(limit for limit in candidates.limits if not limit.nodes.isdisjoint(names)),
    )


def sites_of(problem: Problem) -> tuple[Site, ...]:
    """The nodes that take work, by id, at the prices of `Problem.shared_out`. What they draw is not part of those."""
    draws = {node.id: draw_of(node) for node in problem.nodes}
    budgets = memberships(limits(problem))
    problem = problem.shared_out()
    groups: dict[object, int] = {}
    sites: list[Site] = []
    for node in sorted(problem.nodes, key=lambda node: node.id):
        if not takes_work(node):
            continue
        kinds = free_devices(node)
        end_s = on_time_s(node, {}, problem.horizon_s)
        rate_w = problem.pue * (node.power.base_w - node.power.off_w) if node.can_switch else 0.0
        boot_j = 0.0 if node.on else problem.pue * node.power.boot_j + problem.boot_wait_w * node.power.boot_s
        room = (tuple(sorted(kinds.items())), node.free_millicores, node.free_memory_bytes, not node.container_fault)
        draw, names = draws[node.id], budgets.get(node.id, frozenset())
        alike = (draw, names) if names else None
        group = groups.setdefault((room, node.can_cap, end_s, rate_w, boot_j, alike), len(groups))
        sites.append(
            Site(
                node=node,
                kinds=kinds,
                end_s=end_s,
                rate_w=rate_w,
                boot_j=boot_j,
                group=group,
                draw=draw,
                budgets=names,
            )
        )
    return tuple(sites)


class _Kept:
    """The sites that the reservation keeps, and from whom."""

    def __init__(self, problem: Problem, sites: Sequence[Site]) -> None:
        kept = problem.reservation or Reservation(job="")
        self._first = next((job for job in problem.jobs if job.id == kept.job), None)
        self._free_s = kept.free_s
        self._sites = frozenset(number for number, site in enumerate(sites) if site.node.id in kept.nodes)

    def barred(self, job: Job, end_s: float) -> frozenset[int]:
        """Those on which the job may not start if it ends in `end_s` seconds."""
        if self._first is None or job.priority >= self._first.priority or end_s <= self._free_s:
            return frozenset()
        return self._sites


class _Stagings:
    """How long each site takes to fetch what jobs need."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._nodes = [site.node.id for site in sites]
        self._known: dict[object, list[tuple[float, frozenset[int]]]] = {}

    def of(self, job: Job) -> list[tuple[float, frozenset[int]]]:
        """How long the job may be staged, the shortest first, and the sites that take longer than that."""
        if not job.staging:
            return [(job.stage_s, frozenset())]
        key = (job.stage_s, job.staging)
        if key not in self._known:
            said = {node: one.seconds for one in job.staging for node in one.nodes}
            seconds = [said.get(node, job.stage_s) for node in self._nodes]
            self._known[key] = [
                (longest, frozenset(number for number, one in enumerate(seconds) if one > longest))
                for longest in sorted(set(seconds))
            ]
        return self._known[key]


def _affordable(
    able: Sequence[int], sites: Sequence[Site], members: int, active_mw: int, free: Sequence[Limit]
) -> bool:
    """Whether each budget, looked at alone, leaves enough for a gang on some of the able sites."""
    if not free:
        return True
    offers = [Offer(budgets=sites[site].budgets, adds=sites[site].draw.adds(active_mw)) for site in able]
    return short(offers, members, free) is None


def _options(
    problem: Problem,
    job: Job,
    draws: Sequence[int],
    stake: Stake,
    sites: Sequence[Site],
    kept: _Kept,
    stagings: _Stagings,
    asked: dict[object, tuple[int, ...]],
    free: Sequence[Limit],
) -> tuple[Option, ...]:
    """Shapes of the job that enough sites, and each budget, can take now. `draws` are what a member of each shape draws
    (mW); `asked` remembers the sites of each demand.
    """
    options: list[Option] = []
    for index, (stage_s, slow) in product(stake.shapes, stagings.of(job)):
        shape = job.shapes[index]
        barred = kept.barred(job, stage_s + shape.run_s) | slow
        needs = (shape.in_container, shape.cap_w > 0)
        demand = (shape.kind, shape.devices, shape.millicores, shape.memory_bytes, needs, barred)
        if free:
            demand = (*demand, shape.members, draws[index])
        if demand not in asked:
            able = tuple(
                number
                for number, site in enumerate(sites)
                if number not in barred
                and site.kinds.get(shape.kind, 0) >= shape.devices
                and site.node.free_millicores >= shape.millicores
                and site.node.free_memory_bytes >= shape.memory_bytes
                and can_host(site.node, shape)
            )
            asked[demand] = able if _affordable(able, sites, shape.members, draws[index], free) else ()
        known = options[-1].sites if options and options[-1].shape == index else ()
        if len(asked[demand]) >= shape.members and not set(asked[demand]) <= set(known):
            options.append(
                Option(
                    shape=index,
                    members=shape.members,
                    devices=shape.devices,
                    kind=shape.kind,
                    millicores=shape.millicores,
                    memory_bytes=shape.memory_bytes,
                    end_s=min(stage_s + shape.run_s, problem.horizon_s),
                    extra_j=problem.pue * (shape.work_j - stake.deferred_j)
                    + job.late_j(index)
                    + job.stage_j(index, stage_s),
                    active_mw=draws[index],
                    sites=asked[demand],
                )
            )
    return tuple(options)
