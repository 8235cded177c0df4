"""``rdsrepl slot lag``: show the retained and the undelivered WAL of each slot, with rates and forecasts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli import html_option
from rdsrepl.cli.command_classes import ListCommand
from rdsrepl.cli.completion import complete_any_slot
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options, list_options, set_watch_interval
from rdsrepl.cli.hints import with_selectors
from rdsrepl.cli.html_option import HtmlFile
from rdsrepl.cli.lists import Rows, checked_interval, print_database_list, print_list
from rdsrepl.cli.options import duration_option, size_option
from rdsrepl.cli.slot.server_state import read_rds_metrics, read_server_state
from rdsrepl.cli.targets import database_target
from rdsrepl.dashboard.slot_table import SEVERITY_STYLES, sparkline
from rdsrepl.errors import BadValue, NotFound
from rdsrepl.render import Column, Listing, displays_unicode, document, facts, size, styled
from rdsrepl.retention import assessment
from rdsrepl.retention.assessment import Retention, SlotRetention
from rdsrepl.retention.forecast import Rate
from rdsrepl.text.counts import counted
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.retention.rds_metrics import RdsMetrics
    from rdsrepl.retention.server_state import ServerState
    from rdsrepl.state.slot_history import Observation

_RECENT_SECONDS: Final = 3600.0
_RECENT_POINTS: Final = 12
_WHAT: Final = {"slot_invalidated": "invalidated", "storage_full": "disk full", "xid_wraparound": "no xids"}
_NOT_ON_PAGE: Final = frozenset({"slot", "last hour", "WAL"})
_MEASURED: Final = (
    ("TransactionLogsDiskUsage", "of WAL on disk"),
    ("OldestReplicationSlotLag", "behind the oldest slot"),
    ("OldestLogicalReplicationSlotLag", "behind the oldest logical slot"),
    ("ReplicationSlotDiskUsage", "spilled by decoding"),
    ("FreeLocalStorage", "of local storage free"),
)


def lag(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Show all details of one slot.", autocompletion=complete_any_slot, show_default=False
        ),
    ] = None,
    interval: Annotated[
        float | None, duration_option("--interval", help="Set how often --watch without a value refreshes.")
    ] = None,
    free_space: Annotated[
        int | None, size_option("--free-space", help="Set the free storage, if CloudWatch does not report it.")
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw the recorded history of NAME or the worst slots.", show_default=False)
    ] = False,
    html: HtmlFile = None,
    since: Annotated[
        float | None,
        duration_option("--since", help="Draw only this much of the history, with --plot or --html; default: all."),
    ] = None,
) -> None:
    """Show the retained and the undelivered WAL of each slot, how fast they grow, and which failure follows when.

    RETAINED is the WAL that the server keeps for a slot; it fills the disk. UNDELIVERED is the WAL whose changes the
    consumer has not confirmed. A rate requires two samples; the sample of an earlier run counts. Without one, the rate
    of CloudWatch is used.

    Example: rdsrepl slot lag shop_cdc
    """
    if interval is not None:
        set_watch_interval(ctx, checked_interval("--interval", interval))
    _require_one_document(ctx, plot=plot, html=html, since=since)
    selected = _LISTING.select(conditions=list_options(ctx).filter, sort_by=list_options(ctx).sort_by)
    target = database_target(ctx)
    metrics = read_rds_metrics(ctx, target, free_space)
    # rich replaces stdout while it draws repeatedly: its encoding is known only now.
    view = _View(name, plot, since, displays_unicode(sys.stdout))
    if html is None:
        print_database_list(
            ctx, _LISTING, lambda conn: _rows(ctx, read_server_state(ctx, conn, metrics), metrics, view)
        )
        return
    from rdsrepl.postgres import connection

    with connection.open(target) as conn:
        state = read_server_state(ctx, conn, metrics)
        page = _page(conn, target, state, metrics, view, selected)
    html_option.write(ctx, html, page)
    if not html_option.is_stdout(html):
        print_list(ctx, _LISTING, lambda: _rows(ctx, state, metrics, view))


@dataclass(frozen=True, slots=True)
class _View:
    """What to show.

    Attributes:
        name: one slot; None is all.
        plot: pictures, not a table.
        since: how much of the history, in seconds; None is all.
        unicode: whether the terminal displays more than ASCII.
    """

    name: str | None
    plot: bool
    since: float | None
    unicode: bool


def _require_one_document(ctx: typer.Context, *, plot: bool, html: Path | None, since: float | None) -> None:
    """Refuse options that cannot be used together.

    Raises:
        BadValue: two of the options exclude each other.
    """
    output = global_options(ctx).output
    html_option.require_usable(ctx, html)
    if plot and not output.is_table:
        raise BadValue(f"--plot and -o {output.value} exclude each other", hint="-o json has the values in 'recent'")
    if plot and list_options(ctx).query is not None:
        raise BadValue("--plot and --query exclude each other", hint="leave out --plot")
    if html is not None and list_options(ctx).watch is not None:
        raise BadValue("--html and --watch exclude each other", hint="leave out --watch")
    if since is not None and not (plot or html):
        raise BadValue("--since needs --plot or --html", hint="add --plot")
    if since is not None and since <= 0:
        raise BadValue("--since must be longer than 0s", hint="for example --since 6h")


def _page(
    conn: Connection,
    target: Target,
    state: ServerState,
    metrics: RdsMetrics,
    view: _View,
    selected: Callable[[Sequence[SlotRetention]], list[SlotRetention]],
) -> str:
    from rdsrepl.cli.slot import lag_page
    from rdsrepl.postgres import activity

    retention = _only_slot(state.assess(), view.name)
    rows = tuple(selected(retention.holdings))
    return lag_page.page(
        target.label,
        activity.server(conn),
        _with_current(state),
        replace(retention, holdings=rows),
        notes=[
            *_server_lines(retention, rows),
            *(f"CloudWatch: {line}" for line in _cloudwatch_lines(metrics)),
        ],
        details=lambda one: [pair for pair in _slot_details(state, retention, one) if pair[0] not in _NOT_ON_PAGE],
        seconds=view.since,
    )


def _rows(ctx: typer.Context, state: ServerState, metrics: RdsMetrics, view: _View) -> Rows:
    retention = _only_slot(state.assess(), view.name)
    watches = list_options(ctx).watch is not None
    if retention.wal_rate is None and retention.holdings and global_options(ctx).output.is_table and not watches:
        note(ctx, "no rate and no forecast yet: run the command again later, or with --watch")
    samples, cloudwatch = _last_hour(state), _cloudwatch_lines(metrics)

    def kept(rows: Sequence[SlotRetention]) -> Retention:
        return replace(retention, holdings=tuple(rows))

    def picture(rows: Sequence[SlotRetention]) -> object:
        from rdsrepl.cli.slot.lag_plot import plot

        more = with_selectors(ctx, "rdsrepl slot lag NAME --plot")
        return plot(_with_current(state), kept(rows), seconds=view.since, unicode=view.unicode, more=more)

    def details(rows: Sequence[SlotRetention]) -> object:
        return facts([*_slot_details(state, retention, rows[0]), *(("CloudWatch", line) for line in cloudwatch)])

    def below(rows: Sequence[SlotRetention]) -> list[str]:
        return [*_server_lines(retention, rows), *(f"CloudWatch: {line}" for line in cloudwatch)]

    return Rows(
        retention.holdings,
        document=lambda rows: _document(state, metrics, kept(rows)),
        columns=(*_COLUMNS, Column("LAST HOUR", lambda one: _spark(samples, one), priority=4)),
        table=picture if view.plot else details if view.name is not None else None,
        below=below,
    )


def _with_current(state: ServerState) -> tuple[Observation, ...]:
    return (*state.history, assessment.to_observation(state.wal, state.slots))


def _document(state: ServerState, metrics: RdsMetrics, retention: Retention) -> dict[str, object]:
    samples = _last_hour(state)
    return {
        **document(retention),
        "server": state.server,
        "metrics": document(metrics.metrics),
        "recent_seconds": _RECENT_SECONDS,
        "recent": {one.slot.slot_name: _recent(samples, one) for one in retention.holdings},
    }


def _only_slot(retention: Retention, name: str | None) -> Retention:
    """Return the assessment of one slot only.

    Raises:
        NotFound: no slot has this name.
    """
    if name is None:
        return retention
    holdings = tuple(one for one in retention.holdings if one.slot.slot_name == name)
    if not holdings:
        raise NotFound(f"no replication slot {name} on this server", hint="rdsrepl slot list")
    return replace(retention, holdings=holdings)


def _server_lines(retention: Retention, rows: Sequence[SlotRetention]) -> list[str]:
    """Return the lines about the server as a whole, and what is wrong with the slots in ROWS."""
    lines = []
    rate = "" if retention.wal_rate is None else f"WAL grows by {format_size(round(retention.wal_rate.per_second))}/s"
    if retention.wal_rate is not None:
        rate += f" ({retention.wal_rate.source}" + (
            f" over {format_duration(retention.wal_rate.window_seconds)})" if retention.wal_rate.window_seconds else ")"
        )
    if retention.storage is not None:
        rate += f"{'; ' if rate else ''}{format_size(retention.storage.free_bytes)} of storage is free"
        rate += f" ({retention.storage.source})"
    if rate:
        lines.append(rate)
    blamed = next((one for one in retention.holdings if one.slot.slot_name == retention.blamed), None)
    if blamed is not None and blamed.retained_bytes:
        lines.append(f"{blamed.slot.slot_name} retains the most: {_freed(retention, blamed)}")
    lines += [
        f"{one.slot.slot_name}: {one.severity.value}: {reason.text}" for one in rows for reason in one.reasons[:1]
    ]
    return lines


def _cloudwatch_lines(metrics: RdsMetrics) -> list[str]:
    """Return the CloudWatch metrics of the writer's WAL; CloudWatch has no metrics of single slots."""
    words = [
        f"{format_size(int(value))} {what}"
        for name, what in _MEASURED
        if (value := metrics.metrics.get(name)) is not None and value >= 0
    ]
    return [", ".join(words)] if words else []


def _freed(retention: Retention, one: SlotRetention) -> str:
    rest = assessment.not_freed_by(one.shared_with, one.freed_bytes, one.retained_bytes or 0, retention.wal)
    return f"dropping it alone would free about {format_size(one.freed_bytes)}{rest}"


def _slot_details(state: ServerState, retention: Retention, one: SlotRetention) -> list[tuple[str, object]]:
    """Return all details of one slot."""
    slot = one.slot
    grows = "unknown" if one.growth is None else f"{_per_second(one.growth)}, {_window(one.growth)}"
    rows: list[tuple[str, object]] = [
        ("slot", f"{slot.slot_name} ({slot.plugin or 'physical'}, database {slot.database or '-'})"),
        ("consumer", slot.holder if slot.active else "none"),
        ("severity", one.severity.value),
        *(("", reason.text) for reason in one.reasons),
        ("retained", f"{size(one.retained_bytes)} of WAL from {slot.restart_lsn or '-'}"),
        ("undelivered", f"{size(one.undelivered_bytes)} of WAL after {slot.confirmed_flush_lsn or '-'}"),
        ("behind", "unknown" if one.lag_seconds is None else f"about {format_duration(one.lag_seconds)}"),
        ("growth rate", grows),
        ("delivery rate", "unknown" if one.delivery is None else _per_second(one.delivery)),
    ]
    if one.inactive_seconds is not None:
        rows.append(("inactive", f"for {format_duration(one.inactive_seconds)}, as far as known"))
    if one.xid_age is not None:
        rows.append(("holds back VACUUM", f"by {counted(one.xid_age, 'transaction', grouped=True)}"))
    rows += [("breaks", forecast.text_with(_WHAT[forecast.what])) for forecast in one.breaks]
    rows.append(("if it is dropped", _freed(retention, one)))
    rows.append(("last hour", _spark(_last_hour(state), one) or "no earlier samples"))
    if retention.wal_rate is not None:
        rows.append(("WAL", f"{_per_second(retention.wal_rate)}, {_window(retention.wal_rate)}"))
    return rows


def _window(rate: Rate) -> str:
    return f"over {format_duration(rate.window_seconds)}" if rate.window_seconds else f"from {rate.source}"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)


def _per_second(rate: Rate | None) -> str:
    return "-" if rate is None else f"{format_size(round(rate.per_second))}/s"


def _breaks(one: SlotRetention) -> str:
    earliest = one.breaks[0] if one.breaks else None
    return "-" if earliest is None or not earliest.is_near else f"{_WHAT[earliest.what]} {earliest.when}"


def _last_hour(state: ServerState) -> tuple[Observation, ...]:
    """Return the samples of the last hour, including this one."""
    now = state.wal.at
    return tuple(one for one in _with_current(state) if (now - one.at).total_seconds() <= _RECENT_SECONDS)


def _recent(samples: Sequence[Observation], one: SlotRetention) -> list[float | None]:
    return list(
        assessment.retained_history(samples, one.slot.slot_name, points=_RECENT_POINTS, seconds=_RECENT_SECONDS)
    )


def _spark(samples: Sequence[Observation], one: SlotRetention) -> str:
    return sparkline([None if value is None else int(value) for value in _recent(samples, one)])


def _name(one: SlotRetention) -> object:
    return styled(one.slot.slot_name, SEVERITY_STYLES[one.severity])


_COLUMNS: Final = (
    Column("SLOT", _name, "slot.slot_name", kind="name"),
    Column("RETAINED", lambda one: size(one.retained_bytes), "retained_bytes", kind="number"),
    Column("UNDELIVERED", lambda one: size(one.undelivered_bytes), "undelivered_bytes", kind="number"),
    Column("BEHIND", lambda one: _seconds(one.lag_seconds), "lag_seconds", priority=3, kind="number"),
    Column("GROWS", lambda one: _per_second(one.growth), "growth.per_second", priority=2, kind="number"),
    Column("BREAKS", _breaks, kind="prose"),
)
_LISTING: Final = Listing(SlotRetention, _COLUMNS, "no replication slots")


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl slot``."""
    app.command("lag", cls=ListCommand)(lag)
