"""The judgement over a run, from its files alone: the history, what ranks wrote, and the database. May be repeated."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

from sqlalchemy import Connection, Engine, text

from service.db import connect, snapshot
from service.postgres import EmbeddedPostgres
from tests import invariants
from tests.chaos.history import read_lines
from tests.invariants import Acknowledged, Execution

Line = dict[str, Any]
GAP = re.compile(r"^\[ergon\] \d+ bytes of rank-\d+\.stdout were dropped here", re.MULTILINE)
DROPPED = (
    "SELECT t.job_id FROM members m JOIN attempts t ON t.id = m.attempt_id "
    "WHERE m.message LIKE '%bytes of rank-% dropped%'"
)
NEVER_BY_ITSELF = ("completed", "cancelled")
"""Ends of an attempt that tell nothing about how a fault was noticed."""


def judge(folder: Path) -> tuple[list[str], list[str]]:
    """What was violated, and the figures to print."""
    history = list(read_lines(folder / "history.jsonl"))
    ranks = list(read_lines(folder / "ranks.jsonl"))
    with EmbeddedPostgres(folder / "data") as server:
        engine = connect(server.url, pool_size=1)
        with snapshot(engine) as tx:
            violations = [*_violations(tx, history, ranks)]
            figures = [*_figures(tx, history, ranks)]
        engine.dispose()
    return violations, figures


class Watcher:
    """Looks at the database while the run lasts: what must hold at every moment, and what must not go back."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._watch = invariants.Watch()
        self.looks = 0

    def look(self) -> list[str]:
        with snapshot(self._engine) as tx:
            found = [f"{check.__name__}: {said}" for check in invariants.SAFETY for said in check(tx)]
            found += self._watch.i8_tokens_never_go_back(tx)
            found += self._watch.i9_ends_are_final(tx)
        self.looks += 1
        return found


def executions(ranks: Sequence[Line]) -> list[Execution]:
    """From the first word of a rank to its last, each beat included. One that was killed spoke a beat ago."""
    found: dict[tuple[str, int, int, int], Execution] = {}
    for line in ranks:
        run = found.setdefault(
            (line["job"], line["epoch"], line["rank"], line["pid"]),
            Execution(line["job"], line["epoch"], line["rank"], str(line["node"]), line["at"]),
        )
        run.ended = line["at"]
    return list(found.values())


def acknowledged(history: Sequence[Line]) -> list[Acknowledged]:
    return [
        Acknowledged(line["verb"], line["job"], line["key"])
        for line in history
        if line["what"] == "ok" and line["who"].startswith("client")
    ]


def _violations(tx: Connection, history: Sequence[Line], ranks: Sequence[Line]) -> Iterator[str]:
    runs, said = executions(ranks), acknowledged(history)
    yield from (f"{line['who']}: {line['said']}" for line in history if line["what"] == "violation")
    for check in (*invariants.SAFETY, *invariants.LIVENESS):
        yield from (f"{check.__name__}: {sentence}" for sentence in check(tx))
    yield from invariants.i1_nothing_acknowledged_is_missing(tx, said)
    yield from invariants.i2_one_job_for_one_key(tx, said)
    yield from invariants.i5_epochs_do_not_overlap(runs)
    yield from invariants.i6_a_rank_starts_once_in_an_epoch(runs)
    for line in ranks:
        if line["what"] == "double":
            yield f"the kernel: no device was free for rank {line['rank']} of {line['job']}, epoch {line['epoch']}"
    yield from _wrong_ends(tx, history)
    yield from _wrong_output(tx)


def _wrong_ends(tx: Connection, history: Sequence[Line]) -> Iterator[str]:
    """Faults of ours are no reason to fail: a job ends as its work does, or as its owner wanted."""
    works = {line["job"]: line["work"] for line in history if line["what"] == "ok" and line["verb"] == "submit"}
    for job, state, reason, cancelled in tx.execute(text("SELECT id, state, reason, cancel_requested FROM jobs")):
        right = {"succeeded"} if works.get(job, "sleep") != "exit" else {"failed"}
        if state not in right | ({"cancelled"} if cancelled else set()):
            yield f"job {job}, {works.get(job)}, is {state}: {reason}"


def _wrong_output(tx: Connection) -> Iterator[str]:
    """Every rank of a job that succeeded has said what it says, from first to last, and once; or it says what is not
    there because the disk was full."""
    told = {job for (job,) in tx.execute(text(DROPPED))}
    rows = tx.execute(
        text(
            "SELECT t.job_id, c.rank, string_agg(convert_from(c.data, 'UTF8'), '' ORDER BY c.\"offset\") FROM chunks c "
            "JOIN attempts t ON t.id = c.attempt_id WHERE t.reason = 'completed' AND c.stream = 'stdout' GROUP BY 1, 2"
        )
    ).all()
    for job, rank, output in rows:
        if job in told or GAP.search(output):
            continue
        words = output.split()
        numbers = [int(word) for word in words if word.isdecimal()]
        if (words[0], words[-1]) != ("up", "done") or numbers != list(range(len(numbers))):
            yield f"rank {rank} of job {job} said something else: {output[:200]!r}"
    for (job,) in tx.execute(text("SELECT id FROM jobs WHERE state = 'succeeded'")):
        if job not in told | {job for job, _, _ in rows}:
            yield f"job {job} succeeded and its output is missing"


def _figures(tx: Connection, history: Sequence[Line], ranks: Sequence[Line]) -> Iterator[str]:
    faults = [line for line in history if line["who"] == "nemesis" and "hit" in line]
    found, again = _times(tx, faults, ranks)
    yield "| Fault | Times | hit starting | hit running | hit committing | noticed p50, p95 s | runs again p50, p95 s |"
    yield "|---|---|---|---|---|---|---|"
    for kind in [*sorted({line["verb"] for line in faults}), "all"]:
        of_kind = [line for line in faults if kind in (line["verb"], "all")]
        hits = Counter(line["hit"] for line in of_kind)
        yield (
            f"| {kind} | {len(of_kind)} | {hits['starting']} | {hits['running']} | {hits['committing']} "
            f"| {_spread(found, kind)} | {_spread(again, kind)} |"
        )
    tries = [line for line in history if line["who"].startswith("client")]
    answers = Counter(line["what"] for line in tries)
    said = Counter(one.verb for one in acknowledged(history))
    states = dict(tx.execute(text("SELECT state, count(*) FROM jobs GROUP BY 1")).all())
    attempts = tx.execute(text("SELECT count(*) FROM attempts")).scalar_one()
    terms = tx.execute(text("SELECT term FROM leadership")).scalar_one()
    yield ""
    yield (
        f"{answers['invoke']} requests, {answers['info']} without a clear answer; acknowledged and checked: "
        + ", ".join(f"{number} of {verb}" for verb, number in sorted(said.items()))
    )
    yield f"jobs: {states}; {attempts} attempts, {len(executions(ranks))} ranks, {terms} terms of a leader"


def _times(
    tx: Connection, faults: Sequence[Line], ranks: Sequence[Line]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Of faults that hit running ranks, by kind: until the attempt had ended, and until the next one ran."""
    ends = {
        (job, epoch): ended.timestamp()
        for job, epoch, ended, reason in tx.execute(text("SELECT job_id, epoch, ended_at, reason FROM attempts"))
        if ended and reason not in NEVER_BY_ITSELF
    }
    starts: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in ranks:
        if line["what"] == "start":
            starts[line["job"]].append((line["epoch"], line["at"]))
    found: defaultdict[str, list[float]] = defaultdict(list)
    again: defaultdict[str, list[float]] = defaultdict(list)
    for fault in faults:
        for job, epoch in map(tuple, fault["jobs"]):
            if ends.get((job, epoch), 0.0) > fault["wall"]:
                found[fault["verb"]].append(ends[job, epoch] - fault["wall"])
                if later := [at for other, at in starts[job] if other > epoch]:
                    again[fault["verb"]].append(min(later) - fault["at"])
    return found, again


def _spread(times: dict[str, list[float]], kind: str) -> str:
    all_of_it = [one for of, several in times.items() if kind in (of, "all") for one in several]
    if not all_of_it:
        return "-"
    cuts = quantiles(all_of_it, n=20, method="inclusive") if len(all_of_it) > 1 else all_of_it * 19
    return f"{cuts[9]:.1f}, {cuts[18]:.1f} (n={len(all_of_it)})"
