"""The table of slots on the screen: its columns, and which of them fit. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.dashboard.state import SlotFilter, Snapshot, Sort, State, trend
from rdsrepl.render import size
from rdsrepl.retention.assessment import SlotRetention
from rdsrepl.retention.forecast import Rate
from rdsrepl.retention.thresholds import Severity
from rdsrepl.text.escapes import shown as _shown
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.text import Text
from rdsrepl.dashboard.styled_lines import Piece, line, shortened, with_right_text

_BARS: Final = "▁▂▃▄▅▆▇█"
SEVERITY_STYLES: Final = {Severity.OK: "", Severity.WARNING: "yellow", Severity.CRITICAL: "bold red"}
# Not every terminal or user distinguishes colours: the mark has the same meaning.
SEVERITY_MARKS: Final = {Severity.OK: " ", Severity.WARNING: "!", Severity.CRITICAL: "‼"}
_BREAK_SHORT: Final = {"slot_invalidated": "slot", "storage_full": "disk", "xid_wraparound": "xids"}


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
    _Column("RETAINED", 8, 1, lambda one: size(one.retained_bytes), right=True),
    _Column("UNDELIVERED", 11, 4, lambda one: size(one.undelivered_bytes), right=True),
    _Column("BEHIND", 8, 9, lambda one: format_seconds(one.lag_seconds), right=True),
    _Column("GROWTH/s", 8, 5, lambda one: format_rate(one.growth), right=True),
    _Column("DELIVERY/s", 10, 7, lambda one: format_rate(one.delivery), right=True),
    _Column("BREAKS IN", 11, 2, lambda one: _breaks(one)),
    _Column("WAL", 10, 6, lambda one: one.slot.wal_status or "-"),
)
_USUAL_NAME: Final = 32
_NARROWEST_TREND, _USUAL_TREND, _WIDEST_TREND = 8, 12, 30


def table(
    state: State, snapshot: Snapshot, shown: Sequence[SlotRetention], index: int, width: int, available: int
) -> list[Text]:
    """Return the table with a heading, scrolled to the selected slot.

    Args:
        state: the sort order and the filter.
        snapshot: the slots and their history.
        shown: the slots to show, in their order.
        index: the selected slot.
        width: the columns of the terminal.
        available: the number of lines.
    """
    if not snapshot.retention.holdings:
        return [line(width), line(width, ("no replication slots", "dim"))][:available]
    if not shown:
        reason = "no inactive slots" if state.slot_filter is SlotFilter.inactive else "no slots with problems"
        reason = "no slot matches the filter" if state.filter else reason
        return [line(width), line(width, (reason, "dim"))][:available]
    longest = max(len(one.slot.slot_name) for one in snapshot.retention.holdings)
    name_wide, columns, trend_wide = _fitting(width, longest)
    sorted_by = {Sort.retained: "RETAINED", Sort.undelivered: "UNDELIVERED", Sort.growth: "GROWTH/s", Sort.name: "SLOT"}
    heading: list[Piece] = [("  ", "")]
    for text, wide, right in (
        ("SLOT", name_wide, False),
        *((column.heading, column.width, column.right) for column in columns),
        *((("TREND", trend_wide, False),) if trend_wide else ()),
    ):
        style = "bold underline" if sorted_by.get(state.sort) == text else "bold"
        gap = " " * (wide - len(text))
        heading += [(gap, ""), (text, style), (" ", "")] if right else [(text, style), (gap + " ", "")]
    table_lines = [line(width, *heading[:-1], (heading[-1][0].rstrip(), ""))]
    rows = max(1, available - 1)
    first = min(max(0, index - rows // 2), max(0, len(shown) - rows))
    more_below, more_above = len(shown) - first - rows, first
    for number in range(first, min(len(shown), first + rows)):
        one = shown[number]
        cells = [
            f"{SEVERITY_MARKS[one.severity]} {shortened(one.slot.slot_name, name_wide):<{name_wide}}",
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
        text = line(width, (" ".join(cells), SEVERITY_STYLES[one.severity]))
        if number == index:
            text.stylize("reverse")
        table_lines.append(text)
    if (more_above or more_below > 0) and table_lines:
        counts = f"{first + 1}-{min(len(shown), first + rows)} of {len(shown)}"
        # Shown in the heading, so that it takes no line of its own.
        table_lines[0] = with_right_text(table_lines[0], counts, width)
    return table_lines


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
    text = shortened(_shown(column.cell(one)), column.width)
    return f"{text:>{column.width}}" if column.right else f"{text:<{column.width}}"


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
    return f"{format_seconds(earliest.seconds) if earliest.seconds else 'now'} {_BREAK_SHORT[earliest.what]}"


def format_rate(rate: Rate | None) -> str:
    """Return a rate in bytes for a column; an unknown rate is a dash."""
    return "-" if rate is None else format_size(round(rate.per_second))


def format_seconds(seconds: float | None) -> str:
    """Return a duration without fractions from ten seconds; an unknown one is a dash."""
    if seconds is None:
        return "-"
    return format_duration(float(round(seconds))).replace(".0s", "s") if seconds >= 10 else format_duration(seconds)
