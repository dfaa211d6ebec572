"""Where jobs start whose code and data some nodes have and others fetch first."""

from dataclasses import replace

import pytest

from scheduler.objective import evaluate
from scheduler.plan import Plan
from scheduler.problem import Budget, Job, NodePower, Reservation, Staging
from scheduler.solve import solve
from scheduler.verify import verify
from tests.builders import HOUR, job, node, placement, problem, shape, switchable
from tests.scheduler.test_packing import share


def fetching(this: Job, seconds: float, **others: float) -> Job:
    """The job as one that most nodes fetch for so long, and these for as long as is said."""
    apart = tuple(Staging(seconds=one, nodes=(name,)) for name, one in others.items())
    return replace(this, stage_s=seconds, staging=apart)


def nodes_of(plan: Plan) -> dict[str, list[str]]:
    return {placed.job: [member.node for member in placed.members] for placed in plan.placements}


@pytest.mark.parametrize("hooked", [False, True])
def test_of_equal_nodes_the_one_that_has_the_data_is_taken(hooked: bool) -> None:
    nodes = [switchable(one) if hooked else one for one in (node(name, h100=2) for name in "abc")]
    plan = solve(problem(nodes, [fetching(job("j1"), 14.0, b=0.0)]))
    assert nodes_of(plan) == {"j1": ["b"]}
    assert (plan.cost.stage_j, plan.status) == (0.0, "optimal")


def test_nobody_waits_for_the_data() -> None:
    jobs = [fetching(job(f"j{number}"), 600.0, b=0.0) for number in (1, 2, 3)]
    plan = solve(problem([node(name, h100=1) for name in "abc"], jobs))
    assert sorted(nodes_of(plan).values()) == [["a"], ["b"], ["c"]]
    assert plan.cost.stage_j == 2 * 125.0 * 600.0
    assert plan.status == "optimal"


@pytest.mark.parametrize(("seconds", "chosen"), [(400.0, "thrifty"), (1200.0, "near")])
def test_a_thriftier_node_that_fetches_is_taken_while_it_is_worth_it(seconds: float, chosen: str) -> None:
    """It saves 100 W for an hour, 360 kJ; a second of fetching costs 125 W of waiting and 300 W of the node."""
    draws = [NodePower(base_w=watts, off_w=0.0) for watts in (400.0, 300.0)]
    nodes = [
        switchable(node(name, h100=1, power=power)) for name, power in zip(("near", "thrifty"), draws, strict=True)
    ]
    plan = solve(problem(nodes, [fetching(job("j1"), seconds, near=0.0)]))
    assert nodes_of(plan) == {"j1": [chosen]}


def test_a_gang_waits_for_the_slowest_of_its_nodes() -> None:
    gang = fetching(job("j1", shape(2, members=2)), 30.0, a=0.0, c=200.0)
    nodes = [switchable(node(name, h100=2)) for name in "abc"]
    one = problem(nodes, [gang], pue=1.5)
    there = [(name, [f"{name}-h100-0", f"{name}-h100-1"]) for name in "abc"]
    near, far = evaluate(one, [placement("j1", *there[:2])]), evaluate(one, [placement("j1", *there[::2])])
    assert (near.stage_j, far.stage_j) == (125.0 * 4 * 30.0, 125.0 * 4 * 200.0)
    assert far.on_j - near.on_j == pytest.approx(1.5 * 990.0 * 2 * 170.0)
    assert far.work_j == near.work_j
    assert nodes_of(solve(one)) == {"j1": ["a", "b"]}


def test_a_share_of_a_device_goes_where_the_data_is() -> None:
    plan = solve(problem([node("a", h100=1), node("b", h100=1)], [fetching(job("j1", share(500)), 60.0, b=0.0)]))
    assert nodes_of(plan) == {"j1": ["b"]}
    assert plan.status == "optimal"


def test_what_is_kept_for_another_takes_no_job_that_ends_too_late_for_fetching() -> None:
    short = fetching(job("j2", shape(1, run_s=HOUR / 2)), HOUR, b=0.0)
    gang = job("j1", shape(2, members=2))
    nodes = [node("a", h100=2), node("b", h100=2, busy=1, busy_s=HOUR)]
    one = problem(nodes, [gang, replace(short, stage_s=0.0)])
    kept = replace(one, reservation=Reservation(job="j1", nodes=("a", "b"), free_s=HOUR))
    assert nodes_of(solve(kept)).keys() == {"j2"}
    late = replace(kept, jobs=(gang, fetching(short, HOUR)))
    assert nodes_of(solve(late)) == {}
    bad = replace(solve(replace(late, reservation=None)), bound_j=0.0)
    assert "kept_node" in {violation.code for violation in verify(late, bad)}


def test_a_relaxation_knows_that_few_nodes_have_the_data() -> None:
    """Of twelve equal nodes two have it: the bound says that ten jobs fetch it."""
    nodes = [node(f"n{number:02d}", h100=1) for number in range(12)]
    jobs = [fetching(job(f"j{number}"), 600.0, n03=0.0, n07=0.0) for number in range(12)]
    asked = problem(nodes, jobs)
    plan, unsearched = solve(asked), solve(asked, Budget(deterministic_s=0.0))
    assert plan.cost.stage_j == 10 * 125.0 * 600.0
    assert unsearched.bound_j == pytest.approx(plan.objective_j)


def test_a_staging_that_makes_no_sense_is_refused() -> None:
    for wrong in (fetching(job("j1"), -1.0), fetching(job("j1"), 0.0, a=float("inf"))):
        with pytest.raises(ValueError, match=r"job j1: (stage_s|seconds of staging) is"):
            solve(problem([node("a", h100=1)], [wrong]))
    twice = replace(job("j1"), staging=(Staging(seconds=1.0, nodes=("a", "a")),))
    with pytest.raises(ValueError, match="job j1: staging of node a occurs 2 times"):
        solve(problem([node("a", h100=1)], [twice]))
