"""Numbers and moments as people read them. Everything has its unit; a missing value is a dash."""

import math
from datetime import UTC, datetime

MISSING = "–"


def duration(seconds: float | None) -> str:
    """A length of time, its two largest units: `850 ms`, `42 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds is None:
        return MISSING
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    for unit, length, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def age(moment: datetime | None, now: datetime) -> str:
    """How long ago, in the largest unit; `in 5 s` for what a clock that runs ahead has noted."""
    if moment is None:
        return MISSING
    seconds = (now - moment).total_seconds()
    if abs(seconds) < 1:
        return "just now"
    largest = " ".join(duration(max(1, math.floor(abs(seconds)))).split()[:2])
    return f"{largest} ago" if seconds > 0 else f"in {largest}"


def moment(value: datetime | None) -> str:
    """A point in time in UTC, to the second."""
    return MISSING if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(value: datetime) -> str:
    """A point in time for programs and addresses; the microseconds stay, so that a window is the same window."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def energy(joules: float | None) -> str:
    """J in, and Wh, kWh or MWh out, whichever reads best."""
    return MISSING if joules is None else _scaled(joules / 3_600, ("Wh", "kWh", "MWh", "GWh"))


def energy_kwh(kwh: float | None) -> str:
    """kWh in; see `energy`."""
    return energy(None if kwh is None else kwh * 3.6e6)


def power(watts: float | None) -> str:
    """W in, and W, kW or MW out."""
    return MISSING if watts is None else _scaled(watts, ("W", "kW", "MW"))


def size(count: float | None) -> str:
    """Bytes in, and B, KiB, MiB, GiB or TiB out."""
    if count is None:
        return MISSING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{_short(count)} {unit}"
        count /= 1024
    return f"{_short(count)} TiB"


def percent(fraction: float | None) -> str:
    """A fraction of 1 as a percentage with two digits that count."""
    if fraction is None:
        return MISSING
    value = 100 * fraction
    if 0 < value < 0.01:
        return "< 0.01 %"
    return f"{value:.0f} %" if value == 0 or abs(value) >= 10 else f"{value:.2g} %"


def hours(value: float | None) -> str:
    """Hours, or device-hours; the unit stands in the head of the column."""
    return MISSING if value is None else f"{value:,.2f}"


def number(value: float | None) -> str:
    """A metric: four digits that count."""
    return MISSING if value is None else _short(value)


def _scaled(value: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{_three(value)} {unit}"
        value /= 1000
    return f"{_three(value)} {units[-1]}"


def _three(value: float) -> str:
    """Three digits that count, never an exponent."""
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return "< 0.001" if value > 0 else "> -0.001"
    return f"{value:.3g}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"
