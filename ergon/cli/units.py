"""Durations, sizes and shares as people write them: `90s`, `15m`, `2h`, `4GiB`, `10%`."""

import re
from datetime import datetime
from decimal import Decimal

import typer

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40} | {
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_PERCENT = re.compile(r"(\d{1,5}(?:\.\d{1,5})?) ?%", re.ASCII)
_QUANTITY = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?([A-Za-z]+)", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds in `90s`, `15m`, `1.5h` or `2d`. A bare number is refused: other schedulers read it as minutes.

    Raises typer.BadParameter.
    """
    return float(_amount(text, SECONDS, "a duration", "90s, 15m, 2h or 1d"))


def parse_size(text: str) -> int:
    """Bytes in `4GiB` (2^30 each), `500MB` (10^6 each) or `512B`. A bare number and a bare `4G` are refused.

    Raises typer.BadParameter.
    """
    return round(_amount(text, BYTES, "a size", "4GiB, 512MiB or 500MB"))


def parse_percent(text: str) -> float:
    """The fraction in `10%` or `2.5%`. A bare number is refused: it could be either.

    Raises typer.BadParameter.
    """
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a percentage; write a number and %, such as 10% or 2.5%")
    return float(Decimal(match[1]) / 100)


def _amount(text: str, units: dict[str, int], what: str, examples: str) -> Decimal:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2] not in units:
        raise typer.BadParameter(f"{text!r} is not {what}; write a number and a unit, such as {examples}")
    return Decimal(match[1]) * units[match[2]]


def parse_time(text: str) -> datetime:
    """A moment in ISO 8601, such as `2031-05-01` or `2031-05-01T12:00`; local time unless it names a zone.

    Raises typer.BadParameter.
    """
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(
            f"{text!r} is not a time; write 2031-05-01, 2031-05-01T12:00 or 2031-05-01T12:00+02:00"
        ) from error


def show_duration(seconds: float) -> str:
    """Two parts at most: `0.4s`, `12s`, `3m 20s`, `2h 05m`, `4d 03h`."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // smaller_size:02d}{smaller}"
    return f"{whole}s"


def show_size(size: int) -> str:
    """Bytes in the largest binary unit that leaves at least 1, such as `31.2GiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= BYTES[unit]:
            return f"{size / BYTES[unit]:.1f}{unit}"
    return f"{size}B"
