"""How long jobs are expected to run and what they draw: what the database knows of them, put before
`scheduler.runtimes`, `scheduler.pace` and `scheduler.draws`.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from protocol.jobs import ExpectedView, JobSpec
from scheduler.draws import Draw, Metered, expected_draw
from scheduler.kinds import Speed, Speeds, fit_speeds
from scheduler.pace import Line, Pace, time_left
from scheduler.pace import heard as heard_line
from scheduler.problem import WHOLE_DEVICE
from scheduler.runtimes import LONGEST_RUN_S, SHORTEST_RUN_S, Known, Run, RunTime, Size, Source, whole_run
from service.db import Record
from service.store import run_times as store

SAME_WORK = {"command", "recipe", "env", "image", "code", "python", "requirements", "datasets"}
"""Fields of a spec that decide what is computed. What it runs on, and when, makes no other work of it."""

MOST_RUNS = 10
"""Past runs of the same work that are learned from, the latest."""

MOST_ESTIMATES = 50
"""Past estimates of a user that are learned from, the latest."""

MOST_WORKS = 5_000
"""Past jobs from which is learned how fast kinds of devices are, the latest."""

LEAST_TOLD_S = 60.0
"""Shorter runs say little of a kind of device: they are start-up mostly."""

Work = tuple[str, str | None]
"""A user's id and a signature. What others ran tells nothing: the same words may name another file of theirs."""


def signature(spec: JobSpec) -> str:
    """What two jobs have in common that do the same work: 16 hexadecimal digits.

    Fields that a later version adds do not change it while they are unset.
    """
    parts = spec.model_dump(mode="json", include=SAME_WORK, exclude_defaults=True)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


_BELIEVED = list(Source)
_BECAUSE = {
    Source.PROGRESS: "from its progress",
    Source.PAST_RUNS: "from {runs} of the same work",
    Source.OTHER_SIZES: "from {runs} of the same work on other numbers of devices",
    Source.OTHER_KINDS: "from {runs} of the same work on another kind of device",
    Source.CORRECTED_ESTIMATE: "from the estimate, and how {runs} came out that had one",
    Source.ESTIMATE: "from the estimate",
    Source.TIME_LIMIT: "half the time limit, for nothing else is known",
    Source.DEFAULT: "a guess, for nothing is known",
}


class RunTimes:
    """What is known of the works that were asked for.

    Args:
        runs: of each work, those of the size that ran last first.
        ratios: of each user, real over stated run times.
        metered: of each work, what was counted on each kind.
        speeds: how fast kinds are beside each other.
    """

    def __init__(
        self,
        runs: Mapping[Work, Sequence[Run]],
        ratios: Mapping[str, Sequence[float]],
        metered: Mapping[Work, Mapping[str, Metered]],
        speeds: Speeds,
    ) -> None:
        self._runs = runs
        self._ratios = ratios
        self._metered = metered
        self._speeds = speeds
        self._whole: dict[tuple[Work, float | None, int, float | None, Size], RunTime] = {}

    def whole(self, work: Work, spec: JobSpec, kind: str, nodes: int) -> RunTime:
        """How long a job of this work runs on so many nodes with devices of this kind, from its start to its end."""
        share = round(spec.device_share * WHOLE_DEVICE)
        size = Size(nodes=nodes, devices=spec.devices_per_node, kind=kind, share=share)
        key = (work, spec.expected_run_s, spec.sizes[0], spec.time_limit_s, size)
        if key not in self._whole:
            known = Known(
                runs=self._runs.get(work, ()),
                stated_s=spec.expected_run_s,
                stated_nodes=spec.sizes[0],
                limit_s=spec.time_limit_s,
                ratios=self._ratios.get(work[0], ()),
                kinds=tuple(spec.device_kinds or self._speeds.by_kind),
                speeds=self._speeds,
            )
            self._whole[key] = whole_run(known, size)
        return self._whole[key]

    def draw(self, work: Work, kind: str) -> Draw:
        """What a device of this kind is expected to draw for a job of this work."""
        return expected_draw(kind, self._metered.get(work, {}))

    def device_w(self, work: Work) -> Callable[[str], float]:
        """What a device draws above its bare idle for a job of this work, in W, by kind."""
        return lambda kind: self.draw(work, kind).active_w

    def next_try(self, job: Record, spec: JobSpec, kind: str, nodes: int) -> RunTime:
        """How long a job that waits runs on so many nodes with devices of this kind: all of it, or what its checkpoint
        leaves.
        """
        return self.whole((job.user_id, job.signature), spec, kind, nodes).part(_share_left(job))

    def left(self, member: Record, now: datetime) -> RunTime:
        """How much longer an attempt needs that holds nodes. `member` is a row of `attempts.held_work`."""
        spec = JobSpec.model_validate(member.spec)
        share = _share_left(member) * member.slower
        work = self.whole((member.user_id, member.signature), spec, member.kind, member.nodes).part(share)
        if member.started_at is None:
            return work
        saved = member.checkpoint_epoch == member.epoch
        since_s = (now - (member.checkpoint_at if saved else member.started_at)).total_seconds()
        pace = _pace(member.pace, member.epoch)
        left = (pace and time_left(pace, now.timestamp())) or work.after(since_s)
        return left.within((spec.time_limit_s or LONGEST_RUN_S) - (now - member.started_at).total_seconds())

    def left_on(self, member: Record, now: datetime) -> Callable[[str, int], float]:
        """How much longer an attempt that holds nodes would need on so many nodes with devices of a kind, in s: what it
        needs where it is without a power cap, and as much more or less elsewhere as a whole run would take there.
        `member` as for `left`.
        """
        work, spec = (member.user_id, member.signature), JobSpec.model_validate(member.spec)
        left_s, here_s = self.left(member, now).median_s, self.whole(work, spec, member.kind, member.nodes).median_s
        left_s /= member.slower
        return lambda kind, nodes: left_s * self.whole(work, spec, kind, nodes).median_s / here_s

    def has_seen(self, member: Record, nodes: int) -> bool:
        """Whether past runs tell how fast the work of an attempt is on so many nodes with its devices. `member` as for
        `left`.
        """
        work, spec = (member.user_id, member.signature), JobSpec.model_validate(member.spec)
        return self.whole(work, spec, member.kind, nodes).source in (Source.PAST_RUNS, Source.OTHER_SIZES)

    def best_known(self, job: Record, spec: JobSpec) -> tuple[str, RunTime]:
        """The kind of devices, of those that a job accepts that waits, on which the most is known of it; and how long
        it runs there on the fewest nodes it accepts. Empty if no kind says more than another.
        """
        kinds = spec.device_kinds if spec.devices_per_node else ()
        ran_on = dict.fromkeys(run.size.kind for run in self._runs.get((job.user_id, job.signature), ()))
        asked = kinds if len(kinds) == 1 else ["", *(kinds or ran_on)]
        times = [(kind, self.next_try(job, spec, kind, spec.sizes[0])) for kind in asked]
        return min(times, key=lambda time: _BELIEVED.index(time[1].source))


def read(tx: Connection, works: Iterable[Work]) -> RunTimes:
    """What the database knows of these works and of their users."""
    wanted = set(works)
    if not wanted:
        return RunTimes({}, {}, {}, Speeds())
    runs: dict[Work, list[Run]] = defaultdict(list)
    metered: dict[Work, dict[str, Metered]] = defaultdict(dict)
    signed = {(user, signed) for user, signed in wanted if signed is not None}
    for row in store.past_runs(tx, signed, MOST_RUNS):
        size = Size(
            nodes=row.nodes,
            devices=row.devices_per_node,
            kind=row.kind,
            share=round(row.device_share * WHOLE_DEVICE),
        )
        work = (row.user_id, row.signature)
        runs[work] += [Run(size=size, run_s=ran_s) for ran_s in row.ran_s]
        before = metered[work].get(row.kind, Metered(energy_j=0.0, device_s=0.0))
        metered[work][row.kind] = Metered(
            energy_j=before.energy_j + row.metered_j, device_s=before.device_s + row.metered_s
        )
    ratios: dict[str, list[float]] = defaultdict(list)
    for row in store.past_estimates(tx, {user for user, _ in wanted}, MOST_ESTIMATES):
        ratios[row.user_id].append(max(row.ran_s, SHORTEST_RUN_S) / max(row.stated_s, SHORTEST_RUN_S))
    rows = store.kind_speeds_known(tx)
    speeds = Speeds(by_kind={row.kind: Speed(log=row.log_speed, works=row.works) for row in rows})
    return RunTimes(runs, ratios, metered, speeds)


def learn_kinds(tx: Connection) -> None:
    """Learn anew how fast kinds of devices are beside each other, from works that ran on several of them."""
    works: dict[tuple[object, ...], dict[str, float]] = defaultdict(dict)
    for row in store.works_by_kind(tx, MOST_WORKS, LEAST_TOLD_S):
        work = (row.user_id, row.signature, row.nodes, row.devices_per_node, row.device_share)
        works[work][row.kind] = math.exp(row.log_s)
    speeds = fit_speeds(list(works.values()))
    store.set_kind_speeds(
        tx,
        [{"kind": kind, "log_speed": speed.log, "works": speed.works} for kind, speed in speeds.by_kind.items()],
    )


def heard(stored: dict[str, Any] | None, epoch: int, lines: Iterable[Line], now: datetime) -> dict[str, Any] | None:
    """The pace to store after these lines of attempt `epoch`; `stored` is that of before, of whatever attempt."""
    pace = _pace(stored, epoch)
    for line in lines:
        pace = heard_line(pace, line, now.timestamp())
    if pace is None:
        return None
    return {"epoch": epoch, "rank": pace.rank, "by": pace.by, "total": pace.total, "marks": pace.marks}


def view(time: RunTime, kind: str, nodes: int, draw: Draw) -> ExpectedView:
    """A run time on so many nodes, and what a device draws meanwhile, as the API shows it. Without a kind no draw is
    told.
    """
    runs = f"{time.runs} run" if time.runs == 1 else f"{time.runs} runs"
    because = _BECAUSE[time.source].format(runs=runs)
    if round(time.speed, 1) != 1.0:
        because += f", {kind} taken for {time.speed:.1f} times as fast"
    if time.spread != 1.0:
        because += (
            f", taken for {time.spread:g} times as fast on {time.spread:g} times the nodes, which nobody has seen"
        )
    return ExpectedView(
        seconds=time.median_s,
        low_s=time.low_s,
        high_s=time.high_s,
        kind=kind,
        nodes=nodes,
        source=time.source.value,
        runs=time.runs,
        because=because,
        device_w=draw.active_w if kind else None,
        metered_on=list(draw.metered_on) if kind else [],
    )


def _share_left(row: Record) -> float:
    """How much of a job's steps its latest checkpoint leaves; 1 without one, or if nobody has said how many there are.
    `row` has the job's checkpoint and pace.
    """
    total = row.pace["total"] if row.pace and row.pace["by"] == "step" else 0
    saved = row.checkpoint_step or 0
    return 1.0 - saved / total if 0 < saved <= total else 1.0


def _pace(stored: dict[str, Any] | None, epoch: int) -> Pace | None:
    """The stored pace, if it is that of attempt `epoch`."""
    if stored is None or stored["epoch"] != epoch:
        return None
    marks = tuple((done, at_s) for done, at_s in stored["marks"])
    return Pace(rank=stored["rank"], by=stored["by"], total=stored["total"], marks=marks)
