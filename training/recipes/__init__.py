"""The training programs that ship with Ergon. A recipe is a module with `Options` and `run(options) -> exit code`."""

import importlib
from collections.abc import Callable
from typing import Any, Protocol, cast

MODULES = {
    "digits-mlp": "training.recipes.digits_mlp",
    "linear-regression": "training.recipes.linear_regression",
    "lm": "training.recipes.lm",
    "softmax": "training.recipes.softmax",
    "text-cnn": "training.recipes.text_cnn",
}


class Recipe(Protocol):
    """What the module of a recipe offers. `run` returns 0, or 1 when the result misses what the options ask for."""

    Options: type[Any]
    run: Callable[[Any], int]


def load(name: str) -> Recipe:
    """The recipe of that name, which must be in `MODULES`. Imports torch, which takes seconds."""
    return cast(Recipe, importlib.import_module(MODULES[name]))
