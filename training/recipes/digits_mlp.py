"""`digits-mlp`: a network with one hidden layer learns handwritten digits, or the classes of the user's own table.

The digits are scikit-learn's 1797 images of 8 x 8 pixels, which come with the package. Every batch is split over the
ranks and its loss is the mean over the whole batch, so that the result does not depend on how many ranks there are.
"""

from dataclasses import dataclass

import torch
from torch import nn

from training.classifying import ClassifyOptions, load
from training.examples import Epochs
from training.fitting import exit_code, fit
from training.options import option
from training.ranks import joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ClassifyOptions):
    """`hidden` are the units of the one hidden layer."""

    hidden: int = option(64, at_least=1, at_most=65_536)


def run(options: Options) -> int:
    """Train, tell the progress of every epoch from rank 0, and return the exit code, the same on every rank.

    It is 1 when the loss is no longer finite or the last accuracy is below `min_accuracy`, STOPPED when it was asked to
    stop before its end, else 0.
    """
    data = load(options)
    with joined() as ranks:
        data = data.to(ranks.device)
        torch.manual_seed(options.seed)
        network = nn.Sequential(
            nn.Linear(data.columns, options.hidden), nn.ReLU(), nn.Linear(options.hidden, data.classes)
        )
        rounds = Epochs(
            count=len(data.training), batch_size=options.batch_size, seed=options.seed, total=options.epochs
        )
        outcome = fit(network, data.training, data.validation, rounds, options, ranks)
    return exit_code(outcome, options.min_accuracy, options, ranks)
