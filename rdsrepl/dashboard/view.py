"""Render the state of the dashboard as the lines of a screen. Pure: no I/O, no clock."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from rdsrepl.dashboard.state import SlotFilter, Snapshot, Sort, State, selection, trend, visible
from rdsrepl.postgres.activity import Sender
from rdsrepl.postgres.wal import Wal
from rdsrepl.retention.assessment import SlotRetention
from rdsrepl.retention.forecast import Rate
from rdsrepl.retention.thresholds import Severity
from rdsrepl.text.escapes import shown as _shown
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text
_REMOVED_SECONDS: Final = 60.0
_LATE_SECONDS: Final = 3.0
_FEWEST_ROWS: Final = 4
_MOST_DETAILS: Final = 8
_BARS: Final = "▁▂▃▄▅▆▇█"
SEVERITY_STYLES: Final = {Severity.OK: "", Severity.WARNING: "yellow", Severity.CRITICAL: "bold red"}
# Not every terminal or user distinguishes colours: the mark has the same meaning.
_MARKS: Final = {Severity.OK: " ", Severity.WARNING: "!", Severity.CRITICAL: "‼"}
_BREAK_SHORT: Final = {"slot_invalidated": "slot", "storage_full": "disk", "xid_wraparound": "xids"}
_KEYS: Final = (
    ("q", "quit"),
    ("↑↓", "select"),
    ("s", "sort"),
    ("/", "filter"),
    ("a", "all/idle/problems"),
    ("p", "pause"),
    ("?", "help"),
    ("r", "reverse"),
    ("+-", "interval"),
)
_HELP: Final = (
    ("↑ ↓  k j", "select a slot; PgUp PgDn by ten, Home and g stay at the top, End and G go to the bottom"),
    ("s", "sort by severity, retained, undelivered, growth, name"),
    ("r", "reverse the order"),
    ("/", "filter by text in name, plugin, database, consumer: Enter applies it, Esc cancels it"),
    ("Esc", "remove the filter"),
    ("a", "all slots, only inactive slots, only slots with problems"),
    ("p  Space", "pause, resume"),
    ("+ -", "refresh less often, more often"),
    ("Ctrl-L", "redraw the screen"),
    ("q  Ctrl-C", "quit"),
    ("", ""),
    ("RETAINED", "WAL that the server keeps for the slot (from restart_lsn)"),
    ("UNDELIVERED", "WAL that the consumer has not confirmed (from confirmed_flush_lsn)"),
    ("GROWTH/s", "growth of RETAINED in a second; negative while a consumer catches up"),
    ("DELIVERY/s", "WAL that the consumer confirms in a second"),
    ("BREAKS IN", "time until the slot is invalidated (slot), the disk is full (disk), transaction IDs run out (xids)"),
    ("ACTIVE", "the PID of the consumer, or how long there is none"),
    ("! ‼", "warning, critical: the reasons are below the table"),
)


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the table of slots.

    Attributes:
        rank: a narrow terminal omits the columns with the highest rank first.
    """

    heading: str
    width: int
    rank: int
    cell: Callable[[SlotRetention], str]
    right: bool = False


_COLUMNS: Final = (
    _Column("PLUGIN", 13, 8, lambda one: one.slot.plugin or "(physical)"),
    _Column("DATABASE", 14, 10, lambda one: one.slot.database or "-"),
    _Column("ACTIVE", 9, 3, lambda one: _active(one)),
    _Column("RETAINED", 8, 1, lambda one: _size(one.retained_bytes), right=True),
    _Column("UNDELIVERED", 11, 4, lambda one: _size(one.undelivered_bytes), right=True),
    _Column("BEHIND", 8, 9, lambda one: _duration(one.lag_seconds), right=True),
    _Column("GROWTH/s", 8, 5, lambda one: _rate(one.growth), right=True),
    _Column("DELIVERY/s", 10, 7, lambda one: _rate(one.delivery), right=True),
    _Column("BREAKS IN", 11, 2, lambda one: _breaks(one)),
    _Column("WAL", 10, 6, lambda one: one.slot.wal_status or "-"),
)
_NARROWEST, _LOWEST = 40, 8
_USUAL_NAME: Final = 32
_NARROWEST_TREND, _USUAL_TREND, _WIDEST_TREND = 8, 12, 30
_Piece = tuple[str, str]


def view(state: State, width: int, height: int, now: datetime) -> Group:
    """Return the screen: at most HEIGHT lines of at most WIDTH columns."""
    from rich.console import Group

    return Group(*lines(state, width, height, now))


def lines(state: State, width: int, height: int, now: datetime) -> list[Text]:
    """Return the lines of the screen; see ``view``."""
    if width < _NARROWEST or height < _LOWEST:
        return [_line(width, ("the terminal is too small", "bold"))]
    head = _header(state, width, now)
    foot = [_footer(state, width)]
    room = height - len(head) - len(foot)
    if state.help:
        body = _help(width)[:room]
    elif state.snapshot is None:
        body = [_line(width), _line(width, (f"connecting to {_shown(state.label)} …", "dim"))][:room]
    else:
        body = _body(state, state.snapshot, width, room)
    body += [_line(width)] * (room - len(body))
    return [*head, *body, *foot][:height]


def _header(state: State, width: int, now: datetime) -> list[Text]:
    snapshot = state.snapshot
    clock = now.strftime("%H:%M:%S UTC")
    name: _Piece = (" slot watch ", "reverse")
    if snapshot is None:
        return [_two_ended(width, [name, ("  ", ""), (_shown(state.label), "bold")], clock), _status(state, width, now)]
    wal = snapshot.retention.wal
    role = "standby" if wal.in_recovery else "primary"
    flavour = {"aurora": "Aurora PostgreSQL", "rds": "RDS PostgreSQL"}.get(snapshot.server.flavour, "PostgreSQL")
    server = f"{flavour} {snapshot.server.version.split()[0]} "
    room = width - len(name[0]) - len(server) - len(role) - len(clock) - 5
    label = _cut(_shown(state.label), max(8, room))
    title = [name, ("  ", ""), (label, "bold"), ("  ", ""), (server, ""), (role, "bold")]
    return [_two_ended(width, title, clock), _facts(snapshot, width), _status(state, width, now)]


def _facts(snapshot: Snapshot, width: int) -> Text:
    found = snapshot.retention
    every = len(found.holdings)
    counts = [
        (count, severity)
        for severity in (Severity.CRITICAL, Severity.WARNING)
        if (count := sum(one.severity is severity for one in found.holdings))
    ]
    slots: list[_Piece] = [(f"{every} slot{'' if every == 1 else 's'}", "")]
    for number, (count, severity) in enumerate(counts):
        slots += [(", " if number else ": ", ""), (f"{count} {severity}", SEVERITY_STYLES[severity])]
    rate = f" +{_rate(found.wal_rate)}/s" if found.wal_rate is not None else ""
    parts: list[list[_Piece]] = [slots, [(f"WAL {found.wal.lsn}{rate}", "")]]
    if (storage := found.storage) is not None:
        grows = f" +{format_size(storage.may_grow_bytes)} by autoscaling" if storage.may_grow_bytes else ""
        parts.append([(f"storage {format_size(storage.free_bytes)} free{grows} ({storage.source})", "")])
    if found.wal.slot_keep_bytes is not None:
        parts.append([(f"max_slot_wal_keep_size {format_size(found.wal.slot_keep_bytes)}", "")])
    if found.blamed is not None and every > 1:
        parts.append([(f"{found.blamed} retains most", "")])
    return _join(width, parts)


def _status(state: State, width: int, now: datetime) -> Text:
    def ago(moment: datetime) -> str:
        return format_duration(float(int(max(0.0, (now - moment).total_seconds())))).replace(".0s", "s")

    parts: list[list[_Piece]] = []
    failure = state.failure
    if failure is not None and state.snapshot_at is not None:
        wait = (failure.retry_at - now).total_seconds()
        soon = f"reconnecting in {wait:.0f}s" if wait >= 0.5 and state.poll_started_at is None else "reconnecting"
        stale = f"STALE for {ago(state.snapshot_at)}, {soon} (attempt {failure.attempts + 1})"
        return _join(width, [[(stale, "bold red")], [(_shown(failure.message), "red")]], cut=True)
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
    return _join(width, parts)


def _footer(state: State, width: int) -> Text:
    if state.typing:
        return _line(
            width, ("/", "bold"), (state.filter, "bold"), ("▏", "blink"), ("  Enter applies, Esc cancels", "dim")
        )
    if state.help:
        return _line(width, ("any key", "bold"), (" closes help, ", "dim"), ("q", "bold"), (" quits", "dim"))
    return _join(width, [[(key, "bold"), (f" {what}", "dim")] for key, what in _KEYS], between="  ")


def _help(width: int) -> list[Text]:
    found = [_line(width)]
    wide = 13
    for key, words in _HELP:
        wrapped = textwrap.wrap(words, max(10, width - wide)) or [""]
        found.append(_line(width, (f"{key:<{wide}}", "bold"), (wrapped[0], "")))
        found += [_line(width, (" " * wide + more, "")) for more in wrapped[1:]]
    return found


def _body(state: State, snapshot: Snapshot, width: int, room: int) -> list[Text]:
    """Divide the height: the slots first, then the selected slot, then the walsenders."""
    shown = visible(state)
    index = selection(state, shown)
    table_needs = 1 + max(1, len(shown))
    details = _details(shown[index], snapshot.retention.wal, width) if shown else []
    most_details = min(len(details), _MOST_DETAILS if room >= 24 else 5)
    senders = _senders(snapshot, shown[index] if shown else None, width)
    table_least = min(table_needs, 1 + _FEWEST_ROWS)
    left = room - table_least
    details_get = min(most_details + 1, left) if details and left >= 3 else 0
    left -= details_get
    senders_get = min(len(senders), 4, left) if left >= 3 else 0
    left -= senders_get
    table_gets = table_least + min(left, table_needs - table_least)
    left = room - details_get - senders_get - table_gets
    if senders_get:
        more = min(left, len(senders) - senders_get)
        senders_get, left = senders_get + more, left - more
    if details_get:
        details_get += min(left, len(details) + 1 - details_get)
    found = _table(state, snapshot, shown, index, width, table_gets)
    if details_get:
        found.append(_title(width, shown[index].slot.slot_name))
        found += _truncated(details, details_get - 1, width)
    if senders_get:
        found += _truncated(senders, senders_get, width)
    return found[:room]


def _table(
    state: State, snapshot: Snapshot, shown: Sequence[SlotRetention], index: int, width: int, room: int
) -> list[Text]:
    if not snapshot.retention.holdings:
        return [_line(width), _line(width, ("no replication slots", "dim"))][:room]
    if not shown:
        what = "no inactive slots" if state.slot_filter is SlotFilter.inactive else "no slots with problems"
        return [_line(width), _line(width, (what if not state.filter else "no slot matches the filter", "dim"))][:room]
    longest = max(len(one.slot.slot_name) for one in snapshot.retention.holdings)
    name_wide, columns, trend_wide = _fitting(width, longest)
    sorted_by = {Sort.retained: "RETAINED", Sort.undelivered: "UNDELIVERED", Sort.growth: "GROWTH/s", Sort.name: "SLOT"}
    heading: list[_Piece] = [("  ", "")]
    for text, wide, right in (
        ("SLOT", name_wide, False),
        *((column.heading, column.width, column.right) for column in columns),
        *((("TREND", trend_wide, False),) if trend_wide else ()),
    ):
        style = "bold underline" if sorted_by.get(state.sort) == text else "bold"
        gap = " " * (wide - len(text))
        heading += [(gap, ""), (text, style), (" ", "")] if right else [(text, style), (gap + " ", "")]
    found = [_line(width, *heading[:-1], (heading[-1][0].rstrip(), ""))]
    rows = max(1, room - 1)
    first = min(max(0, index - rows // 2), max(0, len(shown) - rows))
    more_below, more_above = len(shown) - first - rows, first
    for number in range(first, min(len(shown), first + rows)):
        one = shown[number]
        cells = [
            f"{_MARKS[one.severity]} {_cut(one.slot.slot_name, name_wide):<{name_wide}}",
            *(_aligned(column, one) for column in columns),
        ]
        if trend_wide:
            values = trend(
                snapshot.samples,
                one.slot.slot_name,
                points=trend_wide,
                interval_seconds=max(1.0, state.interval_seconds),
            )
            cells.append(f"{sparkline(values):<{trend_wide}}")
        text = _line(width, (" ".join(cells), SEVERITY_STYLES[one.severity]))
        if number == index:
            text.stylize("reverse")
        found.append(text)
    if (more_above or more_below > 0) and found:
        counts = f"{first + 1}-{min(len(shown), first + rows)} of {len(shown)}"
        # In the heading, so that it costs no row.
        found[0] = _with_right_text(found[0], counts, width)
    return found


def _fitting(width: int, longest: int) -> tuple[int, list[_Column], int]:
    """Return the width of the names, the columns that fit, and the width of the sparkline."""
    names = min(longest, max(16, min(width // 3, _USUAL_NAME)))
    kept: list[_Column] = []
    left = width - 2 - names
    for column in sorted(_COLUMNS, key=lambda one: one.rank):
        if left < column.width + 1:
            # A narrower column of a higher rank would appear and disappear with the length of the names.
            break
        # The sparkline is more important than the database and the time behind.
        if column.rank > 8 and left < column.width + 2 + _NARROWEST_TREND:
            break
        kept.append(column)
        left -= column.width + 1
    trends = min(_USUAL_TREND, left - 1) if left > _NARROWEST_TREND else 0
    left -= trends + 1 if trends else 0
    more = min(left, longest - names)
    trends += min(_WIDEST_TREND - trends, left - more) if trends else 0
    return max(4, names + more), [column for column in _COLUMNS if column in kept], trends


def _aligned(column: _Column, one: SlotRetention) -> str:
    text = _cut(_shown(column.cell(one)), column.width)
    return f"{text:>{column.width}}" if column.right else f"{text:<{column.width}}"


def _details(one: SlotRetention, wal: Wal, width: int) -> list[Text]:
    slot = one.slot
    found: list[Text] = []

    def add(text: str, style: str = "") -> None:
        found.extend(
            _line(width, (part, style))
            for part in textwrap.wrap(_shown(text), width, subsequent_indent="  ", break_long_words=True)
        )

    for reason in one.reasons:
        add(f"{_MARKS[reason.severity]} {reason.text}", SEVERITY_STYLES[reason.severity])
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
        held = f"inactive for {_duration(one.inactive_seconds)}"
    else:
        held = "no consumer"
    add(f"{', '.join((kind, *marks))}; {held}")
    for forecast in one.breaks[1 if "breaks" in measures else 0 :]:
        if forecast.is_near:
            add(forecast.text)
    if one.retained_bytes:
        rest = f"; {one.shared_with} retains the rest" if one.shared_with is not None else ""
        if not rest and one.freed_bytes < one.retained_bytes and wal.keep_bytes:
            rest = f"; wal_keep_size ({format_size(wal.keep_bytes)}) retains the rest"
        add(f"dropping it frees {format_size(one.freed_bytes)} of {format_size(one.retained_bytes)}{rest}")
    behind = f"{_duration(one.lag_seconds)} behind; " if one.lag_seconds else ""
    positions = [
        f"{name} {value}"
        for name, value in (("restart", slot.restart_lsn), ("confirmed", slot.confirmed_flush_lsn))
        if value is not None
    ]
    ages = [f"xmin {one.xid_age:,} transactions old"] if one.xid_age is not None else []
    status = [f"wal_status {slot.wal_status}"] if slot.wal_status else []
    safe = [f"safe_wal_size {format_size(slot.safe_wal_size)}"] if slot.safe_wal_size is not None else []
    add(behind + ", ".join((*positions, *status, *safe, *ages)))
    return found


def _senders(snapshot: Snapshot, selected: SlotRetention | None, width: int) -> list[Text]:
    title = f"{len(snapshot.senders)} walsender{'' if len(snapshot.senders) == 1 else 's'}"
    if any(one.state is None for one in snapshot.senders) and not snapshot.server.sees_sessions:
        title += " (? requires pg_read_all_stats)"
    if not snapshot.senders:
        return [_title(width, "no walsenders")]
    rows = [
        (
            str(one.pid),
            _known(one.user),
            _known(one.application),
            _known(one.state),
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
    room = width - 2 - sum(wide[place] + 1 for place in range(7) if place not in names) - len(names) + 1
    while sum(wide[place] for place in names) > room:
        longest = max(names, key=lambda place: wide[place])
        if wide[longest] <= 4:
            break
        wide[longest] -= 1

    def row(cells: Sequence[str], style: str) -> Text:
        parts = [
            f"{_cut(cell, wide[place]):>{wide[place]}}"
            if place in (4, 5)
            else f"{_cut(cell, wide[place]):<{wide[place]}}"
            for place, cell in enumerate(cells)
        ]
        return _line(width, ("  " + " ".join(parts), style))

    def style(one: Sender) -> str:
        return "bold" if selected is not None and one.slot == selected.slot.slot_name else ""

    return [
        _title(width, title),
        row(headings, "bold"),
        *(row(cells, style(one)) for cells, one in zip(rows, snapshot.senders, strict=True)),
    ]


def sparkline(values: Sequence[int | None]) -> str:
    """Return the values as bars from the lowest to the highest; an unknown value is a space."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    span = max(high - low, high // 20, 1)
    return "".join(" " if value is None else _BARS[(value - low) * (len(_BARS) - 1) // span] for value in values)


def _active(one: SlotRetention) -> str:
    if one.slot.active:
        return str(one.slot.active_pid)
    if one.inactive_seconds is None or one.inactive_seconds < 1:
        return "no"
    return f"no {format_duration(float(int(one.inactive_seconds))).replace('.0s', 's')}"


def _breaks(one: SlotRetention) -> str:
    earliest = one.breaks[0] if one.breaks else None
    if earliest is None or not earliest.is_near:
        return "-"
    if one.slot.is_lost:
        return "lost"
    return f"{_duration(earliest.seconds) if earliest.seconds else 'now'} {_BREAK_SHORT[earliest.what]}"


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_size(size_bytes)


def _rate(rate: Rate | None) -> str:
    return "-" if rate is None else format_size(round(rate.per_second))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return format_duration(float(round(seconds))).replace(".0s", "s") if seconds >= 10 else format_duration(seconds)


def _known(text: str | None) -> str:
    return "?" if text is None else _shown(text) or "-"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def _line(width: int, *pieces: _Piece) -> Text:
    from rich.text import Text

    text = Text.assemble(*((_shown(words), style) for words, style in pieces), no_wrap=True, overflow="crop")
    text.truncate(width, overflow="ellipsis")
    return text


def _title(width: int, text: str) -> Text:
    text = _cut(text, width - 6)
    return _line(width, ("── ", "dim"), (text, "bold"), (" " + "─" * (width - len(text) - 4), "dim"))


def _two_ended(width: int, left: list[_Piece], right: str) -> Text:
    return _with_right_text(_line(width, *left), right, width)


def _with_right_text(left: Text, right: str, width: int) -> Text:
    """Put a text at the right edge; it overwrites the end of the line."""
    left = left.copy()
    left.truncate(max(0, width - len(right) - 1), overflow="ellipsis", pad=True)
    left.append(" ")
    left.append(right, style="bold")
    return left


def _join(width: int, parts: Iterable[Sequence[_Piece]], *, between: str = " · ", cut: bool = False) -> Text:
    """Join the parts that fit; with CUT the first part that is too long is shortened, not omitted."""
    pieces: list[_Piece] = []
    used = 0
    for part in parts:
        wide = sum(len(text) for text, _ in part) + (len(between) if pieces else 0)
        if used + wide > width and pieces and not cut:
            continue
        pieces += [(between, "dim")] if pieces else []
        pieces += part
        used += wide
    return _line(width, *pieces)


def _truncated(rows: Sequence[Text], room: int, width: int) -> list[Text]:
    """Return the rows that fit; the last one tells how many are omitted."""
    if len(rows) <= room or room < 1:
        return list(rows[:room])
    return [*rows[: room - 1], _line(width, (f"  … {len(rows) - room + 1} more lines", "dim"))]
