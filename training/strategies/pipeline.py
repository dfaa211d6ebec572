"""Layers divided among ranks that pass every example on (torch's pipelining), and several such groups side by side."""

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from training.errors import InputError
from training.objectives import UNCOUNTED, Loss
from training.ranks import Ranks
from training.strategies.data_parallel import DataParallel, sharded
from training.strategies.states import load_network, load_optimizer, shapes_of
from training.strategies.strategy import StrategyOptions

SCHEDULES: dict[str, type[PipelineScheduleSingle]] = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}

MICROBATCHES_OF_A_STAGE = 4
"""With so many, the first and last ranks wait for at most a fifth of the time (Huang et al. 2019, "GPipe")."""


@runtime_checkable
class Staged(Protocol):
    """A network of layers that follow each other."""

    def keep_stage(self, number: int, stages: int) -> None:
        """Drop all but the layers of this one of so many stages. Raises InputError where there are too few."""
        ...

    def passed_on(self, inputs: torch.Tensor) -> torch.Tensor:
        """Of the kind that one stage passes on to the next for these inputs of the network; its values do not count."""
        ...


class Pipeline(DataParallel):
    """Groups of `stages` ranks, neighbours in the gang, hold one model, each of them some of its layers.

    Each group has a share of every batch, and passes it on in microbatches of one size: what lacks in the last is
    filled up with examples that do not count. What a rank holds is divided once more, as by `fsdp`, among the ranks of
    the same stage of all groups, if there are several; they gather it once for all microbatches. See Strategy for the
    methods.
    """

    def __init__(self, network: nn.Module, loss: Loss, options: StrategyOptions, ranks: Ranks) -> None:
        if not isinstance(network, Staged):
            raise InputError("strategy=pipeline: only the model of lm can be divided so; use ddp or fsdp")
        self._stages = options.stages or ranks.world_size
        if ranks.world_size % self._stages:
            raise InputError(
                f"option stages={self._stages}: the gang's {ranks.world_size} ranks do not divide by it; "
                "ask for another number of nodes"
            )
        self._microbatches = options.microbatches or MICROBATCHES_OF_A_STAGE * self._stages
        self._kind = SCHEDULES[options.pipeline_schedule]
        if self._kind is Schedule1F1B and self._microbatches < self._stages:
            raise InputError(
                f"option microbatches={self._microbatches}: pipeline_schedule=1f1b needs one for each of the "
                f"{self._stages} stages at least; ask for more, or use gpipe"
            )
        groups = ranks.world_size // self._stages
        self._groups, self._group, self._stage = groups, ranks.rank // self._stages, ranks.rank % self._stages
        self._shapes = shapes_of(network.state_dict())
        network.keep_stage(self._stage, self._stages)
        mesh = init_device_mesh(ranks.device.type, (groups, self._stages), mesh_dim_names=("batch", "stage"))
        self._neighbours = mesh["stage"].get_group()
        network.to(ranks.device)
        if groups > 1:
            # Gathered for the first microbatch, it stays until the last one has passed.
            sharded(network, mesh["batch"], keep_gathered=True)
        self._passed_on = network.passed_on
        super().__init__(network, loss, options, ranks)
        self._compute = network.forward
        network.forward = self._lowered
        self._built: dict[bool, tuple[PipelineScheduleSingle, int]] = {}
        """For training and for scoring: how microbatches pass, and how many examples they have room for.

        To build one drops the gradients that are there (torch's stages do), so the first part of a batch, which is the
        largest, must not leave that to a later one.
        """

    @property
    def part(self) -> int:
        """See Strategy. Ranks of one group draw for different layers."""
        return self._ranks.rank

    def share(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        """See Strategy."""
        return batch[self._group :: self._groups]

    def add_gradients(self, inputs: torch.Tensor, targets: torch.Tensor, *, scale: float, last: bool) -> torch.Tensor:
        """See Strategy. Groups add up their gradients after every part of a batch."""
        self._network.train()
        scale *= self._groups  # of which FSDP takes the average
        losses = self._passed(inputs, targets, training=True, scale=scale)
        return torch.stack(losses).sum().detach() / scale if losses else torch.zeros(())

    @torch.no_grad()
    def score(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Strategy."""
        self._network.eval()
        found = self._passed(inputs, targets, training=False)
        loss, right = torch.stack(found).sum(dim=0) if found else torch.zeros(2, device=self._ranks.device)
        return loss, right

    @property
    def divided(self) -> bool:
        """See Strategy."""
        return self._ranks.world_size > 1

    def load(self, state: dict[str, Any]) -> None:
        """See Strategy. Every rank looks at what the others hold too, so that all refuse what one does."""
        load_network(self._network, state["network"], of=self._shapes)
        load_optimizer(self._network, self._optimizer, state["optimizer"], of=self._shapes)

    def _lowered(self, inputs: torch.Tensor) -> torch.Tensor:
        """What this rank's layers make of a microbatch. Each has the casts of its weights to itself."""
        return self._logits(self._compute, inputs)

    def _passed(
        self, inputs: torch.Tensor, targets: torch.Tensor, *, training: bool, **given: float
    ) -> list[torch.Tensor]:
        """On the last stage what `_scaled_loss` in training, else `_loss_and_right`, says of each microbatch; elsewhere
        nothing. All of the group take part, and know without asking into how many the examples are divided.
        """
        schedule, room = self._built.get(training, (None, 0))
        if schedule is None or room < len(inputs):
            schedule, room = self._built[training] = self._schedule(inputs, training=training)
        lacking = room - len(inputs)
        inputs = torch.cat([inputs, inputs.new_zeros(lacking, *inputs.shape[1:])])
        targets = torch.cat([targets, targets.new_full((lacking, *targets.shape[1:]), UNCOUNTED)])
        found: list[torch.Tensor] = []
        passed = (inputs,) if self._stage == 0 else ()
        run = schedule.step if training else schedule.eval
        run(*passed, target=targets, losses=found, return_outputs=False, loss_kwargs=given)
        return found

    def _schedule(self, inputs: torch.Tensor, *, training: bool) -> tuple[PipelineScheduleSingle, int]:
        """With room for these examples, and for how many it has. Everything about the kind of a microbatch is said
        before, so that the ranks need not compute one to find out.
        """
        kind = self._kind if training else ScheduleGPipe
        rows = max(1, math.ceil(len(inputs) / self._microbatches))
        count = max(self._stages if kind is Schedule1F1B else 1, math.ceil(len(inputs) / rows))
        inputs = inputs.new_zeros(rows, *inputs.shape[1:])
        hidden = self._passed_on(inputs)
        stage = PipelineStage(
            self._network,
            self._stage,
            self._stages,
            self._ranks.device,
            input_args=inputs if self._stage == 0 else hidden,
            output_args=hidden,  # nobody receives those of the last stage
            group=self._neighbours,
        )
        loss = self._scaled_loss if training else self._loss_and_right
        return kind(stage, count, loss_fn=loss, scale_grads=False), rows * count

    def _scaled_loss(self, logits: torch.Tensor, targets: torch.Tensor, scale: float) -> torch.Tensor:
        return self._loss(logits, targets) * scale

    def _loss_and_right(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._loss(logits, targets), (logits.argmax(dim=-1) == targets).sum()])
