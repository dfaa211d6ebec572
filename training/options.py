"""Options of a recipe: a frozen dataclass on one side, `key=value` words of a command line on the other."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from training.errors import InputError, did_you_mean

OptionsT = TypeVar("OptionsT")
Number = int | float

_KINDS = {int: "a whole number", float: "a number", str: "text"}


def option(
    default: Number | str, *, at_least: Number = -math.inf, at_most: Number = math.inf, one_of: Sequence[str] = ()
) -> Any:
    """A field of an options dataclass with a default and what is accepted: a range, ends included, or a few words."""
    metadata = {"at_least": at_least, "at_most": at_most, "one_of": tuple(one_of)}
    return dataclasses.field(default=default, metadata=metadata)


def parse(options: type[OptionsT], words: Sequence[str]) -> OptionsT:
    """The options that `words`, each `key=value`, ask for; what they leave out keeps its default.

    `options` is a dataclass whose fields are made by `option()` and typed int, float or str. Raises InputError for an
    unknown or repeated key, a word without `=`, and a value of the wrong type, out of range or not among those offered.
    """
    fields = {field.name: field for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    values: dict[str, Number | str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"{word!r} is not an option; options look like key=value")
        if key not in fields:
            hint = did_you_mean(key, fields)
            raise InputError(f"option {key!r} is not known; {hint}accepted: {', '.join(fields)}")
        if key in values:
            raise InputError(f"option {key!r} is given twice")
        values[key] = _value(fields[key], text)
    return options(**values)


def _value(field: "dataclasses.Field[Any]", text: str) -> Number | str:
    kind: type[Number | str] = field.type  # type: ignore[assignment]
    offered = field.metadata["one_of"]
    if offered and text not in offered:
        raise InputError(f"option {field.name}={text!r}: {did_you_mean(text, offered)}expected {' or '.join(offered)}")
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not _within(field, value):
        raise InputError(f"option {field.name}={text!r}: expected {_accepted(field)}")
    return value


def _within(field: "dataclasses.Field[Any]", value: Number | str) -> bool:
    return isinstance(value, str) or (
        math.isfinite(value) and field.metadata["at_least"] <= value <= field.metadata["at_most"]
    )


def _accepted(field: "dataclasses.Field[Any]") -> str:
    words = _KINDS[field.type]  # type: ignore[index]
    if field.metadata["at_least"] > -math.inf:
        words += f", at least {field.metadata['at_least']}"
    if field.metadata["at_most"] < math.inf:
        words += f", at most {field.metadata['at_most']}"
    return words
