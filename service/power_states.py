"""The one table of allowed changes of a node's power state, and what is due for a node that is on its way.

Everything here is pure. Times are the service's own.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto

from protocol.states import PowerState
from service.cycle.leases import QUIET_S
from service.power_pools import PowerPool

ON, SUSPENDING, OFF, BOOTING = PowerState.ON, PowerState.SUSPENDING, PowerState.OFF, PowerState.BOOTING

LINGER_S = 300.0
"""An agent that is still heard so long after its node's `off` command ended well shows that the node stayed on."""

FIRST_BACK_OFF_S = 15.0
LONGEST_BACK_OFF_S = 900.0


class Event(Enum):
    """What changes a power state."""

    CLOSE = auto()  # nothing runs there, and it is to go off
    WENT = auto()  # its `off` command ended well, and its agent is silent
    STAYED = auto()  # it does not go off: the command failed, or its agent is still heard
    CALL = auto()  # it is to come on
    BOOTED = auto()  # its agent registered after a boot
    HEARD = auto()  # its agent was heard without a boot: it never was off, or the message is an old one
    MISSING = auto()  # it was not heard within its boot limit
    SILENT = auto()  # nor was this one, and what it was given before may still run there


CHANGES: dict[tuple[PowerState, Event], PowerState] = {
    (ON, Event.CLOSE): SUSPENDING,
    (ON, Event.CALL): BOOTING,  # it was lost: a person has it switched on, or its `off` command failed before
    (SUSPENDING, Event.WENT): OFF,
    (SUSPENDING, Event.STAYED): ON,
    (OFF, Event.CALL): BOOTING,
    (OFF, Event.BOOTED): ON,  # somebody else switched it on
    (OFF, Event.HEARD): ON,
    (BOOTING, Event.BOOTED): ON,
    (BOOTING, Event.HEARD): ON,
    (BOOTING, Event.MISSING): OFF,
    (BOOTING, Event.SILENT): ON,  # lost, as it was: nothing that holds a node counts as off
}
"""Whatever is not here changes nothing. One that is heard while it suspends still is to go off."""


class Due(Enum):
    """What is to be done for a node that is on its way off or on."""

    NOTHING = auto()
    RUN_HOOK = auto()
    WENT = auto()
    STAYED = auto()
    MISSING = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What is known of a node that suspends or boots.

    `hook_began_at` is set while its command runs, `hook_ended_at` once it ended well, `retry_at` after it failed.
    `left`: its agent said that it leaves, or its lease is over.
    """

    state: PowerState
    since: datetime
    hook_began_at: datetime | None
    hook_ended_at: datetime | None
    retry_at: datetime | None
    left: bool
    last_seen_at: datetime


def due(way: Way, pool: PowerPool, now: datetime) -> Due:
    """What is to be done now.

    A command that began longer ago than it may take belonged to a leader that is gone, and is run again.
    """
    if way.hook_began_at is not None and _seconds(way.hook_began_at, now) <= 2 * pool.hook_limit_s:
        return Due.NOTHING
    if way.state is BOOTING and _seconds(way.since, now) > pool.boot_limit_s:
        return Due.MISSING
    if way.hook_ended_at is None:
        return Due.RUN_HOOK if way.retry_at is None or way.retry_at <= now else Due.NOTHING
    if way.state is SUSPENDING:
        if way.left or _seconds(way.last_seen_at, now) > QUIET_S:
            return Due.WENT
        if _seconds(way.hook_ended_at, now) > LINGER_S:
            return Due.STAYED
    return Due.NOTHING


def back_off_s(failures: int) -> float:
    """How long to wait after so many failures in a row, at least 1, in s."""
    return min(LONGEST_BACK_OFF_S, FIRST_BACK_OFF_S * 2.0 ** (failures - 1))


def _seconds(begin: datetime, now: datetime) -> float:
    return (now - begin).total_seconds()
