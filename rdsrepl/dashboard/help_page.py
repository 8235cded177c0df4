"""The help of the dashboard: its lines for a width, and how far they scroll. Pure: no I/O, no clock."""

from __future__ import annotations

import textwrap
from typing import Final

_ENTRIES: Final = (
    ("↑ ↓  k j", "select a slot; PgUp PgDn by ten, Home and g stay at the top, End and G go to the bottom"),
    ("v", "show the picture of the selected slot: its history, forecast and limits; or the details again"),
    ("w", "show all of the history in the picture, or only the last day, six hours, one hour"),
    ("s", "sort by severity, retained, undelivered, growth, name"),
    ("r", "reverse the order"),
    ("/", "filter by text in name, plugin, database, consumer: Enter applies it, Esc cancels it"),
    ("Esc", "remove the filter"),
    ("a", "all slots, only inactive slots, only slots with problems"),
    ("p  Space", "pause, resume"),
    ("+ -", "refresh less often, more often"),
    ("Ctrl-L", "redraw the screen"),
    ("q  Ctrl-C", "quit; in this help, q closes the help"),
    ("", ""),
    ("RETAINED", "WAL that the server keeps for the slot (from restart_lsn)"),
    ("UNDELIVERED", "WAL that the consumer has not confirmed (from confirmed_flush_lsn)"),
    ("GROWTH/s", "growth of RETAINED in a second; negative while a consumer catches up"),
    ("DELIVERY/s", "WAL that the consumer confirms in a second"),
    ("BREAKS IN", "time until the slot is invalidated (slot), the disk is full (disk), transaction IDs run out (xids)"),
    ("ACTIVE", "the PID of the consumer, or how long there is none"),
    ("! ‼", "warning, critical: the reasons are below the table"),
)
_KEY_WIDTH: Final = 13
_NARROWEST_TEXT: Final = 10


def rows(width: int) -> list[tuple[str, str]]:
    """Return the lines of the help: the key or column in a fixed width, and its meaning."""
    found = []
    for key, words in _ENTRIES:
        first, *rest = textwrap.wrap(words, max(_NARROWEST_TEXT, width - _KEY_WIDTH)) or [""]
        found.append((f"{key:<{_KEY_WIDTH}}", first))
        found += [(" " * _KEY_WIDTH, more) for more in rest]
    return found


def last_top(width: int, height: int) -> int:
    """Return the first line of the help when its end is shown in HEIGHT lines."""
    return max(0, len(rows(width)) - height)
