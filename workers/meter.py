"""Raw measurements of power and use. Nothing is priced here: the service does that."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.nodes import PowerSample
from workers import nvml

log = logging.getLogger(__name__)

RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A sample without its age; `ended_s` is when its stretch ended, in s on CLOCK_BOOTTIME."""

    ended_s: float
    sample: PowerSample

    def aged(self, now_s: float) -> PowerSample:
        """The sample as it is sent at `now_s`."""
        return self.sample.model_copy(update={"age_s": max(0.0, now_s - self.ended_s)})


class CpuClock:
    """CPU time that attempts used since it was last asked, from their running totals."""

    def __init__(self, totals: Mapping[str, float]) -> None:
        """`totals` in s by attempt are those of before: they are not counted."""
        self._last = dict(totals)
        self._carried_s = 0.0

    def close(self, attempt: str, total_s: float) -> None:
        """The attempt is over and will not be listed again; `total_s` is all it ever used."""
        self._carried_s += max(0.0, total_s - self._last.pop(attempt, 0.0))

    def used_s(self, totals: Mapping[str, float]) -> float:
        """CPU time since the last call, in s."""
        used_s = self._carried_s + sum(max(0.0, total - self._last.get(name, 0.0)) for name, total in totals.items())
        self._last = dict(totals)
        self._carried_s = 0.0
        return used_s


class Rapl:
    """Energy of the processor packages, where the kernel lets us read it (Linux powercap, `energy_uj`)."""

    def __init__(self, root: Path = RAPL) -> None:
        self._packages = [zone for zone in sorted(root.glob("intel-rapl:*")) if _is_package(zone)]
        self._last = self._read()

    def energy_j(self) -> float | None:
        """J since the last call, all packages together; None if a counter could not be read now or then."""
        last, self._last = self._last, self._read()
        if not last or not self._last:
            return None
        microjoules = 0
        for (before, wraps_at), (after, _wraps_at) in zip(last, self._last, strict=True):
            microjoules += after - before if after >= before else after + wraps_at - before
        return microjoules / 1e6

    def _read(self) -> list[tuple[int, int]]:
        """Value and largest value of each counter in µJ; empty if there is none, or one cannot be read."""
        try:
            return [
                (int((zone / "energy_uj").read_text()), int((zone / "max_energy_range_uj").read_text()))
                for zone in self._packages
            ]
        except OSError:
            return []


class Meter:
    """Takes a reading of everything about every `every_s` seconds."""

    def __init__(
        self,
        *,
        every_s: float,
        gpus: Sequence[str],
        rapl: Rapl | None,
        clock: CpuClock,
        now_s: float,
        energy_mj: Callable[[str], int | None] = nvml.energy_mj,
        utilisation: Callable[[str], float | None] = nvml.utilisation,
    ) -> None:
        """`gpus` are the UUIDs to read; `rapl` is None when other nodes share the machine."""
        self.clock = clock
        self._every_s = every_s
        self._rapl = rapl
        self._energy_mj = energy_mj
        self._utilisation = utilisation
        self._counters = {uuid: energy_mj(uuid) for uuid in gpus}
        self._last_s = now_s

    def next_s(self) -> float:
        """When the next reading is due, in s on CLOCK_BOOTTIME."""
        return self._last_s + self._every_s

    def read(self, totals: Mapping[str, float], now_s: float) -> list[Reading]:
        """What was used since the last reading: one sample for the node, one for each GPU.

        Args:
            totals: CPU time of each attempt since its start, in s.
            now_s: now, in s on CLOCK_BOOTTIME.
        """
        seconds = now_s - self._last_s
        self._last_s = now_s
        if seconds <= 0:
            return []
        energy_j = self._rapl.energy_j() if self._rapl else None
        node = PowerSample(
            seconds=seconds,
            age_s=0,
            energy_j=energy_j,
            busy_cores=self.clock.used_s(totals) / seconds,
            source="proc" if energy_j is None else "rapl",
        )
        samples = [node, *(self._gpu_sample(uuid, seconds) for uuid in self._counters)]
        return [Reading(ended_s=now_s, sample=sample) for sample in samples]

    def _gpu_sample(self, uuid: str, seconds: float) -> PowerSample:
        before, after = self._counters[uuid], self._energy_mj(uuid)
        self._counters[uuid] = after
        return PowerSample(
            seconds=seconds,
            age_s=0,
            device=uuid,
            energy_j=_counted_j(before, after),
            utilisation=self._utilisation(uuid),
            source="nvml",
        )


def _counted_j(before_mj: int | None, after_mj: int | None) -> float | None:
    """J between two readings. The counter starts anew with the driver; what was used around that is not known."""
    if before_mj is None or after_mj is None or after_mj < before_mj:
        return None
    return (after_mj - before_mj) / 1000


def _is_package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False
