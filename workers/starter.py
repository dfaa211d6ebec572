"""A process that has imported torch, and from which supervisors and their ranks are forked: nobody waits for the import
again.

    agent -- starter -- supervisor (supervisor.py, forked) -- ranks (forked from the supervisor)

A starter serves one user, with one value of OMP_NUM_THREADS. It runs nothing of a job's: no code, no variable, no file.
A rank of `python FILE.py ...` or `python -m MODULE ...` becomes, after its fork, what that command makes of a fresh
process; where it would not be the same in full, the program is executed as anywhere else.

Imports the standard library only: `launch.py` asks here which commands and variables will do.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workers import procfs, supervisor

THREADS = "OMP_NUM_THREADS"
EARLY_PREFIXES = (
    *("PYTHON", "LD_", "LC_", "MALLOC_", "GLIBC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_"),
    *("DNNL_", "ONEDNN_", "ATEN_", "TORCH", "PYTORCH_", "CUDA_", "NVIDIA_"),
)
EARLY_NAMES = frozenset({"HOME", "LANG", "LANGUAGE", "TMPDIR", "TZ"})
LATE_PREFIXES = ("TORCHELASTIC_", "TORCH_NCCL_", "CUDA_VISIBLE_DEVICES")
"""CUDA reads the last when it is first used, which is never before the fork."""

WARM_MODULES = (
    *("numpy", "torch", "torch.distributed", "torch.nn.parallel", "torch.optim", "torch.utils.data"),
    "torch._dynamo",  # the first optimizer imports it, which takes as long as all the others
)
RENEWALS: dict[str, Callable[[Any], object]] = {
    "numpy": lambda numpy: numpy.random.seed(),
    "torch": lambda torch: torch.default_generator.seed(),
    "multiprocessing.process": lambda processes: (
        setattr(processes.current_process(), "authkey", os.urandom(32)),
        setattr(processes, "ORIGINAL_DIR", os.getcwd()),
    ),
    "torch._dynamo.config": lambda config: setattr(config, "debug_dir_root", config.default_debug_dir_root()),
}
"""What else would be the same in all ranks, or come from the starter's own folder."""
CODE = (
    "import sys; started = frozenset(sys.modules); sys.path.pop(0); "
    "from workers import starter; starter.main(int(sys.argv[1]), started)"
)
"""For `python -c`: the module path is then that of any script, but for the script's own folder."""
READY = b"ready"
MESSAGE_BYTES = 4096
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4  # prctl(2)


def early_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that the interpreter or a library reads while it is loaded, and that have no effect later."""
    return {name: value for name, value in environment.items() if _is_early(name)}


def program_of(argv: Sequence[str]) -> list[str] | None:
    """A command from FILE.py or from `-m` on; None if a fork cannot stand for it."""
    words = list(argv[2:] if argv[1:2] == ["-P"] else argv[1:])
    is_module = words[:1] == ["-m"] and len(words) > 1
    is_script = bool(words) and words[0].endswith(".py") and not words[0].startswith("-")
    return words if is_module or is_script else None


class Image:
    """What this process has loaded, for supervisors that are forked from it."""

    def __init__(self, started: frozenset[str]) -> None:
        """Load everything. `started` are the modules that an interpreter has before it looks for any script's."""
        self._path = list(sys.path)
        self._stamps = _stamps(self._path)
        self._main = {name: value for name, value in vars(sys.modules["__main__"]).items() if name.startswith("__")}
        environment = dict(os.environ)  # some modules change it
        self._read = _import_all(WARM_MODULES)
        self._environment = self._early(environment)
        loaded = {name.partition(".")[0] for name in set(sys.modules) - started}
        self._shadowable = loaded - set(sys.builtin_module_names) - {"workers"}
        gc.collect()
        gc.freeze()  # a collection would touch, and so copy, every page in every rank

    def fits(self, argv: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether a rank of the command, started here and now, may be forked: it finds what it would if executed."""
        program = program_of(argv)
        if program is None or argv[0] != sys.executable or self._early(environment) != self._environment:
            return False
        if program[0] != "-m" and not os.path.isfile(program[0]):
            return False  # the interpreter says what is wrong
        return self._stamps == _stamps(self._path) and not self._is_shadowed(_own_folder(argv))

    def fork(self, argv: Sequence[str], environment: Mapping[str, str], out: int, err: int, poll: select.epoll) -> int:
        """Fork a rank that leads a process group of its own; its process number. Raises OSError.

        Args:
            out, err: where its output goes.
            poll: an object of the caller's whose file the rank must not keep.
        """
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._become(argv, environment, out, err, poll)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        with contextlib.suppress(PermissionError, ProcessLookupError):  # it did that itself, and has gone on
            os.setpgid(pid, pid)
        return pid

    def _early(self, environment: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in environment.items() if name in self._read or _is_early(name)}

    def _is_shadowed(self, folder: str | None) -> bool:
        """Whether a file of the script's own folder goes by the name of a module that is loaded here from elsewhere."""
        if folder is None:
            return False
        try:
            return any(name.partition(".")[0] in self._shadowable for name in os.listdir(folder))
        except OSError:
            return True

    def _become(
        self, argv: Sequence[str], environment: Mapping[str, str], out: int, err: int, poll: select.epoll
    ) -> None:
        """The life of a rank. Never returns: nothing of the supervisor's may run a second time."""
        try:
            try:
                os.setpgid(0, 0)
                signal.set_wakeup_fd(-1)
                poll.close()
                _take_files(out, err)
                os.environ.clear()
                os.environ.update(environment)
                _take_signals()
                self._forget(argv)
            except BaseException:  # nothing of the script has run yet
                traceback.print_exc()
                os.execve(argv[0], list(argv), dict(environment))
            _run(argv)
        finally:
            os._exit(1)

    def _forget(self, argv: Sequence[str]) -> None:
        """Put right what modules read, drew or derived when they were imported, and take out what is not the job's."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "workers"]:
            del sys.modules[name]
        for name, renew in RENEWALS.items():
            if name in sys.modules:
                renew(sys.modules[name])
        tempfile.tempdir = None
        main = types.ModuleType("__main__")
        vars(main).update(self._main)
        sys.modules["__main__"] = main
        folder = _own_folder(argv)
        sys.path[:] = self._path if folder is None else [folder, *self._path]
        sys.orig_argv[:] = argv


def main(control: int, started: frozenset[str]) -> None:
    """Serve the agent at the other end of the socket `control` until it closes it or dies: for each message, fork the
    supervisor of the folder in it, with the file that came along for its standard input."""
    agent = socket.socket(fileno=control)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # no job that runs as the same user may attach to it
    image = Image(started)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the supervisors
    agent.send(READY)
    while True:
        message, stdin, _flags, _address = socket.recv_fds(agent, MESSAGE_BYTES, 1)
        if not message:
            return
        folder = message.decode()
        pid = os.fork()
        if pid == 0:
            agent.close()
            prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
            _supervise(folder, stdin, image)
        for file in stdin:
            os.close(file)
        process = procfs.read_process(pid)
        agent.send(json.dumps({"pid": pid, "start": process.start if process else 0}).encode())


def _supervise(folder: str, stdin: list[int], image: Image) -> None:
    """The life of a supervisor. Never returns."""
    code = 1
    try:
        os.setsid()
        log = os.open(os.path.join(folder, "supervisor.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for file, number in ((stdin[0] if stdin else os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
            os.dup2(file, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        supervisor.main(folder, image)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _run(argv: Sequence[str]) -> None:
    """Run the program in `__main__` and end the process, by the functions that the interpreter itself calls for that:
    tracebacks, exit codes, threads, exit functions and buffers are those of any script. Never returns."""
    api = ctypes.pythonapi
    program = program_of(argv) or []
    if program[0] == "-m":
        sys.argv[:] = ["-m", *program[2:]]
        run = f"__import__('runpy')._run_module_as_main({program[1]!r})"
        failed = api.PyRun_SimpleStringFlags(run.encode(), None)
    else:
        sys.argv[:] = program
        name = os.fsencode(os.path.join(os.getcwd(), program[0]))
        open_file = ctypes.CDLL(None).fopen
        open_file.restype = ctypes.c_void_p
        run_file = api.PyRun_SimpleFileExFlags
        run_file.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p)
        failed = run_file(open_file(name, b"rb"), name, 1, None)
    if failed and sys.last_type is KeyboardInterrupt:
        _die_of_interrupt()
    api.Py_Exit(1 if failed else 0)


def _die_of_interrupt() -> None:
    """So that whoever waits sees the signal, as the interpreter does after it has told of the interrupt."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue] - waits for those that an exit waits for
    atexit._run_exitfuncs()
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def _own_folder(argv: Sequence[str]) -> str | None:
    """Where a command's own modules lie; None for one with `-P`."""
    if argv[1] == "-P":
        return None
    return os.getcwd() if argv[1] == "-m" else os.path.dirname(os.path.realpath(argv[1]))


def _take_files(out: int, err: int) -> None:
    """The rank's own standard streams, and no other file."""
    for file, number in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(file, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _take_signals() -> None:
    """As a fresh interpreter has them. What came since the fork takes effect now."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _is_early(name: str) -> bool:
    return name in EARLY_NAMES or (name.startswith(EARLY_PREFIXES) and not name.startswith(LATE_PREFIXES))


def _import_all(modules: Sequence[str]) -> frozenset[str]:
    """Import them; the variables that they asked for meanwhile, set or not."""
    environ: Any = type(os.environ)
    get, read = environ.__getitem__, set[str]()

    def noting_get(self: "os._Environ[str]", name: str) -> str:
        read.add(name)
        return get(self, name)

    environ.__getitem__ = noting_get
    try:
        for name in modules:
            __import__(name)
    finally:
        environ.__getitem__ = get
    return frozenset(read)


def _stamps(path: Sequence[str]) -> list[int]:
    """When something was last installed into, or taken out of, each folder of the module path."""
    return [os.stat(folder).st_mtime_ns if os.path.isdir(folder) else 0 for folder in path]
