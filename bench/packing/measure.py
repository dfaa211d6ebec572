"""What a fill of the cluster is judged by: where it first fails, what it grants, what it draws, by load."""

from collections.abc import Mapping

import numpy as np

from bench.packing.trace import Ints

LOADS = (20, 40, 60, 80, 85, 90, 95)
"""Loads, in % of the cluster's GPUs asked for so far, at which power is read."""

Figures = dict[str, float]


def figures(asked: Ints, placed: np.ndarray, watts: np.ndarray, capacity_milli: int) -> Figures:
    """`kw@L`, `first_failure` (load in %), `failed@95`, `granted@L`, `alloc@130` (% of the GPUs).

    `asked` are the thousandths of a GPU that each arrival asks for, `placed` whether it found a place, `watts` the
    cluster's draw after it. A load is read after the last arrival that does not exceed it.
    """
    arrived = np.cumsum(asked)
    used = np.cumsum(asked * placed)
    load = arrived / capacity_milli * 100
    found: Figures = {}
    for level in LOADS:
        found[f"kw@{level}"] = float(watts[_at(load, level)]) / 1e3
    found["first_failure"] = float(load[-1] if placed.all() else load[int(np.argmin(placed))])
    found["failed@95"] = float((~placed[: _at(load, 95) + 1]).sum())
    for level in (95, 100):
        found[f"granted@{level}"] = float(used[_at(load, level)] / arrived[_at(load, level)])
    found["alloc@130"] = float(used[-1] / capacity_milli * 100)
    return found


def moves_figures(asked: Ints, moves: Ints, capacity_milli: int) -> Figures:
    """`moves@L` so far at some loads, and `moves_per_arrival`: the most at any instant. `moves` counts up."""
    load = np.cumsum(asked) / capacity_milli * 100
    found: Figures = {f"moves@{level}": float(moves[_at(load, level)]) for level in (80, 95, 100)}
    found["moves_per_arrival"] = float((moves / np.arange(1, len(moves) + 1)).max())
    return found


def mean(rows: list[Mapping[str, float]]) -> Figures:
    """The mean of each figure over seeds."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _at(load: np.ndarray, level: float) -> int:
    return max(0, int(np.searchsorted(load, level, side="right")) - 1)
