"""`make chaos`: a real cluster, people who use it, and faults; then peace, then judgement."""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.db import connect
from tests.chaos import clocks
from tests.chaos.cluster import LEASE_S, Cluster, cluster, token
from tests.chaos.history import History
from tests.chaos.judge import Watcher, judge
from tests.chaos.nemesis import Nemesis
from tests.chaos.people import Person, rank_command
from tests.netns import bridge

NODES = 3
CLIENTS = 4
PEACE_S = 420.0
"""What everything may take to come to its end: the longest back-off of a job, and then some."""
MEND_EVERY_S = 5.0
WATCH_EVERY_S = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long things break (60)")
    parser.add_argument("--seed", type=int, default=1, help="what breaks, and when, follows from it")
    parser.add_argument("--judge", type=Path, help="judge the files of an earlier run again, and nothing else")
    options = parser.parse_args()
    if options.judge:
        return tell(options.judge)
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print("chaos: needs root and the command `ip` (package iproute2)", file=sys.stderr)
        return 2
    if clocks.LIBRARY is None:
        print("chaos: needs libfaketime, for clocks that jump (package libfaketime)", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="ergon-chaos-"))
    folder.chmod(0o711)
    print(f"everything is in {folder}; judge it again with --judge {folder}", flush=True)
    rage(folder, options.seconds, options.seed)
    return tell(folder)


def tell(folder: Path) -> int:
    """Print figures and violations; 1 if there is one."""
    violations, figures = judge(folder)
    print("\n".join([*figures, f"violations: {len(violations)}", *violations]))
    return 1 if violations else 0


def rage(folder: Path, seconds: float, seed: int) -> None:
    (folder / "locks").mkdir()
    (folder / "ranks.jsonl").touch()
    history = History(folder / "history.jsonl")
    over, storm_over = threading.Event(), threading.Event()
    with bridge() as network, cluster(folder, network, NODES) as whole:
        environment = whole.database.environment
        user = token(folder, environment, "user", "alice")
        admin = token(folder, environment, "user", "root", "--role", "admin")
        people = [
            Person(number, seed, whole.url, user, history, rank_command(folder)) for number in range(1, CLIENTS + 1)
        ]
        threads = [threading.Thread(target=person.live, args=(storm_over, over)) for person in people]
        threads.append(threading.Thread(target=mend, args=(whole, admin, over)))
        threads.append(threading.Thread(target=watch, args=(whole, history, over)))
        for thread in threads:
            thread.start()
        history.add("chaos", "info", "storm", seed=seed, seconds=seconds, lease_s=LEASE_S)
        try:
            Nemesis(whole, history, seed).rage(over, seconds)
            storm_over.set()
            history.add("chaos", "info", "peace")
            print("the faults are over; waiting for everything to end", flush=True)
            started = time.monotonic()
            for thread in threads[:CLIENTS]:
                thread.join(max(0.0, PEACE_S - (time.monotonic() - started)))
            wait_until_released(whole, PEACE_S / 4)
            history.add("chaos", "info", "end")
        finally:
            over.set()
            for thread in threads:
                thread.join()


def mend(whole: Cluster, admin: str, over: threading.Event) -> None:
    """An administrator who opens nodes again that were closed because nothing would start there."""
    with httpx.Client(base_url=whole.url, timeout=4.0, headers={"Authorization": f"Bearer {admin}"}) as http:
        while not over.wait(MEND_EVERY_S):
            for agent in whole.agents:
                with contextlib.suppress(httpx.HTTPError):
                    http.post(f"/v1/nodes/{agent.name}/uncordon")


def watch(whole: Cluster, history: History, over: threading.Event) -> None:
    engine = connect(whole.database_url, pool_size=1)
    watcher = Watcher(engine)
    while not over.wait(WATCH_EVERY_S):
        with contextlib.suppress(DBAPIError, PoolTimeout):
            for said in watcher.look():
                history.add("watch", "violation", "look", said=said)
    history.add("watch", "info", "looks", times=watcher.looks)
    engine.dispose()


def wait_until_released(whole: Cluster, patience_s: float) -> None:
    """A job has ended before its devices are clean."""
    with psycopg.connect(whole.database_url, autocommit=True) as connection:
        query = "SELECT count(*) FROM allocations WHERE released_at IS NULL"
        for _ in range(int(patience_s / 0.5)):
            if connection.execute(query).fetchone() == (0,):
                return
            threading.Event().wait(0.5)


if __name__ == "__main__":
    sys.exit(main())
