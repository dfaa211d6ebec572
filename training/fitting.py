"""The loop that every recipe which learns from examples runs: steps, scores, checkpoints, and when to stop."""

import math
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ergon import runtime
from training.communication import Exchanges
from training.examples import Examples, Rounds
from training.objectives import loss_of, rate_at
from training.options import option
from training.ranks import Ranks
from training.saving import STOPPED, Writer, must_stop, saved
from training.speed import Laps, Speed, operations, peak_memory, peak_of
from training.strategies import strategy_of
from training.strategies.strategy import Strategy, StrategyOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions(StrategyOptions):
    """`batch_size` counts examples over all ranks; each rank computes its share in `accumulate` parts, one after the
    other, which saves memory and changes nothing else. `checkpoint_every` counts rounds, which are epochs unless the
    recipe says otherwise; 0 saves only when it is asked to stop.
    """

    batch_size: int = option(64, at_least=1, at_most=10**7)
    accumulate: int = option(1, at_least=1, at_most=10**4)
    seed: int = option(0, at_least=0, at_most=2**31)
    checkpoint_every: int = option(1, at_least=0, at_most=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """After a round: mean loss in training and in validation, and the fraction of validation targets named right."""

    loss: float
    val_loss: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A round of steps: mean loss over its `targets`, each taken before its own step, and how many `examples` it had.

    If a loss was not finite: that loss, and as `bad` its step. `step_ms` is the median of those of this rank in which
    it had any examples; `communication` is the share of one of them, of rank 0, as in `Exchanges`.
    """

    loss: float
    bad: int | None
    examples: int
    targets: int
    step_ms: float
    communication: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diverged:
    """The loss was no longer finite at `step`; `saved` is the step of the latest checkpoint, None if there is none."""

    step: int
    loss: float
    saved: int | None

    def __str__(self) -> str:
        kept = "nothing was saved" if self.saved is None else f"the checkpoint of step {self.saved} is kept"
        return f"step {self.step}: the loss became {self.loss}; {kept}"


Outcome = Score | Diverged | None
"""None: it was asked to stop and has saved."""


def fit(
    network: nn.Module, training: Examples, validation: Examples, rounds: Rounds, options: FitOptions, ranks: Ranks
) -> Outcome:
    """Train to the end, to the first loss that is not finite, or until it is asked to stop. The same on every rank.

    Goes on from what an attempt of before has saved; tells the score of every round from rank 0.
    """
    peak = peak_of(ranks.device, options.precision)
    operations_each = operations(network, training.take(torch.arange(1))[0]) if peak else 0
    strategy = strategy_of(network, loss_of(options), options, ranks)
    done, score, kept = 0, Score(loss=math.inf, val_loss=math.inf, accuracy=0.0), None
    if (state := saved(ranks)) is not None:
        strategy.load(state["model"])
        done, score = state["round"], Score(**state["score"])
        kept = done * rounds.steps
    with Writer(ranks) as writer:
        for number in range(done + 1, rounds.total + 1):
            began = time.monotonic()
            trained = train_round(strategy, training, rounds, number, options, ranks)
            writer.check()
            rate = trained.examples / (time.monotonic() - began)
            if trained.bad is not None:
                return Diverged(step=trained.bad, loss=trained.loss, saved=kept)
            val_loss, accuracy = evaluate(strategy, validation, options.batch_size, ranks)
            if not math.isfinite(val_loss):  # the last update broke the weights, which must not be saved
                return Diverged(step=number * rounds.steps, loss=val_loss, saved=kept)
            score = Score(loss=trained.loss, val_loss=val_loss, accuracy=accuracy)
            if ranks.first:
                speed = Speed(
                    step_ms=trained.step_ms,
                    communication=trained.communication,
                    examples_per_s=rate,
                    memory_bytes=peak_memory(ranks.device),
                    utilisation=operations_each * rate / (peak * ranks.world_size) if peak else None,
                )
                tell(score, number, rounds, speed, targets_each=trained.targets // trained.examples)
            stopping = number < rounds.total and must_stop(ranks)
            if stopping or (options.checkpoint_every and number % options.checkpoint_every == 0):
                writer.save(number * rounds.steps, strategy, {"round": number, "score": asdict(score)})
                kept = number * rounds.steps
            if stopping:
                return None
    return score


def train_round(
    strategy: Strategy, examples: Examples, rounds: Rounds, number: int, options: FitOptions, ranks: Ranks
) -> Round:
    """All steps of a round. Waits for the device at the end."""
    batches, laps, exchanges = rounds.batches(number), Laps(ranks.device), Exchanges(ranks.device)
    is_seen = ranks.world_size == 1 or not ranks.first
    before = (number - 1) * rounds.steps
    losses = torch.zeros(len(batches), dtype=torch.float64, device=ranks.device)
    counts: list[int] = []
    for position, batch in enumerate(batches):
        # What is drawn at random follows from the step, so that a run that was broken off draws the same.
        torch.manual_seed(options.seed + 1_000_003 * (before + position) + 7_919 * strategy.part)
        share = strategy.share(batch, position)
        look = not is_seen and len(share) > 0 and position >= len(batches) // 2  # not at those that wait for scoring
        is_seen = is_seen or look
        with exchanges.of_step() if look else nullcontext():
            laps.begin()
            losses[position], count = train_step(strategy, examples, share, len(batch), options)
            counts.append(count)
            strategy.update(rate_at(before + position + 1, rounds.total * rounds.steps, options))
            if len(share):
                laps.end()
    strategy.settle()
    ranks.total(losses)
    finite = losses.isfinite()
    targets, loss, bad = sum(counts), losses.sum().item(), None
    if not finite.all():
        first = int(finite.int().argmin().item())
        loss, bad = losses[first].item() * targets, before + first + 1
    return Round(
        loss=loss / targets,
        bad=bad,
        examples=sum(map(len, batches)),
        targets=targets,
        step_ms=laps.median_ms(),
        communication=exchanges.share,
    )


def train_step(
    strategy: Strategy, examples: Examples, share: torch.Tensor, batch_size: int, options: FitOptions
) -> tuple[torch.Tensor, int]:
    """The gradients of the mean loss of a batch of that many examples, of which this rank computes `share`.

    Returns this rank's part of the summed loss, and the targets in all. Every rank computes in as many parts, some of
    which may be empty: each takes part in the exchange of gradients.
    """
    parts = share.tensor_split(options.accumulate)
    total, count = torch.zeros(()), 0
    for position, part in enumerate(parts):
        inputs, targets = examples.take(part)
        count = count or batch_size * math.prod(targets.shape[1:])
        loss = strategy.add_gradients(inputs, targets, scale=1 / count, last=position == len(parts) - 1)
        total = total + loss  # wherever that is: to bring zero to a GPU first would wait for it
    return total, count


def evaluate(strategy: Strategy, examples: Examples, batch_size: int, ranks: Ranks) -> tuple[float, float]:
    """Mean loss and accuracy over all of `examples`; every rank weighs its share of each batch."""
    total, count = torch.zeros(2, dtype=torch.float64, device=ranks.device), 0
    for number, batch in enumerate(torch.arange(len(examples)).split(batch_size)):
        inputs, targets = examples.take(strategy.share(batch, number))
        loss, right = strategy.score(inputs, targets)
        total += torch.stack([loss.double(), right.double()])
        count += len(batch) * math.prod(targets.shape[1:])
    loss, accuracy = (ranks.total(total) / count).tolist()
    return loss, accuracy


def tell(score: Score, number: int, rounds: Rounds, speed: Speed, *, targets_each: int) -> None:
    """A round's score, for people on stdout and for Ergon, and its speed without scoring.

    What has several targets in each example is a text, and counted in tokens.
    """
    word, rate = ("tokens" if targets_each > 1 else "examples"), speed.examples_per_s * targets_each
    known: dict[str, Any] = {f"{word}_per_s": rate}
    if speed.utilisation is not None:
        known["mfu"] = speed.utilisation
    if speed.communication is not None:
        known["communication_share"] = speed.communication
    used = "" if speed.utilisation is None else f"  {100 * speed.utilisation:.1f} % of peak"
    exchanged = "" if speed.communication is None else f"  {100 * speed.communication:.0f} % communication"
    print(
        f"{rounds.word} {number}/{rounds.total}  loss {score.loss:.4f}  val_loss {score.val_loss:.4f}  "
        f"accuracy {score.accuracy:.4f}  {speed.step_ms:.1f} ms/step  "
        f"{rate:.0f} {word}/s  {speed.memory_bytes / 2**20:.0f} MiB{used}{exchanged}",
        flush=True,
    )
    epochs = {"epoch": number, "total_epochs": rounds.total} if rounds.word == "epoch" else {}
    runtime.report(
        step=number * rounds.steps,
        total_steps=rounds.total * rounds.steps,
        **epochs,
        loss=score.loss,
        val_loss=score.val_loss,
        accuracy=score.accuracy,
        step_ms=speed.step_ms,
        memory_bytes=speed.memory_bytes,
        **known,
    )


def failure_of(outcome: Diverged | None, options: FitOptions) -> int:
    """What a recipe ends with that was asked to stop, or whose loss diverged, which stderr says."""
    if outcome is None:
        return STOPPED
    print(f"{outcome}; lower learning_rate={options.learning_rate}", file=sys.stderr)
    return 1


def exit_code(outcome: Outcome, min_accuracy: float, options: FitOptions, ranks: Ranks) -> int:
    """What a recipe ends with: 1 when the loss diverged or the accuracy is below `min_accuracy`, and stderr says so."""
    if not isinstance(outcome, Score):
        return failure_of(outcome, options)
    if outcome.accuracy < min_accuracy:
        print(f"accuracy {outcome.accuracy:.4f} is below min_accuracy={min_accuracy}", file=sys.stderr)
        return 1
    if ranks.first:
        print(f"validation accuracy {outcome.accuracy:.4f}, world size {ranks.world_size}")
    return 0
