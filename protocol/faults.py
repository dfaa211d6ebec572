"""What pydantic found wrong with a value, in words for the person who gave it."""

from collections.abc import Mapping
from typing import Any

ID = "an id has letters, digits and dashes only"
NAME = "use letters, digits, dots, dashes and underscores, and begin with a letter or digit"

SHAPES = {
    r"^[A-Za-z0-9-]+$": ID,
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": NAME,
    r"^[A-Za-z0-9._-]+$": "a name has letters, digits, dots, dashes and underscores only",
    r"^[A-Za-z0-9._-]*$": "give the `next` of the page before, as it was",
    r"^[a-z_]*(/[A-Za-z0-9._-]*)?$": "give the `next` of the page before, as it was",
    r"^[a-z0-9][a-z0-9._-]*$": "use small letters, digits, dots, dashes and underscores, as in `h100` or `cpu`",
    r"^[A-Za-z0-9][A-Za-z0-9._:-]*$": "use letters, digits, dots, colons, dashes and underscores",
    r"^[^\x00]*$": "the character NUL cannot be kept; leave it out",
    r"^[0-9a-f]{64}$": "give a SHA-256 as 64 hexadecimal digits in small letters",
    r"^[0-9a-f]+$": "give hexadecimal digits in small letters",
    r"^[A-Za-z0-9][A-Za-z0-9._-]*([/:@+][A-Za-z0-9._-]+)*$": "give an image as registry/path:tag, such as "
    "docker.io/library/python:3.12, in one word and without options",
    r"^([1-9][0-9]{0,5})-([1-9][0-9]{0,5})$": "give a number of nodes such as 2, or a range such as 1-4",
    r"^[A-Za-z][A-Za-z0-9_]*$": "use letters, digits and underscores, and begin with a letter",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "a variable has letters, digits and underscores, and does not begin with a digit",
}
"""What each pattern of a message asks for. A pattern says it exactly, and to few people."""


def in_words(fault: Mapping[str, Any]) -> str:
    """What is wrong, and what would be accepted: one clause without the field, such as `use letters and digits`.

    `fault` is one of `ValidationError.errors()`, or of FastAPI's `RequestValidationError.errors()`.
    """
    message: str = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "string_pattern_mismatch":
        return SHAPES.get(fault["ctx"]["pattern"], message)
    return message
