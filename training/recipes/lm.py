"""`lm`: a decoder-only transformer learns which token of a text follows, and is compared with a smoothed bigram.

Without data of the user's own, the text is the source of Python's standard library, byte by byte.
"""

import sys
from dataclasses import dataclass

import torch

from training.errors import InputError
from training.examples import Draws
from training.fitting import FitOptions, Score, failure_of, fit
from training.options import option
from training.ranks import joined
from training.tokens import Tokens, Windows, bigram_loss, read_tokens
from training.transformer import Transformer

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(FitOptions):
    """`data`: see `read_tokens`, with `text` the column of a table. The last tenth is held out; on `windows` windows of
    it, evenly spread, the model is scored after every `score_every` of the `steps`.

    `layers`, `heads`, `width` and `context` (tokens that the model sees) are the size of the model. `checkpoint_every`
    counts scores. With a held-out loss above `max_loss` (nats per token) the job fails; 0 is no limit.
    """

    data: str = option("")
    text: str = option("text")
    vocabulary: int = option(0, at_least=0, at_most=10_000_000)
    layers: int = option(4, at_least=1, at_most=1_000)
    heads: int = option(4, at_least=1, at_most=1_000)
    width: int = option(128, at_least=1, at_most=1_000_000)
    context: int = option(128, at_least=1, at_most=1_000_000)
    dropout: float = option(0.0, at_least=0.0, at_most=0.95)
    steps: int = option(300, at_least=1, at_most=10**9)
    score_every: int = option(50, at_least=1, at_most=10**9)
    windows: int = option(200, at_least=1, at_most=10**7)
    max_loss: float = option(0.0, at_least=0.0, at_most=1e3)
    batch_size: int = option(32, at_least=1, at_most=10**7)
    optimizer: str = option("adamw", one_of=("sgd", "adam", "adamw"))
    learning_rate: float = option(3e-3, at_least=1e-8, at_most=1e3)
    l2: float = option(0.1, at_least=0.0, at_most=1e3)
    warmup: int = option(40, at_least=0, at_most=10**9)
    schedule: str = option("cosine", one_of=("constant", "cosine"))


def run(options: Options) -> int:
    """Train, tell the progress of every score from rank 0, compare with the bigram, and return the exit code.

    It is 1 when the loss is no longer finite or the held-out loss above `max_loss`, STOPPED when it was asked to stop
    before its end, else 0. Raises InputError for a model that does not divide, too little text, and see `read_tokens`.
    """
    if options.width % options.heads:
        raise InputError(f"option width={options.width}: does not divide by heads={options.heads}")
    if options.steps % options.score_every:
        raise InputError(f"option steps={options.steps}: does not divide by score_every={options.score_every}")
    tokens = read_tokens(options.data, options.text, options.vocabulary)
    with joined() as ranks:
        training, held_out = windows(tokens, options, ranks.device)
        torch.manual_seed(options.seed)
        network = Transformer(
            vocabulary=tokens.vocabulary,
            context=options.context,
            width=options.width,
            heads=options.heads,
            layers=options.layers,
            dropout=options.dropout,
        )
        if ranks.first:
            size = sum(map(torch.numel, network.parameters()))
            print(
                f"{size:,} weights, {len(training.values):,} tokens to learn from, {tokens.vocabulary} different ones"
            )
        rounds = Draws(
            count=len(training),
            batch_size=options.batch_size,
            seed=options.seed,
            steps=options.score_every,
            total=options.steps // options.score_every,
        )
        outcome = fit(network, training, held_out, rounds, options, ranks)
    if not isinstance(outcome, Score):
        return failure_of(outcome, options)
    if ranks.first:
        inputs, targets = (each.flatten().cpu().numpy() for each in held_out.take(torch.arange(len(held_out))))
        bigram = bigram_loss(Tokens(values=training.values, vocabulary=tokens.vocabulary), inputs, targets)
        print(
            f"held-out loss {outcome.val_loss:.4f}, smoothed bigram {bigram:.4f} nats per token, "
            f"world size {ranks.world_size}"
        )
    if options.max_loss and not outcome.val_loss <= options.max_loss:
        print(f"held-out loss {outcome.val_loss:.4f} is above max_loss={options.max_loss}", file=sys.stderr)
        return 1
    return 0


def windows(tokens: Tokens, options: Options, device: torch.device) -> tuple[Windows, Windows]:
    """The examples for training, one from every token on, and those held out. Raises InputError for too few tokens."""
    count, context = len(tokens.values), options.context
    border = count - int(HELD_OUT_SHARE * count)
    held_out = tokens.values[border:]
    if min(border, len(held_out)) <= context:
        raise InputError(
            f"data={options.data}: a tenth of {count} tokens is too short for one window of context={context}"
        )
    stride = max(1, (len(held_out) - 1 - context) // options.windows)
    return (
        Windows(values=tokens.values[:border], context=context, stride=1, device=device),
        Windows(
            values=held_out[: stride * (options.windows - 1) + context + 1],
            context=context,
            stride=stride,
            device=device,
        ),
    )
