"""`ergon nodes`, `report` and `plans`: what an administrator looks at."""

import itertools
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, cast

import typer

from ergon.cli.nodes import state_words
from ergon.cli.output import Json, line, local_time, note, table, write_json, write_json_lines
from ergon.cli.units import parse_time, show_duration, show_size
from ergon.client import Client
from ergon.errors import ErgonError
from protocol.cycles import CycleDetail
from protocol.nodes import NodeView, PowerBudgetView
from protocol.reports import AllocationReport, PlanSummary

NEWEST = 20


def nodes(
    links: Annotated[
        bool, typer.Option("--links", help="What they keep of code and data, and how fast they fetch it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the nodes and how many of their devices are held."""
    with Client() as client:
        found = list(client.nodes())
        if as_json:
            write_json_lines(found)
            return
        rows = [_row(node) for node in found]
        budgets = client.power_budgets()
    if not rows:
        note("no nodes; a node joins when its agent starts (`ergon up` starts local ones)")
        return
    if links:
        table(
            ("NODE", ">KEEPS", "SOURCE", ">FETCHES", ">WAIT", ">SPEED"), [row for node in found for row in _links(node)]
        )
        return
    table(
        ("NODE", "STATE", "DEVICES", ">HELD", ">CORES", ">MEMORY", "LIMITS", "CONTAINERS", ">BASE W", "LAST SEEN"), rows
    )
    if budgets:
        line("")
        table(
            ("POWER BUDGET", ">NODES", ">DRAW W", ">LIMIT W", ">FREE W"),
            [(budget.name, str(budget.nodes), *(f"{watts:.0f}" for watts in _watts(budget))) for budget in budgets],
        )
    for node in found:
        if node.power_fault:
            note(f"{node.name} could not be switched: {node.power_fault}")
        for device in node.devices:
            if device.reason:
                note(f"{node.name}: {device.kind} {device.index} ({device.id}) is {device.condition}: {device.reason}")


def _links(node: NodeView) -> Iterator[tuple[str, ...]]:
    """A line for each source that the node has fetched from, one without if it has from none."""
    keeps = show_size(node.cache_bytes)
    for link in node.links:
        speed = f"{show_size(round(link.bytes_per_s))}/s"
        yield node.name, keeps, link.source, str(link.fetches), f"{link.wait_s * 1000:.0f}ms", speed
    if not node.links:
        yield node.name, keeps, "-", "-", "-", "-"


def _watts(budget: PowerBudgetView) -> tuple[float, float, float]:
    """What it draws, what it may, and the rest."""
    return budget.planned_w, budget.limit_w, max(0.0, budget.limit_w - budget.planned_w)


def _row(node: NodeView) -> tuple[str, ...]:
    kinds = Counter(device.kind for device in node.devices)
    held = sum(holder.share for device in node.devices for holder in device.sharers)
    return (
        node.name,
        state_words(node),
        " ".join(f"{count}x{kind}" for kind, count in sorted(kinds.items())) or "-",
        f"{held:g}/{len(node.devices)}",
        f"{node.cpu_cores:g}",
        show_size(node.memory_bytes),
        "?" if node.limits is None else ", ".join(node.limits) or "-",
        node.container_runtime or "-",
        f"{node.base_w:.0f}",
        f"{show_duration((datetime.now(UTC) - node.last_seen_at).total_seconds())} ago",
    )


def alarms(as_json: Json = False) -> int:
    """List what an administrator should look at. Exit code 1 if there is anything."""
    with Client() as client:
        found = list(client.alarms())
    if as_json:
        write_json_lines(found)
    elif found:
        table(("SINCE", "KIND", "WHAT IS THE MATTER"), [(local_time(a.raised_at), a.kind, a.message) for a in found])
    else:
        note("no alarms")
    return 1 if found else 0


def report(
    start: Annotated[
        datetime | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Such as 2031-05-01T12:00; 24 hours ago by default."),
    ] = None,
    end: Annotated[datetime | None, typer.Option(parser=parse_time, metavar="TIME", help="Now by default.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Who was allocated what, what stood idle, and the energy."""
    if csv and as_json:
        raise ErgonError("--csv and --json do not go together; give one of them")
    with Client() as client:
        if csv:
            typer.echo(client.report_csv(start, end), nl=False)
            return
        answer = client.report(start, end)
    if as_json:
        write_json(answer)
    else:
        print_report(answer)


def print_report(report: AllocationReport) -> None:
    """The report as tables; hours are device-hours. A user's report has no nodes and no figures of the cluster."""
    line(f"from {local_time(report.start)} to {local_time(report.end)}")
    if report.nodes:
        line()
        table(
            ("NODE", ">DEVICES", ">AVAILABLE h", ">ALLOCATED h", ">IDLE h", ">kWh", ">IDLE kWh", "QUALITY"),
            [
                (
                    node.node,
                    str(node.devices),
                    _amount(node.available_device_hours),
                    _amount(node.allocated_device_hours),
                    _amount(node.idle_device_hours),
                    _amount(node.energy_kwh),
                    _amount(node.idle_energy_kwh),
                    node.quality,
                )
                for node in report.nodes
            ],
        )
    line()
    _print_users(report)
    line()
    if report.total_energy_kwh is not None:
        line(
            f"idle {_amount(report.idle_device_hours)} device-hours and {_amount(report.idle_energy_kwh)} kWh; "
            f"in all {_amount(report.total_energy_kwh)} kWh ({report.quality}), "
            f"{_amount(report.facility_energy_kwh)} kWh with a PUE of {report.pue:g}"
        )
    boots, off_hours = sum(node.boots for node in report.nodes), sum(node.off_hours for node in report.nodes)
    if boots or off_hours:
        line(
            f"off for {_amount(off_hours)} node-hours, with {_amount(report.off_energy_kwh)} kWh, "
            f"and {boots} boots, with {_amount(report.boot_energy_kwh)} kWh"
        )
    if report.cost is not None:
        at = "" if report.price_per_kwh is None else f", at {report.price_per_kwh:g} {report.currency}/kWh"
        line(f"cost {report.cost:.2f} {report.currency}{at}{_part(report.priced_share)}")
    if report.carbon_kg is not None:
        at = "" if report.carbon_g_per_kwh is None else f", at {report.carbon_g_per_kwh:g} g/kWh"
        line(f"CO2 {_amount(report.carbon_kg)} kg{at}{_part(report.carbon_share)}")
    if report.energy_gap is not None:
        line(
            f"energy gap {report.energy_gap:.1%}: these jobs needed {_amount(report.least_energy_kwh)} kWh at least, "
            "the rest went to idle devices and boots"
        )
    _print_plans(report.plans)


def _part(share: float | None) -> str:
    """Of which part of the energy a figure is, unless of all."""
    return "" if share is None or share > 0.9995 else f", of {share:.1%} of the energy: of the rest nothing is known"


def _print_users(report: AllocationReport) -> None:
    """With what it cost and the CO2, where the service knows prices of them."""
    header = ["USER", ">JOBS", ">ALLOCATED h", ">kWh", "QUALITY"]
    rows = [
        [user.user, str(user.jobs), _amount(user.allocated_device_hours), _amount(user.energy_kwh), user.quality]
        for user in report.users
    ]
    if report.currency is not None:
        header.append(f">{report.currency}")
        for row, user in zip(rows, report.users, strict=True):
            row.append(_amount(user.cost))
    if any(user.carbon_kg is not None for user in report.users):
        header.append(">kg CO2")
        for row, user in zip(rows, report.users, strict=True):
            row.append(_amount(user.carbon_kg))
    table(header, rows)


def _print_plans(plans: PlanSummary) -> None:
    words = f"{plans.cycles} planning cycles, {plans.placements} placements"
    if plans.gap_median is not None and plans.gap_max is not None:
        words += f"; solver gap {plans.gap_median:.2%} in the median, {plans.gap_max:.2%} at most"
    if plans.solve_s_median is not None and plans.solve_s_max is not None:
        words += f"; solved in {plans.solve_s_median:.3f}s in the median, {plans.solve_s_max:.3f}s at most"
    line(words)


def _amount(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.6f}" if 0 < value < 0.1 else f"{value:.3f}"


def plans(
    cycle_id: Annotated[int | None, typer.Argument(metavar="CYCLE", help="Show this one with its verdicts.")] = None,
    as_json: Json = False,
) -> None:
    """The planning cycles and how close to optimal each was."""
    with Client() as client:
        if cycle_id is not None:
            detail = client.cycle(cycle_id)
            if as_json:
                write_json(detail)
            else:
                _print_cycle(detail)
            return
        found = list(itertools.islice(client.cycles(page_size=NEWEST), NEWEST))
    if as_json:
        write_json_lines(found)
        return
    if not found:
        note("no cycle has planned anything yet")
        return
    table(
        ("CYCLE", "AT", ">WEIGHED", ">PLACED", ">COMMITTED", ">OBJECTIVE J", ">GAP", "METHOD", "STATUS", ">SOLVE"),
        [
            (
                str(cycle.id),
                local_time(cycle.at),
                str(cycle.pending),
                str(cycle.placed),
                str(cycle.committed),
                f"{cycle.objective_j:.0f}",
                f"{cycle.gap:.2%}",
                cycle.method,
                cycle.status,
                f"{cycle.solve_s:.3f}s",
            )
            for cycle in found
        ],
    )


def _print_cycle(cycle: CycleDetail) -> None:
    line(f"cycle {cycle.id} at {local_time(cycle.at)}, term {cycle.term}")
    line(f"{cycle.pending} jobs weighed, {cycle.placed} placed, {cycle.committed} committed")
    line(
        f"objective {cycle.objective_j:.0f} J, bound {cycle.bound_j:.0f} J, gap {cycle.gap:.2%} "
        f"({cycle.method}, {cycle.status})"
    )
    line(f"snapshot {cycle.snapshot_s:.3f}s, solve {cycle.solve_s:.3f}s, commit {cycle.commit_s:.3f}s")
    verdicts = _objects(cycle.plan.get("verdicts"))
    if verdicts:
        line()
        table(("JOB", "OUTCOME", "WHY"), [_verdict_row(verdict) for verdict in verdicts])


def _verdict_row(verdict: dict[str, object]) -> tuple[str, str, str]:
    why = "; ".join(str(reason.get("message", "")) for reason in _objects(verdict.get("reasons")))
    return str(verdict.get("job", "-")), str(verdict.get("outcome", "-")), why


def _objects(value: object) -> list[dict[str, object]]:
    return cast("list[dict[str, object]]", value) if isinstance(value, list) else []
