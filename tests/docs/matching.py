"""Whether a command printed what its page shows. CONTRIBUTING.md, "The documentation", has the rules."""

import re
from collections.abc import Sequence

_ID = re.compile(r"\b(job|array|try|token|user|hold)-[0-9a-z]{13,16}\b")
_NUMBER = re.compile(r"(?<!\w)\d+(\.\d+)?")
_REST = "..."


def matches(shown: Sequence[str], printed: str) -> bool:
    """Whether the lines printed are those shown: an id stands for any id of its kind, a number for any number, spaces
    for any number of spaces, `...` for any text, and on a line of its own for any lines.
    """
    pattern = "".join(_pattern(line) for line in shown)
    return re.fullmatch(pattern, "".join(f"{_plain(line)}\n" for line in printed.splitlines())) is not None


def _pattern(line: str) -> str:
    if line.strip() == _REST:
        return r"(?:.*\n)*?"
    return ".*".join(re.escape(part) for part in _plain(line).split(_REST)) + r"\n"


def _plain(line: str) -> str:
    return " ".join(_NUMBER.sub("0", _ID.sub(r"\1-id", line)).split())
