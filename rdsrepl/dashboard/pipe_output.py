"""Format a snapshot for a pipe or a file: one line for each slot, or one JSON object. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rdsrepl.dashboard.state import Snapshot
from rdsrepl.render import document
from rdsrepl.retention.assessment import SlotRetention
from rdsrepl.retention.forecast import Rate
from rdsrepl.text.escapes import shown
from rdsrepl.units import format_duration, format_size

_WIDTHS: Final = (20, 8, 8, 9, 11, 9, 10, 10, 16, 10, 4)
_HEADINGS: Final = (
    "TIME",
    "SEVERITY",
    "ACTIVE",
    "RETAINED",
    "UNDELIVERED",
    "GROWTH/s",
    "DELIVERY/s",
    "BREAKS_IN",
    "WHAT_BREAKS",
    "WAL_STATUS",
    # The last column, because names have no fixed length.
    "SLOT",
)


def heading() -> str:
    """Return the heading above the first line."""
    return _row(_HEADINGS)


def rows(snapshot: Snapshot, shown: Sequence[SlotRetention]) -> list[str]:
    """Return one line for each slot; an unknown value is a dash, and no value contains a space."""
    at = snapshot.retention.wal.at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return [_row((at, *_cells(one))) for one in shown]


def as_document(snapshot: Snapshot, shown: Sequence[SlotRetention]) -> dict[str, Any]:
    """Return a snapshot as plain data; ``docs/watch.md`` documents the keys."""
    retention = snapshot.retention
    return {
        "at": document(retention.wal.at),
        "server": {
            "version": snapshot.server.version.split()[0],
            "flavour": snapshot.server.flavour,
            "role": "standby" if retention.wal.in_recovery else "primary",
        },
        "wal": document(retention.wal),
        "wal_rate": document(retention.wal_rate),
        "storage": document(retention.storage),
        "severity": document(retention.severity),
        "blamed": retention.blamed,
        "slots": document(shown),
        "walsenders": document(snapshot.senders),
    }


def _cells(one: SlotRetention) -> tuple[str, ...]:
    earliest = one.breaks[0] if one.breaks and one.breaks[0].is_near else None
    return (
        str(one.severity),
        str(one.slot.active_pid) if one.slot.active else "no",
        _size(one.retained_bytes),
        _size(one.undelivered_bytes),
        _rate(one.growth),
        _rate(one.delivery),
        "-" if earliest is None else format_duration(earliest.seconds),
        "-" if earliest is None else earliest.what,
        one.slot.wal_status or "-",
        one.slot.slot_name,
    )


def _row(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:<{width}}" for cell, width in zip(map(shown, cells), _WIDTHS, strict=True)).rstrip()


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_size(size_bytes).replace(" ", "")


def _rate(rate: Rate | None) -> str:
    return "-" if rate is None else _size(round(rate.per_second))
