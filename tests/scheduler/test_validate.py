"""Bad input is refused with the field and what it must be."""

from dataclasses import replace

import pytest

from scheduler.problem import Job, Node, NodePower, Problem
from scheduler.validate import validate
from tests.builders import job, node, problem, shape

GOOD_NODE, GOOD_JOB = node("a", h100=2), job("j1")


def with_power(**fields: float) -> Node:
    return replace(GOOD_NODE, power=replace(NodePower(base_w=100.0), **fields))


def test_a_sensible_problem_passes() -> None:
    validate(problem([GOOD_NODE, node("b", cpu=1)], [GOOD_JOB, job("j2", shape(1), shape(2))]))


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"horizon_s": 0.0}, "horizon_s is 0.0, must be above 0"),
        ({"horizon_s": float("inf")}, "horizon_s is inf"),
        ({"pue": 0.9}, "pue is 0.9, must be at least 1"),
        ({"pue": float("nan")}, "pue is nan"),
        ({"nodes": (GOOD_NODE, GOOD_NODE)}, "node id a occurs 2 times, must be unique"),
        ({"nodes": (GOOD_NODE, replace(GOOD_NODE, id="b"))}, "device id a-h100-0 occurs 2 times"),
        ({"jobs": (GOOD_JOB, GOOD_JOB)}, "job id j1 occurs 2 times"),
    ],
)
def test_a_problem_field_out_of_range_is_named(changed: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        validate(replace(problem([GOOD_NODE], [GOOD_JOB]), **changed))


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (replace(GOOD_NODE, free_millicores=-1), "node a: free_millicores is -1, must be from 0 to 64000"),
        (replace(GOOD_NODE, free_memory_bytes=1 << 60), "node a: free_memory_bytes is"),
        (replace(GOOD_NODE, devices=(replace(GOOD_NODE.devices[0], free=1001),)), "free of device a-h100-0 is 1001"),
        (replace(GOOD_NODE, busy_s=-1.0), "node a: busy_s is -1.0"),
        (with_power(off_w=-1.0), "node a: off_w is -1.0"),
        (with_power(off_w=101.0), r"node a: base_w \(at least off_w\) is 100.0, must be at least 101"),
        (with_power(boot_s=float("nan")), "node a: boot_s is nan"),
        (with_power(boot_j=-5.0), "node a: boot_j is -5.0"),
    ],
)
def test_a_node_field_out_of_range_is_named(bad: Node, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        validate(problem([bad], []))


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (job("j1", wait_w=-1.0), "job j1: wait_w is -1.0"),
        (job("j1", shape(1, members=0)), "job j1: shape 0: members is 0, must be at least 1"),
        (job("j1", shape(1), shape(-2)), "job j1: shape 1: devices is -2, must not be negative"),
        (job("j1", shape(1, cores=-1)), "job j1: shape 0: millicores is -1000, must not be negative"),
        (job("j1", shape(1, memory=-1)), "job j1: shape 0: memory_bytes is"),
        (job("j1", shape(1, run_s=0.0)), "job j1: shape 0: run_s is 0.0, must be above 0"),
        (job("j1", shape(1, active_w=float("inf"))), "job j1: shape 0: active_w is inf"),
    ],
)
def test_a_job_field_out_of_range_is_named(bad: Job, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        validate(problem([], [bad]))


def test_all_complaints_come_at_once_and_not_without_end() -> None:
    bad = problem([GOOD_NODE], [job(f"j{number}", shape(0)) for number in range(12)])
    with pytest.raises(ValueError, match=r"job j9: .*; and 2 more$"):
        validate(Problem(nodes=bad.nodes, jobs=bad.jobs))
