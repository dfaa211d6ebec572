"""`softmax`: softmax regression, a linear model of the classes, on handwritten digits or the user's own table."""

from dataclasses import dataclass

from torch import nn

from training.classifying import ClassifyOptions, load
from training.examples import Epochs
from training.fitting import exit_code, fit
from training.options import option
from training.ranks import joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ClassifyOptions):
    """See ClassifyOptions; the defaults reach 0.95 of the digits."""

    epochs: int = option(20, at_least=1, at_most=100_000)
    learning_rate: float = option(0.1, at_least=1e-8, at_most=1e3)


def run(options: Options) -> int:
    """Train from weights of 0, tell the progress of every epoch from rank 0, and return the exit code.

    It is 1 when the loss is no longer finite or the last accuracy is below `min_accuracy`, STOPPED when it was asked to
    stop before its end, else 0.
    """
    data = load(options)
    with joined() as ranks:
        data = data.to(ranks.device)
        plane = nn.Linear(data.columns, data.classes)
        for parameter in plane.parameters():
            nn.init.zeros_(parameter)
        rounds = Epochs(
            count=len(data.training), batch_size=options.batch_size, seed=options.seed, total=options.epochs
        )
        outcome = fit(plane, data.training, data.validation, rounds, options, ranks)
    return exit_code(outcome, options.min_accuracy, options, ranks)
