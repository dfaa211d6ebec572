"""What a kWh costs and how much CO2 it means, as constants or as a series over time; and when a job had best start."""

import csv
import io
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Literal, Self

from service.settings import Settings

COLUMNS = ("start", "price_per_kwh", "carbon_g_per_kwh")
MAX_STEPS = 200_000
"""Twenty years of hours."""

LONGEST_RUN_S = 1e8
"""Longer runs are not told apart: three years."""

ONLY_STEP = timedelta(hours=1)
"""How long a step lasts that none is before and none after."""

Measure = Literal["price", "carbon"]


class TariffError(ValueError):
    """A series that cannot be used. The message names the line and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What holds from `start` until the next step's. None: not said."""

    start: datetime
    price_per_kwh: float | None
    carbon_g_per_kwh: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """What a kWh of the computers means for the site: `pue` kWh at its meter, each at a price and with so much CO2.

    `steps`, in order of time, say it where they reach; the last holds for as long as the one before it. Elsewhere the
    constants do, if there are any. `wait_for` is what jobs that may wait should save.
    """

    pue: float = 1.0
    price_per_kwh: float | None = None
    currency: str = "EUR"
    carbon_g_per_kwh: float | None = None
    wait_for: Measure = "price"
    steps: tuple[Step, ...] = ()

    @classmethod
    def of(cls, settings: Settings, steps: tuple[Step, ...] = ()) -> Self:
        """The one that an administrator has set, with the steps of its series."""
        return cls(
            pue=settings.pue,
            price_per_kwh=settings.price_per_kwh,
            currency=settings.currency,
            carbon_g_per_kwh=settings.carbon_g_per_kwh,
            wait_for=settings.wait_for,
            steps=steps,
        )

    def knows(self, of: Measure) -> bool:
        """Whether anything is said of it, at whatever time."""
        constant = self.price_per_kwh if of == "price" else self.carbon_g_per_kwh
        return constant is not None or bool(_values(self, of))

    @property
    def end(self) -> datetime | None:
        """When the last step is over; None without steps."""
        if not self.steps:
            return None
        last = self.steps[-1].start
        return last + (last - self.steps[-2].start if len(self.steps) > 1 else ONLY_STEP)

    def at(self, moment: datetime, of: Measure) -> float | None:
        """The price of a kWh at the meter then, in the currency, or its CO2 in g; None if nobody knows."""
        constant = self.price_per_kwh if of == "price" else self.carbon_g_per_kwh
        number = bisect_right(self.steps, moment, key=lambda step: step.start) - 1
        if number < 0 or self.end is None or moment >= self.end:
            return constant
        step = self.steps[number]
        said = step.price_per_kwh if of == "price" else step.carbon_g_per_kwh
        return constant if said is None else said

    def pieces(self, first: datetime, last: datetime) -> Iterable[tuple[datetime, datetime]]:
        """[first, last) cut wherever a step begins or the last one ends."""
        if first >= last:
            return ()
        return pairwise([first, *self.changes(first, last), last])

    def changes(self, first: datetime, last: datetime) -> list[datetime]:
        """When steps begin, or the last one ends, between the two."""
        begin = bisect_right(self.steps, first, key=lambda step: step.start)
        found: list[datetime] = []
        for step in self.steps[begin:]:
            if step.start >= last:
                return found
            found.append(step.start)
        return [*found, self.end] if self.end is not None and first < self.end < last else found


def parse_steps(text: str) -> tuple[Step, ...]:
    """The steps of a CSV with the column `start` and `price_per_kwh`, `carbon_g_per_kwh` or both.

    Raises TariffError.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), restkey="", restval="")
    names = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    if "start" not in names or len(names) < 2 or len(set(names)) < len(names) or not set(names) <= set(COLUMNS):
        raise TariffError(f"line 1: the columns are {', '.join(names) or 'missing'}; expected start and then "
                          "price_per_kwh, carbon_g_per_kwh or both")  # fmt: skip
    steps: list[Step] = []
    for row in reader:
        line = f"line {reader.line_num}"
        if "" in row:
            raise TariffError(f"{line}: more values than columns")
        step = Step(
            start=_moment(row["start"], line),
            price_per_kwh=_number(row.get("price_per_kwh", ""), f"{line}: price_per_kwh", least=-1e6),
            carbon_g_per_kwh=_number(row.get("carbon_g_per_kwh", ""), f"{line}: carbon_g_per_kwh", least=0.0),
        )
        if steps and step.start <= steps[-1].start:
            raise TariffError(f"{line}: start is not after that of the line before")
        steps.append(step)
        if len(steps) > MAX_STEPS:
            raise TariffError(f"{line}: more than {MAX_STEPS} steps; leave out those long past")
    if not steps:
        raise TariffError("line 2: there is no step; expected one line for each hour or so")
    return tuple(steps)


def _moment(text: str, line: str) -> datetime:
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise TariffError(f"{line}: start {text!r} is no moment; write it with its offset to UTC: 2026-01-31T00:00:00Z")
    return found.astimezone(UTC)


def _number(text: str, what: str, *, least: float) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= 1e6:
        raise TariffError(f"{what}: {text!r} is no number from {least:g} to 1e+06")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class PutOff:
    """A start that had better be later: until when, and the share of its cost or CO2 that this should save."""

    until: datetime
    saving: float
    of: Measure


LEAST_SAVING = 0.05
"""A start is put off while this share of its cost, or more, is to be saved. A choice: less is within the error of the
run time. So a job starts a little before the hour that it waits for."""


def put_off(tariff: Tariff, *, now: datetime, latest: datetime, run_s: float) -> PutOff | None:
    """When a job that runs for `run_s` (s) had best start, from `now` to `latest`; None if that is now.

    It is taken to draw the same all the time. The mean over its run changes evenly with its start between the moments
    at which its start or its end crosses a step, so that one of those, or `latest`, is best. After the last step the
    constant is expected, or else the mean of all steps.
    """
    if latest <= now or tariff.end is None or tariff.end <= now:
        return None
    run = timedelta(seconds=min(run_s, LONGEST_RUN_S))
    of = tariff.wait_for if _values(tariff, tariff.wait_for) else _other(tariff)
    crossed = tariff.changes(now, latest + run)
    starts = {now, latest, *crossed, *(moment - run for moment in crossed)}
    sums = _sums(tariff, now, latest + run, of)
    costs = {start: sums(start + run) - sums(start) for start in starts if now <= start <= latest}
    best = min(costs, key=lambda start: (costs[start], start))
    now_costs = costs[now]
    saving = (now_costs - costs[best]) / abs(now_costs) if now_costs else float(costs[best] < 0)
    return PutOff(until=best, saving=min(saving, 1.0), of=of) if saving >= LEAST_SAVING else None


def _other(tariff: Tariff) -> Measure:
    return "carbon" if tariff.wait_for == "price" else "price"


def _values(tariff: Tariff, of: Measure) -> list[float]:
    said = (step.price_per_kwh if of == "price" else step.carbon_g_per_kwh for step in tariff.steps)
    return [value for value in said if value is not None]


def _sums(tariff: Tariff, first: datetime, last: datetime, of: Measure) -> Callable[[datetime], float]:
    """The integral from `first` to a moment up to `last` of what is expected to hold, in units of a kWh times s."""
    values = _values(tariff, of)
    usual = sum(values) / len(values)
    begins: list[datetime] = []
    rates: list[float] = []
    sums = [0.0]
    for begin, finish in tariff.pieces(first, last):
        rate = tariff.at(begin, of)
        begins.append(begin)
        rates.append(usual if rate is None else rate)
        sums.append(sums[-1] + rates[-1] * (finish - begin).total_seconds())

    def up_to(moment: datetime) -> float:
        piece = bisect_right(begins, moment) - 1
        return sums[piece] + rates[piece] * (moment - begins[piece]).total_seconds()

    return up_to
