"""How far run times on one kind of device tell those on another: what `scheduler.runtimes.KIND_SIGMA` comes from.

    python -m bench.runtimes.kinds [--data DIR]

DIR (or ERGON_BENCH_DATA) holds `sia/` and `gavel/`. Of every program and batch that was measured alone on one device of
two kinds, the ratio of the times is compared with a guess: that the kinds are equally fast, that they are as fast as
they draw power, and the median ratio of the other programs. Printed is the root mean square of the logarithm.
"""

import argparse
import csv
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import log, sqrt
from pathlib import Path
from statistics import fmean, median

from bench.record import table
from bench.runtimes.sia import PROGRAMS
from scheduler.power import active_w

SIA = {"aws": "t4", "dgx": "a100", "quad": "rtx6000", "rtx": "rtx2080ti"}
"""Kinds of devices of Sia's clusters, the two of unclear kinds left out. `scheduler.power` does not know the last."""

GAVEL = ("k80", "p100", "v100")
_NAME = re.compile(r"\('(?P<program>[^(]+) ?(?P<batch>\(.*\))?', 1\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A program that takes `ratio` times as long on a device of kind `slow` as on one of kind `fast`."""

    program: str
    slow: str
    fast: str
    ratio: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.runtimes.kinds")
    parser.add_argument("--data", type=Path, default=os.environ.get("ERGON_BENCH_DATA"), help="the folder of data")
    data = parser.parse_args().data
    if data is None:
        print("bench.runtimes.kinds: give --data or ERGON_BENCH_DATA", file=sys.stderr)
        return 2
    try:
        measured = {"Sia": read_sia(data), "Gavel": read_gavel(data)}
    except OSError as error:
        print(f"bench.runtimes.kinds: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    rows = [(name, str(len(pairs)), *(f"{error:.2f}" for error in errors(pairs))) for name, pairs in measured.items()]
    print(table(("measurements", "pairs", "equally fast", "as fast as they draw", "other programs"), rows))
    return 0


def errors(pairs: Sequence[Pair]) -> tuple[float, float, float]:
    """Root mean squares of the logarithm of measured over guessed ratio, for each of the three guesses."""

    def others(pair: Pair) -> float:
        same = (pair.slow, pair.fast)
        return median(one.ratio for one in pairs if (one.slow, one.fast) == same and one.program != pair.program)

    guesses: list[Callable[[Pair], float]] = [
        lambda pair: 1.0,
        lambda pair: active_w(pair.fast) / active_w(pair.slow),
        others,
    ]
    equal, power, rest = (sqrt(fmean(log(pair.ratio / guess(pair)) ** 2 for pair in pairs)) for guess in guesses)
    return equal, power, rest


def read_sia(data: Path) -> list[Pair]:
    """Step times on one device. Raises OSError."""
    times: dict[tuple[str, str], dict[str, float]] = {}
    for program in PROGRAMS:
        for cluster, kind in SIA.items():
            with (data / "sia" / "traces" / program / f"placements-{cluster}.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    if row["placement"] == "1":
                        times.setdefault((program, row["local_bsz"]), {})[kind] = float(row["step_time"])
    return _pairs(times)


def read_gavel(data: Path) -> list[Pair]:
    """Throughputs alone on one device. Raises OSError."""
    found = json.loads((data / "gavel" / "simulation_throughputs.json").read_text())
    times: dict[tuple[str, str], dict[str, float]] = {}
    for kind in GAVEL:
        for name, beside in found[kind].items():
            if (parts := _NAME.fullmatch(name)) and beside["null"]:
                times.setdefault((parts["program"], parts["batch"] or ""), {})[kind] = 1 / beside["null"]
    return _pairs(times)


def _pairs(times: dict[tuple[str, str], dict[str, float]]) -> list[Pair]:
    return [
        Pair(program=program, slow=slow, fast=fast, ratio=by_kind[slow] / by_kind[fast])
        for (program, _), by_kind in times.items()
        for slow, fast in permutations(by_kind, 2)
    ]


if __name__ == "__main__":
    sys.exit(main())
