"""Losses, penalties and optimisers: gradients and steps equal their closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from training.objectives import ObjectiveOptions, add_l1, loss_of, optimizer_of, rate_at
from training.strategies.strategy import step

ROWS, COLUMNS, CLASSES = 12, 5, 3


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs (rows, columns), targets (rows,) and weights (columns, classes), in float64."""
    torch.manual_seed(3)
    inputs = torch.randn(ROWS, COLUMNS, dtype=torch.float64)
    weights = torch.randn(COLUMNS, CLASSES, dtype=torch.float64, requires_grad=True)
    return inputs, torch.randint(CLASSES, (ROWS,)), weights


def one_hot(targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return torch.eye(CLASSES, dtype=torch.float64)[targets] * (1 - smoothing) + smoothing / CLASSES


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_of_cross_entropy_is_inputs_times_probabilities_less_targets(drawn, smoothing: float) -> None:
    inputs, targets, weights = drawn
    loss_of(ObjectiveOptions(label_smoothing=smoothing))(inputs @ weights, targets).backward()
    probabilities = (inputs @ weights).detach().softmax(dim=1)
    closed = inputs.T @ (probabilities - one_hot(targets, smoothing))
    assert torch.allclose(weights.grad, closed, atol=1e-5)  # the loss itself is taken in float32


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_of_squares_is_twice_inputs_times_the_residual(drawn, smoothing: float) -> None:
    inputs, targets, weights = drawn
    loss_of(ObjectiveOptions(loss="mse", label_smoothing=smoothing))(inputs @ weights, targets).backward()
    closed = 2 * inputs.T @ ((inputs @ weights).detach() - one_hot(targets, smoothing))
    assert torch.allclose(weights.grad, closed, atol=1e-10)


def weight(value: float, gradient: float) -> nn.Parameter:
    parameter = nn.Parameter(torch.tensor([value], dtype=torch.float64))
    parameter.grad = torch.tensor([gradient], dtype=torch.float64)
    return parameter


@pytest.mark.parametrize(("value", "expected"), [(2.0, 1.3), (-2.0, 0.7), (0.0, 1.0)])
def test_l1_adds_its_sign(value: float, expected: float) -> None:
    parameter = weight(value, 1.0)
    add_l1([parameter], 0.3)
    assert parameter.grad is not None
    assert parameter.grad.item() == pytest.approx(expected)


# From weight 2, gradient 0.5, rate 0.1: the weight after one step by the published formulas.
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ObjectiveOptions(optimizer="sgd", momentum=0.0), 2 - 0.1 * 0.5),
        (ObjectiveOptions(optimizer="sgd", momentum=0.0, l2=0.2), 2 - 0.1 * (0.5 + 0.2 * 2)),
        (ObjectiveOptions(optimizer="sgd", momentum=0.0, l1=0.2), 2 - 0.1 * (0.5 + 0.2)),
        # The first step of Adam is the rate, against the sign of the gradient.
        (ObjectiveOptions(optimizer="adam"), 2 - 0.1),
        (ObjectiveOptions(optimizer="adam", l2=0.2), 2 - 0.1),
        (ObjectiveOptions(optimizer="adamw", l2=0.2), 2 - 0.1 * 0.2 * 2 - 0.1),
    ],
)
def test_a_step_is_that_of_the_formula(options: ObjectiveOptions, expected: float) -> None:
    parameter = weight(2.0, 0.5)
    step(optimizer_of([parameter], options), 0.1, options)
    assert parameter.item() == pytest.approx(expected, abs=1e-8)
    assert parameter.grad is None


def test_momentum_adds_what_is_left_of_the_steps_before() -> None:
    options = ObjectiveOptions(optimizer="sgd", momentum=0.5)
    parameter = weight(2.0, 1.0)
    optimizer = optimizer_of([parameter], options)
    step(optimizer, 0.1, options)
    parameter.grad = torch.ones(1, dtype=torch.float64)
    step(optimizer, 0.1, options)
    assert parameter.item() == pytest.approx(2 - 0.1 * 1 - 0.1 * (1 + 0.5))


def test_the_rate_rises_over_the_warmup_and_falls_to_a_tenth() -> None:
    options = ObjectiveOptions(learning_rate=2.0, warmup=4, schedule="cosine")
    rates = [rate_at(number, 20, options) for number in range(1, 21)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[11] == pytest.approx(2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2))))
    assert rates[-1] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in pairwise(rates[3:]))
    assert {rate_at(number, 20, ObjectiveOptions()) for number in range(1, 21)} == {0.05}
