"""`python -m tests.simulation`: many seeds, or one that is told in full. `make sim` calls it."""

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter

from tests.simulation.databases import server
from tests.simulation.history import Outcome, live


def main() -> int:
    """1 if a seed broke a rule."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one, and print all that happened")
    parser.add_argument("--seeds", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with server() as url:
        if options.seed is not None:
            return _tell(live((url, options.seed)))
        seeds = range(options.first, options.first + options.seeds)
        return _run(url, seeds, options.processes)


def _tell(outcome: Outcome) -> int:
    print("\n".join(outcome.trace))
    print(f"seed {outcome.seed}, trace {outcome.trace_hash}, {len(outcome.violations)} violations")
    return 1 if outcome.violations else 0


def _run(url: str, seeds: range, processes: int) -> int:
    faults: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    failed: list[Outcome] = []
    started_s = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(
        processes, initializer=logging.disable, initargs=(logging.CRITICAL,), maxtasksperchild=50
    ) as pool:
        work = ((url, seed) for seed in seeds)
        for number, outcome in enumerate(pool.imap_unordered(live, work), 1):
            faults += outcome.faults
            counts += outcome.counts
            if outcome.violations:
                failed.append(outcome)
                print(f"seed {outcome.seed} breaks {len(outcome.violations)} rules: {outcome.violations[0]}")
                print(f"    make sim SEED={outcome.seed}", flush=True)
            if number % 25 == 0 or number == len(seeds):
                print(
                    f"{number} of {len(seeds)} seeds, {time.monotonic() - started_s:.0f} s, {len(failed)} failed",
                    flush=True,
                )
    _print_table("what happened", counts)
    _print_table("faults", faults)
    return 1 if failed else 0


def _print_table(title: str, numbers: Counter[str]) -> None:
    print(f"\n{title}, {sum(numbers.values())} in all:" if title == "faults" else f"\n{title}:")
    for name, number in sorted(numbers.items()):
        print(f"{number:9d} {name}")


if __name__ == "__main__":
    sys.exit(main())
