"""The pure parts of the pages: words for numbers, geometry, the end of an output, paths that lead nowhere else."""

import math
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.web import charts, output, units
from service.web.paging import cut
from service.web.render import visible
from service.web.session import own_path

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)

Session = namedtuple("Session", "node_id started_at ended_at")
Holding = namedtuple("Holding", "node_id user_name thousandths granted_at released_at")
Point = namedtuple("Point", "name step value")
Chunk = namedtuple("Chunk", "stream data whole", defaults=[True])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0, "0 s"),
        (0.0123, "12 ms"),
        (0.9996, "1 s"),
        (1.25, "1.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3_599.9, "1 h"),
        (7_500, "2 h 5 min"),
        (86_400, "1 d"),
        (270_000, "3 d 3 h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "just now"), (1, "1 s ago"), (59.9, "59 s ago"), (61, "1 min ago"), (90_000, "1 d ago"), (-5, "in 5 s")],
)
def test_ages(seconds: float, text: str) -> None:
    assert units.age(NOW - timedelta(seconds=seconds), NOW) == text


@pytest.mark.parametrize(
    ("joules", "text"),
    [
        (None, "–"),
        (0, "0 Wh"),
        (1, "< 0.001 Wh"),
        (-1, "> -0.001 Wh"),
        (3_600, "1 Wh"),
        (3.6e6 * 0.9994, "999 Wh"),
        (3.6e6 * 0.9996, "1 kWh"),
        (3.6e6 * 12.34, "12.3 kWh"),
        (3.6e9, "1 MWh"),
        (3.6e15, "1,000 GWh"),
    ],
)
def test_energies(joules: float | None, text: str) -> None:
    assert units.energy(joules) == text


@given(st.floats(min_value=0, max_value=1e18))
def test_energy_is_the_number_that_is_shown(joules: float) -> None:
    shown, unit = units.energy(joules).rsplit(" ", 1)
    if shown.startswith("<"):
        assert 0 < joules < 3.6
        return
    factor = {"Wh": 3.6e3, "kWh": 3.6e6, "MWh": 3.6e9, "GWh": 3.6e12}[unit]
    assert float(shown.replace(",", "")) * factor == pytest.approx(joules, rel=0.005)


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(None, "–"), (0, "0 %"), (1e-6, "< 0.01 %"), (0.0123, "1.2 %"), (0.0996, "10 %"), (1, "100 %")],
)
def test_percentages(fraction: float | None, text: str) -> None:
    assert units.percent(fraction) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1,023 B"), (1 << 30, "1 GiB"), (1 << 45, "32 TiB")])
def test_sizes(count: int, text: str) -> None:
    assert units.size(count) == text


def test_an_iso_moment_reads_back_as_the_same_moment() -> None:
    moment = NOW + timedelta(microseconds=123_457)
    assert datetime.fromisoformat(units.iso(moment)) == moment


@pytest.mark.parametrize("address", ["/", "/jobs", "/jobs?state=running&name=a%20b", "/report?start=2026-01-01T00:00"])
def test_a_path_on_this_service_is_kept(address: str) -> None:
    assert own_path(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "jobs",
        "//evil.test",
        "/\\evil.test",
        "\\\\evil.test",
        "/jobs\\..\\..",
        "/\t/evil.test",
        "/\n/evil.test",
        "/ /evil.test",
        "/jobs\r\nSet-Cookie: a=b",
        "https://evil.test/",
        "javascript:alert(1)",
        "/\u2215evil.test",
    ],
)
def test_a_path_that_may_lead_away_is_not(address: str) -> None:
    assert own_path(address) == "/"


def test_marks_that_turn_text_are_spelled_out_and_others_stay() -> None:
    assert visible("a\u202eb\u2066c\x00d\x1b[1m\r") == "a\\u202eb\\u2066c\\u0000d\\u001b[1m\\u000d"
    assert visible("é 漢字 שלום 👩‍🔬\n\tx") == "é 漢字 שלום 👩‍🔬\n\tx"
    assert visible(3) == 3


@given(st.integers(0, 500), st.integers(1, 20), st.integers(1, 50))
def test_pages_hold_every_item_once(count: int, size: int, number: int) -> None:
    items = range(count)
    pages = cut(items, 1, size).pages
    assert [item for page in range(1, pages + 1) for item in cut(items, page, size).items] == list(items)
    assert cut(items, number, size).page == min(number, pages)


@given(st.floats(-1e9, 1e9), st.floats(1e-4, 1e4), st.integers(3, 10))
def test_ticks_are_round_even_and_inside(low: float, relative: float, most: int) -> None:
    span = relative * max(1.0, abs(low))
    high = low + span
    values = charts.ticks(low, high, most)
    assert 1 <= len(values) <= most + 1
    assert all(low - 1e-6 * span <= value <= high + 1e-6 * span for value in values)
    for first, second in pairwise(values):
        power = 10 ** math.floor(math.log10((second - first) * 1.001))
        assert min(abs((second - first) / power - step) for step in (1, 2, 5)) < 1e-3


def test_an_empty_range_has_one_tick() -> None:
    assert charts.ticks(3.0, 3.0, 5) == [3.0]


def test_a_curve_spans_the_drawing_and_ends_at_the_last_value() -> None:
    rows = [Point("loss", step, 2.0 / step) for step in (1, 2, 4, 10)]
    (curve,) = charts.curves(rows)
    assert [dot.step for dot in curve.dots] == [1, 2, 4, 10]
    assert curve.dots[0].x == 0
    assert curve.dots[-1].x == charts.WIDTH
    heights = [dot.y for dot in curve.dots]
    assert heights == sorted(heights)  # a loss that falls goes down, and down is up in SVG
    assert all(0 <= height <= charts.HEIGHT for height in heights)
    assert sum(dot.width for dot in curve.dots) == pytest.approx(charts.WIDTH)
    assert curve.path.startswith("M0.0,")
    assert curve.path.count("L") == 3


def test_curves_of_one_value_of_none_and_without_steps() -> None:
    assert charts.curves([]) == []
    (single,) = charts.curves([Point("acc", 5, 0.0)])
    assert (single.dots[0].x, single.dots[0].y) == (charts.WIDTH / 2, charts.HEIGHT / 2)
    (numbered,) = charts.curves([Point("x", None, 1.0), Point("x", 7, 2.0)])
    assert not numbered.stepped
    assert [dot.step for dot in numbered.dots] == [1, 2]


def test_losses_are_drawn_first() -> None:
    rows = [Point(name, 1, 1.0) for name in ("accuracy", "loss", "lr", "val_loss")]
    assert [curve.name for curve in charts.curves(rows)] == ["loss", "val_loss", "accuracy", "lr"]


MINUTES = st.integers(-600, 2 * 24 * 60)
HOLDINGS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["ann", "bob", "cy"]), st.integers(1, 4), MINUTES, MINUTES),
    max_size=12,
)


@given(HOLDINGS)
def test_the_area_of_a_users_bars_is_the_device_hours_held(
    drawn: list[tuple[str, str, int, int, int]],
) -> None:
    start, end = NOW, NOW + 24 * HOUR
    rows = [
        Holding(node, user, [1000] * devices, NOW + timedelta(minutes=first), NOW + timedelta(minutes=last))
        for node, user, devices, first, last in drawn
        if first < last and first < 24 * 60 and last > 0
    ]
    colours = {"ann": 0, "bob": 1, "cy": 2}
    strips = charts.strips(["a", "b"], [], rows, {"a": 48, "b": 48}, colours, start=start, end=end)
    column_h = 24 / charts.COLUMNS
    for strip in strips:
        for user in colours:
            area = sum(48 * bar.height * bar.width * column_h for bar in strip.bars if bar.user == user)
            held = sum(
                len(row.thousandths) * (min(end, row.released_at) - max(start, row.granted_at)) / HOUR
                for row in rows
                if (row.node_id, row.user_name) == (strip.node, user)
            )
            assert area == pytest.approx(held, abs=1e-6)
        for column in range(0, charts.COLUMNS, 37):
            here = sorted((bar.y, bar.y + bar.height) for bar in strip.bars if bar.x <= column < bar.x + bar.width)
            assert all(lower <= upper + 1e-9 for (_, lower), (upper, _) in pairwise(here))
            assert not here or here[-1][1] == pytest.approx(1)  # stacked on the floor, without a hole


def test_a_strip_shows_when_the_node_was_on() -> None:
    sessions = [Session("a", NOW - HOUR, NOW + 6 * HOUR), Session("a", NOW + 12 * HOUR, None)]
    (strip,) = charts.strips(["a"], sessions, [], {"a": 1}, {}, start=NOW, end=NOW + 24 * HOUR)
    quarter = charts.COLUMNS // 4
    assert strip.on == ((0, quarter), (2 * quarter, 2 * quarter))


@pytest.mark.parametrize("hours", [0.02, 1, 24, 7 * 24, 366 * 24])
def test_a_few_round_moments_label_a_timeline(hours: float) -> None:
    end = NOW + timedelta(hours=5, minutes=7)
    marks = charts.round_moments(end - hours * HOUR, end)
    assert 1 <= len(marks) <= 8
    assert all(0 <= place <= 1 and moment.second == 0 for place, moment in marks)


def test_output_reads_as_a_terminal_would_show_it() -> None:
    assert output.plain("\x1b[31mred\x1b[0m\x1b]0;title\x07!\r\n 0%\r50%\r100%\r\nend") == "red!\n100%\nend"


def test_pieces_keep_their_stream_and_their_order() -> None:
    rows = [Chunk("stdout", b"d\n"), Chunk("stderr", b"c\n"), Chunk("stdout", b"\xa9b\n"), Chunk("stdout", b"a\xc3")]
    tail = output.tail(rows)
    assert [(piece.stream, piece.text) for piece in tail.pieces] == [
        ("stdout", "aéb\n"),
        ("stderr", "c\n"),
        ("stdout", "d\n"),
    ]
    assert not tail.cut


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.integers(0, 300)), max_size=8))
def test_the_tail_is_the_end_of_everything(drawn: list[tuple[str, int]]) -> None:
    rows, everything = [], ""
    for number, (stream, lines) in enumerate(drawn):
        text = "".join(f"{number}:{line}\n" for line in range(lines))
        rows.append(Chunk(stream, text.encode()))
        everything += text
    tail = output.tail(rows[::-1])
    shown = "".join(piece.text for piece in tail.pieces)
    assert everything.endswith(shown)
    assert shown.count("\n") == min(everything.count("\n"), output.MAX_LINES)
    assert tail.cut == (shown != everything)


def test_a_long_output_is_cut_and_says_so() -> None:
    assert output.tail([Chunk("stdout", b"x" * 10, False)]).cut
    assert output.tail([Chunk("stdout", b"x")] * output.MAX_CHUNKS).cut
    tail = output.tail([Chunk("stdout", b"x" * output.MAX_BYTES)] * 5)
    assert tail.cut
    assert sum(len(piece.text) for piece in tail.pieces) == output.MAX_BYTES
