"""What devices will draw: metered before modelled, another kind's where there is nothing better."""

import pytest

from scheduler.draws import LEAST_S, Draw, Metered, expected_draw
from scheduler.power import active_w, device_power


def metered(kind: str, above_w: float, device_s: float = 600.0) -> Metered:
    return Metered(energy_j=(device_power(kind).bare_idle_w + above_w) * device_s, device_s=device_s)


@pytest.mark.parametrize(
    ("known", "share", "on"),
    [
        ({}, 1.0, ()),
        ({"t4": metered("t4", 0.5 * active_w("t4"))}, 0.5, ("t4",)),
        ({"t4": metered("t4", 0.5 * active_w("t4")), "h100": metered("h100", 10.0)}, 0.5, ("t4",)),
        ({"h100": metered("h100", 0.3 * active_w("h100"))}, 0.3, ("h100",)),
        ({"t4": metered("t4", 1.0, device_s=LEAST_S / 2)}, 1.0, ()),
        ({"t4": metered("t4", 1.0, LEAST_S / 2), "a100": metered("a100", 0.8 * active_w("a100"))}, 0.8, ("a100",)),
    ],
)
def test_the_nearest_that_was_metered_is_believed(known: dict[str, Metered], share: float, on: tuple[str, ...]) -> None:
    found = expected_draw("t4", known)
    assert found == Draw(active_w=pytest.approx(share * active_w("t4")), metered_on=on)


def test_other_kinds_count_by_how_long_they_were_metered() -> None:
    known = {
        "a100": metered("a100", active_w("a100"), device_s=1000.0),
        "h100": metered("h100", 0.0, device_s=1000.0 * active_w("a100") / active_w("h100")),
    }
    assert expected_draw("t4", known).active_w == pytest.approx(0.5 * active_w("t4"))


def test_a_device_that_drew_less_than_idle_draws_nothing_more() -> None:
    known = {"t4": Metered(energy_j=0.0, device_s=600.0)}
    assert expected_draw("t4", known).active_w == 0.0
