"""Every "no" names what is lacking, with the numbers."""

import subprocess
import sys

import pytest

from scheduler.feasibility import survey, total_room, why_impossible, why_not_now
from scheduler.problem import Node, Shape
from tests.builders import GIB, job, node, shape

CLUSTER = [node("a", h100=8, cores=32, memory=64), node("b", h100=8, cores=64, memory=32), node("c", cpu=4, cores=4)]


@pytest.mark.parametrize(
    "wanted",
    [
        shape(8),
        shape(8, members=2),
        shape(8, cores=64),
        shape(8, memory=64),
        shape(4, kind="cpu", cores=4),
        shape(8, members=2, cores=32, memory=32),
    ],
)
def test_what_some_nodes_could_carry_is_possible(wanted: Shape) -> None:
    assert why_impossible([wanted], total_room(CLUSTER)) == ()


@pytest.mark.parametrize(
    ("wanted", "code", "words"),
    [
        (shape(1, kind="t4"), "no_such_kind", "no t4 device is present; present kinds: cpu, h100"),
        (shape(9), "too_few_devices", "asks for 9 h100 on one node, and the most present on one node is 8"),
        (shape(8, cores=65), "too_few_cores", "65 CPU cores beside 8 h100, and the most present on such a node is 64"),
        (shape(8, cores=64, memory=33), "too_little_memory", f"is {32 * GIB}; ask for at most {32 * GIB}"),
        (
            shape(8, members=3),
            "too_few_nodes",
            "3 members of 8 h100, each on a node of its own, and 2 nodes can take one; ask for at most 2 members",
        ),
        (shape(1, members=2, memory=33), "too_few_nodes", "and 1 node can take one; ask for at most 1 member"),
    ],
)
def test_what_no_nodes_could_ever_carry_says_what_is_lacking(wanted: Shape, code: str, words: str) -> None:
    (reason,) = why_impossible([wanted], total_room(CLUSTER))
    assert reason.code == code
    assert words in reason.message


def test_containers_go_where_one_can_run() -> None:
    rooms = [node(name, h100=8, container_fault=fault) for name, fault in (("a", ""), ("b", "no podman"), ("c", "off"))]
    wanted = shape(in_container=True)
    assert why_impossible([wanted, shape(members=3)], total_room(rooms[1:] + rooms[:1])) == ()
    (reason,) = why_impossible([wanted], total_room(rooms[1:]))
    assert reason.code == "no_container_runtime"
    assert reason.message.endswith("no such node that is present can run one: 1 node: no podman | 1 node: off")
    (reason,) = why_impossible([shape(members=2, in_container=True)], total_room(rooms))
    assert (reason.code, "1 node can take one" in reason.message) == ("too_few_nodes", True)
    busy = node("a", h100=8, busy=8)
    (reason,) = why_not_now(job("j1", wanted), survey([busy, *rooms[1:]]), 0)
    assert (reason.code, "no such node that is free can run one" in reason.message) == ("container_nodes_busy", True)


def test_one_possible_shape_is_enough_and_equal_reasons_are_said_once() -> None:
    rooms = total_room(CLUSTER)
    assert why_impossible([shape(9), shape(8)], rooms) == ()
    assert len(why_impossible([shape(9), shape(9, run_s=1.0), shape(1, kind="t4")], rooms)) == 2


def test_a_job_without_shapes_and_a_cluster_without_nodes() -> None:
    assert why_impossible([], total_room(CLUSTER))[0].code == "no_shape"
    assert "present kinds: none" in why_impossible([shape(1)], total_room([]))[0].message


def test_busy_closed_and_switched_off_nodes_still_count_as_present() -> None:
    away = [node("a", h100=8, busy=8), node("b", h100=8, is_open=False), node("c", h100=8, on=False)]
    assert why_impossible([shape(8, members=3)], total_room(away)) == ()


@pytest.mark.parametrize(
    ("nodes", "wanted", "code", "words"),
    [
        (
            [node("a", h100=4, busy=4), node("b", cpu=1)],
            shape(1),
            "devices_busy",
            "no h100 device is free; free kinds: cpu",
        ),
        ([node("a", h100=4, busy=3)], shape(2), "devices_busy", "asks for 2 h100 on one node, and the most free"),
        ([node("a", h100=4, free_cores=3)], shape(2, cores=4), "cores_busy", "the most free on such a node is 3"),
        (
            [node("a", h100=4, free_memory=3)],
            shape(2, memory=4),
            "memory_busy",
            f"most free on such a node is {3 * GIB}",
        ),
        ([node("a", h100=4, busy=3), node("b", h100=4)], shape(4, members=2), "nodes_busy", "1 node can take one now"),
        ([node("a", h100=4, is_open=False)], shape(4), "nodes_closed", "1 node that could take a member"),
        ([node("a", h100=4, on=False)], shape(4), "nodes_closed", "lost, closed to new work or switched off"),
        ([node("a", h100=4)], shape(4), "behind_others", "but go to 2 jobs that the plan starts now"),
    ],
)
def test_a_waiting_job_is_told_what_it_waits_for(nodes: list[Node], wanted: Shape, code: str, words: str) -> None:
    reasons = {reason.code: reason.message for reason in why_not_now(job("j1", wanted), survey(nodes), placed=2)}
    assert words in reasons[code]


def test_shapes_that_are_impossible_are_not_talked_about_while_the_job_waits() -> None:
    waits = job("j1", shape(1, kind="t4"), shape(4))
    reasons = why_not_now(waits, survey([node("a", h100=4, busy=1)]), placed=0)
    assert [reason.code for reason in reasons] == ["devices_busy"]
    assert "t4" not in reasons[0].message


def test_the_api_can_load_what_it_needs_without_the_solver() -> None:
    """Importing numpy or ortools would cost every API process a second and a hundred megabytes."""
    code = (
        "import sys, scheduler.feasibility, scheduler.power, scheduler.codec, scheduler.verify;"
        "print(sorted({'numpy', 'scipy', 'ortools'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
