"""What client, agent and service of the first version that ran jobs said to each other, recorded at their wire.

It was taken from processes of revision 694d488, a gang of two on two nodes, and is never changed. `covers` says whether
an answer of today still has all that a reader of then looks at. (Readers of then refused new fields in a job's spec;
`View.read` has taken them since.)
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RECORD = json.loads((Path(__file__).with_name("first_version.json")).read_text())


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its answer; `answer` is text where it was no JSON document."""

    method: str
    path: str
    body: Any
    status: int
    answer: Any


CLIENT = tuple(Exchange(**exchange) for exchange in _RECORD["client"])
AGENT = tuple(Exchange(**exchange) for exchange in _RECORD["agent"])
REQUEST_FIELDS: dict[str, frozenset[str]] = {
    name: frozenset(known) for name, known in _RECORD["request_fields"].items()
}
"""The fields that the service of then took, by message; it refused every other."""


MAPS = frozenset({"env", "metrics", "offsets"})
"""Fields that hold what the user or the moment put there, by names of their own."""


def covers(old: Any, new: Any, place: str = "answer") -> list[str]:
    """Places where `new` lacks what a reader of `old` finds there, or has something of another type."""
    if isinstance(old, dict):
        if not isinstance(new, dict):
            return [f"{place} is {new!r}"]
        missing = [f"{place}.{key} is gone" for key in old.keys() - new.keys() if place.rpartition(".")[2] not in MAPS]
        return missing + [
            fault for key in old.keys() & new.keys() for fault in covers(old[key], new[key], f"{place}.{key}")
        ]
    if isinstance(old, list):
        if not isinstance(new, list):
            return [f"{place} is {new!r}"]
        return covers(old[0], new[0], f"{place}.0") if old and new else []
    numbers = isinstance(old, int | float) and isinstance(new, int | float)
    alike = old is None or new is None or numbers or type(old) is type(new)
    return [] if alike else [f"{place} was {old!r} and is {new!r}"]
