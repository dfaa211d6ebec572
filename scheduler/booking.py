"""Looks ahead: if this mix keeps coming until the fleet is full, how much of each demand should be where, and when.

One fluid plan for several loads at once: what is placed at a load stays where it is at all higher ones, the power drawn
at each counts alike, and at the highest all must be placed. So what would later be in the way is seen early: a demand
that needs few cores does not fill nodes rich in cores only because they are frugal, if others will need those cores.
"""
# scipy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


def look_ahead(
    nodes: Mapping[NodeClass, int],
    mix: Mapping[Demand, float],
    there: Mapping[Demand, float] | None = None,
) -> tuple[Outlook, ...]:
    """The outlook of a mix (demands by frequency) on so many nodes of each class; none if it asks for no devices or
    does not even fill half of them. What no node could hold is not expected.

    `there` is what runs already: members by demand. The mix is what comes after it. The plan is one for both, wherever
    what runs is: it would be sunk otherwise that too much of a demand is on a class, and never be made good by what
    comes.
    """
    there = there or {}
    mix = {demand: weight for demand, weight in mix.items() if any(map(demand.fits_empty, nodes))}
    classes, demands = sorted(nodes), sorted(set(mix) | set(there))
    devices = sum(node.devices * count for node, count in nodes.items())
    size = sum(demand.size * weight for demand, weight in mix.items())
    if not devices or size <= 0:
        return ()
    begun = sum(demand.size * count for demand, count in there.items()) / devices
    plan = _Plan(
        classes=classes,
        counts=[nodes[node] for node in classes],
        demands=demands,
        there=np.array([there.get(demand, 0.0) for demand in demands]),
        begun=begun,
        coming=np.array([mix.get(demand, 0.0) for demand in demands]) * devices / size,
    )
    top = next((load for load in TOP_LOADS if load > begun and _solved(plan.model(load))), None)
    if top is None:
        return ()
    last = plan.model(top)
    for spare in SPARES:
        last = plan.model(top)
        last.leave_spare(spare)
        if _solved(last):
            break
    loads = [load for load in LOADS if begun < load < top]
    if begun:
        loads = [begun, *loads]
    models = [plan.model(load) for load in loads]
    for model in models:
        _solved(model)
    splits = _together([*models, last])
    return (
        Outlook(
            classes=tuple(classes),
            demands=tuple(demands),
            loads=(*loads, top),
            members=tuple(tuple(tuple(row) for row in split.tolist()) for split in splits),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is there at the load `begun`, and what comes per unit of load beyond it."""

    classes: Sequence[NodeClass]
    counts: Sequence[int]
    demands: Sequence[Demand]
    there: Vector
    begun: float
    coming: Vector

    def model(self, load: float) -> Model:
        """The fluid plan at a load."""
        wanted = self.there + self.coming * (load - self.begun)
        return Model(self.classes, self.counts, self.demands, wanted)


def _solved(model: Model) -> bool:
    """Solves the model with all patterns it needs; whether that places everything."""
    solution = model.solve()
    while solution.x is not None and model.add_patterns(solution):
        solution = model.solve()
    return solution.x is not None and bool(model.unplaced(solution.x).sum() < NOTHING)


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
        bounds=[(0.0, upper) for model in models for upper in model.upper],
        method="highs-ipm",
    )
    splits = [
        model.split(solution.x[start:end]) for model, start, end in zip(models, offsets, offsets[1:], strict=False)
    ]
    return [np.where(split < NOTHING, 0.0, split) for split in splits]
