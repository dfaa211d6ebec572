"""NVIDIA devices as the driver shows them. A machine without the driver has none, which is normal."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pynvml

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

XIDS_OF_HARDWARE = frozenset({46, 48, 62, 64, 74, 79, 95, 119, 120, 140})
"""Of the driver's critical events (NVIDIA's catalogue of Xids) those whose remedy is a reset or a repair of the GPU.
The others are mostly mistakes of the program that ran there."""

NO_DRIVER = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device. `index` is the driver's number; `power_limit_w` is the limit in force, if it can be read."""

    uuid: str
    name: str
    index: int
    memory_bytes: int
    power_limit_w: float | None


def list_gpus() -> list[Gpu]:
    """Every device of this machine."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value not in NO_DRIVER:  # pyright: ignore[reportAttributeAccessIssue]
            log.warning("the NVIDIA driver does not answer, so no GPU is offered: %s", error)
        return []
    return [_describe(index) for index in range(pynvml.nvmlDeviceGetCount())]


def energy_mj(uuid: str) -> int | None:
    """The device's energy counter in mJ since the driver was loaded; None where it has none (before Volta)."""
    try:
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(uuid)))
    except pynvml.NVMLError:
        return None


def utilisation(uuid: str) -> float | None:
    """Share of the driver's last sampling period (up to 1 s) in which a kernel ran, 0 to 1; None if it cannot tell."""
    try:
        return float(pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByUUID(uuid)).gpu) / 100
    except pynvml.NVMLError:
        return None


def power_limit_w(uuid: str) -> float | None:
    """The power limit that is set, in W; None if it cannot be read."""
    return _asked(lambda: pynvml.nvmlDeviceGetPowerManagementLimit(_handle(uuid)) / 1000)


def least_power_limit_w(uuid: str) -> float | None:
    """The lowest limit that the device takes, in W; None if it takes none."""
    return _asked(lambda: pynvml.nvmlDeviceGetPowerManagementLimitConstraints(_handle(uuid))[0] / 1000)


def set_power_limit_w(uuid: str, watts: float) -> None:
    """Set the power limit, in W. It lasts until the driver is unloaded or the machine boots.

    Raises:
        OSError: the driver refuses; only root may set limits, and not everywhere.
    """
    try:
        pynvml.nvmlDeviceSetPowerManagementLimit(_handle(uuid), round(watts * 1000))
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from error


class GpuFaults:
    """What the driver says is wrong with its GPUs. Made once: it listens for critical events from then on."""

    def __init__(self, uuids: Sequence[str]) -> None:
        self._events = pynvml.nvmlEventSetCreate() if uuids else None
        self._seen: dict[str, int] = {}  # uuid -> the first critical Xid
        for uuid in uuids:
            try:
                handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._events)
            except pynvml.NVMLError as error:
                log.warning("GPU %s reports no critical events: %s", uuid, error)

    def fault(self, uuid: str) -> str | None:
        """What is wrong with the GPU now; None if nothing is known to be."""
        self._collect()
        if uuid in self._seen:
            return f"Xid {self._seen[uuid]} was reported; reset the GPU, then restart the agent"
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            pynvml.nvmlDeviceGetMemoryInfo(handle)
        except pynvml.NVMLError as error:
            return f"the driver does not reach it: {error}"
        errors = _asked(
            lambda: pynvml.nvmlDeviceGetTotalEccErrors(
                handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            )
        )
        if errors:
            return f"{errors} uncorrectable memory errors (ECC) since it was last reset"
        rows = _asked(lambda: pynvml.nvmlDeviceGetRemappedRows(handle))
        if rows and rows[3]:
            return "a row of its memory could not be remapped: it must be replaced"
        if rows and rows[2]:
            return "rows of its memory wait to be remapped: reset the GPU"
        return None

    def _collect(self) -> None:
        """Take what has been reported since the last time."""
        while self._events is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                uuid = str(pynvml.nvmlDeviceGetUUID(event.device))
            except pynvml.NVMLError:
                return  # no more events, or a GPU that does not even tell its name, which `fault` finds out
            if event.eventData in XIDS_OF_HARDWARE:
                self._seen.setdefault(uuid, int(event.eventData))


def _handle(uuid: str) -> object:
    return pynvml.nvmlDeviceGetHandleByUUID(uuid)


def _asked(query: Callable[[], Answer]) -> Answer | None:
    """The answer, or None from a device that has no such counter."""
    try:
        return query()
    except pynvml.NVMLError:
        return None


def _describe(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        power_limit_w = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
    except pynvml.NVMLError:
        power_limit_w = None
    return Gpu(
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        index=index,
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        power_limit_w=power_limit_w,
    )
