"""Settings of every process of the service, read once from `ERGON_` environment variables."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from protocol.base import Name
from protocol.environment import PREFIX, SERVICE_VARIABLES, unknown_variables
from protocol.faults import in_words
from scheduler.reserve import OVERTAKEN_S
from service.power_budgets import GroupBudget, PowerRules, read_budgets, unknown_pool
from service.power_pools import PowerPool, read_pools


class SettingsError(ValueError):
    """The environment holds a setting that cannot be used. The message names the variable and the remedy."""


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """The folder of the embedded database when none is named: the system's for root, the user's own otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/ergon")
    home = environment.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "ergon"


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _read_pools(value: object) -> object:
    return read_pools(Path(value)) if isinstance(value, str) else value


def _read_budgets(value: object) -> object:
    return read_budgets(Path(value)) if isinstance(value, str) else value


class Settings(BaseModel):
    """What an administrator may set. The name of each variable is `ERGON_` and the field in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path
    database_url: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=0, le=65_535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    queues: Annotated[tuple[Name, ...], BeforeValidator(_split)] = Field(default=("default",), min_length=1)
    pue: float = Field(default=1.0, ge=1.0, le=10.0)
    price_per_kwh: float | None = Field(default=None, ge=0.0, le=1e6)
    currency: str = "EUR"
    carbon_g_per_kwh: float | None = Field(default=None, ge=0.0, le=1e6)
    tariff: str | None = None
    wait_for: Literal["price", "carbon"] = "price"
    lease_s: float = Field(default=300.0, ge=1.0, le=86_400.0)
    tick_s: float = Field(default=10.0, ge=0.1, le=3_600.0)
    stop_grace_s: float = Field(default=10.0, ge=0.0, le=3_600.0)
    max_attempts: int = Field(default=5, ge=1, le=1_000)
    overtaken_s: float = Field(default=OVERTAKEN_S, ge=0.0, le=31_536_000.0)
    moves_per_job: float = Field(default=1.0, ge=0.0, le=100.0)
    power_pools: Annotated[tuple[PowerPool, ...], BeforeValidator(_read_pools)] = ()
    power_budgets: Annotated[tuple[GroupBudget, ...], BeforeValidator(_read_budgets)] = ()
    keep_output_days: float = Field(default=30.0, gt=0.0, le=36_500.0)
    keep_records_days: float = Field(default=400.0, gt=0.0, le=36_500.0)
    checkpoint_quota_bytes: int = Field(default=1 << 40, ge=0, le=1 << 60)
    store_url: str | None = None
    postgres_user: str | None = None

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://; PostgreSQL is the only database Ergon runs on")
        return value

    @field_validator("currency")
    @classmethod
    def _is_currency(cls, value: str) -> str:
        if not re.fullmatch("[A-Z]{3}", value):
            raise ValueError("must be three capital letters, as in ISO 4217: EUR, USD, SEK")
        return value

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("set both ERGON_TLS_CERT and ERGON_TLS_KEY, or neither")
        return self

    @model_validator(mode="after")
    def _records_outlive_output(self) -> Self:
        if self.keep_records_days < self.keep_output_days:
            raise ValueError("ERGON_KEEP_RECORDS_DAYS must not be less than ERGON_KEEP_OUTPUT_DAYS")
        return self

    @model_validator(mode="after")
    def _budgets_name_pools(self) -> Self:
        if fault := unknown_pool(self.power_budgets, self.power_pools):
            raise ValueError(fault)
        return self

    @property
    def power(self) -> PowerRules:
        """Which nodes are switched, and what groups of nodes may draw."""
        return PowerRules(pools=self.power_pools, budgets=self.power_budgets)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings.

        Raises:
            SettingsError: a variable with our prefix is unknown, or a value cannot be used.
        """
        if complaints := unknown_variables(environment):
            raise SettingsError("; ".join(complaints))
        values: dict[str, object] = {"data_dir": default_data_dir(environment)}
        for variable in SERVICE_VARIABLES:
            if (value := environment.get(variable)) not in (None, ""):
                values[variable.removeprefix(PREFIX).lower()] = value
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            faults = (
                (f"{PREFIX}{fault['loc'][0]!s}: ".upper() if fault["loc"] else "") + in_words(fault)
                for fault in error.errors()
            )
            raise SettingsError("; ".join(faults)) from error
