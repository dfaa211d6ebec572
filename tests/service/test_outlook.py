"""What came before reaches the planner: the outlook is learned from the jobs in the database, through real cycles."""

from collections.abc import Sequence

import pytest

from protocol.nodes import DeviceReport
from scheduler.demand import PERIOD, Outlook
from scheduler.learning import outlook_of_past
from scheduler.plan import Plan
from scheduler.problem import Budget, Problem
from scheduler.solve import solve
from service.cycle.loop import Cycle
from service.cycle.outlook import LEARN_EVERY_S
from tests.service.cluster import Cluster
from tests.service.test_cycle import new_cycle


class Watched:
    """A cycle, the problems it has solved, and how often it has learned."""

    def __init__(self, cluster: Cluster) -> None:
        self.problems: list[Problem] = []
        self.plans: list[Plan] = []
        self.learned = 0
        self.cycle: Cycle = new_cycle(cluster, solve=self._solve, learn=self._learn)

    def step(self, cluster: Cluster, **spec: object) -> Problem:
        """The problem of the cycle after one more job."""
        cluster.submit(**spec)
        self.cycle.step(woken=True)
        return self.problems[-1]

    def _solve(self, problem: Problem, budget: Budget) -> Plan:
        self.problems.append(problem)
        self.plans.append(solve(problem, budget))
        return self.plans[-1]

    def _learn(self, problem: Problem, periods: Sequence[Sequence[int]]) -> tuple[Outlook, ...]:
        self.learned += 1
        return outlook_of_past(problem, periods)


@pytest.fixture
def four(cluster: Cluster) -> Cluster:
    """Four nodes of two devices."""
    cluster.lead()
    for number in range(4):
        cluster.join(f"n{number}", kind="t4")
    return cluster


def came(cluster: Cluster, count: int, **spec: object) -> None:
    """So many jobs came once, and are over."""
    array = cluster.job(cluster.submit(array={"count": count}, cpu_cores_per_node=0.1, **spec)).array
    assert array is not None
    cluster.cancel_array(array.id)


def expected(problem: Problem) -> dict[tuple[int, int], float]:
    """The part of each demand, by devices and share, in what is expected to come."""
    mix = problem.outlook[0].mix()
    return {
        (demand.devices, demand.share): pytest.approx(weight / sum(mix.values()), abs=0.01)
        for demand, weight in mix.items()
    }


def test_what_came_is_what_the_planner_expects(four: Cluster) -> None:
    came(four, 400, device_share=0.25)
    came(four, 400, devices_per_node=2)
    watched = Watched(four)
    problem = watched.step(four, device_share=0.25, cpu_cores_per_node=0.1)
    # The latest 500 are 400 wide ones and 100 shares, the 300 before are shares: another mix, which counts alone.
    parts = expected(problem)
    assert set(parts) == {(1, 250), (2, 1000)}
    assert parts[2, 1000] == (PERIOD - 101) / PERIOD
    assert watched.plans[-1].placements
    assert solve(problem) == watched.plans[-1]


@pytest.mark.parametrize(
    ("count", "spec"), [(PERIOD - 2, {"device_share": 0.25}), (PERIOD, {})], ids=["too few", "whole devices only"]
)
def test_from_too_few_or_from_whole_devices_nothing_is_learned(
    four: Cluster, count: int, spec: dict[str, object]
) -> None:
    came(four, count, **spec)
    watched = Watched(four)
    problem = watched.step(four)
    assert (problem.outlook, problem.running, watched.learned) == ((), (), 0)
    assert watched.plans[-1].status == "optimal"


def test_it_is_learned_again_after_a_while_with_what_came_since_and_what_runs(four: Cluster) -> None:
    came(four, PERIOD, device_share=0.25)
    watched = Watched(four)
    first = watched.step(four, device_share=0.25, cpu_cores_per_node=0.1)
    came(four, 100, devices_per_node=0)
    assert watched.step(four, device_share=0.25, cpu_cores_per_node=0.1).outlook == first.outlook
    assert watched.learned == 1
    four.advance(LEARN_EVERY_S)
    for number in range(4):
        four.sync(f"n{number}")
    later = watched.step(four, device_share=0.25, cpu_cores_per_node=0.1)
    assert watched.learned == 2
    assert (0, 0) in expected(later)
    assert len(later.running) == 2
    assert later.outlook[0].loads[0] == pytest.approx(2 * 0.25 / 8)


def test_where_a_node_has_devices_of_several_kinds_there_is_no_outlook(four: Cluster) -> None:
    came(four, PERIOD, device_share=0.25)
    four.join("n9", devices=[DeviceReport(id=f"{kind}:n9:0", kind=kind, index=0) for kind in ("t4", "h100")])
    watched = Watched(four)
    problem = watched.step(four, device_share=0.25, cpu_cores_per_node=0.1)
    assert (problem.outlook, problem.running, watched.learned) == ((), (), 0)
    assert watched.plans[-1].placements
