"""What happened, one JSON object a line: `invoke`, then `ok`, or `info` (who knows)."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def boottime_s() -> float:
    """One clock for every process of this machine, in s."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class History:
    """Written line by line; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        self._open_writes = 0

    def add(self, who: str, what: str, verb: str, **facts: Any) -> None:
        line = {"at": boottime_s(), "wall": time.time(), "who": who, "what": what, "verb": verb, **facts}
        with self._lock:
            if who.startswith("client"):
                self._open_writes += 1 if what == "invoke" else -1
            os.write(self._file, json.dumps(line).encode() + b"\n")

    @property
    def open_writes(self) -> int:
        """Requests of clients that have been sent and not been answered."""
        return self._open_writes


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a history, or of what the ranks wrote. A last line that was cut off is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
