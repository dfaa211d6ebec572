"""The allocation and energy report."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from protocol.base import View

Quality = Literal["measured", "modelled", "mixed"]
"""Whether an amount of energy was counted by hardware, computed by the power model, or both."""


class NodeUsage(View):
    """One node over the window."""

    node: str
    devices: int
    available_device_hours: float = Field(description="Devices times the hours the node was on and heard of.")
    allocated_device_hours: float
    idle_device_hours: float
    energy_kwh: float = Field(description="Everything the node drew, idle included.")
    idle_energy_kwh: float = Field(description="The part of it that no job accounts for while the node was on.")
    quality: Quality
    off_hours: float = Field(default=0.0, description="How long it was switched off.")
    boots: int = Field(default=0, description="How often it began to boot.")
    off_energy_kwh: float = Field(
        default=0.0, description="The part of its energy that it drew off, and as if off in boots."
    )
    boot_energy_kwh: float = Field(default=0.0, description="The part of its energy that boots took on top of that.")


class UserUsage(View):
    """One user over the window."""

    user: str
    jobs: int = Field(description="Jobs with an allocation inside the window.")
    allocated_device_hours: float
    energy_kwh: float
    quality: Quality
    cost: float | None = Field(default=None, description="In the report's currency; as all costs, of energy times pue.")
    carbon_kg: float | None = Field(default=None, description="CO2 equivalent, in kg, of energy times pue.")


class PlanSummary(View):
    """The cycles of the window that placed or weighed a job."""

    cycles: int
    placements: int
    gap_median: float | None = Field(description="(objective - bound) / objective, a fraction.")
    gap_max: float | None
    solve_s_median: float | None
    solve_s_max: float | None


class AllocationReport(View):
    """Who was allocated what, what stood idle, and the energy. Users, idle nodes, nodes off and boots add up to
    the sum over nodes.

    A user sees the own line only: `nodes` is empty then, and the cluster's figures are absent.
    """

    schema_version: int = 1
    start: datetime
    end: datetime
    pue: float = Field(description="Power usage effectiveness; energies here are IT energy, not multiplied by it.")
    nodes: list[NodeUsage]
    users: list[UserUsage]
    idle_device_hours: float | None = None
    idle_energy_kwh: float | None = None
    total_energy_kwh: float | None = None
    facility_energy_kwh: float | None = Field(default=None, description="total_energy_kwh times pue.")
    off_energy_kwh: float | None = Field(default=None, description="Of nodes that were switched off.")
    boot_energy_kwh: float | None = Field(default=None, description="Of boots.")
    least_energy_kwh: float | None = Field(
        default=None,
        description="What the same jobs, on the devices that they had, would have drawn on nodes that they fill, with "
        "everything else off and without boots: total_energy_kwh less boots and less what idle devices drew above off.",
    )
    energy_gap: float | None = Field(
        default=None, description="(total_energy_kwh - least_energy_kwh) / least_energy_kwh, a fraction."
    )
    price_per_kwh: float | None = Field(
        default=None,
        description="At the meter, in the currency, in the mean of what was drawn; absent if unknown.",
    )
    currency: str | None = Field(default=None, description="Three letters, as in ISO 4217; absent without a price.")
    carbon_g_per_kwh: float | None = Field(
        default=None, description="CO2 equivalent of such a kWh, in g, in the mean; absent if unknown."
    )
    cost: float | None = Field(default=None, description="Of facility_energy_kwh, as far as prices are known.")
    priced_share: float | None = Field(default=None, description="The part of the energy whose price is known.")
    carbon_kg: float | None = Field(default=None, description="Of facility_energy_kwh, as far as known, in kg.")
    carbon_share: float | None = Field(default=None, description="The part of the energy whose CO2 is known.")
    quality: Quality | None = None
    plans: PlanSummary
