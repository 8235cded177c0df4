"""``rdsrepl slot check``: check the slots against thresholds, for monitoring with Nagios, Prometheus and CloudWatch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rdsrepl.cli.command_classes import ReadCommand
from rdsrepl.cli.completion import complete_any_slot
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options
from rdsrepl.cli.options import size_option
from rdsrepl.cli.slot.server_state import read_rds_metrics, read_server_state
from rdsrepl.cli.targets import database_target
from rdsrepl.errors import BadValue, ExitCode, NotFound, UsageError
from rdsrepl.render import Column, document, emit, listing, stacked
from rdsrepl.retention.assessment import Retention, SlotRetention
from rdsrepl.retention.thresholds import Severity, Thresholds
from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import shown
from rdsrepl.text.masking import mask

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from rdsrepl.config import Target

_EXIT: Final = {Severity.OK: ExitCode.DONE, Severity.WARNING: ExitCode.WARNING, Severity.CRITICAL: ExitCode.CRITICAL}
_NAMESPACE: Final = "rdsrepl"


def check(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="Check only these slots.", autocompletion=complete_any_slot, show_default=False
        ),
    ] = None,
    warn: Annotated[
        list[str] | None,
        typer.Option("--warn", metavar="MEASURE=VALUE", help="Set the threshold of a warning; may be repeated."),
    ] = None,
    critical: Annotated[
        list[str] | None,
        typer.Option(
            "--critical",
            metavar="MEASURE=VALUE",
            help="Set a critical threshold for retained, undelivered, time-to-break, inactive, xid-age or wal-status.",
        ),
    ] = None,
    nagios: Annotated[
        bool,
        typer.Option("--nagios", help="Print one line and exit as a Nagios plugin does.", show_default=False),
    ] = False,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print metrics in the Prometheus text format.", show_default=False)
    ] = False,
    free_space: Annotated[
        int | None, size_option("--free-space", help="Set the free storage, if CloudWatch does not report it.")
    ] = None,
    put_metric: Annotated[
        bool,
        typer.Option("--put-metric", help="Publish the values of each slot to CloudWatch.", show_default=False),
    ] = False,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", metavar="NAME", help="Set the namespace of --put-metric.", show_default=_NAMESPACE),
    ] = None,
) -> None:
    """Check the slots against thresholds: exit 0, 8 (warning) or 9 (critical); with --nagios 0, 1, 2 or 3.

    The default thresholds of a warning and a critical finding: 10 GB and 100 GB of WAL retained; a failure forecast
    within a day and within an hour; inactive for an hour (warning only); VACUUM held back by 500 million and by one
    billion transactions; wal_status unreserved or lost (critical).

    Example: rdsrepl slot check --warn retained=5GB --critical time-to-break=2h --nagios
    """
    from rdsrepl.retention import thresholds

    if nagios and prometheus:
        raise BadValue("--nagios and --prometheus exclude each other", hint="give one of them")
    if namespace is not None and not put_metric:
        raise BadValue("--namespace requires --put-metric", hint="add --put-metric, or omit --namespace")
    limits = thresholds.parse(warn or (), critical or ())
    target = database_target(ctx)
    if put_metric and target.aws.identifier is None:
        raise UsageError("--put-metric requires a cluster or an instance", hint="add --cluster ID or --instance ID")
    retention = _assess(ctx, target, limits, free_space)
    if missing := sorted(set(names or ()) - {one.slot.slot_name for one in retention.holdings}):
        not_found = NotFound(f"no replication slot {', '.join(missing)} on this server", hint="rdsrepl slot list")
        if not nagios:
            raise not_found
        # A missing slot means lost changes, so it is CRITICAL. Any other error is UNKNOWN (cli/main.py).
        sys.stdout.write(f"SLOTS CRITICAL - {_one_line(mask(not_found.message))}\n")
        raise typer.Exit(Severity.CRITICAL.rank)
    if names:
        retention = _only_slots(retention, names)
    if put_metric:
        _publish_metrics(ctx, target, retention, namespace or _NAMESPACE)
    if nagios:
        sys.stdout.write(_nagios_line(retention, limits) + "\n")
        raise typer.Exit(retention.severity.rank)
    if prometheus:
        sys.stdout.write(_prometheus_text(retention))
        raise typer.Exit(_EXIT[retention.severity])
    emit(
        {
            "severity": retention.severity,
            "findings": [
                {"slot_name": one.slot.slot_name, **document(reason)}
                for one in retention.holdings
                for reason in one.reasons
            ],
            "warn": limits[0],
            "critical": limits[1],
            **{key: value for key, value in document(retention).items() if key != "severity"},
        },
        global_options(ctx).output,
        lambda: _table(retention),
    )
    raise typer.Exit(_EXIT[retention.severity])


def _assess(
    ctx: typer.Context,
    target: Target,
    limits: tuple[Thresholds, Thresholds],
    free_space: int | None,
) -> Retention:
    from rdsrepl.postgres import connection

    metrics = read_rds_metrics(ctx, target, free_space)
    with connection.open(target) as conn:
        return read_server_state(ctx, conn, metrics).assess(warn=limits[0], critical=limits[1])


def _only_slots(retention: Retention, names: Sequence[str]) -> Retention:
    """Return the assessment of these slots only."""
    kept = tuple(one for one in retention.holdings if one.slot.slot_name in names)
    worst = max((one.severity for one in kept), key=lambda severity: severity.rank, default=Severity.OK)
    return replace(retention, holdings=kept, severity=worst)


def _table(retention: Retention) -> object:
    bad = [(one, reason) for one in retention.holdings for reason in one.reasons]
    if not bad:
        return _all_ok(len(retention.holdings)) if retention.holdings else "no replication slots"
    table = listing(
        bad,
        [
            Column("SLOT", lambda pair: pair[0].slot.slot_name, kind="name"),
            Column("SEVERITY", lambda pair: pair[1].severity.value),
            Column("WHY", lambda pair: pair[1].text, kind="prose"),
        ],
        empty="",
    )
    good = len(retention.holdings) - len({one.slot.slot_name for one, _ in bad})
    return stacked(table, f"{counted(good, 'more slot')} OK") if good else table


def _all_ok(count: int) -> str:
    return f"{counted(count, 'slot')} checked, all OK"


def _nagios_line(retention: Retention, limits: tuple[Thresholds, Thresholds]) -> str:
    """Return the line of a Nagios plugin: state, reasons, performance data."""
    reasons = [f"{one.slot.slot_name}: {one.reasons[0].text}" for one in retention.holdings if one.reasons]
    text = "; ".join(reasons) or _all_ok(len(retention.holdings))
    data = " ".join(item for one in retention.holdings for item in _performance(one, limits))
    return _one_line(f"SLOTS {retention.severity.name} - {text}") + (f" | {data}" if data else "")


def _performance(one: SlotRetention, limits: tuple[Thresholds, Thresholds]) -> Iterable[str]:
    warn, critical = limits
    for label, value, unit, first, second in (
        ("retained", one.retained_bytes, "B", warn.retained_bytes, critical.retained_bytes),
        ("undelivered", one.undelivered_bytes, "B", warn.undelivered_bytes, critical.undelivered_bytes),
        ("xid_age", one.xid_age, "", warn.xid_age, critical.xid_age),
    ):
        if value is not None:
            bounds = ";".join("" if bound is None else str(bound) for bound in (first, second))
            yield f"'{shown(one.slot.slot_name)}_{label}'={value}{unit};{bounds};0"


def _one_line(text: str) -> str:
    return shown(" ".join(text.split())).replace("|", "/")


def _prometheus_text(retention: Retention) -> str:
    from prometheus_client import CollectorRegistry, generate_latest

    class Slots:
        def collect(self) -> Iterable[Metric]:
            return _families(retention)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Slots())
    return generate_latest(registry).decode()


def _families(retention: Retention) -> Iterable[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    labels = ("slot", "database", "plugin")
    gauges: tuple[tuple[str, str, Any], ...] = (
        ("retained_bytes", "WAL that the server retains for the slot.", lambda one: one.retained_bytes),
        ("undelivered_bytes", "WAL that the consumer has not confirmed.", lambda one: one.undelivered_bytes),
        ("behind_seconds", "Age of the WAL that the consumer confirmed last.", lambda one: one.lag_seconds),
        (
            "growth_bytes_per_second",
            "Growth of the retained WAL.",
            lambda one: one.growth and one.growth.per_second,
        ),
        ("active", "1 while a consumer is connected, else 0.", lambda one: int(one.slot.active)),
        ("inactive_seconds", "Time without a consumer, as far as known.", lambda one: one.inactive_seconds),
        ("xid_age", "Transactions by which the slot holds back VACUUM.", lambda one: one.xid_age),
        ("safe_wal_bytes", "WAL until the slot exceeds max_slot_wal_keep_size.", lambda one: one.slot.safe_wal_size),
        ("severity", "0 ok, 1 warning, 2 critical.", lambda one: one.severity.rank),
    )
    for name, text, value in gauges:
        family = GaugeMetricFamily(f"rdsrepl_slot_{name}", text, labels=labels)
        for one in retention.holdings:
            number = value(one)
            if number is not None:
                family.add_metric(_labels(one), float(number))
        yield family
    breaks = GaugeMetricFamily(
        "rdsrepl_slot_seconds_to_break", "Time until the slot causes a failure.", labels=(*labels, "what")
    )
    for one in retention.holdings:
        for item in one.breaks:
            breaks.add_metric([*_labels(one), item.what], float(item.seconds))
    yield breaks
    if retention.wal_rate is not None:
        rate = GaugeMetricFamily("rdsrepl_wal_bytes_per_second", "WAL that the server writes in a second.")
        rate.add_metric([], retention.wal_rate.per_second)
        yield rate


def _labels(one: SlotRetention) -> list[str]:
    return [shown(one.slot.slot_name), shown(one.slot.database or ""), shown(one.slot.plugin or "")]


def _publish_metrics(ctx: typer.Context, target: Target, retention: Retention, namespace: str) -> None:
    """Publish the values of each slot to CloudWatch, which has no metrics of single slots."""
    from rdsrepl.aws import metrics

    aws = target.aws
    dimension = "DBClusterIdentifier" if aws.cluster is not None else "DBInstanceIdentifier"
    data = [
        metrics.Datum(name, float(value), unit, {"SlotName": one.slot.slot_name, dimension: str(aws.identifier)})
        for one in retention.holdings
        for name, value, unit in (
            ("RetainedBytes", one.retained_bytes, "Bytes"),
            ("UndeliveredBytes", one.undelivered_bytes, "Bytes"),
            ("InactiveSeconds", one.inactive_seconds or 0.0, "Seconds"),
            ("XidAge", one.xid_age, "Count"),
            ("SecondsToBreak", one.breaks[0].seconds if one.breaks else None, "Seconds"),
        )
        if value is not None
    ]
    metrics.put(aws, namespace, data)
    note(ctx, f"{counted(len(data), 'value')} published to CloudWatch, namespace {namespace}")


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl slot``."""
    app.command("check", cls=ReadCommand)(check)
