"""What groups of nodes may draw together: budgets in W, told in a TOML file."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.base import Name
from protocol.faults import in_words
from scheduler.problem import PowerBudget
from service.power_pools import PowerPool, pool_of

Pattern = Annotated[str, Field(min_length=1, max_length=63)]


class GroupBudget(BaseModel):
    """The watts that a group of nodes may draw: those to which all that is told applies, or all nodes there are.

    `nodes` are names, in which `*` and `?` stand for any characters; `pool` is one of ERGON_POWER_POOLS; `labels` are
    those the agents were started with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    watts: float = Field(ge=0.0, le=1e9)
    nodes: tuple[Pattern, ...] | None = Field(default=None, min_length=1)
    pool: Name | None = None
    labels: Mapping[str, str] = Field(default={})

    def has(self, node: str, labels: Mapping[str, str], pool: PowerPool | None) -> bool:
        """Whether the node of this name, with these labels and in this pool, counts towards it."""
        return (
            (self.nodes is None or any(fnmatchcase(node, pattern) for pattern in self.nodes))
            and (self.pool is None or (pool is not None and pool.name == self.pool))
            and all(labels.get(label) == value for label, value in self.labels.items())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRules:
    """What an administrator says about power: nodes that are switched, and what groups of nodes may draw."""

    pools: tuple[PowerPool, ...] = ()
    budgets: tuple[GroupBudget, ...] = ()

    def of(self, nodes: Mapping[str, Mapping[str, str]]) -> tuple[PowerBudget, ...]:
        """The budgets of these nodes (labels by name), as the planner sees them."""
        pools = {name: pool_of(self.pools, name) for name in nodes} if self.budgets else {}
        return tuple(
            PowerBudget(
                name=budget.name,
                watts=budget.watts,
                nodes=tuple(name for name, labels in nodes.items() if budget.has(name, labels, pools[name])),
            )
            for budget in self.budgets
        )


NO_RULES = PowerRules()


def unknown_pool(budgets: Sequence[GroupBudget], pools: Sequence[PowerPool]) -> str | None:
    """What is wrong where a budget names a pool that there is not."""
    names = [pool.name for pool in pools]
    for budget in budgets:
        if budget.pool is not None and budget.pool not in names:
            known = ", ".join(names) or "none"
            return (
                f"ERGON_POWER_BUDGETS: budgets.{budget.name}.pool: ERGON_POWER_POOLS has no pool {budget.pool!r}; "
                f"there are: {known}"
            )
    return None


def read_budgets(path: Path) -> tuple[GroupBudget, ...]:
    """The budgets of a TOML file, in its order: one table `[budgets.NAME]` each.

    Raises ValueError, with the place in the file and the remedy, if it cannot be read or makes no sense.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); name a TOML file with a table [budgets.NAME]"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    tables = content.pop("budgets", {})
    if content or not isinstance(tables, dict):
        raise ValueError(f"{path}: {next(iter(content), 'budgets')}: there are tables [budgets.NAME] only")
    return tuple(_budget(path, name, table) for name, table in tables.items())


def _budget(path: Path, name: str, table: object) -> GroupBudget:
    if not isinstance(table, dict):
        raise ValueError(f"{path}: budgets.{name}: must be a table [budgets.{name}]")
    try:
        return GroupBudget.model_validate({**table, "name": name})
    except ValidationError as error:
        faults = (
            ".".join(map(str, ("budgets", name, *fault["loc"]))) + f": {in_words(fault)}" for fault in error.errors()
        )
        raise ValueError(f"{path}: {'; '.join(faults)}") from error
