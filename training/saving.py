"""How recipes save and go on: rank 0 saves the whole state, or each rank what it holds of it, and all ranks read it."""

import os
import threading
from typing import Any, Self

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from ergon import runtime
from training import parts
from training.ranks import Ranks
from training.strategies.strategy import Strategy

FILE = "state.pt"

STOPPED = 143
"""Exit code of a rank that was asked to stop and has saved before: as a shell shows the end by SIGTERM."""


class Writer:
    """Writes checkpoints in a thread of its own while training goes on, one at a time.

    Every rank has one and calls `save` at the same steps, in its main thread. As a context, it waits at the end until
    all is written, unless there was an error: of a gang that breaks off, threads may wait for each other for ever.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._group: dist.ProcessGroup | None = None
        """Of the writing threads alone: training may exchange something at the same time."""
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.wait()

    def save(self, step: int, strategy: Strategy, state: dict[str, Any]) -> None:
        """Copy what the strategy has learned after `step` into the CPU's memory, and begin to write it, with the plain
        values that rank 0 has. Does nothing where nothing is kept.

        Waits for the one before. Raises what that has failed with.
        """
        if "ERGON_CHECKPOINT_DIR" not in os.environ:
            return
        self.wait()
        model = copied(strategy.state())
        if strategy.divided and self._group is None:
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)  # all ranks are in it
            self._group = group
        # A rank that fails must not wait for the thread when it ends: that may wait for other ranks.
        self._thread = threading.Thread(
            target=self._run, args=(step, model, state, strategy.divided), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until all of this rank is written. Raises what that has failed with."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises what writing has failed with, if it has."""
        if self._failure is not None:
            raise self._failure

    def _run(self, step: int, model: dict[str, Any], state: dict[str, Any], divided: bool) -> None:
        try:
            with runtime.checkpoint(step) as folder:
                if divided:
                    parts.write(model, folder, self._group)
                if self._ranks.first:
                    torch.save(state if divided else {"model": model, **state}, folder / FILE)
        except BaseException as failure:  # the main thread raises it
            self._failure = failure


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """The same with copies of all tensors, or of the parts that this rank holds, in the CPU's memory."""
    now = StagingOptions(
        use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
    )
    stager = DefaultStager(now)
    try:
        copies = stager.stage(state)
    finally:
        stager.close()
    assert isinstance(copies, dict)
    return copies


def saved(ranks: Ranks) -> dict[str, Any] | None:
    """What an attempt of before has saved last, and under "model" what the strategy had learned, on the CPU or not read
    yet; None if this is the first.
    """
    found = runtime.latest_checkpoint()
    if found is None:
        return None
    if ranks.first:
        print(f"going on from {found.name}", flush=True)
    state = torch.load(found / "rank-0" / FILE, map_location="cpu", weights_only=True)
    return state if "model" in state else {"model": parts.found(found), **state}


def must_stop(ranks: Ranks) -> bool:
    """Whether any rank was asked to stop: the same answer on all of them. Every rank must call it."""
    asked = torch.tensor([float(runtime.stop_requested())], device=ranks.device)
    return ranks.total(asked).item() > 0
