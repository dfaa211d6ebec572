"""The packing benchmark's own parts: lists, books, figures, kept results."""

from pathlib import Path

import numpy as np
import pytest

from bench.packing.baselines import POLICIES, run
from bench.packing.ledger import BrokenRule, Ledger
from bench.packing.measure import figures, moves_figures
from bench.packing.ours import MODES
from bench.packing.problem import jobs_of, nodes_of, outlook_of
from bench.packing.store import Store
from bench.packing.trace import PodType, TraceError, read_nodes, read_pods, sequence, typical
from scheduler.plan import MemberPlacement, Placement

NODES = """sn,cpu_milli,memory_mib,gpu,model
n-2,96000,393216,8,G2
n-0,104000,524288,2,T4
n-1,104000,524288,2,T4
n-3,128000,786432,8,G3
"""
PODS = """name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos
p-0,12000,16384,1,1000,,LS
p-1,6000,12288,1,460,,LS
p-2,32000,1024,0,0,,BE
p-3,88000,327680,8,1000,G2|G3,LS
p-4,3000,4096,1,540,T4,LS
p-5,6000,12288,1,460,,LS
"""


@pytest.fixture
def lists(tmp_path: Path) -> tuple[Path, Path]:
    nodes, pods = tmp_path / "nodes.csv", tmp_path / "pods.csv"
    nodes.write_text(NODES)
    pods.write_text(PODS)
    return nodes, pods


def test_lists_are_read_by_name_and_class(lists: tuple[Path, Path]) -> None:
    cluster, pods = read_nodes(lists[0]), read_pods(lists[1])
    assert cluster.names == ("n-0", "n-1", "n-2", "n-3")
    assert cluster.gpu_milli == 20_000
    assert list(pods.counts) == [1, 2, 1, 1, 1]
    assert pods.types[3].models == ("G2", "G3")
    assert typical(pods)[0][0] == PodType(cpu_milli=6000, memory_mib=0, gpus=1, gpu_milli=460, models=())
    arrivals = sequence(pods, cluster.gpu_milli, 7)
    assert sorted(arrivals[:6]) == sorted(pods.pod_type)
    asked = sum(pods.types[kind].gpu_total for kind in arrivals)
    assert asked <= 1.3 * cluster.gpu_milli < asked + 8000
    assert list(arrivals) == list(sequence(pods, cluster.gpu_milli, 7)) != list(sequence(pods, cluster.gpu_milli, 8))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,cpu_milli\n", "has no column memory_mib"),
        ("name,cpu_milli,memory_mib,num_gpu,gpu_milli\n", "holds no rows"),
        ("name,cpu_milli,memory_mib,num_gpu,gpu_milli\np,1,1,2,500\n", "line 2: 2 GPUs with gpu_milli 500"),
        ("name,cpu_milli,memory_mib,num_gpu,gpu_milli\np,x,1,1,500\n", "line 2: cpu_milli is 'x'"),
    ],
)
def test_a_list_that_cannot_be_read_says_where(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(TraceError, match=says):
        read_pods(tmp_path / "bad.csv")


def test_figures_are_read_off_at_loads() -> None:
    asked = np.array([500] * 10)
    placed = np.array([True] * 9 + [False])
    found = figures(asked, placed, np.arange(10) * 1000.0, 5000)
    assert found["kw@20"] == 1.0
    assert found["kw@95"] == 8.0
    assert found["first_failure"] == 100.0
    assert found["failed@95"] == 0.0
    assert found["granted@100"] == 0.9
    assert moves_figures(asked, np.array([0, 0, 1, 1, 1, 1, 1, 1, 1, 3]), 5000)["moves_per_arrival"] == pytest.approx(
        1 / 3
    )


def test_the_books_refuse_what_cannot_be(lists: tuple[Path, Path]) -> None:
    cluster, pods = read_nodes(lists[0]), read_pods(lists[1])
    whole, share, *_ = jobs_of(cluster, pods, [0, 1, 0])
    ledger = Ledger(nodes_of(cluster))
    idle_w = ledger.watts
    kinds = [shape.kind for shape in whole.shapes]

    def on(job: str, node: str, *devices: str, kind: str = "T4") -> Placement:
        return Placement(job=job, shape=kinds.index(kind), members=(MemberPlacement(node=node, devices=devices),))

    ledger.start(share, on(share.id, "n-0", "n-0/0"))
    assert ledger.watts == idle_w + 60 + 105
    for wrong in (
        on(whole.id, "n-0", "n-0/0"),
        on(whole.id, "n-0", "n-1/0"),
        on(whole.id, "n-2", "n-2/0"),
        on(whole.id, "n-1", "n-1/0", "n-1/1"),
    ):
        with pytest.raises(BrokenRule):
            Ledger.start(fresh := Ledger(ledger.snapshot()[0]), whole, wrong)
        assert not fresh.running
    ledger.stop(share.id)
    assert ledger.watts == idle_w


def test_results_are_kept_for_as_long_as_nothing_changes(tmp_path: Path) -> None:
    inputs = tmp_path / "list.csv"
    inputs.write_text("a")
    made: list[int] = []

    def work() -> dict[str, float]:
        made.append(1)
        return {"x": float(len(made))}

    def ask(seed: int = 1) -> float:
        store = Store(tmp_path / "kept.jsonl", [inputs])
        return store.get("name", seed, ["bench/packing/trace.py"], work)["x"]

    assert [ask(), ask(), ask(2), ask()] == [1.0, 1.0, 2.0, 1.0]
    inputs.write_text("b")
    assert ask() == 3.0


def test_equal_scores_go_to_the_first_name_and_the_planner_books_every_arrival(lists: tuple[Path, Path]) -> None:
    cluster, pods = read_nodes(lists[0]), read_pods(lists[1])
    arrivals = sequence(pods, cluster.gpu_milli, 1)
    clustering = next(policy for policy in POLICIES if policy.name == "GpuPacking")
    cpu_only = np.array([kind for kind, pod in enumerate(pods.types) if pod.gpus == 0] * 4)
    assert list(run(clustering, cluster, pods, cpu_only, 1).nodes) == [0, 0, 0, 1]
    nodes = nodes_of(cluster)
    outlook = outlook_of(cluster, nodes, pods)
    for name, mode in MODES.items():
        done = mode(nodes, jobs_of(cluster, pods, arrivals), outlook)
        assert done.placed[:4].all()
        assert len(done.watts) == len(arrivals)
        assert name == "ours-re-pack" or (done.moves <= 0.1 * np.arange(1, len(arrivals) + 1)).all()
