"""Random problems for hypothesis: tiny ones that the oracle can try out, with every feature a problem has."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from scheduler.problem import (
    WHOLE_DEVICE,
    Device,
    Job,
    Node,
    NodePower,
    PowerBudget,
    Problem,
    Reservation,
    Shape,
    Staging,
)

KINDS = ("h100", "cpu")
RUNS_S = (600.0, 3600.0, 7200.0, 40_000.0)


@st.composite
def nodes(draw: st.DrawFn, name: str) -> Node:
    kinds = [draw(st.sampled_from(KINDS))] * draw(st.integers(2, 4))
    kinds += draw(st.sampled_from(([], [], ["h100"], ["cpu", "cpu"])))
    cores, memory = draw(st.integers(3, 6)), draw(st.integers(3, 6))
    on, off_w = draw(st.sampled_from((True, True, False))), draw(st.sampled_from((0.0, 10.0)))
    return Node(
        id=name,
        devices=tuple(
            Device(id=f"{name}-{number}", kind=kind, free=draw(st.sampled_from((*[WHOLE_DEVICE] * 6, 0, 500))))
            for number, kind in enumerate(kinds)
        ),
        cpu_millicores=cores * 1000,
        free_millicores=(cores - draw(st.sampled_from((0, 0, 1, 3)))) * 1000,
        memory_bytes=memory,
        free_memory_bytes=memory - draw(st.sampled_from((0, 0, 1, 3))),
        power=NodePower(
            base_w=off_w + draw(st.sampled_from((0.0, 100.0, 1000.0))),
            off_w=off_w,
            boot_s=300.0,
            boot_j=draw(st.sampled_from((0.0, 50_000.0, 400_000.0))),
        ),
        on=on,
        can_switch=draw(st.sampled_from((True, True, True, False))),
        open=draw(st.sampled_from((*[True] * 6, False))),
        busy_s=draw(st.sampled_from((0.0, 0.0, 1800.0, 7200.0, 90_000.0))) if on else 0.0,
        container_fault=draw(st.sampled_from(("", "", "", "podman is not installed"))),
        busy_w=draw(st.sampled_from((0.0, 0.0, 450.0))) if on else 0.0,
        booting=draw(st.sampled_from((False, False, True))) if on else False,
        can_cap=draw(st.booleans()),
    )


shapes = st.builds(
    Shape,
    members=st.sampled_from((1, 1, 1, 2)),
    devices=st.sampled_from((1, 1, 2, 3)),
    kind=st.sampled_from(KINDS),
    millicores=st.sampled_from((0, 1000, 2000)),
    memory_bytes=st.sampled_from((0, 0, 1, 2)),
    run_s=st.sampled_from(RUNS_S),
    active_w=st.sampled_from((0.0, 100.0, 450.0)),
    in_container=st.sampled_from((False, False, True)),
)


def capped(options: list[Shape], may_slow: float) -> tuple[Shape, ...]:
    """The shapes, and the fastest accelerator's again with a power cap if the job may be slowed down."""
    able = sorted((shape for shape in options if shape.kind != "cpu"), key=lambda shape: shape.run_s)
    able = able[: 1 if may_slow else 0]
    caps = (
        replace(
            each,
            cap_w=300.0,
            active_w=0.7 * each.active_w,
            run_s=each.run_s * (1 + may_slow),
            slower=1 + may_slow,
        )
        for each in able
    )
    return (*options, *caps)


@st.composite
def budgets(draw: st.DrawFn, machines: list[Node]) -> tuple[PowerBudget, ...]:
    """Up to two groups of nodes, which may overlap, with what is often too little for all of them."""
    names = [node.id for node in machines]
    groups = draw(st.lists(st.lists(st.sampled_from(names), min_size=1, unique=True), min_size=1, max_size=2))
    found: list[PowerBudget] = []
    for number, group in enumerate(groups):
        there = [node for node in machines if node.id in group]
        now_w = sum(node.busy_w + (node.power.base_w if node.on else node.power.off_w) for node in there)
        spare_w = draw(st.sampled_from((-50.0, 0.0, 100.0, 250.0, 450.0, 900.0, 1400.0, 2000.0)))
        found.append(PowerBudget(name=f"b{number}", watts=max(0.0, now_w + spare_w), nodes=tuple(group)))
    return tuple(found)


@st.composite
def stagings(draw: st.DrawFn, nodes: list[str]) -> dict[str, Any]:
    """How long a job is staged: not at all, everywhere alike, or on some nodes longer than on others."""
    seconds = st.sampled_from((0.0, 120.0, 3000.0))
    if draw(st.booleans()):
        return {}
    apart = draw(st.lists(st.sampled_from(nodes), max_size=len(nodes), unique=True))
    return {
        "stage_s": draw(seconds),
        "staging": tuple(Staging(seconds=draw(seconds), nodes=(node,)) for node in apart),
    }


@st.composite
def problems(draw: st.DrawFn, max_jobs: int = 4, max_nodes: int = 3) -> Problem:
    """A problem small enough to try every plan of it."""
    machines = [draw(nodes(f"n{number}")) for number in range(draw(st.integers(1, max_nodes)))]
    if len(machines) > 1 and draw(st.booleans()):  # interchangeable but for their names
        first = machines[0]
        machines[1] = replace(
            first, id="n1", devices=tuple(replace(d, id=d.id.replace("n0", "n1")) for d in first.devices)
        )
    # Few kinds of jobs, so that some differ only in their place in line.
    kinds = draw(st.lists(st.lists(shapes, min_size=1, max_size=2), min_size=1, max_size=3))
    fetched = draw(st.lists(stagings([node.id for node in machines]), min_size=1, max_size=2))
    queue = tuple(
        Job(
            id=f"j{number}",
            priority=draw(st.sampled_from((0, 0, 10))),
            order=number,
            shapes=capped(draw(st.sampled_from(kinds)), slow := draw(st.sampled_from((0.0, 0.05, 0.5)))),
            may_slow=slow,
            wait_w=draw(st.sampled_from((0.0, 50.0, 125.0, 125.0))),
            **draw(st.sampled_from(fetched)),
        )
        for number in range(draw(st.integers(1, max_jobs)))
    )
    kept = st.builds(
        Reservation,
        job=st.sampled_from([job.id for job in queue]),
        nodes=st.lists(st.sampled_from([node.id for node in machines]), max_size=2, unique=True).map(tuple),
        free_s=st.sampled_from((0.0, 600.0, 7200.0)),
    )
    return Problem(
        budgets=draw(st.one_of(st.just(()), budgets(machines))),
        nodes=tuple(machines),
        jobs=queue,
        reservation=draw(st.one_of(st.none(), kept)),
        horizon_s=draw(st.sampled_from((3600.0, 28_800.0))),
        pue=draw(st.sampled_from((1.0, 1.3))),
        fill=draw(st.sampled_from((0.0, 0.0, 0.6, 1.0))),
        boot_wait_w=draw(st.sampled_from((0.0, 500.0))),
    )
