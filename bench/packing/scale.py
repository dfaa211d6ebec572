"""How long a cycle takes as the cluster grows: 300 arrivals on 1, 2, 4 and 8 times the trace's cluster at 60 % load.

    python -m bench.packing.scale --data DIR [--cycles 20]

The cluster is filled once and then repeated, running jobs included. A cycle is `solve`, from a problem as a snapshot
gives it to a verified plan; the bound is the fluid plan of everything that runs. CPU time is the planner's own, wall
time counts whatever else the machine does. Growth is the exponent of the median in the number of nodes.

Fails when the 95th percentile of a cycle on the trace's cluster is not under 1 s, its bound takes 5 s or more, or the
process has used 2 GiB.
"""

import argparse
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.packing.ledger import Ledger
from bench.packing.problem import jobs_of, nodes_of, outlook_of
from bench.packing.trace import asked_milli, read_nodes, read_pods, sequence
from bench.record import keep, quantile, table
from scheduler.classes import class_of, count_demands
from scheduler.fluid import least_power
from scheduler.packing import Packer
from scheduler.problem import Hold, Node, Problem, Running
from scheduler.solve import solve

LOAD, ARRIVALS, TIMES = 0.6, 300, (1, 2, 4, 8)
BUDGET_CYCLE_S, BUDGET_BOUND_S, BUDGET_BYTES = 1.0, 5.0, 2 << 30


def filled(data: Path) -> Problem:
    """The trace's cluster at `LOAD`, and the next arrivals."""
    cluster = read_nodes(data / "openb" / "openb_node_list_gpu_node.csv")
    pods = read_pods(data / "openb" / "openb_pod_list_default.csv")
    nodes = nodes_of(cluster)
    outlook = outlook_of(cluster, nodes, pods)
    arrivals = sequence(pods, cluster.gpu_milli, 42)
    jobs = jobs_of(cluster, pods, arrivals)
    count = int(np.searchsorted(np.cumsum(asked_milli(pods, arrivals)), LOAD * cluster.gpu_milli))
    ledger, packer = Ledger(nodes), Packer(Problem(nodes=nodes, jobs=(), outlook=outlook))
    for job in jobs[:count]:
        placement = packer.start(job)
        if placement is not None:
            ledger.start(job, placement)
    nodes, running = ledger.snapshot()
    return Problem(nodes=nodes, jobs=tuple(jobs[count : count + ARRIVALS]), running=running, outlook=outlook)


def repeated(one: Problem, times: int) -> Problem:
    """The cluster and what runs on it so many times over, with the same arrivals."""
    nodes: list[Node] = []
    running: list[Running] = []
    for copy in range(times):
        nodes += [
            replace(
                node,
                id=f"{node.id}.{copy}",
                devices=tuple(replace(device, id=f"{device.id}.{copy}") for device in node.devices),
            )
            for node in one.nodes
        ]
        running += [
            replace(
                entry,
                job=replace(entry.job, id=f"{entry.job.id}.{copy}"),
                members=tuple(
                    Hold(node=f"{hold.node}.{copy}", devices=tuple(f"{device}.{copy}" for device in hold.devices))
                    for hold in entry.members
                ),
            )
            for entry in one.running
        ]
    return replace(one, nodes=tuple(nodes), running=tuple(running))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of it, in s."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = os.environ.get("ERGON_BENCH_DATA")
    parser.add_argument("--data", type=Path, default=where, required=where is None, help="folder of the lists")
    parser.add_argument("--cycles", type=int, default=20, help="cycles on the trace's cluster; fewer on larger ones")
    options = parser.parse_args()
    one = filled(options.data)
    rows: list[tuple[str, ...]] = []
    figures: dict[str, object] = {}
    medians: list[float] = []
    passed = True
    for times in TIMES:
        problem = repeated(one, times)
        cycles = [timed(lambda problem=problem: solve(problem)) for _ in range(max(3, options.cycles // times))]
        classes = Counter(class_of(node) for node in problem.nodes)
        demands = count_demands(entry.job for entry in problem.running)
        bound_wall, bound_cpu = timed(lambda classes=classes, demands=demands: least_power(classes, demands))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        walls, cpus = [wall for wall, _ in cycles], [cpu for _, cpu in cycles]
        medians.append(quantile(cpus, 0.5))
        rows.append(
            (
                str(times),
                str(len(problem.nodes)),
                str(len(problem.running)),
                *(f"{value:.2f}" for value in (quantile(walls, 0.5), quantile(walls, 0.95))),
                *(f"{value:.2f}" for value in (quantile(cpus, 0.5), quantile(cpus, 0.95))),
                f"{bound_wall:.1f} / {bound_cpu:.1f}",
                f"{peak / 2**20:.0f}",
            )
        )
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
        figures[f"x{times}"] = {"wall_s": walls, "cpu_s": cpus, "bound_wall_s": bound_wall, "peak_bytes": peak}
        if times == 1:
            passed = quantile(walls, 0.95) < BUDGET_CYCLE_S and bound_wall < BUDGET_BOUND_S and peak < BUDGET_BYTES
    growth = float(np.polyfit(np.log(TIMES), np.log(medians), 1)[0])
    header = ("times", "nodes", "running", "wall p50 s", "p95", "CPU p50 s", "p95", "bound wall / CPU s", "peak MiB")
    text = (
        f"A cycle of {ARRIVALS} arrivals at {LOAD:.0%} load. CPU time grows as nodes^{growth:.2f}. "
        f"{'Passed' if passed else 'FAILED'}.\n\n{table(header, rows)}"
    )
    print(text)
    keep("packing-scale", command="python -m bench.packing.scale", text=text, figures={"growth": growth, **figures})
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
