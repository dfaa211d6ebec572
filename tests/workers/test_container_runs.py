"""Real agents that run ranks in real containers of podman: every end, and that nothing is left after it."""

import os
import shutil
import signal

import pytest

from protocol.states import AttemptState, EndReason
from tests import podman
from tests.workers import builders

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

A1 = f"boxed-{os.getpid()}"

STUBBORN = "trap '' TERM; sleep 1001 & echo up; while :; do sleep 1002; done"
"""A rank that does not end when asked, with a child of its own."""


@pytest.fixture
def boxed(containers, container_image, service, agent, monkeypatch):
    """Grants a job in a container to an agent, and gives that agent."""
    service.patience_s = 120.0
    for name, value in containers.environment.items():
        monkeypatch.setenv(name, value)

    def start(script, *options, **changes):
        values = {"image": container_image, "command": ["sh", "-c", script], "stop_grace_s": 0.2}
        service.grant(builders.assignment(A1, **(values | changes)))
        return agent(*options).wait_ready()

    return start


def processes():
    """What runs on this machine of the stubborn rank."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if words[:1] == [b"sleep"] and words[1:2] in ([b"1001"], [b"1002"]):
            found.append(int(name))
    return found


def wait_up(service):
    service.wait(lambda: "up\n" in service.text(A1))
    assert processes()


def ended(service):
    """The last report, when nothing is left."""
    report = service.wait_forgotten(A1)
    assert report.clean
    assert processes() == []
    return report


def test_exit_code_output_and_two_ranks(boxed, service):
    # Each waits for what the other said: the first that fails ends the other, maybe before it has spoken.
    boxed(
        "echo out $RANK; echo err $RANK >&2; : >said-$RANK; "
        "until [ -e said-$((1 - RANK)) ]; do sleep 0.05; done; exit $((RANK * 7))",
        ranks=2,
    )
    report = ended(service)
    assert (report.reason, report.exit_code, report.message) == (EndReason.FAILED, 7, "rank 1 exited with code 7")
    for rank in (0, 1):
        assert service.text(A1, rank) == f"out {rank}\n"
        assert service.text(A1, rank, "stderr").endswith(f"err {rank}\n")
    assert service.registrations[-1].container_runtime == "podman"


def test_much_output_comes_whole(boxed, service):
    boxed("", command=["python", "-c", "for number in range(100_000): print('line', number)"])
    assert ended(service).reason is EndReason.COMPLETED
    assert service.text(A1) == "".join(f"line {number}\n" for number in range(100_000))


def test_a_rank_that_does_not_want_to_end_is_ended(boxed, service):
    boxed(STUBBORN)
    wait_up(service)
    service.ask_stop(A1)
    assert ended(service).reason is EndReason.CANCELLED


def test_a_rank_without_a_rule_for_it_ends_when_asked(boxed, service):
    boxed("echo up; exec sleep 1001", stop_grace_s=60.0)
    wait_up(service)
    service.ask_stop(A1)
    assert ended(service).reason is EndReason.CANCELLED


def test_the_time_limit_and_the_memory_limit(boxed, service):
    one = boxed(STUBBORN, time_limit_s=3.0)
    assert ended(service).reason is EndReason.TIME_LIMIT
    one.terminate()
    boxed("", command=["python", "-c", "print(len(bytearray(256 << 20)))"], memory_bytes=64 << 20)
    report = ended(service)
    assert (report.reason, report.exit_code) == (EndReason.OUT_OF_MEMORY, 137)
    assert report.message.endswith("it may use 64 MiB; submit it with more `memory_bytes_per_node` (--memory)")


def test_a_container_whose_child_had_no_memory_is_out_of_memory_and_another_failure_is_none(boxed, service):
    hungry = "mkdir -p oom; python -c 'bytearray(256 << 20)' || exit 5"
    one = boxed(hungry, memory_bytes=64 << 20)
    report = ended(service)
    assert (report.reason, report.exit_code) == (EndReason.OUT_OF_MEMORY, 5)
    one.terminate()
    boxed("touch oom; exit 5", memory_bytes=64 << 20)
    assert ended(service).reason is EndReason.FAILED


def test_a_container_has_no_more_processes_than_a_member_may_have(boxed, service):
    # A rank that failed for the file that is not there would end the other before that one has printed.
    files = "/sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max"
    boxed(f"for file in {files}; do read n < $file && echo $n; done; true", ranks=2)
    ended(service)
    assert service.text(A1) == "16384\n"


def test_the_next_agent_takes_over(boxed, service, agent):
    one = boxed(STUBBORN)
    wait_up(service)
    one.kill()
    service.change(service.reports.clear)
    agent(state=one.state).wait_ready()
    service.wait_state(A1, AttemptState.RUNNING)
    assert processes()
    service.ask_stop(A1)
    assert ended(service).reason is EndReason.CANCELLED


def test_what_a_killed_supervisor_leaves_is_removed(boxed, service):
    one = boxed(STUBBORN)
    wait_up(service)
    os.kill(one.supervisor(A1), signal.SIGKILL)
    report = ended(service)
    assert (report.reason, report.message) == (EndReason.UNKNOWN_START, "its supervisor was killed")


def test_what_is_left_of_a_lost_state_folder_is_removed(boxed, service, agent):
    one = boxed(STUBBORN)
    wait_up(service)
    supervisor = one.supervisor(A1)
    one.kill()
    os.kill(supervisor, signal.SIGKILL)
    shutil.rmtree(one.state)
    service.update(A1, observed=AttemptState.RUNNING)
    agent(state=one.state).wait_ready()
    assert ended(service).message == "the node has no record of it"


def test_an_image_that_cannot_be_had(boxed, service):
    boxed("true", image="localhost/no-such-image:1")
    report = ended(service)
    assert report.reason is EndReason.START_FAILED
    assert report.message.startswith(
        "image localhost/no-such-image:1 is not on this node and could not be pulled: Error: "
    )


def test_a_node_that_has_lost_its_runtime(boxed, service, agent, tmp_path, monkeypatch):
    lost = tmp_path / "bin"
    lost.mkdir()
    (lost / "podman").symlink_to(shutil.which("podman"))
    python = tmp_path / "python"
    python.mkdir()
    for name in ("sh", "true"):
        (python / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", f"{lost}:{python}")
    agent().wait_ready()
    (lost / "podman").unlink()
    service.grant(builders.assignment(A1, image=podman.IMAGE))
    report = ended(service)
    assert report.reason is EndReason.START_FAILED
    assert "`podman` cannot be started: No such file or directory" in report.message
