"""Geometry of the charts; the templates draw it as SVG. Everything here is pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from service.db import Record

WIDTH, HEIGHT = 330, 150
"""Size of a curve in the units of its drawing, without the labels around it."""

COLUMNS = 960
"""Columns of a timeline: the finest time it tells apart is the window divided by this."""

COLOURS = 8
"""Colours the style sheet has for users; more users share them in turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A line of the grid at `at` units from the left or top, with its value."""

    at: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point of a curve: its place, and what it stands for. `left` and `width` bound what is nearest to it."""

    x: float
    y: float
    left: float
    width: float
    step: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One metric over the steps of a run; without `stepped` its points are just numbered."""

    name: str
    stepped: bool
    dots: tuple[Dot, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]

    @property
    def path(self) -> str:
        """The line through all points, as SVG takes it."""
        return "M" + "L".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in self.dots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Devices of one user on one node during `width` columns, in fractions of the node's height from the top."""

    x: int
    width: int
    y: float
    height: float
    colour: int
    user: str
    devices: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One node's line of a timeline. `on` are the (column, width) in which it was on and heard of."""

    node: str
    on: tuple[tuple[int, int], ...]
    bars: tuple[Bar, ...]


def curves(rows: Iterable[Record]) -> list[Curve]:
    """One curve per metric, losses first. Rows have `name`, `step` and `value`, by name and time."""
    series: defaultdict[str, list[Record]] = defaultdict(list)
    for row in rows:
        series[row.name].append(row)
    names = sorted(series, key=lambda name: ("loss" not in name.lower(), name))
    return [_curve(name, series[name]) for name in names]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values inside [low, high], evenly spaced by 1, 2 or 5 times a power of ten; at most about `most`."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    spacing = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    first = math.ceil(low / spacing - 1e-9)
    return [index * spacing for index in range(first, math.floor(high / spacing + 1e-9) + 1)]


def strips(
    nodes: Sequence[str],
    sessions: Iterable[Record],
    holdings: Iterable[Record],
    capacity: Mapping[str, int],
    colours: Mapping[str, int],
    *,
    start: datetime,
    end: datetime,
) -> list[Strip]:
    """For each node who held how many of its devices when. The area of a user's bars is the device-hours held.

    Args:
        sessions: rows with `node_id`, `started_at`, `ended_at`.
        holdings: rows with `node_id`, `user_name`, `thousandths` of each device, `granted_at`, `released_at`.
        capacity: node -> devices that make its full height.
        colours: user -> number of a colour.
    """
    on: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in sessions:
        first, last = _columns(row.started_at, row.ended_at or end, start, end)
        if last > first:
            left, right = math.floor(first), math.ceil(last)
            on[row.node_id].append((left, right - left))
    held: defaultdict[str, dict[str, list[float]]] = defaultdict(dict)
    for row in holdings:
        columns = held[row.node_id].setdefault(row.user_name, [0.0] * COLUMNS)
        _add(columns, *_columns(row.granted_at, row.released_at or end, start, end), sum(row.thousandths) / 1000)
    return [
        Strip(node=node, on=tuple(on[node]), bars=tuple(_stack(held[node], max(1, capacity.get(node, 1)), colours)))
        for node in nodes
    ]


def round_moments(start: datetime, end: datetime) -> list[tuple[float, datetime]]:
    """A few round moments inside the window, each with its place as a fraction of it."""
    seconds = (end - start).total_seconds()
    steps = (60, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000)
    step = next((step for step in steps if seconds / step <= 7), 7_776_000)
    first = math.ceil(start.timestamp() / step) * step
    moments = [start + timedelta(seconds=at - start.timestamp()) for at in range(first, int(end.timestamp()) + 1, step)]
    return [((moment - start).total_seconds() / seconds, moment) for moment in moments]


def _curve(name: str, rows: Sequence[Record]) -> Curve:
    stepped = all(row.step is not None for row in rows)
    steps = [float(row.step if stepped else number) for number, row in enumerate(rows, start=1)]
    values = [row.value for row in rows]
    left, right = min(steps), max(steps)
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room

    def across(step: float) -> float:
        return WIDTH / 2 if right == left else WIDTH * (step - left) / (right - left)

    def up(value: float) -> float:
        return HEIGHT * (high - value) / (high - low)

    xs = [across(step) for step in steps]
    edges = [0.0, *((before + after) / 2 for before, after in pairwise(xs)), float(WIDTH)]
    return Curve(
        name=name,
        stepped=stepped,
        dots=tuple(
            Dot(
                x=xs[i],
                y=up(values[i]),
                left=edges[i],
                width=max(0.0, edges[i + 1] - edges[i]),
                step=steps[i],
                value=values[i],
            )
            for i in range(len(rows))
        ),
        across=tuple(Tick(at=across(value), value=value) for value in ticks(left, right, 6)),
        up=tuple(Tick(at=up(value), value=value) for value in ticks(low, high, 5)),
    )


def _columns(begin: datetime, finish: datetime, start: datetime, end: datetime) -> tuple[float, float]:
    """A stretch of time as places on the timeline, cut to the window."""
    scale = COLUMNS / (end - start).total_seconds()
    return max(0.0, (begin - start).total_seconds() * scale), min(COLUMNS, (finish - start).total_seconds() * scale)


def _add(columns: list[float], first: float, last: float, devices: float) -> None:
    """Add devices to every column by the part of it that the stretch covers."""
    for column in range(math.floor(first), math.ceil(last)):
        columns[column] += devices * (min(last, column + 1) - max(first, column))


def _stack(held: Mapping[str, list[float]], capacity: int, colours: Mapping[str, int]) -> Iterable[Bar]:
    """Bars of all users on top of one another, from the bottom up; equal neighbours become one."""
    floor = [0.0] * COLUMNS
    for user in sorted(held):
        begin = 0
        for column in range(1, COLUMNS + 1):
            alike = column < COLUMNS and held[user][column] == held[user][begin] and floor[column] == floor[begin]
            if alike:
                continue
            if devices := held[user][begin]:
                yield Bar(
                    x=begin,
                    width=column - begin,
                    y=1 - (floor[begin] + devices) / capacity,
                    height=devices / capacity,
                    colour=colours[user],
                    user=user,
                    devices=devices,
                )
            begin = column
        floor = [below + own for below, own in zip(floor, held[user], strict=True)]
