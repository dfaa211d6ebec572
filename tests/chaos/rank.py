"""A rank under chaos: tells when it starts, that it lives, and when it ends; holds a device that the kernel watches.

Usage: rank.py EVENTS LOCKS SLOTS sleep|exit|train AMOUNT. Imports nothing of ours.
"""

import contextlib
import fcntl
import json
import os
import sys
import threading
import time
from pathlib import Path

ALIVE_EVERY_S = 0.1
pass_time = threading.Event().wait  # a rank's work is to let time pass


def main() -> int:
    events, locks, slots, work, amount = (
        sys.argv[1],
        Path(sys.argv[2]),
        int(sys.argv[3]),
        sys.argv[4],
        float(sys.argv[5]),
    )
    file = os.open(events, os.O_WRONLY | os.O_APPEND)
    # The ranks of one node share a network namespace, and those of two do not: this is where we run, whoever sent us.
    node = os.stat("/proc/self/ns/net").st_ino
    me = {"job": os.environ["ERGON_JOB_ID"], "epoch": int(os.environ["ERGON_EPOCH"]), "rank": int(os.environ["RANK"])}

    def tell(what: str) -> None:
        line = {"what": what, "at": time.clock_gettime(time.CLOCK_BOOTTIME), "node": node, "pid": os.getpid(), **me}
        os.write(file, json.dumps(line).encode() + b"\n")

    tell("start")
    with contextlib.ExitStack() as held:
        if not any(take(held, Path(locks) / f"{node}-{slot}") for slot in range(int(slots))):
            tell("double")
        threading.Thread(target=lambda: beat(tell), daemon=True).start()
        print("up", flush=True)
        code = {"sleep": sleep, "exit": fail, "train": train}[work](float(amount))
        print("done", flush=True)
        tell("end")
        return code


def take(held: contextlib.ExitStack, path: Path) -> bool:
    """Whether this device was free. It is ours until this process is gone, however it goes."""
    device = held.enter_context(path.open("w"))
    try:
        fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def beat(tell) -> None:
    while True:
        pass_time(ALIVE_EVERY_S)
        tell("alive")


def sleep(seconds: float) -> int:
    for number in range(int(seconds * 10)):
        pass_time(0.1)
        print("line", number, flush=True)
    return 0


def fail(seconds: float) -> int:
    pass_time(seconds)
    return 3


def train(steps: float) -> int:
    """All ranks sum what each of them knows, over and over, and must agree."""
    import torch  # noqa: PLC0415 - the other works start faster
    import torch.distributed as dist  # noqa: PLC0415

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for step in range(int(steps)):
        share = torch.tensor([float(dist.get_rank() + step)])
        dist.all_reduce(share)
        expected = sum(rank + step for rank in range(dist.get_world_size()))
        if share.item() != expected:
            return 4
        print("step", step, flush=True)
        pass_time(0.1)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
