"""Numbers that fence out what is older. None is given twice, not even after the database went back to a backup.

Incarnations, epochs and terms count upwards in the database. One that is restored has forgotten the latest of them,
and counting on from what it remembers would give them out again, to somebody else. So what is given out after a restore
starts at the number of seconds since a fixed day: nothing here is given out more than once a second over so long a
time, so that all that was given out before is less.
"""

from datetime import UTC, datetime

FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
"""No database of Ergon is older. The numbers fit into 32 bits until 2094."""


def least(now: datetime) -> int:
    """The least number that nobody can have been given before `now`, whatever the database remembers."""
    return max(0, int((now - FIRST_DAY).total_seconds()))
