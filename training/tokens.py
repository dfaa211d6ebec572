"""Text as a sequence of tokens: bytes of what is readable, or the numbers of a file that is mapped into memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
import numpy
import torch
from fsspec.implementations.local import LocalFileSystem

from training.docstrings import sources
from training.errors import InputError
from training.examples import sent
from training.tables import READERS, read_table, texts

BYTES = 256
CHUNK = 1 << 22
"""Tokens that are looked at together; bounds memory where a file is larger than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Whole numbers (n,) from 0 to vocabulary - 1, which may lie in a mapped file."""

    values: numpy.ndarray
    vocabulary: int


def read_tokens(url: str, column: str, vocabulary: int) -> Tokens:
    """The tokens at any fsspec URL; without one, the source of Python's standard library.

    `.npy` is a one-dimensional array of whole numbers, mapped rather than read, and copied to a temporary file first if
    it is remote; `vocabulary` is how many different ones there may be, with 0 as many as the largest asks for. Of a
    `.csv`, `.jsonl` or `.parquet` the texts in `column` count, of any other file the bytes, `.gz` unpacked. Raises
    InputError for what cannot be read or is out of range.
    """
    if PurePosixPath(urlsplit(url).path).suffix == ".npy":
        return _mapped(url, vocabulary)
    if vocabulary not in (0, BYTES):
        raise InputError(
            f"option vocabulary={vocabulary}: text is read as bytes, of which there are {BYTES}; leave it out"
        )
    found = numpy.frombuffer(_read(url, column), dtype=numpy.uint8)
    return Tokens(values=found, vocabulary=BYTES)


def _read(url: str, column: str) -> bytes:
    if not url:
        return b"\n".join(path.read_bytes() for path in sources())
    path = PurePosixPath(urlsplit(url).path)
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() in READERS:
        table = read_table(url)
        return "\n".join(texts(table, table.column("text", column))).encode()
    try:
        opened: Any = fsspec.open(url, "rb", compression="infer")
        with opened as file:
            return file.read()
    except (OSError, ImportError, EOFError, ValueError) as error:
        raise InputError(f"data={url}: cannot be read: {error}") from error


def _mapped(url: str, vocabulary: int) -> Tokens:
    try:
        system, path = fsspec.core.url_to_fs(url)
        local = path if isinstance(system, LocalFileSystem) else fsspec.open_local(f"simplecache::{url}")
        values = numpy.load(str(local), mmap_mode="r", allow_pickle=False)
    except (OSError, ImportError, EOFError, ValueError) as error:
        raise InputError(f"data={url}: cannot be read: {error}") from error
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(f"data={url}: holds {values.dtype} {values.shape}; expected whole numbers in one dimension")
    least, most = 0, 0
    for _, chunk in chunks(values):
        least, most = min(least, int(chunk.min())), max(most, int(chunk.max()))
    if least < 0 or (vocabulary and most >= vocabulary):
        wrong = least if least < 0 else most
        place = next(at + int((chunk == wrong).argmax()) for at, chunk in chunks(values) if (chunk == wrong).any())
        raise InputError(f"data={url}: token {wrong} at {place} is not within 0 to {(vocabulary or most + 1) - 1}")
    return Tokens(values=values, vocabulary=vocabulary or most + 1)


def chunks(values: numpy.ndarray) -> Iterator[tuple[int, numpy.ndarray]]:
    """All of them in order, as int64, and where each piece begins; each ends with the first one of the next."""
    for begin in range(0, len(values), CHUNK):
        yield begin, numpy.asarray(values[begin : begin + CHUNK + 1], dtype=numpy.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Examples of `context` tokens, and as targets those one further; a window begins at every `stride`-th token."""

    values: numpy.ndarray
    context: int
    stride: int
    device: torch.device

    def __len__(self) -> int:
        return max(0, (len(self.values) - 1 - self.context) // self.stride + 1)

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets (n, context) of the windows with these numbers."""
        places = indices[:, None] * self.stride + torch.arange(self.context + 1)
        found = sent(torch.from_numpy(self.values[places.numpy()].astype(numpy.int64)), self.device)
        return found[:, :-1], found[:, 1:]


STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)


def bigram_loss(training: Tokens, inputs: numpy.ndarray, targets: numpy.ndarray) -> float:
    """Mean negative logarithm, in nats, that a smoothed bigram of the training tokens gives to each target (n,).

    After MacKay and Peto 1995, "A hierarchical Dirichlet language model": p(b | a) = (n(ab) + m p(b)) / (n(a) + m),
    with p(b) smoothed by one of each; `m` is the best one of STRENGTHS for these very targets.
    """
    pairs, where = numpy.unique(inputs * training.vocabulary + targets, return_inverse=True)
    pair_counts = numpy.zeros(len(pairs), dtype=numpy.int64)
    counts = numpy.zeros(training.vocabulary, dtype=numpy.int64)
    for _, chunk in chunks(training.values):
        found, times = numpy.unique(chunk[:-1] * training.vocabulary + chunk[1:], return_counts=True)
        at = numpy.searchsorted(pairs, found)
        known = at < len(pairs)
        known[known] = pairs[at[known]] == found[known]
        pair_counts[at[known]] += times[known]
        counts += numpy.bincount(chunk[:-1], minlength=training.vocabulary)
    alone = (counts[targets] + 1) / (counts.sum() + training.vocabulary)
    losses = [
        -numpy.log((pair_counts[where] + strength * alone) / (counts[inputs] + strength)).mean()
        for strength in STRENGTHS
    ]
    return float(min(losses))
