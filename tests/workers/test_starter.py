"""Ranks that are forked from a process that has imported torch: what they find is what a fresh interpreter finds, and
they are ended, counted and contained as if they had been executed."""

import os
import select
import signal
import sys

import pytest

from tests.workers.conftest import clear
from tests.workers.test_supervisor import ATTEMPT, Member
from workers import files, procfs
from workers.cgroups import NoGroups, find_groups
from workers.starter import early_variables, program_of
from workers.starters import Starter, Starters

pytestmark = pytest.mark.system

TELL = """
import json, multiprocessing.process, os, signal, sys, tempfile, threading
status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())
found = {
    'main': [__name__, __file__, getattr(__spec__, 'name', None), type(__loader__).__name__], 'names': [*globals()],
    'argv': sys.argv, 'orig_argv': sys.orig_argv, 'path': sys.path, 'executable': sys.executable,
    'environment': sorted(os.environ.items()), 'cwd': os.getcwd(), 'tmp': tempfile.gettempdir(),
    'kernel': [status[name] for name in ('SigBlk', 'SigCgt', 'Umask', 'Threads', 'Name', 'CapEff')],
    'ignored': int(status['SigIgn'], 16) & 0x7FFF_FFFF,
    'handlers': [str(signal.getsignal(number)) for number in range(1, 32)],
    'files': {name: os.readlink('/proc/self/fd/' + name).split(':')[0] for name in os.listdir('/proc/self/fd')[:-1]},
    'streams': [repr(stream) + repr(stream.buffer) for stream in (sys.stdin, sys.stdout, sys.stderr)],
    'leads': os.getpgid(0) == os.getpid(), 'thread': threading.current_thread() is threading.main_thread(),
    'began': multiprocessing.process.ORIGINAL_DIR, 'workers': 'workers' in sys.modules,
}
if 'torch' in sys.argv:
    import torch, torch._dynamo
    found['torch'] = [torch.get_num_threads(), torch._dynamo.config.debug_dir_root, torch.cuda.is_initialized()]
print(json.dumps(found))
print(open('/proc/self/cmdline').read().count('starter.main'), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    try:
        found = find_groups(str(tmp_path_factory.mktemp("groups")))
    except NoGroups as why:
        pytest.skip(str(why))
    yield found
    clear(found)


@pytest.fixture(scope="module")
def starter(groups):
    assert groups
    made = ready(Starter("1"))
    yield made
    made.end()


def ready(starter):
    """Once it is."""
    select.select([starter._socket], [], [])
    assert starter.is_ready(), "it ended while it imported"
    return starter


class Forked(Member):
    """A member whose supervisor a starter forks."""

    def __init__(self, root, starter, groups, argv, *, env=None, script="", **changes):
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "TZ") if name in os.environ}
        env = kept | {"OMP_NUM_THREADS": "1"} | (env or {})
        self.group = groups.group(ATTEMPT)
        super().__init__(root, [sys.executable, *argv], env=env, **{"group": self.group.path, "limits": {}} | changes)
        (self.folder / "work" / "train.py").write_text(script)
        self.starter = starter

    def start(self):
        self.pid, self.since = self.starter.supervise(self.folder, None)
        return self

    def is_empty(self):
        """Whether nothing of it is left."""
        return not os.path.exists(self.group.path)

    def stop(self, reason="cancelled", grace_s=30.0):
        record = {"at_s": 0, "grace_s": grace_s, "reason": reason, "message": ""}
        files.write_record(str(self.folder / "stop.json"), record)
        procfs.send_signal(self.pid, self.since, signal.SIGTERM)
        return self

    def end(self):
        """Wait for the end; the exit record."""
        if procfs.is_alive(self.pid, self.since):
            handle = os.pidfd_open(self.pid)
            select.select([handle], [], [])
            os.close(handle)
        assert self.is_empty()
        return files.read_record(str(self.folder / "exit.json"))


@pytest.fixture
def member(tmp_path, starter, groups):
    made = []

    def make(argv, **changes):
        root = changes.pop("root", tmp_path)
        made.append(Forked(root, changes.pop("starter", starter), groups, argv, **changes))
        return made[-1]

    yield make
    for item in made:
        item.close()


@pytest.mark.parametrize("command", ["train.py torch --b", "-m train a", "./train.py", "-P -m json.tool --help"])
def test_a_forked_rank_finds_what_an_executed_one_finds(member, tmp_path, command):
    """The variable that makes the difference between the two is taken out before they are compared."""
    forked = member(command.split(), script=TELL)
    assert forked.start().end()["reason"] == "completed"
    (tmp_path / "executed").mkdir()
    executed = member(command.split(), script=TELL, root=tmp_path / "executed", env={"LC_X": "1"})
    assert executed.start().end()["reason"] == "completed"
    assert forked.text("rank-0.stdout")
    told = executed.text("rank-0.stdout").replace('["LC_X", "1"], ', "").replace("/executed/", "/")
    assert forked.text("rank-0.stdout") == told
    assert "json.tool" in command or (was_forked(forked), was_forked(executed)) == (True, False)


def was_forked(one):
    """What a script that ends with TELL's last line found."""
    return one.text("rank-0.stderr").splitlines()[-1] == "1"


ENDS = {
    "import sys, atexit; atexit.register(print, 'bye'); sys.exit(7)": (7, "bye\n", ""),
    "open('left.txt', 'w').write('kept')\nimport sys\nsys.stdout.write('kept')": (0, "kept", ""),
    "import threading, time\nthreading.Timer(0.1, print, ['late']).start()": (0, "late\n", ""),
    "import sys; sys.exit('why')": (1, "", "why\n"),
    "def fail():\n    raise ValueError('no')\nfail()": (1, "", "ValueError: no\n"),
    "def (": (1, "", "SyntaxError: invalid syntax\n"),
    "raise KeyboardInterrupt": (-2, "", "KeyboardInterrupt\n"),
    "import os; os.kill(os.getpid(), 11)": (-11, "", ""),
    "import os; os._exit(3)": (3, "", ""),
}


@pytest.mark.parametrize("script", ENDS)
def test_every_end_of_a_forked_rank_is_told_as_it_was(member, script):
    code, out, err = ENDS[script]
    one = member(["train.py"], script=script)
    assert one.start().end()["exit_code"] == code
    assert one.text("rank-0.stdout") == out
    assert one.text("rank-0.stderr").endswith(err)
    assert "starter" not in one.text("rank-0.stderr")


def test_ranks_of_one_image_draw_different_numbers(member):
    script = (
        "import random, numpy, torch, multiprocessing as m\n"
        "print(random.random(), numpy.random.random(), torch.rand(1).item(), m.current_process().authkey.hex())"
    )
    one = member(["train.py"], script=script, ranks=2)
    assert one.start().end()["reason"] == "completed"
    drawn = [one.text(f"rank-{rank}.stdout").split() for rank in range(2)]
    assert all(first != second for first, second in zip(*drawn, strict=True))


@pytest.mark.parametrize(
    ("argv", "changes", "beside"),
    [
        (["-u", "train.py"], {}, None),
        (["train.py"], {"env": {"OMP_NUM_THREADS": "2"}}, None),
        (["train.py"], {"env": {"PYTHONHASHSEED": "0"}}, None),
        (["train.py"], {"env": {"SYMPY_DEBUG": "False"}}, None),
        (["train.py"], {"env": {"TMPDIR": "/var/tmp"}}, None),
        (["train.py"], {}, "sympy.py"),
        (["train.py"], {}, "numpy"),
        (["train.py"], {"group": None}, None),
    ],
)
def test_what_would_not_be_the_same_is_executed(member, argv, changes, beside):
    one = member(argv, script=TELL, **changes)
    if beside:
        (one.folder / "work" / beside).mkdir()
    assert one.start().end()["reason"] == "completed"
    assert not was_forked(one)


def test_variables_that_are_read_later_need_not_be_the_images(member):
    late = {"CUDA_VISIBLE_DEVICES": "", "TORCHELASTIC_RUN_ID": "a", "NCCL_DEBUG": "INFO", "LR": "0.1", "PATH": "/bin"}
    one = member(["train.py"], script=TELL, env=late)
    assert one.start().end()["reason"] == "completed"
    assert was_forked(one)


def test_a_stop_reaches_a_forked_rank_and_all_it_started(member, tmp_path):
    os.mkfifo(tmp_path / "up")
    script = (
        "import os, subprocess, time\nif os.fork() == 0: os.setsid(); os.environ.clear()\n"
        f"else: open({str(tmp_path / 'up')!r}, 'w').write('up')\ntime.sleep(1000)"
    )
    one = member(["train.py"], script=script).start()
    assert (tmp_path / "up").read_text() == "up"
    record = one.stop().end()
    assert (record["reason"], record["exit_code"], record["clean"]) == ("cancelled", -signal.SIGTERM, True)
    assert one.is_empty()


def test_a_starter_that_hangs_is_given_up_and_what_it_has_forked_goes_on(member, tmp_path, starter):
    os.mkfifo(tmp_path / "go")
    one = member(["train.py"], script=f"print(open({str(tmp_path / 'go')!r}).read())").start()
    one.wait_started()
    starters = Starters(most=1)
    starters._held["ann", "1"] = starter
    os.kill(starter.process.pid, signal.SIGSTOP)
    assert starters.supervise(("ann", "1"), tmp_path, None) is None
    assert starter.process.poll() == -signal.SIGKILL
    assert starters.supervise(("ann", "1"), tmp_path, None) is None
    (tmp_path / "go").write_text("went on")
    assert one.end()["reason"] == "completed"
    assert one.text("rank-0.stdout") == "went on\n"


def test_which_commands_a_fork_may_stand_for():
    forkable = ["x.py", "-m x a", "-P -m x", "-P x.py"]
    assert [program_of(["python", *words.split()]) is not None for words in forkable] == [True] * 4
    executed = ["", "-u x.py", "-c 1", "-m", "x", "x.pyc", "-x.py", "-W error x.py"]
    assert [program_of(["python", *words.split()]) is not None for words in executed] == [False] * 8


def test_which_variables_have_no_effect_after_the_import():
    early = ["PYTHONPATH", "LD_PRELOAD", "OMP_SCHEDULE", "MKL_NUM_THREADS", "TORCH_LOGS", "CUDA_HOME", "HOME", "LANG"]
    late = ["PATH", "RANK", "TORCHELASTIC_RUN_ID", "CUDA_VISIBLE_DEVICES", "NCCL_DEBUG", "GLOO_SOCKET_IFNAME"]
    assert list(early_variables(dict.fromkeys(early + late, "1"))) == early
