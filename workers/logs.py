"""Ships what ranks write. The service says how much of each stream it has, and shipping goes on from there.

So nothing is kept about what was sent: a chunk that was lost is cut again, perhaps at another length, and one whose
answer was lost is not sent twice, because the next answer tells that it arrived.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from protocol.sync import MAX_CHUNK_BYTES, StreamChunk

log = logging.getLogger(__name__)

StreamName = Literal["stdout", "stderr", "progress"]
MAX_SYNC_BYTES = 1024 * 1024
"""Bytes of output in one call, all streams together."""
MAX_CHUNKS = 256
MAX_LINE_BYTES = 64 * 1024
"""A longer line of progress is replaced by blanks."""


@dataclass(slots=True, kw_only=True)
class _Stream:
    """One stream of one rank. `acknowledged` is in bytes."""

    attempt: str
    rank: int
    name: StreamName
    path: Path
    acknowledged: int = 0


class Shipper:
    """The streams of all runs of this node."""

    def __init__(self) -> None:
        self._streams: dict[str, list[_Stream]] = {}
        self._turn = 0

    def follow(self, attempt: str, folder: Path, ranks: Iterable[int], offsets: Mapping[str, int]) -> None:
        """Take the service's word for what it has.

        Args:
            folder: where the streams lie, as `rank-N.stdout`, `rank-N.stderr` and `rank-N.progress`.
            offsets: bytes stored, by `rank/stream`; none for a stream that is absent.
        """
        if attempt not in self._streams:
            self._streams[attempt] = [
                _Stream(attempt=attempt, rank=rank, name=name, path=folder / f"rank-{rank}.{name}")
                for rank in ranks
                for name in get_args(StreamName)
            ]
        for stream in self._streams[attempt]:
            stream.acknowledged = offsets.get(f"{stream.rank}/{stream.name}", 0)

    def drop(self, attempt: str) -> None:
        """Ship nothing more of it."""
        self._streams.pop(attempt, None)

    def is_shipped(self, attempt: str) -> bool:
        """Whether the service has all there is. False before it has said how much it has."""
        return attempt in self._streams and all(_next_chunk(stream) is None for stream in self._streams[attempt])

    def collect(self) -> list[StreamChunk]:
        """The next chunk of every stream that has one, MAX_SYNC_BYTES together; the streams take turns to be first."""
        streams = [stream for of_attempt in self._streams.values() for stream in of_attempt]
        chunks: list[StreamChunk] = []
        room = MAX_SYNC_BYTES
        for step in range(len(streams)):
            stream = streams[(self._turn + step) % len(streams)]
            chunk = _next_chunk(stream)
            if chunk is None:
                continue
            if len(chunk.data) > room or len(chunks) == MAX_CHUNKS:
                self._turn = (self._turn + step) % len(streams)
                break
            chunks.append(chunk)
            room -= len(chunk.data)
        return chunks


def whole_lines(data: bytes, *, inside: bool) -> bytes:
    """What of `data` may be shipped as progress: its whole lines. Bytes keep their places.

    A line longer than MAX_LINE_BYTES becomes blanks, as soon as that much of it is there, so that it blocks nothing.

    Args:
        data: what follows in the file.
        inside: `data` starts in the middle of a line, whose beginning therefore was too long.
    """
    *lines, rest = data.split(b"\n")
    shipped = bytearray()
    for number, line in enumerate(lines):
        too_long = len(line) > MAX_LINE_BYTES or (inside and number == 0)
        shipped += (b" " * len(line) if too_long else line) + b"\n"
    if len(rest) > MAX_LINE_BYTES or (inside and not lines):
        shipped += b" " * len(rest)
    return bytes(shipped)


def _next_chunk(stream: _Stream) -> StreamChunk | None:
    """What comes after the acknowledged bytes, or None while there is nothing to ship."""
    try:
        file = os.open(stream.path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if stream.name == "progress":
            before = min(stream.acknowledged, 1)
            data = os.pread(file, before + MAX_CHUNK_BYTES, stream.acknowledged - before)
            inside = before == 1 and data[:1] != b"\n"
            data = whole_lines(data[before:], inside=inside)
        else:
            data = os.pread(file, MAX_CHUNK_BYTES, stream.acknowledged)
    finally:
        os.close(file)
    if not data:
        return None
    return StreamChunk(
        attempt=stream.attempt, rank=stream.rank, stream=stream.name, offset=stream.acknowledged, data=data
    )
