"""A simulated machine: its processes and its disk, below the real agent.

`Folder` stands for a state folder with its records and has the faces of `workers.journal.Journal` and
`workers.runs.Runs`; the supervisor's life is told here in events. What really ran, and when in true time, is written
down by the ranks themselves and known to nobody else: the invariants are judged by it.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from protocol.nodes import DeviceReport, NodeReport
from protocol.states import EndReason
from tests.invariants import Execution
from tests.simulation.world import TICK_S, Bell, World
from workers.reconcile import Exit, Lease, Phase, Run, Stop

CLOCK_DRIFT = 0.01
"""How far the rate of a machine's clock may be from the true one. Far more than any real oscillator."""
SLOWEST_DEATH_S = 3.0
"""From SIGKILL until a process executes nothing any more. Leases hold for what dies within `MARGIN_S`."""
UNCLEAN_AFTER_S = 10.0
FULL = OSError(28, "No space left on device")


@dataclass
class Record:
    """What the folder of one attempt holds. After a boot only `launch` and `exit` are surely there."""

    launch: dict
    boot: int
    claimed: bool = False
    started: bool = False
    stop: Stop | None = None
    exit: Exit | None = None
    killed_at: float | None = None


@dataclass
class Group:
    """The processes of one attempt on a machine."""

    record: Record
    folder: "Folder"
    supervised: bool = True
    executions: list[Execution] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    ending: EndReason | None = None
    killed: bool = False


class Machine:
    """Hardware, kernel and processes of one node."""

    def __init__(self, world: World, name: str, slots: int, root: Path) -> None:
        self.world = world
        self.name = name
        self.root = root
        self.rate = 1.0 + world.chance.uniform(-CLOCK_DRIFT, CLOCK_DRIFT)
        self.booted_at = -world.chance.uniform(0.0, 1e4)
        self.boot = 1
        self.disk_full = False
        self.groups: dict[str, Group] = {}
        self.executions: list[Execution] = []
        self.holders: dict[str, str] = {}
        self.violations: list[str] = []
        self.report = NodeReport(
            address="127.0.0.1",
            boot_id="",
            cpu_model="Simulated CPU",
            cpu_cores=slots,
            cpu_threads=1,
            memory_bytes=slots << 30,
            devices=[DeviceReport(id=f"GPU-{name}-{slot}", kind="h100", index=slot) for slot in range(slots)],
        )

    def inventory(self) -> NodeReport:
        return self.report.model_copy(update={"boot_id": f"{self.name}-boot-{self.boot}"})

    def clock_s(self) -> float:
        """CLOCK_BOOTTIME."""
        return (self.world.now - self.booted_at) * self.rate

    def after(self, local_s: float, group: Group, event: str, *arguments: object) -> None:
        """Let something happen to a group of processes after so many seconds of this machine's clock, if it lives."""

        def happen() -> None:
            if any(group is each for each in self.groups.values()):
                getattr(self, event)(group, *arguments)

        self.world.at(max(0.0, local_s) / self.rate + TICK_S, happen)

    # -- the life of a supervisor and its ranks

    def launch(self, record: Record, folder: "Folder") -> None:
        attempt = record.launch["attempt"]
        if attempt in self.groups:
            self.violations.append(f"I6: attempt {attempt} was started on {self.name} while it runs there")
        group = self.groups[attempt] = Group(record, folder)
        self.after(self.world.chance.uniform(0.02, 0.5), group, "claim")

    def claim(self, group: Group) -> None:
        record = group.record
        if record.claimed or not group.supervised:
            self.vanish(group)
            return
        record.claimed = True
        if record.stop is not None:
            self.end(group, record.stop.reason, record.stop.grace_s)
        elif self.fence_at_s(group) <= self.clock_s():
            self.end(group, EndReason.FENCED, 0.0)
        else:
            self.start_ranks(group)

    def start_ranks(self, group: Group) -> None:
        launch = group.record.launch
        for rank in launch["ranks"]:
            execution = Execution(
                job=launch["env"]["ERGON_JOB_ID"],
                epoch=launch["epoch"],
                rank=rank["rank"],
                node=self.name,
                started=self.world.now,
            )
            group.executions.append(execution)
            self.executions.append(execution)
        for device in launch["env"]["CUDA_VISIBLE_DEVICES"].split(","):
            if device in self.holders:
                self.violations.append(f"I3: {launch['attempt']} found {device} held by {self.holders[device]}")
            self.holders[device] = launch["attempt"]
            group.devices.append(device)
        group.record.started = True
        self.world.say(self.name, f"ranks of {launch['attempt']} run on {','.join(group.devices)}")
        self.write(group, b"begins\n")
        group.folder.bell.ring()
        code = int(launch["env"]["SIM_EXIT"])
        self.after(float(launch["env"]["SIM_RUN_S"]), group, "finish", code)
        self.after(group.folder.lease.fence_at_s - self.clock_s(), group, "watch_lease")

    @staticmethod
    def fence_at_s(group: Group) -> float:
        """When the ranks must begin to end, by this machine's clock, as far as their supervisor knows."""
        return float("inf") if group.record.launch["outlasts_lease"] else group.folder.lease.fence_at_s

    def finish(self, group: Group, code: int) -> None:
        if not group.ending:
            self.write(group, b"is done\n")
            group.ending = EndReason.COMPLETED if code == 0 else EndReason.FAILED
            self.ranks_gone(group, code)

    def watch_lease(self, group: Group) -> None:
        """The supervisor wakes up at the end of the lease it knows, and reads whether there is a new one."""
        left_s = self.fence_at_s(group) - self.clock_s()
        if not group.supervised or left_s == float("inf"):
            return
        if left_s > 0:
            self.after(left_s, group, "watch_lease")
        elif group.ending:
            self.after(group.folder.lease.grace_s, group, "kill")
        else:
            grace_s = min(group.record.launch["stop_grace_s"], group.folder.lease.grace_s)
            self.end(group, EndReason.FENCED, grace_s)

    def end(self, group: Group, reason: EndReason, grace_s: float) -> None:
        """SIGTERM, and SIGKILL after `grace_s`. Ranks obey soon, late or never."""
        if group.ending:
            return
        group.ending = reason
        polite_s = self.world.chance.choice([0.05, grace_s * 0.5, grace_s * 2])
        if not group.executions or polite_s < grace_s:
            self.after(polite_s if group.executions else 0.0, group, "ranks_gone", None)
        else:
            self.after(grace_s, group, "kill")

    def kill(self, group: Group) -> None:
        """SIGKILL to every process. One that hangs in the kernel executes nothing, but holds its devices."""
        if group.killed:
            return
        group.killed = True
        death_s = self.world.chance.uniform(0.0, SLOWEST_DEATH_S)
        if self.world.chance.random() < 0.1:
            self.world.fault("unkillable process", self.name, group.record.launch["attempt"])
            self.after(death_s, group, "stop_executing")
            self.after(UNCLEAN_AFTER_S, group, "write_exit", None, False)
            self.after(UNCLEAN_AFTER_S + self.world.chance.uniform(1.0, 20.0), group, "ranks_gone", None)
        else:
            self.after(death_s, group, "ranks_gone", None)

    def stop_executing(self, group: Group) -> None:
        for execution in group.executions:
            if execution.ended is None:
                execution.ended = self.world.now

    def ranks_gone(self, group: Group, code: int | None) -> None:
        """No process of the ranks is left, which its supervisor sees if there is one."""
        self.stop_executing(group)
        for device in group.devices:
            del self.holders[device]
        group.devices = []
        if group.supervised:
            self.write_exit(group, code, True)
        self.vanish(group)

    def write_exit(self, group: Group, code: int | None, clean: bool) -> None:
        if not group.supervised:
            return
        if self.disk_full:
            self.world.fault("exit record not written", self.name)
            group.supervised = False
            return
        assert group.ending is not None
        group.record.exit = Exit(reason=group.ending, message="", exit_code=code, clean=clean, cpu_s=0.0)
        self.world.say(self.name, f"exit of {group.record.launch['attempt']}: {group.ending} clean={clean}")
        group.folder.bell.ring()

    def vanish(self, group: Group) -> None:
        self.groups = {attempt: each for attempt, each in self.groups.items() if each is not group}

    def write(self, group: Group, line: bytes) -> None:
        for rank in group.record.launch["ranks"]:
            with (group.folder.attempt_folder(group.record.launch["attempt"]) / f"rank-{rank['rank']}.stdout").open(
                "ab"
            ) as file:
                file.write(line)

    # -- what happens to it

    def sweep(self, attempt: str) -> bool:
        """As `workers.runs.sweep`: kill what carries the attempt's mark, and wait a little."""
        if (group := self.groups.get(attempt)) is not None:
            group.supervised = False
            group.ending = group.ending or EndReason.UNKNOWN_START
            self.kill(group)
            self.world.pause(1.0)
        return attempt not in self.groups

    def kill_supervisor(self, attempt: str) -> None:
        if (group := self.groups.get(attempt)) is not None:
            group.supervised = False
            if not group.executions:
                self.vanish(group)
            for folder in [group.folder]:
                folder.bell.ring()

    def reboot(self) -> None:
        """Every process ends at once. What was not made durable may be lost."""
        for group in list(self.groups.values()):
            group.supervised = False
            self.ranks_gone(group, None)
        self.boot += 1
        self.booted_at = self.world.now


class Folder:
    """A state folder, its memory and what an agent does through it."""

    def __init__(self, machine: Machine, path: Path) -> None:
        self.machine = machine
        self.path = path
        self.identity = path.name
        self.records: dict[str, Record] = {}
        self.lease = Lease(fence_at_s=0.0, grace_s=0.0)
        self.bell = Bell(machine.world, machine.rate)

    # -- as a journal

    def attempt_folder(self, attempt: str) -> Path:
        return self.path / attempt

    def write_lease(self, lease: Lease) -> None:
        self._write()
        self.lease = lease

    # -- as runs

    def refresh(self) -> dict[str, Run]:
        return {attempt: self._look(attempt, record) for attempt, record in self.records.items()}

    def held(self) -> set[str]:
        return set(self.records)

    def folder(self, attempt: str) -> Path:
        return self.attempt_folder(attempt)

    def ranks(self, attempt: str) -> list[int]:
        return [rank["rank"] for rank in self.records[attempt].launch["ranks"]]

    def member(self, attempt: str) -> int:
        return int(self.records[attempt].launch["env"]["GROUP_RANK"])

    def cpu_totals(self) -> dict[str, float]:
        return dict.fromkeys(self.records, 0.0)

    def promised_ports(self) -> set[int]:
        return {int(record.launch["env"]["MASTER_PORT"]) for record in self.records.values() if record.exit is None}

    def start(self, attempt: str, launch: dict, credentials: object) -> None:
        assert attempt not in self.records
        self._write()
        self.attempt_folder(attempt).mkdir(parents=True, exist_ok=True)
        record = self.records[attempt] = Record(launch=launch | {"attempt": attempt}, boot=self.machine.boot)
        self.machine.launch(record, self)

    def stop(self, attempt: str, stop: Stop, message: str) -> None:
        self._write()
        self.records[attempt].stop = stop
        group = self.machine.groups.get(attempt)
        if group is not None and group.supervised and group.record.claimed:
            self.machine.end(group, stop.reason, stop.grace_s)

    def kill_supervisor(self, attempt: str) -> None:
        self.machine.kill_supervisor(attempt)

    def settle(self, attempt: str) -> None:
        record = self.records[attempt]
        record.claimed = True
        record.killed_at = record.killed_at or self.machine.world.now
        clean = self.machine.sweep(attempt)
        if not clean and record.exit is None and self.machine.world.now < record.killed_at + UNCLEAN_AFTER_S:
            return
        reason = record.stop.reason if record.stop else EndReason.UNKNOWN_START
        self._write()
        end = record.exit or Exit(reason=reason, message="", exit_code=None, clean=clean, cpu_s=0.0)
        record.exit = replace(end, clean=clean)

    def clear(self, attempt: str) -> bool:
        return self.machine.sweep(attempt)

    def forget(self, attempt: str) -> None:
        del self.records[attempt]

    def lose_what_is_not_durable(self) -> None:
        """A boot has come between."""
        self.lease = Lease(fence_at_s=0.0, grace_s=0.0)
        for record in self.records.values():
            record.claimed = record.started = False
            record.stop = None

    def _look(self, attempt: str, record: Record) -> Run:
        group = self.machine.groups.get(attempt)
        alive = group is not None and group.supervised and group.record is record
        if record.exit is not None:
            phase = Phase.ENDED if alive or record.exit.clean else Phase.LOST
        else:
            phase = (Phase.RUNNING if record.started else Phase.STARTING) if alive else Phase.LOST
        return Run(
            attempt=attempt,
            epoch=record.launch["epoch"],
            phase=phase,
            stop_grace_s=record.launch["stop_grace_s"],
            outlasts_lease=record.launch["outlasts_lease"],
            stop=record.stop,
            exit=record.exit,
        )

    def _write(self) -> None:
        if self.machine.disk_full:
            raise FULL
