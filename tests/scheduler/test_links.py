"""How fast nodes fetch, from what they fetched."""

import math

import pytest

from scheduler.links import LEAST_BYTES, UNKNOWN, Fetch, fit_links

MB = 1_000_000


def fetch(mb: float, speed_mb: float, wait_s: float = 0.05) -> Fetch:
    return Fetch(size_bytes=round(mb * MB), wait_s=wait_s, transfer_s=mb / speed_mb)


def test_before_anything_was_fetched_the_prior_holds_with_a_wide_spread() -> None:
    link = fit_links({})[""]
    assert link.bytes_per_s == pytest.approx(UNKNOWN.bytes_per_s)
    assert link.fetches == 0
    assert link.spread > UNKNOWN.spread


def test_fetches_are_believed_sooner_than_the_prior_and_the_more_there_are() -> None:
    after = [fit_links({"a": [fetch(300, 400)] * count})["a"] for count in (1, 2, 5)]
    errors = [abs(math.log(link.bytes_per_s / (400 * MB))) for link in after]
    assert errors[0] < 0.25
    assert errors == sorted(errors, reverse=True)
    assert [link.spread for link in after] == sorted((link.spread for link in after), reverse=True)
    assert after[2].seconds(800 * MB) == pytest.approx(2.05, rel=0.1)


def test_one_fetch_that_stalled_changes_little() -> None:
    smooth = fit_links({"a": [fetch(300, 400)] * 4})["a"]
    stalled = fit_links({"a": [*[fetch(300, 400)] * 4, fetch(300, 1, wait_s=60.0)]})["a"]
    assert stalled.bytes_per_s == pytest.approx(smooth.bytes_per_s, rel=0.05)
    assert stalled.wait_s == pytest.approx(smooth.wait_s, rel=0.05)


def test_a_node_that_never_fetched_is_taken_for_a_usual_one_and_each_has_its_own_speed() -> None:
    links = fit_links({"a": [fetch(300, 100)] * 5, "b": [fetch(300, 100)] * 5, "slow": [fetch(300, 10)] * 5})
    assert links[""].bytes_per_s == pytest.approx(100 * MB, rel=0.2)
    assert links["slow"].bytes_per_s == pytest.approx(10 * MB, rel=0.25)
    assert (links["slow"].fetches, links[""].fetches) == (5, 0)
    assert links[""].spread > links["a"].spread


def test_small_files_tell_the_wait_and_not_the_speed() -> None:
    link = fit_links({"a": [Fetch(size_bytes=LEAST_BYTES - 1, wait_s=2.0, transfer_s=1e-6)] * 3})["a"]
    assert link.bytes_per_s == pytest.approx(UNKNOWN.bytes_per_s)
    assert 1.0 < link.wait_s < 2.0
