"""What a kWh costs and how much CO2 it means, as constants or as a series over time."""

import csv
import io
import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Literal, Self

from scheduler.problem import Rate
from service.settings import Settings

COLUMNS = ("start", "price_per_kwh", "carbon_g_per_kwh")
MAX_STEPS = 200_000
"""Twenty years of hours."""

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


def rates_ahead(tariff: Tariff, now: datetime) -> tuple[Rate, ...]:
    """What a kWh costs from now on, or its CO2, whichever jobs that may wait should save; none if no step is to come.

    After the last step the constant is expected, or else the mean of all steps.
    """
    if tariff.end is None or tariff.end <= now:
        return ()
    of = saved_by(tariff)
    values = _values(tariff, of)
    usual = sum(values) / len(values)
    rates: list[Rate] = []
    for moment in [now, *tariff.changes(now, tariff.end), tariff.end]:
        said = tariff.at(moment, of)
        rates.append(Rate(start_s=(moment - now).total_seconds(), per_kwh=usual if said is None else said))
    return tuple(rates)


def saved_by(tariff: Tariff) -> Measure:
    """What jobs that may wait save: what they should, or else the one that the series says."""
    if _values(tariff, tariff.wait_for):
        return tariff.wait_for
    return "carbon" if tariff.wait_for == "price" else "price"


def _values(tariff: Tariff, of: Measure) -> list[float]:
    said = (step.price_per_kwh if of == "price" else step.carbon_g_per_kwh for step in tariff.steps)
    return [value for value in said if value is not None]
