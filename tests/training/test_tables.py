"""The user's own tables: the same values from every format, what does not parse is named by file, row, column."""

import gzip
import json
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import torch

from training.errors import InputError
from training.tables import Table, labels, numbers, read_table, texts

ROWS = [("a b", 1, 0.5), ("c, d", 2, -1.5), ("e\nf", 1, 3.0)]
NAMES = ["text", "label", "size"]


def write(path: Path) -> None:
    """ROWS in the format of the path's name."""
    if path.name.endswith(".parquet"):
        columns = {name: [row[number] for row in ROWS] for number, name in enumerate(NAMES)}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return
    csv = "text,label,size\n" + "".join(f'"{text}",{label},{size}\n' for text, label, size in ROWS)
    jsonl = "".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in ROWS)
    data = (csv if ".csv" in path.name else jsonl).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet", "t.csv.gz", "t.jsonl.gz", "T.CSV"])
def test_every_format_holds_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path.with_name(name.lower()))
    path.with_name(name.lower()).rename(path)
    for url in (str(path), f"file://{path}"):
        table = read_table(url)
        assert table.names == tuple(NAMES)
        assert texts(table, 0) == [row[0] for row in ROWS]
        assert numbers(table, [2, 1]).tolist() == [[0.5, 1], [-1.5, 2], [3, 1]]
        found, classes = labels(table, 1, 0)
        assert (found.tolist(), classes) == ([0, 1, 0], ("1", "2"))
        assert labels(table, 1, 5)[0].tolist() == [1, 2, 1]


def test_any_store_that_fsspec_knows_will_do() -> None:
    with fsspec.open("memory://tables/t.csv", "w") as file:
        file.write("x,y\n1,2\n")  # type: ignore[attr-defined]
    assert torch.equal(numbers(read_table("memory://tables/t.csv"), [0, 1]), torch.tensor([[1.0, 2.0]]))


def table(*rows: tuple[object, ...]) -> Table:
    places = [f"line {number}" for number in range(2, 2 + len(rows))]
    return Table(url="t.csv", names=("text", "label"), rows=rows, places=places)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"", "the name must end with .csv, .jsonl, .parquet"),
        ("t", b"", "the name must end with"),
        ("t.csv", b"a,a\n1,2\n", "line 1 must name the columns, each differently"),
        ("t.csv", b"a,b\n1,2\n\n1,2,3\n", "line 4 has 3 columns, the header 2"),
        ("t.csv", b"a,b\n1,\xff\n", "is not in UTF-8"),
        ("t.csv.gz", b"a,b\n1,2\n", "cannot be read: Not a gzipped file"),
        ("t.jsonl", b"", "has no rows"),
        ("t.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("t.jsonl", b"[1]\n", "line 1 must be an object"),
        ("t.jsonl", b'{"a": 1}\n\n{"b": 1}\n', "line 3 has other keys than the first one: a, b"),
        ("t.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("t.parquet", b"PAR1 and no more", "cannot be read"),
    ],
)
def test_a_file_that_does_not_parse_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_table(str(path))
    assert str(refused.value).startswith(f"data={path}: {message}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/nowhere/t.csv", "No such file"),
        ("nowhere://bucket/t.csv", "Protocol not known: nowhere"),
        ("gcs://bucket/t.parquet", "gcsfs"),
    ],
)
def test_a_place_that_cannot_be_reached_is_named(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        read_table(url)
    assert str(refused.value).startswith(f"data={url}: cannot be read: ")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: table(("a", "1")).column("label", "lable"), "option label='lable': .* did you mean label"),
        (lambda: numbers(table(("1", "2"), ("3", "x")), [0, 1]), "t.csv: line 3, column 'label': 'x' is not a finite"),
        (lambda: numbers(table((None, "2")), [0]), "line 2, column 'text': None is not a finite number"),
        (lambda: numbers(table(("inf", "2")), [0]), "line 2, column 'text': 'inf' is not"),
        (lambda: texts(table(("a", "2"), (" ", "3")), 0), "line 3, column 'text': ' ' is no text"),
        (lambda: texts(table((7, "2")), 0), "line 2, column 'text': 7 is no text"),
        (lambda: labels(table(("a", "0"), ("b", "3")), 1, 3), "line 3, column 'label': label '3' is not within 0 to 2"),
        (lambda: labels(table(("a", "-1")), 1, 3), "label '-1' is not within 0 to 2"),
        (lambda: labels(table(("a", "")), 1, 0), "line 2, column 'label': '' is no label"),
        (lambda: labels(table(("a", 0.5)), 1, 0), "0.5 is no label"),
        (lambda: labels(table(("a", "x"), ("b", "x")), 1, 0), "holds one label only: 'x'"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_by_row_and_column(read, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read()


def test_classes_are_in_the_order_of_numbers_or_of_the_alphabet() -> None:
    assert labels(table(("", "10"), ("", "9")), 1, 0)[1] == ("9", "10")
    assert labels(table(("", "b"), ("", "10")), 1, 0)[1] == ("10", "b")
