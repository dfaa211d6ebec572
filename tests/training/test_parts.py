"""Checkpoints in parts: what is written is read again, and what tells of it runs nothing."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from training.parts import PLAN, Stored, flattened, found, write

STATE = {"network": {"a.weight": torch.randn(3, 4)}, "optimizer": {"a.weight": {"step": torch.tensor(7.0)}}}


@pytest.fixture(autouse=True)
def _one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    yield
    dist.destroy_process_group()


def test_tensors_are_read_as_they_were_written_also_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "draft").mkdir()
    write(STATE, tmp_path / "draft")
    (tmp_path / "epoch-1-step-2").mkdir()
    (tmp_path / "draft").rename(tmp_path / "epoch-1-step-2" / "rank-0")
    again = flattened(found(tmp_path / "epoch-1-step-2"))
    for name, value in flattened(STATE).items():
        stored = again[name]
        assert isinstance(stored, Stored)
        assert stored.shape == value.shape
        assert torch.equal(stored.read(), value)
        assert torch.equal(stored.read(torch.zeros_like(value)), value)
    assert str(tmp_path).encode() not in (tmp_path / "epoch-1-step-2" / "rank-0" / PLAN).read_bytes()


@pytest.mark.parametrize("function", [os.getpid, eval, torch.load])
def test_what_tells_of_parts_runs_nothing(function: object, tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[()]]:
            return function, ()

    (tmp_path / "rank-0").mkdir()
    (tmp_path / "rank-0" / PLAN).write_bytes(pickle.dumps(Runs()))
    with pytest.raises(pickle.UnpicklingError, match="has no place in a checkpoint"):
        found(tmp_path)
