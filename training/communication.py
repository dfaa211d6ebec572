"""What part of a step passes while ranks exchange something: seen by torch's profiler, in one step of each round."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

Span = tuple[int, int]
"""From and to, in ns."""


class Exchanges:
    """Those of one step, of which this rank takes part. Other ranks need not look at theirs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.share: float | None = None
        """The part of the step during which at least one was under way, whether something was computed meanwhile or
        not, waiting for slower ranks included; None before a step, and of one of which none was seen.
        """

    @contextmanager
    def of_step(self) -> Iterator[None]:
        """Look at the step that the block is. It takes a little longer for that, and waits for the device."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it says on stderr that it begins and ends
        on_gpu = self._device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
            begun = time.perf_counter_ns()
            yield
            if on_gpu:
                torch.cuda.synchronize(self._device)
            length = time.perf_counter_ns() - begun
        assert seen.profiler is not None
        assert seen.profiler.kineto_results is not None
        # As profile.events(), without a Python object for each of thousands of operations.
        events = seen.profiler.kineto_results.events()
        # gloo tells from when to when one was under way, and NCCL's kernels are on the GPU all that time.
        name = "nccl" if on_gpu else "gloo:"
        spans = [(event.start_ns(), event.end_ns()) for event in events if event.name().startswith(name)]
        self.share = min(1.0, covered(spans) / length) if spans else None


def covered(spans: Iterable[Span]) -> int:
    """How long at least one of them lasted, in ns."""
    total, reached = 0, 0
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total
