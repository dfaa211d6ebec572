"""What is read back equals what was written; anything else is refused with the place of the mistake."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings

from scheduler.codec import CodecError, decode_plan, decode_problem, encode_plan, encode_problem
from scheduler.problem import Problem
from scheduler.solve import solve_greedily
from tests import strategies
from tests.builders import job, node, problem

SMALL = problem([node("a", h100=2)], [job("j1"), job("j2")], pue=1.1)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(strategies.problems())
def test_problems_and_plans_survive_the_trip(tried: Problem) -> None:
    assert decode_problem(encode_problem(tried)) == tried
    plan = solve_greedily(tried)
    assert decode_plan(encode_plan(plan)) == plan


def test_floats_are_exact_and_equal_values_give_equal_bytes() -> None:
    odd = replace(SMALL, pue=1.1 + 2**-52, horizon_s=1e-300)
    assert decode_problem(encode_problem(odd)).pue == 1.1 + 2**-52
    assert encode_problem(odd) == encode_problem(decode_problem(encode_problem(odd)))
    assert encode_problem(replace(SMALL, pue=1)) != encode_problem(odd)


def test_a_whole_number_written_for_a_float_is_read_as_one() -> None:
    document = json.loads(encode_problem(SMALL))
    document["pue"] = 2
    read = decode_problem(json.dumps(document).encode())
    assert isinstance(read.pue, float)


def test_what_is_not_finite_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_problem(replace(SMALL, pue=float("nan")))


def changed(change: Callable[[dict], object]) -> bytes:
    document = json.loads(encode_problem(SMALL))
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "document: an object is wanted"),
        (changed(lambda d: d.update(schema=2)), "schema 2 is not understood; this version reads schema 1"),
        (changed(lambda d: d.pop("schema")), "schema None is not understood"),
        (changed(lambda d: d.update(kind="plan")), "a problem is wanted, and this is 'plan'"),
        (changed(lambda d: d.update(extra=1)), "problem: unknown field 'extra'"),
        (changed(lambda d: d.pop("jobs")), "problem: field 'jobs' is missing"),
        (changed(lambda d: d.update(jobs={})), "problem.jobs: a list is wanted"),
        (changed(lambda d: d["nodes"][0].update(power=3)), r"problem.nodes\[0\].power: an object is wanted"),
        (changed(lambda d: d["nodes"][0].update(on=1)), r"problem.nodes\[0\].on: bool is wanted, and this is 1"),
        (changed(lambda d: d["jobs"][1].update(order=1.5)), r"problem.jobs\[1\].order: int is wanted"),
        (changed(lambda d: d["jobs"][0].update(id=None)), r"problem.jobs\[0\].id: str is wanted"),
    ],
)
def test_foreign_bytes_are_refused_with_the_place(data: bytes, complaint: str) -> None:
    with pytest.raises(CodecError, match=complaint):
        decode_problem(data)


def test_a_verdict_that_does_not_exist_is_refused() -> None:
    document = json.loads(encode_plan(solve_greedily(SMALL)))
    document["verdicts"][0]["outcome"] = "maybe"
    with pytest.raises(CodecError, match=r"plan.verdicts\[0\].outcome: 'maybe' is not a valid Outcome"):
        decode_plan(json.dumps(document).encode())


def test_a_recording_from_before_a_field_existed_is_read() -> None:
    old = changed(lambda d: (d.pop("outlook"), d.pop("running"), d["nodes"][0]["power"].pop("socket_w")))
    assert decode_problem(old) == SMALL
