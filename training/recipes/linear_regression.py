"""`linear-regression`: least squares by gradient descent, data-parallel over all ranks.

Every rank holds its share of the rows; each step sums the gradients of all of them. What comes out is compared with
the closed form, the solution of the normal equation, so that a gang that loses or repeats a row cannot go unnoticed.
"""

import math
import sys
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ergon import runtime
from training.errors import InputError
from training.options import option
from training.ranks import Ranks, joined
from training.saving import STOPPED, Writer, must_stop, saved
from training.strategies import strategy_of
from training.strategies.strategy import STRATEGIES, StrategyOptions
from training.tables import numbers, read_table

REPORTS = 20
"""Times that progress is told over the whole run."""

MIN_CURVATURE = 1e-10
"""Least share of the largest eigenvalue that the smallest one may have: beneath, float64 cannot tell it from zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`data` is a table (.csv, .jsonl or .parquet, at any fsspec URL), numbers throughout, the target in its last
    column. Without it, `rows` of `features` are drawn from `seed`, with Gaussian `noise` of that deviation on the
    target.

    `tolerance` bounds the difference of any coefficient to the closed form, all columns scaled to deviation 1.
    `checkpoint_every` counts steps; 0 saves only when it is asked to stop. `strategy` and `servers` are those of
    StrategyOptions.
    """

    data: str = option("")
    rows: int = option(2_000, at_least=3, at_most=10_000_000)
    features: int = option(8, at_least=1, at_most=1_000)
    noise: float = option(0.1, at_least=0.0, at_most=1e6)
    seed: int = option(0, at_least=0, at_most=2**31)
    steps: int = option(200, at_least=1, at_most=1_000_000)
    tolerance: float = option(1e-6, at_least=1e-12, at_most=1e3)
    checkpoint_every: int = option(50, at_least=0, at_most=1_000_000)
    strategy: str = option("ddp", one_of=STRATEGIES)
    servers: int = option(1, at_least=1, at_most=10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Inputs (n, k) and targets (n, 1), float64, and the names of the k inputs."""

    names: tuple[str, ...]
    inputs: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A table with every input at mean 0 and deviation 1 and its targets at mean 0, and the way back."""

    inputs: torch.Tensor
    targets: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    target_mean: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Curvature:
    """The normal equation gram @ w = moment, each divided by n, and the extreme eigenvalues of the Gram matrix."""

    gram: torch.Tensor
    moment: torch.Tensor
    smallest: float
    largest: float


def run(options: Options) -> int:
    """Fit, print the coefficients from rank 0, and return the exit code on every rank.

    It is 1 if they miss the closed form, STOPPED when it was asked to stop before its end, else 0.

    Raises InputError for a file that is no table of numbers and for inputs that do not determine the coefficients.
    """
    table = read(options.data) if options.data else draw(options)
    scaled = standardise(table)
    curvature = measure(scaled)
    with joined() as ranks:
        weights = descend(scaled, curvature, options, ranks)
        if weights is None:
            return STOPPED
        exact = torch.linalg.solve(curvature.gram, curvature.moment)
        # Only rank 0 has the weights, whatever the strategy; the others learn what came of them.
        apart = (weights - exact).abs().max() if ranks.first else torch.zeros((), dtype=torch.float64)
        difference = ranks.total(apart.to(ranks.device)).item()
    if ranks.first:
        tell_coefficients(table.names, scaled, weights)
        print(f"max coefficient difference to the normal equation {difference:.3g}, world size {ranks.world_size}")
    if not difference <= options.tolerance:
        print(
            f"difference {difference:.3g} is above tolerance={options.tolerance}; raise steps={options.steps}",
            file=sys.stderr,
        )
        return 1
    return 0


def draw(options: Options) -> Table:
    """A table whose inputs differ in scale and offset, and whose targets are linear in them up to the noise."""
    generator = torch.Generator().manual_seed(options.seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = normal(options.rows, options.features) * (0.1 + 10 * normal(options.features) ** 2)
    inputs += 5 * normal(options.features)
    targets = inputs @ normal(options.features, 1) + normal(1) + options.noise * normal(options.rows, 1)
    names = tuple(f"x{column}" for column in range(1, options.features + 1))
    return Table(names=names, inputs=inputs, targets=targets)


def read(url: str) -> Table:
    """The user's table. Raises InputError for what is no table of numbers with at least two columns."""
    found = read_table(url)
    if len(found.names) < 2:
        raise InputError(f"data={url}: needs at least two columns, the last one of which is the target")
    values = numbers(found, range(len(found.names)), torch.float64)
    return Table(names=found.names[:-1], inputs=values[:, :-1], targets=values[:, -1:])


def standardise(table: Table) -> Scaled:
    """Raises InputError for a constant column, which nothing can tell from the intercept."""
    deviation, mean = torch.std_mean(table.inputs, dim=0, correction=0)
    for name, spread in zip(table.names, deviation.tolist(), strict=True):
        if not spread > 0:
            raise InputError(f"column {name!r} is the same in every row; leave it out")
    target_mean = table.targets.mean()
    return Scaled(
        inputs=(table.inputs - mean) / deviation,
        targets=table.targets - target_mean,
        mean=mean,
        deviation=deviation,
        target_mean=target_mean,
    )


def measure(scaled: Scaled) -> Curvature:
    """Raises InputError when the inputs are linearly dependent, so that the coefficients are not determined."""
    rows = len(scaled.inputs)
    gram = scaled.inputs.T @ scaled.inputs / rows
    eigenvalues = torch.linalg.eigvalsh(gram)
    smallest, largest = eigenvalues[0].item(), eigenvalues[-1].item()
    if smallest < MIN_CURVATURE * largest:
        raise InputError(f"{rows} rows do not determine the coefficients: columns depend on each other or rows are few")
    return Curvature(gram=gram, moment=scaled.inputs.T @ scaled.targets / rows, smallest=smallest, largest=largest)


def descend(scaled: Scaled, curvature: Curvature, options: Options, ranks: Ranks) -> torch.Tensor | None:
    """The weights (k, 1) after all steps of gradient descent over the rows of all ranks, right on rank 0; None if it
    was asked to stop before. Goes on from what an attempt of before has saved.

    Step size and momentum are the best ones for a quadratic with these extreme eigenvalues (Polyak 1964, "Some methods
    of speeding up the convergence of iteration methods"): the error shrinks by (sqrt(c) - 1) / (sqrt(c) + 1) a step,
    with c = largest / smallest.
    """
    rows, columns = scaled.inputs.shape
    plane = nn.Linear(columns, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(plane.weight)
    low, high = math.sqrt(curvature.smallest), math.sqrt(curvature.largest)
    strategy = strategy_of(
        plane,
        squares,
        StrategyOptions(
            strategy=options.strategy, servers=options.servers, momentum=((high - low) / (high + low)) ** 2
        ),
        ranks,
    )
    share = strategy.share(torch.arange(rows), 0)
    inputs, targets = scaled.inputs[share].to(ranks.device), scaled.targets[share].to(ranks.device)
    done, steps = 0, options.steps
    if (state := saved(ranks)) is not None:
        strategy.load(state["model"])
        done = state["step"]
    interval = -(-steps // REPORTS)
    with Writer(ranks) as writer:
        for step in range(done + 1, steps + 1):
            loss = strategy.add_gradients(inputs, targets, scale=1 / (2 * rows), last=True)
            strategy.update(4 / (low + high) ** 2)
            if step % interval == 0 or step in (1, steps):
                mean = ranks.total(loss.double().to(ranks.device)).item() / rows
                if ranks.first:
                    print(f"step {step}/{steps}  mean squared error {mean:.6g}", flush=True)
                    runtime.report(step=step, total_steps=steps, loss=mean)
            stopping = step % interval == 0 and step < steps and must_stop(ranks)
            if stopping or (options.checkpoint_every and step % options.checkpoint_every == 0):
                writer.save(step, strategy, {"step": step})
            if stopping:
                return None
    weights = strategy.state()["network"].get("weight", plane.weight.detach())
    return (weights.full_tensor() if isinstance(weights, DTensor) else weights).T


def squares(predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The sum of squared residuals."""
    return (predicted - targets).square().sum()


def tell_coefficients(names: tuple[str, ...], scaled: Scaled, weights: torch.Tensor) -> None:
    """The fitted plane in the table's own units, one coefficient a line."""
    slopes = weights.squeeze(1) / scaled.deviation
    print(f"intercept = {(scaled.target_mean - slopes @ scaled.mean).item():.8g}")
    for name, slope in zip(names, slopes.tolist(), strict=True):
        print(f"{name} = {slope:.8g}")
