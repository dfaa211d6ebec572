"""NVIDIA devices as the driver shows them. A machine without the driver has none, which is normal."""

import logging
from dataclasses import dataclass

import pynvml

log = logging.getLogger(__name__)

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
