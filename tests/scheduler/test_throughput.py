"""Speed against world size: closed cases, and what must hold for any runs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.throughput import IDEAL, MEASURED, RUN_NOISE, Curve, Point, Prior, fit

sizes = st.tuples(st.integers(1, 64), st.integers(1, 8)).map(lambda size: (max(size), size[1]))
points = st.builds(lambda size, run_s: Point(devices=size[0], nodes=size[1], run_s=run_s), sizes, st.floats(1, 1e4))
priors = st.sampled_from([MEASURED, IDEAL])


def curve(one_s: float, intra: float, inter: float, slope: float) -> Curve:
    return Curve(
        one_s=one_s, intra=intra, inter=inter, slope=slope, sizes=frozenset(), noise=0.1, size_sigma=(0.3, 0.2, 0.1)
    )


@pytest.mark.parametrize(
    ("devices", "nodes", "run_s"),
    [
        (1, 1, 1200.0),
        (2, 1, 1200 / 2 * 1.1),
        (4, 1, 1200 / 4 * (1.1 + 2 * 0.05)),
        (2, 2, 1200 / 2 * 1.5),
        (8, 2, 1200 / 8 * (1.5 + 6 * 0.05)),
    ],
)
def test_overheads_count_once_per_tier_and_for_each_device_beyond_two(devices: int, nodes: int, run_s: float) -> None:
    assert curve(1200.0, 0.1, 0.5, 0.05).run_s(devices, nodes) == pytest.approx(run_s)


def test_one_run_and_the_ideal_prior_are_ts_over_n() -> None:
    found = fit([Point(devices=4, nodes=1, run_s=300.0)], IDEAL)
    assert [found.run_s(devices, 1) for devices in (1, 2, 4, 8)] == pytest.approx([1200, 600, 300, 150])


def test_one_run_takes_the_form_of_the_prior() -> None:
    found = fit([Point(devices=1, nodes=1, run_s=1000.0)], MEASURED)
    wanted = curve(1000.0, MEASURED.intra, MEASURED.inter, MEASURED.slope)
    assert found.run_s(8, 1) == pytest.approx(wanted.run_s(8, 1))
    assert found.run_s(16, 2) == pytest.approx(wanted.run_s(16, 2))


def test_many_sizes_outweigh_the_prior() -> None:
    true = curve(1000.0, 0.3, 0.9, 0.1)
    seen = [Point(devices=n, nodes=k, run_s=true.run_s(n, k)) for n, k in [(1, 1), (2, 1), (4, 1), (4, 2), (8, 2)] * 20]
    found = fit(seen, MEASURED)
    assert found.run_s(16, 2) == pytest.approx(true.run_s(16, 2), rel=0.01)


@given(point=points, times=st.integers(1, 5), prior=priors)
def test_a_size_that_was_run_is_predicted_as_it_ran(point: Point, times: int, prior: Prior) -> None:
    found = fit([point] * times, prior)
    assert found.run_s(point.devices, point.nodes) == pytest.approx(point.run_s, rel=1e-6)
    assert found.sigma(point.devices, point.nodes) <= RUN_NOISE + 1e-9


@given(seen=st.lists(points, min_size=1, max_size=6), size=sizes, prior=priors)
def test_predictions_are_finite_and_the_spread_is_wider_where_nothing_ran(
    seen: list[Point], size: tuple[int, int], prior: Prior
) -> None:
    found = fit(seen, prior)
    assert 0 < found.run_s(*size) < math.inf
    assert 0 < found.noise <= found.sigma(*size) < math.inf
    assert (found.sigma(*size) > found.noise) == (size not in found.sizes)


@given(seen=st.lists(points, min_size=1, max_size=5), size=sizes, factor=st.floats(0.01, 100), prior=priors)
def test_runs_that_take_longer_by_a_factor_are_predicted_longer_by_it(
    seen: list[Point], size: tuple[int, int], factor: float, prior: Prior
) -> None:
    longer = [Point(devices=point.devices, nodes=point.nodes, run_s=point.run_s * factor) for point in seen]
    assert fit(longer, prior).run_s(*size) == pytest.approx(fit(seen, prior).run_s(*size) * factor, rel=1e-3)
    assert fit(seen, prior).scaled(factor).run_s(*size) == pytest.approx(fit(longer, prior).run_s(*size), rel=1e-3)


@given(seen=st.lists(points, min_size=2, max_size=6), size=sizes, prior=priors)
def test_the_order_of_the_runs_does_not_matter(seen: list[Point], size: tuple[int, int], prior: Prior) -> None:
    assert fit(seen[::-1], prior).run_s(*size) == pytest.approx(fit(seen, prior).run_s(*size), rel=1e-3)


@given(seen=st.lists(points, min_size=1, max_size=6), prior=priors)
def test_more_nodes_and_ideal_speed_bound_the_prediction(seen: list[Point], prior: Prior) -> None:
    found = fit(seen, prior)
    assert found.run_s(8, 1) >= found.one_s / 8
    assert min(found.intra, found.inter, found.slope) >= 0
