"""Leases: a node is lost when we, on our own clock and awake, have not heard it for the lease and a margin."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cycle.leases import MARGIN_S, QUIET_S, STALL_S, Leases

LEASE_S = 20.0
LIMIT_S = LEASE_S + MARGIN_S
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def contact(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def watch(heard: Sequence[float | None], *, every_s: float = 1.0, from_s: float = 0.0) -> list[float]:
    """Look at one node again and again; at which clock readings it was called lost.

    Args:
        heard: the node's last contact at each look; None when there is no such node that is ready.
    """
    leases = Leases(LEASE_S)
    lost: list[float] = []
    for number, seconds in enumerate(heard):
        clock_s = from_s + number * every_s
        if leases.look({} if seconds is None else {"n1": contact(seconds)}, clock_s).lost:
            lost.append(clock_s)
    return lost


def test_a_node_that_is_heard_is_never_lost() -> None:
    assert watch([float(number) for number in range(100)]) == []


def test_a_silent_node_is_lost_after_the_lease_and_the_margin() -> None:
    looks = int(LIMIT_S) + 3
    assert watch([0.0] * looks) == [LIMIT_S + 1, LIMIT_S + 2]


def test_what_counts_is_when_we_first_saw_the_contact_and_not_what_it_says() -> None:
    for claimed in (-1e6, 0.0, 1e6):
        assert watch([claimed] * 40, from_s=1e9)[0] == 1e9 + LIMIT_S + 1


def test_every_contact_gives_a_full_lease() -> None:
    heard = [float(min(number, 10)) for number in range(60)]
    assert watch(heard)[0] == 10 + LIMIT_S + 1


def test_a_contact_that_moves_back_is_a_contact() -> None:
    assert watch([5.0] * 20 + [4.0] * 20) == []


def test_a_node_that_comes_back_begins_anew() -> None:
    heard = [0.0] * 27 + [None] + [0.0] * 26
    assert watch(heard) == [26.0]


@pytest.mark.parametrize(("every_s", "ever_lost"), [(STALL_S, True), (STALL_S + 0.1, False)])
def test_when_we_were_asleep_ourselves_everybody_gets_a_fresh_lease(every_s: float, ever_lost: bool) -> None:
    assert bool(watch([0.0] * 30, every_s=every_s)) == ever_lost


@given(
    steps=st.lists(
        st.tuples(st.floats(0.1, 12.0), st.sets(st.sampled_from(["n1", "n2", "n3"]))), min_size=1, max_size=60
    )
)
def test_whoever_is_lost_was_silent_for_the_whole_limit_while_we_were_awake(
    steps: list[tuple[float, set[str]]],
) -> None:
    leases, clock_s = Leases(LEASE_S), 0.0
    contacts: dict[str, datetime] = dict.fromkeys(("n1", "n2", "n3"), contact(0))
    silent_since = dict.fromkeys(contacts, 0.0)
    leases.look(contacts, clock_s)
    for number, (pause_s, heard) in enumerate(steps, start=1):
        clock_s += pause_s
        contacts |= dict.fromkeys(heard, contact(number))
        for node in contacts:
            if node in heard or pause_s > STALL_S:
                silent_since[node] = clock_s
        expected = {node for node, since in silent_since.items() if clock_s - since > LIMIT_S}
        silence = leases.look(contacts, clock_s)
        assert set(silence.lost + silence.doubted) == expected
        assert bool(silence.doubted) == (len(expected) == len(contacts)), "three of three are most, two are few"


@pytest.mark.parametrize(
    ("nodes", "silent", "lost"),
    [
        (1, 1, 1),
        (2, 2, 2),  # a small cluster: both may well be gone
        (3, 2, 2),
        (3, 3, 0),
        (10, 5, 5),
        (10, 6, 0),
        (200, 101, 0),
        (200, 100, 100),
    ],
)
def test_when_most_nodes_fall_silent_at_once_nobody_is_lost(nodes: int, silent: int, lost: int) -> None:
    leases = Leases(LEASE_S)
    heard = {f"n{number}": contact(0) for number in range(nodes)}
    clock_s = 0.0
    while clock_s <= LIMIT_S:
        heard |= {f"n{number}": contact(clock_s) for number in range(silent, nodes)}
        assert leases.look(heard, clock_s).lost == ()
        clock_s += 1.0
    silence = leases.look(heard, clock_s)
    assert len(silence.lost) == lost
    assert len(silence.doubted) == (0 if lost else silent)


def test_those_that_stay_silent_are_lost_once_enough_of_the_others_are_heard_again() -> None:
    leases, clock_s = Leases(LEASE_S), 0.0
    heard = {f"n{number}": contact(0) for number in range(4)}
    while clock_s < 10 * LIMIT_S:
        assert leases.look(heard, clock_s).lost == ()
        clock_s += 1.0
    heard["n0"] = heard["n1"] = contact(clock_s)
    assert leases.look(heard, clock_s).lost == ("n2", "n3")


def test_a_node_is_quiet_long_before_it_is_lost() -> None:
    long, short = Leases(300.0), Leases(4.0)
    for second in range(int(QUIET_S) + 2):
        calm = long.look({"n1": contact(0)}, float(second))
        tense = short.look({"n1": contact(0)}, float(second))
        assert calm.quiet == (frozenset({"n1"}) if second > QUIET_S else frozenset())
        assert tense.quiet == (frozenset({"n1"}) if second > 2 else frozenset())
        assert not calm.lost
