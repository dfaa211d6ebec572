"""The one error a recipe raises on purpose."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The options, the data or the ranks make no sense. The message is one sentence that names the fault and remedy."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that names the nearest of the known words, with a space after it; empty if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""
