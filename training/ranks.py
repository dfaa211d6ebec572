"""The process group a recipe runs in, from the environment that torchrun, and Ergon like it, gives every rank."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from training.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process within its gang. `device` is what it computes on: a GPU of its own, or the CPU."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that speaks for the gang."""
        return self.rank == 0

    def mine(self, rows: torch.Tensor) -> torch.Tensor:
        """This rank's share of `rows`: every world_size-th along the first dimension, disjoint and complete."""
        return rows[self.rank :: self.world_size]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all ranks, on every rank; changes `values` in place. Every rank must call it."""
        dist.all_reduce(values)
        return values


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the process group of the gang for the duration of the block: NCCL when there are GPUs, else gloo.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of the environment. Without WORLD_SIZE, or with 1,
    the process is a gang of one and needs none of the others. Raises InputError when they contradict each other.
    """
    world_size = _number("WORLD_SIZE", default=1)
    rank = _number("RANK", default=0 if world_size == 1 else None)
    if rank >= world_size:
        raise InputError(f"RANK={rank} does not exist in a gang of WORLD_SIZE={world_size}")
    if world_size > 1:
        _number("MASTER_PORT", default=None)
        if not os.environ.get("MASTER_ADDR"):
            raise InputError("MASTER_ADDR is not set; start the ranks through Ergon or torchrun")
    device = _device(_number("LOCAL_RANK", default=0))

    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        # A gang of one meets nobody, so it opens no port.
        store=dist.HashStore() if world_size == 1 else None,  # pyright: ignore[reportPrivateImportUsage]
        rank=rank,
        world_size=world_size,
        device_id=device if device.type == "cuda" else None,
    )
    yield Ranks(rank=rank, world_size=world_size, device=device)
    # Not in a `finally`: after an error the other ranks may be inside a collective, which only this process's exit
    # ends, and an orderly farewell would wait for them.
    dist.destroy_process_group()


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isascii() or not text.isdigit():
        raise InputError(f"{name}={text or ''} must be a whole number; start the ranks through Ergon or torchrun")
    return int(text)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if local_rank >= visible:
        raise InputError(f"LOCAL_RANK={local_rank} but only {visible} GPUs are visible; ask for one rank per device")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
