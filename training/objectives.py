"""What training minimises and by which steps: losses, penalties on weights, optimisers. All by the user's options."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from training.options import option

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

BETAS = (0.9, 0.95)
"""Decay of Adam's averages of gradients and of their squares."""

UNCOUNTED = -100
"""The target of what adds nothing to a loss, as torch has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveOptions:
    """`loss` is over logits: `cross-entropy`, or `mse`, the squared distance of the logits to the class as one-hot.

    `l1` adds l1 * |w|, summed over all weights, to the loss, and `l2` adds l2 / 2 * w^2; with `adamw`, l2 is its
    decoupled decay instead. `momentum` is that of `sgd`. The learning rate rises over `warmup` steps, and then, with
    `schedule=cosine`, falls to a tenth along half a cosine until the last step.
    """

    loss: str = option("cross-entropy", one_of=("cross-entropy", "mse"))
    label_smoothing: float = option(0.0, at_least=0.0, at_most=0.9)
    optimizer: str = option("sgd", one_of=("sgd", "adam", "adamw"))
    learning_rate: float = option(0.05, at_least=1e-8, at_most=1e3)
    momentum: float = option(0.9, at_least=0.0, at_most=0.999)
    l1: float = option(0.0, at_least=0.0, at_most=1e3)
    l2: float = option(0.0, at_least=0.0, at_most=1e3)
    warmup: int = option(0, at_least=0, at_most=10**9)
    schedule: str = option("constant", one_of=("constant", "cosine"))


def loss_of(options: ObjectiveOptions) -> Loss:
    """The loss, summed over all targets but UNCOUNTED ones, of logits (..., classes) and targets (...)."""

    def by_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        flat = logits.flatten(0, -2).float()
        return cross_entropy(flat, targets.flatten(), reduction="sum", label_smoothing=options.label_smoothing)

    def by_squares(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        classes = logits.shape[-1]
        wanted = one_hot(targets.clamp(min=0), classes).to(logits.dtype)
        wanted = wanted * (1 - options.label_smoothing) + options.label_smoothing / classes
        return mse_loss(logits, torch.where((targets == UNCOUNTED)[..., None], logits, wanted), reduction="sum")

    return by_squares if options.loss == "mse" else by_cross_entropy


def optimizer_of(
    parameters: Iterable[torch.nn.Parameter] | list[dict[str, Any]], options: ObjectiveOptions
) -> torch.optim.Optimizer:
    """The optimiser of these parameters, or groups of them, `l2` included. On GPUs, Adam's are of torch's fused kind:
    one kernel updates many weights; for SGD with weights in parts (DTensor) there is none.
    """
    held: list[Any] = list(parameters)
    rate, decay = options.learning_rate, options.l2
    if options.optimizer == "sgd":
        return torch.optim.SGD(held, lr=rate, momentum=options.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(held, lr=rate, betas=BETAS, weight_decay=decay, fused=_fused(held[0]) or None)


def _fused(first: torch.nn.Parameter | dict[str, Any]) -> bool:
    parameter = first["params"][0] if isinstance(first, dict) else first
    return parameter.is_cuda


def add_l1(parameters: Iterable[torch.nn.Parameter], l1: float) -> None:
    """Add the gradient of l1 * |w| to that of the loss; 0 where w is 0."""
    if l1 > 0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach().sign(), alpha=l1)


def rate_at(step: int, last: int, options: ObjectiveOptions) -> float:
    """The learning rate of `step`, of 1 to `last`."""
    rate = options.learning_rate
    if step <= options.warmup:
        return rate * step / options.warmup
    if options.schedule == "cosine":
        share = (step - options.warmup) / max(1, last - options.warmup)
        return rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))
    return rate
