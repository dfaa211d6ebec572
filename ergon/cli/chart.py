"""A curve in plain characters."""

import itertools
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 60, 8
WIDE_RANGE = 20.0
"""From here on, greatest by least, a linear axis would show one drop and then a flat line."""


def chart(values: Sequence[float], *, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Lines that draw `values` from left to right, the greatest on top; nothing for fewer than two values.

    More values than columns are averaged column by column. Positive values that range widely get a logarithmic axis,
    which a last line then says.
    """
    if len(values) < 2:
        return []
    columns = _columns(values, width)
    logarithmic = min(columns) > 0 and max(columns) / min(columns) >= WIDE_RANGE
    levels = _levels([math.log(value) for value in columns] if logarithmic else columns, height)
    labels = {height - 1: f"{max(columns):.4g}", 0: f"{min(columns):.4g}"}
    rows = [
        f"{labels.get(level, ''):>10} |" + "".join("*" if at == level else " " for at in levels).rstrip()
        for level in range(height - 1, -1, -1)
    ]
    return [*rows, " " * 12 + "(logarithmic)"] if logarithmic else rows


def _levels(values: Sequence[float], height: int) -> list[int]:
    """The row of each value, 0 at the bottom; all at the bottom if they are equal."""
    low, high = min(values), max(values)
    scale = (height - 1) / (high - low) if high > low else 0.0
    return [round((value - low) * scale) for value in values]


def _columns(values: Sequence[float], width: int) -> list[float]:
    count = min(width, len(values))
    edges = [len(values) * column // count for column in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
