"""What devices will draw for a work: learned from what meters counted of its past runs, else the model's."""

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.power import active_w, device_power

LEAST_S = 60.0
"""Less metered time than this tells nothing: it is start-up mostly. In device-seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What meters counted of past runs of a work on one kind: energy in J, over so many device-seconds."""

    energy_j: float
    device_s: float

    def above_idle_w(self, kind: str) -> float:
        """What a device of the kind drew in the mean above its bare idle, in W."""
        return max(0.0, self.energy_j / self.device_s - device_power(kind).bare_idle_w)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What one device is expected to draw above its bare idle, in W, and on which kinds that was metered."""

    active_w: float
    metered_on: tuple[str, ...] = ()


def expected_draw(kind: str, metered: Mapping[str, Metered]) -> Draw:
    """What a device of the kind draws above idle while the work runs on it.

    What was metered on that kind; else the model's, times how far the work was from the model on others; else the
    model's, which takes the device for busy all the time.
    """
    known = {name: one for name, one in metered.items() if one.device_s >= LEAST_S}
    if kind in known:
        return Draw(active_w=known[kind].above_idle_w(kind), metered_on=(kind,))
    modelled_j = sum(active_w(name) * one.device_s for name, one in known.items())
    if not modelled_j:
        return Draw(active_w=active_w(kind))
    counted_j = sum(one.above_idle_w(name) * one.device_s for name, one in known.items())
    return Draw(active_w=active_w(kind) * counted_j / modelled_j, metered_on=tuple(sorted(known)))
