"""What others wrote cannot steer our terminal, and a curve is drawn as it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergon.cli.chart import chart
from ergon.cli.output import clean, clean_line, table, write_json
from tests.ergon.builders import a_job


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 漢 😀\tx\n", "plain ä 漢 😀\tx\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://evil\x1b\\x", "x"),
        ("\x1bcx", "x"),
        ("\x9b31mx", "31mx"),
        ("a\x00b\x07c\x08d\x7fe", "abcde"),
        ("10%\r20%\r\n", "10%\n20%\n"),
        ("abc\u202edef\u2066", "abcdef"),
        ("end\x1b", "end"),
    ],
)
def test_clean(text: str, shown: str) -> None:
    assert clean(text) == shown


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    left = set(clean(text)) - {"\n", "\t"}
    assert not {character for character in left if ord(character) < 32 or 127 <= ord(character) < 160}
    assert "\n" not in clean_line(text)


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])))
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert clean(text) == text


def test_a_table_reads_no_markup_and_cuts_nothing_off(capsys: pytest.CaptureFixture[str]) -> None:
    name = "[bold]" + "x" * 300
    table(("NAME", ">N"), [(name, "1"), ("evil\x1b[2J\nrow", "2")])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.startswith("NAME")
    assert name in first
    assert "evil row" in second


def test_json_is_ascii_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_json(a_job(reason="ä\x9b\n"))
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.count("\n") == 1
    assert json.loads(out)["reason"] == "ä\x9b\n"


def test_a_falling_curve_falls() -> None:
    rows = chart([4.0, 3.0, 2.0, 1.0], height=4)
    assert [row.split("|")[1] for row in rows] == ["*", " *", "  *", "   *"]
    assert rows[0].split()[0] == "4"
    assert rows[-1].split()[0] == "1"


def test_many_points_are_averaged_into_columns() -> None:
    rows = chart([1.0, 3.0, 10.0, 20.0], width=2, height=2)
    assert [row.split() for row in rows] == [["15", "|", "*"], ["2", "|*"]]


def test_a_wide_range_is_drawn_on_a_logarithmic_axis_and_says_so() -> None:
    rows = chart([1000.0, 100.0, 10.0, 1.0], height=4)
    assert [row.split("|")[1] for row in rows[:4]] == ["*", " *", "  *", "   *"]
    assert rows[4].split() == ["(logarithmic)"]
    assert len(chart([1000.0, 100.0, 0.0], height=4)) == 4


@given(st.lists(st.floats(-1e30, 1e30), max_size=300), st.integers(2, 80), st.integers(2, 20))
def test_every_column_holds_one_point_inside_the_frame(values: list[float], width: int, height: int) -> None:
    rows = chart(values, width=width, height=height)
    if len(values) < 2:
        assert rows == []
        return
    rows = rows[:height]
    assert len(rows) == height
    assert sum(row.count("*") for row in rows) == min(width, len(values))
    assert all(len(row.split("|")[1]) <= width for row in rows)
