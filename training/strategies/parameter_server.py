"""Some ranks, the servers, hold the weights and update them; the others compute gradients, push them, and pull weights.

After Li et al. 2014, "Scaling distributed machine learning with the parameter server". Each server has whole tensors of
weights, their share of the optimiser's state, and works in the CPU's memory; a push to it and a pull from it are one
message each.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from training.errors import InputError
from training.objectives import Loss, optimizer_of
from training.ranks import Ranks
from training.strategies.data_parallel import DataParallel
from training.strategies.states import load_network, load_optimizer, optimizer_parts, whole
from training.strategies.strategy import StrategyOptions, step

NO_MORE = -1.0
"""Learning rate of a push that says that its sender has none left in this round."""


class ParameterServer(DataParallel):
    """The last ranks are the servers. See Strategy for the methods.

    Synchronous: every rank that computes has a share of each batch, and servers add up what all of them push, in the
    order of the ranks. Asynchronous: each such rank computes every so many-th batch as a whole, with the weights that
    it pulled after its batch before, and servers apply what comes as it comes.
    """

    def __init__(self, network: nn.Module, loss: Loss, options: StrategyOptions, ranks: Ranks) -> None:
        first_server = ranks.world_size - options.servers
        if first_server < 1:
            raise InputError(
                f"strategy=parameter-server: {options.servers} servers and at least one rank that computes are "
                f"{options.servers + 1} ranks, but the gang has {ranks.world_size}; ask for more nodes or fewer servers"
            )
        parameters = list(network.parameters())
        if options.servers > len(parameters):
            raise InputError(f"option servers={options.servers}: the model has only {len(parameters)} tensors")
        self._computing, self._servers = range(first_server), range(first_server, ranks.world_size)
        self._asynchronous = bool(options.asynchronous)
        self._held = dict(zip(self._servers, divided(parameters, options.servers), strict=True))
        """Whose tensors are whose: the same on every rank."""
        self._serves = ranks.rank in self._servers
        # Only gloo receives from whoever sends first.
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        super().__init__(network.to("cpu" if self._serves else ranks.device), loss, options, ranks)
        self._optimizer = optimizer_of(self._held.get(ranks.rank, parameters), options)

    def share(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        """See Strategy."""
        if self._serves:
            return batch[:0]
        if self._asynchronous:
            return batch if number % len(self._computing) == self._ranks.rank else batch[:0]
        return batch[self._ranks.rank :: len(self._computing)]

    def add_gradients(self, inputs: torch.Tensor, targets: torch.Tensor, *, scale: float, last: bool) -> torch.Tensor:
        """See Strategy."""
        if len(inputs) == 0:
            return torch.zeros(())
        return self._backward(self._network, inputs, targets, scale)

    def update(self, rate: float) -> None:
        """See Strategy. Asynchronous servers do nothing before `settle`, nor does a rank without a gradient."""
        if self._asynchronous:
            if not self._serves and any(parameter.grad is not None for parameter in self._network.parameters()):
                self._exchange(rate)
        elif self._serves:
            self._apply(rate, reduce(torch.add, (self._receive(source)[2] for source in self._computing)))
            self._answer(self._computing)
        else:
            self._exchange(rate)

    def settle(self) -> None:
        """See Strategy. Asynchronous servers work here, until every other rank has pushed all it has."""
        if not self._asynchronous:
            return
        if not self._serves:
            self._exchange(NO_MORE)
            return
        pushing = len(self._computing)
        while pushing:
            source, rate, gradients = self._receive(None)
            if rate == NO_MORE:
                pushing -= 1
            else:
                self._apply(rate, gradients)
                self._answer([source])
        self._answer(self._computing)

    @torch.no_grad()
    def score(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Strategy."""
        if len(inputs) == 0:
            return torch.zeros((), device=self._ranks.device), torch.zeros((), device=self._ranks.device)
        return super().score(inputs, targets)

    def state(self) -> dict[str, Any]:
        """See Strategy. Rank 0 computes, so it has all weights, and the servers send it what their optimisers hold."""
        if self._serves:
            mine = whole(optimizer_parts(self._network, self._optimizer), keep=True)
            dist.send_object_list([mine], dst=0, group=self._group)
        optimizer: dict[str, Any] = {}
        if self._ranks.first:
            for server in self._servers:
                received: list[Any] = [None]
                dist.recv_object_list(received, src=server, group=self._group)
                optimizer |= received[0]
        return {"network": whole(self._network.state_dict(), keep=self._ranks.first), "optimizer": optimizer}

    def load(self, state: dict[str, Any]) -> None:
        """See Strategy."""
        load_network(self._network, state["network"])
        if self._serves:
            load_optimizer(self._network, self._optimizer, state["optimizer"])

    def _exchange(self, rate: float) -> None:
        """Push to each server the gradients of its tensors, which are gone then, and pull its weights."""
        pulled = {server: empty(held) for server, held in self._held.items()}
        requests: list[dist.Work | None] = []
        # Ready to receive from all before it waits for any: a server that answers waits until its answer is taken, and
        # takes no other push meanwhile.
        for server, message in pulled.items():
            requests.append(dist.irecv(message, src=server, group=self._group))
        for server, held in self._held.items():
            requests.append(dist.isend(packed(rate, list(map(gradient, held))), dst=server, group=self._group))
        await_all(requests)
        self._network.zero_grad()
        for server, held in self._held.items():
            unpack(pulled[server], [parameter.data for parameter in held])

    def _receive(self, source: int | None) -> tuple[int, float, torch.Tensor]:
        """The next push, of this rank or of any: its sender, its rate, and the message with the gradients."""
        message = empty(self._held[self._ranks.rank])
        sender = dist.recv(message, src=source, group=self._group)
        return sender, message[0].item(), message

    def _answer(self, ranks: Iterable[int]) -> None:
        """Send these ranks the weights that this server holds."""
        message = packed(0.0, [parameter.data for parameter in self._held[self._ranks.rank]])
        await_all([dist.isend(message, dst=rank, group=self._group) for rank in ranks])

    def _apply(self, rate: float, message: torch.Tensor) -> None:
        """Step with the gradients of this message."""
        held = self._held[self._ranks.rank]
        for parameter in held:
            parameter.grad = torch.empty_like(parameter)
        unpack(message, [gradient(parameter) for parameter in held])
        step(self._optimizer, rate, self._options)


def divided(parameters: Sequence[nn.Parameter], servers: int) -> list[list[nn.Parameter]]:
    """Parameters for each server: the largest first, each to the server that has least. None is left without any."""
    shares: list[list[nn.Parameter]] = [[] for _ in range(servers)]
    for parameter in sorted(parameters, key=torch.numel, reverse=True):
        min(shares, key=lambda share: sum(map(torch.numel, share))).append(parameter)
    return shares


def empty(held: Sequence[nn.Parameter]) -> torch.Tensor:
    """Room for a message about these tensors: a rate, and all their values one after the other."""
    return torch.empty(1 + sum(map(torch.numel, held)), dtype=held[0].dtype)


def packed(rate: float, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A message, as `empty` lays it out, on the CPU."""
    values = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    return torch.cat([values.new_tensor([rate]), values])


def unpack(message: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Write the values of a message into these tensors."""
    parts = message[1:].split([tensor.numel() for tensor in tensors])
    for tensor, values in zip(tensors, parts, strict=True):
        tensor.copy_(values.view_as(tensor))


def gradient(parameter: nn.Parameter) -> torch.Tensor:
    """Its gradient; zeros where no example of the batch was this rank's."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def await_all(requests: Sequence[dist.Work | None]) -> None:
    """Return when all of them are done."""
    for request in requests:
        assert request is not None
        request.wait()
