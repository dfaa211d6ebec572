"""Durations, sizes and times as people type and read them."""

from datetime import UTC, datetime

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from ergon.cli.units import BYTES, parse_duration, parse_percent, parse_size, parse_time, show_duration, show_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86400), ("1.5h", 5400), ("0.25s", 0.25), (" 10 s ", 10)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "s", "-5s", "1h30m", "5x", "5S", "1e3s", "nan s", "٣s", "9" * 400 + "s"])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="90s, 15m"):
        parse_duration(text)


def test_percentages() -> None:
    assert [parse_percent(text) for text in ("10%", "2.5 %", "0%")] == [0.1, 0.025, 0.0]
    for text in ("10", "0.1", "-1%", "%", "1e1%"):
        with pytest.raises(typer.BadParameter, match="such as 10%"):
            parse_percent(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[("4GiB", 4 << 30), ("512MiB", 512 << 20), ("1KiB", 1024), ("1TiB", 1 << 40), ("500MB", 500_000_000)],
        *[("7B", 7), ("0.5GiB", 1 << 29), ("2kB", 2000), ("4 GiB", 4 << 30)],
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "4", "4G", "4gib", "-1B", "GiB", "4GiB5", "inf B", "1_000B"])
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="4GiB"):
        parse_size(text)


@given(st.integers(0, 10**9), st.sampled_from(sorted(BYTES)))
def test_whole_sizes_are_exact(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * BYTES[unit]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(-1, "0.0s"), (0, "0.0s"), (0.44, "0.4s"), (12.4, "12s"), (59.6, "1m 00s"), (200, "3m 20s")],
        *[(7500, "2h 05m"), (86400 * 4 + 3 * 3600 + 5, "4d 03h")],
    ],
)
def test_durations_are_shown_in_two_parts(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (int(31.25 * 2**30), "31.2GiB")]
)
def test_sizes_are_shown_in_their_largest_unit(size: int, text: str) -> None:
    assert show_size(size) == text


def test_times_carry_a_zone() -> None:
    assert parse_time("2031-05-01T12:00+02:00") == datetime(2031, 5, 1, 10, tzinfo=UTC)
    assert parse_time("2031-05-01T12:00Z") == datetime(2031, 5, 1, 12, tzinfo=UTC)
    assert parse_time("2031-05-01").tzinfo is not None


@pytest.mark.parametrize("text", ["", "yesterday", "12:00", "2031-13-01", "0001-01-01"])
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="2031-05-01"):
        parse_time(text)
