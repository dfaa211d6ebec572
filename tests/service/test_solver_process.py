"""The solver in a process of its own: whatever becomes of the child there is a plan, and the next one is solved."""

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scheduler.learning import outlook_of_past
from scheduler.problem import Budget, Device, Job, Node, NodePower, Problem, Shape
from scheduler.solve import solve, solve_greedily
from service.cycle import solver as solver_module
from service.cycle.solver import SolverProcess


def problem(size: int) -> Problem:
    """As many nodes of four devices, and twice as many gangs that do not all fit."""
    return Problem(
        nodes=tuple(
            Node(
                id=f"n{number}",
                devices=tuple(Device(id=f"n{number}:{slot}", kind="cpu") for slot in range(4)),
                cpu_millicores=4_000,
                free_millicores=4_000,
                memory_bytes=4 << 30,
                free_memory_bytes=4 << 30,
                power=NodePower(base_w=100.0 + number),
            )
            for number in range(size)
        ),
        jobs=tuple(
            Job(
                id=f"job-{number}",
                priority=0,
                order=number,
                shapes=(
                    Shape(
                        members=1 + number % 3,
                        devices=1 + number * 7 % 3,
                        kind="cpu",
                        millicores=1_000,
                        memory_bytes=1 << 20,
                        run_s=600.0 * (1 + number * 13 % 7),
                        active_w=3.5,
                    ),
                ),
                wait_w=25.0,
            )
            for number in range(2 * size)
        ),
    )


SMALL = problem(10)
LARGE = problem(300)
"""More than a pipe holds: who sends it waits until it is read."""


@pytest.fixture
def solver() -> Iterator[SolverProcess]:
    solver = SolverProcess()
    yield solver
    solver.stop()
    assert children() == []


def children() -> list[psutil.Process]:
    """The solver processes of this test."""
    own = psutil.Process().children()
    return [child for child in own if "service.cycle.solver_child" in child.cmdline()]


def test_a_child_solves_what_we_would_have_solved_within_the_same_budget(solver: SolverProcess) -> None:
    little = Budget(deterministic_s=1e-6)
    assert solve(SMALL, little) != solve(SMALL)
    solver.start()
    (child,) = children()
    assert solver.solve(SMALL, little) == solve(SMALL, little)
    assert solver.solve(SMALL, Budget()) == solve(SMALL)
    assert children() == [child], "one child for all"
    child.kill()
    child.wait()
    assert solver.solve(SMALL, Budget()) == solve(SMALL), "a child that died while idle is replaced"


def test_a_child_that_hangs_costs_its_time_and_no_more(solver: SolverProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    solver.solve(SMALL, Budget())
    (child,) = children()
    child.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(solver_module, "GRACE_S", 0.1)
    plan = solver.solve(LARGE, Budget(watchdog_s=0.1))
    assert plan == solve_greedily(LARGE)
    assert (plan.method, plan.status) == ("greedy", "fallback")
    assert child not in children()
    monkeypatch.undo()
    assert solver.solve(SMALL, Budget()) == solve(SMALL)


def test_where_no_child_can_start_there_are_still_plans(solver: SolverProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver_module.sys, "executable", "/bin/false")
    for _ in range(3):
        assert solver.solve(SMALL, Budget()) == solve_greedily(SMALL)


def test_an_answer_that_is_no_plan_is_not_taken(
    solver: SolverProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("#!/bin/sh\nprintf '\\000\\000\\000\\000\\000\\000\\000\\004junk'\ncat > /dev/null\n")
    nonsense.chmod(0o755)
    monkeypatch.setattr(solver_module.sys, "executable", str(nonsense))
    assert solver.solve(SMALL, Budget()) == solve_greedily(SMALL)


def test_a_problem_that_makes_no_sense_is_refused_and_the_next_one_solved(solver: SolverProcess) -> None:
    with pytest.raises(ValueError, match="the problem makes no sense"):
        solver.solve(Problem(nodes=SMALL.nodes * 2, jobs=SMALL.jobs), Budget())
    assert solver.solve(SMALL, Budget()) == solve(SMALL)


def test_a_child_learns_what_we_would_have_learned_and_one_that_fails_expects_nothing(
    solver: SolverProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = list(range(1, len(SMALL.jobs) + 1))
    learned = solver.learn(SMALL, [often, often])
    assert learned == outlook_of_past(SMALL, [often, often])
    assert learned
    assert solver.solve(SMALL, Budget()) == solve(SMALL), "the same child"
    monkeypatch.setattr(solver_module.sys, "executable", "/bin/false")
    solver.stop()
    assert solver.learn(SMALL, [often, often]) == ()
    monkeypatch.undo()
    solver.stop()  # the last /bin/false may not have ended yet
    assert solver.learn(SMALL, [often, often]) == learned
