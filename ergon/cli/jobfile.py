"""Job files: one job, or a list under `jobs`, in YAML or TOML. What is wrong is said with line and field.

YAML is read as its version 1.2 has it (`on` and `no` are words, dates are text), without tags, and within limits, so
that no file makes the reader's work grow beyond its own size by much.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import typer
import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, WithJsonSchema, model_validator

from ergon.cli.units import parse_duration, parse_size
from ergon.errors import ErgonError
from protocol.base import Message
from protocol.faults import in_words
from protocol.jobs import MAX_BATCH, ArraySpec, Dependency, JobSpec, Recipe

MAX_FILE_BYTES = 10 * 1024 * 1024
MAX_DEPTH = 50
MAX_VALUES = 1_000_000
"""Values of a file with every alias written out."""

SHOWN_FAULTS = 10
VERBATIM = ("command", "env")
"""Fields whose values are text, however they look: `--lr 0.10` stays so."""

YAML_SUFFIXES = (".yaml", ".yml", ".json")
TOML_SUFFIX = ".toml"

Place = tuple[str | int, ...]
"""Where a value stands in a file: keys and indices from the top."""


class JobFileError(ErgonError):
    """A job file that cannot be used. The message names file, line and field."""


def _size(value: object) -> object:
    return _parsed(parse_size, value)


def _duration(value: object) -> object:
    return _parsed(parse_duration, value)


def _parsed(parse: Any, value: object) -> object:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"write {value!r} as text with a unit, such as {'4GiB' if parse is parse_size else '2h'}")
    try:
        return None if value is None else parse(value)
    except typer.BadParameter as error:
        raise ValueError(error.message) from error


Size = Annotated[
    int | None, BeforeValidator(_size), WithJsonSchema({"type": "string", "examples": ["4GiB", "512MiB", "500MB"]})
]
Duration = Annotated[
    float | None, BeforeValidator(_duration), WithJsonSchema({"type": "string", "examples": ["90s", "15m", "2h", "1d"]})
]

UNITS = {
    "memory": "memory_bytes_per_node",
    "disk": "disk_bytes_per_node",
    "time_limit": "time_limit_s",
    "stall_timeout": "stall_timeout_s",
    "stop_grace": "stop_grace_s",
    "expected_run": "expected_run_s",
}
"""Fields with a unit -> the field of the spec each stands for."""


class FileJob(JobSpec):
    """A job as a file has it: the spec's fields, and for some of them a form with units."""

    memory: Size = Field(default=None, description="`memory_bytes_per_node` with a unit.")
    disk: Size = Field(default=None, description="`disk_bytes_per_node` with a unit.")
    time_limit: Duration = Field(default=None, description="`time_limit_s` with a unit.")
    stall_timeout: Duration = Field(default=None, description="`stall_timeout_s` with a unit.")
    stop_grace: Duration = Field(default=None, description="`stop_grace_s` with a unit.")
    expected_run: Duration = Field(default=None, description="`expected_run_s` with a unit.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        for short, long in UNITS.items():
            if {short, long} <= self.model_fields_set:
                raise ValueError(f"give `{short}` or `{long}`, not both")
        return self

    def spec(self) -> JobSpec:
        """The spec to submit."""
        fields = self.model_dump(exclude_unset=True, exclude=set(UNITS))
        given = {long: getattr(self, short) for short, long in UNITS.items() if getattr(self, short) is not None}
        return JobSpec.model_validate(fields | given)


class JobFile(Message):
    """Several jobs, submitted together: all of them or none."""

    jobs: list[FileJob] = Field(min_length=1, max_length=MAX_BATCH)


def schema() -> dict[str, Any]:
    """JSON Schema of a job file, for editors."""
    return {"title": "Ergon job file", **TypeAdapter(FileJob | JobFile).json_schema()}


def read_jobs(path: Path) -> list[JobSpec]:
    """The jobs of a file, in order.

    Raises JobFileError for a file that cannot be read or holds something else.
    """
    text = _read(path)
    lines: dict[Place, int] = {}
    try:
        value = _load_toml(path, text) if path.suffix == TOML_SUFFIX else _Document(path, text, lines).value
    except RecursionError as error:
        raise JobFileError(f"{path}: nested more than {MAX_DEPTH} deep") from error
    if not isinstance(value, dict):
        what = (
            "no job" if value is None else "no mapping at the top; write the fields of one job, or a list under `jobs`"
        )
        raise JobFileError(f"{path}: holds {what}")
    many = "jobs" in value
    try:
        jobs = JobFile.model_validate(value).jobs if many else [FileJob.model_validate(value)]
        return [job.spec() for job in jobs]
    except ValidationError as error:
        faults = sorted(error.errors(include_url=False), key=lambda fault: _line(fault, lines) or 0)
        raise _several([_sentence(fault, path, lines, many=many) for fault in faults]) from error


def _several(faults: list[str]) -> JobFileError:
    error = JobFileError(faults[0])
    more = [f"... and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
    error.details = (*faults[1:SHOWN_FAULTS], *more)
    return error


def _read(path: Path) -> str:
    if path.suffix not in (*YAML_SUFFIXES, TOML_SUFFIX):
        raise JobFileError(f"{path}: the name of a job file ends in {', '.join(YAML_SUFFIXES)} or {TOML_SUFFIX}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise JobFileError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise JobFileError(f"{path}: longer than {MAX_FILE_BYTES >> 20} MiB; split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise JobFileError(f"{path}:{line}: not text in UTF-8") from error


def _load_toml(path: Path, text: str) -> object:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobFileError(f"{path}: not TOML: {error}") from error


def _sentence(fault: Any, path: Path, lines: Mapping[Place, int], *, many: bool) -> str:
    """One fault of validation with line and field."""
    place, line = _place(fault), _line(fault, lines)
    where = f"{path}:{line}" if line else f"{path}"
    field = ".".join(map(str, place))
    message = in_words(fault)
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), _known_fields(place[:-1], many=many), n=1)
        message = f"unknown field; did you mean {near[0]}?" if near else "unknown field; `ergon schema` has all of them"
    return f"{where}: {field}: {message}" if field else f"{where}: {message}"


def _place(fault: Any) -> Place:
    return tuple(part for part in fault["loc"] if part != "[key]")


def _line(fault: Any, lines: Mapping[Place, int]) -> int | None:
    """The line of the fault, or of the nearest thing around it; None where lines are not known."""
    place = _place(fault)
    return next((lines[place[:end]] for end in range(len(place), -1, -1) if place[:end] in lines), None)


def _known_fields(parent: Place, *, many: bool) -> list[str]:
    """The fields there are at this place."""
    if many and not parent:
        return ["jobs"]
    inside = parent[2:] if many else parent
    models = {"recipe": Recipe, "array": ArraySpec, "after": Dependency}
    return list((models.get(str(inside[0]), FileJob) if inside else FileJob).model_fields)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # pyright: ignore[reportGeneralTypeIssues]
    """A loader that knows what YAML 1.2 knows: null, true, false and decimal numbers. Everything else is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012, as the library has it


for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)", [*"~nN", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", [*"tTfF"]),
    ("int", r"[-+]?(?:0|[1-9][0-9]{0,29})", [*"-+0123456789"]),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"{_pattern}$"), _first)


class _Document:
    """The one document of a YAML text as plain values; fills `lines` with the line of each place."""

    def __init__(self, path: Path, text: str, lines: dict[Place, int]) -> None:
        self._path = path
        self._lines = lines
        self._left = MAX_VALUES
        try:
            self._check_depth(text)
            node = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._error(mark, f"not YAML: {error.problem or error.context}") from error
        except yaml.YAMLError as error:
            raise JobFileError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
        self.value = None if node is None else self._value(node, ())

    def _check_depth(self, text: str) -> None:
        """Before anything is built: the library builds by recursion."""
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_DEPTH:
                raise self._error(event.start_mark, f"nested more than {MAX_DEPTH} deep")

    def _value(self, node: yaml.Node, place: Place) -> object:
        self._left -= 1
        if self._left < 0:
            raise self._error(node.start_mark, f"more than {MAX_VALUES} values once aliases are written out")
        if len(place) > MAX_DEPTH:
            raise self._error(node.start_mark, f"nested more than {MAX_DEPTH} deep: an alias inside of what it names")
        self._lines[place] = node.start_mark.line + 1
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*place, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        return self._scalar(node, place)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, object]:
        merged: dict[str, object] = {}
        own: dict[str, object] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key.start_mark, "a key must be a plain word")
            if key.value == "<<":
                parts = child.value if isinstance(child, yaml.SequenceNode) else [child]
                for part in parts:
                    value = self._value(part, place)
                    if not isinstance(value, dict):
                        raise self._error(child.start_mark, "`<<` takes a mapping")
                    merged = {**value, **merged}
            elif key.value in own:
                raise self._error(key.start_mark, f"{'.'.join(map(str, (*place, key.value)))}: given twice")
            else:
                own[key.value] = self._value(child, (*place, key.value))
                self._lines[*place, key.value] = key.start_mark.line + 1
        self._lines[place] = node.start_mark.line + 1
        return merged | own

    def _scalar(self, node: yaml.Node, place: Place) -> object:
        text = str(node.value)
        if len(place) in (2, 4) and place[-2] in VERBATIM:
            return text
        match node.tag.removeprefix("tag:yaml.org,2002:"):
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "str":
                return text
            case _:
                raise self._error(node.start_mark, f"the tag {node.tag} is not allowed")

    def _error(self, mark: yaml.Mark | None, message: str) -> JobFileError:
        return JobFileError(f"{self._path}:{mark.line + 1}: {message}" if mark else f"{self._path}: {message}")
