"""Each rank computes its share of every batch: with the whole model on every rank (DDP), or parts of it (FSDP2)."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from training.objectives import Loss, optimizer_of
from training.ranks import Ranks
from training.strategies.states import load_network, load_optimizer, optimizer_parts, whole
from training.strategies.strategy import StrategyOptions, step


class DataParallel:
    """What all that split a batch have in common. See Strategy for the methods."""

    def __init__(self, network: nn.Module, loss: Loss, options: StrategyOptions, ranks: Ranks) -> None:
        self._network, self._loss, self._options, self._ranks = network, loss, options, ranks
        self._optimizer = optimizer_of(network.parameters(), options)

    @property
    def part(self) -> int:
        """See Strategy."""
        return self._ranks.rank

    def share(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        """See Strategy."""
        return self._ranks.mine(batch)

    def update(self, rate: float) -> None:
        """See Strategy."""
        step(self._optimizer, rate, self._options)

    def settle(self) -> None:
        """Nothing to wait for: see Strategy."""

    @torch.no_grad()
    def score(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Strategy."""
        self._network.eval()
        logits = self._logits(self._network, inputs)
        return self._loss(logits, targets), (logits.argmax(dim=-1) == targets).sum()

    @property
    def divided(self) -> bool:
        """See Strategy."""
        return False

    def state(self) -> dict[str, Any]:
        """See Strategy."""
        network, optimizer = self._network.state_dict(), optimizer_parts(self._network, self._optimizer)
        if self.divided:
            return {"network": network, "optimizer": optimizer}
        keep = self._ranks.first
        return {"network": whole(network, keep=keep), "optimizer": whole(optimizer, keep=keep)}

    def load(self, state: dict[str, Any]) -> None:
        """See Strategy."""
        load_network(self._network, state["network"])
        load_optimizer(self._network, self._optimizer, state["optimizer"])

    def _backward(self, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, scale: float) -> torch.Tensor:
        """The gradients of `scale` times the loss through `model`, which is the network or around it; the loss."""
        model.train()
        loss = self._loss(self._logits(model, inputs), targets)
        (loss * scale).backward()
        return loss.detach()

    def _logits(self, model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """What `model` computes, as float32, so that the loss and its sum over many targets are exact."""
        lowered = self._options.precision == "bfloat16"
        with torch.autocast(self._ranks.device.type, dtype=torch.bfloat16, enabled=lowered):
            return model(inputs).float()


class Replicated(DataParallel):
    """Every rank holds the whole model."""

    def __init__(self, network: nn.Module, loss: Loss, options: StrategyOptions, ranks: Ranks) -> None:
        super().__init__(network.to(ranks.device), loss, options, ranks)
        self._model = DistributedDataParallel(network)

    def add_gradients(self, inputs: torch.Tensor, targets: torch.Tensor, *, scale: float, last: bool) -> torch.Tensor:
        """See Strategy."""
        with nullcontext() if last else self._model.no_sync():
            # DDP averages gradients over the ranks: this factor turns the average into the sum.
            return self._backward(self._model, inputs, targets, scale * self._ranks.world_size)


class Sharded(DataParallel):
    """Every rank holds a part of every weight, of its gradient and of the optimiser's state.

    The members of `nn.Sequential` and `nn.ModuleList` are gathered one after the other, when it is their turn.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        options: StrategyOptions,
        ranks: Ranks,
        *,
        mesh: DeviceMesh | None = None,
    ) -> None:
        """`mesh` are the ranks that parts are for, all of the gang by default."""
        self._averaged = mesh.size() if mesh else ranks.world_size
        super().__init__(sharded(network.to(ranks.device), mesh), loss, options, ranks)

    @property
    def divided(self) -> bool:
        """See Strategy."""
        return self._ranks.world_size > 1

    def add_gradients(self, inputs: torch.Tensor, targets: torch.Tensor, *, scale: float, last: bool) -> torch.Tensor:
        """See Strategy."""
        assert isinstance(self._network, FSDPModule)
        self._network.set_requires_gradient_sync(last)
        # FSDP averages too.
        return self._backward(self._network, inputs, targets, scale * self._averaged)


def sharded(network: nn.Module, mesh: DeviceMesh | None, *, keep_gathered: bool = False) -> nn.Module:
    """The same network with its parameters replaced by their parts. Inner modules come before those around them.

    With `keep_gathered`, what was gathered to compute forward stays until the gradients are there.
    """
    again = False if keep_gathered else None  # None: all but what is outermost, which is the first to be needed
    for module in reversed(list(network.modules())):
        if isinstance(module, nn.Sequential | nn.ModuleList):
            for member in module:
                if any(True for _ in member.parameters()):
                    fully_shard(member, mesh=mesh, reshard_after_forward=again)
    fully_shard(network, mesh=mesh, reshard_after_forward=again)
    return network
