"""A decoder-only transformer, as GPT-2 has it: layers of causal attention and of a network of one hidden layer.

After Radford et al. 2019, "Language models are unsupervised multitask learners".
"""

import math

import torch
from torch import nn
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel
from torch.nn.functional import gelu, scaled_dot_product_attention

from training.errors import InputError

SPREAD = 0.5
"""Deviation of weights at the beginning, times the root of the width; at a width of 768 it is GPT-2's, about 0.02."""


class Attention(nn.Module):
    """(n, tokens, width) to the same; each token looks at itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """See the class."""
        query, key, value = (
            each(hidden).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        found = scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One layer: attention, and a network that is four times as wide inside, each added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before_attention, self.before_inner = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """See the class."""
        hidden = hidden + self.dropout(self.attention(self.before_attention(hidden)))
        return hidden + self.dropout(self.outer(gelu(self.inner(self.before_inner(hidden)))))


class Transformer(nn.Module):
    """Tokens (n, up to `context`) to logits (n, tokens, vocabulary) of the token that follows each."""

    def __init__(self, *, vocabulary: int, context: int, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.begins, self.ends = True, True
        """Whether it has the embedding, and the logits: stages in between have neither."""
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        self.logits = nn.Linear(width, vocabulary, bias=False)
        deviation = SPREAD / math.sqrt(width)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                # What is added to the sum of all layers is smaller the more layers add to it.
                added = name.endswith(("out.weight", "outer.weight"))
                nn.init.normal_(parameter, std=deviation / math.sqrt(2 * layers) if added else deviation)

    def tensor_plan(self, ranks: int) -> dict[str, ParallelStyle]:
        """Each rank gets some of the heads, of the inner units, and of the vocabulary, as in Shoeybi et al. 2019,
        "Megatron-LM". Raises InputError when they do not divide evenly.
        """
        for name, count in (("heads", self.heads), ("vocabulary", self.tokens.num_embeddings)):
            if count % ranks:
                raise InputError(f"option {name}={count}: does not divide by the {ranks} ranks of strategy=tensor")
        plan: dict[str, ParallelStyle] = {
            "tokens": RowwiseParallel(input_layouts=Replicate()),
            "logits": ColwiseParallel(output_layouts=Replicate()),
        }
        for number in range(len(self.blocks)):
            for name in ("attention.query", "attention.key", "attention.value", "inner"):
                plan[f"blocks.{number}.{name}"] = ColwiseParallel()
            for name in ("attention.out", "outer"):
                plan[f"blocks.{number}.{name}"] = RowwiseParallel()
        return plan

    def keep_stage(self, number: int, stages: int) -> None:
        """Drop all but every so many-th part of the layers; the first stage embeds, and the last one has the logits.

        Names of weights stay. Raises InputError for more stages than layers.
        """
        layers = len(self.blocks)
        if stages > layers:
            raise InputError(
                f"option layers={layers}: too few for {stages} stages of strategy=pipeline; with stages={layers} or "
                "fewer, groups of so many ranks divide each batch"
            )
        kept = torch.arange(layers).tensor_split(stages)[number].tolist()
        for position in range(layers):
            if position not in kept:
                self.blocks[position] = nn.Identity()
        self.begins, self.ends = number == 0, number == stages - 1
        if not self.begins:
            del self.tokens, self.places
        if not self.ends:
            del self.last, self.logits

    def passed_on(self, inputs: torch.Tensor) -> torch.Tensor:
        """Such as goes from stage to stage for these tokens: float32 in autocast too, as all is added to embeddings."""
        return torch.empty(*inputs.shape, self.width, device="meta", requires_grad=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """See the class. Of a stage but the first, `inputs` is what the one before it passes on."""
        hidden = inputs
        if self.begins:
            hidden = self.tokens(inputs) + self.places(torch.arange(inputs.shape[1], device=inputs.device))
        for block in self.blocks:
            hidden = block(hidden)
        return self.logits(self.last(hidden)) if self.ends else hidden
