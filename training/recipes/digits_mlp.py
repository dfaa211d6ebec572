"""`digits-mlp`: a small network learns handwritten digits, data-parallel over all ranks of the gang.

The data are scikit-learn's 1797 images of 8 x 8 pixels, which come with the package. Every batch is split over the
ranks and its loss is the mean over the whole batch, so that the result does not depend on how many ranks there are.
"""

import math
import sys
from dataclasses import asdict, dataclass
from typing import cast

import torch
from sklearn.datasets import load_digits
from sklearn.utils import Bunch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ergon import runtime
from training.options import option
from training.ranks import Ranks, joined
from training.saving import STOPPED, must_stop, save, saved

VALIDATION_SHARE = 0.2
PIXELS = 64
CLASSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`batch_size` counts images over all ranks; `min_accuracy` is a fraction of the validation images.

    `checkpoint_every` counts epochs; 0 saves only when it is asked to stop.
    """

    epochs: int = option(10, at_least=1, at_most=100_000)
    batch_size: int = option(64, at_least=1, at_most=100_000)
    hidden: int = option(64, at_least=1, at_most=65_536)
    learning_rate: float = option(0.05, at_least=1e-6, at_most=10.0)
    momentum: float = option(0.9, at_least=0.0, at_most=0.999)
    seed: int = option(0, at_least=0, at_most=2**31)
    min_accuracy: float = option(0.0, at_least=0.0, at_most=1.0)
    checkpoint_every: int = option(1, at_least=0, at_most=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Images, float32 (n, 64), and which digit each of them shows, int64 (n,)."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """After an epoch: mean cross-entropy in training and in validation, and the fraction of images recognised."""

    loss: float
    val_loss: float
    accuracy: float


def run(options: Options) -> int:
    """Train, tell the progress of every epoch from rank 0, and return the exit code.

    It is 1 when the loss is no longer finite or the last accuracy is below `min_accuracy`, STOPPED when it was asked to
    stop before its end, else 0, on every rank.
    """
    with joined() as ranks:
        score = train(options, ranks)
    if score is None:
        return STOPPED
    if not math.isfinite(score.loss):
        print(f"the loss became {score.loss}; lower learning_rate={options.learning_rate}", file=sys.stderr)
        return 1
    if score.accuracy < options.min_accuracy:
        print(f"accuracy {score.accuracy:.4f} is below min_accuracy={options.min_accuracy}", file=sys.stderr)
        return 1
    if ranks.first:
        print(f"validation accuracy {score.accuracy:.4f}, world size {ranks.world_size}")
    return 0


def train(options: Options, ranks: Ranks) -> Score | None:
    """The score after the last epoch, or after the first whose loss is not finite; None if it was asked to stop before.

    Goes on from what an attempt of before has saved. The same on every rank.
    """
    training, validation = load(seed=options.seed, device=ranks.device)
    torch.manual_seed(options.seed)
    network = nn.Sequential(nn.Linear(PIXELS, options.hidden), nn.ReLU(), nn.Linear(options.hidden, CLASSES))
    model = DistributedDataParallel(network.to(ranks.device))
    optimizer = torch.optim.SGD(model.parameters(), lr=options.learning_rate, momentum=options.momentum)

    done, score = 0, Score(loss=math.inf, val_loss=math.inf, accuracy=0.0)
    if (state := saved(ranks)) is not None:
        model.module.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        done, score = state["epoch"], Score(**state["score"])
    for epoch in range(done + 1, options.epochs + 1):
        batches = shuffled(len(training.labels), options.batch_size, seed=options.seed, epoch=epoch)
        loss = train_epoch(model, optimizer, training, batches, ranks)
        val_loss, accuracy = evaluate(model, validation, ranks)
        score = Score(loss=loss, val_loss=val_loss, accuracy=accuracy)
        if ranks.first:
            tell(score, epoch=epoch, options=options, steps=len(batches))
        if not math.isfinite(loss):
            break
        stopping = epoch < options.epochs and must_stop(ranks)
        if stopping or (options.checkpoint_every and epoch % options.checkpoint_every == 0):
            network_state, optimizer_state = model.module.state_dict(), optimizer.state_dict()
            state = {"network": network_state, "optimizer": optimizer_state, "epoch": epoch, "score": asdict(score)}
            save(epoch * len(batches), state, ranks)
        if stopping:
            return None
    return score


def load(*, seed: int, device: torch.device) -> tuple[Digits, Digits]:
    """The training and the validation part, split by `seed` alone and standardised by the training part's pixels."""
    raw = cast(Bunch, load_digits())
    images = torch.tensor(raw.data, dtype=torch.float32)
    labels = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    validation, training = order.tensor_split([int(VALIDATION_SHARE * len(labels))])

    deviation, mean = torch.std_mean(images[training], dim=0)
    deviation[deviation == 0] = 1  # pixels in the corners are the same in all images
    images = (images - mean) / deviation
    parts = [Digits(images=images[part].to(device), labels=labels[part].to(device)) for part in (training, validation)]
    return parts[0], parts[1]


def shuffled(count: int, batch_size: int, *, seed: int, epoch: int) -> tuple[torch.Tensor, ...]:
    """The indices 0 to count - 1 in the order of this epoch, cut into batches; the last one may be smaller."""
    generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)
    return torch.randperm(count, generator=generator).split(batch_size)


def train_epoch(
    model: DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    digits: Digits,
    batches: tuple[torch.Tensor, ...],
    ranks: Ranks,
) -> float:
    """One pass over `batches`, one step for each. Returns the mean loss, each image taken before its own step."""
    model.train()
    total = torch.zeros(1, dtype=torch.float64, device=ranks.device)
    for batch in batches:
        mine = ranks.mine(batch)
        loss = cross_entropy(model(digits.images[mine]), digits.labels[mine], reduction="sum")
        optimizer.zero_grad()
        # DDP averages gradients over the ranks, whose shares may differ by an image (or be empty): this factor turns
        # that average into the gradient of the mean over the whole batch.
        (loss * (ranks.world_size / len(batch))).backward()
        optimizer.step()
        total += loss.detach()
    return ranks.total(total).item() / len(digits.labels)


def evaluate(model: DistributedDataParallel, digits: Digits, ranks: Ranks) -> tuple[float, float]:
    """Mean loss and accuracy over all of `digits`; every rank weighs its share."""
    model.eval()
    labels = ranks.mine(digits.labels)
    with torch.no_grad():
        logits = model.module(ranks.mine(digits.images))
        loss = cross_entropy(logits, labels, reduction="sum")
        right = (logits.argmax(dim=1) == labels).sum()
    total = ranks.total(torch.stack([loss.double(), right.double()])) / len(digits.labels)
    return total[0].item(), total[1].item()


def tell(score: Score, *, epoch: int, options: Options, steps: int) -> None:
    """The epoch's score, for people on stdout and for Ergon. `steps` are those of one epoch."""
    print(
        f"epoch {epoch}/{options.epochs}  loss {score.loss:.4f}  val_loss {score.val_loss:.4f}  "
        f"accuracy {score.accuracy:.4f}",
        flush=True,
    )
    runtime.report(
        step=epoch * steps,
        total_steps=options.epochs * steps,
        epoch=epoch,
        total_epochs=options.epochs,
        loss=score.loss,
        val_loss=score.val_loss,
        accuracy=score.accuracy,
    )
