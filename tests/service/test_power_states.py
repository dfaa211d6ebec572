"""The table of power states, and what is due when."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from protocol.states import PowerState
from service.cycle.leases import QUIET_S
from service.power_pools import PowerPool
from service.power_states import CHANGES, LINGER_S, Due, Event, Way, back_off_s, due

ON, SUSPENDING, OFF, BOOTING = PowerState.ON, PowerState.SUSPENDING, PowerState.OFF, PowerState.BOOTING
POOL = PowerPool(name="p", nodes=("*",), on=("on",), off=("off",), hook_limit_s=60, boot_limit_s=600)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def ago(seconds: float) -> datetime:
    return NOON - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (ON, {Event.CLOSE: SUSPENDING, Event.CALL: BOOTING}),
        (SUSPENDING, {Event.WENT: OFF, Event.STAYED: ON}),
        (OFF, {Event.CALL: BOOTING, Event.BOOTED: ON, Event.HEARD: ON}),
        (BOOTING, {Event.BOOTED: ON, Event.HEARD: ON, Event.MISSING: OFF, Event.SILENT: ON}),
    ],
)
def test_every_state_has_its_ways_out(state: PowerState, told: dict[Event, PowerState]) -> None:
    assert {event: after for (before, event), after in CHANGES.items() if before is state} == told


SUSPENDS = Way(
    state=SUSPENDING,
    since=ago(10),
    hook_began_at=None,
    hook_ended_at=None,
    retry_at=None,
    left=False,
    last_seen_at=ago(1),
)
BOOTS = replace(SUSPENDS, state=BOOTING, left=True, last_seen_at=ago(9_000))


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (SUSPENDS, Due.RUN_HOOK),
        (replace(SUSPENDS, hook_began_at=ago(5)), Due.NOTHING),
        (replace(SUSPENDS, hook_began_at=ago(121)), Due.RUN_HOOK),  # its leader is gone
        (replace(SUSPENDS, hook_ended_at=ago(5)), Due.NOTHING),
        (replace(SUSPENDS, hook_ended_at=ago(5), left=True), Due.WENT),
        (replace(SUSPENDS, hook_ended_at=ago(5), last_seen_at=ago(QUIET_S + 1)), Due.WENT),
        (replace(SUSPENDS, hook_ended_at=ago(LINGER_S + 1)), Due.STAYED),
        (replace(SUSPENDS, left=True), Due.RUN_HOOK),
        (BOOTS, Due.RUN_HOOK),
        (replace(BOOTS, hook_began_at=ago(5)), Due.NOTHING),
        (replace(BOOTS, retry_at=NOON + timedelta(seconds=1)), Due.NOTHING),
        (replace(BOOTS, retry_at=NOON), Due.RUN_HOOK),
        (replace(BOOTS, hook_ended_at=ago(500)), Due.NOTHING),
        (replace(BOOTS, hook_ended_at=ago(500), since=ago(601)), Due.MISSING),
        (replace(BOOTS, retry_at=NOON + timedelta(seconds=1), since=ago(601)), Due.MISSING),
        (replace(BOOTS, hook_began_at=ago(5), since=ago(601)), Due.NOTHING),
    ],
)
def test_what_is_due(way: Way, expected: Due) -> None:
    assert due(way, POOL, NOON) is expected


def test_a_command_that_fails_is_tried_less_and_less_often() -> None:
    assert [back_off_s(failures) for failures in (1, 2, 3, 30)] == [15.0, 30.0, 60.0, 900.0]
