"""Baseline and fallback: every job in line starts where it adds least, if it fits at all. Needs no solver."""

from collections.abc import Iterable, Mapping

from scheduler.budgets import Headroom
from scheduler.candidates import Candidate, Candidates, Choice, Choices, Option, Site

REPACK_ATTEMPTS = 40

LEAST_START = 1e-6
"""A smaller fraction of a job is a rounding error."""


def complete(candidates: Candidates, choices: Choices) -> dict[int, Choice]:
    """`choices` and every further job that still fits, in line order, each with the option that adds fewest joules.

    A job is placed whole or not at all. What it adds: dearer shape, boots, longer on-time. Equal joules go to the
    tightest fit, so that wide gangs find room later. Starting from no choices this is the greedy plan.
    """
    room = _Rooms(candidates)
    for index, choice in choices.items():
        room.take(candidates.line[index], choice)
    found = dict(choices)
    for index, candidate in enumerate(candidates.line):
        if index not in found:
            choice = room.cheapest(candidate, range(len(candidate.options)))
            if choice is not None:
                found[index] = choice
                room.take(candidate, choice)
    return found


def follow(candidates: Candidates, starts: Mapping[tuple[int, int], float], *, sure_first: bool) -> dict[int, Choice]:
    """Choices in the shapes that a fractional plan prefers, and then whatever else fits.

    `starts` says how many of the jobs of a twin number start with an option (`scheduler.lp.Starts`). Tier by tier the
    widest gangs are placed first, because they find room last; with `sure_first` those before them that start whole.
    """
    left = dict(starts)
    wanted: list[tuple[int, float, int, int, int]] = []
    for index, candidate in enumerate(candidates.line):
        shares = [left.get((candidate.twin, number), 0.0) for number in range(len(candidate.options))]
        number = max(range(len(shares)), key=shares.__getitem__)
        share = min(1.0, shares[number])
        if share > LEAST_START:
            left[candidate.twin, number] -= share
            option = candidate.options[number]
            doubt = 1.0 - round(share, 3) if sure_first else 0.0
            wanted.append((candidate.tier, doubt, -option.members * option.devices, index, number))
    room = _Rooms(candidates)
    found: dict[int, Choice] = {}
    for *_, index, number in sorted(wanted):
        choice = room.cheapest(candidates.line[index], [number])
        if choice is not None:
            found[index] = choice
            room.take(candidates.line[index], choice)
    return complete(candidates, found)


def repack(candidates: Candidates, choices: Choices, *, keep_shapes: bool) -> dict[int, Choice] | None:
    """The same jobs placed anew, the longest first, so that short ones ride along on nodes that are on anyway.

    `keep_shapes` leaves each job the option it has, which makes it likelier that all find room again. A job that finds
    none moves forward in the order and all is placed again; None if that does not help in `REPACK_ATTEMPTS`.
    """
    jobs = {
        index: [choice.option] if keep_shapes else list(range(len(candidates.line[index].options)))
        for index, choice in choices.items()
    }

    def length(index: int) -> tuple[float, int, int]:
        options = [candidates.line[index].options[number] for number in jobs[index]]
        return (-max(option.end_s for option in options), -max(option.devices for option in options), index)

    order = sorted(choices, key=length)
    for attempt in range(REPACK_ATTEMPTS):
        room = _Rooms(candidates)
        found: dict[int, Choice] = {}
        for place, index in enumerate(order):
            choice = room.cheapest(candidates.line[index], jobs[index])
            if choice is None:
                # Alternately to the front and half the way there: either alone can go in circles.
                order.insert(place // 2 * (attempt % 2), order.pop(place))
                break
            found[index] = choice
            room.take(candidates.line[index], choice)
        else:
            return found
    return None


class _Room:
    """What is left of a site while jobs are placed on it."""

    __slots__ = (
        "active_mw",
        "boot_j",
        "draw",
        "end_s",
        "kinds",
        "memory_bytes",
        "millicores",
        "node",
        "rate_w",
        "total",
        "used",
    )

    def __init__(self, site: Site) -> None:
        self.kinds = dict(site.kinds)
        self.total = sum(site.kinds.values())
        self.millicores = site.node.free_millicores
        self.memory_bytes = site.node.free_memory_bytes
        self.end_s = site.end_s
        self.rate_w = site.rate_w
        self.boot_j = site.boot_j
        self.node = site.node.id
        self.draw = site.draw
        self.active_mw = 0
        self.used = False

    def holds(self, option: Option) -> bool:
        return (
            self.kinds[option.kind] >= option.devices
            and self.millicores >= option.millicores
            and self.memory_bytes >= option.memory_bytes
        )

    def adds_j(self, option: Option) -> float:
        return self.boot_j + self.rate_w * max(0.0, option.end_s - self.end_s)

    def adds_mw(self, option: Option) -> int:
        """What a member adds to the site's draw, in mW."""
        before = self.draw.adds(self.active_mw) if self.used else 0
        return self.draw.adds(self.active_mw + option.active_mw) - before

    def take(self, option: Option) -> None:
        self.kinds[option.kind] -= option.devices
        self.total -= option.devices
        self.millicores -= option.millicores
        self.memory_bytes -= option.memory_bytes
        self.end_s = max(self.end_s, option.end_s)
        self.boot_j = 0.0
        self.active_mw += option.active_mw
        self.used = True


class _Rooms:
    """What is left of all sites, and of the budgets."""

    def __init__(self, candidates: Candidates) -> None:
        self._rooms = [_Room(site) for site in candidates.sites]
        self._headroom = Headroom(candidates.limits) if candidates.limits else None

    def take(self, candidate: Candidate, choice: Choice) -> None:
        option = candidate.options[choice.option]
        for site in choice.sites:
            if self._headroom is not None:
                self._headroom.take(self._rooms[site].node, self._rooms[site].adds_mw(option))
            self._rooms[site].take(option)

    def cheapest(self, candidate: Candidate, numbers: Iterable[int]) -> Choice | None:
        """The choice among the candidate's options of these numbers that adds least; None if none fits."""
        room = self._rooms
        best: tuple[float, Choice] | None = None
        for number in numbers:
            option = candidate.options[number]
            # Least joules first; then nodes without other kinds, few devices left, few cores left; then the name.
            ranked = sorted(
                (
                    room[site].adds_j(option),
                    room[site].total - room[site].kinds[option.kind],
                    room[site].kinds[option.kind],
                    room[site].millicores,
                    room[site].memory_bytes,
                    site,
                )
                for site in option.sites
                if room[site].holds(option)
            )
            if self._headroom is not None and len(ranked) >= option.members:
                offers = [(room[site].node, room[site].adds_mw(option)) for *_, site in ranked]
                ranked = [ranked[index] for index in self._headroom.pick(offers, option.members) or ()]
            if len(ranked) >= option.members:
                chosen = ranked[: option.members]
                adds_j = option.extra_j + sum(entry[0] for entry in chosen)
                if best is None or adds_j < best[0]:
                    best = (adds_j, Choice(option=number, sites=tuple(sorted(entry[-1] for entry in chosen))))
        return None if best is None else best[1]
