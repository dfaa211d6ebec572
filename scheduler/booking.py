"""Looks ahead: if this mix keeps coming until the fleet is full, how much of each demand should be where, and when.

One fluid plan for several loads at once: what is placed at a load stays where it is at all higher ones, the power drawn
at each counts alike, and at the highest all must be placed. So what would later be in the way is seen early: a demand
that needs few cores does not fill nodes rich in cores only because they are frugal, if others will need those cores.
"""
# scipy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import block_diag, coo_array, vstack

from scheduler.demand import Demand, NodeClass, Outlook
from scheduler.fluid import Model, Vector

LOADS = (0.1, 0.2, 0.4, 0.6, 0.8)
"""Loads at which the plan is worked out below the highest, where `LOADS` are lower."""

TOP_LOADS = (0.98, 0.96, 0.94, 0.92, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""The highest load is the first of these at which a fluid plan places everything."""

SPARES = (0.18, 0.12, 0.06, 0.0)
"""Share of every class's cores to leave free at the highest load: the first that leaves nothing unplaced. Jobs are not
fluid; devices beside which no cores are left are lost."""

NOTHING = 1e-3
"""Fewer members than this are none."""


def look_ahead(nodes: Mapping[NodeClass, int], mix: Mapping[Demand, float]) -> tuple[Outlook, ...]:
    """The outlook of a mix (demands by frequency) on so many nodes of each class; none if it asks for no devices or
    does not even fill half of them.
    """
    classes, demands = sorted(nodes), sorted(mix)
    counts = [nodes[node] for node in classes]
    devices = sum(node.devices * count for node, count in nodes.items())
    size = sum(demand.size * weight for demand, weight in mix.items())
    if not devices or size <= 0:
        return ()
    at_full = np.array([mix[demand] for demand in demands]) * devices / size
    for top in TOP_LOADS:
        last = _solved(Model(classes, counts, demands, at_full * top))
        if last is not None:
            break
    else:
        return ()
    for spare in SPARES:
        last = Model(classes, counts, demands, at_full * top)
        last.leave_spare(spare)
        if _solved(last) is not None:
            break
    loads = [load for load in LOADS if load < top]
    models = [Model(classes, counts, demands, at_full * load) for load in loads]
    for model in models:
        _solved(model)
    models.append(last)
    splits = _together(models)
    return (
        Outlook(
            classes=tuple(classes),
            demands=tuple(demands),
            loads=(*loads, top),
            members=tuple(tuple(tuple(row) for row in split.tolist()) for split in splits),
        ),
    )


def _solved(model: Model) -> Model | None:
    """The model with all patterns it needs; None if it leaves something unplaced."""
    solution = model.solve()
    while model.add_patterns(solution):
        solution = model.solve()
    return model if model.unplaced(solution.x).sum() < NOTHING else None


def _together(models: Sequence[Model]) -> list[Vector]:
    """The splits of all models in one plan: no class ever loses members from one model to the next."""
    patterns = set[Any]().union(*(model.known for model in models))
    for model in models:
        model.adopt(patterns)
    offsets = np.cumsum([0, *(len(model.cost) for model in models)])
    equalities = len(models[0].demands)
    matrices = [model.matrix() for model in models]
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for number, (model, later) in enumerate(pairwise(models)):
        for place, column in model.places.items():
            row = len(values) // 2
            rows += [row, row]
            columns += [int(offsets[number]) + column, int(offsets[number + 1]) + later.places[place]]
            values += [1.0, -1.0]
    steps = coo_array((values, (rows, columns)), shape=(len(values) // 2, int(offsets[-1])))
    least = [np.array(model.least) for model in models]
    solution: Any = linprog(
        np.concatenate([model.cost for model in models]),
        A_eq=block_diag([matrix[:equalities] for matrix in matrices], format="csr"),
        b_eq=np.concatenate([part[:equalities] for part in least]),
        A_ub=vstack([block_diag([matrix[equalities:] for matrix in matrices], format="csr"), steps]).tocsr(),
        b_ub=np.concatenate([*(part[equalities:] for part in least), np.zeros(len(values) // 2)]),
        bounds=np.column_stack([np.zeros(int(offsets[-1])), np.concatenate([model.upper for model in models])]),
        method="highs-ipm",
    )
    splits = [
        model.split(solution.x[start:end]) for model, start, end in zip(models, offsets, offsets[1:], strict=False)
    ]
    return [np.where(split < NOTHING, 0.0, split) for split in splits]
