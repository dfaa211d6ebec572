"""The allocation report as CSV: one table, always the same columns in the same order."""

import csv
import io

from protocol.reports import AllocationReport

COLUMNS: tuple[str, ...] = (
    "kind",
    "name",
    "devices",
    "jobs",
    "available_device_hours",
    "allocated_device_hours",
    "idle_device_hours",
    "energy_kwh",
    "idle_energy_kwh",
    "quality",
    "start",
    "end",
    "pue",
    "off_hours",
    "boots",
    "off_energy_kwh",
    "boot_energy_kwh",
    "least_energy_kwh",
    "energy_gap",
    "cost",
    "currency",
    "carbon_kg",
)


def to_csv(report: AllocationReport) -> str:
    """Lines of kind `node`, `user` and, for an administrator, one `total`."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    window = {"start": report.start.isoformat(), "end": report.end.isoformat(), "pue": report.pue}
    window["currency"] = report.currency
    for line in report.nodes:
        values = line.model_dump()
        writer.writerow({"kind": "node", "name": _safe(values.pop("node")), **values, **window})
    for line in report.users:
        values = line.model_dump()
        writer.writerow({"kind": "user", "name": _safe(values.pop("user")), **values, **window})
    if report.total_energy_kwh is not None:
        total = {
            "available_device_hours": sum(line.available_device_hours for line in report.nodes),
            "allocated_device_hours": sum(line.allocated_device_hours for line in report.nodes),
            "idle_device_hours": report.idle_device_hours,
            "energy_kwh": report.total_energy_kwh,
            "idle_energy_kwh": report.idle_energy_kwh,
            "quality": report.quality,
            "off_hours": sum(line.off_hours for line in report.nodes),
            "boots": sum(line.boots for line in report.nodes),
            "off_energy_kwh": report.off_energy_kwh,
            "boot_energy_kwh": report.boot_energy_kwh,
            "least_energy_kwh": report.least_energy_kwh,
            "energy_gap": report.energy_gap,
            "cost": report.cost,
            "carbon_kg": report.carbon_kg,
        }
        writer.writerow({"kind": "total", "name": "", **total, **window})
    return out.getvalue()


def _safe(name: str) -> str:
    """Spreadsheets run what begins like a formula."""
    return f"'{name}" if name[:1] in {"=", "+", "-", "@"} else name
