"""Prices over time: read, looked up, and what is expected from now on; and where they come from."""

import os
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from service.settings import Settings, SettingsError
from service.tariff_source import FETCH_EVERY_S, TariffSource
from service.tariffs import Step, Tariff, TariffError, parse_steps, rates_ahead, saved_by

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
GOOD = "start,price_per_kwh\n2026-01-01T12:00:00Z,0.3\n2026-01-01T13:00:00Z,0.1\n"


def series(*prices: float | None, **constants: float) -> Tariff:
    """One price for each hour from noon on."""
    steps = (Step(start=NOON + n * HOUR, price_per_kwh=price, carbon_g_per_kwh=None) for n, price in enumerate(prices))
    return Tariff(steps=tuple(steps), **constants)  # type: ignore[arg-type]


def test_what_a_line_says_holds_until_the_next_one() -> None:
    text = "\ufeffstart, carbon_g_per_kwh ,price_per_kwh\n2026-01-01T13:00+01:00,40,\n2026-01-01T14:00Z,,-0.02\n"
    tariff = Tariff(steps=parse_steps(text), price_per_kwh=0.5)
    assert [tariff.at(NOON + n * HOUR, "price") for n in (-1, 0, 1.9, 2, 3.9, 4)] == [0.5, 0.5, 0.5, -0.02, -0.02, 0.5]
    assert [tariff.at(NOON + n * HOUR, "carbon") for n in (-1, 0, 1.9, 2)] == [None, 40.0, 40.0, None]
    cuts = [NOON + n * HOUR for n in (-1, 0, 2, 4, 5)]
    assert list(tariff.pieces(cuts[0], cuts[-1])) == list(pairwise(cuts))
    assert list(tariff.pieces(NOON, NOON)) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the columns are missing"),
        ("start\n2026-01-01T00:00Z\n", "expected start and then price_per_kwh"),
        ("start,prise\n", "the columns are start, prise"),
        ("start,price_per_kwh\n", "there is no step"),
        ("start,price_per_kwh\n2026-01-01T00:00,1\n", "line 2: start '2026-01-01T00:00' is no moment; write it with"),
        ("start,price_per_kwh\nnow,1\n", "line 2: start 'now' is no moment"),
        (GOOD + "2026-01-01T13:00:00Z,1\n", "line 4: start is not after that of the line before"),
        (GOOD + "2026-01-01T14:00:00Z,nan\n", "line 4: price_per_kwh: 'nan' is no number from -1e+06 to 1e+06"),
        (GOOD + "2026-01-01T14:00:00Z,dear\n", "line 4: price_per_kwh: 'dear' is no number"),
        (GOOD + "2026-01-01T14:00:00Z,1,2\n", "line 4: more values than columns"),
        ("start,carbon_g_per_kwh\n2026-01-01T00:00Z,-1\n", "carbon_g_per_kwh: '-1' is no number from 0 to"),
    ],
)
def test_a_series_that_cannot_be_used_is_refused_by_line(text: str, said: str) -> None:
    with pytest.raises(TariffError) as refused:
        parse_steps(text)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("tariff", "rates"),
    [
        (series(0.4, 0.2), [(0, 0.4), (1800, 0.2), (5400, 0.3)]),  # after the series its mean is expected
        (series(0.4, 0.2, price_per_kwh=0.1), [(0, 0.4), (1800, 0.2), (5400, 0.1)]),  # or the constant
        (series(0.4, None, 0.1), [(0, 0.4), (1800, 0.25), (5400, 0.1), (9000, 0.25)]),
        (series(0.4), [(0, 0.4), (1800, 0.4)]),
        (Tariff(price_per_kwh=0.1), []),
    ],
)
def test_what_is_expected_from_now_on(tariff: Tariff, rates: list[tuple[float, float]]) -> None:
    found = rates_ahead(tariff, NOON + HOUR / 2)
    assert [(rate.start_s, rate.per_kwh) for rate in found] == [
        (start_s, pytest.approx(rate)) for start_s, rate in rates
    ]


def test_nothing_is_expected_of_a_series_that_is_over() -> None:
    assert rates_ahead(series(0.4, 0.2), NOON + 2 * HOUR) == ()


def test_co2_is_saved_where_that_is_wanted_or_nothing_else_is_said() -> None:
    both = Tariff(steps=(Step(start=NOON, price_per_kwh=0.1, carbon_g_per_kwh=90.0),))
    cleaner = Tariff(steps=(Step(start=NOON, price_per_kwh=None, carbon_g_per_kwh=90.0),))
    assert [saved_by(tariff) for tariff in (both, cleaner)] == ["price", "carbon"]
    assert [rates_ahead(tariff, NOON)[0].per_kwh for tariff in (both, cleaner)] == [0.1, 90.0]


def settings(folder: Path, tariff: object, **more: object) -> Settings:
    return Settings.model_validate({"data_dir": folder, "tariff": str(tariff), **more})


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text(GOOD)
    source = TariffSource(settings(tmp_path, path))
    assert source.current().at(NOON, "price") == 0.3
    path.write_text(GOOD.replace("0.3", "0.7"))
    os.utime(path, ns=(1, 1))
    assert source.current().at(NOON, "price") == 0.7
    path.write_text("start,price_per_kwh\nlost")
    assert source.current().at(NOON, "price") == 0.7, "what was known stays"
    assert source.fault is not None
    assert "line 2: start 'lost'" in source.fault
    path.write_text(GOOD)
    assert (source.current().at(NOON, "price"), source.fault) == (0.3, None)


def test_a_file_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ERGON_TARIFF: .*none.csv: No such file"):
        TariffSource(settings(tmp_path, tmp_path / "none.csv"))


def test_a_url_is_asked_now_and_then_and_its_last_answer_kept(tmp_path: Path) -> None:
    clock = [0.0]
    answers = [GOOD, "<html>", GOOD.replace("0.3", "0.9")]
    asked: list[str] = []

    def fetch(url: str) -> str:
        asked.append(url)
        return answers[len(asked) - 1]

    def price(source: TariffSource) -> float | None:
        source.current()
        source.wait()
        return source.current().at(NOON, "price")

    source = TariffSource(settings(tmp_path, "https://prices"), fetch=fetch, clock_s=lambda: clock[0])
    assert price(source) == price(source) == 0.3
    clock[0] += FETCH_EVERY_S
    assert price(source) == 0.3, "an answer that cannot be used changes nothing"
    assert "the columns are <html>" in str(source.fault)
    clock[0] += FETCH_EVERY_S
    assert (price(source), source.fault) == (0.9, None)
    assert asked == ["https://prices"] * 3

    def fail(_url: str) -> str:
        raise TariffError("gone")

    again = TariffSource(settings(tmp_path, "https://prices"), fetch=fail)
    assert price(again) == 0.9, "kept for the next start"
