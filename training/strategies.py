"""How a gang trains one model: who computes what of a batch, and how the gradients come together."""

from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.objectives import Loss, ObjectiveOptions, add_l1, optimizer_of
from training.ranks import Ranks


class Strategy(Protocol):
    """One model on a gang. Every rank calls the same methods in the same order; a share of a batch may be empty."""

    def add_gradients(self, inputs: torch.Tensor, targets: torch.Tensor, *, scale: float, last: bool) -> torch.Tensor:
        """Add the gradients of `scale` times the loss of a part of the batch; the part's loss, summed over its targets.

        `last` says that the batch is complete with this. The loss counts once in the sum over all ranks.
        """
        ...

    def update(self, rate: float) -> None:
        """One step of the optimiser with this learning rate, after which the gradients are gone."""
        ...

    def score(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of a part of a batch, and how many targets the model names right; counted as in `add_gradients`."""
        ...

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """Which of the batch's examples this rank computes."""
        ...

    def state(self) -> dict[str, Any]:
        """What has to be saved to go on from here."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` has given."""
        ...


class DataParallel:
    """Every rank holds the whole model and computes its share of each batch (DDP)."""

    def __init__(self, network: nn.Module, loss: Loss, options: ObjectiveOptions, ranks: Ranks) -> None:
        self._model = DistributedDataParallel(network.to(ranks.device))
        self._loss, self._options, self._ranks = loss, options, ranks
        self._optimizer = optimizer_of(self._model.parameters(), options)

    def add_gradients(self, inputs: torch.Tensor, targets: torch.Tensor, *, scale: float, last: bool) -> torch.Tensor:
        """See Strategy."""
        self._model.train()
        with nullcontext() if last else self._model.no_sync():
            loss = self._loss(self._model(inputs), targets)
            # DDP averages gradients over the ranks: this factor turns the average into the sum.
            (loss * (scale * self._ranks.world_size)).backward()
        return loss.detach()

    def update(self, rate: float) -> None:
        """See Strategy."""
        step(self._optimizer, rate, self._options)

    @torch.no_grad()
    def score(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Strategy."""
        self._model.eval()
        logits = self._model.module(inputs)
        return self._loss(logits, targets), (logits.argmax(dim=-1) == targets).sum()

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """See Strategy."""
        return self._ranks.mine(batch)

    def state(self) -> dict[str, Any]:
        """See Strategy."""
        return {"network": self._model.module.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """See Strategy."""
        self._model.module.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


def step(optimizer: torch.optim.Optimizer, rate: float, options: ObjectiveOptions) -> None:
    """One step at this learning rate with the gradients that are there, and the penalty `l1`; then they are gone."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        add_l1(group["params"], options.l1)
    optimizer.step()
    optimizer.zero_grad()
