"""A curve in plain characters."""

import itertools
from collections.abc import Sequence

WIDTH, HEIGHT = 60, 8


def chart(values: Sequence[float], *, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Lines that draw `values` from left to right, the greatest on top; nothing for fewer than two values.

    More values than columns are averaged column by column.
    """
    if len(values) < 2:
        return []
    columns = _columns(values, width)
    low, high = min(columns), max(columns)
    scale = (height - 1) / (high - low) if high > low else 0.0
    levels = [round((value - low) * scale) for value in columns]
    rows: list[str] = []
    for level in range(height - 1, -1, -1):
        label = f"{high:.4g}" if level == height - 1 else f"{low:.4g}" if level == 0 else ""
        rows.append(f"{label:>10} |" + "".join("*" if at == level else " " for at in levels).rstrip())
    return rows


def _columns(values: Sequence[float], width: int) -> list[float]:
    count = min(width, len(values))
    edges = [len(values) * column // count for column in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
