"""torch.compile, without a trace of it in the names of weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from training.errors import InputError


def compile_forward(network: nn.Module) -> None:
    """Compile what the network computes, in place: each block where it has a list of blocks, so that one that occurs
    many times is compiled once, and what a strategy does between them stays outside.

    Names and hooks stay as they are. Compiled is at the first call of each kind, see `told_in_one_line`.
    """
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    blocks = [member for each in lists for member in each if any(True for _ in member.children())]
    for module in blocks or [network]:
        module.forward = torch.compile(module.forward)


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """What fails in the compiler becomes an InputError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"option compile=yes: the compiler failed: {reason}; leave it out, or install "
            "a C++ compiler, and Triton for GPUs, where the ranks run"
        ) from error
