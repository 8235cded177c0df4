"""A look as lines, for a pipe or a file: as many words in every line, or one JSON object a look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rdsrepl.dashboard.state import Snapshot
from rdsrepl.dashboard.view import FAR_SECONDS
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
    # The last one, because names are as long as they like.
    "SLOT",
)


def heading() -> str:
    """Return the line above the first look."""
    return _row(_HEADINGS)


def rows(snapshot: Snapshot, shown: Sequence[SlotRetention]) -> list[str]:
    """Return a line a slot; unknown is a dash, and no value has a space in it."""
    at = snapshot.retention.wal.at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return [_row((at, *_cells(one))) for one in shown]


def as_document(snapshot: Snapshot, shown: Sequence[SlotRetention]) -> dict[str, Any]:
    """Return a look as plain data; its keys are documented in ``docs/watch.md``."""
    found = snapshot.retention
    return {
        "at": document(found.wal.at),
        "server": {
            "version": snapshot.server.version.split()[0],
            "flavour": snapshot.server.flavour,
            "role": "standby" if found.wal.in_recovery else "primary",
        },
        "wal": document(found.wal),
        "wal_rate": document(found.wal_rate),
        "storage": document(found.storage),
        "severity": document(found.severity),
        "blamed": found.blamed,
        "slots": document(shown),
        "walsenders": document(snapshot.senders),
    }


def _cells(one: SlotRetention) -> tuple[str, ...]:
    soonest = one.breaks[0] if one.breaks and one.breaks[0].seconds <= FAR_SECONDS else None
    return (
        str(one.severity),
        str(one.slot.active_pid) if one.slot.active else "no",
        _size(one.retained_bytes),
        _size(one.undelivered_bytes),
        _rate(one.growth),
        _rate(one.delivery),
        "-" if soonest is None else format_duration(soonest.seconds),
        "-" if soonest is None else soonest.what,
        one.slot.wal_status or "-",
        one.slot.slot_name,
    )


def _row(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:<{width}}" for cell, width in zip(map(shown, cells), _WIDTHS, strict=True)).rstrip()


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_size(size_bytes).replace(" ", "")


def _rate(rate: Rate | None) -> str:
    return "-" if rate is None else _size(round(rate.per_second))
