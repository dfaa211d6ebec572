"""`python -m tests.guards`: takes one guard at a time out of a copy of the tree, and sees that a suite turns red.

A guard that can go without any test noticing is not guarded. Each mutation names the text it replaces: one that is not
found, or found twice, is an error, so that this list follows the code. `make mutate-guards` writes the table that it
prints to `bench/results/guards.md`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "bench" / "results" / "guards.md"


@dataclass(frozen=True)
class Mutation:
    """One guard, how it is taken out, and the cheapest suite that has to notice."""

    guard: str
    path: str
    old: str
    new: str
    suite: str


MUTATIONS = (
    Mutation(
        "epoch: a report of another epoch is ignored",
        "service/attempts.py",
        "if attempt is None or attempt.epoch != report.epoch:",
        "if attempt is None:",
        "tests/service/test_attempts.py",
    ),
    Mutation(
        "incarnation: an agent that was replaced is refused",
        "service/store/nodes.py",
        "update(nodes).where(nodes.c.id == node_id, nodes.c.incarnation == incarnation)",
        "update(nodes).where(nodes.c.id == node_id)",
        "tests/service/test_attempts.py",
    ),
    Mutation(
        "memory: what an agent was given may have started, once another with another state folder calls",
        "service/sync.py",
        "if node.state_folder is not None:",
        "if False:",
        "tests/service/test_disconnected.py",
    ),
    Mutation(
        "incarnation: a parked poll of an agent that was replaced is refused",
        "service/api/agent.py",
        "            sync.check_latest(tx, node, request.incarnation)",
        "            pass",
        "tests/service/test_disconnected.py",
    ),
    Mutation(
        "clock: times come from the database, not from the machine that asks",
        "service/db.py",
        "if self._at_boot_s is None:",
        "if True:",
        "tests/service/test_clock.py",
    ),
    Mutation(
        "power: nothing starts on a node that was closed to go off since the snapshot",
        "service/cycle/commit.py",
        "if row.power != PowerState.ON.value or row.power_kept == PowerState.OFF.value:",
        "if False:",
        "tests/service/test_switching.py",
    ),
    Mutation(
        "power: a node that got work since the snapshot is not closed to go off",
        "service/cycle/commit.py",
        "if attempt_store.held_members(tx, node_id):",
        "if False:",
        "tests/service/test_switching.py",
    ),
    Mutation(
        "term: a plan of a term that is over is not committed",
        "service/store/cycles.py",
        "select(leadership.c.least_epoch).where(leadership.c.term == term)",
        "select(leadership.c.least_epoch)",
        "tests/service/test_commit.py",
    ),
    Mutation(
        "version: a job that has changed since the snapshot is not started",
        "service/cycle/commit.py",
        "old=JobState.QUEUED, version=version, state=state",
        "old=JobState.QUEUED, state=state",
        "tests/service/test_commit.py",
    ),
    Mutation(
        "exclusion constraint: two holders of one share of a device",
        "migrations/versions/0001_first_tables.py",
        '(sa.column("span"), "&&"),',
        '(sa.column("span"), "&&"), (sa.column("id"), "="),',
        "tests/service/test_commit.py",
    ),
    Mutation(
        "lease margin of the service: it waits beyond the lease",
        "service/cycle/leases.py",
        "MARGIN_S = 5.0",
        "MARGIN_S = 0.0",
        "tests/simulation/test_simulation.py::test_a_lease_leaves_time_to_die",
    ),
    Mutation(
        "lease margin of the agent: ranks are gone before the lease is over",
        "workers/reconcile.py",
        "fence_at_s=sent_s + 0.65 * lease_s",
        "fence_at_s=sent_s + 1.0 * lease_s",
        "tests/workers/test_reconcile.py",
    ),
    Mutation(
        "lease: it counts from when the renewal was sent, not from its answer",
        "workers/agent.py",
        "self._take_in(answer, self._sent_s)",
        "self._take_in(answer, self._now_s())",
        "tests/simulation/test_simulation.py::test_a_lease_counts_from_when_its_renewal_was_sent",
    ),
    Mutation(
        "fsync of the journal: the launch record is durable before anything starts",
        "workers/journal.py",
        "files.sync(str(path))",
        "pass",
        "tests/workers/test_journal.py",
    ),
    Mutation(
        "journal: an attempt with a launch record never starts again",
        "workers/journal.py",
        "if folder.exists():",
        "if False:",
        "tests/workers/test_journal.py",
    ),
    Mutation(
        "empty process group: a member is over when no process of it is left",
        "workers/supervisor.py",
        "if not left and (self.group is None or self.group.is_empty()):",
        "if True:",
        "tests/workers/test_supervisor.py",
    ),
    Mutation(
        "clean: devices are free on the word that nothing is left, and not before",
        "service/attempts.py",
        "if report.state == AttemptState.ENDED and report.clean:",
        "if report.state == AttemptState.ENDED:",
        "tests/service/test_attempts.py",
    ),
)


def main() -> int:
    """1 if a suite stays green without its guard, or is red with all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.guards", description=__doc__)
    parser.add_argument("--only", default="", help="mutations whose guard or file contains this")
    options = parser.parse_args()
    chosen = [each for each in MUTATIONS if options.only in f"{each.guard} {each.path}"]
    broken = False
    rows: list[str] = []
    with tempfile.TemporaryDirectory(prefix="ergon-guards-") as name:
        tree = Path(name)
        _copy_tree(tree)
        for suite in sorted({each.suite for each in chosen}):
            if red := _red(tree, suite):
                print(f"{suite} is red with every guard in place: {red}", flush=True)
                return 1
        for each in chosen:
            path = tree / each.path
            text = path.read_text()
            path.write_text(mutate(each, text))
            red = _red(tree, each.suite)
            path.write_text(text)
            broken |= not red
            rows.append(f"| {each.guard} | `{each.path}` | {f'`{red}`' if red else '**nothing turned red**'} |")
            print(rows[-1], flush=True)
    if not options.only:
        head = ["# Guards, each taken out once", "", "By `make mutate-guards`.", ""]
        TABLE.write_text("\n".join([*head, "| Guard | Where | Turned red |", "|---|---|---|", *rows]) + "\n")
    return 1 if broken else 0


def mutate(mutation: Mutation, text: str) -> str:
    """The file without the guard. Raises ValueError when the guard is not found, or not just once."""
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.path} has {mutation.old!r} {text.count(mutation.old)} times: update {__file__}")
    return text.replace(mutation.old, mutation.new)


def _copy_tree(to: Path) -> None:
    """Every file that git knows or would add, so never a virtual environment."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def _red(tree: Path, suite: str) -> str:
    """The first test of the suite that fails in this tree; empty if none does."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", suite],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 0:
        return ""
    failed = [line.split(" ")[1] for line in run.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return failed[0].removeprefix("tests/") if failed else f"{suite}, exit code {run.returncode}"


if __name__ == "__main__":
    sys.exit(main())
