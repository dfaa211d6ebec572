"""The agent: hears what its node should hold, makes it so, and tells what it sees.

One thread acts and calls the service; another parks in the long poll and rings a bell. Supervisors ring the same one.
"""

import logging
import os
import random
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from protocol.caches import CacheEntry
from protocol.nodes import Limit, NodeReport
from protocol.states import EndReason
from protocol.sync import Assignment, MemberReport, RegisterResponse, StreamChunk, SyncRequest, SyncResponse
from protocol.version import PROTOCOL_VERSION
from workers.bell import Bell
from workers.cache import Shelf
from workers.caps import CannotCap, Caps
from workers.checkpoints import Checkpoints
from workers.exchange import EXIT_REFUSED, EXIT_REPLACED, Backoff, Doorbell, Exchange, Forgotten, Refused, Unavailable
from workers.expiry import Expiry
from workers.health import Health
from workers.inventory import offers_whole_machine
from workers.journal import Journal
from workers.launch import launch_record
from workers.logs import Shipper
from workers.meter import CpuClock, Meter, Rapl, Reading
from workers.outputs import Outputs
from workers.reconcile import (
    Action,
    ChooseRendezvous,
    ClearUnknown,
    Exit,
    ForgetRun,
    KillSupervisor,
    Lease,
    Phase,
    Run,
    SettleRun,
    StartRun,
    Stop,
    StopRun,
    lease_from,
    observe,
    reconcile,
)
from workers.rendezvous import LOOPBACK, NoFreePort, choose_port, interface_of, join_address
from workers.runs import Runs

log = logging.getLogger(__name__)

TICK_S = 0.2
"""How often output is looked for, and at most sent, while something runs."""
LONGEST_SILENCE_S = 10.0
"""A node that has nothing to say calls this often all the same, however long its lease: one that is not heard for
three such times gets nothing new."""
FAREWELL_S = 5.0
"""How long an agent that stopped everything tries to say so before it leaves anyway."""
MOST_INSISTS = 3
PEACE_S = 60.0
"""How often an agent registers again that another registration has displaced, until it had its node in peace for so
long: two that live do not take the node from each other for ever, and a few late messages displace none."""
MAX_READINGS = 10_000
MAX_CLEARED = 10_000
MAX_MESSAGE = 2_000
"""Characters of a report's message, as `protocol.sync` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says about one agent."""

    name: str
    sample_s: float
    stop_attempts_on_exit: bool
    interface: str | None = None
    disk_bytes: int | None = None
    """What each member of an attempt may have on this node's disk."""
    checkpoints: Path | None = None
    """Folder that all nodes share, for the checkpoints of all jobs; without one they go to the service."""
    limits: Sequence[Limit] = ()
    """What the kernel limits here."""


class Agent:
    """One node's agent, from registration to exit."""

    def __init__(
        self,
        *,
        settings: Settings,
        report: NodeReport,
        exchange: Exchange,
        doorbell: Doorbell,
        bell: Bell,
        journal: Journal,
        runs: Runs,
        shelf: Shelf,
        outputs: Outputs,
        credentials: Mapping[str, str | None],
        now_s: Callable[[], float],
        chance: random.Random,
        health: Health | None = None,
        checkpoints: Checkpoints | None = None,
        expiry: Expiry | None = None,
        caps: Caps | None = None,
    ) -> None:
        """Everything it does to the machine and hears of the service, it does and hears through its arguments.

        Args:
            bell: ends a wait of this agent, whoever rings it.
            shelf: what the node keeps of code and data.
            credentials: what `Transfer` needs, for the preparation of attempts.
            now_s: CLOCK_BOOTTIME in s.
            health: looks after the devices, if anybody does.
            checkpoints: looks after what ranks save, if anybody does.
            expiry: deletes what old jobs have saved, where nodes share a folder.
            caps: sets power limits of GPUs, if there are any.
        """
        self._settings = settings
        self._report = report
        self._exchange = exchange
        self._doorbell = doorbell
        self._bell = bell
        self._journal = journal
        self._runs = runs
        self._outputs = outputs
        self._checkpoints = checkpoints
        self._expiry = expiry
        self._health = health
        self._told_unfit: Mapping[str, str] = {}
        self._caps = caps
        self._owes_limits = False
        self._owes_caps = False
        self._shelf = shelf
        self._credentials = credentials
        self._now_s = now_s
        self._backoff = Backoff(chance)
        self._shipper = Shipper()
        self._gpus = [device.id for device in report.devices if device.kind != "cpu"]
        self._meter = Meter(
            every_s=settings.sample_s,
            gpus=self._gpus,
            rapl=Rapl() if offers_whole_machine(report) else None,
            clock=CpuClock(self._runs.cpu_totals()),
            now_s=now_s(),
        )
        self._readings: deque[Reading] = deque(maxlen=MAX_READINGS)
        self._num_read = 0
        self._seq = 0
        self._assignments: Sequence[Assignment] | None = None
        self._version: str | None = None
        self._outdated = False
        self._rendezvous: dict[str, str] = {}
        self._cleared: dict[str, str] = {}
        self._lease: Lease | None = None
        self._lease_s = 0.0
        self._told: list[MemberReport] = []
        self._renewed_s = float("-inf")
        self._sent_s = float("-inf")
        self._retry_s = float("-inf")
        self._insists, self._insisted_s = 0, float("-inf")
        self._closing = False
        self._farewell_s = float("inf")

    def run(self, on_ready: Callable[[str], None]) -> None:
        """Serve until told to leave.

        Args:
            on_ready: called once with the node's name, when the service has taken this agent.

        Raises:
            Refused: the service will not have this agent.
        """
        if self._health:
            self._health.start()
        self._settle_caps(self._runs.refresh())
        if not self._join():
            return
        self._outputs.start()
        if self._checkpoints:
            self._checkpoints.start()
        if self._expiry:
            self._expiry.start()
        on_ready(self._settings.name)
        while True:
            self._hear()
            runs = self._act()
            self._measure()
            if self._closing and self._may_leave(runs):
                self._say_goodbye(runs)
                return
            try:
                changed = self._sync(runs)
                if self._doorbell.refused:
                    raise self._doorbell.refused
            except Refused as refused:
                if not self._may_start_over(refused):
                    raise
                log.warning("registering again: %s", refused)
                if not self._start_over():
                    return
                continue
            if not changed:
                self._bell.wait(self._next_s(runs) - self._now_s())

    def leave(self) -> None:
        """Tell it to leave. May be called from a signal."""
        self._closing = True
        self._bell.ring()

    # -- joining and leaving

    def _join(self) -> bool:
        """Register, and listen under the new incarnation. False if told to leave before."""
        registration = self._register()
        if registration is None:
            return False
        self._incarnation = registration.incarnation
        self._lease_s = registration.lease_s
        self._numbered = registration.numbered_reports
        self._tells_checkpoints = registration.checkpoints
        self._stores_checkpoints = registration.stores_checkpoints
        self._tells_out_of_memory = registration.knows_out_of_memory
        self._tells_folder = registration.state_folders
        self._tells_cache = registration.knows_caches
        self._shelf.forget()
        self._owes_limits = registration.knows_limits
        self._owes_caps = self._caps is not None and registration.knows_caps
        self._doorbell.begin(registration.incarnation)
        return True

    def _may_start_over(self, refused: Refused) -> bool:
        """A few times also when another registration came after ours: it may have been a copy of our own that was late,
        or one of an agent that is dead. If it was another agent's, that one insists as well, and who was there first
        yields first.
        """
        if isinstance(refused, Forgotten):
            return True
        if refused.exit_code != EXIT_REPLACED:
            return False
        if self._now_s() - self._insisted_s > PEACE_S:
            self._insists = 0
        self._insists, self._insisted_s = self._insists + 1, self._now_s()
        return self._insists <= MOST_INSISTS

    def _start_over(self) -> bool:
        """Join again, and hear anew what to hold: the service has forgotten what it said. Ranks go on meanwhile, as
        far as the lease goes. False if told to leave."""
        self._assignments = self._version = None
        self._told = []
        self._renewed_s = float("-inf")
        return self._join()

    def _register(self) -> RegisterResponse | None:
        """Present this node, trying until the service answers. None if told to leave before."""
        while not self._closing:
            answer = self._exchange.register(self._report)
            if isinstance(answer, RegisterResponse):
                if answer.node != self._settings.name:
                    raise Refused(
                        EXIT_REFUSED,
                        f"the token belongs to node {answer.node!r}, not {self._settings.name!r}; "
                        "check --name and --token-file",
                    )
                self._backoff.reset()
                log.info("registered as %s, incarnation %d", answer.node, answer.incarnation)
                return answer
            delay_s = self._backoff.next_delay_s(answer)
            log.warning("cannot register, next try in %.1f s: %s", delay_s, answer.message)
            until_s = self._now_s() + delay_s
            while not self._closing and self._now_s() < until_s:
                self._bell.wait(until_s - self._now_s())
        return None

    def _may_leave(self, runs: Mapping[str, Run]) -> bool:
        """Attempts go on without an agent, unless it was started with --stop-attempts-on-exit."""
        if not self._settings.stop_attempts_on_exit:
            return True
        if any(run.phase is not Phase.ENDED for run in runs.values()):
            return False
        self._farewell_s = min(self._farewell_s, self._now_s() + FAREWELL_S)
        told = self._observe(runs) == self._told and all(run.shipped for run in runs.values())
        return told or self._now_s() >= self._farewell_s

    def _say_goodbye(self, runs: Mapping[str, Run]) -> None:
        """The node's devices are gone from the plan at once. Not while anything is held here: the service would take
        it for lost and start it elsewhere, although it goes on here until its lease ends."""
        self._doorbell.close()
        if not runs and self._assignments is not None:
            self._read_meter()
            self._call(self._observe(runs), [], leaving=True)

    # -- acting

    def _act(self) -> dict[str, Run]:
        """Bring the node nearer to what it should hold; say what it holds now."""
        actions = reconcile(
            self._assignments,
            self._look(),
            rendezvous=self._rendezvous,
            cleared=self._cleared,
            lease=self._lease,
            now_s=self._now_s(),
            closing=self._closing and self._settings.stop_attempts_on_exit,
        )
        for action in actions:
            self._perform(action)
        runs = self._look()
        self._settle_caps(runs)
        self._shelf.look({attempt: run.phase for attempt, run in runs.items()})
        return runs

    def _settle_caps(self, runs: Mapping[str, Run]) -> None:
        """Put back the power limits of devices on which nothing is left."""
        if self._caps:
            self._caps.settle({run.attempt for run in runs.values() if run.exit is None or not run.exit.clean})

    def _look(self) -> dict[str, Run]:
        """Every run; whether an ended one is shipped is looked up, of others it does not matter yet."""
        runs = self._runs.refresh()
        return {attempt: run if run.exit is None else self._look_back(run, run.exit) for attempt, run in runs.items()}

    def _look_back(self, run: Run, end: Exit) -> Run:
        """A run that has ended: shipped once the service has its log and its output."""
        self._outputs.collect(run.attempt, self._runs.member(run.attempt), self._runs.folder(run.attempt))
        note = self._outputs.note(run.attempt)
        if self._checkpoints:
            self._checkpoints.watch(run.attempt, self._runs.launch(run.attempt))
            if not self._checkpoints.is_settled(run.attempt):
                return run
        if note is None or not self._shipper.is_shipped(run.attempt):
            return run
        unsaved = self._checkpoints.note(run.attempt) if self._checkpoints else ""
        message = "; ".join(part for part in (end.message, note, unsaved) if part)[:MAX_MESSAGE]
        reason = end.reason
        if reason == EndReason.OUT_OF_MEMORY and not self._tells_out_of_memory:
            reason = EndReason.FAILED
        return replace(run, shipped=True, exit=replace(end, reason=reason, message=message))

    def _perform(self, action: Action) -> None:
        match action:
            case StartRun(assignment=assignment):
                self._start(assignment)
            case StopRun(attempt=attempt, reason=reason, grace_s=grace_s, message=message):
                self._runs.stop(attempt, Stop(at_s=self._now_s(), grace_s=grace_s, reason=reason), message)
            case KillSupervisor(attempt=attempt):
                self._runs.kill_supervisor(attempt)
            case SettleRun(attempt=attempt):
                self._runs.settle(attempt)
            case ForgetRun(attempt=attempt):
                self._meter.clock.close(attempt, self._runs.cpu_totals()[attempt])
                self._shipper.drop(attempt)
                self._outputs.drop(attempt)
                if self._checkpoints:
                    self._checkpoints.drop(attempt)
                self._runs.forget(attempt)
                self._clear(attempt, "the node ran it and has forgotten it since")
            case ClearUnknown(attempt=attempt):
                if self._runs.clear(attempt):
                    self._clear(attempt, "the node has no record of it")
            case ChooseRendezvous(attempt=attempt):
                self._choose_rendezvous(attempt)

    def _start(self, assignment: Assignment) -> None:
        attempt = assignment.attempt
        address = self._report.address if assignment.members > 1 else LOOPBACK
        try:
            rendezvous = assignment.rendezvous or join_address(address, self._free_port(attempt))
            launch = launch_record(
                assignment,
                folder=self._journal.attempt_folder(attempt),
                python=sys.executable,
                interface=self._interface(assignment),
                rendezvous=rendezvous,
                environment=os.environ,
                disk_bytes=self._settings.disk_bytes,
                runtime=self._report.container_runtime,
                checkpoints=self._settings.checkpoints if self._tells_checkpoints else None,
                stores=self._stores_checkpoints and self._settings.checkpoints is None,
            )
            self._cap(assignment)
            self._runs.start(attempt, launch, self._credentials)
        except (OSError, NoFreePort) as error:
            log.error("cannot start attempt %s: %s", attempt, error)
            self._owes_caps = self._owes_caps or isinstance(error, CannotCap)
            self._clear(attempt, f"the node could not start it: {error}")

    def _cap(self, assignment: Assignment) -> None:
        """Lower the power limits of its devices, if that is asked for."""
        if assignment.cap_w is None:
            return
        if self._caps is None:
            raise CannotCap("this node has no GPU whose power limit could be set")
        self._caps.apply(assignment.attempt, [device.id for device in assignment.devices], assignment.cap_w)

    def _interface(self, assignment: Assignment) -> str | None:
        """What carries the gang: the loopback where it has one member only, else the interface of the node."""
        if assignment.members == 1:
            return interface_of(LOOPBACK)
        return self._settings.interface or interface_of(self._report.address)

    def _choose_rendezvous(self, attempt: str) -> None:
        try:
            self._rendezvous[attempt] = join_address(self._report.address, self._free_port(attempt))
        except NoFreePort as error:
            log.error("cannot start attempt %s: %s", attempt, error)
            self._clear(attempt, f"the node could not start it: {error}")

    def _free_port(self, attempt: str) -> int:
        offered = {int(address.rpartition(":")[2]) for address in self._rendezvous.values()}
        return choose_port(attempt, offered | self._runs.promised_ports())

    def _clear(self, attempt: str, why: str) -> None:
        """Nothing of the attempt is here and nothing of it will be. The oldest such notes are dropped in the end."""
        self._cleared[attempt] = why
        while len(self._cleared) > MAX_CLEARED:
            del self._cleared[next(iter(self._cleared))]

    # -- telling

    def _measure(self) -> None:
        if self._now_s() >= self._meter.next_s():
            self._read_meter()

    def _read_meter(self) -> None:
        fresh = self._meter.read(self._runs.cpu_totals(), self._now_s())
        self._readings.extend(fresh)
        self._num_read += len(fresh)

    def _observe(self, runs: Mapping[str, Run]) -> list[MemberReport]:
        return observe(
            self._assignments or (),
            runs,
            rendezvous=self._rendezvous,
            cleared=self._cleared,
            checkpoints=self._newest_checkpoints(runs) if self._tells_checkpoints else {},
        )

    def _newest_checkpoints(self, runs: Mapping[str, Run]) -> dict[str, int]:
        found: dict[str, int] = {}
        for attempt in runs if self._checkpoints else ():
            assert self._checkpoints is not None
            self._checkpoints.watch(attempt, self._runs.launch(attempt))
            step = self._checkpoints.newest(attempt)
            if step is not None:
                found[attempt] = step
        return found

    def _sync(self, runs: Mapping[str, Run]) -> bool:
        """Call the service if there is something to tell or to hear. True if that may have changed what to do."""
        now = self._now_s()
        if now < self._retry_s:
            return False
        reports = self._observe(runs)
        ending = any(run.exit is not None and not run.shipped for run in runs.values())
        hurry = ending or reports != self._told
        chunks = self._shipper.collect() if hurry or now >= self._sent_s + TICK_S else []
        news = reports != self._told or chunks or self._readings or self._news_of_devices() is not None
        news = news or self._news_of_cache() is not None
        due = news or self._outdated or now >= self._renew_s()
        return self._call(reports, chunks) if due else False

    def _news_of_devices(self) -> Mapping[str, str] | None:
        """The devices that are unfit, unless the service knows."""
        unfit = self._health.unfit if self._health else {}
        return None if unfit == self._told_unfit else unfit

    def _news_of_cache(self) -> list[CacheEntry] | None:
        """All that the cache holds, unless the service knows."""
        return self._shelf.news() if self._tells_cache else None

    def _call(self, reports: list[MemberReport], chunks: list[StreamChunk], *, leaving: bool = False) -> bool:
        """One call of the service, now. False if it did not answer."""
        self._sent_s = self._now_s()
        self._seq += 1
        readings = list(self._readings)
        unfit = self._news_of_devices()
        request = SyncRequest(
            protocol=PROTOCOL_VERSION,
            incarnation=self._incarnation,
            seq=self._seq if self._numbered else None,
            state_folder=self._journal.identity if self._tells_folder else None,
            leaving=leaving,
            unfit=None if unfit is None else dict(unfit),
            limits=list(self._settings.limits) if self._owes_limits else None,
            caps=self._caps.able(self._gpus) if self._caps and self._owes_caps else None,
            cache=self._news_of_cache(),
            members=reports,
            chunks=chunks,
            samples=[reading.aged(self._sent_s) for reading in readings],
            first_sample=self._num_read - len(readings) if self._numbered else None,
        )
        answer = self._exchange.sync(request)
        if isinstance(answer, Unavailable):
            delay_s = self._backoff.next_delay_s(answer, most_s=max(0.2, self._lease_s / 8))
            self._retry_s = self._now_s() + delay_s
            log.warning("the service does not answer, next try in %.1f s: %s", delay_s, answer.message)
            return False
        self._backoff.reset()
        for _reading in readings:
            self._readings.popleft()
        self._told = reports
        self._told_unfit = self._told_unfit if unfit is None else unfit
        self._owes_limits = self._owes_caps = False
        self._shelf.told()
        self._take_in(answer, self._sent_s)
        return True

    def _take_in(self, answer: SyncResponse, sent_s: float) -> None:
        self._renewed_s = sent_s
        self._lease_s = answer.lease_s
        self._lease = lease_from(sent_s, answer.lease_s)
        self._journal.write_lease(self._lease)
        self._hold(answer)
        listed = {assignment.attempt for assignment in answer.assignments}
        self._rendezvous = {attempt: address for attempt, address in self._rendezvous.items() if attempt in listed}
        held = self._runs.held()
        for assignment in answer.assignments:
            if assignment.attempt in held:
                self._follow(assignment)

    def _hear(self) -> None:
        """Take what the long poll heard, if nothing newer can be known here.

        A poll that was parked with the version held now brings what came after it: an attempt leaves the list on this
        agent's own word only, so no later answer can have had this version again. What was parked with another
        version may be older than what is held; the agent calls itself then.
        """
        while not self._doorbell.news.empty():
            news = self._doorbell.news.get()
            if news.since == self._version:
                self._hold(news.answer)
            else:
                self._outdated = True

    def _hold(self, answer: SyncResponse) -> None:
        self._assignments = answer.assignments
        self._version = answer.version
        self._outdated = False
        self._doorbell.tell(answer.version)

    def _follow(self, assignment: Assignment) -> None:
        attempt = assignment.attempt
        self._shipper.follow(attempt, self._runs.folder(attempt), self._runs.ranks(attempt), assignment.offsets)

    # -- waiting

    def _renew_s(self) -> float:
        return self._renewed_s + min(self._lease_s / 4, LONGEST_SILENCE_S)

    def _next_s(self, runs: Mapping[str, Run]) -> float:
        """When to look again although no bell rang."""
        now = self._now_s()
        next_s = min(self._meter.next_s(), max(self._renew_s(), self._retry_s), self._farewell_s)
        if self._retry_s > now:
            next_s = min(next_s, self._retry_s)
        if any(run.phase is not Phase.ENDED or not run.shipped for run in runs.values()):
            next_s = min(next_s, now + TICK_S)
        return next_s
