"""How recipes save and go on: rank 0 saves the whole state, or each rank what it holds of it, and all ranks read it."""

import os
from typing import Any

import torch

from ergon import runtime
from training import parts
from training.ranks import Ranks
from training.strategies.strategy import Strategy

FILE = "state.pt"

STOPPED = 143
"""Exit code of a rank that was asked to stop and has saved before: as a shell shows the end by SIGTERM."""


def save(step: int, strategy: Strategy, state: dict[str, Any], ranks: Ranks) -> None:
    """Save what the strategy has learned after `step`, and the plain values that rank 0 has. Every rank must call it.

    Does nothing where nothing is kept.
    """
    if "ERGON_CHECKPOINT_DIR" not in os.environ:
        return
    model = strategy.state()
    with runtime.checkpoint(step) as folder:
        if strategy.divided:
            parts.write(model, folder)
        else:
            state = {"model": model, **state}
        if ranks.first:
            torch.save(state, folder / FILE)


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
