"""What a run of the benchmark is about: a cluster, what arrives, what the planner learned before, and its results."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.packing import baselines, ours
from bench.packing.bounds import bounds
from bench.packing.drift import followed, joined
from bench.packing.measure import Figures, figures, moves_figures
from bench.packing.problem import jobs_of, nodes_of, outlook_of
from bench.packing.store import ROOT, Store
from bench.packing.trace import Cluster, Ints, PodList, asked_milli, read_nodes, read_pods, sequence
from scheduler.codec import decode_problem, encode_problem
from scheduler.demand import Outlook
from scheduler.problem import Node, Problem

FIRST_SEED = 42

SIMULATOR = ("bench/packing/trace.py", "bench/packing/energy.py", "bench/packing/measure.py")
BASELINES = (*SIMULATOR, "bench/packing/kernels.py", "bench/packing/baselines.py")
BOUND = (*SIMULATOR, "bench/packing/bounds.py", "bench/packing/problem.py", "scheduler/fluid.py")
PLANNER = (
    "problem",
    "demand",
    "classes",
    "fluid",
    "booking",
    "mix",
    "fleet",
    "packing",
    "moving",
    "learning",
    "patterns",
    "whole",
    "repack",
    "solve",
)
OUTLOOK = tuple(f"scheduler/{name}.py" for name in ("demand", "classes", "fluid", "booking"))
OURS = (
    *SIMULATOR,
    "bench/packing/problem.py",
    "bench/packing/ours.py",
    "bench/packing/ledger.py",
    *(f"scheduler/{name}.py" for name in PLANNER),
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A cluster, what arrives, and what the planner learned from the history of a list.

    `first` and `then` are the list that arrives and, if it is not the only one, the one that follows halfway.
    """

    cluster: Cluster
    history: PodList
    first: PodList
    then: PodList | None
    store: Store

    @cached_property
    def pods(self) -> PodList:
        return joined(self.first, self.then) if self.then else self.first

    @property
    def name(self) -> str:
        learned = "" if self.history is self.first else f"-after-{self.history.name.split('_')[-1]}"
        return self.pods.name + learned

    def arrivals(self, seed: int) -> Ints:
        """The types of the seed's arrivals."""
        if self.then is None:
            return sequence(self.first, self.cluster.gpu_milli, seed)
        return followed(self.pods, self.first, self.then, self.cluster.gpu_milli, seed)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return nodes_of(self.cluster)

    @cached_property
    def outlook(self) -> tuple[Outlook, ...]:
        def learn() -> str:
            found = outlook_of(self.cluster, self.nodes, self.history)
            return encode_problem(Problem(nodes=(), jobs=(), outlook=found)).decode()

        return decode_problem(self.store.text("outlook", OUTLOOK, learn).encode()).outlook

    def bound(self, seed: int) -> Figures:
        """The free bound of the seed's sequence."""
        arrivals = self.arrivals(seed)
        jobs = jobs_of(self.cluster, self.pods, arrivals)
        return bounds(self.nodes, jobs, asked_milli(self.pods, arrivals), self.cluster.gpu_milli)

    def baseline(self, policy: baselines.Policy, seed: int) -> Figures:
        """A published policy on the seed's sequence."""
        arrivals = self.arrivals(seed)
        done = baselines.run(policy, self.cluster, self.pods, arrivals, seed)
        return figures(asked_milli(self.pods, arrivals), done.nodes >= 0, done.watts, self.cluster.gpu_milli)

    def ours(self, mode: str, seed: int) -> Figures:
        """The planner on the seed's sequence, in one of its modes."""
        arrivals = self.arrivals(seed)
        asked = asked_milli(self.pods, arrivals)
        done = ours.MODES[mode](self.nodes, jobs_of(self.cluster, self.pods, arrivals), self.outlook)
        found = figures(asked, done.placed, done.watts, self.cluster.gpu_milli)
        return found | moves_figures(asked, done.moves, self.cluster.gpu_milli)

    def known_bound(self, seed: int) -> Mapping[str, float]:
        """The bound, worked out once."""
        return self.store.get("bound", seed, BOUND, lambda: self.bound(seed))

    def result(self, name: str, seed: int) -> Mapping[str, float]:
        """What a policy or mode does, worked out once."""
        if name in ours.MODES:
            return self.store.get(name, seed, OURS, lambda: self.ours(name, seed))
        policy = next(policy for policy in baselines.POLICIES if policy.name == name)
        return self.store.get(name, seed, BASELINES, lambda: self.baseline(policy, seed))


def read_setting(trace: Path, nodes: Path, history: Path | None = None, then: Path | None = None) -> Setting:
    """The setting of these lists; its results are kept in `build/packing/`. Raises TraceError."""
    first = read_pods(trace)
    lists = [path for path in (trace, nodes, history, then) if path]
    return Setting(
        store=Store(ROOT / "build" / "packing" / f"{'-'.join(path.stem for path in lists)}.jsonl", lists),
        cluster=read_nodes(nodes),
        history=read_pods(history) if history else first,
        first=first,
        then=read_pods(then) if then else None,
    )
