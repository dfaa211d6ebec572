"""The user's own examples: CSV, JSONL or Parquet at any fsspec URL, each value with the place it came from."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec
import pyarrow
import pyarrow.parquet
import torch

from training.errors import InputError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows as they were read. `places` name each row within the file, such as `line 7`; `names` are the columns."""

    url: str
    names: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    places: Sequence[str]

    def column(self, option: str, name: str) -> int:
        """The position of the column that `option` names. Raises InputError when there is none of that name."""
        if name not in self.names:
            hint = did_you_mean(name, self.names)
            raise InputError(
                f"option {option}={name!r}: data={self.url} has no such column; {hint}it has {', '.join(self.names)}"
            )
        return self.names.index(name)

    def fault(self, row: int, column: int, why: str) -> InputError:
        """The error that says what is wrong with one value: file, row, column."""
        return InputError(f"data={self.url}: {self.places[row]}, column {self.names[column]!r}: {why}")


def read_table(url: str) -> Table:
    """Read all of a table into memory. Its format is that of its name: .csv, .jsonl or .parquet, also with .gz behind.

    CSV has a header; each line of JSONL is an object with the same keys; a blank line is no row. Raises InputError for
    a name of another kind, a file that cannot be opened or does not parse, and a table without rows.
    """
    path = PurePosixPath(urlsplit(url).path)
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    reader = READERS.get(suffix.lower())
    if reader is None:
        raise InputError(f"data={url}: the name must end with {', '.join(READERS)}, and may have .gz behind")
    try:
        # Not `with fsspec.open(...)`: what an unknown protocol or a missing package raises comes from the call itself.
        opened: Any = fsspec.open(url, "rb", compression="infer")
        with opened as file:
            content = io.BytesIO(file.read())
        table = reader(url, content)
    except (OSError, ImportError, EOFError, csv.Error, pyarrow.ArrowException) as error:
        raise InputError(f"data={url}: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"data={url}: is not in UTF-8: {error}") from error
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"data={url}: cannot be read: {error}") from error
    if not table.rows:
        raise InputError(f"data={url}: has no rows")
    return table


def _csv(url: str, file: IO[bytes]) -> Table:
    reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline=""), strict=True)
    header = next(reader, [])
    if len(set(header)) < len(header) or all(map(_is_number, header)):
        raise InputError(f"data={url}: line 1 must name the columns, each differently")
    rows, places = [], []
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            raise InputError(f"data={url}: line {reader.line_num} has {len(cells)} columns, the header {len(header)}")
        rows.append(cells)
        places.append(f"line {reader.line_num}")
    return Table(url=url, names=tuple(header), rows=rows, places=places)


def _jsonl(url: str, file: IO[bytes]) -> Table:
    names: tuple[str, ...] = ()
    rows, places = [], []
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"data={url}: line {number} is not JSON: {error}") from error
        if not isinstance(found, dict) or not found:
            raise InputError(f"data={url}: line {number} must be an object, such as {{'text': '...', 'label': '...'}}")
        names = names or tuple(found)
        if set(found) != set(names):
            differing = ", ".join(sorted(set(found) ^ set(names)))
            raise InputError(f"data={url}: line {number} has other keys than the first one: {differing}")
        rows.append([found[name] for name in names])
        places.append(f"line {number}")
    return Table(url=url, names=names, rows=rows, places=places)


def _parquet(url: str, file: IO[bytes]) -> Table:
    found = pyarrow.parquet.read_table(file)
    columns = [column.to_pylist() for column in found.columns]
    rows = list(zip(*columns, strict=True))
    places = [f"row {number}" for number in range(1, len(rows) + 1)]
    return Table(url=url, names=tuple(found.column_names), rows=rows, places=places)


READERS: dict[str, Callable[[str, IO[bytes]], Table]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def numbers(table: Table, columns: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """These columns as floats (rows, columns). Raises InputError for a value that is no finite number."""
    values = []
    for row, cells in enumerate(table.rows):
        for column in columns:
            if not _is_number(cells[column]):
                raise table.fault(row, column, f"{cells[column]!r} is not a finite number")
        values.append([float(cells[column]) for column in columns])
    return torch.tensor(values, dtype=dtype)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def texts(table: Table, column: int) -> list[str]:
    """This column as text. Raises InputError for a value that is none, or is empty."""
    for row, cells in enumerate(table.rows):
        if not isinstance(cells[column], str) or not cells[column].strip():
            raise table.fault(row, column, f"{cells[column]!r} is no text")
    return [cells[column] for cells in table.rows]


def labels(table: Table, column: int, classes: int) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The class of every row, int64 (rows,), and the classes' names.

    With `classes`, labels are the whole numbers 0 to classes - 1; with 0, every value is a class, in alphabetical order
    or, when all are whole numbers, in theirs. Raises InputError for a missing label, one out of range, and a table
    whose rows are all of one class.
    """
    found = [_label(table, row, column) for row in range(len(table.rows))]
    if classes:
        for row, label in enumerate(found):
            if not (label.isascii() and label.isdigit() and int(label) < classes):
                raise table.fault(row, column, f"label {label!r} is not within 0 to {classes - 1}; see classes")
        return torch.tensor([int(label) for label in found]), tuple(map(str, range(classes)))
    whole = all(label.isascii() and label.isdigit() for label in found)
    names = sorted(set(found), key=int if whole else str)
    if len(names) < 2:
        raise InputError(f"data={table.url}: column {table.names[column]!r} holds one label only: {names[0]!r}")
    position = {name: number for number, name in enumerate(names)}
    return torch.tensor([position[label] for label in found]), tuple(names)


def _label(table: Table, row: int, column: int) -> str:
    value = table.rows[row][column]
    text = str(value).strip()
    if not isinstance(value, str | int) or not text:
        raise table.fault(row, column, f"{value!r} is no label; labels are text or whole numbers")
    return text
