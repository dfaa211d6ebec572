"""The policies that the benchmark over time compares with."""

from dataclasses import replace

from bench.time import policies
from bench.time.workload import synthetic
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


def test_as_asked_a_job_waits_for_the_size_that_comes_first():
    asked = job(0, fast=60.0).shapes[0]
    elastic = replace(job(0, fast=60.0), shapes=(replace(asked, devices=2), asked))
    one, two = (Problem(jobs=(elastic,), nodes=(node("fast", devices),)) for devices in (1, 2))
    assert [placement.shape for placement in policies.ours(one).placements] == [1]
    assert policies.as_asked(one).placements == ()
    assert [placement.shape for placement in policies.as_asked(two).placements] == [0]


def test_elastic_jobs_are_the_rigid_ones_with_half_and_twice_their_devices():
    rigid, elastic = (synthetic(1, 0.5, 0.2, elastic=each) for each in (False, True))
    assert [one.at_s for one in rigid] == [one.at_s for one in elastic]
    for one, other in zip(rigid, elastic, strict=True):
        times = dict(zip(other.job.shapes, other.runs_s, strict=True))
        (asked,) = {shape.size for shape in one.job.shapes}
        assert {shape.size for shape in times} == {asked // 2 or 1, asked, min(2 * asked, 16)}
        assert [times[shape] for shape in other.job.shapes if shape.size == asked] == list(one.runs_s)
        for kind in {shape.kind for shape in times}:
            sizes = sorted((shape for shape in times if shape.kind == kind), key=lambda shape: shape.size)
            runs = [times[shape] for shape in sizes]
            assert runs == sorted(set(runs), reverse=True), "more devices are faster"
            spent = [shape.size * times[shape] for shape in sizes]
            assert spent == sorted(spent), "and spend more"
