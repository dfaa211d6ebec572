"""What a job's devices draw for each example or token that it trains on."""

from collections.abc import Mapping, Sequence
from typing import Literal

from protocol.jobs import JobView, SampleEnergyView
from scheduler.caps import capped_w
from scheduler.draws import LEAST_S, Metered
from scheduler.power import active_w, device_power
from service.db import Record

RATES: Mapping[str, Literal["token", "example"]] = {"tokens_per_s": "token", "examples_per_s": "example"}
"""Metrics that say how much all ranks train on in a second, and what each counts."""


def view(job: JobView, members: Sequence[Record], kind: str) -> SampleEnergyView | None:
    """Joules per example (or token) of the latest attempt: the mean whole draw of its devices over its latest rate.

    None where the attempt holds no device, has not told a rate, or waits again.

    Args:
        members: the rows of all its attempts.
        kind: the kind of the latest attempt's devices.
    """
    metrics = job.progress.metrics if job.progress else {}
    rate = next((name for name in RATES if metrics.get(name, 0.0) > 0.0), None)
    attempt = next((one for one in job.attempts if one.epoch == job.epoch), None)
    if rate is None or attempt is None or not kind:
        return None
    own = [row for row in members if row.attempt_id == attempt.id]
    devices = sum(len(row.device_ids or ()) for row in own) * job.spec.device_share
    metered_w = _metered_w(own)
    device_w = metered_w if metered_w is not None else _modelled_w(kind, attempt.cap_w)
    return SampleEnergyView(
        joules=device_w * devices / metrics[rate],
        per=RATES[rate],
        device_w=device_w,
        quality="modelled" if metered_w is None else "measured",
    )


def _metered_w(members: Sequence[Record]) -> float | None:
    """What a device drew in the mean, in W; None unless those of every member were counted, and for long enough."""
    metered = Metered(energy_j=sum(row.metered_j for row in members), device_s=sum(row.metered_s for row in members))
    if metered.device_s < LEAST_S or not all(row.metered_s for row in members):
        return None
    return metered.energy_j / metered.device_s


def _modelled_w(kind: str, cap_w: float | None) -> float:
    """What a device of the kind draws that is busy all the time, in W."""
    return device_power(kind).bare_idle_w + capped_w(kind, active_w(kind), cap_w)
