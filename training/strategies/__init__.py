"""How a gang trains one model together, by the option `strategy`."""

from collections.abc import Callable
from pkgutil import resolve_name

import torch
from torch import nn

from training.compiling import compile_forward
from training.errors import InputError
from training.objectives import Loss
from training.ranks import Ranks
from training.strategies.strategy import Strategy, StrategyOptions

KINDS = {
    "ddp": "training.strategies.data_parallel:Replicated",
    "fsdp": "training.strategies.data_parallel:Sharded",
    "parameter-server": "training.strategies.parameter_server:ParameterServer",
    "pipeline": "training.strategies.pipeline:Pipeline",
    "tensor": "training.strategies.tensor:TensorParallel",
}
"""Where each is. Only the one that is asked for is imported: some take a second."""

OPTIONS_OF = {
    "servers": "parameter-server",
    "asynchronous": "parameter-server",
    "tensor_ranks": "tensor",
    "stages": "pipeline",
    "microbatches": "pipeline",
    "pipeline_schedule": "pipeline",
}


def strategy_of(network: nn.Module, loss: Loss, options: StrategyOptions, ranks: Ranks) -> Strategy:
    """The strategy that the options name, on a network whose weights are the same on every rank.

    Raises InputError for a gang it cannot run on, and for options of another strategy.
    """
    for name, strategy in OPTIONS_OF.items():
        value = getattr(options, name)
        if options.strategy != strategy and value != getattr(StrategyOptions(), name):
            raise InputError(f"option {name}={value} goes with strategy={strategy}, not {options.strategy}")
    _set_precision(options.precision, ranks.device)
    if options.compile == "yes":
        if options.strategy == "tensor":
            raise InputError("option compile=yes does not go with strategy=tensor; use ddp or fsdp")
        compile_forward(network)
    kind: Callable[[nn.Module, Loss, StrategyOptions, Ranks], Strategy] = resolve_name(KINDS[options.strategy])
    return kind(network, loss, options, ranks)


def _set_precision(precision: str, device: torch.device) -> None:
    """Products and convolutions of float32 in TF32, or not, as torch would the latter. Raises InputError."""
    if precision != "float32" and device.type == "cuda" and not _is_ampere(device):
        name = torch.cuda.get_device_name(device)
        raise InputError(
            f"option precision={precision}: {name} does not compute in it; leave it out or use another kind"
        )
    if precision == "tf32" and device.type != "cuda":
        raise InputError(
            "option precision=tf32: only NVIDIA GPUs compute in it; leave it out or use a kind that has one"
        )
    in_float32 = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = in_float32
    torch.backends.cudnn.conv.fp32_precision = in_float32  # type: ignore[attr-defined]


def _is_ampere(device: torch.device) -> bool:
    """Whether the GPU has units for bfloat16 and TF32, which NVIDIA's have since compute capability 8.0 (Ampere)."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
