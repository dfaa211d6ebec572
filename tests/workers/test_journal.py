"""Records on disk, the state folder, and what is made of them."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from protocol.states import EndReason
from tests.workers.builders import assignment, stop
from workers import files
from workers.inventory import boot_id
from workers.journal import Journal, StartedBefore, StateFolderTaken
from workers.launch import launch_record
from workers.reconcile import Lease, Phase
from workers.runs import AGAIN_S, Runs


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "state")


def launch(folder=Path("/x"), **changes):
    return launch_record(
        assignment(**changes),
        folder=folder,
        python="/py",
        interface="lo",
        rendezvous="127.0.0.1:20000",
        environment={},
    )


def adopt(journal, attempt="a1", **records):
    """Runs made from a folder that holds a launch record and these."""
    journal.create(attempt, launch() | {"boot_id": records.pop("boot", boot_id())})
    for name, value in records.items():
        files.write_record(str(journal.attempt_folder(attempt) / f"{name}.json"), value)
    return Runs(journal, boot_id(), None)


def test_a_record_is_created_by_exactly_one_of_many(tmp_path):
    script = "import os, sys; from workers import files; input(); "
    script += f"print(files.create_record({str(tmp_path / 'claim.json')!r}, dict(by=os.getpid())))"
    rivals = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _number in range(4)
    ]
    for rival in rivals:
        rival.stdin.write(b"go\n")
        rival.stdin.flush()
    won = [rival.pid for rival in rivals if rival.communicate()[0] == b"True\n"]
    assert won == [files.read_record(str(tmp_path / "claim.json"))["by"]]
    assert os.listdir(tmp_path) == ["claim.json"]


def test_a_launch_record_and_the_way_to_it_are_durable_before_anything_starts(journal, monkeypatch):
    synced = []

    def fsync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        real_fsync(handle)

    real_fsync = os.fsync
    monkeypatch.setattr(os, "fsync", fsync)
    journal.create("a1", launch())
    folder = journal.attempt_folder("a1")
    assert synced == [str(path) for path in (folder / "launch.json", folder, folder.parent)]


def test_records_are_for_their_owner_only(journal):
    journal.create("a1", launch())
    folder = journal.attempt_folder("a1")
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "launch.json").stat().st_mode & 0o077 == 0


def test_a_folder_has_one_identity_for_ever(tmp_path):
    tell = "import sys, pathlib, workers.journal as w; print(w.Journal(pathlib.Path(sys.argv[1])).identity)"
    first, again, other = (
        subprocess.check_output([sys.executable, "-c", tell, str(tmp_path / name)]) for name in ("one", "one", "other")
    )
    assert first == again != other


def test_an_attempt_is_recorded_once(journal):
    journal.create("a1", launch())
    with pytest.raises(StartedBefore):
        journal.create("a1", launch(epoch=2))
    assert files.read_record(str(journal.attempt_folder("a1") / "launch.json"))["epoch"] == 1


def test_a_record_that_cannot_be_written_leaves_nothing(journal):
    with pytest.raises(OSError, match="File name too long"):
        journal.create("a" * 300, launch())
    assert journal.attempts() == []
    assert list(journal.attempts_folder.iterdir()) == []


def test_half_made_and_half_deleted_folders_are_cleared_away(tmp_path):
    for name in (".a1.draft", ".a2.doomed"):
        folder = tmp_path / "attempts" / name
        folder.mkdir(parents=True)
        (folder / "launch.json").touch()
    journal = Journal(tmp_path)
    assert list(journal.attempts_folder.iterdir()) == []


@pytest.mark.parametrize("attempt", ["", ".", "..", ".x", "a/b", "../x", "a\0b"])
def test_an_id_that_would_leave_the_folder_is_refused(journal, attempt):
    with pytest.raises(ValueError, match="cannot name a folder"):
        journal.create(attempt, launch())


def test_a_state_folder_is_for_one(tmp_path):
    first = Journal(tmp_path)
    with pytest.raises(StateFolderTaken, match=str(tmp_path)):
        Journal(tmp_path)
    assert first.attempts() == []


def test_a_bell_rings_and_nobody_minds_when_nobody_listens(journal):
    files.ring(str(journal.bell))
    listener = os.open(journal.bell, os.O_RDONLY | os.O_NONBLOCK)
    files.ring(str(journal.bell))
    files.ring(str(journal.bell))
    assert os.read(listener, 100) == b"!!"
    os.close(listener)
    files.ring(str(journal.folder / "no bell"))


def test_the_lease_is_written_for_supervisors(journal):
    journal.write_lease(Lease(fence_at_s=12.5, grace_s=3.0))
    assert files.read_record(str(journal.lease)) == {"fence_at_s": 12.5, "grace_s": 3.0}


# -- where a run stands, from its records

GONE = {"pid": 2**22 - 1, "start": 1}
ME = {"pid": os.getpid(), "start": int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])}
EXIT = {"reason": "failed", "message": "rank 0 exited with code 3", "exit_code": 3, "clean": True, "cpu_s": 2.5}


@pytest.mark.parametrize(
    ("records", "phase"),
    [
        ({}, Phase.LOST),
        ({"claim": ME}, Phase.STARTING),
        ({"claim": ME, "started": {}}, Phase.RUNNING),
        ({"claim": ME, "started": {}, "exit": EXIT}, Phase.ENDED),
        ({"claim": ME, "started": {}, "exit": EXIT | {"clean": False}}, Phase.ENDED),
        ({"claim": ME, "started": {}, "boot": "another"}, Phase.LOST),
        ({"claim": ME | {"start": ME["start"] + 1}, "started": {}}, Phase.LOST),
        ({"claim": GONE, "started": {}}, Phase.LOST),
        ({"claim": GONE, "started": {}, "exit": EXIT}, Phase.ENDED),
        ({"claim": GONE, "started": {}, "exit": EXIT | {"clean": False}}, Phase.LOST),
    ],
)
def test_the_phase_of_an_adopted_run(journal, records, phase):
    run = adopt(journal, **records).refresh()["a1"]
    assert run.phase is phase
    assert (run.exit is None) == ("exit" not in records)


def test_the_stop_and_the_end_are_read_back(journal):
    record = {"at_s": 5.0, "grace_s": 2.0, "reason": "fenced", "message": ""}
    run = adopt(journal, claim=GONE, stop=record, exit=EXIT).refresh()["a1"]
    assert run.stop == stop(at_s=5.0, grace_s=2.0, reason=EndReason.FENCED)
    assert (run.exit.reason, run.exit.exit_code, run.exit.cpu_s) == (EndReason.FAILED, 3, 2.5)


@pytest.mark.parametrize(
    ("records", "reason", "message"),
    [
        ({}, EndReason.UNKNOWN_START, "before it started a rank"),
        ({"claim": GONE, "started": {}}, EndReason.UNKNOWN_START, "its supervisor was killed"),
        ({"claim": GONE, "started": {}, "boot": "another"}, EndReason.UNKNOWN_START, "the machine was restarted"),
        (
            {"claim": GONE, "stop": {"at_s": 1, "grace_s": 1, "reason": "cancelled", "message": ""}},
            EndReason.CANCELLED,
            "before it started a rank",
        ),
        ({"claim": GONE, "exit": EXIT | {"clean": False}}, EndReason.FAILED, "exited with code 3"),
    ],
)
def test_a_lost_run_is_settled_for_good(journal, records, reason, message):
    runs = adopt(journal, **records)
    assert runs.refresh()["a1"].phase is Phase.LOST
    runs.settle("a1")
    for look in (runs, Runs(journal, boot_id(), None)):
        run = look.refresh()["a1"]
        assert run.phase is Phase.ENDED
        assert run.exit.clean
        assert run.exit.reason == reason
        assert message in run.exit.message


def test_what_was_killed_has_time_to_be_gone_before_the_end_is_told(journal, monkeypatch):
    now_s, is_gone = 100.0, False
    monkeypatch.setattr("workers.runs.time", SimpleNamespace(monotonic=lambda: now_s))
    runs = adopt(journal, claim=GONE, started={})
    runs.refresh()
    monkeypatch.setattr(runs, "clear", lambda attempt: is_gone)
    runs.settle("a1")
    now_s += 9.0
    runs.settle("a1")
    assert runs.refresh()["a1"].phase is Phase.LOST
    now_s += 1.0
    runs.settle("a1")
    assert not runs.refresh()["a1"].exit.clean
    now_s, is_gone = now_s + AGAIN_S, True
    runs.settle("a1")
    assert runs.refresh()["a1"].exit.clean


@pytest.mark.parametrize("name", ["claim", "started", "stop", "exit"])
def test_records_that_a_crash_of_the_machine_left_empty(journal, name):
    runs = adopt(journal, boot="another")
    (journal.attempt_folder("a1") / f"{name}.json").touch()
    runs = Runs(journal, boot_id(), None)
    assert runs.refresh()["a1"].phase is Phase.LOST
    runs.settle("a1")
    assert runs.refresh()["a1"].exit.reason == EndReason.UNKNOWN_START


def test_an_attempt_whose_launch_record_is_empty_never_ran(journal):
    adopt(journal)
    (journal.attempt_folder("a1") / "launch.json").write_bytes(b"")
    assert Runs(journal, boot_id(), None).refresh() == {}
    assert journal.attempts() == []


def test_a_settled_run_can_never_be_started(journal):
    runs = adopt(journal)
    runs.refresh()
    runs.settle("a1")
    assert not files.create_record(str(journal.attempt_folder("a1") / "claim.json"), ME)


def test_a_supervisor_that_claims_just_before_is_left_alone(journal):
    runs = adopt(journal)
    assert runs.refresh()["a1"].phase is Phase.LOST
    files.create_record(str(journal.attempt_folder("a1") / "claim.json"), ME)
    runs.settle("a1")
    assert runs.refresh()["a1"].phase is Phase.STARTING


def test_a_forgotten_run_leaves_nothing(journal):
    runs = adopt(journal, claim=GONE, exit=EXIT)
    runs.forget("a1")
    assert runs.refresh() == {}
    assert list(journal.attempts_folder.iterdir()) == []
