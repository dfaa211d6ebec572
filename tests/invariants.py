"""What must always be true, and what must become true once faults have stopped.

One place for every proof: the state machine and the simulation check a live database, and a checker of real processes
hands in the same values read from files. Each function yields a sentence for each violation, so an empty list means
that all is well. The numbers are those of docs/reliability.md, which also says which of them have no check yet and why.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import combinations

from sqlalchemy import Connection, text

from protocol.jobs import JobSpec
from protocol.states import FINAL_JOB_STATES, EndReason, JobState
from service.lifecycle import JOB_CHANGES, LOSSES, OWN_FAULTS

FINAL = {state.value for state in FINAL_JOB_STATES}


@dataclass
class Execution:
    """One rank that really ran, as the rank itself says. Times are true ones: one clock for all nodes, in s."""

    job: str
    epoch: int
    rank: int
    node: str
    started: float
    ended: float | None = None


@dataclass(frozen=True)
class Acknowledged:
    """A change that the service said it has made. `job` is what it answered for `key`."""

    verb: str
    job: str
    key: str | None = None


# -- safety, from the database alone


def i3_a_device_has_one_holder(tx: Connection) -> Iterator[str]:
    rows = tx.execute(
        text(
            "SELECT a.device_id, a.attempt_id, b.attempt_id FROM allocations a JOIN allocations b "
            "ON a.id < b.id AND a.span && b.span WHERE a.released_at IS NULL AND b.released_at IS NULL"
        )
    )
    yield from (f"device {device} is held by {one} and {other}" for device, one, other in rows)


def i4_a_node_holds_no_more_than_it_has(tx: Connection) -> Iterator[str]:
    rows = tx.execute(
        text(
            "SELECT n.id FROM nodes n JOIN members m ON m.node_id = n.id AND m.released_at IS NULL GROUP BY n.id "
            "HAVING sum(m.millicores) > n.millicores OR sum(m.memory_bytes) > n.memory_bytes"
        )
    )
    yield from (f"node {node} holds more CPU or memory than it has" for (node,) in rows)


def i7_a_gang_is_whole(tx: Connection) -> Iterator[str]:
    rows = tx.execute(
        text(
            "SELECT t.id, j.spec, m.member, (SELECT coalesce(sum(upper(a.span) - lower(a.span)), 0) FROM allocations a "
            "WHERE a.attempt_id = m.attempt_id AND a.member = m.member) AS thousandths "
            "FROM attempts t JOIN jobs j ON j.id = t.job_id LEFT JOIN members m ON m.attempt_id = t.id"
        )
    )
    members: defaultdict[str, list[int]] = defaultdict(list)
    specs: dict[str, JobSpec] = {}
    for attempt, spec, member, thousandths in rows:
        specs[attempt] = JobSpec.model_validate(spec)
        if member is not None:
            members[attempt].append(thousandths)
    for attempt, spec in specs.items():
        each = round(1000 * spec.device_share * spec.devices_per_node)
        if members[attempt] != [each] * len(members[attempt]) or len(members[attempt]) not in spec.sizes:
            yield f"attempt {attempt} holds {members[attempt]} thousandths of devices, not {each} on {spec.nodes} nodes"


def i7_at_most_one_attempt_of_a_job_lives(tx: Connection) -> Iterator[str]:
    rows = tx.execute(text("SELECT job_id FROM attempts WHERE state <> 'ended' GROUP BY job_id HAVING count(*) > 1"))
    yield from (f"job {job} has two live attempts" for (job,) in rows)


def i9_what_has_ended_ended_once(tx: Connection) -> Iterator[str]:
    rows = tx.execute(
        text(
            "SELECT j.id, j.state, (SELECT count(*) FROM events e WHERE e.job_id = j.id AND e.kind = 'ended'), "
            "(SELECT count(*) FROM attempts t WHERE t.job_id = j.id AND t.state <> 'ended') FROM jobs j"
        )
    )
    for job, state, ends, live in rows:
        if ends != (state in FINAL):
            yield f"job {job} is {state} and has {ends} events of its end"
        if live != (state in ("starting", "running")):
            yield f"job {job} is {state} and has {live} live attempts"


def i9_only_what_is_over_is_released(tx: Connection) -> Iterator[str]:
    rows = tx.execute(
        text(
            "SELECT m.attempt_id, m.member FROM members m JOIN allocations a USING (attempt_id, member) "
            "WHERE (m.released_at IS NOT NULL AND m.state <> 'ended') "
            "OR (m.released_at IS NULL) <> (a.released_at IS NULL)"
        )
    )
    yield from (f"member {member} of {attempt} lives without its devices" for attempt, member in rows)


def i10_nothing_holds_a_node_that_goes_off(tx: Connection) -> Iterator[str]:
    rows = tx.execute(
        text(
            "SELECT n.id, n.power, m.attempt_id FROM nodes n JOIN members m ON m.node_id = n.id "
            "WHERE m.released_at IS NULL AND n.power IN ('suspending', 'off')"
        )
    )
    yield from (f"node {node} is {power} and {attempt} holds some of it" for node, power, attempt in rows)


def i11_the_latest_is_of_an_attempt_and_whole(tx: Connection) -> Iterator[str]:
    """`latest` is of an attempt that the job has had; all files of one that the service holds are there."""
    latest = "SELECT j.id, j.checkpoint_epoch, j.checkpoint_step FROM jobs j WHERE j.checkpoint_epoch IS NOT NULL AND "
    nobodys = "NOT EXISTS (SELECT FROM attempts t WHERE t.job_id = j.id AND t.epoch = j.checkpoint_epoch)"
    for job, epoch, step in tx.execute(text(latest + nobodys)):
        yield f"job {job} goes on from step {step} of attempt {epoch}, which it never had"
    torn = (
        "j.checkpoint_stored AND NOT j.trimmed AND (SELECT count(*) FILTER (WHERE p.arrived) IS DISTINCT FROM "
        "max(p.world_size) OR bool_or(EXISTS (SELECT FROM jsonb_each(p.files) f WHERE NOT EXISTS (SELECT FROM "
        "checkpoint_files c WHERE c.job_id = j.id AND c.digest = f.value->>1))) FROM checkpoint_parts p "
        "WHERE (p.job_id, p.epoch, p.step) = (j.id, j.checkpoint_epoch, j.checkpoint_step))"
    )
    for job, epoch, step in tx.execute(text(latest + torn)):
        yield f"job {job} goes on from step {step} of attempt {epoch}, of which something is missing"


def i13_budgets_are_kept(tx: Connection) -> Iterator[str]:
    """Every attempt is counted for whose fault it ended, and none beyond the budget was tried again."""
    rows = tx.execute(text("SELECT job_id, reason FROM attempts WHERE state = 'ended'"))
    ends: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for job, reason in rows:
        ends[job]["losses"] += EndReason(reason) in LOSSES
        ends[job]["faults"] += EndReason(reason) in OWN_FAULTS
    for job in tx.execute(text("SELECT id, state, epoch, losses, faults, spec FROM jobs")):
        last = job.state in FINAL  # the attempt that ended the job was not repeated, and so is not counted
        for kind, counted in (("losses", job.losses), ("faults", job.faults)):
            if not counted <= ends[job.id][kind] <= counted + last:
                yield f"job {job.id} has {ends[job.id][kind]} {kind}, and {counted} are counted"
        if job.faults > JobSpec.model_validate(job.spec).max_retries:
            yield f"job {job.id} was tried again after {job.faults} faults"


def i14_output_has_no_gap(tx: Connection) -> Iterator[str]:
    rows = tx.execute(
        text(
            'SELECT attempt_id, rank, stream FROM chunks GROUP BY attempt_id, rank, stream HAVING min("offset") <> 0 '
            'OR sum(octet_length(data)) <> max("offset" + octet_length(data))'
        )
    )
    yield from (f"{stream} of rank {rank} of {attempt} has a gap or an overlap" for attempt, rank, stream in rows)


def i15_events_tell_the_state(tx: Connection) -> Iterator[str]:
    """Every change that the events tell is allowed, and together they lead to where the job stands."""
    told = {"placed": "starting", "running": "running", "requeued": "queued", "held": "held"}
    replayed: dict[str, str] = {}
    for job, kind, data in tx.execute(text("SELECT job_id, kind, data FROM events ORDER BY seq")):
        old = replayed.setdefault(job, "queued")
        new = data["state"] if kind == "ended" else told.get(kind, old)
        if kind == "released":
            new = "queued"
        if new != old and JobState(new) not in JOB_CHANGES[JobState(old)]:
            yield f"job {job} went from {old} to {new}"
        replayed[job] = new
    waits = {job for (job,) in tx.execute(text("SELECT DISTINCT job_id FROM dependencies"))}
    for job, state in tx.execute(text("SELECT id, state FROM jobs")):
        if replayed.get(job) != state and job not in waits:  # nobody is told when the last parent of a job ends
            yield f"job {job} is {state}, and its events say {replayed.get(job)}"


SAFETY: tuple[Callable[[Connection], Iterator[str]], ...] = (
    i3_a_device_has_one_holder,
    i4_a_node_holds_no_more_than_it_has,
    i7_a_gang_is_whole,
    i7_at_most_one_attempt_of_a_job_lives,
    i9_what_has_ended_ended_once,
    i9_only_what_is_over_is_released,
    i10_nothing_holds_a_node_that_goes_off,
    i11_the_latest_is_of_an_attempt_and_whole,
    i13_budgets_are_kept,
    i14_output_has_no_gap,
    i15_events_tell_the_state,
)


@dataclass
class Watch:
    """Safety over time: what a later look at the database must not contradict."""

    tokens: dict[str, int] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    latest: dict[str, tuple[int, int]] = field(default_factory=dict)
    attempts: set[str] = field(default_factory=set)

    def look(self, tx: Connection) -> list[str]:
        """Every violation there is now."""
        found = [f"{check.__name__}: {sentence}" for check in SAFETY for sentence in check(tx)]
        for rule in (
            self.i8_tokens_never_go_back,
            self.i9_ends_are_final,
            self.i10_grants_go_to_ready_nodes,
            self.i11_the_latest_never_goes_back,
        ):
            found += [f"{rule.__name__}: {sentence}" for sentence in rule(tx)]
        return found

    def i8_tokens_never_go_back(self, tx: Connection) -> Iterator[str]:
        rows = tx.execute(
            text(
                "SELECT 'epoch of ' || id, epoch::bigint FROM jobs UNION ALL SELECT 'version of ' || id, version "
                "FROM jobs UNION ALL SELECT 'incarnation of ' || id, incarnation FROM nodes "
                "UNION ALL SELECT 'term', term FROM leadership UNION ALL SELECT 'renewals', renewals FROM leadership"
            )
        )
        for name, value in rows:
            if value < self.tokens.get(name, value):
                yield f"{name} fell from {self.tokens[name]} to {value}"
            self.tokens[name] = value
        epochs = text("SELECT id, epoch FROM jobs j WHERE epoch <> (SELECT count(*) FROM attempts WHERE job_id = j.id)")
        yield from (
            f"job {job} is at epoch {epoch} and has another number of attempts" for job, epoch in tx.execute(epochs)
        )

    def i9_ends_are_final(self, tx: Connection) -> Iterator[str]:
        for job, state in tx.execute(text("SELECT id, state FROM jobs")):
            if self.ends.get(job, state) != state:
                yield f"job {job} had {self.ends[job]} and is {state}"
            if state in FINAL:
                self.ends[job] = state

    def i10_grants_go_to_ready_nodes(self, tx: Connection) -> Iterator[str]:
        """Of attempts that are new since the last look, which must have been before the commit that made them."""
        rows = tx.execute(
            text(
                "SELECT m.attempt_id, n.id, n.state, n.power, n.cordoned FROM members m "
                "JOIN nodes n ON n.id = m.node_id JOIN attempts t ON t.id = m.attempt_id WHERE t.state = 'granted'"
            )
        ).all()
        for attempt, node, state, power, cordoned in rows:
            if attempt not in self.attempts and ((state, power) != ("ready", "on") or cordoned):
                yield f"attempt {attempt} was granted on {node}, which is {state}, {power}{', cordoned' * cordoned}"
        self.attempts |= {row.attempt_id for row in rows}

    def i11_the_latest_never_goes_back(self, tx: Connection) -> Iterator[str]:
        for job, epoch, step in tx.execute(text("SELECT id, checkpoint_epoch, checkpoint_step FROM jobs")):
            before, now = self.latest.get(job, (0, 0)), (epoch or 0, step or 0)
            if now < before:
                yield f"job {job} went on from {before} (attempt, step), and now from {now}"
            self.latest[job] = now


# -- safety, from what clients were told and what ranks really did


def i1_nothing_acknowledged_is_missing(tx: Connection, history: Iterable[Acknowledged]) -> Iterator[str]:
    jobs = {job.id: job for job in tx.execute(text("SELECT id, state, cancel_requested FROM jobs"))}
    for said in history:
        job = jobs.get(said.job)
        if job is None:
            yield f"{said.verb} of job {said.job} was acknowledged, and there is no such job"
        elif said.verb == "cancel" and not job.cancel_requested:
            yield f"the cancellation of job {said.job} was acknowledged and is forgotten"


def i2_one_job_for_one_key(tx: Connection, history: Iterable[Acknowledged]) -> Iterator[str]:
    """`history` must hold every submission that got an answer."""
    answers: dict[str, str] = {}
    for said in history:
        if said.key is not None and answers.setdefault(said.key, said.job) != said.job:
            yield f"key {said.key} got {answers[said.key]} and {said.job}"
    doubled = text("SELECT spec->>'name' FROM jobs WHERE spec->>'name' <> 'job' GROUP BY 1 HAVING count(*) > 1")
    names = {name for (name,) in tx.execute(doubled)}
    yield from (f"key {key} made two jobs" for key in sorted(answers.keys() & names))


def i5_epochs_do_not_overlap(executions: Iterable[Execution]) -> Iterator[str]:
    """No rank of one epoch of a job runs while a rank of another does, whatever node they are on."""
    spans: defaultdict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    for run in executions:
        start, end = spans[run.job].get(run.epoch, (float("inf"), float("-inf")))
        ended = float("inf") if run.ended is None else run.ended
        spans[run.job][run.epoch] = (min(start, run.started), max(end, ended))
    for job, epochs in spans.items():
        for (one, first), (other, second) in combinations(sorted(epochs.items()), 2):
            if first[0] < second[1] and second[0] < first[1]:
                yield (
                    f"job {job}: epoch {one} ran from {first[0]:.3f} to {first[1]:.3f}, "
                    f"epoch {other} from {second[0]:.3f} to {second[1]:.3f}"
                )


def i6_a_rank_starts_once_in_an_epoch(executions: Iterable[Execution]) -> Iterator[str]:
    starts = Counter((run.job, run.epoch, run.rank) for run in executions)
    yield from (
        f"rank {rank} of job {job} started {times} times in epoch {epoch}"
        for (job, epoch, rank), times in starts.items()
        if times > 1
    )


def i12_what_was_told_is_gone_on_from(
    marks: Mapping[str, tuple[int, int]], told: Mapping[str, tuple[int, int]]
) -> Iterator[str]:
    """No checkpoint that the service has heard of from a job's present attempt is lost to the next: what a node is
    given to go on from (`marks`, by job) is none before it (`told`). Both are epoch and step."""
    for job, mark in marks.items():
        if mark < told.get(job, (0, 0)):
            yield f"job {job} is to go on from {mark}, and {told[job]} was told"


# -- liveness, once faults have stopped and there was time


def v1_every_job_has_ended(tx: Connection) -> Iterator[str]:
    rows = tx.execute(text("SELECT id, state, verdict FROM jobs ORDER BY seq"))
    yield from (f"job {job} is still {state}: {said}" for job, state, said in rows if state not in FINAL)


def v2_v5_no_attempt_hangs(tx: Connection) -> Iterator[str]:
    rows = tx.execute(text("SELECT id, state, granted_at FROM attempts WHERE state <> 'ended'"))
    yield from (f"attempt {attempt} is {state} since {at}" for attempt, state, at in rows)


def v3_somebody_leads(before: Mapping[str, int], after: Mapping[str, int]) -> Iterator[str]:
    """Between two looks at the row of leadership, a term apart."""
    if after == before:
        yield f"nobody renews the lead: {after}"


def v4_nodes_are_ready(tx: Connection) -> Iterator[str]:
    rows = tx.execute(text("SELECT id FROM nodes WHERE state <> 'ready' AND power = 'on'"))
    yield from (f"node {node} is reachable and not ready" for (node,) in rows)


def v6_nothing_is_held(tx: Connection) -> Iterator[str]:
    rows = tx.execute(text("SELECT device_id, attempt_id FROM allocations WHERE released_at IS NULL"))
    yield from (f"device {device} is still held by {attempt}" for device, attempt in rows)


def v6_drained_nodes_are_empty(tx: Connection, now: datetime) -> Iterator[str]:
    """I18, by the deadline."""
    rows = tx.execute(
        text(
            "SELECT n.id, m.attempt_id FROM nodes n JOIN members m ON m.node_id = n.id AND m.released_at IS NULL "
            "WHERE n.drain_at <= :now"
        ),
        {"now": now},
    )
    yield from (f"node {node} is drained and still holds {attempt}" for node, attempt in rows)


LIVENESS: tuple[Callable[[Connection], Iterator[str]], ...] = (
    v1_every_job_has_ended,
    v2_v5_no_attempt_hangs,
    v4_nodes_are_ready,
    v6_nothing_is_held,
)
