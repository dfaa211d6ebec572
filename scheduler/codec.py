"""Problems and plans as JSON: for recorded cycles, goldens, benchmarks and the pipe to the solver process.

Equal values give equal bytes, and what is decoded equals what was encoded, floats included. The form follows from the
dataclasses themselves, so a field added there cannot be forgotten here.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from scheduler.plan import Plan
from scheduler.problem import Problem

SCHEMA = 1
"""Raised when an older reader would misunderstand the form."""

T = TypeVar("T")


class CodecError(ValueError):
    """This is no problem or plan that this version understands. The message says where it is wrong."""


def encode_problem(problem: Problem) -> bytes:
    """The problem as JSON in UTF-8, keys in order. Raises ValueError if a number is not finite."""
    return _encode(problem)


def decode_problem(data: bytes) -> Problem:
    """The problem that was encoded. Raises CodecError."""
    return _decode(data, Problem)


def encode_plan(plan: Plan) -> bytes:
    """The plan as JSON in UTF-8, keys in order. Raises ValueError if a number is not finite."""
    return _encode(plan)


def decode_plan(data: bytes) -> Plan:
    """The plan that was encoded. Raises CodecError."""
    return _decode(data, Plan)


def _encode(value: Problem | Plan) -> bytes:
    document = {"schema": SCHEMA, "kind": type(value).__name__.lower(), **asdict(value)}
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _decode(data: bytes, wanted: type[T]) -> T:
    try:
        document: object = json.loads(data)
    except ValueError as error:
        raise CodecError(f"not JSON: {error}") from error
    content = dict(_mapping(document, "document"))
    name = wanted.__name__.lower()
    kind, schema = content.pop("kind", None), content.pop("schema", None)
    if kind != name:
        raise CodecError(f"a {name} is wanted, and this is {kind!r}")
    if schema != SCHEMA:
        raise CodecError(f"schema {schema!r} is not understood; this version reads schema {SCHEMA}")
    return cast(T, _build(content, wanted, name))


def _build(value: object, wanted: Any, where: str) -> object:
    """`value`, as JSON gave it, in the type that a dataclass declares: a tuple of one type, a dataclass or None, a
    dataclass, an enumeration or a plain value.
    """
    if get_origin(wanted) is UnionType:
        return None if value is None else _build(value, get_args(wanted)[0], where)
    if get_origin(wanted) is tuple:
        if not isinstance(value, list):
            raise CodecError(f"{where}: a list is wanted")
        item = get_args(wanted)[0]
        return tuple(_build(part, item, f"{where}[{index}]") for index, part in enumerate(cast(list[object], value)))
    if is_dataclass(wanted):
        return _build_dataclass(_mapping(value, where), cast(type[object], wanted), where)
    if issubclass(wanted, Enum):
        try:
            return wanted(value)
        except ValueError as error:
            raise CodecError(f"{where}: {error}") from error
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise CodecError(f"{where}: {wanted.__name__} is wanted, and this is {value!r}")
    return value


def _build_dataclass(value: Mapping[str, object], wanted: type[object], where: str) -> object:
    types = _fields(wanted)
    if unknown := sorted(value.keys() - types.keys()):
        raise CodecError(f"{where}: unknown field {unknown[0]!r}")
    if missing := sorted(_required(wanted) - value.keys()):
        raise CodecError(f"{where}: field {missing[0]!r} is missing")
    return wanted(**{name: _build(value[name], types[name], f"{where}.{name}") for name in types if name in value})


@cache
def _fields(wanted: Any) -> dict[str, Any]:
    """The declared type of each field."""
    hints = get_type_hints(wanted)
    return {field.name: hints[field.name] for field in fields(wanted)}


@cache
def _required(wanted: Any) -> frozenset[str]:
    """The fields without a default: a recording from before a field existed stays readable."""
    return frozenset(
        field.name for field in fields(wanted) if field.default is MISSING and field.default_factory is MISSING
    )


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise CodecError(f"{where}: an object is wanted")
    return cast(Mapping[str, object], value)
