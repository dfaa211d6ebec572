"""The judgement of a run from what its ranks and clients wrote; the run itself is `make chaos`."""

from tests.chaos.judge import acknowledged, executions
from tests.invariants import i5_epochs_do_not_overlap, i6_a_rank_starts_once_in_an_epoch


def line(what: str, at: float, *, epoch: int = 1, pid: int = 7) -> dict:
    return {"what": what, "at": at, "node": 1, "pid": pid, "job": "j", "epoch": epoch, "rank": 0}


def test_a_rank_runs_from_its_first_word_to_its_last() -> None:
    [run] = executions([line("start", 1.0), line("alive", 1.5), line("alive", 2.0)])
    assert (run.started, run.ended) == (1.0, 2.0)


def test_two_processes_for_one_rank_of_one_epoch_are_found() -> None:
    twice = executions([line("start", 1.0), line("end", 1.1), line("start", 2.0, pid=8)])
    assert list(i6_a_rank_starts_once_in_an_epoch(twice)) == ["rank 0 of job j started 2 times in epoch 1"]


def test_an_epoch_that_starts_while_the_one_before_still_speaks_is_found() -> None:
    lines = [
        line("start", 1.0),
        line("start", 1.5, epoch=2, pid=8),
        line("alive", 2.0),
        line("end", 3.0, epoch=2, pid=8),
    ]
    [sentence] = i5_epochs_do_not_overlap(executions(lines))
    assert sentence == "job j: epoch 1 ran from 1.000 to 2.000, epoch 2 from 1.500 to 3.000"


def test_only_what_a_client_was_told_counts_as_acknowledged() -> None:
    told = {"who": "client-1", "what": "ok", "verb": "submit", "job": "j", "key": "k"}
    history = [told, told | {"what": "info"}, told | {"who": "nemesis"}]
    assert [(one.verb, one.job, one.key) for one in acknowledged(history)] == [("submit", "j", "k")]
