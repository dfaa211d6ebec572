"""What every message shares: frozen, and closed to fields it does not know."""

from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonValue

MAX_FIELDS = 1_000
"""More than any message has."""


def at_most(entries: int) -> BeforeValidator:
    """Refuse a larger map as a whole: a complaint for each of a million entries would cost minutes and gigabytes."""
    return BeforeValidator(lambda value: _within(value, entries))


def _within(value: object, entries: int) -> object:
    if isinstance(value, dict) and len(value) > entries:  # pyright: ignore[reportUnknownArgumentType]
        raise ValueError(f"there may be {entries} entries at most, and these are {len(value)}")  # pyright: ignore[reportUnknownArgumentType]
    return value  # pyright: ignore[reportUnknownVariableType]


class Message(BaseModel):
    """A value that crosses a wire. Unknown fields are refused, so that a misspelt one is an error and not a silence;
    so is a value of another type, such as `"2"` or `true` for a number. Enumerations come as text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="null", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: object) -> object:
        return _within(value, MAX_FIELDS)


class View(Message):
    """An answer of the service. Readers ignore fields they do not know, so that a newer service can add some."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=False, ser_json_inf_nan="null", allow_inf_nan=False)

    @classmethod
    def read(cls, text: str | bytes) -> Self:
        """An answer as it arrived, in JSON. A request within it, such as a job's spec, may have unknown fields too.

        Raises pydantic.ValidationError.
        """
        return cls.model_validate_json(text, extra="ignore")


def example(**fields: JsonValue) -> ConfigDict:
    """Configuration of a message whose documentation shows these fields."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", min_length=1, max_length=63)]
"""A name of a job, node, user or queue: letters, digits, dot, dash, underscore; 63 characters at most."""

Kind = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", min_length=1, max_length=63)]
"""A device kind in lower case, such as `cpu`, `h100`, `a100-sxm4-80gb`."""

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""Any text without the character NUL, which no database keeps."""

Count = Annotated[int, Field(ge=0, le=2**62)]
"""A whole number of bytes, steps or the like; it fits in 64 bits, and so does the sum of two."""

Index = Annotated[int, Field(ge=0, lt=2**31)]
"""The number of a rank, of a device or the like; it fits in 32 bits."""

Seconds = Annotated[float, Field(ge=0, le=1e9)]
"""A duration in s. Durations cross the wire, deadlines never do: two machines' clocks are not compared."""
