"""The end of what a rank wrote, as a terminal would show it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from service.db import Record

MAX_CHUNKS = 200
MAX_BYTES = 48 * 1024
MAX_LINES = 400

_ESCAPES = re.compile(
    "\x1b(?:\\[[0-?]*[ -/]*[@-~]"  # colours, movements of the cursor
    "|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?"  # titles
    "|[ -/]*[0-~])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive output of one stream, `stdout` or `stderr`."""

    stream: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The last pieces, in order; `cut` says that there was more before them."""

    pieces: tuple[Piece, ...]
    cut: bool


def tail(newest_first: Sequence[Record]) -> Tail:
    """The end of a rank's output: MAX_LINES and about MAX_BYTES of it at most.

    Args:
        newest_first: rows of `store.logs.last_chunks`, asked for with MAX_CHUNKS and MAX_BYTES.
    """
    taken: list[Record] = []
    length = 0
    for row in newest_first:
        taken.append(row)
        length += len(row.data)
        if length >= MAX_BYTES:
            break
    cut = len(taken) < len(newest_first) or len(newest_first) == MAX_CHUNKS or not all(row.whole for row in taken)
    pieces = [
        Piece(stream=stream, text=plain(b"".join(row.data for row in rows).decode("utf-8", "replace")))
        for stream, rows in groupby(reversed(taken), key=lambda row: row.stream)
    ]
    return _last_lines(pieces, cut)


def plain(text: str) -> str:
    """Text without escape sequences; of a line that was written over, as by a progress bar, the last version."""
    lines = _ESCAPES.sub("", text).split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


def _last_lines(pieces: Sequence[Piece], cut: bool) -> Tail:
    kept: list[Piece] = []
    room = MAX_LINES
    for piece in reversed(pieces):
        if room <= 0:
            return Tail(pieces=tuple(reversed(kept)), cut=True)
        lines = piece.text.splitlines(keepends=True)
        cut = cut or len(lines) > room
        kept.append(Piece(stream=piece.stream, text="".join(lines[-room:])))
        room -= len(lines)
    return Tail(pieces=tuple(reversed(kept)), cut=cut)
