"""How long from `POST /v1/jobs` to the exec of the user's command line, on an idle cluster of two nodes.

    python -m bench.latency [--jobs 200]

Starts a local cluster as `ergon up` does, with the shipped defaults, and submits one job after another. Each job's
command line is `date`, which prints the moment it runs; both clocks are this machine's. Fails when the median is not
under the budget of 250 ms.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from bench.record import keep, quantile, table
from ergon.cli.local import LocalSettings, local_cluster
from ergon.client import Client
from protocol.jobs import JobSpec
from protocol.states import JobState, Role

BUDGET_P50_S = 0.250
WARM_UP = 5


def measure(client: Client, jobs: int) -> list[float]:
    """Seconds from just before the POST to what `date` printed, one value a job."""
    waits: list[float] = []
    for number in range(jobs + WARM_UP):
        spec = JobSpec(name=f"latency-{number}", command=["date", "+%s.%N"], device_kinds=["cpu"])
        posted_at = time.time()
        job = client.submit(spec)
        done = client.wait(job.id)
        assert done.state == JobState.SUCCEEDED, done
        printed = "".join(piece.text for piece in client.logs(job.id))
        waits.append(float(printed) - posted_at)
    return waits[WARM_UP:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200, help=f"jobs to measure, after {WARM_UP} to warm up")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ergon-bench-") as name:
        Path(name).chmod(0o711)
        settings = LocalSettings(
            data_dir=Path(name) / "data", port=0, agents=2, slots_per_agent=1, environment=dict(os.environ)
        )
        with local_cluster(settings) as cluster:
            token = cluster.user_token("bench", Role.ADMIN)
            with Client(cluster.url, token) as client:
                waits = measure(client, options.jobs)
    figures = {
        "n": len(waits),
        "min_ms": min(waits) * 1e3,
        "p50_ms": quantile(waits, 0.50) * 1e3,
        "p90_ms": quantile(waits, 0.90) * 1e3,
        "p99_ms": quantile(waits, 0.99) * 1e3,
        "max_ms": max(waits) * 1e3,
    }
    text = table(
        ("POST to exec", "n", "min", "p50", "p90", "p99", "max"),
        [("ms", figures["n"], *(f"{figures[key]:.0f}" for key in list(figures)[1:]))],
    )
    print(text)
    keep("latency", command=f"python -m bench.latency --jobs {options.jobs}", text=text, figures=dict(figures))
    if figures["p50_ms"] >= BUDGET_P50_S * 1e3:
        print(f"over the budget: the median must be under {BUDGET_P50_S * 1e3:g} ms", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
