"""Whether the devices of this node are fit for work: what the driver says of its GPUs, what a program of the
administrator's says, and whether there is room on the disk for what jobs write."""

import logging
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from protocol.nodes import MAX_REASON, DeviceReport
from workers.launch import kept_environment

log = logging.getLogger(__name__)

LIMIT_S = 60.0
"""How long the administrator's program may take for one look, in s."""


LITTLE_BYTES = 256 * 1024 * 1024
"""With less room on its disk a node gets no new work; a quarter of a small disk. Output stops well below that, so what
runs goes on."""


class Health(threading.Thread):
    """Looks at the devices over and over, in a thread of its own: a driver or a program that hangs holds up nothing."""

    def __init__(
        self,
        devices: Sequence[DeviceReport],
        *,
        folder: Path,
        gpu_fault: Callable[[str], str | None],
        program: Path | None,
        every_s: float,
        ring: Callable[[], None],
    ) -> None:
        """
        Args:
            folder: the state folder, where jobs write.
            gpu_fault: what is wrong with the GPU of this UUID; None if nothing is.
            program: the administrator's check, if there is one.
            every_s: from the end of one look to the beginning of the next.
            ring: called when the answer has changed.
        """
        super().__init__(name="health", daemon=True)
        self.unfit: Mapping[str, str] = {}
        """Why each device that is unfit is so."""
        self._devices = [device.id for device in devices]
        self._gpus = [device.id for device in devices if device.kind != "cpu"]
        self._folder = folder
        self._gpu_fault = gpu_fault
        self._program = program
        self._every_s = every_s
        self._ring = ring

    def run(self) -> None:
        never = threading.Event()
        while True:
            unfit = self.look()
            if unfit != self.unfit:
                for device, reason in unfit.items():
                    log.warning("device %s is unfit: %s", device, reason)
                if self.unfit and not unfit:
                    log.info("every device is fit again")
                self.unfit = unfit
                self._ring()
            never.wait(self._every_s)

    def look(self) -> dict[str, str]:
        """Look once: the reason for each device that is unfit."""
        if (fault := disk_fault(self._folder)) is not None:
            return dict.fromkeys(self._devices, fault)
        unfit = ask(self._program, self._devices) if self._program else {}
        faults = ((uuid, self._gpu_fault(uuid)) for uuid in self._gpus)
        return unfit | {uuid: fault[:MAX_REASON] for uuid, fault in faults if fault is not None}


def disk_fault(folder: Path) -> str | None:
    """What is wrong with the room on the disk of `folder`; None if nothing is."""
    disk = os.statvfs(folder)
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    if free >= min(LITTLE_BYTES, size // 4):
        return None
    return f"{free >> 20} MiB are free on the disk of the state folder {folder}; make room there"


def ask(program: Path, devices: Sequence[str]) -> dict[str, str]:
    """Run the administrator's program: why each device is unfit that it names, or every one if it names none."""
    try:
        done = subprocess.run(
            [program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=kept_environment(os.environ),
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return dict.fromkeys(devices, f"the health check {program} did not end in {LIMIT_S:g} s")
    except OSError as error:
        return dict.fromkeys(devices, f"the health check {program} cannot be run: {error.strerror}")
    said = done.stdout.decode(errors="replace").replace("\0", "")
    return judge(done.returncode, said, devices) if done.returncode else {}


def judge(code: int, said: str, devices: Sequence[str]) -> dict[str, str]:
    """What a check means that ended with a code other than 0. A line that begins with the id of a device is about that
    one; without such a line, the first is about all of them."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    why = f"the health check ended with code {code}"
    named = (line.partition(" ") for line in lines)
    unfit = {device.rstrip(":"): reason.strip() or why for device, _space, reason in named}
    unfit = {device: reason[:MAX_REASON] for device, reason in unfit.items() if device in devices}
    return unfit or dict.fromkeys(devices, lines[0][:MAX_REASON] if lines else why)
