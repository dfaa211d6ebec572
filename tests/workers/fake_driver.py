"""A driver with two GPUs whose power limits are in a file: there is no GPU where the tests run. Only root may set
limits, which the file says too.
"""

import json
from pathlib import Path

import pynvml

UUIDS = ("GPU-1", "GPU-2")


class Driver:
    """The file at `path`, in mW; `install` lets `pynvml` of this process answer from it."""

    def __init__(self, path):
        self.path = Path(path)
        if not self.path.exists():
            self.write(dict.fromkeys(UUIDS, 400_000), allowed=True)

    def write(self, limits, *, allowed):
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps({"limits": limits, "allowed": allowed}))
        draft.rename(self.path)

    def limits(self):
        """By UUID, in W."""
        return {uuid: limit / 1000 for uuid, limit in self._read()["limits"].items()}

    def change(self, *, allowed=True, **limits_w):
        """As somebody else does it; the UUIDs with `_` for `-`."""
        changed = {uuid.replace("_", "-"): round(1000 * limit) for uuid, limit in limits_w.items()}
        self.write(self._read()["limits"] | changed, allowed=allowed)

    def answers(self):
        """What `pynvml` says, by name."""
        return {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: len(UUIDS),
            "nvmlDeviceGetHandleByIndex": UUIDS.__getitem__,
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetUUID": lambda handle: handle,
            "nvmlDeviceGetName": lambda handle: "NVIDIA A100-SXM4-40GB",
            "nvmlDeviceGetMemoryInfo": lambda handle: type("Memory", (), {"total": 40 << 30}),
            "nvmlDeviceGetEnforcedPowerLimit": lambda handle: self._read()["limits"][handle],
            "nvmlDeviceGetPowerManagementLimit": lambda handle: self._read()["limits"][handle],
            "nvmlDeviceGetPowerManagementLimitConstraints": lambda handle: [100_000, 400_000],
            "nvmlDeviceSetPowerManagementLimit": self._set,
            "nvmlEventSetCreate": lambda: "events",
            "nvmlDeviceRegisterEvents": lambda handle, kind, events: None,
            "nvmlEventSetWait_v2": refuse,
            "nvmlDeviceGetTotalEccErrors": refuse,
            "nvmlDeviceGetRemappedRows": refuse,
        }

    def install(self):
        for name, answer in self.answers().items():
            setattr(pynvml, name, answer)

    def _read(self):
        return json.loads(self.path.read_text())

    def _set(self, handle, limit):
        state = self._read()
        if not state["allowed"]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        self.write(state["limits"] | {handle: limit}, allowed=True)


def refuse(*_arguments):
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
