"""Taking jobs in: one, many at once, or an ended one anew. All of a request is taken or nothing of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from protocol.batch import BatchItem, BatchView
from protocol.errors import FieldError
from protocol.jobs import MAX_BATCH, JobSpec, JobView, Reason, VerdictView
from protocol.states import FINAL_JOB_STATES, JobState
from scheduler.budgets import NEVER_WITHIN_BUDGET
from service import archives, dependencies, jobs, run_times, verdicts
from service.auth import Person
from service.cycle.problem import why_never
from service.db import Record, notify
from service.ids import NewId
from service.power_budgets import NO_RULES, PowerRules
from service.refusals import IdempotencyMismatch, Impossible, Invalid, NotEnded
from service.store import arrays as array_store
from service.store import dependencies as dependency_store
from service.store import jobs as store

SHOWN_FAULTS = 50


class KeyInUse(Exception):
    """The same request arrived twice at this very moment. Ask again in a new transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Whose the new jobs are, who submits them, and the job they are a new run of, if they are."""

    owner_id: str
    person: Person
    origin: Record | None = None


def submit(
    tx: Connection,
    person: Person,
    spec: JobSpec,
    *,
    key: str | None,
    queues: Sequence[str],
    power: PowerRules = NO_RULES,
    now: datetime,
    new_id: NewId,
) -> tuple[JobView, bool]:
    """Take a job into its queue. The same request with the same key gets the same job back.

    Returns:
        The job, of an array the first one, and whether it is new.

    Raises:
        IdempotencyMismatch: the key came before with another spec.
        Invalid: there is no such queue, or no such job to wait for.
        Impossible: the spec asks to be refused if no present node could run it, and none could.
        KeyInUse: see there.
    """
    request_hash = _hash("job", spec.model_dump_json(exclude_defaults=True))
    if known := _known(tx, person, key, request_hash):
        return jobs.get(tx, person, known[0]), False
    source = Source(owner_id=person.id, person=person)
    items = _take(tx, source, [spec], prefixes=[""], queues=queues, power=power, now=now, new_id=new_id)
    job_id = store.first_job(tx, items[0].id) if spec.array else items[0].id
    _keep(tx, person, key, request_hash, [job_id], now)
    return jobs.get(tx, person, job_id), True


def submit_many(
    tx: Connection,
    person: Person,
    specs: Sequence[JobSpec],
    *,
    key: str | None,
    queues: Sequence[str],
    power: PowerRules = NO_RULES,
    now: datetime,
    new_id: NewId,
) -> tuple[BatchView, bool]:
    """Take all these jobs, or none if one of them cannot be taken. The rest is as with `submit`.

    Raises IdempotencyMismatch, Invalid, Impossible, KeyInUse.
    """
    request_hash = _hash("batch", *(spec.model_dump_json(exclude_defaults=True) for spec in specs))
    if known := _known(tx, person, key, request_hash):
        said = store.verdicts_of(tx, known)
        return BatchView(
            items=[BatchItem(id=each, verdict=VerdictView.model_validate(said[each])) for each in known]
        ), False
    source = Source(owner_id=person.id, person=person)
    prefixes = [f"jobs.{index}." for index in range(len(specs))]
    items = _take(tx, source, specs, prefixes=prefixes, queues=queues, power=power, now=now, new_id=new_id)
    _keep(tx, person, key, request_hash, [item.id for item in items], now)
    return BatchView(items=items), True


def resubmit(
    tx: Connection,
    person: Person,
    job_id: str,
    *,
    key: str | None,
    queues: Sequence[str],
    power: PowerRules = NO_RULES,
    now: datetime,
    new_id: NewId,
) -> tuple[JobView, bool]:
    """Run a job that has ended once more: a new job of the same owner, with the same spec and the priority in force.

    A job of an array runs alone, with its number. What it had to wait for counts no more where that has ended.

    Raises:
        UnknownJob: there is none of this id, or it is another user's.
        NotEnded: it has not ended.
        IdempotencyMismatch, Invalid, Impossible, KeyInUse: as with `submit`.
    """
    request_hash = _hash("resubmit", job_id)
    if known := _known(tx, person, key, request_hash):
        return jobs.get(tx, person, known[0]), False
    origin = jobs.find(tx, person, job_id)
    if JobState(origin.state) not in FINAL_JOB_STATES:
        raise NotEnded(f"job {job_id} is {origin.state}; it can be submitted again once it has ended")
    spec = JobSpec.model_validate(origin.spec)
    ended = dependencies.ended_parents(tx, spec)
    spec = spec.model_copy(
        update={
            "array": None,
            "priority": origin.priority,
            "after": [dependency for dependency in spec.after if dependency.job not in ended],
        }
    )
    source = Source(owner_id=origin.user_id, person=person, origin=origin)
    (item,) = _take(tx, source, [spec], prefixes=[""], queues=queues, power=power, now=now, new_id=new_id)
    _keep(tx, person, key, request_hash, [item.id], now)
    return jobs.get(tx, person, item.id), True


def check(
    tx: Connection,
    person: Person,
    specs: Sequence[JobSpec],
    *,
    prefixes: Sequence[str],
    queues: Sequence[str],
    lock: bool,
) -> list[dependencies.Waits]:
    """What each of the specs would wait for, if all of them can be taken.

    Args:
        prefixes: what stands before the names of each spec's fields in the request.
        lock: keep the jobs that are waited for from ending before the transaction does.

    Raises:
        Invalid: with every field at fault.
    """
    errors: list[FieldError] = []
    total = sum(spec.array.count if spec.array else 1 for spec in specs)
    if total > MAX_BATCH:
        message = f"the request makes {total} jobs, and {MAX_BATCH} are allowed at once; send several requests"
        errors.append(FieldError(field="jobs", message=message))
    for spec, prefix in zip(specs, prefixes, strict=True):
        if spec.queue not in queues:
            message = f"there is no queue {spec.queue!r}; there are: {', '.join(queues)}"
            errors.append(FieldError(field=f"{prefix}queue", message=message))
    waits, faults = dependencies.resolve(tx, person, specs, lock=lock)
    errors += [
        FieldError(field=prefixes[fault.spec] + fault.error.field, message=fault.error.message) for fault in faults
    ]
    if errors:
        words = [f"{error.field}: {error.message}" if prefixes[0] else error.message for error in errors[:3]]
        raise Invalid("; ".join(words), errors=errors[:SHOWN_FAULTS])
    return waits


def _take(
    tx: Connection,
    source: Source,
    specs: Sequence[JobSpec],
    *,
    prefixes: Sequence[str],
    queues: Sequence[str],
    power: PowerRules,
    now: datetime,
    new_id: NewId,
) -> list[BatchItem]:
    waits = check(tx, source.person, specs, prefixes=prefixes, queues=queues, lock=True)
    _check_code(tx, source.owner_id, specs, prefixes=prefixes)
    nevers = why_never(tx, specs, power)
    refused = [
        FieldError(field=f"{prefix}require_feasible", message="; ".join(reason.message for reason in never))
        for spec, prefix, never in zip(specs, prefixes, nevers, strict=True)
        if spec.require_feasible and never
    ]
    if refused:
        raise Impossible(refused[0].message, errors=refused[:SHOWN_FAULTS] if prefixes[0] else ())
    items: list[BatchItem] = []
    arrays: list[dict[str, object]] = []
    rows: list[dict[str, object]] = []
    edges: list[dict[str, object]] = []
    for spec, wait, never in zip(specs, waits, nevers, strict=True):
        first, beyond = _verdicts(spec, wait, never)
        array_id = new_id("array") if spec.array else None
        if spec.array:
            arrays.append(
                {
                    "id": array_id,
                    "user_id": source.owner_id,
                    "count": spec.array.count,
                    "limit": spec.array.limit,
                    "submitted_at": now,
                }
            )
        limit = spec.array.limit if spec.array else None
        row = _row(spec, source, held=bool(wait.open), now=now)
        for index in range(spec.array.count if spec.array else 1):
            job_id = new_id("job")
            place = {"array_id": array_id, "array_index": index} if spec.array else {}
            verdict = first if limit is None or index < limit else beyond
            rows.append({**row, **place, "id": job_id, "verdict": verdict.model_dump(mode="json")})
            edges += [
                {"job_id": job_id, "parent_id": parent, "on_success": on_success, "met": False}
                for parent, on_success in wait.open.items()
            ]
        items.append(BatchItem(id=array_id or str(rows[-1]["id"]), verdict=first))
    array_store.add_arrays(tx, arrays)
    store.add_jobs(tx, rows)
    dependency_store.add_dependencies(tx, edges)
    facts = {"resubmitted_from": source.origin.id} if source.origin else {}
    ids = [str(row["id"]) for row in rows]
    store.add_events(tx, ids, kind="submitted", now=now, user=source.person.name, **facts)
    notify(tx, "cycle")
    return items


def _check_code(tx: Connection, owner_id: str, specs: Sequence[JobSpec], *, prefixes: Sequence[str]) -> None:
    """Raises Invalid for every archive of code that the owner has not uploaded."""
    missing = archives.missing(tx, owner_id, [spec.code for spec in specs if spec.code])
    errors = [
        FieldError(field=f"{prefix}code", message=f"no archive {spec.code} was uploaded; send it to /v1/archives first")
        for spec, prefix in zip(specs, prefixes, strict=True)
        if spec.code in missing
    ]
    errors += [
        FieldError(field=f"{prefix}requirements", message="it names a file inside `code`, and there is none")
        for spec, prefix in zip(specs, prefixes, strict=True)
        if spec.requirements and not spec.code
    ]
    if errors:
        raise Invalid(errors[0].message, errors=errors[:SHOWN_FAULTS])


def _verdicts(spec: JobSpec, wait: dependencies.Waits, never: Sequence[Reason]) -> tuple[VerdictView, VerdictView]:
    """The first word on the job; and on those of an array that are beyond its limit."""
    outcome = "impossible" if any(reason.code != NEVER_WITHIN_BUDGET for reason in never) else "waiting"
    reasons = [*never, *([wait.reason] if wait.open else [])]
    first = VerdictView(outcome=outcome, reasons=reasons or [verdicts.NOT_WEIGHED_YET])
    if spec.array is None or spec.array.limit is None:
        return first, first
    return first, VerdictView(outcome=outcome, reasons=[*reasons, verdicts.array_limit(spec.array.limit)])


def _row(spec: JobSpec, source: Source, *, held: bool, now: datetime) -> dict[str, object]:
    return {
        "user_id": source.owner_id,
        "name": spec.name,
        "queue": spec.queue,
        "priority": spec.priority,
        "spec": spec.model_dump(mode="json"),
        "signature": run_times.signature(spec),
        "state": (JobState.HELD if held else JobState.QUEUED).value,
        "epoch": 0,
        "version": 1,
        "cancel_requested": False,
        "array_id": None,
        "array_index": source.origin.array_index if source.origin else None,
        "origin_id": source.origin.id if source.origin else None,
        "hold": False,
        "losses": 0,
        "faults": 0,
        "submitted_at": now,
    }


def _hash(kind: str, *parts: str) -> bytes:
    """What tells one request from another. Fields that a later version adds do not change it while they are unset."""
    return hashlib.sha256("\0".join((kind, *parts)).encode()).digest()


def _known(tx: Connection, person: Person, key: str | None, request_hash: bytes) -> list[str]:
    """What the request with this key has made before; nothing if it is new."""
    answer = store.find_answer(tx, user_id=person.id, key=key) if key is not None else None
    if answer is None:
        return []
    if answer.request_hash != request_hash:
        raise IdempotencyMismatch(
            f"the idempotency key {key!r} was used for job {answer.ids[0]} with another spec; use a fresh key"
        )
    return list(answer.ids)


def _keep(
    tx: Connection, person: Person, key: str | None, request_hash: bytes, ids: Sequence[str], now: datetime
) -> None:
    if key is None:
        return
    try:
        store.keep_answer(tx, user_id=person.id, key=key, request_hash=request_hash, ids=ids, now=now)
    except IntegrityError as error:
        raise KeyInUse from error
