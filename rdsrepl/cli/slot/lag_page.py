"""Build the HTML page of ``slot lag --html``: the slots of a server, each with a chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC

from rdsrepl.cli.html_option import footer
from rdsrepl.postgres.activity import ServerInfo
from rdsrepl.render import size
from rdsrepl.reports import html_page, svg_chart, text_chart
from rdsrepl.reports.html_page import Column, Html
from rdsrepl.retention.assessment import Retention, SlotRetention
from rdsrepl.retention.slot_series import SlotSeries, slot_series
from rdsrepl.state.slot_history import Observation
from rdsrepl.units import format_duration, format_size

_COLUMNS = (
    Column("Slot", is_name=True),
    Column("Severity"),
    Column("Database", is_name=True),
    Column("Active"),
    Column("Retained", is_number=True),
    Column("Undelivered", is_number=True),
    Column("Behind", is_number=True),
    Column("Growth", is_number=True),
    Column("First failure", is_long=True),
)


def page(
    label: str,
    server: ServerInfo,
    history: Sequence[Observation],
    retention: Retention,
    *,
    notes: Sequence[str],
    details: Callable[[SlotRetention], Sequence[tuple[str, object]]],
    seconds: float | None,
) -> str:
    """Return the page.

    Args:
        label: the name of the target.
        server: the server.
        history: the samples, oldest first, the current one included.
        retention: the slots, the worst first.
        notes: lines about the server as a whole.
        details: returns the names and values of one slot.
        seconds: how much of the history to draw; None draws all.
    """
    parts = [_server(label, server, retention), *(html_page.paragraph(line) for line in notes)]
    if retention.holdings:
        rows = [_row(one) for one in retention.holdings]
        parts.append(html_page.section("Slots", html_page.table(_COLUMNS, rows)))
    else:
        parts.append(html_page.paragraph("no replication slots"))
    for one in retention.holdings:
        series = slot_series(history, retention, one, seconds=seconds)
        parts.append(html_page.section(one.slot.slot_name, _chart(series), _details(details(one))))
    return html_page.page(f"Replication slots of {label}", *parts, footer=footer())


def _server(label: str, server: ServerInfo, retention: Retention) -> Html:
    flavour = {"aurora": "Aurora PostgreSQL", "rds": "RDS PostgreSQL"}.get(server.flavour, "PostgreSQL")
    return html_page.facts(
        [
            ("Severity", html_page.badge(retention.severity.value)),
            ("Time (server clock)", f"{retention.wal.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"),
            ("Target", label),
            ("Address", server.address or "unknown"),
            ("Version", f"{flavour} {server.version}"),
            ("Role", "standby" if server.in_recovery else "primary"),
            ("WAL position", retention.wal.lsn),
        ]
    )


def _row(one: SlotRetention) -> tuple[object, ...]:
    return (
        html_page.code(one.slot.slot_name),
        html_page.badge(one.severity.value),
        one.slot.database or "-",
        "yes" if one.slot.active else "no",
        size(one.retained_bytes),
        size(one.undelivered_bytes),
        "-" if one.lag_seconds is None else format_duration(one.lag_seconds),
        "-" if one.growth is None else f"{format_size(round(one.growth.per_second))}/s",
        text_chart.failure(one),
    )


def _chart(series: SlotSeries) -> Html:
    if not series.has_history:
        return html_page.paragraph("No chart: a chart needs two samples of the slot.", note=True)
    marks = [("retained", "retained WAL"), ("undelivered", "undelivered WAL")]
    if not series.undelivered:
        marks.pop()
    marks += [("forecast", "forecast")] if series.forecast else []
    marks += [("limit", "limit")] if series.limits else []
    far = svg_chart.far_limits(series)
    above = f" Above the chart: {', '.join(limit.text for limit in far)}." if far else ""
    days = f"{series.start.astimezone(UTC):%Y-%m-%d %H:%M} to {series.now.astimezone(UTC):%Y-%m-%d %H:%M} UTC."
    caption = Html(f"{html_page.legend(marks)}<br>{html_page.text(days + above)}")
    return html_page.figure(Html(svg_chart.chart(series, svg_chart.description(series))), caption)


def _details(pairs: Sequence[tuple[str, object]]) -> Html:
    """Return names and values; a value without a name belongs to the name before."""
    grouped: list[tuple[str, list[object]]] = []
    for name, value in pairs:
        if name or not grouped:
            grouped.append((name, [value]))
        else:
            grouped[-1][1].append(value)
    return html_page.facts([(name, html_page.lines(values)) for name, values in grouped])
