"""How fast a recipe trains: time of a step, throughput, memory, and how much of the device's peak it makes use of."""

import math
import resource
import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

PEAKS = {
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100": 989.5e12,
    "NVIDIA A100": 312e12,
}
"""FLOP/s of dense matrices in bfloat16, by how the device's name begins; the more special name comes first.

From NVIDIA's data sheets of these products; those of Hopper give twice as much, for matrices of which half is zeros.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of one round. `step_ms`: the median step of rank 0, in which it computed something; `examples_per_s`: of all
    ranks; `memory_bytes`: the most that rank 0 held so far, on the GPU where it computes on one, else in all.

    `utilisation`: the floating point operations of the model, as a share of what the devices of all ranks could do in
    that time; None where that is not known. What is computed twice to save memory counts once (Chowdhery et al. 2022,
    "PaLM", appendix B). `communication`: the share of a step, as in `Exchanges`.
    """

    step_ms: float
    examples_per_s: float
    memory_bytes: int
    utilisation: float | None
    communication: float | None


class Laps:
    """The time of every step, without ever waiting for the device to finish one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event] | tuple[float, float]] = []
        self._begun = self._now()

    def begin(self) -> None:
        """A step begins here."""
        self._begun = self._now()

    def end(self) -> None:
        """It ends here, as soon as the device has done all that it was given so far."""
        self._marks.append((self._begun, self._now()))  # type: ignore[arg-type]

    def median_ms(self) -> float:
        """Of all of them, NaN without any. The device must have done them."""
        found = [
            (end - begun) * 1e3 if isinstance(begun, float) else begun.elapsed_time(end)  # type: ignore[operator, arg-type]
            for begun, end in self._marks
        ]
        return statistics.median(found) if found else math.nan

    def _now(self) -> "torch.cuda.Event | float":
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def peak_of(device: torch.device, precision: str) -> float | None:
    """FLOP/s that the device could do at most, or None. Of parts of a device (MIG) and of float32 none is known."""
    if device.type != "cuda" or precision == "float32":
        return None
    name = torch.cuda.get_device_name(device)
    peak = None if "MIG" in name else next((peak for begin, peak in PEAKS.items() if name.startswith(begin)), None)
    return peak / 2 if peak and precision == "tf32" else peak  # by the same data sheets


def operations(network: nn.Module, inputs: torch.Tensor) -> int:
    """Floating point operations of a training step on these inputs, forward and backward; computes nothing.

    Counted are products of matrices, convolutions and attention; a multiplication and an addition are two.
    """
    held = {
        name: torch.empty_like(value, device="meta", requires_grad=value.requires_grad)
        for name, value in (*network.named_parameters(), *network.named_buffers())
    }
    with FlopCounterMode(display=False) as counter:
        functional_call(network, held, (inputs.to("meta"),)).sum().backward()
    return counter.get_total_flops()


def peak_memory(device: torch.device) -> int:
    """Bytes of tensors on a GPU, or of the whole process, at most since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
