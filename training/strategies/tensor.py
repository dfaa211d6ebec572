"""Weights divided among ranks that compute every example together (DTensor), and several such groups side by side."""

import logging
import warnings
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from training.errors import InputError
from training.objectives import Loss, optimizer_of
from training.ranks import Ranks
from training.strategies.data_parallel import Sharded
from training.strategies.strategy import StrategyOptions


@runtime_checkable
class Divisible(Protocol):
    """A network that knows how its weights can be divided."""

    def tensor_plan(self, ranks: int) -> dict[str, ParallelStyle]:
        """How to divide each module of these names among so many ranks. Raises InputError where that does not go."""
        ...


class TensorParallel(Sharded):
    """Groups of `tensor_ranks` ranks, neighbours in the gang, hold one model and compute each example together.

    Each group has a share of every batch. What a rank holds is divided once more, as by `fsdp`, among the ranks in the
    same place of all groups. See Strategy for the methods.
    """

    def __init__(self, network: nn.Module, loss: Loss, options: StrategyOptions, ranks: Ranks) -> None:
        if not isinstance(network, Divisible):
            raise InputError("strategy=tensor: only the model of lm can be divided so; use ddp or fsdp")
        size = options.tensor_ranks or ranks.world_size
        if ranks.world_size % size:
            raise InputError(
                f"option tensor_ranks={size}: the gang's {ranks.world_size} ranks do not divide by it; "
                "ask for another number of nodes"
            )
        plan = network.tensor_plan(size)
        mesh = init_device_mesh(ranks.device.type, (ranks.world_size // size, size), mesh_dim_names=("batch", "tensor"))
        parallelize_module(network.to(ranks.device), mesh["tensor"], plan)
        self._groups, self._group, self._place = mesh["batch"].size(), ranks.rank // size, ranks.rank % size
        # Nothing writes into the logits, and what is gathered when it is saved may take its time.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        super().__init__(network, loss, options, ranks, mesh=mesh["batch"])
        # Of one mesh each: an optimiser that takes many tensors at once takes no others.
        divided = {name for name, _ in network.named_parameters() if name.rpartition(".")[0] in plan}
        self._optimizer = optimizer_of(
            [
                {"params": [each for name, each in network.named_parameters() if (name in divided) == whether]}
                for whether in (True, False)
            ],
            options,
        )

    @property
    def part(self) -> int:
        """See Strategy."""
        return self._group

    def share(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        """See Strategy."""
        return batch[self._group :: self._groups]

    def add_gradients(self, inputs: torch.Tensor, targets: torch.Tensor, *, scale: float, last: bool) -> torch.Tensor:
        """See Strategy."""
        return self._once(super().add_gradients(inputs, targets, scale=scale, last=last))

    def score(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Strategy."""
        loss, right = super().score(inputs, targets)
        return self._once(loss), self._once(right)

    def _once(self, value: torch.Tensor) -> torch.Tensor:
        """All ranks of a group have the same; the first one's counts."""
        return value if self._place == 0 else torch.zeros_like(value)
