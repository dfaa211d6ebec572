"""What this node runs: starting supervisors, watching and stopping them, and settling what they leave.

The journal says what was started, `/proc` says what still lives. A supervisor is known by its number and start time,
so that another process that gets the number is never taken for it.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from protocol.states import EndReason
from workers import containers, files, procfs
from workers.cgroups import Group, Groups
from workers.journal import Journal
from workers.launch import kept_environment
from workers.limits import Limits, limit_folders
from workers.reconcile import Exit, Phase, Run, Stop
from workers.starters import Starters
from workers.supervisor import UNCLEAN_AFTER_S

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
SUPERVISOR = f"import sys; sys.path.append({str(ROOT)!r}); from workers import supervisor; supervisor.main(sys.argv[1])"
"""Runs isolated and without site packages (-I -S): it starts in 20 ms, and nothing of a user's comes in between."""

SWEEP_S = 1.0
"""How long one try waits for killed processes to be gone, in s."""
AGAIN_S = 5.0
"""How long after it the next try to kill what does not die, in s: both take the agent's time."""


@dataclass(slots=True, kw_only=True)
class _Held:
    """What is known of one attempt so far. Records appear and are complete; they never change, but for `exit`."""

    folder: Path
    launch: dict
    child: subprocess.Popen[bytes] | None = None
    forked: tuple[int, int] | None = None  # number and start time of a supervisor that a starter has forked
    claim: dict | None = None
    started: bool = False
    stop: Stop | None = None
    exit: Exit | None = None
    settle_s: float = 0.0  # not before, in s of the monotonic clock
    killed_s: float | None = None  # when what its supervisor left was first killed


class Runs:
    """The runs of this node, adopted from the journal when the agent starts."""

    def __init__(
        self,
        journal: Journal,
        boot_id: str,
        groups: Groups | None,
        container_runtime: str | None = None,
        starters: Starters | None = None,
    ) -> None:
        """`groups` is None where this agent may have no control groups, `container_runtime` where nothing runs any."""
        self._starters = starters
        self._journal = journal
        self._boot_id = boot_id
        self._groups = groups
        self._container_runtime = container_runtime
        self._held: dict[str, _Held] = {}
        for attempt in journal.attempts():
            folder = journal.attempt_folder(attempt)
            launch = files.read_record(str(folder / "launch.json"))
            if launch is None:  # the machine crashed before the record was durable, so before anything was started
                journal.delete(attempt)
                continue
            self._held[attempt] = _Held(folder=folder, launch=launch, stop=_stop_in(folder))
            log.info("found attempt %s in the state folder", attempt)
        for attempt in groups.attempts() if groups else ():
            if attempt not in self._held:
                log.warning("killing what is left of attempt %s, which is not in the state folder", attempt)
                self.clear(attempt)

    def refresh(self) -> dict[str, Run]:
        """Look at the records and at `/proc`, and say where every run stands."""
        return {attempt: self._look(attempt, held) for attempt, held in self._held.items()}

    def held(self) -> set[str]:
        """Attempts with a record here."""
        return set(self._held)

    def folder(self, attempt: str) -> Path:
        return self._held[attempt].folder

    def launch(self, attempt: str) -> dict:
        """Its launch record."""
        return self._held[attempt].launch

    def ranks(self, attempt: str) -> list[int]:
        """The numbers of the ranks this node runs of the attempt."""
        return [rank["rank"] for rank in self._held[attempt].launch["ranks"]]

    def member(self, attempt: str) -> int:
        """This node's number in the gang."""
        return int(self._held[attempt].launch["env"]["GROUP_RANK"])

    def cpu_totals(self) -> dict[str, float]:
        """CPU time in s that all processes of each attempt used since its start."""
        table = procfs.read_processes() if any(held.exit is None for held in self._held.values()) else {}
        return {attempt: self._cpu_total(held, table) for attempt, held in self._held.items()}

    def promised_ports(self) -> set[int]:
        """Rendezvous ports of runs that are not over: their rank 0 may not listen yet."""
        return {int(held.launch["env"]["MASTER_PORT"]) for held in self._held.values() if held.exit is None}

    def start(self, attempt: str, launch: dict, credentials: Mapping[str, str | None] | None = None) -> None:
        """Write the launch record, then start the supervisor. Never twice for one attempt.

        Args:
            credentials: how to reach the service, for the preparation of an attempt that needs one. Nobody else gets
                to see them.

        Raises:
            workers.journal.StartedBefore: it has a launch record.
            OSError: the launch record cannot be written; nothing was started.
        """
        folder = self._journal.attempt_folder(attempt)
        launch = launch | {
            "bell": str(self._journal.bell),
            "lease": str(self._journal.lease),
            "boot_id": self._boot_id,
            "group": self._groups.group(attempt).path if self._groups else None,
            "limits": limit_folders(attempt, self._groups),
        }
        self._journal.create(attempt, launch)
        held = _Held(folder=folder, launch=launch)
        self._held[attempt] = held
        said = json.dumps(dict(credentials or {})).encode() if launch.get("prepare") else None
        held.forked = self._fork_supervisor(held, said)
        if held.forked is None:
            self._execute_supervisor(held, said)
        log.info("started attempt %s: %s", attempt, launch["argv"][0])

    def _fork_supervisor(self, held: _Held, said: bytes | None) -> tuple[int, int] | None:
        """Have a starter fork it, with `said` on its standard input; None if none can."""
        if self._starters is None or not held.launch.get("starter"):
            return None
        key, stdin = _starter_key(held.launch), None
        if said is not None:
            stdin, pipe = os.pipe2(os.O_CLOEXEC)
            with open(pipe, "wb") as file:
                file.write(said)  # a pipe holds more
        try:
            return self._starters.supervise(key, held.folder, stdin)
        finally:
            if stdin is not None:
                os.close(stdin)

    @staticmethod
    def _execute_supervisor(held: _Held, said: bytes | None) -> None:
        with open(held.folder / "supervisor.log", "w") as output:
            try:
                held.child = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", SUPERVISOR, str(held.folder)],
                    stdin=subprocess.DEVNULL if said is None else subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env=kept_environment(os.environ),
                    start_new_session=True,
                )
            except OSError as error:
                output.write(f"cannot start a process: {error.strerror}\n")  # a lost run, to be settled
        if held.child is not None and held.child.stdin is not None and said is not None:
            with contextlib.suppress(BrokenPipeError), held.child.stdin as pipe:
                pipe.write(said)

    def stop(self, attempt: str, stop: Stop, message: str) -> None:
        """Ask the supervisor to stop its ranks. One that has not claimed its run yet finds the record when it does."""
        held = self._held[attempt]
        self._journal.write_stop(attempt, stop, message)
        held.stop = stop
        log.info("stopping attempt %s: %s", attempt, message or stop.reason.value)
        self._signal(held, signal.SIGTERM)
        self._signal(held, signal.SIGCONT)

    def kill_supervisor(self, attempt: str) -> None:
        """Kill a supervisor that does not stop. Its ranks are left to `settle`."""
        log.warning("the supervisor of attempt %s did not stop in time and is killed", attempt)
        held = self._held[attempt]
        if held.child is not None:
            held.child.kill()
        if held.forked is not None:
            procfs.send_signal(*held.forked, signal.SIGKILL)
        self._signal(held, signal.SIGKILL)

    def settle(self, attempt: str) -> None:
        """Kill what a lost supervisor left, and write the exit record in its place. May be repeated until clean.

        What was killed may execute a little longer. There is no record before it is gone, or has had as long for that
        as supervisors give it: the record lets the job's next attempt start elsewhere.
        """
        held = self._held[attempt]
        if time.monotonic() < held.settle_s:
            return
        if held.claim is None and held.launch["boot_id"] == self._boot_id and not self._forbid_start(held):
            return  # it lives after all, and will be seen at the next look
        held.killed_s = held.killed_s or time.monotonic()
        clean = self.clear(attempt)
        if held.exit is None:
            if not clean and time.monotonic() < held.killed_s + UNCLEAN_AFTER_S:
                held.settle_s = time.monotonic() + SWEEP_S
                return
            reason = held.stop.reason if held.stop else EndReason.UNKNOWN_START
            held.exit = Exit(reason=reason, message=self._why_lost(held), exit_code=None, clean=clean, cpu_s=0.0)
        held.exit = replace(held.exit, clean=clean)
        held.settle_s = time.monotonic() + AGAIN_S
        record = {
            "reason": held.exit.reason.value,
            "message": held.exit.message,
            "exit_code": held.exit.exit_code,
            "clean": clean,
            "cpu_s": held.exit.cpu_s,
        }
        files.write_record(str(held.folder / "exit.json"), record)
        log.warning("settled attempt %s: %s%s", attempt, held.exit.message, "" if clean else "; a process is left")

    def clear(self, attempt: str) -> bool:
        """Kill every process that is in the attempt's control group or carries its mark in its environment, and remove
        its containers. True if none is left."""
        mark = f"ERGON_ATTEMPT={attempt}".encode()
        groups = self._groups_of(attempt)
        give_up_s = time.monotonic() + SWEEP_S
        while True:
            marked = procfs.pids_with_variable(mark)
            if not marked and all(group.is_empty() for group in groups):
                break
            if time.monotonic() > give_up_s:
                return False
            for group in groups:
                group.kill()
            for pid in marked:
                process = procfs.read_process(pid)
                if process is not None:
                    procfs.send_signal(pid, process.start, signal.SIGKILL)
            time.sleep(0.01)
        for group in groups:
            group.remove()
        Limits(limit_folders(attempt, self._groups), 0).remove()
        return self._remove_containers(attempt)

    def _remove_containers(self, attempt: str) -> bool:
        """True if none is left. To be called when no process is left that could make one."""
        runtime = self._container_runtime
        if attempt in self._held:
            made = files.read_record(str(self._held[attempt].folder / containers.MADE))
            runtime = made["runtime"] if made else None
        return runtime is None or containers.remove(runtime, attempt, os.environ)

    def _groups_of(self, attempt: str) -> list[Group]:
        """Those this agent and its neighbours made, and the one that is on record: the agent may have moved since."""
        groups = self._groups.every_group(attempt) if self._groups else []
        path = self._held[attempt].launch.get("group") if attempt in self._held else None
        return groups if path is None or path in {group.path for group in groups} else [*groups, Group(path)]

    def forget(self, attempt: str) -> None:
        """Delete everything of it. What it ran will likely be run again: now that nobody waits for it, a starter is
        made for that."""
        launch = self._held.pop(attempt).launch
        self._journal.delete(attempt)
        log.info("forgot attempt %s", attempt)
        if self._starters is not None and launch.get("starter"):
            self._starters.warm(_starter_key(launch))

    def _look(self, attempt: str, held: _Held) -> Run:
        alive = self._lives(held)
        # Records are read after the process was looked at: one that ended in between has written all it ever will.
        if held.claim is None:
            held.claim = files.read_record(str(held.folder / "claim.json"))
            alive = alive or self._lives(held)
        if not held.started:
            held.started = (held.folder / "started.json").exists()
        if (held.exit is None or not held.exit.clean) and (record := files.read_record(str(held.folder / "exit.json"))):
            held.exit = _exit_from(record)
        return Run(
            attempt=attempt,
            epoch=held.launch["epoch"],
            phase=_phase(held, alive=alive),
            stop_grace_s=held.launch["stop_grace_s"],
            outlasts_lease=held.launch.get("outlasts_lease", False),  # a record of before has none
            stop=held.stop,
            exit=held.exit,
            quiet=(held.folder / "quiet.json").exists(),
        )

    @staticmethod
    def _cpu_total(held: _Held, table: dict[int, procfs.Process]) -> float:
        if held.exit is not None:
            return held.exit.cpu_s
        root = table.get(held.claim["pid"]) if held.claim is not None else None
        if root is None or held.claim is None or root.start != held.claim["start"]:
            return 0.0
        return root.cpu_s + sum(process.cpu_s for process in procfs.descendants(root.pid, table))

    def _lives(self, held: _Held) -> bool:
        if held.child is not None and held.child.poll() is None:
            return True
        if held.forked is not None and procfs.is_alive(*held.forked):
            return True
        if held.claim is None or held.launch["boot_id"] != self._boot_id:
            return False
        return procfs.is_alive(held.claim["pid"], held.claim["start"])

    def _signal(self, held: _Held, number: signal.Signals) -> None:
        """Signal the supervisor if it has claimed its run: before that it has no handlers."""
        claim = files.read_record(str(held.folder / "claim.json"))
        if claim is not None and held.launch["boot_id"] == self._boot_id:
            procfs.send_signal(claim["pid"], claim["start"], number)

    @staticmethod
    def _forbid_start(held: _Held) -> bool:
        """Take the claim that a supervisor needs. False if one was faster."""
        held.claim = {"pid": 0, "start": 0}
        if files.create_record(str(held.folder / "claim.json"), held.claim):
            return True
        held.claim = None
        return False

    def _why_lost(self, held: _Held) -> str:
        if held.launch["boot_id"] != self._boot_id:
            return "the machine was restarted under it"
        if held.started:
            return "its supervisor was killed"
        lines = b""
        with contextlib.suppress(FileNotFoundError):
            lines = (held.folder / "supervisor.log").read_bytes()[-1_000:].strip()
        return f"its supervisor ended before it started a rank: {lines.decode(errors='replace') or 'it was killed'}"


def _phase(held: _Held, *, alive: bool) -> Phase:
    if held.exit is not None:
        return Phase.ENDED if alive or held.exit.clean else Phase.LOST
    if not alive:
        return Phase.LOST
    return Phase.RUNNING if held.started else Phase.STARTING


def _starter_key(launch: dict) -> tuple[str, str]:
    return launch["starter"]["user"], launch["starter"]["threads"]


def _stop_in(folder: Path) -> Stop | None:
    record = files.read_record(str(folder / "stop.json"))
    if record is None:
        return None
    return Stop(at_s=record["at_s"], grace_s=record["grace_s"], reason=EndReason(record["reason"]))


def _exit_from(record: dict) -> Exit:
    return Exit(
        reason=EndReason(record["reason"]),
        message=record["message"],
        exit_code=record["exit_code"],
        clean=record["clean"],
        cpu_s=record["cpu_s"],
    )
