"""What a training script may tell Ergon, and what Ergon may tell it. Optional: every torchrun script runs without it.

    from ergon import runtime

    runtime.report(epoch=3, total_epochs=10, loss=0.21)

    with runtime.checkpoint(step) as folder:
        torch.save(model.state_dict(), folder / "model.pt")

The standard library only, so that importing it costs nothing and needs no package beside the script's own.
"""

import contextlib
import faulthandler
import json
import math
import operator
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import SupportsFloat, SupportsIndex

from ergon import checkpoints

MAX_METRICS = 100
"""Metrics one line may carry, as in `protocol.progress.ProgressLine`."""

_stop = threading.Event()
_warned: set[str] = set()
_torn: set[str] = set()
"""Files whose last line a full disk cut short."""


def report(
    *,
    step: SupportsIndex | None = None,
    total_steps: SupportsIndex | None = None,
    epoch: SupportsIndex | None = None,
    total_epochs: SupportsIndex | None = None,
    **metrics: SupportsFloat,
) -> None:
    """Append one line of progress to the file `$ERGON_PROGRESS`; without that variable, do nothing.

    Counts are whole and not negative. A metric is anything `float()` takes, a 0-dimensional tensor too; one that is
    not finite is left out. A file that cannot be written never stops training: the line is lost, and stderr says so
    once.

    Raises ValueError, outside Ergon too, for a count, a metric or a number of metrics that could never be reported.
    """
    line: dict[str, object] = {}
    counts = {"step": step, "total_steps": total_steps, "epoch": epoch, "total_epochs": total_epochs}
    for name, count in counts.items():
        if count is not None:
            line[name] = _whole(name, count)
    line["metrics"] = _finite(metrics)

    path = os.environ.get("ERGON_PROGRESS")
    if path:
        _append(path, json.dumps(line, allow_nan=False))


@contextlib.contextmanager
def checkpoint(step: SupportsIndex) -> Iterator[Path]:
    """A new, empty folder for what this rank saves at `step`. Every rank must save at the same steps.

    When the block ends, the files are hashed, made durable and moved into place in one go; with the last rank's the
    checkpoint is complete. The two latest of the attempt are kept, and nothing goes before they are complete. A second
    one of the same step is dropped, and so is one whose block raises. Where nothing keeps checkpoints, all are, and
    stderr says so once.

    Raises:
        ValueError: `step` is no whole number of 0 or more, or the folder holds something else than files and folders.
        OSError: the disk does not take it. Nothing of it is left, and the checkpoints of before are untouched.
    """
    number = _whole("step", step)
    folder = os.environ.get("ERGON_CHECKPOINT_DIR")
    if not folder:
        _warn_once("checkpoint", "nothing keeps checkpoints here: ERGON_CHECKPOINT_DIR is not set")
        with tempfile.TemporaryDirectory(prefix="ergon-checkpoint-") as dropped:
            yield Path(dropped)
        return
    rank, world_size, epoch = _number("RANK", 0), _number("WORLD_SIZE", 1), _number("ERGON_EPOCH", 0)
    mark = checkpoints.Mark(epoch, number)
    with checkpoints.written(Path(folder), mark, rank=rank, world_size=world_size) as draft:
        yield draft
    ranks = range(world_size)
    if os.environ.get("ERGON_CHECKPOINT_LOCAL"):  # each node has a folder of its own
        first = rank - _number("LOCAL_RANK", 0)
        ranks = range(first, first + _number("LOCAL_WORLD_SIZE", 1))
    if rank == ranks[0]:
        checkpoints.prune(Path(folder), epoch, ranks)


def latest_checkpoint() -> Path | None:
    """The job's newest checkpoint that is complete and exactly as it was written; None if there is none.

    What rank 3 saved lies in its folder `rank-3`. A torn or damaged one is passed over for the one before. Reads the
    whole checkpoint. All ranks get the same answer.
    """
    folder = os.environ.get("ERGON_CHECKPOINT_DIR")
    if not folder:
        return None
    text = os.environ.get("ERGON_CHECKPOINT_LATEST")
    known = checkpoints.Mark(*map(int, text.split("/"))) if text else None
    return checkpoints.newest_intact(Path(folder), known=known, epoch=_number("ERGON_EPOCH", 0))


def watch_for_stop() -> None:
    """From now on SIGTERM sets `stop_requested()` instead of ending the process. Call it once, in the main thread.

    The script then owes an exit: Ergon sends the signal that cannot be refused when the job's grace is over.
    """
    signal.signal(signal.SIGTERM, _note_stop)


def stop_requested() -> bool:
    """Whether Ergon has asked this rank to stop. Always false before `watch_for_stop()`.

    Ranks hear of it at different steps. A script that acts on it must first agree on it with an all-reduce, or the
    ranks that go on wait for ever for the one that left.
    """
    return _stop.is_set()


def _whole(name: str, count: SupportsIndex) -> int:
    try:
        number = operator.index(count)
    except TypeError as error:
        raise ValueError(f"{name}={count!r}: must be a whole number") from error
    if number < 0:
        raise ValueError(f"{name}={number}: must not be negative")
    return number


def _number(name: str, default: int) -> int:
    """A whole number that Ergon, or torchrun, put into the environment."""
    return int(os.environ.get(name) or default)


def _finite(metrics: dict[str, SupportsFloat]) -> dict[str, float]:
    if len(metrics) > MAX_METRICS:
        raise ValueError(f"report() got {len(metrics)} metrics; at most {MAX_METRICS} fit, so call it more than once")
    finite: dict[str, float] = {}
    for name, value in metrics.items():
        detach = getattr(value, "detach", None)  # a loss that still knows its gradient warns when it becomes a float
        try:
            number = float(detach() if detach else value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"report({name}={value!r}): a metric must be one number") from error
        if math.isfinite(number):
            finite[name] = number
        else:
            _warn_once("finite", f"metric {name} is {number} and is left out, as is every one that is not finite")
    return finite


def _append(path: str, line: str) -> None:
    """Append with one write, so that lines of several processes never mix.

    A disk that fills up can cut a write short. The line is lost then, and the next one starts on a fresh line, so that
    a reader never sees two lines run into one.
    """
    data = (("\n" if path in _torn else "") + line + "\n").encode()
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            written = os.write(file, data)
        finally:
            os.close(file)
    except OSError as error:
        _warn_once("write", f"progress is lost, {path} cannot be written: {error.strerror}")
        return
    if written == len(data):
        _torn.discard(path)
    else:
        _torn.add(path)
        _warn_once("write", f"progress is lost, {path} takes no more: the disk is full")


def _warn_once(subject: str, message: str) -> None:
    """One line on stderr, which may be on the same full disk."""
    if subject not in _warned:
        _warned.add(subject)
        with contextlib.suppress(OSError):
            os.write(2, f"ergon.runtime: {message}\n".encode())


def _arrange_dump() -> None:
    """Let Ergon ask where every thread is when this rank seems to hang: the answer goes to its standard error."""
    number = os.environ.get("ERGON_DUMP_SIGNAL")
    if number:
        faulthandler.register(int(number), file=2, all_threads=True)


def _note_stop(signum: int, frame: FrameType | None) -> None:
    _stop.set()


_arrange_dump()
