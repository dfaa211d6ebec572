"""What every strategy does: who computes what of a batch, how the gradients come together, what is saved."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from training.objectives import ObjectiveOptions, add_l1
from training.options import option

STRATEGIES = ("ddp", "fsdp", "parameter-server", "pipeline", "tensor")


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyOptions(ObjectiveOptions):
    """`strategy`: with `ddp`, every rank holds the whole model; with `fsdp`, each holds a part of every weight; with
    `parameter-server`, the last `servers` ranks hold the weights and the others compute gradients; with `tensor`,
    groups of `tensor_ranks` ranks, 0 for all of the gang, divide the work on every example, and the groups each batch;
    with `pipeline`, groups of `stages` ranks, 0 for all, have some of the layers each, and pass on each example, in at
    most `microbatches` parts of a group's share (0 for four for each stage), in the order of `pipeline_schedule`.

    With `asynchronous=1`, servers apply each gradient as it comes, instead of one sum from all for each batch. With
    `precision=bfloat16`, the network computes in it where torch's autocast deems that safe; weights, gradients, the
    optimiser's state and the loss stay float32. With `precision=tf32`, GPUs multiply float32 numbers of which they drop
    the last 13 bits. With `compile=yes`, torch compiles the network.
    """

    strategy: str = option("ddp", one_of=STRATEGIES)
    servers: int = option(1, at_least=1, at_most=10_000)
    asynchronous: int = option(0, at_least=0, at_most=1)
    tensor_ranks: int = option(0, at_least=0, at_most=10_000)
    stages: int = option(0, at_least=0, at_most=10_000)
    microbatches: int = option(0, at_least=0, at_most=10_000)
    pipeline_schedule: str = option("1f1b", one_of=("1f1b", "gpipe"))
    compile: str = option("no", one_of=("no", "yes"))
    precision: str = option("float32", one_of=("float32", "tf32", "bfloat16"))


class Strategy(Protocol):
    """One model on a gang. Every rank calls the same methods in the same order; a share of a batch may be empty."""

    @property
    def part(self) -> int:
        """Ranks of the same part compute the same examples and have to draw the same numbers at random."""
        ...

    def share(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        """Which examples of the batch, the one of that number in its round, this rank computes."""
        ...

    def add_gradients(self, inputs: torch.Tensor, targets: torch.Tensor, *, scale: float, last: bool) -> torch.Tensor:
        """Add the gradients of `scale` times the loss of a part of the batch; the part's loss, summed over its targets.

        `last` says that the batch is complete with this. The loss counts once in the sum over all ranks.
        """
        ...

    def update(self, rate: float) -> None:
        """One step of the optimiser with this learning rate, after which the gradients are gone."""
        ...

    def settle(self) -> None:
        """Wait until all steps so far are in the weights of every rank that computes. Ends every round of steps."""
        ...

    def score(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of a part of a batch, and how many targets the model names right; counted as in `add_gradients`."""
        ...

    @property
    def divided(self) -> bool:
        """Whether no rank has all that has to be saved."""
        ...

    def state(self) -> dict[str, Any]:
        """What has to be saved to go on from here, with any strategy and any number of ranks: `network`, the whole
        weights by name, and `optimizer`, its whole state by the weight's name. Complete on rank 0 only, on the CPU;
        if it is divided, what each rank holds of it, not copied.
        """
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave on rank 0, or on all ranks together (`Stored`). Raises InputError for the
        state of another model.
        """
        ...


def step(optimizer: torch.optim.Optimizer, rate: float, options: ObjectiveOptions) -> None:
    """One step at this learning rate with the gradients that are there, and the penalty `l1`; then they are gone."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        add_l1(group["params"], options.l1)
    optimizer.step()
    optimizer.zero_grad()
