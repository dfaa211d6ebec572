"""The process that runs one member of an attempt, and outlives the agent that started it.

It starts the ranks, keeps their output, watches the time limit and the lease, and ends only when no process of the
member is left. Everything it is told and everything it finds out is a record in the attempt's folder:

    launch.json    what to run; written by the agent before this process exists
    claim.json     pid and start time of this process; without it, nothing was ever started
    prepared.json  what `prepare.py` found out before the ranks start; of attempts that need it only
    containers.json  containers may have been made
    started.json   every rank runs
    quiet.json     no rank has said anything for as long as the job allows; gone again when one does
    stop.json      the agent wants it stopped; SIGTERM says: look
    exit.json      it is over

Standard library only, and little of that (no `typing`, no `subprocess`): a rank waits for every import here.
"""

import contextlib
import ctypes
import errno
import os
import select
import signal
import sys
import time

from workers import files, procfs, stalls
from workers.cgroups import Group
from workers.limits import Limits
from workers.usage import Usage

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
PREPARE_LIMIT_S = 3_600.0
"""The longest that fetching code and data and building an environment may take together."""
LONGEST_WAIT_S = 2.0
"""The kernel's timers stand still while the machine sleeps, deadlines do not: look at the clock at least this often."""
KILL_ROUND_S = 0.05
LATER_ROUND_S = 1.0
UNCLEAN_AFTER_S = 10.0
"""From the first SIGKILL until the end is reported although a process is left; looking for its end goes on."""
MOST_NAMED = 5
"""Processes that do not die, by number, in the message of an end."""
READ_BYTES = 65_536
RUNTIME_CODES = (125, 126, 127)
"""With these podman and docker end when they could not start what they were told to."""
KEPT_FREE_BYTES = 64 * 1024 * 1024
"""Output leaves so much of the disk free, or an eighth of a small one: records of ours must find room, or the agent
loses its lease and the job with it."""
MEMORY_SHORT = 3
"""As in `containers.py`, which takes too long to import."""
OOM_MARK = "oom"
"""podman 4.3 does not tell of that: its monitor makes this file in the folder that the container was started from."""
NAMED_STREAMS = 4
"""Streams that lost output on a full disk, by name, in the message of an end."""


def now_s() -> float:
    """Seconds since boot, those asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Ending:
    """Why the member ends; `kill_at_s` is when patience with its ranks is over."""

    def __init__(self, reason: str, message: str, kill_at_s: float, exit_code: int | None = None) -> None:
        self.reason = reason
        self.message = message
        self.kill_at_s = kill_at_s
        self.exit_code = exit_code


class Stream:
    """Moves the output of one rank from a pipe to a file. Past `cap` bytes or on an almost full disk it only counts."""

    def __init__(self, pipe: int, path: str, cap: int) -> None:
        self.pipe = pipe
        self.name = os.path.basename(path)
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.room = cap
        self.cap = cap
        self.dropped = 0
        self.fault = ""

    def pump(self) -> bool:
        """Move what is there, READ_BYTES at most. False once every process has closed its end of the pipe.

        Raises:
            BlockingIOError: nothing is there now.
        """
        data = os.read(self.pipe, READ_BYTES)
        kept = 0 if self.dropped else min(len(data), self.room)
        if kept > (room := room_on_disk(self.file)):
            kept, self.fault = room, "the disk of the node is almost full"
        if kept:
            kept = self._write(data[:kept])
        self.room -= kept
        self.dropped += len(data) - kept
        return bool(data)

    def close(self) -> None:
        if self.dropped:
            why = self.fault or f"the limit is {self.cap} bytes a stream"
            self._write(f"\n[ergon] {self.dropped} bytes of {self.name} were dropped here: {why}\n".encode())
        os.close(self.pipe)
        os.close(self.file)

    def note(self, text: str) -> None:
        """Add something of ours, whatever the cap."""
        self._write(text.encode())

    def _write(self, data: bytes) -> int:
        written = 0
        try:
            while written < len(data):
                written += os.write(self.file, data[written:])
        except OSError as error:
            self.fault = os.strerror(error.errno or 0)
        return written


def room_on_disk(file: int) -> int:
    """Bytes that output may still take where the open file lies."""
    disk = os.fstatvfs(file)
    kept_free = min(KEPT_FREE_BYTES, disk.f_blocks * disk.f_frsize // 8)
    return max(0, disk.f_bavail * disk.f_frsize - kept_free)


class StartError(Exception):
    """A rank could not be started. The message names the program and the remedy."""


def find_program(name: str, path: str) -> str:
    """The file that `name` means, looked up along `path` as a shell does.

    Raises:
        StartError: there is none.
    """
    if "/" in name:
        return name
    for folder in path.split(os.pathsep):
        candidate = os.path.join(folder or ".", name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    raise StartError(
        f"there is no program `{name}` on the node's PATH ({path}); install it there or give its absolute path"
    )


def describe_start_error(program: str, error: OSError) -> str:
    """What to do about an exec that failed."""
    if error.errno == errno.ENOENT:
        return f"`{program}` does not exist on the node, or the interpreter in its first line does not"
    if error.errno == errno.EACCES:
        return f"`{program}` may not be executed; give it the execute permission (chmod +x)"
    if error.errno == errno.ENOEXEC:
        return f"`{program}` is no program for this machine, or a script without a `#!` line; name its interpreter"
    return f"`{program}` could not be started: {os.strerror(error.errno or 0)}"


class Supervisor:
    """One member of an attempt, from its claim to its exit record."""

    def __init__(self, folder: str, launch: dict, image=None) -> None:
        """`image` is the `starter.Image` that this process is forked from, if it is."""
        self.folder = folder
        self.launch = launch
        self.image = image
        self.ranks: dict[int, int] = {}  # pid -> rank, while it runs
        self.codes: dict[int, int] = {}  # rank -> exit code
        self.failed: int | None = None  # the rank that failed first
        self.streams: dict[int, Stream] = {}  # pipe -> stream
        self.ending: Ending | None = None
        self.cut: list[str] = []  # streams that lost something on a full disk
        self.group: Group | None = None  # everything it starts is in there
        self.limits = Limits(launch.get("limits", {}), launch.get("memory_bytes", 0))  # a record of before has none
        self.stopped: dict[int, float] = {}  # pid of a rank that a signal keeps from running -> since when
        self.silence: stalls.Silence | None = None  # of jobs that say how long is too long
        self.quiet = False
        self.preparing: int | None = None  # pid, while it runs
        self.prepare_code = 0
        self.removing: int | None = None  # pid, while it runs
        self.remove_code = 0
        self.started_s = float("inf")  # the time limit counts from here
        self.usage = Usage(folder, now_s) if launch.get("disk") else None  # a record of before has none
        self.lease: dict = files.read_record(launch["lease"]) or {"fence_at_s": 0.0, "grace_s": 0.0}
        self.poll = select.epoll()
        self.bell, signal_pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.poll.register(self.bell, select.EPOLLIN)
        signal.set_wakeup_fd(signal_pipe, warn_on_full_buffer=False)
        self.stop_asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def run(self) -> None:
        """Start the ranks, wait for their end or a reason to end them, leave nothing behind, write the exit record."""
        self.stop_asked = self.stop_asked or os.path.exists(self._path("stop.json"))
        self._make_group()
        self.limits.make()
        if self.launch.get("prepare"):  # a record of before has none
            self._prepare()
        self._start_ranks()
        while not self._is_over():
            self._wait(self._next_deadline_s() - now_s())
            self._reap()
            self._listen()
            self._decide()
        clean = self._leave_nothing(UNCLEAN_AFTER_S, KILL_ROUND_S)
        assert self.ending is not None
        if not clean:
            left = procfs.descendants(os.getpid(), procfs.read_processes())
            words = [f"process {process.pid} does not die (state {process.state})" for process in left]
            self.ending.message = "; ".join(part for part in (self.ending.message, *words[:MOST_NAMED]) if part)
        self._close_streams()
        self._write_exit(clean=clean)
        if not clean:
            self._leave_nothing(float("inf"), LATER_ROUND_S)
            self._write_exit(clean=True)
        self.limits.remove()
        if self.group:
            self.group.remove()

    # -- starting

    def _make_group(self) -> None:
        """Make the member's control group, if the agent may have any. Without one everything goes on as well."""
        path = self.launch.get("group")  # a record of before has none
        if path is None:
            return
        group = Group(path)
        try:
            group.make()
            with group.inside():
                pass
        except OSError as error:
            sys.stderr.write(f"no control group {path}: {error.strerror}\n")
        else:
            self.group = group

    @contextlib.contextmanager
    def _inside_group(self):
        """What is started meanwhile starts in the control group. This process does not stay: it would kill itself."""
        with self.limits.inside(), self.group.inside() if self.group else contextlib.nullcontext():
            yield

    def _prepare(self) -> None:
        """Let `prepare.py` do its work, and take over what it found out."""
        needs = self.launch["prepare"]
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self._keep_output(read_end, f"rank-{self.launch['ranks'][0]['rank']}.stderr")
        try:
            # Its standard input is ours: there the agent has put how to reach the service.
            with self._inside_group():
                self.preparing = os.posix_spawn(
                    needs["argv"][0],
                    needs["argv"],
                    needs["env"],
                    file_actions=[(os.POSIX_SPAWN_DUP2, write_end, 1), (os.POSIX_SPAWN_DUP2, write_end, 2)],
                    setpgroup=0,
                    setsigmask=[],
                )
        except OSError as error:
            self._end("start_failed", describe_start_error(needs["argv"][0], error), grace_s=0)
        finally:
            os.close(write_end)
        give_up_s = now_s() + PREPARE_LIMIT_S
        while self.preparing is not None and not self.ending:
            self._wait(min(self._next_deadline_s(), give_up_s) - now_s())
            self._reap()
            self._decide()
            if now_s() >= give_up_s:
                self._end("start_failed", f"it was not prepared after {PREPARE_LIMIT_S:g} s", grace_s=0)
        prepared = files.read_record(self._path("prepared.json")) or {}
        if self.ending:
            return  # what still prepares is killed with the rest
        if self.prepare_code != 0 or "fault" in prepared:
            unsaid = f"its preparation ended with code {self.prepare_code}; its standard error tells more"
            self._end("start_failed", prepared.get("fault", unsaid), grace_s=0)
            return
        self.launch["argv"] = prepared["argv"]
        self.launch["env"] |= prepared["env"]
        for rank, own in zip(self.launch["ranks"], prepared.get("ranks", ()), strict=False):  # of containers only
            rank |= {"argv": own["argv"], "env": rank["env"] | own["env"]}

    def _start_ranks(self) -> None:
        self._decide()
        if self.ending:
            return
        argvs = [rank.get("argv", self.launch["argv"]) for rank in self.launch["ranks"]]
        program = argvs[0][0]
        try:
            program = find_program(program, self.launch["env"].get("PATH", os.defpath))
            with self._inside_group():
                for rank, argv in zip(self.launch["ranks"], argvs, strict=True):
                    self._start_rank(program, argv, rank["rank"], self.launch["env"] | rank["env"])
        except StartError as error:
            self._end("start_failed", str(error), grace_s=0)
        except OSError as error:
            self._end("start_failed", describe_start_error(program, error), grace_s=0)
        else:
            self.started_s = now_s()
            if self.launch.get("stall_timeout_s"):  # a record of before has none
                progress = [rank["env"]["ERGON_PROGRESS"] for rank in self.launch["ranks"]]
                self.silence = stalls.Silence(self.launch["stall_timeout_s"], progress, self.started_s)
            files.write_record(self._path("started.json"), {"pids": list(self.ranks)}, durable=False)
            files.ring(self.launch["bell"])

    def _start_rank(self, program: str, argv: list[str], rank: int, environment: dict[str, str]) -> None:
        """Start one rank as the leader of a process group of its own."""
        out, out_end = os.pipe2(os.O_CLOEXEC)
        err, err_end = os.pipe2(os.O_CLOEXEC)
        for pipe, name in ((out, "stdout"), (err, "stderr")):
            self._keep_output(pipe, f"rank-{rank}.{name}")
        try:
            # Without a control group a process is known by the environment that it was executed with.
            if self.image and self.group and self.image.fits(argv, environment):
                pid = self.image.fork(argv, environment, out_end, err_end, self.poll)
            else:
                pid = os.posix_spawn(
                    program,
                    argv,
                    environment,
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_DUP2, out_end, 1),
                        (os.POSIX_SPAWN_DUP2, err_end, 2),
                    ],
                    setpgroup=0,
                    setsigmask=[],
                    setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP],
                )
        finally:
            os.close(out_end)
            os.close(err_end)
        self.ranks[pid] = rank

    def _keep_output(self, pipe: int, name: str) -> None:
        """Move what comes out of `pipe` to the file of this name."""
        os.set_blocking(pipe, False)
        self.streams[pipe] = Stream(pipe, self._path(name), self.launch["cap_bytes"])
        self.poll.register(pipe, select.EPOLLIN)

    # -- watching

    def _listen(self) -> None:
        """Tell the agent when the ranks have been silent for too long, and when they are no longer. Whether the gang is
        silent only the service knows: often just one rank of all prints."""
        quiet = self.silence is not None and self.silence.is_too_long(now_s())
        if quiet == self.quiet:
            return
        self.quiet = quiet
        if quiet:
            files.write_record(self._path("quiet.json"), {}, durable=False)
        else:
            os.unlink(self._path("quiet.json"))
        files.ring(self.launch["bell"])

    def _decide(self) -> None:
        """See whether there is a reason to end. The first one stays; the end of the lease only cuts its patience."""
        if self.ending:
            if self._lease_is_over():
                self.ending.kill_at_s = min(self.ending.kill_at_s, self._fence_at_s() + self.lease["grace_s"])
            return
        grace_s = self.launch["stop_grace_s"]
        limit_s = self.launch["time_limit_s"]
        if self.failed is not None:
            code = self.codes[self.failed]
            told = describe_end(self.failed, code)
            if self.launch.get("container") and code in RUNTIME_CODES:
                told += "; so ends a container whose program could not be started, too: its standard error tells more"
            if self.limits.was_memory_short():
                self._end("out_of_memory", f"{told}; {self.launch['memory_message']}", grace_s, code)
            else:
                self._end("failed", told, grace_s, code)
        elif self.codes and not self.ranks:
            self._end("completed", "", grace_s, 0)
        elif self.stop_asked:
            stop = files.read_record(self._path("stop.json")) or {}
            self._end(stop.get("reason", "cancelled"), stop.get("message", ""), stop.get("grace_s", grace_s))
        elif limit_s is not None and now_s() >= self.started_s + limit_s:
            self._end("time_limit", f"it ran for {limit_s:g} s, its time limit", grace_s)
        elif self.usage is not None and self.usage.look() > self.launch["disk"]["bytes"]:
            self._end("disk_quota", self.launch["disk"]["message"], grace_s=0)
        elif self.stopped and now_s() >= min(self.stopped.values()) + stalls.STOPPED_LIMIT_S:
            rank = self.ranks[min(self.stopped, key=lambda pid: self.stopped[pid])]
            limit_s = stalls.STOPPED_LIMIT_S
            self._end("stalled", f"rank {rank} was stopped by a signal and did not go on for {limit_s:g} s", grace_s)
        elif self._lease_is_over():
            self._end("fenced", "the lease was not renewed in time", min(grace_s, self.lease["grace_s"]))

    def _end(self, reason: str, message: str, grace_s: float, exit_code: int | None = None) -> None:
        """Ask the ranks that are left to end."""
        if self.quiet:
            silent = f"nothing was written for {self.launch['stall_timeout_s']:g} s; where it hung is in its stderr"
            message = "; ".join(part for part in (message, silent) if part)
            self._dump_stacks()
        self.ending = Ending(reason, message, now_s() + grace_s, exit_code)
        for pid in self.ranks:
            for number in (signal.SIGTERM, signal.SIGCONT):  # a rank that is stopped cannot react before it continues
                try:
                    os.killpg(pid, number)
                except ProcessLookupError:
                    break

    def _dump_stacks(self) -> None:
        """Let every rank's standard error tell where it hangs."""
        for pid in () if self.launch.get("container") else self.ranks:
            stalls.ask_for_stacks(pid)  # a container's program would pass it on to a rank that may die of it
        until_s = now_s() + stalls.DUMP_S
        while now_s() < until_s:
            self._wait(until_s - now_s())
        ranks = {f"rank-{rank}.stderr": pid for pid, rank in self.ranks.items()}
        for stream in self.streams.values():
            if stream.name in ranks:
                stream.note(stalls.describe(ranks[stream.name]))

    def _lease_is_over(self) -> bool:
        """The agent moves the end of the lease in its record; it is read again only when the known end has come."""
        if now_s() < self._fence_at_s():
            return False
        self.lease = files.read_record(self.launch["lease"]) or self.lease
        return now_s() >= self._fence_at_s()

    def _fence_at_s(self) -> float:
        return float("inf") if self.launch.get("outlasts_lease") else self.lease["fence_at_s"]

    def _is_over(self) -> bool:
        return self.ending is not None and (not self.ranks or now_s() >= self.ending.kill_at_s)

    def _next_deadline_s(self) -> float:
        fence_at_s = self._fence_at_s()
        if self.ending:
            return self.ending.kill_at_s if now_s() >= fence_at_s else min(self.ending.kill_at_s, fence_at_s)
        limit_s = self.launch["time_limit_s"]
        next_s = fence_at_s if limit_s is None else min(fence_at_s, self.started_s + limit_s)
        if self.usage is not None:
            next_s = min(next_s, self.usage.next_s)
        if self.silence is not None and not self.quiet:
            next_s = min(next_s, self.silence.due_s())
        return min([next_s, *(since_s + stalls.STOPPED_LIMIT_S for since_s in self.stopped.values())])

    def _wait(self, seconds: float) -> None:
        """Until a signal, output, or `seconds` have passed. Moves the output that is there."""
        for pipe, _event in self.poll.poll(max(0.0, min(seconds, LONGEST_WAIT_S))):
            if pipe == self.bell:
                os.read(self.bell, 4096)
            elif not self.streams[pipe].pump():
                self.poll.unregister(pipe)
            elif self.silence is not None:
                self.silence.hear(now_s())

    def _on_stop(self, _number: int, _frame: object) -> None:
        self.stop_asked = True

    def _reap(self) -> None:
        """Take note of every child that ended, ranks and orphans of ranks alike, and of ranks that were stopped."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.stopped.pop(pid, None)
            if os.WIFSTOPPED(status) and pid in self.ranks:
                self.stopped[pid] = now_s()
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                continue
            if pid == self.preparing:
                self.preparing, self.prepare_code = None, os.waitstatus_to_exitcode(status)
            if pid == self.removing:
                self.removing, self.remove_code = None, os.waitstatus_to_exitcode(status)
            rank = self.ranks.pop(pid, None)
            if rank is not None:
                self.codes[rank] = os.waitstatus_to_exitcode(status)
                if self.codes[rank] != 0 and self.failed is None:
                    self.failed = rank

    # -- ending

    def _leave_nothing(self, patience_s: float, round_s: float) -> bool:
        """Remove every container, kill every process, looking every `round_s`. False if `patience_s` were not enough.

        What still prepares is killed first: it makes containers.
        """
        give_up_s = now_s() + patience_s
        if self.preparing is not None and not self._kill_all(patience_s, round_s):
            return False
        removed = self._remove_containers(give_up_s, round_s)
        return self._kill_all(max(0.0, give_up_s - now_s()), round_s) and removed

    def _remove_containers(self, give_up_s: float, round_s: float) -> bool:
        """Have the runtime remove them: what a daemon has started is nowhere below this process."""
        if not os.path.exists(self._path("containers.json")):
            return True
        argv = self.launch["container"]["remove"]
        while now_s() < give_up_s:
            self.removing = os.posix_spawn(argv[0], argv, self.launch["env"], setpgroup=0, setsigmask=[])
            while self.removing is not None and now_s() < give_up_s:
                self._wait(give_up_s - now_s())
                self._reap()
            if self.removing is None and self.remove_code in (0, MEMORY_SHORT):
                self._say_if_container_was_short()
                return True
            self._wait(round_s)
        return False

    def _say_if_container_was_short(self) -> None:
        """The limits of containers are their runtime's, and only the end tells whether one was reached."""
        short = self.remove_code == MEMORY_SHORT or os.path.exists(self._path(OOM_MARK))
        if short and self.ending is not None and self.ending.reason == "failed":
            self.ending.reason = "out_of_memory"
            self.ending.message += f"; {self.launch['memory_message']}"

    def _kill_all(self, patience_s: float, round_s: float) -> bool:
        """Kill every process below this one, looking every `round_s`, until there is none. False if `patience_s` were
        not enough.

        This process is the subreaper of everything it started: whatever a rank leaves behind, in whatever session,
        stays below it. The control group dies at once, and so even what forks faster than it is killed one by one.
        """
        give_up_s = now_s() + patience_s
        while True:
            left = procfs.descendants(os.getpid(), procfs.read_processes())
            if not left and (self.group is None or self.group.is_empty()):
                return True
            if now_s() >= give_up_s:
                return False
            if self.group:
                self.group.kill()
            for process in left:
                procfs.send_signal(process.pid, process.start, signal.SIGKILL)
            self._wait(round_s)
            self._reap()

    def _close_streams(self) -> None:
        """Nothing writes any more: move what the pipes still hold."""
        for stream in self.streams.values():
            with contextlib.suppress(BlockingIOError):
                while stream.pump():
                    pass
            stream.close()
            if stream.fault:  # the note in the stream itself may have found no room
                self.cut.append(f"{stream.dropped} bytes of {stream.name} were dropped: {stream.fault}")
        self.streams.clear()

    def _write_exit(self, *, clean: bool) -> None:
        assert self.ending is not None
        used = os.times()
        worst = next((code for _rank, code in sorted(self.codes.items()) if code != 0), 0 if self.codes else None)
        record = {
            "reason": self.ending.reason,
            "message": "; ".join(part for part in (self.ending.message, *self.cut[:NAMED_STREAMS]) if part),
            "exit_code": worst if self.ending.exit_code is None else self.ending.exit_code,
            "clean": clean,
            "cpu_s": used.user + used.system + used.children_user + used.children_system,
        }
        files.write_record(self._path("exit.json"), record)
        files.ring(self.launch["bell"])

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)


def describe_end(rank: int, code: int) -> str:
    """The end of a rank in words. `code` is negative for a signal."""
    if code >= 0:
        return f"rank {rank} exited with code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
    return f"rank {rank} was ended by {name}, which Ergon did not send{hint}"


def main(folder: str, image=None) -> None:
    """Run the member whose launch record lies in `folder`, an absolute path; `image` as for `Supervisor`."""
    launch = files.read_record(os.path.join(folder, "launch.json"))
    assert launch is not None, "the agent writes it before it starts this process"
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    supervisor = Supervisor(folder, launch, image)
    me = procfs.read_process(os.getpid())
    assert me is not None
    # Whoever creates the claim decides: this process to run, or an agent that lost track to never let it start.
    if not files.create_record(os.path.join(folder, "claim.json"), {"pid": me.pid, "start": me.start}):
        return
    # A container has a folder of its own to work in; what starts it may leave a mark here that the job cannot.
    os.chdir(folder if launch.get("container") else os.path.join(folder, "work"))
    supervisor.run()
