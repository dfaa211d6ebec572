"""The SDK: one method for each thing the service can be asked.

    from ergon.client import Client
    from protocol.jobs import JobSpec

    with Client() as client:
        job = client.submit(JobSpec(name="hello", command=["python", "train.py"], nodes=2))
        print(client.wait(job.id).state)

The values it takes and gives are those of the package `protocol`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Literal, Self, TypeVar

import httpx

from ergon.accounts import Accounts
from ergon.connection import PATIENT_TRIES, TRIES, Connection, Parameters, ViewT, fresh_key, parse, segment
from ergon.credentials import resolve
from ergon.errors import ErgonError, Unreachable, WaitTimedOut
from protocol.accounts import IdentityView, ServiceView
from protocol.alarms import AlarmPage, AlarmView
from protocol.batch import BatchRequest, BatchView, DryRunRequest, DryRunView
from protocol.cycles import CycleDetail, CyclePage, CycleView
from protocol.jobs import (
    ArrayView,
    EventPage,
    EventView,
    JobPage,
    JobSpec,
    JobView,
    LogView,
    MetricPage,
    MetricPoint,
    OutputList,
    PriorityChange,
)
from protocol.nodes import DrainRequest, NodePage, NodeView, PowerBudgetView, SwitchOnRequest
from protocol.reports import AllocationReport
from protocol.states import FINAL_JOB_STATES, JobState

Stream = Literal["stdout", "stderr"]
PageT = TypeVar("PageT", AlarmPage, JobPage, EventPage, MetricPage, NodePage, CyclePage)

FIRST_POLL_S = 0.1
LONGEST_POLL_S = 2.0


class Client:
    """A connection to one service as one person. Safe to use from several threads; close it, or use it with `with`.

    Every call repeats itself a few times while nothing answers or the service says to come back. That is safe: reads
    change nothing, and whatever changes something carries an `Idempotency-Key`.

    Every method raises `Unreachable`, `UnexpectedAnswer`, `Unauthorised`, or another `RequestRefused`; those that
    name a job, node or cycle raise `NotFound` for one that does not exist or is somebody else's.
    """

    def __init__(
        self,
        server: str | None = None,
        token: str | None = None,
        *,
        ca: str | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`server` and `token` default to ERGON_SERVER and ERGON_TOKEN, then to the file that `ergon up` writes.

        `ca` is a file with the certificate that vouches for the server's; ERGON_CA, or those that the system trusts.
        Raises NotConfigured if no server is known or one of them cannot be used.
        """
        self._connection = Connection(resolve(server, token, ca=ca), transport=transport, sleep=sleep)
        self._sleep = sleep
        self.accounts = Accounts(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._connection.close()

    @property
    def server(self) -> str:
        """The address in use."""
        return self._connection.server

    def version(self) -> ServiceView:
        """What is listening. Needs no token."""
        return self._get("/v1/version", ServiceView)

    def me(self) -> IdentityView:
        """Whose token this is."""
        return self._get("/v1/me", IdentityView)

    def submit(self, spec: JobSpec, *, key: str | None = None) -> JobView:
        """Submit a job. The answer comes once it is stored, with the first verdict.

        `key` makes the call repeatable: the same key with the same spec gives the same job again. Without one a fresh
        key is made. Raises RequestRefused with type `urn:ergon:impossible` if the spec says `require_feasible` and no
        present node could run it, `urn:ergon:invalid` for a spec the service does not accept.
        """
        body = spec.model_dump_json(exclude_defaults=True)
        return parse(JobView, self._connection.post("/v1/jobs", body, key=key or fresh_key()))

    def submit_many(self, specs: Sequence[JobSpec], *, key: str | None = None) -> BatchView:
        """Submit up to 10,000 jobs in one request: all are taken or none. Errors name `jobs.17.nodes`.

        The answer has one item for each spec, with the id of the job or of the array. `key` is as with `submit`.
        """
        body = BatchRequest(jobs=list(specs)).model_dump_json(exclude_defaults=True)
        return parse(BatchView, self._connection.post("/v1/jobs/batch", body, key=key or fresh_key()))

    def dry_run(self, specs: Sequence[JobSpec]) -> DryRunView:
        """What would become of up to 100 jobs if they were submitted now. Nothing is stored."""
        body = DryRunRequest(jobs=list(specs)).model_dump_json(exclude_defaults=True)
        return parse(DryRunView, self._connection.post("/v1/jobs/dry-run", body, key=fresh_key()))

    def resubmit(self, job_id: str, *, key: str | None = None) -> JobView:
        """Run a job that has ended once more: a new job with the same spec.

        Raises RequestRefused with type `urn:ergon:job-not-ended` if it has not ended.
        """
        return parse(JobView, self._connection.post(f"{_job_path(job_id)}/resubmit", None, key=key or fresh_key()))

    def hold(self, job_id: str) -> JobView:
        """Keep a waiting job from starting until it is released.

        Raises RequestRefused with type `urn:ergon:job-started` or `urn:ergon:job-ended` if it waits no more.
        """
        return parse(JobView, self._connection.post(f"{_job_path(job_id)}/hold", None, key=fresh_key()))

    def release(self, job_id: str) -> JobView:
        """Take back a hold. A job that waits for other jobs stays held until they have ended.

        Raises RequestRefused with type `urn:ergon:job-ended` if it has ended.
        """
        return parse(JobView, self._connection.post(f"{_job_path(job_id)}/release", None, key=fresh_key()))

    def preempt(self, job_id: str) -> JobView:
        """Take a running job's devices away; it goes back to the queue and continues from its latest checkpoint.

        Raises RequestRefused with type `urn:ergon:job-waits` or `urn:ergon:job-ended` if it has no devices.
        """
        return parse(JobView, self._connection.post(f"{_job_path(job_id)}/preempt", None, key=fresh_key()))

    def set_priority(self, job_id: str, priority: int) -> JobView:
        """Move a job in line. Raises RequestRefused with type `urn:ergon:job-ended` if it has ended."""
        body = PriorityChange(priority=priority).model_dump_json()
        return parse(JobView, self._connection.change("PATCH", _job_path(job_id), body))

    def array(self, array_id: str) -> ArrayView:
        """One array with the states of its jobs; `jobs(array=...)` lists these."""
        return self._get(_array_path(array_id), ArrayView)

    def cancel_array(self, array_id: str) -> ArrayView:
        """Ask for every job of an array to end.

        Raises RequestRefused with type `urn:ergon:job-ended` if all have ended already.
        """
        return parse(ArrayView, self._connection.post(f"{_array_path(array_id)}/cancel", None, key=fresh_key()))

    def ship(self, archive: bytes, digest: str) -> bool:
        """Upload an archive of code, a tar.gz with this SHA-256 in hexadecimal; False if the service has it already.

        A spec then names it as `code`. Raises RequestRefused with type `urn:ergon:archive-quota` if there is no room.
        """
        path = f"/v1/archives/{digest}"
        if self._connection.exists(path):
            return False
        self._connection.put(path, archive)
        return True

    def outputs(self, job_id: str) -> OutputList:
        """What the members of a job have stored, the latest attempt first."""
        return self._get(f"{_job_path(job_id)}/outputs", OutputList)

    def output(self, job_id: str, member: int, *, epoch: int | None = None) -> Iterator[bytes]:
        """What one member has stored, as blocks of a tar.gz; of its latest attempt unless `epoch` names one."""
        return self._connection.blocks(f"{_job_path(job_id)}/outputs/{member}", {"epoch": epoch})

    def job(self, job_id: str) -> JobView:
        """One job."""
        return self._get(_job_path(job_id), JobView)

    def jobs(
        self,
        *,
        states: Sequence[JobState] = (),
        user: str | None = None,
        queue: str | None = None,
        name: str | None = None,
        array: str | None = None,
        folded: bool | None = None,
        page_size: int | None = None,
    ) -> Iterator[JobView]:
        """Jobs, newest first, page by page as they are read. A user sees own jobs, an administrator all.

        `folded` shows each array as its first job, with the states of all in `array.states`.
        """
        query = {"state": [state.value for state in states], "user": user, "queue": queue, "name": name}
        query |= {"array": array, "folded": folded}
        for page in self._pages("/v1/jobs", JobPage, {**query, "limit": page_size}):
            yield from page.items

    def cancel(self, job_id: str, *, key: str | None = None) -> JobView:
        """Ask for the end of a job; it may still be stopping when this returns.

        Raises RequestRefused with type `urn:ergon:job-ended` if it has ended already.
        """
        return parse(JobView, self._connection.post(f"{_job_path(job_id)}/cancel", None, key=key or fresh_key()))

    def wait(
        self, job_id: str, *, timeout_s: float | None = None, look: Callable[[JobView], None] = lambda _job: None
    ) -> JobView:
        """The job once it has ended, however it ended; `look` sees it now and then before. Survives a restart of the
        service.

        Raises WaitTimedOut after `timeout_s`; the job goes on then.
        """
        waited_s, pause_s = 0.0, FIRST_POLL_S
        while (job := self._get(_job_path(job_id), JobView, tries=PATIENT_TRIES)).state not in FINAL_JOB_STATES:
            if timeout_s is not None and waited_s >= timeout_s:
                raise WaitTimedOut(f"job {job_id} is still {job.state} after {timeout_s:g} s; it goes on")
            look(job)
            self._sleep(pause_s)
            waited_s, pause_s = waited_s + pause_s, min(1.5 * pause_s, LONGEST_POLL_S)
        return job

    def logs(
        self, job_id: str, *, epoch: int | None = None, rank: int | None = None, stream: Stream | None = None
    ) -> Iterator[LogView]:
        """What the ranks have written so far."""
        query = {"epoch": epoch, "rank": rank, "stream": stream, "follow": False}
        for line in self._connection.lines(f"{_job_path(job_id)}/logs", query):
            if line:
                yield parse(LogView, line)

    def follow_logs(
        self, job_id: str, *, epoch: int | None = None, rank: int | None = None, stream: Stream | None = None
    ) -> Iterator[LogView]:
        """What the ranks have written and go on to write, until the job has ended. Survives a restart of the service:
        pieces that were already given are not given again.
        """
        query = {"epoch": epoch, "rank": rank, "stream": stream, "follow": True}
        given: dict[tuple[int, int, str], int] = {}
        failures = 0
        while True:
            try:
                for line in self._connection.lines(f"{_job_path(job_id)}/logs", query):
                    failures = 0
                    if not line:
                        continue
                    piece = parse(LogView, line)
                    source = (piece.epoch, piece.rank, piece.stream)
                    if piece.offset > given.get(source, -1):
                        given[source] = piece.offset
                        yield piece
                # A service that shuts down ends the stream just as politely as one that has sent everything.
                if self.job(job_id).state in FINAL_JOB_STATES:
                    return
            except Unreachable:
                if failures >= PATIENT_TRIES:
                    raise
            failures += 1
            self._connection.pause(failures)

    def events(self, job_id: str) -> Iterator[EventView]:
        """What happened to a job, oldest first."""
        for page in self._pages(f"{_job_path(job_id)}/events", EventPage, {}):
            yield from page.items

    def metrics(self, job_id: str, *, name: str | None = None, rank: int | None = None) -> Iterator[MetricPoint]:
        """What the ranks reported, oldest first."""
        for page in self._pages(f"{_job_path(job_id)}/metrics", MetricPage, {"name": name, "rank": rank}):
            yield from page.items

    def nodes(self) -> Iterator[NodeView]:
        """The nodes and who holds their devices."""
        for page in self._pages("/v1/nodes", NodePage, {}):
            yield from page.items

    def power_budgets(self) -> Sequence[PowerBudgetView]:
        """What groups of nodes may draw, and what they do by the planner's count."""
        return self._get("/v1/nodes?limit=1", NodePage).power_budgets

    def node(self, name: str) -> NodeView:
        """One node."""
        return self._get(f"/v1/nodes/{segment(name)}", NodeView)

    def cordon(self, name: str) -> NodeView:
        """Keep new work away from a node; what runs there goes on. Administrators only."""
        return self._node_action(name, "cordon")

    def uncordon(self, name: str) -> NodeView:
        """Let a node take work again. Administrators only."""
        return self._node_action(name, "uncordon")

    def confirm_down(self, name: str) -> NodeView:
        """Say that a node which is not heard of is off: its jobs run again elsewhere at once. Administrators only."""
        return self._node_action(name, "confirm-down")

    def switch_on(self, name: str, *, keep: bool = False) -> NodeView:
        """Switch a node on that is off or lost; with `keep` no plan switches it off again. Administrators only."""
        return self._node_action(name, "on", SwitchOnRequest(keep=keep).model_dump_json())

    def switch_off(self, name: str) -> NodeView:
        """Switch a node off as soon as nothing runs there any more, and leave it off. Administrators only."""
        return self._node_action(name, "off")

    def drain(self, name: str, *, deadline_s: float) -> NodeView:
        """Keep new work away from a node; what still runs there after `deadline_s` is stopped and requeued.

        Administrators only.
        """
        return self._node_action(name, "drain", DrainRequest(deadline_s=deadline_s).model_dump_json())

    def _node_action(self, name: str, action: str, body: str | None = None) -> NodeView:
        return parse(NodeView, self._connection.post(f"/v1/nodes/{segment(name)}/{action}", body, key=fresh_key()))

    def alarms(self) -> Iterator[AlarmView]:
        """What an administrator should look at."""
        for page in self._pages("/v1/alarms", AlarmPage, {}):
            yield from page.items

    def report(self, start: datetime | None = None, end: datetime | None = None) -> AllocationReport:
        """Who was allocated what, what stood idle, and the energy; the last 24 hours unless told otherwise.

        Both ends carry a time zone. A user sees the own line only.
        """
        return self._get("/v1/reports/allocation", AllocationReport, _window(start, end) | {"format": "json"})

    def report_csv(self, start: datetime | None = None, end: datetime | None = None) -> str:
        """The same as CSV."""
        return self._connection.get("/v1/reports/allocation", _window(start, end) | {"format": "csv"}).text

    def cycles(self, *, page_size: int | None = None) -> Iterator[CycleView]:
        """The planning cycles, newest first."""
        for page in self._pages("/v1/cycles", CyclePage, {"limit": page_size}):
            yield from page.items

    def cycle(self, cycle_id: int) -> CycleDetail:
        """One cycle with its problem and its plan."""
        return self._get(f"/v1/cycles/{cycle_id}", CycleDetail)

    def _get(self, path: str, view: type[ViewT], query: Parameters | None = None, *, tries: int = TRIES) -> ViewT:
        return parse(view, self._connection.get(path, query, tries=tries))

    def _pages(self, path: str, view: type[PageT], query: Parameters) -> Iterator[PageT]:
        page = self._get(path, view, query)
        yield page
        while page.next:
            page = self._get(path, view, {**query, "cursor": page.next})
            yield page


def _array_path(array_id: str) -> str:
    return f"/v1/arrays/{segment(array_id)}"


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{segment(job_id)}"


def _window(start: datetime | None, end: datetime | None) -> dict[str, str | None]:
    for name, moment in (("start", start), ("end", end)):
        if moment is not None and moment.tzinfo is None:
            raise ErgonError(f"{name} {moment} has no time zone; give one, such as {moment.isoformat()}Z")
    return {"start": start.isoformat() if start else None, "end": end.isoformat() if end else None}
