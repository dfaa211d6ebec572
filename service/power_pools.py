"""Which nodes are switched off and on, and how: pools of nodes with the commands that an administrator wrote down.

A pool is known by the names of its nodes. A node of no pool is never switched.
"""

import re
import string
import tomllib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.base import Name
from protocol.faults import in_words

PLACEHOLDERS = ("name", "address")
"""What a command may name of a node: its name, and the address at which it registered."""

ADDRESS = re.compile(r"[A-Za-z0-9:][A-Za-z0-9:._%-]*")

Command = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=4_096)], ...], Field(min_length=1)]
Pattern = Annotated[str, Field(min_length=1, max_length=63)]


class PowerPool(BaseModel):
    """Nodes that are switched alike. Durations in s.

    `nodes` are names, in which `*` and `?` stand for any characters. `on` and `off` are commands, word by word: no
    shell reads them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    nodes: tuple[Pattern, ...] = Field(min_length=1)
    on: Command
    off: Command
    hook_limit_s: float = Field(default=60.0, gt=0.0, le=3_600.0)
    """A command that takes longer is killed and counts as failed."""
    boot_s: float = Field(default=300.0, ge=0.0, le=86_400.0)
    """How long a boot is expected to take: the planner's price of it follows from that."""
    boot_limit_s: float = Field(default=1_200.0, gt=0.0, le=86_400.0)
    """A node that was not heard for so long since it was to boot is set aside."""
    idle_s: float = Field(default=900.0, ge=0.0, le=1e9)
    """How long a node stays on with nothing to do."""
    min_on_s: float = Field(default=600.0, ge=0.0, le=1e9)
    """How long a node stays on after a boot, whatever the plan says."""
    boots_per_hour: int = Field(default=4, ge=1, le=1_000)
    """How often the plan may boot one node within an hour."""
    warm: int = Field(default=0, ge=0, le=100_000)
    """How many nodes with nothing to do are kept on for whoever comes next."""

    @model_validator(mode="after")
    def _commands_make_sense(self) -> Self:
        for field, command in (("on", self.on), ("off", self.off)):
            for word in command:
                for placeholder in _placeholders(field, word):
                    if placeholder not in PLACEHOLDERS:
                        known = " and ".join(f"{{{known}}}" for known in PLACEHOLDERS)
                        raise ValueError(
                            f"{field}: {{{placeholder}}} is unknown; there are {known}, and {{{{ for a brace"
                        )
        return self

    def has(self, node: str) -> bool:
        """Whether the node of this name belongs to it."""
        return any(fnmatchcase(node, pattern) for pattern in self.nodes)

    def command(self, *, on: bool, name: str, address: str) -> list[str]:
        """The command that switches the node of this name and address.

        Raises ValueError for an address that no host has: agents choose theirs, and one like `-oProxyCommand=...` would
        be an option to ssh.
        """
        if not ADDRESS.fullmatch(address):
            raise ValueError(f"the address {address!r} of node {name!r} is no host's and goes into no command")
        return [word.format(name=name, address=address) for word in (self.on if on else self.off)]


def pool_of(pools: Sequence[PowerPool], node: str) -> PowerPool | None:
    """The first pool that has the node."""
    return next((pool for pool in pools if pool.has(node)), None)


def read_pools(path: Path) -> tuple[PowerPool, ...]:
    """The pools of a TOML file, in its order: one table `[pools.NAME]` each.

    Raises ValueError, with the place in the file and the remedy, if it cannot be read or makes no sense.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); name a TOML file with a table [pools.NAME]"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    tables = content.pop("pools", {})
    if content or not isinstance(tables, dict):
        first = next(iter(content), "pools")
        raise ValueError(f"{path}: {first}: there are tables [pools.NAME] only")
    return tuple(_pool(path, name, table) for name, table in tables.items())


def _pool(path: Path, name: str, table: object) -> PowerPool:
    if not isinstance(table, dict):
        raise ValueError(f"{path}: pools.{name}: must be a table [pools.{name}]")
    try:
        return PowerPool.model_validate({**table, "name": name})
    except ValidationError as error:
        faults = (
            ".".join(map(str, ("pools", name, *fault["loc"]))) + f": {in_words(fault)}" for fault in error.errors()
        )
        raise ValueError(f"{path}: {'; '.join(faults)}") from error


def _placeholders(field: str, word: str) -> Iterator[str]:
    try:
        parsed = list(string.Formatter().parse(word))
    except ValueError as error:
        raise ValueError(f"{field}: {word!r}: {error}; write {{{{ for a brace") from error
    for _, name, spec, conversion in parsed:
        if name is not None:
            yield name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
