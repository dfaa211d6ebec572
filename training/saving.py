"""How recipes save and go on: rank 0 saves the whole state, and all ranks read it."""

import os
from typing import Any

import torch

from ergon import runtime
from training.ranks import Ranks

FILE = "state.pt"

STOPPED = 143
"""Exit code of a rank that was asked to stop and has saved before: as a shell shows the end by SIGTERM."""


def save(step: int, state: dict[str, Any], ranks: Ranks) -> None:
    """Save what rank 0 has, tensors and plain values, after `step`. Every rank must call it.

    Does nothing where nothing is kept.
    """
    if "ERGON_CHECKPOINT_DIR" in os.environ:
        with runtime.checkpoint(step) as folder:
            if ranks.first:
                torch.save(state, folder / FILE)


def saved(ranks: Ranks) -> dict[str, Any] | None:
    """What an attempt of before has saved last, on the CPU; None if this is the first."""
    found = runtime.latest_checkpoint()
    if found is None:
        return None
    if ranks.first:
        print(f"going on from {found.name}", flush=True)
    return torch.load(found / "rank-0" / FILE, map_location="cpu", weights_only=True)


def must_stop(ranks: Ranks) -> bool:
    """Whether any rank was asked to stop: the same answer on all of them. Every rank must call it."""
    asked = torch.tensor([float(runtime.stop_requested())], device=ranks.device)
    return ranks.total(asked).item() > 0
