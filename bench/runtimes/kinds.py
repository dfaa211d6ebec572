"""How far run times on one kind of device tell those on another: where `scheduler.kinds` has its numbers from.

    python -m bench.runtimes.kinds [--data DIR]

DIR (or ERGON_BENCH_DATA) holds `sia/` and `gavel/`. Of every program and batch that was measured alone on one device of
two kinds, the ratio of the times is compared with a guess: that the kinds are equally fast, that they are as fast as
they draw power, the median ratio of the other programs, and what `scheduler.kinds` makes of the others, or of one of
them only. Printed is the root mean square of the logarithm.
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
from scheduler.kinds import Speeds, fit_speeds
from scheduler.power import active_w

SIA = {"aws": "t4", "dgx": "a100", "quad": "rtx6000", "rtx": "rtx2080ti"}
"""Kinds of devices of Sia's clusters, the two of unclear kinds left out. `scheduler.power` does not know the last."""

GAVEL = ("k80", "p100", "v100")
_NAME = re.compile(r"\('(?P<program>[^(]+) ?(?P<batch>\(.*\))?', 1\)")


HEADER = (
    "measurements",
    "pairs",
    "equally fast",
    "as fast as they draw",
    "other programs",
    "learned of one",
    "learned of all others",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A program with one batch: its time on a device of kind `slow` and on one of kind `fast`, in s."""

    program: str
    batch: str
    slow: str
    fast: str
    slow_s: float
    fast_s: float

    @property
    def ratio(self) -> float:
        """How many times as long it takes on the slow one."""
        return self.slow_s / self.fast_s


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
    print(table(HEADER, rows))
    return 0


def errors(pairs: Sequence[Pair]) -> tuple[float, ...]:
    """Root mean squares of the logarithm of measured over guessed ratio, for each of the guesses."""
    programs = sorted({pair.program for pair in pairs})

    def others(pair: Pair) -> float:
        same = (pair.slow, pair.fast)
        return median(one.ratio for one in pairs if (one.slow, one.fast) == same and one.program != pair.program)

    def learned(program: str, fewest: int | None) -> Speeds:
        place = programs.index(program)
        known = [*programs[place + 1 :], *programs[:place]][:fewest]
        works: dict[tuple[str, str], dict[str, float]] = {}
        for pair in pairs:
            if pair.program in known:
                works.setdefault((pair.program, pair.batch), {}).update(
                    {pair.slow: pair.slow_s, pair.fast: pair.fast_s}
                )
        return fit_speeds(list(works.values()))

    of_all = {program: learned(program, None) for program in programs}
    of_one = {program: learned(program, 1) for program in programs}
    guesses: list[Callable[[Pair], float]] = [
        lambda pair: 1.0,
        lambda pair: active_w(pair.fast) / active_w(pair.slow),
        others,
        lambda pair: of_one[pair.program].factor(pair.fast, pair.slow),
        lambda pair: of_all[pair.program].factor(pair.fast, pair.slow),
    ]
    return tuple(sqrt(fmean(log(pair.ratio / guess(pair)) ** 2 for pair in pairs)) for guess in guesses)


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
        Pair(program=program, batch=batch, slow=slow, fast=fast, slow_s=by_kind[slow], fast_s=by_kind[fast])
        for (program, batch), by_kind in times.items()
        for slow, fast in permutations(by_kind, 2)
    ]


if __name__ == "__main__":
    sys.exit(main())
