"""What the recipes that classify rows of numbers share: their options, and where their examples come from."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from training.errors import InputError
from training.examples import Tensors, split
from training.fitting import FitOptions
from training.options import option
from training.tables import labels, numbers, read_table


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyOptions(FitOptions):
    """`data` is a table of numbers (.csv, .jsonl or .parquet, at any fsspec URL) whose column `label`, by default the
    last one, holds the class; without it, scikit-learn's images of handwritten digits. With `classes`, labels are 0 to
    classes - 1; with 0, whatever is in the column. `min_accuracy` is a fraction of the validation rows.
    """

    data: str = option("")
    label: str = option("")
    classes: int = option(0, at_least=0, at_most=1_000_000)
    epochs: int = option(10, at_least=1, at_most=100_000)
    min_accuracy: float = option(0.0, at_least=0.0, at_most=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """Rows for training and for validation, split by the seed alone and standardised by the training part's columns."""

    training: Tensors
    validation: Tensors
    columns: int
    classes: int

    def to(self, device: torch.device) -> "Classified":
        """The same on another device."""
        return replace(self, training=self.training.to(device), validation=self.validation.to(device))


def load(options: ClassifyOptions) -> Classified:
    """The user's table, or the 1797 images of 8 x 8 pixels. Raises InputError for a table that does not fit."""
    inputs, targets, classes = _table(options) if options.data else _digits()
    training, validation = split(len(targets), options.seed)
    if len(validation) == 0:
        raise InputError(f"data={options.data}: {len(targets)} rows are too few to train on and to validate with")
    deviation, mean = torch.std_mean(inputs[training], dim=0)
    deviation[~(deviation > 0)] = 1  # a column that is the same in all rows, such as the pixels in the corners
    inputs = (inputs - mean) / deviation
    parts = [Tensors(inputs=inputs[part], targets=targets[part]) for part in (training, validation)]
    return Classified(training=parts[0], validation=parts[1], columns=inputs.shape[1], classes=classes)


def _digits() -> tuple[torch.Tensor, torch.Tensor, int]:
    """As `sklearn.datasets.load_digits`, from its file: to import scikit-learn takes as long as to import torch."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the images of digits are scikit-learn's, which is not installed")
    table = torch.from_numpy(np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=","))
    return table[:, :-1].float(), table[:, -1].long(), 10


def _table(options: ClassifyOptions) -> tuple[torch.Tensor, torch.Tensor, int]:
    table = read_table(options.data)
    label = table.column("label", options.label) if options.label else len(table.names) - 1
    columns = [column for column in range(len(table.names)) if column != label]
    if not columns:
        raise InputError(f"data={options.data}: has no column beside {table.names[label]!r}")
    targets, names = labels(table, label, options.classes)
    return numbers(table, columns), targets, len(names)
