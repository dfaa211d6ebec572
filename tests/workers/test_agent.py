"""Real agents, supervisors and ranks against a service on a socket, through crashes, lost answers and silence."""

import itertools
import json
import os
import shutil
import signal
import sys

import pytest

from protocol.caches import dataset_key
from protocol.states import AttemptState, EndReason
from tests.freezing import unkillable
from tests.workers import builders
from tests.workers.fake_service import problem
from tests.workers.test_datasets import server  # noqa: F401
from workers.agent import MOST_INSISTS
from workers.inventory import boot_id

pytestmark = pytest.mark.system

RUNNING = AttemptState.RUNNING

# The ranks of an attempt are known by its id on the whole machine, and tests may run side by side there.
A1, A2, A3 = (f"a{number}-{os.getpid()}" for number in (1, 2, 3))

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="control groups are root's here")


def assignment(attempt=A1, **changes):
    return builders.assignment(attempt, **changes)


LESS_PATIENCE = (
    "from workers import runs\n"
    "less = 'supervisor.UNCLEAN_AFTER_S = supervisor.LATER_ROUND_S = 0.2; supervisor.main('\n"
    "runs.SUPERVISOR = runs.SUPERVISOR.replace('supervisor.main(', less)"
)


def starts(tmp_path):
    """Lines that ranks appended to the file `starts`."""
    path = tmp_path / "starts"
    return path.read_text().splitlines() if path.exists() else []


def test_a_job_runs_to_its_end_and_its_output_arrives_before_its_end_is_told(service, agent, tmp_path):
    script = (
        f"echo $ERGON_ATTEMPT >> {tmp_path}/starts; echo hello; echo oops >&2; "
        "echo '{\"step\": 1}' > $ERGON_PROGRESS; printf half >> $ERGON_PROGRESS"
    )
    service.grant(assignment(command=["sh", "-c", script]))
    one = agent().wait_ready()
    report = service.wait_forgotten(A1)
    assert (report.reason, report.exit_code, report.clean) == (EndReason.COMPLETED, 0, True)
    assert (service.text(A1), service.text(A1, stream="stderr")) == ("hello\n", "oops\n")
    assert service.text(A1, stream="progress") == '{"step": 1}\n'
    service.wait(lambda: not list((one.state / "attempts").iterdir()))
    assert starts(tmp_path) == [A1]


def test_the_inventory_is_what_the_command_line_says(service, agent):
    agent("--cpu-slots", "1,3", "--memory", "1000", "--address", "10.1.2.3", "--label", "rack=r7").wait_ready()
    [report] = service.registrations
    assert [device.id.rsplit(":", 1)[1] for device in report.devices] == ["1", "3"]
    assert (report.memory_bytes, report.address, report.labels) == (1000, "10.1.2.3", {"rack": "r7"})


def test_an_assignment_that_comes_later_starts_at_once(service, agent, gate):
    service.lease_s = 36_000.0
    agent("--sample-every", "3600").wait_ready()
    service.wait_syncs(2)  # it calls no more by itself, but for the long poll
    hold = gate()
    service.grant(assignment(command=hold.script()))
    hold.wait_up()
    service.wait_state(A1, RUNNING)
    hold.open()
    assert service.wait_forgotten(A1).reason == EndReason.COMPLETED


def test_a_stop_ends_everything_of_it(service, agent, gate):
    hold = gate()
    service.grant(assignment(command=hold.script("exit 0"), stop_grace_s=30))
    agent().wait_ready()
    hold.wait_up()
    service.ask_stop(A1)
    report = service.wait_forgotten(A1)
    hold.wait_gone()
    assert (report.reason, report.exit_code, report.clean) == (EndReason.CANCELLED, -signal.SIGTERM, True)


def test_what_is_no_longer_listed_is_stopped_and_deleted(service, agent, gate):
    hold = gate()
    service.grant(assignment(command=hold.script()))
    one = agent().wait_ready()
    hold.wait_up()
    service.wait_state(A1, RUNNING)
    service.unlist(A1)
    hold.wait_gone()
    service.wait(lambda: not list((one.state / "attempts").iterdir()))


def test_a_failure_is_told_with_its_code(service, agent):
    service.grant(assignment(A1, command=["sh", "-c", "exit 3"]))
    service.grant(assignment(A2, command=["no-such-program"]))
    agent().wait_ready()
    failed, unstarted = service.wait_forgotten(A1), service.wait_forgotten(A2)
    assert (failed.reason, failed.exit_code) == (EndReason.FAILED, 3)
    assert unstarted.reason == EndReason.START_FAILED
    assert "no-such-program" in unstarted.message


def test_a_script_that_fills_its_disk_quota_ends_for_that_and_the_node_goes_on(service, agent):
    fill = ["sh", "-c", "trap '' TERM; echo before; head -c 8000000 /dev/zero > {}; sleep 1000"]
    within = {"disk_bytes": 1 << 30}
    service.grant(assignment(A1, command=[*fill[:2], fill[2].format("here")], disk_bytes=4_000_000))
    service.grant(assignment(A2, command=[*fill[:2], fill[2].format("there")], **within))
    one = agent("--disk-per-job", "6000000").wait_ready()
    for attempt, remedy in ((A1, "disk_bytes_per_node"), (A2, "--disk-per-job")):
        report = service.wait_forgotten(attempt)
        assert (report.reason, report.exit_code, report.clean) == (EndReason.DISK_QUOTA, -signal.SIGKILL, True)
        assert remedy in report.message
        assert service.text(attempt) == "before\n"
    service.wait(lambda: not list((one.state / "attempts").iterdir()))
    service.grant(assignment(A3, command=["true"]))
    assert service.wait_forgotten(A3).reason == EndReason.COMPLETED


def test_a_gang_waits_for_its_rendezvous_and_gets_the_one_that_was_told(service, agent):
    show = ["sh", "-c", "echo $RANK/$WORLD_SIZE $MASTER_ADDR:$MASTER_PORT"]
    service.grant(assignment(A1, command=show, member=0, members=2))
    service.grant(assignment(A2, command=show, member=1, members=2))
    agent("--address", "127.0.0.1").wait_ready()
    chosen = service.wait(lambda: next((item.rendezvous for item in service.reports[A1] if item.rendezvous), None))
    service.wait_forgotten(A1)
    assert chosen.startswith("127.0.0.1:")
    assert service.text(A1) == f"0/2 {chosen}\n"
    assert service.reports[A2] == [], "it has nothing to tell before its gang meets"
    service.update(A2, rendezvous="10.0.0.1:20001")
    service.wait_forgotten(A2)
    assert service.text(A2, rank=1) == "1/2 10.0.0.1:20001\n"


def test_an_attempt_that_is_stopped_before_it_started_is_told_over(service, agent):
    agent().wait_ready()
    service.grant(assignment(command=["true"], desired="stop"))
    report = service.wait_forgotten(A1)
    assert (report.reason, report.clean) == (EndReason.CANCELLED, True)


# -- crashes


def test_a_killed_agent_is_followed_by_one_that_adopts_the_same_process(service, agent, gate, tmp_path):
    hold = gate()
    script = hold.script("echo after")
    script[2] = f"echo start >> {tmp_path}/starts; echo before; {script[2]}"
    service.grant(assignment(command=script))
    first = agent().wait_ready()
    pid = hold.wait_up()
    service.wait_state(A1, RUNNING)
    supervisor = first.supervisor(A1)
    for _time in range(3):
        first.kill()
        service.change(service.reports.clear)
        first = agent().wait_ready()
        service.wait_state(A1, RUNNING)
        assert (first.supervisor(A1), os.path.exists(f"/proc/{pid}")) == (supervisor, True)
    hold.open()
    report = service.wait_forgotten(A1)
    assert (report.reason, report.exit_code) == (EndReason.COMPLETED, 0)
    assert service.text(A1) == "before\nafter\n"
    assert starts(tmp_path) == ["start"]


def test_an_end_that_nobody_saw_is_told_by_the_next_agent(service, agent, gate):
    hold = gate()
    service.grant(assignment(command=hold.script("echo done; exit 5")))
    first = agent().wait_ready()
    hold.wait_up()
    service.wait_state(A1, RUNNING)
    first.kill()
    hold.open()
    hold.wait_gone()
    agent().wait_ready()
    report = service.wait_forgotten(A1)
    assert (report.reason, report.exit_code, service.text(A1)) == (EndReason.FAILED, 5, "done\n")


def kill_both_and_see_nothing_left(service, agent, hold):
    """Agent and supervisor, once the rank runs; the next agent clears up."""
    first = agent().wait_ready()
    hold.wait_up()
    service.wait_state(A1, RUNNING)
    first.kill()
    os.kill(first.supervisor(A1), signal.SIGKILL)
    agent().wait_ready()
    hold.wait_gone()
    report = service.wait_forgotten(A1)
    assert (report.reason, report.clean) == (EndReason.UNKNOWN_START, True)


def test_agent_and_supervisor_killed_together_leave_nothing_and_start_nothing(service, agent, gate, tmp_path):
    hold = gate()
    script = hold.script()
    script[2] = f"echo start >> {tmp_path}/starts; setsid sleep 1000 & {script[2]}"
    service.grant(assignment(command=script))
    kill_both_and_see_nothing_left(service, agent, hold)
    assert starts(tmp_path) == ["start"]


@as_root
def test_what_has_left_its_session_and_environment_outlives_neither_of_them(service, agent, gate):
    hold = gate()
    script = hold.script()
    service.grant(assignment(command=["sh", "-c", f"env -i setsid sh -c '{script[2]}' & sleep 1000"]))
    kill_both_and_see_nothing_left(service, agent, hold)


@as_root
def test_what_no_record_tells_of_is_killed_when_the_agent_starts(service, agent, gate):
    """A state folder that lost an attempt, and a service that does not list it either."""
    hold = gate()
    script = hold.script()
    service.grant(assignment(command=["sh", "-c", f"env -i setsid sh -c '{script[2]}' & sleep 1000"]))
    first = agent().wait_ready()
    hold.wait_up()
    service.wait_state(A1, RUNNING)
    supervisor = first.supervisor(A1)
    first.kill()
    os.kill(supervisor, signal.SIGKILL)
    shutil.rmtree(first.state / "attempts" / A1)
    service.unlist(A1)
    agent().wait_ready()
    hold.wait_gone()


def test_a_supervisor_that_is_killed_is_noticed(service, agent, gate):
    hold = gate()
    service.grant(assignment(command=hold.script()))
    one = agent().wait_ready()
    hold.wait_up()
    service.wait_state(A1, RUNNING)
    os.kill(one.supervisor(A1), signal.SIGKILL)
    hold.wait_gone()
    assert service.wait_forgotten(A1).reason == EndReason.UNKNOWN_START


def test_a_launch_record_without_a_start_never_starts(service, agent, tmp_path):
    """What an agent leaves that is killed between the record and the fork."""
    folder = tmp_path / "state" / "attempts" / A1
    (folder / "work").mkdir(parents=True)
    launch = {
        "boot_id": boot_id(),
        "epoch": 1,
        "argv": ["sh", "-c", f"echo start >> {tmp_path}/starts"],
        "env": {"MASTER_PORT": "20000", "GROUP_RANK": "0"},
        "ranks": [{"rank": 0, "env": {}}],
        "stop_grace_s": 1,
    }
    (folder / "launch.json").write_text(json.dumps(launch))
    service.grant(assignment(command=launch["argv"]))
    agent().wait_ready()
    assert service.wait_forgotten(A1).reason == EndReason.UNKNOWN_START
    assert starts(tmp_path) == []


def test_an_attempt_without_a_record_is_told_unknown_and_what_is_left_of_it_is_killed(service, agent, gate, tmp_path):
    """A state folder that was lost while its ranks ran."""
    service.lease_s = 3600.0
    hold = gate()
    service.grant(assignment(command=hold.script()))
    first = agent().wait_ready()
    hold.wait_up()
    service.wait_state(A1, RUNNING)
    first.kill()
    agent(state=tmp_path / "empty").wait_ready()
    hold.wait_gone()
    report = service.wait_forgotten(A1)
    assert (report.reason, report.clean) == (EndReason.UNKNOWN_START, True)


def test_the_machine_was_booted_in_between(service, agent, gate):
    hold = gate()
    service.grant(assignment(command=hold.script()))
    first = agent().wait_ready()
    hold.wait_up()
    service.wait_state(A1, RUNNING)
    first.kill()
    record = first.state / "attempts" / A1 / "launch.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"boot_id": "another"}))
    agent().wait_ready()
    report = service.wait_forgotten(A1)
    assert (report.reason, report.message) == (EndReason.UNKNOWN_START, "the machine was restarted under it")


@pytest.mark.parametrize("silent", [True, False])
def test_silence_of_the_ranks_is_told_while_it_lasts(service, agent, gate, silent):
    hold = gate()
    service.grant(assignment(command=hold.script("sleep 1000"), stall_timeout_s=0.3 if silent else None))
    agent().wait_ready()
    hold.wait_up()
    service.wait_state(A1, RUNNING)
    if silent:
        service.wait(lambda: service.reports[A1][-1].quiet)
    service.ask_stop(A1)
    report = service.wait_forgotten(A1)
    assert (report.reason, report.clean) == (EndReason.CANCELLED, True)
    assert ("nothing was written for 0.3 s" in (report.message or "")) == silent
    assert ("[ergon] process" in service.text(A1, stream="stderr")) == silent


# -- devices out of use


def test_a_health_check_takes_devices_out_and_gives_them_back(service, agent, tmp_path):
    check = tmp_path / "check"
    check.write_text(f"#!/bin/sh\n[ ! -e {tmp_path}/hot ] || {{ echo too hot; exit 1; }}\n")
    check.chmod(0o755)
    (tmp_path / "hot").touch()
    service.set(drop_answers=2)
    agent("--health-check", str(check), "--health-every", "0.1").wait_ready()
    service.wait(lambda: len(service.unfit) == 2)
    assert set(service.unfit.values()) == {"too hot"}
    (tmp_path / "hot").unlink()
    service.wait(lambda: not service.unfit)


def test_what_the_cache_holds_is_told_and_what_was_fetched_once_it_is_there(service, agent, server):  # noqa: F811
    url, _asked = server
    service.grant(assignment(command=["true"], datasets={"d": f"{url}/data.csv"}))
    agent().wait_ready()
    first, second = service.wait(lambda: service.caches[1:] and service.caches[:2])
    assert first == []
    assert [(one.key, one.fetch.source, one.fetch.size_bytes) for one in second] == [
        (dataset_key(f"{url}/data.csv"), url, 4)
    ]
    service.wait_forgotten(A1)
    assert len(service.caches) == 2


@as_root
def test_a_process_that_does_not_die_is_told_and_its_end_too(service, agent, gate):
    """The freezer of v1 holds a process so that even SIGKILL waits: what a driver that hangs does."""
    hold = gate()
    service.grant(assignment(command=hold.script(), stop_grace_s=0.1))
    agent(patch=LESS_PATIENCE).wait_ready()
    pid = hold.wait_up()
    service.wait_state(A1, RUNNING)
    with unkillable(pid):
        service.ask_stop(A1)
        report = service.wait_state(A1, AttemptState.ENDED)
        assert (report.clean, report.reason) == (False, EndReason.CANCELLED)
        assert f"process {pid} does not die" in report.message
        assert A1 in service.assignments
    assert service.wait_forgotten(A1).clean


# -- lost answers and silence


def test_lost_answers_neither_lose_nor_repeat_anything(service, agent, tmp_path):
    lines = 20_000
    script = f"echo start >> {tmp_path}/starts; seq {lines}"
    agent().wait_ready()
    for name in (A1, A2, A3):
        service.set(drop_answers=2)
        service.grant(assignment(name, command=["sh", "-c", script]))
        assert service.wait_forgotten(name).reason == EndReason.COMPLETED
        assert service.text(name) == "".join(f"{number}\n" for number in range(1, lines + 1))
    assert starts(tmp_path) == ["start"] * 3


def test_an_assignment_that_is_delivered_again_does_not_start_again(service, agent, tmp_path):
    granted = assignment(command=["sh", "-c", f"echo start >> {tmp_path}/starts"])
    service.grant(granted)
    one = agent().wait_ready()
    service.wait_forgotten(A1)
    service.wait(lambda: not list((one.state / "attempts").iterdir()))
    service.grant(granted)
    report = service.wait_forgotten(A1)
    assert (report.reason, report.clean) == (EndReason.UNKNOWN_START, True)
    assert starts(tmp_path) == ["start"]


def test_an_answer_that_was_long_under_way_does_not_undo_a_newer_one(service, agent, gate):
    agent("--sample-every", "0.1").wait_ready()
    service.wait_syncs(3)
    service.set(hold_polls=True)
    service.grant(assignment(A1, command=["true"]))
    service.wait_forgotten(A1)
    hold = gate()
    service.grant(assignment(A2, command=hold.script()))
    hold.wait_up()
    service.wait_state(A2, RUNNING)
    service.set(hold_polls=False)
    service.wait_syncs(service.syncs + 3)
    hold.open()
    assert service.wait_forgotten(A2).reason == EndReason.COMPLETED


def test_the_agent_goes_on_when_the_service_comes_back(service, agent, gate):
    hold = gate()
    service.grant(assignment(command=hold.script("echo out; exit 0")))
    agent().wait_ready()
    hold.wait_up()
    service.wait_state(A1, RUNNING)
    service.set(down=True)
    hold.open()
    hold.wait_gone()
    service.set(down=False)
    assert service.wait_forgotten(A1).reason == EndReason.COMPLETED
    assert service.text(A1) == "out\n"
    assert service.incarnation == 1, "it must not register again"


@pytest.mark.parametrize("fault", ["no answer", "answers are lost", "agent killed", "agent frozen"])
def test_ranks_are_stopped_before_the_lease_ends(service, agent, gate, fault):
    service.lease_s = 3.0
    hold = gate()
    service.grant(assignment(command=hold.script(), stop_grace_s=30))
    first = agent().wait_ready()
    hold.wait_up()
    service.wait_state(A1, RUNNING)
    service.set(down=fault != "answers are lost", drop_answers=1_000_000 if fault == "answers are lost" else 0)
    if fault == "agent killed":
        first.kill()
    elif fault == "agent frozen":
        first.process.send_signal(signal.SIGSTOP)
    hold.wait_gone()
    service.set(down=False, drop_answers=0, lease_s=60.0)
    if fault == "agent killed":
        agent().wait_ready()
    elif fault == "agent frozen":
        first.process.send_signal(signal.SIGCONT)
    assert service.wait_forgotten(A1).reason == EndReason.FENCED


def test_a_busy_lease_is_renewed_in_time(service, agent, gate):
    service.lease_s = 3.0
    hold = gate()
    service.grant(assignment(command=hold.script()))
    agent("--sample-every", "3600").wait_ready()
    hold.wait_up()
    service.wait_syncs(service.syncs + 6)  # a quarter of the lease apart
    hold.open()
    assert service.wait_forgotten(A1).reason == EndReason.COMPLETED


# -- more than one agent


def test_two_agents_cannot_share_a_state_folder(agent):
    agent().wait_ready()
    code, log = agent().wait_exit()
    assert code == 2
    assert "another agent uses the state folder" in log


def test_an_agent_that_was_replaced_leaves_without_touching_its_ranks(service, agent, gate, tmp_path):
    hold = gate()
    service.grant(assignment(command=hold.script()))
    first = agent().wait_ready()
    pid = hold.wait_up()
    service.wait_state(A1, RUNNING)
    for late in range(MOST_INSISTS):  # each might have been a late call of its own
        others = 100 * (late + 1)
        service.change(lambda others=others: setattr(service, "incarnation", others))
        service.wait(lambda others=others: service.incarnation == others + 1)
    service.change(lambda: setattr(service, "incarnation", 9_000))
    code, log = first.wait_exit()
    assert code == 3
    assert "another agent has taken this node" in log
    assert os.path.exists(f"/proc/{pid}")
    hold.open()


def test_an_agent_goes_on_with_a_service_that_was_restored_from_a_backup(service, agent, gate):
    """What the backup knows runs on and is told again, what it does not know is stopped."""
    known, unknown = gate("known"), gate("unknown")
    service.grant(assignment(A1, command=known.script("echo first")))
    service.grant(assignment(A2, command=unknown.script()))
    one = agent().wait_ready()
    pid = known.wait_up()
    unknown.wait_up()
    service.wait_state(A1, RUNNING)
    service.wait_state(A2, RUNNING)
    service.go_back(A2)
    unknown.wait_gone()
    service.wait(lambda: len(service.registrations) == 2)
    service.grant(assignment(A3))
    service.wait_forgotten(A3)
    assert os.path.exists(f"/proc/{pid}")
    known.open()
    assert service.wait_forgotten(A1).reason == EndReason.COMPLETED
    service.wait(lambda: not list((one.state / "attempts").iterdir()))
    assert len(service.registrations) == 2, "it registered once more, and no more often"


@pytest.mark.parametrize(
    ("refusal", "code", "message"),
    [
        (problem(401, "unauthenticated", "no such token"), 2, "check --token-file"),
        (problem(409, "device-taken", "cpu:m:0 is offered by n2"), 3, "cpu:m:0 is offered by n2"),
        (problem(426, "protocol", "the service speaks 2"), 2, "upgrade the older"),
        (problem(422, "invalid", "body.protocol"), 1, "a bug of Ergon"),
    ],
)
def test_a_service_that_will_not_have_the_agent(service, agent, refusal, code, message):
    service.refusals = [refusal]
    found, log = agent().wait_exit()
    assert found == code
    assert message in log


def test_a_token_of_another_node(agent):
    code, log = agent(name="n2").wait_exit()
    assert code == 2
    assert "belongs to node 'n1'" in log


def test_a_service_that_is_not_there_yet_is_waited_for(service, agent):
    service.set(down=True)
    one = agent()
    service.set(down=False)
    one.wait_ready()


# -- leaving


def test_ranks_outlive_an_agent_that_is_told_to_leave(service, agent, gate):
    hold = gate()
    service.grant(assignment(command=hold.script()))
    first = agent().wait_ready()
    hold.wait_up()
    service.wait_state(A1, RUNNING)
    assert first.terminate()[0] == 0
    assert not service.left, "the service would start it elsewhere"
    hold.open()
    agent().wait_ready()
    assert service.wait_forgotten(A1).reason == EndReason.COMPLETED


def test_an_agent_with_nothing_to_do_says_that_it_leaves(service, agent):
    one = agent().wait_ready()
    service.grant(assignment(command=["true"]))
    service.wait_forgotten(A1)
    service.wait(lambda: not list((one.state / "attempts").iterdir()))
    assert one.terminate()[0] == 0
    assert service.left


def test_an_agent_may_be_asked_to_stop_everything_when_it_leaves(service, agent, gate):
    holds = [gate("one"), gate("two")]
    for name, hold in zip((A1, A2), holds, strict=True):
        service.grant(assignment(name, command=hold.script()))
    one = agent("--stop-attempts-on-exit").wait_ready()
    for hold in holds:
        hold.wait_up()
    service.wait_state(A1, RUNNING)
    service.wait_state(A2, RUNNING)
    assert one.terminate()[0] == 0
    for name, hold in zip((A1, A2), holds, strict=True):
        hold.wait_gone()
        assert service.reports[name][-1].reason == EndReason.FENCED, "no fault of the job"
        assert service.reports[name][-1].clean
    assert service.left


# -- measuring


def test_busy_cores_are_sampled(service, agent):
    burn = "import time\nwhile time.process_time() < 1.0: pass"
    service.grant(assignment(command=[sys.executable, "-I", "-S", "-c", burn]))
    agent("--sample-every", "0.25").wait_ready()
    service.wait_forgotten(A1)
    seen = len(service.samples)
    service.wait(lambda: len(service.samples) >= seen + 2)
    core_s = sum(sample.busy_cores * sample.seconds for sample in service.samples if sample.device is None)
    assert 1.0 <= core_s <= 1.5, "all of the rank's time, and the little its supervisor takes"
    ends = list(itertools.accumulate(sample.seconds for sample in service.samples if sample.device is None))
    assert ends == sorted(ends)


def test_samples_that_are_sent_again_carry_the_number_they_had(service, agent):
    agent("--sample-every", "0.1").wait_ready()
    service.wait(lambda: len(service.numbered) > 1)
    service.set(drop_answers=2)
    service.wait(lambda: len({number for number, _ in service.numbered}) + 2 < len(service.numbered))
    lengths = dict(service.numbered)
    assert all(lengths[number] == seconds for number, seconds in service.numbered)
    assert sorted(lengths) == list(range(len(lengths)))
