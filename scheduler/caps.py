"""Power caps: what a job's devices draw, and how much longer it takes, when their power limit is lowered.

A device that would draw P0 with the job on it, and P1 with nothing but its context, draws min(P0, cap) under a cap and
does the share min(1, ((gain * cap - P1) / (P0 - P1)) ^ exponent) of the work. Exponent and gain are fitted to Zeus's
measurements of six programs on each of four GPUs (`summary_power_*.csv`, Apache-2.0), where the share is off by 0.013
to 0.044 in the mean. On other kinds a prior stands in, and no cap below 0.55 of the limit is planned: nobody measured
it. On the four, energy for the same work rises again somewhere below half of the limit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from scheduler.power import device_power, known_kind
from scheduler.problem import CPU_KIND, Shape

LEVELS = (1.0, 0.5)
"""Caps that are offered to the planner, by how much of the slowdown that the job allows they use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How a kind of device answers to caps. `floor` is the lowest one to plan, as a share of its power limit."""

    exponent: float
    gain: float
    floor: float = 0.5


_P100 = Curve(exponent=0.18, gain=0.85)
_V100 = Curve(exponent=0.47, gain=1.04)
_RTX6000 = Curve(exponent=0.53, gain=1.10)
_CURVES = {
    "p100": _P100,
    "p100-pcie": _P100,
    "v100": _V100,
    "v100-pcie": _V100,
    "rtx6000": _RTX6000,
    "rtx-6000": _RTX6000,
    "a40": Curve(exponent=0.78, gain=1.14),
}
_PRIOR = Curve(exponent=0.5, gain=1.05, floor=0.55)


def least_cap_w(kind: str) -> float:
    """The lowest cap to plan for a device of the kind, in W."""
    return _curve(kind).floor * device_power(kind).limit_w


def work_share(kind: str, active_w: float, cap_w: float) -> float:
    """How much of a job's work gets done in the same time under a cap, from 0 to 1.

    Args:
        active_w: what the device draws above its bare idle without a cap, in W.
    """
    curve, power = _curve(kind), device_power(kind)
    idle_w, busy_w = power.context_idle_w, power.bare_idle_w + active_w
    if busy_w <= idle_w:
        return 1.0
    left = max(0.0, (curve.gain * cap_w - idle_w) / (busy_w - idle_w))
    return min(1.0, math.pow(left, curve.exponent))


def capped_w(kind: str, active_w: float, cap_w: float | None) -> float:
    """What a device draws above its bare idle under a cap, or without one, in W."""
    return active_w if cap_w is None else min(active_w, max(0.0, cap_w - device_power(kind).bare_idle_w))


def with_caps(shapes: Sequence[Shape], may_slow: float, least_w: Mapping[str, float]) -> tuple[Shape, ...]:
    """The shapes, and after them each of the whole devices that may be capped again with the caps worth offering.

    Args:
        may_slow: by how much the run may take longer, as a fraction.
        least_w: the kinds whose devices may be capped, each with the lowest cap that these take, in W.
    """
    found = list(shapes)
    for shape in shapes:
        if shape.devices and not shape.shared and shape.kind in least_w and shape.kind != CPU_KIND:
            found += dict.fromkeys(_capped(shape, may_slow, least_w[shape.kind]))
    return tuple(found)


def _capped(shape: Shape, may_slow: float, least_w: float) -> Iterator[Shape]:
    """The shape under each cap that saves energy of the devices at no more than the slowdown."""
    curve, power = _curve(shape.kind), device_power(shape.kind)
    idle_w, busy_w = power.context_idle_w, power.bare_idle_w + shape.active_w
    for level in LEVELS:
        share = math.pow(1 + level * may_slow, -1 / curve.exponent)
        wanted_w = (idle_w + share * (busy_w - idle_w)) / curve.gain
        cap_w = float(math.ceil(max(wanted_w, least_cap_w(shape.kind), least_w)))
        if not may_slow or busy_w <= idle_w or cap_w >= busy_w:
            continue
        slower = 1 / work_share(shape.kind, shape.active_w, cap_w)
        active_w = cap_w - power.bare_idle_w
        capped = replace(shape, cap_w=cap_w, active_w=active_w, run_s=shape.run_s * slower, slower=slower)
        if capped.work_j < shape.work_j:
            yield capped


def _curve(kind: str) -> Curve:
    return _CURVES.get(known_kind(kind) or "", _PRIOR)
