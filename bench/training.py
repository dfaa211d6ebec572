"""The same script under Ergon and under bare `torchrun`, on one machine: time of a steady step, and until the first.

    python -m bench.training [--pairs 10] [--blocks 40] [--steps 20]

Starts a local cluster as `ergon up` does, with the shipped defaults, and runs `bench/plain_script.py` with two ranks. A
pair is one run under each. They are started one after the other, Ergon's first, then torchrun's, and so on (ABBA).
Ergon's first step counts from just before `POST /v1/jobs`, with the code shipped once before, as `ergon submit` does;
torchrun's from just before it is executed. Both clocks are this machine's. Before the pairs each runs once and does not
count: the agent makes its starter then.

When both have taken their first step they take turns, in ABBA order again, in short blocks of steps: one trains while
the other waits, so that whatever else the machine does falls on both alike. So do the processes of the cluster: what
they take is told apart, as CPU time over the time that both train. A block's step time is the median of its steps.

Ratios are Ergon's over torchrun's. A pair's ratio of step times is the median over its couples of neighbouring blocks;
what is told is the geometric mean over pairs with a bootstrap interval of 95 %. Fails where the interval for the steps
lies above 1.01 or is wider than 0.04, or where Ergon's first step does not come 3 times sooner.
"""

import argparse
import contextlib
import json
import math
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.record import keep, table
from ergon.cli.local import LocalSettings, local_cluster
from ergon.client import Client
from ergon.shipping import pack_directory
from protocol.jobs import JobSpec
from protocol.states import JobState, Role
from workers import procfs

SCRIPT = Path(__file__).parent / "plain_script.py"
RANKS = 2
MOST_RATIO, WIDEST, LEAST_SPEEDUP = 1.01, 0.04, 3.0
RESAMPLES = 10_000
PATIENCE_S = 120.0
READY_S = 15.0
"""After the first runs: a starter imports for a few seconds, longer on a busy machine."""


class Script:
    """One run of the script, led through its FIFOs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        for name in ("said", *(f"go-{rank}" for rank in range(RANKS))):
            os.mkfifo(folder / name)
        self._said = os.open(folder / "said", os.O_RDWR | os.O_NONBLOCK)
        self._began_at = time.time()

    def first_s(self) -> float:
        """Seconds from when this object was made to the end of the first step."""
        return float(self._hear()) - self._began_at

    def step_s(self, steps: int) -> float:
        """Take a block of steps; the median of their times."""
        self._tell(steps)
        return statistics.median(json.loads(self._hear()))

    def end(self) -> None:
        """Have it end."""
        self._tell(0)
        os.close(self._said)

    def _tell(self, number: int) -> None:
        for rank in range(RANKS):
            (self.folder / f"go-{rank}").write_text(f"{number}\n")

    def _hear(self) -> str:
        text = b""
        while not text.endswith(b"\n"):
            assert select.select([self._said], [], [], PATIENCE_S)[0], f"nothing said in {PATIENCE_S:g} s"
            text += os.read(self._said, 65_536)
        return text.decode()


@contextlib.contextmanager
def under_torchrun(folder: Path) -> Iterator[Script]:
    """The script under bare torchrun."""
    script = Script(folder)
    command = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", str(RANKS), str(SCRIPT), str(folder)]
    # Where the kernel shares cores between sessions (sched(7), autogroup), each has one of its own, as jobs have.
    process = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield script
        script.end()
        assert process.wait(PATIENCE_S) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


@contextlib.contextmanager
def under_ergon(client: Client, code: str, folder: Path) -> Iterator[Script]:
    """The script as a job."""
    command = ["python", SCRIPT.name, str(folder)]
    spec = JobSpec(name="bench", command=command, code=code, devices_per_node=RANKS, device_kinds=["cpu"])
    script = Script(folder)
    job = client.submit(spec)
    yield script
    script.end()
    assert client.wait(job.id).state == JobState.SUCCEEDED, "".join(piece.text for piece in client.logs(job.id))


def cluster_cpu_s() -> float:
    """CPU time of the cluster's processes so far: of all below this one, but for torchrun and what agents started."""
    total_s = 0.0
    everything = procfs.read_processes().values()
    waiting = [os.getpid()]
    while waiting:
        parent = waiting.pop()
        for process in (process for process in everything if process.parent == parent):
            command = Path(f"/proc/{process.pid}/cmdline").read_text()
            if "torchrun" not in command:
                total_s += process.cpu_s
                waiting += [] if "\0workers\0" in command else [process.pid]
    return total_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Seconds until the first step under each, median step times in s, the ratio of those, and the part of one core
    that the cluster's processes took."""

    own_first_s: float
    other_first_s: float
    own_step_s: float
    other_step_s: float
    step_ratio: float
    cluster_share: float


def compare(own: Script, other: Script, *, firsts: tuple[float, float], blocks: int, steps: int) -> Pair:
    """Let both take turns."""
    couples: list[tuple[float, float]] = []
    cluster_s, began_s = -cluster_cpu_s(), time.monotonic()
    for number in range(blocks):
        if number % 2:
            second = other.step_s(steps)
            couples.append((own.step_s(steps), second))
        else:
            couples.append((own.step_s(steps), other.step_s(steps)))
    cluster_s += cluster_cpu_s()
    return Pair(
        own_first_s=firsts[0],
        other_first_s=firsts[1],
        own_step_s=statistics.median(first for first, _second in couples),
        other_step_s=statistics.median(second for _first, second in couples),
        step_ratio=statistics.median(first / second for first, second in couples),
        cluster_share=cluster_s / (time.monotonic() - began_s),
    )


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean, and its 95 % bootstrap interval: percentiles over means of pairs drawn again."""
    logs = [math.log(ratio) for ratio in ratios]
    chance = random.Random(0)
    means = sorted(statistics.fmean(chance.choices(logs, k=len(logs))) for _ in range(RESAMPLES))
    low, high = means[round(0.025 * RESAMPLES)], means[round(0.975 * RESAMPLES) - 1]
    return math.exp(statistics.fmean(logs)), math.exp(low), math.exp(high)


def measure(client: Client, code: str, root: Path, options: argparse.Namespace) -> list[Pair]:
    """All pairs."""

    def ours(number: int) -> contextlib.AbstractContextManager[Script]:
        return under_ergon(client, code, root / f"own-{number}")

    def theirs(number: int) -> contextlib.AbstractContextManager[Script]:
        return under_torchrun(root / f"other-{number}")

    pairs: list[Pair] = []
    for number in range(options.pairs + 1):
        with contextlib.ExitStack() as stack:
            if number % 2:
                other, other_s = _begin(stack, theirs(number))
                own, own_s = _begin(stack, ours(number))
            else:
                own, own_s = _begin(stack, ours(number))
                other, other_s = _begin(stack, theirs(number))
            pair = compare(own, other, firsts=(own_s, other_s), blocks=options.blocks, steps=options.steps)
        sys.stderr.write(f"{number}: {pair}\n")
        if number:
            pairs.append(pair)
        else:
            time.sleep(READY_S)
    return pairs


def _begin(stack: contextlib.ExitStack, run: contextlib.AbstractContextManager[Script]) -> tuple[Script, float]:
    """Start it; the script, and its time until the first step in s."""
    script = stack.enter_context(run)
    return script, script.first_s()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10, help="runs under each, after one that does not count")
    parser.add_argument("--blocks", type=int, default=40, help="turns of each in a pair")
    parser.add_argument("--steps", type=int, default=20, help="steps in a turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ergon-bench-") as name:
        root = Path(name)
        root.chmod(0o711)
        (root / "code").mkdir()
        (root / "code" / SCRIPT.name).write_bytes(SCRIPT.read_bytes())
        settings = LocalSettings(
            data_dir=root / "data", port=0, agents=1, slots_per_agent=RANKS, environment=dict(os.environ)
        )
        with local_cluster(settings) as cluster, Client(cluster.url, cluster.user_token("bench", Role.ADMIN)) as client:
            shipment = pack_directory(root / "code")
            client.ship(shipment.archive, shipment.digest)
            pairs = measure(client, shipment.digest, root, options)
    return tell(
        pairs, f"python -m bench.training --pairs {options.pairs} --blocks {options.blocks} --steps {options.steps}"
    )


def tell(pairs: Sequence[Pair], command: str) -> int:
    """Print and keep the figures; the exit code."""
    step = interval([pair.step_ratio for pair in pairs])
    first = interval([pair.own_first_s / pair.other_first_s for pair in pairs])
    rows = [
        (
            "steady step, ms",
            f"{1e3 * statistics.median(pair.own_step_s for pair in pairs):.2f}",
            f"{1e3 * statistics.median(pair.other_step_s for pair in pairs):.2f}",
            f"{step[0]:.3f} ({step[1]:.3f} to {step[2]:.3f})",
        ),
        (
            "until the first step, s",
            f"{statistics.median(pair.own_first_s for pair in pairs):.2f}",
            f"{statistics.median(pair.other_first_s for pair in pairs):.2f}",
            f"{first[0]:.3f} ({first[1]:.3f} to {first[2]:.3f})",
        ),
    ]
    text = table((f"{len(pairs)} pairs", "Ergon", "torchrun", "ratio, 95 % interval"), rows)
    share = statistics.median(pair.cluster_share for pair in pairs)
    text += f"\n\nErgon's first step comes {1 / first[0]:.1f} times sooner. While both train, database, API, cycle "
    text += f"and agent take {share:.1%} of one core. Load average: {os.getloadavg()[1]:.1f}."
    print(text)
    figures: dict[str, object] = {
        "pairs": len(pairs),
        "load": os.getloadavg()[1],
        "step_ratio": step,
        "first_ratio": first,
        "cluster_share": share,
    }
    keep("training", command=command, text=text, figures=figures)
    faults = [
        (step[1] > MOST_RATIO, f"a step takes longer than {MOST_RATIO} of torchrun's"),
        (step[2] - step[1] > WIDEST, f"the interval for steps is wider than {WIDEST}"),
        (1 / first[0] < LEAST_SPEEDUP, f"the first step does not come {LEAST_SPEEDUP:g} times sooner"),
    ]
    for is_so, fault in faults:
        if is_so:
            print(fault, file=sys.stderr)
    return int(any(is_so for is_so, _fault in faults))


if __name__ == "__main__":
    sys.exit(main())
