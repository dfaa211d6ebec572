"""The policies that the benchmark over time compares with."""

from bench.time import policies
from scheduler.problem import Device, Job, Node, NodePower, Problem, Shape


def node(kind, devices=1):
    return Node(
        id=kind,
        devices=tuple(Device(id=f"{kind}-{number}", kind=kind) for number in range(devices)),
        cpu_millicores=0,
        free_millicores=0,
        memory_bytes=0,
        free_memory_bytes=0,
        power=NodePower(base_w=100.0),
    )


def job(order, **run_s):
    shapes = tuple(
        Shape(members=1, devices=1, kind=kind, millicores=0, memory_bytes=0, run_s=seconds, active_w=100.0)
        for kind, seconds in run_s.items()
    )
    return Job(id=f"job-{order}", priority=0, order=order, shapes=shapes, wait_w=1.0)


def started(*jobs, nodes):
    decision = policies.gavel(Problem(jobs=jobs, nodes=nodes))
    return {placement.job: placement.members[0].node for placement in decision.placements}


def test_gavel_gives_the_fast_kind_to_whom_it_helps_most():
    nodes = (node("fast"), node("slow"))
    little, much = {"fast": 90.0, "slow": 100.0}, {"fast": 100.0, "slow": 500.0}
    assert started(job(0, **little), job(1, **much), nodes=nodes) == {"job-0": "slow", "job-1": "fast"}
    assert started(job(0, **much), job(1, **little), nodes=nodes) == {"job-0": "fast", "job-1": "slow"}


def test_gavel_leaves_nothing_free_that_a_job_could_use():
    nodes = (node("fast", 3),)
    assert started(job(0, fast=60.0), job(1, fast=60.0, slow=10.0), nodes=nodes) == {"job-0": "fast", "job-1": "fast"}
    assert started(job(0, slow=60.0), nodes=nodes) == {}
