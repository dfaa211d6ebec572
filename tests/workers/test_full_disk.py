"""A node whose disk is full: what it runs ends as it would have, and is told of."""

import os

import pytest

from protocol.states import AttemptState, EndReason
from tests.tmpfs import needs_root, small_disk
from tests.workers import builders
from workers import files

pytestmark = pytest.mark.system

A1, A2, A3 = (f"full-{number}-{os.getpid()}" for number in (1, 2, 3))


@needs_root
def test_a_full_disk_costs_output_and_neither_the_job_nor_the_agent(service, agent, gate):
    """The job prints 100 MB onto a disk of 16 MiB; the next one runs, and once there is room its output is whole."""
    hold = gate()
    flood = ["sh", "-c", "head -c 100000000 /dev/zero | tr '\\0' x; exit 7"]
    with small_disk(16) as disk:
        one = agent(state=disk.folder / "state").wait_ready()
        disk.fill(leave=4 << 20)
        service.grant(builders.assignment(A1, command=flood))
        report = service.wait_forgotten(A1)
        assert (report.reason, report.exit_code, report.clean) == (EndReason.FAILED, 7, True)
        kept = len(service.text(A1).partition("\n")[0])
        assert (
            f"{100_000_000 - kept} bytes of rank-0.stdout were dropped: the disk of the node is almost full"
            in report.message
        )
        assert kept < 5 << 20
        service.grant(builders.assignment(A2, command=hold.script("echo whole")))
        hold.wait_up()
        service.wait_state(A2, AttemptState.RUNNING)
        disk.fill()
        syncs = service.syncs
        service.set(lease_s=4.0)
        service.wait_syncs(syncs + 4)  # the lease is renewed on a disk without room
        hold.open()
        report = service.wait_forgotten(A2)
        assert (report.reason, report.exit_code) == (EndReason.COMPLETED, 0)
        disk.make_room()
        service.grant(builders.assignment(A3, command=["echo", "whole"]))
        assert service.wait_forgotten(A3).reason == EndReason.COMPLETED
        assert service.text(A3) == "whole\n"
        assert one.terminate()[0] == 0
        one.close()


@needs_root
def test_a_claim_is_taken_once_on_a_full_disk_too():
    with small_disk(1) as disk:
        files.set_aside(str(disk.folder), 1)
        disk.fill()
        claim = str(disk.folder / "claim.json")
        assert [files.create_record(claim, {"pid": pid}) for pid in (1, 2)] == [True, False]
        assert files.read_record(claim) == {"pid": 1}
        with pytest.raises(OSError, match="No space"):
            files.create_record(str(disk.folder / "other.json"), {})
