"""A planning cycle as the API shows it."""

from datetime import datetime

from pydantic import Field

from protocol.base import View


class CycleView(View):
    """One cycle. `objective_j`, `bound_j` in J; `gap` is (objective - bound) / objective."""

    id: int
    term: int
    at: datetime
    pending: int = Field(description="Jobs weighed.")
    placed: int = Field(description="Jobs placed by the plan.")
    committed: int = Field(description="Placements that were still valid at commit.")
    objective_j: float
    bound_j: float
    gap: float
    method: str = Field(description="Which part of the planner the plan came from: `cpsat`, `greedy` or `packed`.")
    status: str = Field(description="What the solver proved: `optimal`, `feasible`, `watchdog` or `fallback`.")
    snapshot_s: float
    solve_s: float
    commit_s: float


class CyclePage(View):
    items: list[CycleView]
    next: str | None = None


class CycleDetail(CycleView):
    """One cycle with everything it saw and decided."""

    problem: dict[str, object] = Field(description="The planner's whole input; `scheduler.codec` reads it.")
    plan: dict[str, object] = Field(description="The planner's whole output.")
