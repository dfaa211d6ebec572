"""`text-cnn`: texts are classified by an embedding, one-dimensional convolutions, pooling and a dense layer.

Without data of the user's own, the texts are the docstrings of Python's standard library, the classes its packages.
After Kim 2014, "Convolutional neural networks for sentence classification".
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from training.docstrings import docstrings
from training.errors import InputError
from training.examples import Epochs, Tensors, split
from training.fitting import FitOptions, Score, exit_code, fit
from training.options import option
from training.ranks import joined
from training.tables import labels, read_table, texts

WORD = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")
PADDING, UNKNOWN = 0, 1
WIDTHS = (1, 2, 3)
"""Words that the convolutions look at together."""

LEAST_DOCSTRINGS = 100
"""A package of the standard library with fewer is no class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(FitOptions):
    """`data` is a table (.csv, .jsonl or .parquet, at any fsspec URL) with a column `text` and a column `label`.

    Of each text the first `length` words count, and words that are in less than `least_texts` of the texts for training
    are all the same. `channels` are those of each width of convolution. `baseline=0` leaves out the comparison.
    """

    data: str = option("")
    text: str = option("text")
    label: str = option("label")
    classes: int = option(0, at_least=0, at_most=1_000_000)
    length: int = option(64, at_least=4, at_most=100_000)
    least_texts: int = option(2, at_least=1, at_most=1_000_000)
    embedding: int = option(96, at_least=1, at_most=65_536)
    channels: int = option(96, at_least=1, at_most=65_536)
    dropout: float = option(0.4, at_least=0.0, at_most=0.95)
    epochs: int = option(14, at_least=1, at_most=100_000)
    optimizer: str = option("adamw", one_of=("sgd", "adam", "adamw"))
    batch_size: int = option(32, at_least=1, at_most=10**7)
    learning_rate: float = option(3e-3, at_least=1e-8, at_most=1e3)
    l2: float = option(0.01, at_least=0.0, at_most=1e3)
    min_accuracy: float = option(0.0, at_least=0.0, at_most=1.0)
    baseline: int = option(1, at_least=0, at_most=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Texts and their classes int64 (n,), and which of them are for training and for validation."""

    texts: list[str]
    targets: torch.Tensor
    classes: int
    training: torch.Tensor
    validation: torch.Tensor


class TextNetwork(nn.Module):
    """Words (n, length) to logits (n, classes): embedding, convolutions, maximum over the text, dense."""

    def __init__(self, words: int, classes: int, options: Options) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, options.embedding, padding_idx=PADDING)
        self.convolutions = nn.ModuleList(nn.Conv1d(options.embedding, options.channels, width) for width in WIDTHS)
        self.dropout = nn.Dropout(options.dropout)
        self.dense = nn.Linear(options.channels * len(WIDTHS), classes)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """See the class."""
        embedded = self.dropout(self.embedding(words)).transpose(1, 2)
        pooled = [convolution(embedded).relu().amax(dim=2) for convolution in self.convolutions]
        return self.dense(self.dropout(torch.cat(pooled, dim=1)))


def run(options: Options) -> int:
    """Train, tell the progress of every epoch from rank 0, compare with TF-IDF, and return the exit code.

    It is 1 when the loss is no longer finite or the last accuracy is below `min_accuracy`, STOPPED when it was asked to
    stop before its end, else 0.
    """
    data = load(options)
    vocabulary = words_of(pick(data.texts, data.training), options.least_texts)
    encoded = encode(data.texts, vocabulary, options.length)
    with joined() as ranks:
        examples = Tensors(inputs=encoded, targets=data.targets).to(ranks.device)
        training, validation = (Tensors(*examples.take(part)) for part in (data.training, data.validation))
        torch.manual_seed(options.seed)
        network = TextNetwork(len(vocabulary) + 2, data.classes, options)
        rounds = Epochs(count=len(training), batch_size=options.batch_size, seed=options.seed, total=options.epochs)
        outcome = fit(network, training, validation, rounds, options, ranks)
    if ranks.first and options.baseline and isinstance(outcome, Score):
        tell_baseline(data, options.seed)
    return exit_code(outcome, options.min_accuracy, options, ranks)


def load(options: Options) -> Texts:
    """The user's texts, or the docstrings. Raises InputError for a table that does not fit."""
    if options.data:
        table = read_table(options.data)
        found = texts(table, table.column("text", options.text))
        targets, names = labels(table, table.column("label", options.label), options.classes)
    else:
        found, targets, names = _docstrings()
    training, validation = split(len(found), options.seed)
    if len(validation) == 0:
        raise InputError(f"data={options.data}: {len(found)} rows are too few to train on and to validate with")
    return Texts(texts=found, targets=targets, classes=len(names), training=training, validation=validation)


def _docstrings() -> tuple[list[str], torch.Tensor, list[str]]:
    rows = list(docstrings())
    counts = Counter(package for _, package in rows)
    packages = sorted(package for package, count in counts.items() if count >= LEAST_DOCSTRINGS)
    rows = [(text, package) for text, package in rows if package in packages]
    return [text for text, _ in rows], torch.tensor([packages.index(package) for _, package in rows]), packages


def pick(texts: list[str], part: torch.Tensor) -> list[str]:
    """The texts with these numbers."""
    return [texts[index] for index in part.tolist()]


def words_of(texts: Sequence[str], least_texts: int) -> dict[str, int]:
    """Every word that is in so many of the texts, and its number; 0 is padding, 1 any other word."""
    counts = Counter(word for text in texts for word in set(WORD.findall(text.lower())))
    known = sorted(word for word, count in counts.items() if count >= least_texts)
    return {word: number for number, word in enumerate(known, start=2)}


def encode(texts: Sequence[str], vocabulary: dict[str, int], length: int) -> torch.Tensor:
    """The numbers of each text's first `length` words, int64 (n, length), padded at the end."""
    encoded = torch.full((len(texts), length), PADDING)
    for row, text in enumerate(texts):
        numbers = [vocabulary.get(word, UNKNOWN) for word in WORD.findall(text.lower())[:length]]
        encoded[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
    return encoded


def tell_baseline(data: Texts, seed: int) -> None:
    """Train TF-IDF with logistic regression on the same texts, tuned by cross-validation, and print its accuracy."""
    train_texts, texts = pick(data.texts, data.training), pick(data.texts, data.validation)
    train_targets, targets = data.targets[data.training].numpy(), data.targets[data.validation].numpy()
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000, random_state=seed))
    grid = {"tfidfvectorizer__ngram_range": [(1, 1), (1, 2)], "logisticregression__C": [1, 10, 100]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(train_texts, train_targets)
    majority = data.targets[data.validation].bincount().max().item() / len(targets)
    print(f"TF-IDF with logistic regression {search.score(texts, targets):.4f}, majority class {majority:.4f}")
