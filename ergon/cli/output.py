"""What commands print with: tables and lines for people, JSON for programs, nothing that steers a terminal."""

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocol.base import View

Json = Annotated[bool, typer.Option("--json", help="Print JSON as the API gives it; lists as one object a line.")]

FILE_WIDTH = 10_000
"""Columns where no terminal limits them: nothing is cut off in a file or a pipe."""

# Sequences that steer a terminal (CSI; OSC and its like; any other escape), then every other control character, and
# the marks that turn the direction of writing round.
_STEERING = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b.?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]",
    re.DOTALL,
)


def clean(text: str) -> str:
    """Text that cannot steer a terminal; it keeps its lines and tabs. A lone carriage return ends a line."""
    return _STEERING.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def clean_line(text: str) -> str:
    """The same on one line."""
    return clean(text).replace("\n", " ").replace("\t", " ")


def complain(message: str) -> None:
    """One line on stderr, `ergon: ...`."""
    typer.echo(f"ergon: {clean_line(message)}", err=True)


def note(message: str) -> None:
    """A line on stderr that is neither a result nor an error."""
    typer.echo(clean_line(message), err=True)


@contextlib.contextmanager
def told_on_interrupt(message: str) -> Iterator[None]:
    """Inside, Ctrl-C first tells what has become of things, on stderr."""
    try:
        yield
    except KeyboardInterrupt:
        note(message)
        raise


def line(text: str = "") -> None:
    """A line of the result, seen at once also by a program that reads it."""
    typer.echo(clean_line(text))


def write_json(view: View) -> None:
    """One view on one line, in ASCII."""
    typer.echo(json.dumps(view.model_dump(mode="json")))


def write_json_lines(views: Iterable[View]) -> None:
    """One view a line."""
    for view in views:
        write_json(view)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. A column whose heading starts with `>` is aligned to the right."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(clean_line(cell)) for cell in row))
    console().print(grid)


def console(*, stderr: bool = False) -> Console:
    """Standard output, or standard error, as rich sees it, without reading markup into what others wrote."""
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else FILE_WIDTH
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


def local_time(moment: datetime | None) -> str:
    """Local date and time to the second; `-` for none."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else "-"
