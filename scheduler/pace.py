"""How fast an attempt gets on, from the progress that one of its ranks reports, and when it has done all of it.

Only steps that were heard of in this attempt count: one that goes on from a checkpoint begins at its first report. All
times are of one clock, the listener's; what the ranks' clocks say is nowhere used.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal

from scheduler.runtimes import GUESS_SIGMA, SHORTEST_RUN_S, RunTime, Source

FINEST = 1 / 16
"""Marks are at least this part of the time watched apart, so that there are few of them."""

JITTER_S = 5.0
"""How much later or earlier than another a report may be heard [assumed: what agents batch]."""

NOISE = 0.05
"""How far the logarithm of a steady pace is off at least, for evaluations and checkpoints that are still to come
[assumed]."""

LAST_S = 60.0
"""How much longer a job needs whose ranks have done all they said: results are saved, outputs stored [assumed]."""

MOST_SIGMA = 0.5
"""A pace that is known less well than this is not believed."""

Mark = tuple[int, float]
"""So much was done at this time, in s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a rank says that it has reached. What it does not say is None."""

    rank: int
    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    total_epochs: int | None = None

    @property
    def by_epochs(self) -> bool:
        """Whether its steps cannot be those of the whole run: there is no total, or they disagree with the epochs by
        more than an epoch and a half.
        """
        if self.epoch is None or not self.total_epochs:
            return False
        if self.step is None or not self.total_steps:
            return True
        return abs(self.step / self.total_steps - self.epoch / self.total_epochs) > 1.5 / self.total_epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What rank `rank` has reached over time, counted `by` steps, or by epochs where its steps are of no use; by
    nothing where neither is. `marks` rise in both; `total` is what is to be done in all, 0 if nobody has said.
    """

    rank: int
    by: Literal["step", "epoch", "nothing"] = "step"
    total: int = 0
    marks: tuple[Mark, ...] = ()


def heard(pace: Pace | None, line: Line, at_s: float) -> Pace:
    """The pace after one more line. The first rank that is heard is the one that is listened to.

    A count that goes back is not one of the whole run, such as steps that begin anew with each epoch: it is not
    believed any more, for as long as the attempt lasts.
    """
    pace = pace or Pace(rank=line.rank)
    if line.rank != pace.rank or pace.by == "nothing":
        return pace
    if pace.by == "step" and line.by_epochs and not (pace.total and line.total_steps is None):
        pace = Pace(rank=pace.rank, by="epoch")
    by_steps = pace.by == "step"
    done, total = (line.step, line.total_steps) if by_steps else (line.epoch, line.total_epochs)
    pace = pace if total is None else replace(pace, total=total)
    if done is None:
        return pace
    if pace.marks and done < pace.marks[-1][0]:
        lower = Pace(rank=pace.rank, by="epoch" if by_steps else "nothing")
        return heard(lower, line, at_s)
    return replace(pace, marks=_with(pace.marks, (done, at_s)))


def time_left(pace: Pace, now_s: float) -> RunTime | None:
    """How long what is left to do takes; None where that does not follow from the pace.

    It is that of the later half of the time watched; how far it is from the pace of all of it makes the spread. After a
    silence longer than any before, the silence counts as time that the steps took.
    """
    if len(pace.marks) < 2 or pace.marks[-1][0] > pace.total:
        return None
    (first_done, first_s), (done, last_s) = pace.marks[0], pace.marks[-1]
    if done == pace.total:
        return RunTime(median_s=LAST_S, sigma=GUESS_SIGMA, source=Source.PROGRESS)
    half_done, half_s = next(mark for mark in reversed(pace.marks[:-1]) if mark[1] <= (first_s + last_s) / 2)
    silent_s = max(0.0, now_s - last_s)
    hung = silent_s > max(later[1] - earlier[1] for earlier, later in itertools.pairwise(pace.marks))
    until_s = now_s if hung else last_s
    each_s = (until_s - half_s) / (done - half_done)
    all_s = (until_s - first_s) / (done - first_done)
    sigma = math.hypot(NOISE, math.log(each_s / all_s), JITTER_S / (until_s - half_s))
    if sigma > MOST_SIGMA:
        return None
    left_s = (pace.total - done) * each_s - (0.0 if hung else silent_s)
    return RunTime(median_s=max(SHORTEST_RUN_S, left_s), sigma=sigma, source=Source.PROGRESS)


def _with(marks: tuple[Mark, ...], mark: Mark) -> tuple[Mark, ...]:
    """The marks and one that is not below them, evenly spaced but for the last."""
    if not marks:
        return (mark,)
    done, last_s = marks[-1]
    if mark[0] == done:
        return marks
    if mark[1] <= last_s:  # more at once, or a clock that was set back
        return (*marks[:-1], (mark[0], last_s))
    apart_s = (mark[1] - marks[0][1]) * FINEST
    kept = [marks[0]]
    for between in marks[1:]:
        if between[1] - kept[-1][1] >= apart_s:
            kept.append(between)
    return (*kept, mark)
