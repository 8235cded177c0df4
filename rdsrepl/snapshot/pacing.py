"""How fast chunks are read: as the request allows, as the output takes them, and as the standbys follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from rdsrepl.postgres.standby_lag import StandbyLag
from rdsrepl.snapshot.requests import Request

#: A chunk is written into the stream at once: the changes behind it wait so long.
WANTED_BYTES: Final = 512 << 10
#: A chunk ends at the row that exceeds this, whatever was expected.
MOST_BYTES: Final = 1 << 20
#: A standby may be so far behind.
MOST_LAG_SECONDS: Final = 10.0
# How wide the rows of a table are is not known before its first chunk.
_FIRST_ROWS: Final = 1_000
_FEWEST_ROWS: Final = 100
_SLOW_SECONDS: Final = 1.0
_QUICK_SECONDS: Final = 0.3
# After a pause, at most this much unused time is made up for by a higher rate.
_CREDIT_SECONDS: Final = 1.0
# Some standbys stay behind: recovery_min_apply_delay, a replay that is paused.
_LONGEST_LAG_WAIT_SECONDS: Final = 300.0


class Pace:
    """The size of chunks, and the time between them, for one snapshot."""

    def __init__(
        self, request: Request, overflows: Callable[[], int], now: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin.

        Args:
            request: limits the rows of a chunk and of a second.
            overflows: returns how often too many changes were recorded: chunks are halved for each.
            now: a clock in seconds.
        """
        self._request, self._overflows, self._now = request, overflows, now
        self._due = now()
        self._fitting = 0
        self._rows = self.most_rows

    @property
    def most_rows(self) -> int:
        """How many rows a chunk may have: those of a second, if there is a rate; fewer after an overflow."""
        rows = min(self._request.chunk_rows, self._request.rows_per_second or self._request.chunk_rows)
        return max(1, rows >> self._overflows())

    @property
    def rows(self) -> int:
        """How many rows the next chunk should have."""
        return self._rows

    @property
    def left_seconds(self) -> float:
        """How long to wait before the next chunk; 0 without a rate."""
        return 0.0 if self._request.rows_per_second is None else max(0.0, self._due - self._now())

    def begins_table(self) -> None:
        """Begin with another table, whose rows may be wider."""
        self._fitting = 0
        self._rows = min(self.most_rows, _FIRST_ROWS)

    def was_read(self, rows: int, size: int, *, is_cut: bool) -> None:
        """Take note of the ROWS of a chunk, their SIZE in bytes, and whether they ended it early."""
        if rows:
            self._fitting = max(1, WANTED_BYTES * rows // size)
        if is_cut:
            self._rows = rows

    def was_written(self, rows: int, seconds: float) -> None:
        """Take note that the output takes the next chunk, SECONDS after the marker of one with so many ROWS.

        Chunks become smaller while the output is slow, and larger again when it is not.
        """
        if self._request.rows_per_second is not None:
            began = self._now() - seconds
            self._due = max(self._due, began - _CREDIT_SECONDS) + rows / self._request.rows_per_second
        most = self.most_rows
        if seconds > _SLOW_SECONDS:
            self._rows = max(min(_FEWEST_ROWS, most), self._rows // 2)
        elif seconds < _QUICK_SECONDS and self._rows < most:
            self._rows *= 2
        self._rows = min(most, self._rows, self._fitting or most)


class StandbyLimit:
    """Decides for which standby to wait; one that stays behind is ignored after five minutes."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Begin; NOW is a clock in seconds."""
        self._now = now
        self._since: dict[str, float] = {}

    def waits_for(self, standbys: Sequence[StandbyLag]) -> str | None:
        """Return the name of a standby to wait for; None to go on.

        Args:
            standbys: those that are behind, in any order.
        """
        behind = {one.name for one in standbys if one.seconds >= MOST_LAG_SECONDS}
        now = self._now()
        self._since = {name: self._since.get(name, now) for name in sorted(behind)}
        return next((name for name, since in self._since.items() if now - since < _LONGEST_LAG_WAIT_SECONDS), None)
