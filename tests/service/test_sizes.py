"""Jobs that ask for a range of nodes: the planner chooses, and everything of an attempt goes by what it chose."""

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from protocol.jobs import JobSpec
from protocol.states import AttemptState, EndReason, Role
from service import control
from service.cycle.loop import Cycle
from tests.service.cluster import Cluster
from tests.service.conftest import SignIn
from tests.service.test_cycle import new_cycle, states
from tests.service.test_run_times import expected
from tests.service.test_stored_checkpoints import Node

TRAIN = {"command": ["python", "train.py"], "nodes": "1-3", "expected_run_s": 3_600.0}


@pytest.fixture
def cycle(three: Cluster) -> Cycle:
    return new_cycle(three)


def run(cycle: Cycle, cluster: Cluster, job: str) -> list[str]:
    """The nodes of the attempt that the next plan starts."""
    cycle.step(woken=True)
    attempt = cluster.job(job).attempts[-1]
    for member in attempt.members:
        cluster.tell(member.node, attempt, AttemptState.RUNNING)
    return [member.node for member in attempt.members]


def end(cluster: Cluster, job: str, reason: EndReason, exit_code: int) -> None:
    attempt = cluster.job(job).attempts[-1]
    for member in attempt.members:
        cluster.end(member.node, attempt, reason, exit_code)


def planned_s(cluster: Cluster, job: str) -> dict[int, float]:
    """Run time by number of nodes in the problem that the planner gets."""
    found = next(one for one in cluster.problem()[0].jobs if one.id == job)
    return {shape.members: shape.run_s for shape in found.shapes}


@pytest.mark.parametrize(
    ("given", "kept", "sizes"),
    [
        (2, 2, (2,)),
        ("1-4", "1-4", (1, 2, 4)),
        ("3-9", "3-9", (3, 4, 8, 9)),
        ("4-8", "4-8", (4, 8)),
        ("5-7", "5-7", (5, 7)),
        ("2-2", 2, (2,)),
    ],
)
def test_a_range_stands_for_its_ends_and_the_powers_of_two_in_between(
    given: int | str, kept: int | str, sizes: tuple[int, ...]
) -> None:
    spec = JobSpec.model_validate({"command": ["true"], "nodes": given})
    assert (spec.nodes, spec.sizes) == (kept, sizes)
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nodes": "4-1"}, "the smaller number comes first, as in 1-4"),
        ({"nodes": 0}, "from 1 to 100000 nodes, not 0"),
        ({"nodes": "1-100001"}, "from 1 to 100000 nodes, not 1-100001"),
        ({"nodes": "0-2"}, "a range such as 1-4, not '0-2'"),
        ({"nodes": True}, "a range such as 1-4, not True"),
        ({"nodes": "2"}, "a range such as 1-4, not '2'"),
        ({"nodes": [1, 4]}, "a range such as 1-4"),
        ({"nodes": "1-2", "device_share": 0.5}, "leave `device_share` at 1"),
        ({"nodes": "1-2", "devices_per_node": 0}, "`devices_per_node` at 1 or more, or give one number of nodes"),
    ],
)
def test_what_is_no_range_is_refused_with_the_remedy(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        JobSpec.model_validate({"command": ["true"], **fields})


def test_idle_nodes_are_taken_and_a_busy_cluster_leaves_the_fewest(three: Cluster, cycle: Cycle) -> None:
    alone = three.submit(**TRAIN)
    assert len(run(cycle, three, alone)) == 3
    end(three, alone, EndReason.COMPLETED, 0)
    jobs = [three.submit(command=["sh", str(number)], nodes="1-3") for number in range(3)]
    cycle.step(woken=True)
    assert states(three, *jobs) == ["starting"] * 3, "each on one node: nobody waits for others to have more"


def test_the_next_attempt_may_have_another_size_and_its_members_are_told(three: Cluster, cycle: Cycle) -> None:
    job = three.submit(**TRAIN)
    assert len(run(cycle, three, job)) == 3
    told = three.sync("n2").assignments[0]
    assert (told.members, told.ranks) == (3, 1)
    others = [three.submit(command=["sh", str(number)], priority=1) for number in range(2)]
    with three.engine.begin() as tx:
        control.preempt(tx, three.person("root", Role.ADMIN), job, now=three.now)
    end(three, job, EndReason.CANCELLED, 143)
    (name,) = run(cycle, three, job)
    assert states(three, *others) == ["starting"] * 2
    assert three.sync(name).assignments[-1].members == 1
    assert [len(one.members) for one in three.job(job).attempts] == [3, 1]


def test_a_rank_stores_its_part_as_one_of_so_many_as_the_attempt_has(three: Cluster, client: TestClient) -> None:
    job = three.submit(**TRAIN)
    attempt = three.place(job, "n1", "n2")
    node = Node(client, three, "n2")
    assert node.tell(attempt, 5, {"a": b"1"}, rank=1, world_size=2).status_code == 200
    refused = node.tell(attempt, 5, {"a": b"1"}, rank=1, world_size=3)
    assert "the gang has 2 ranks, not 3" in refused.json()["detail"]


def test_runs_are_learned_from_in_the_size_they_had(three: Cluster, cycle: Cycle, client: TestClient) -> None:
    first = three.submit(**TRAIN)
    assert planned_s(three, first) == {1: 3_600.0, 2: 1_800.0, 3: 1_200.0}
    waits = expected(client, first)
    assert waits is not None
    assert (waits.nodes, waits.seconds, waits.because) == (1, 3_600.0, "from the estimate")
    run(cycle, three, first)
    runs = expected(client, first)
    assert runs is not None
    assert runs.nodes == 3
    assert runs.because == ("from the estimate, taken for 3 times as fast on 3 times the nodes, which nobody has seen")
    three.advance(2_000.0)
    end(three, first, EndReason.COMPLETED, 0)
    again = three.submit(**TRAIN)
    planned = planned_s(three, again)
    assert planned[3] == 2_000.0
    assert 2_000.0 < planned[2] < planned[1] < 6_000.0, "through the curve"


def test_an_estimate_is_not_corrected_by_runs_on_more_nodes_than_it_speaks_of(
    three: Cluster, cycle: Cycle, client: TestClient
) -> None:
    for number in range(3):
        job = three.submit(command=["sh", str(number)], nodes="1-3", expected_run_s=600.0)
        run(cycle, three, job)
        three.advance(200.0)
        end(three, job, EndReason.COMPLETED, 0)
    new = three.submit(command=["sh", "new"], expected_run_s=600.0)
    shown = expected(client, new)
    assert shown is not None
    assert (shown.source, shown.seconds) == ("estimate", 600.0)


def test_the_page_shows_range_and_ranks(three: Cluster, client: TestClient, sign_in: SignIn) -> None:
    job = three.submit(**TRAIN)
    three.place(job, "n1", "n2")
    page = " ".join(sign_in("alice").get(f"/jobs/{job}").text.split())
    assert "1-3 nodes ×" in page
