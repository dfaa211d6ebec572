"""The planner's whole output. Frozen values."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What a cycle says of one job."""

    PLACED = "placed"
    WAITING = "waiting"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why not: a stable code for programs, a sentence with the numbers for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Outcome for one job; `reasons` is empty exactly when it is placed."""

    job: str
    outcome: Outcome
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberPlacement:
    """One member of a gang on one node, with its devices by id."""

    node: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A whole gang, member by member, in the shape `shape` (an index into the job's shapes)."""

    job: str
    shape: int
    members: tuple[MemberPlacement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerStep:
    """A node that the plan would switch. `saves_j` is what that is worth over the horizon, negative for a boot."""

    node: str
    on: bool
    saves_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The objective of a plan, term by term, in J."""

    off_j: float
    on_j: float
    boot_j: float
    work_j: float
    deferred_j: float
    wait_j: float
    late_j: float = 0.0
    stage_j: float = 0.0

    @property
    def total_j(self) -> float:
        energy_j = self.off_j + self.on_j + self.boot_j + self.work_j + self.deferred_j
        return energy_j + self.wait_j + self.late_j + self.stage_j


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """A job that is to start in `start_s` from now, within what it may wait.

    A kWh is then expected to cost it `per_kwh` over its run, in the unit of the problem's rates; its energy in all
    `saving` less than started now, as a fraction. `full`: a start that would cost it less is taken by others.
    """

    job: str
    start_s: float
    per_kwh: float
    saving: float
    full: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """When the jobs that may wait start: those in `later` then, the others now or as soon as there is room.

    `cost` is the objective of `scheduler.horizon` over all that may wait, in the unit of the problem's rates, and
    `bound` a proven lower bound of it; `alone` is the same where each waits for its own cheapest hour, then for room.
    `kept`: the plan before is kept, as nothing saves much more.
    """

    later: tuple[Later, ...]
    cost: float
    bound: float
    alone: float
    kept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which jobs start now and where; a verdict for every job of the problem, in the problem's order.

    `bound_j` is a proven lower bound of the objective over all plans that respect precedence.
    """

    placements: tuple[Placement, ...]
    verdicts: tuple[Verdict, ...]
    power_steps: tuple[PowerStep, ...]
    cost: Cost
    bound_j: float
    method: str
    """`cpsat` or `greedy`: whether the search found better placements than the greedy ones. `packed`: job by job by the
    prices of `scheduler.packing`."""
    status: str
    """`optimal`, `feasible`, `watchdog` or `fallback`: what is proven about them."""
    moves: tuple[Placement, ...] = ()
    """Jobs that run and should go elsewhere, or on another number of nodes, in the shape (`Running.every_shape`) and on
    the devices given. All of them stop before any of them, or of `placements`, starts there. What they cost and save is
    no part of the objective."""
    timetable: Timetable | None = None
    """When jobs start that may wait, if any may. Those that start later are no part of the objective."""

    @property
    def objective_j(self) -> float:
        return self.cost.total_j

    @property
    def gap(self) -> float:
        """(objective - bound) / objective; 0 for an empty objective."""
        return 0.0 if self.objective_j <= 0 else max(0.0, (self.objective_j - self.bound_j) / self.objective_j)
