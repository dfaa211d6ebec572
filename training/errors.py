"""The one error a recipe raises on purpose."""


class InputError(ValueError):
    """The options, the data or the ranks make no sense. The message is one sentence that names the fault and remedy."""
