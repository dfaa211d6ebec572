"""Values for the tests of the agent, with everything that does not matter filled in."""

from protocol.states import AttemptState, Desired, EndReason
from protocol.sync import Assignment, DeviceGrant
from workers.reconcile import Exit, Phase, Run, Stop


def assignment(attempt: str = "a1", **changes: object) -> Assignment:
    """A fresh grant of one member with one rank on one CPU slot."""
    values: dict[str, object] = {
        "attempt": attempt,
        "job": f"job-of-{attempt}",
        "job_name": "job",
        "user": "ann",
        "epoch": 1,
        "desired": Desired.RUN,
        "observed": AttemptState.GRANTED,
        "command": ["true"],
        "recipe": None,
        "env": {},
        "member": 0,
        "members": 1,
        "ranks": 1,
        "devices": [cpu_slot(0)],
        "cpu_cores": 1.0,
        "memory_bytes": 0,
        "rendezvous": None,
        "time_limit_s": None,
        "stop_grace_s": 10.0,
    }
    return Assignment.model_validate(values | changes)


def cpu_slot(number: int) -> DeviceGrant:
    return DeviceGrant(id=f"cpu:machine:{number}", kind="cpu", index=number, thousandths=1000)


def gpu(uuid: str, index: int) -> DeviceGrant:
    return DeviceGrant(id=uuid, kind="h100", index=index, thousandths=1000)


def run(attempt: str = "a1", phase: Phase = Phase.RUNNING, **changes: object) -> Run:
    values: dict[str, object] = {"attempt": attempt, "epoch": 1, "phase": phase, "stop_grace_s": 10.0}
    return Run(**(values | changes))  # pyright: ignore[reportArgumentType]


def ended(reason: EndReason = EndReason.COMPLETED, *, clean: bool = True, exit_code: int | None = 0) -> Exit:
    return Exit(reason=reason, message="", exit_code=exit_code, clean=clean, cpu_s=1.0)


def stop(at_s: float = 0.0, grace_s: float = 10.0, reason: EndReason = EndReason.CANCELLED) -> Stop:
    return Stop(at_s=at_s, grace_s=grace_s, reason=reason)
