"""What a model learns from, and which of it every step takes: a pure function of seed and step, on every rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

VALIDATION_SHARE = 0.2


class Examples(Protocol):
    """A numbered collection of examples."""

    def __len__(self) -> int: ...

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of these examples; the first dimension of both runs over them."""
        ...


@dataclass(frozen=True, slots=True)
class Tensors:
    """Examples that are held as they are: inputs (n, ...) and classes int64 (n,)."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of these examples, whose indices are on the CPU."""
        indices = sent(indices, self.targets.device)
        return self.inputs[indices], self.targets[indices]

    def to(self, device: torch.device) -> "Tensors":
        """The same on another device."""
        return Tensors(inputs=self.inputs.to(device), targets=self.targets.to(device))


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same from the CPU's memory on `device`. To a GPU it is copied when it has done what it was given before, and
    nothing waits for that: the CPU goes on to take the next batch meanwhile.
    """
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def split(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of `count` examples are for training and which for validation, drawn by `seed` alone."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    validation, training = order.tensor_split([int(VALIDATION_SHARE * count)])
    return training, validation


def shuffled(count: int, batch_size: int, *, seed: int, epoch: int) -> tuple[torch.Tensor, ...]:
    """The indices 0 to count - 1 in the order of this epoch, cut into batches; the last one may be smaller."""
    generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)
    return torch.randperm(count, generator=generator).split(batch_size)


class Rounds(Protocol):
    """The steps of a training run, in rounds after which it is scored. Rounds and steps count from 1."""

    @property
    def word(self) -> str:
        """What a round is called."""
        ...

    @property
    def total(self) -> int:
        """How many there are."""
        ...

    @property
    def steps(self) -> int:
        """Of each round."""
        ...

    def batches(self, number: int) -> Sequence[torch.Tensor]:
        """The indices of every step of one round."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Epochs:
    """Rounds that see every one of `count` examples once, in an order of their own."""

    count: int
    batch_size: int
    seed: int
    total: int
    word: str = "epoch"

    @property
    def steps(self) -> int:
        """Of each round."""
        return -(-self.count // self.batch_size)

    def batches(self, number: int) -> Sequence[torch.Tensor]:
        """The indices of every step of epoch `number`."""
        return shuffled(self.count, self.batch_size, seed=self.seed, epoch=number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Rounds of `steps` batches, each drawn at random from `count` examples, for collections too large for epochs."""

    count: int
    batch_size: int
    seed: int
    steps: int
    total: int
    word: str = "round"

    def batches(self, number: int) -> Sequence[torch.Tensor]:
        """The indices of every step of round `number`."""
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * number)
        return torch.randint(self.count, (self.steps, self.batch_size), generator=generator).unbind()
