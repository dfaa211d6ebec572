"""How a gang trains one model together, by the option `strategy`."""

from torch import nn

from training.errors import InputError
from training.objectives import Loss
from training.ranks import Ranks
from training.strategies.data_parallel import Replicated, Sharded
from training.strategies.parameter_server import ParameterServer
from training.strategies.strategy import Strategy, StrategyOptions


def strategy_of(network: nn.Module, loss: Loss, options: StrategyOptions, ranks: Ranks) -> Strategy:
    """The strategy that the options name, on a network whose weights are the same on every rank.

    Raises InputError for a gang it cannot run on, and for options of another strategy.
    """
    if options.strategy == "parameter-server":
        return ParameterServer(network, loss, options, ranks)
    for name in ("servers", "asynchronous"):
        value = getattr(options, name)
        if value != getattr(StrategyOptions(), name):
            raise InputError(f"option {name}={value} goes with strategy=parameter-server, not {options.strategy}")
    return (Sharded if options.strategy == "fsdp" else Replicated)(network, loss, options, ranks)
