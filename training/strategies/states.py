"""What is saved of a model: tensors by name, put together as a whole or not, whatever parts of them the ranks hold.

So a run goes on with another strategy, or on another number of ranks, as well as with its own.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from training.errors import InputError
from training.parts import Stored

State = dict[str, Any]


def optimizer_parts(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, State]:
    """What the optimiser of this rank holds for the network's parameters, by the parameter's name."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in network.named_parameters()
        if parameter in optimizer.state
    }


def whole(state: State, *, keep: bool) -> State:
    """The same with whole tensors, on the CPU; empty without `keep`. Ranks with parts of them must call it alike."""
    found: State = {}
    for name, value in state.items():
        if isinstance(value, dict):
            found[name] = whole(value, keep=keep)
            continue
        gathered = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            found[name] = gathered.cpu() if torch.is_tensor(gathered) else gathered
    return found


Shapes = dict[str, tuple[int, ...]]


def shapes_of(state: State) -> Shapes:
    """Of tensors, by name."""
    return {name: tuple(value.shape) for name, value in state.items()}


def load_network(network: nn.Module, state: State, *, of: Shapes | None = None) -> None:
    """Take over whole tensors, or stored ones, of which this rank may hold parts, or only some; `of` are all of them
    then. Raises InputError for those of another network.
    """
    held = network.state_dict()
    theirs, ours = shapes_of(state), of or shapes_of(held)
    if theirs != ours:
        differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        raise _foreign(differing[0])
    network.load_state_dict({name: _placed(state[name], value) for name, value in held.items()})


def load_optimizer(
    network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, State], *, of: Shapes | None = None
) -> None:
    """Take over what `optimizer_parts` gave, whole or stored, for the parameters that this rank's optimiser has; `of`
    is as above.
    """
    parameters = dict(network.named_parameters())
    for name in state:
        if name not in (of or parameters):
            raise _foreign(name)
    mine = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in parameters.items():
        if parameter in mine and name in state:
            optimizer.state[parameter] = {
                key: _counted(value, parameter, optimizer) if key == "step" else _placed(value, parameter)
                for key, value in state[name].items()
            }


def _counted(steps: torch.Tensor | Stored, parameter: torch.Tensor, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """The count of steps, which fused optimisers keep with the parameter, and all others on the CPU."""
    steps = steps.read() if isinstance(steps, Stored) else steps
    return steps.to(parameter.device) if optimizer.defaults.get("fused") else steps


def _placed(value: Any, like: torch.Tensor) -> Any:
    if isinstance(value, Stored):
        return value.read(like)
    if not torch.is_tensor(value):
        return value
    value = value.to(like.device)
    if isinstance(like, DTensor):
        # Every rank has read the whole: each cuts out its own part, and nothing is sent.
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


def _foreign(name: str) -> InputError:
    return InputError(
        f"the checkpoint is that of another model or version: {name!r} is not in both; submit the job anew"
    )
