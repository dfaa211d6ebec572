"""Checkpoints are written while training goes on, and are what it was when they were taken."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ergon import runtime
from ergon.checkpoints import Mark, marks
from training.objectives import loss_of
from training.ranks import Ranks
from training.saving import FILE, Writer
from training.strategies import strategy_of
from training.strategies.strategy import Strategy, StrategyOptions

RANKS = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture(params=["ddp", "fsdp"])
def strategy(request: pytest.FixtureRequest) -> Iterator[Strategy]:
    """On a gang of one, which has an optimiser's state after its first step."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    options = StrategyOptions(strategy=request.param, optimizer="adam")
    yield strategy_of(nn.Linear(4, 2), loss_of(options), options, RANKS)
    dist.destroy_process_group()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ERGON_CHECKPOINT_LATEST", "ERGON_CHECKPOINT_LOCAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ERGON_CHECKPOINT_DIR", str(tmp_path / "saved"))
    monkeypatch.setenv("ERGON_EPOCH", "1")
    return tmp_path / "saved"


def train(strategy: Strategy) -> dict[str, Any]:
    """One step; what was learned then."""
    strategy.add_gradients(torch.randn(3, 4), torch.tensor([0, 1, 0]), scale=1.0, last=True)
    strategy.update(0.1)
    return flat(strategy.state())


def flat(state: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, dict):
            found |= flat(value, f"{above}{name}/")
        else:
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            found[above + name] = whole.tolist()
    return found


def test_what_is_written_later_is_what_was_learned_then(
    strategy: Strategy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, checkpoint = threading.Event(), runtime.checkpoint

    @contextmanager
    def held(step: int) -> Iterator[Path]:
        go_on.wait()
        with checkpoint(step) as draft:
            yield draft

    monkeypatch.setattr(runtime, "checkpoint", held)
    writer = Writer(RANKS)
    first = train(strategy)
    writer.save(1, strategy, {"round": 1})
    second = train(strategy)
    assert second != first
    assert marks(folder) == [], "training has gone on before anything was written"
    go_on.set()
    writer.save(2, strategy, {"round": 2})
    assert (folder / Mark(1, 1).folder / "rank-0").exists(), "one at a time"
    writer.wait()
    for step, learned in ((1, first), (2, second)):
        written = torch.load(folder / Mark(1, step).folder / "rank-0" / FILE, weights_only=True)
        assert written["round"] == step
        assert flat(written["model"]) == learned


@pytest.mark.parametrize("notice", [Writer.wait, lambda writer: writer.save(2, None, {})])
@pytest.mark.parametrize("strategy", ["ddp"], indirect=True)
def test_what_writing_fails_with_is_raised(strategy: Strategy, folder: Path, notice: Any) -> None:
    folder.write_text("no folder")
    writer = Writer(RANKS)
    writer.check()
    writer.save(1, strategy, {})
    with pytest.raises(OSError, match="saved"):
        notice(writer)
    with pytest.raises(OSError, match="saved"):
        writer.check()
