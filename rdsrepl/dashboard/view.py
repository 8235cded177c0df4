"""Render the state of the dashboard as the lines of a screen. Pure: no I/O, no clock."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from rdsrepl.dashboard import help_page
from rdsrepl.dashboard.slot_table import SEVERITY_MARKS, SEVERITY_STYLES, format_rate, format_seconds, table
from rdsrepl.dashboard.state import SlotFilter, Snapshot, Span, State, selection, visible
from rdsrepl.dashboard.styled_lines import (
    Piece,
    join,
    known,
    line,
    shortened,
    title_line,
    truncated,
    two_ended,
    with_right_text,
)
from rdsrepl.postgres.activity import Sender
from rdsrepl.postgres.wal import Wal
from rdsrepl.reports import text_chart
from rdsrepl.retention.assessment import SlotRetention, not_freed_by
from rdsrepl.retention.thresholds import Severity
from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import shown as _shown
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text
_REMOVED_SECONDS: Final = 60.0
_LATE_SECONDS: Final = 3.0
_FEWEST_ROWS: Final = 4
_MOST_DETAILS: Final = 8
# With a picture: the smallest table, the usual height of the picture on a small screen, and the height from which the
# table gets a third of the body.
_FEWEST_TABLE_ROWS: Final = 2
_PICTURE_ROWS: Final = 15
_TALL: Final = 30
_KEYS: Final = (
    ("q", "quit"),
    ("?", "help"),
    ("↑↓", "select"),
    ("v", "picture"),
    ("s", "sort"),
    ("/", "filter"),
    ("p", "pause"),
    ("a", "which slots"),
    ("r", "reverse"),
    ("+-", "interval"),
)
_PICTURE_KEYS: Final = (
    ("q", "quit"),
    ("?", "help"),
    ("↑↓", "select"),
    ("v", "details"),
    ("w", "all/day/6h/1h"),
    ("s", "sort"),
    ("/", "filter"),
    ("p", "pause"),
)
_NARROWEST, _LOWEST = 40, 8


def view(state: State, width: int, height: int, now: datetime) -> Group:
    """Return the screen: at most HEIGHT lines of at most WIDTH columns."""
    from rich.console import Group

    return Group(*lines(state, width, height, now))


def lines(state: State, width: int, height: int, now: datetime) -> list[Text]:
    """Return the lines of the screen; see ``view``."""
    if width < _NARROWEST or height < _LOWEST:
        return [line(width, ("the terminal is too small", "bold"))]
    head = _header(state, width, now)
    available = height - len(head) - 1
    if state.help:
        body = _help(state, width, available)
    elif state.snapshot is None:
        body = [line(width), line(width, (f"connecting to {_shown(state.label)} …", "dim"))][:available]
    else:
        body = _body(state, state.snapshot, width, available)
    body += [line(width)] * (available - len(body))
    return [*head, *body, _footer(state, width, available)][:height]


def _header(state: State, width: int, now: datetime) -> list[Text]:
    snapshot = state.snapshot
    clock = now.strftime("%H:%M:%S UTC")
    name: Piece = (" slot watch ", "reverse")
    if snapshot is None:
        return [two_ended(width, [name, ("  ", ""), (_shown(state.label), "bold")], clock), _status(state, width, now)]
    wal = snapshot.retention.wal
    role = "standby" if wal.in_recovery else "primary"
    flavour = {"aurora": "Aurora PostgreSQL", "rds": "RDS PostgreSQL"}.get(snapshot.server.flavour, "PostgreSQL")
    server = f"{flavour} {snapshot.server.version.split()[0]} "
    available = width - len(name[0]) - len(server) - len(role) - len(clock) - 5
    label = shortened(_shown(state.label), max(8, available))
    title = [name, ("  ", ""), (label, "bold"), ("  ", ""), (server, ""), (role, "bold")]
    return [two_ended(width, title, clock), _facts(snapshot, width), _status(state, width, now)]


def _facts(snapshot: Snapshot, width: int) -> Text:
    retention = snapshot.retention
    every = len(retention.holdings)
    counts = [
        (count, severity)
        for severity in (Severity.CRITICAL, Severity.WARNING)
        if (count := sum(one.severity is severity for one in retention.holdings))
    ]
    slots: list[Piece] = [(counted(every, "slot"), "")]
    for number, (count, severity) in enumerate(counts):
        slots += [(", " if number else ": ", ""), (f"{count} {severity}", SEVERITY_STYLES[severity])]
    rate = f" +{format_rate(retention.wal_rate)}/s" if retention.wal_rate is not None else ""
    parts: list[list[Piece]] = [slots, [(f"WAL {retention.wal.lsn}{rate}", "")]]
    if (storage := retention.storage) is not None:
        grows = f" +{format_size(storage.may_grow_bytes)} by autoscaling" if storage.may_grow_bytes else ""
        parts.append([(f"storage {format_size(storage.free_bytes)} free{grows} ({storage.source})", "")])
    if retention.wal.slot_keep_bytes is not None:
        parts.append([(f"max_slot_wal_keep_size {format_size(retention.wal.slot_keep_bytes)}", "")])
    if retention.blamed is not None and every > 1:
        parts.append([(f"{retention.blamed} retains most", "")])
    return join(width, parts)


def _status(state: State, width: int, now: datetime) -> Text:
    def ago(moment: datetime) -> str:
        return format_duration(float(int(max(0.0, (now - moment).total_seconds())))).replace(".0s", "s")

    parts: list[list[Piece]] = []
    failure = state.failure
    if failure is not None and state.snapshot_at is not None:
        wait = (failure.retry_at - now).total_seconds()
        soon = f"reconnecting in {wait:.0f}s" if wait >= 0.5 and state.poll_started_at is None else "reconnecting"
        stale = f"STALE for {ago(state.snapshot_at)}, {soon} (attempt {failure.attempts + 1})"
        return join(width, [[(stale, "bold red")], [(_shown(failure.message), "red")]], cut=True)
    if state.paused:
        parts.append([("PAUSED", "bold yellow")])
    late = state.poll_started_at is not None and (now - state.poll_started_at).total_seconds() > _LATE_SECONDS
    if late and state.poll_started_at is not None and not state.paused:
        parts.append([(f"no answer from the server for {ago(state.poll_started_at)}", "bold yellow")])
    if state.snapshot_at is not None:
        every = format_duration(state.interval_seconds).replace(".0s", "s")
        parts.append([(f"updated {ago(state.snapshot_at)} ago, every {every}", "")])
    parts.append([(f"by {state.sort}{', reversed' if state.reverse else ''}", "")])
    if state.slot_filter is not SlotFilter.all:
        parts.append([(f"only {state.slot_filter}", "bold")])
    if state.filter and not state.typing:
        parts.append([(f"filter {state.filter}", "bold")])
    if state.removed and state.removed_at is not None and (now - state.removed_at).total_seconds() < _REMOVED_SECONDS:
        names = ", ".join(state.removed[:3]) + (f" and {len(state.removed) - 3} more" if len(state.removed) > 3 else "")
        parts.insert(0, [(f"removed: {names}", "bold yellow")])
    if state.snapshot is not None and (rate := state.snapshot.retention.wal_rate) is not None and rate.window_seconds:
        window = format_duration(float(round(rate.window_seconds))).replace(".0s", "s")
        parts.append([(f"rates over {window}", "")])
    return join(width, parts)


def _footer(state: State, width: int, available: int) -> Text:
    if state.typing:
        return line(
            width, ("/", "bold"), (state.filter, "bold"), ("▏", "blink"), ("  Enter applies, Esc cancels", "dim")
        )
    if state.help:
        return _help_footer(state, width, available)
    keys = _PICTURE_KEYS if state.picture else _KEYS
    return join(width, [[(key, "bold"), (f" {what}", "dim")] for key, what in keys], between="  ")


def _help(state: State, width: int, available: int) -> list[Text]:
    top = min(state.help_top, help_page.last_top(width, available))
    rows = help_page.rows(width)[top : top + available]
    return [line(width, (key, "bold"), (words, "")) for key, words in rows]


def _help_footer(state: State, width: int, available: int) -> Text:
    keys: list[list[Piece]] = [[("q", "bold"), (" or another key closes help", "dim")]]
    last = help_page.last_top(width, available)
    if not last:
        return join(width, keys)
    keys.insert(0, [("↑↓ PgUp PgDn", "bold"), (" scroll", "dim")])
    top = min(state.help_top, last)
    shown = f"{top + 1}-{top + available} of {last + available}"
    return with_right_text(join(width - len(shown) - 1, keys, between="  "), shown, width)


def _body(state: State, snapshot: Snapshot, width: int, available: int) -> list[Text]:
    """Divide the height: the slots first, then the selected slot, then the walsenders."""
    shown = visible(state)
    index = selection(state, shown)
    if state.picture and shown:
        return _with_picture(state, snapshot, shown, index, width, available)
    table_needs = 1 + max(1, len(shown))
    details = _details(shown[index], snapshot.retention.wal, width) if shown else []
    most_details = min(len(details), _MOST_DETAILS if available >= 24 else 5)
    senders = _senders(snapshot, shown[index] if shown else None, width)
    table_least = min(table_needs, 1 + _FEWEST_ROWS)
    left = available - table_least
    details_get = min(most_details + 1, left) if details and left >= 3 else 0
    left -= details_get
    senders_get = min(len(senders), 4, left) if left >= 3 else 0
    left -= senders_get
    table_gets = table_least + min(left, table_needs - table_least)
    left = available - details_get - senders_get - table_gets
    if senders_get:
        more = min(left, len(senders) - senders_get)
        senders_get, left = senders_get + more, left - more
    if details_get:
        details_get += min(left, len(details) + 1 - details_get)
    rows = table(state, snapshot, shown, index, width, table_gets)
    if details_get:
        rows.append(title_line(width, shown[index].slot.slot_name))
        rows += truncated(details, details_get - 1, width)
    if senders_get:
        rows += truncated(senders, senders_get, width)
    return rows[:available]


def _with_picture(
    state: State, snapshot: Snapshot, shown: Sequence[SlotRetention], index: int, width: int, available: int
) -> list[Text]:
    """Return some rows of the table, and the picture of the selected slot below them."""
    if available < text_chart.MIN_HEIGHT + _FEWEST_TABLE_ROWS:
        rows = table(state, snapshot, shown, index, width, min(1 + len(shown), available - 1))
        return [*rows, line(width, ("the terminal is too low for a picture", "bold"))]
    table_gets = available // 3 if available >= _TALL else max(_FEWEST_TABLE_ROWS, available - _PICTURE_ROWS)
    rows = table(state, snapshot, shown, index, width, min(1 + len(shown), table_gets))
    height = available - len(rows)
    one = shown[index]
    series = snapshot.series(one, state.span.seconds)
    title = text_chart.failure(one) + ("" if state.span is Span.all else f" ({state.span})")
    glyphs = text_chart.ASCII if state.ascii_only else text_chart.UNICODE
    return [*rows, *text_chart.chart(series, title, width=width, height=height, glyphs=glyphs)]


def _details(one: SlotRetention, wal: Wal, width: int) -> list[Text]:
    slot = one.slot
    rows: list[Text] = []

    def add(text: str, style: str = "") -> None:
        rows.extend(
            line(width, (part, style))
            for part in textwrap.wrap(_shown(text), width, subsequent_indent="  ", break_long_words=True)
        )

    for reason in one.reasons:
        add(f"{SEVERITY_MARKS[reason.severity]} {reason.text}", SEVERITY_STYLES[reason.severity])
    if not one.reasons:
        add("no problems", "green")
    measures = {reason.measure for reason in one.reasons}
    kind = f"{slot.plugin}, database {slot.database}" if slot.plugin else "physical"
    marks = [word for word, is_so in (("two-phase", slot.two_phase), ("failover", slot.failover)) if is_so]
    marks += ["synchronized from the primary"] if slot.synced else []
    if slot.active:
        state = slot.walsender.state if slot.walsender is not None else None
        held = f"used by {slot.holder}" + (f", {state}" if state else "")
    elif one.inactive_seconds is not None and one.inactive_seconds >= 1 and "inactive" not in measures:
        held = f"inactive for {format_seconds(one.inactive_seconds)}"
    else:
        held = "no consumer"
    add(f"{', '.join((kind, *marks))}; {held}")
    for forecast in one.breaks[1 if "breaks" in measures else 0 :]:
        if forecast.is_near:
            add(forecast.text)
    if one.retained_bytes:
        rest = not_freed_by(one.shared_with, one.freed_bytes, one.retained_bytes, wal)
        add(f"dropping it frees {format_size(one.freed_bytes)} of {format_size(one.retained_bytes)}{rest}")
    behind = f"{format_seconds(one.lag_seconds)} behind; " if one.lag_seconds else ""
    positions = [
        f"{name} {value}"
        for name, value in (("restart", slot.restart_lsn), ("confirmed", slot.confirmed_flush_lsn))
        if value is not None
    ]
    ages = [f"xmin {counted(one.xid_age, 'transaction', grouped=True)} old"] if one.xid_age is not None else []
    status = [f"wal_status {slot.wal_status}"] if slot.wal_status else []
    safe = [f"safe_wal_size {format_size(slot.safe_wal_size)}"] if slot.safe_wal_size is not None else []
    add(behind + ", ".join((*positions, *status, *safe, *ages)))
    return rows


def _senders(snapshot: Snapshot, selected: SlotRetention | None, width: int) -> list[Text]:
    title = counted(len(snapshot.senders), "walsender")
    if any(one.state is None for one in snapshot.senders) and not snapshot.server.sees_sessions:
        title += " (? requires pg_read_all_stats)"
    if not snapshot.senders:
        return [title_line(width, "no walsenders")]
    rows = [
        (
            str(one.pid),
            known(one.user),
            known(one.application),
            known(one.state),
            "?" if one.unsent_bytes is None else format_size(one.unsent_bytes),
            "?" if one.unflushed_bytes is None else format_size(one.unflushed_bytes),
            one.slot or "-",
        )
        for one in snapshot.senders
    ]
    headings = ("PID", "USER", "APPLICATION", "STATE", "UNSENT", "UNFLUSHED", "SLOT")
    wide = [max(len(heading), *(len(row[place]) for row in rows)) for place, heading in enumerate(headings)]
    # The columns with names share the remaining width: the longest is shortened first.
    names = (1, 2, 6)
    available = width - 2 - sum(wide[place] + 1 for place in range(7) if place not in names) - len(names) + 1
    while sum(wide[place] for place in names) > available:
        longest = max(names, key=lambda place: wide[place])
        if wide[longest] <= 4:
            break
        wide[longest] -= 1

    def row(cells: Sequence[str], style: str) -> Text:
        parts = [
            f"{shortened(cell, wide[place]):>{wide[place]}}"
            if place in (4, 5)
            else f"{shortened(cell, wide[place]):<{wide[place]}}"
            for place, cell in enumerate(cells)
        ]
        return line(width, ("  " + " ".join(parts), style))

    def style(one: Sender) -> str:
        return "bold" if selected is not None and one.slot == selected.slot.slot_name else ""

    return [
        title_line(width, title),
        row(headings, "bold"),
        *(row(cells, style(one)) for cells, one in zip(rows, snapshot.senders, strict=True)),
    ]
