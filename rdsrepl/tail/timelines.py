"""Which timeline a WAL position belongs to. Pure: no I/O.

After a promotion the server writes a new timeline, and may assign positions that the old primary already assigned to
other transactions. So only timeline and position together identify a record permanently. A transaction that was
committed before the promotion keeps the timeline on which its commit was written, on every server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from rdsrepl.lsn import Lsn

_LINE: Final = re.compile(r"\s*([0-9]{1,10})\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})")


@dataclass(frozen=True, slots=True)
class Timelines:
    """A server's timeline and its ancestors.

    Attributes:
        current: the timeline that the server writes, or replays; 0 if the storage has no timelines (Aurora).
        switches: (timeline, where the next one starts) for each ancestor, oldest first.
    """

    current: int
    switches: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, current: int, history: str) -> Timelines:
        """Parse a timeline history file: a line for each ancestor, with its number and where it ends.

        Source: manual, section 26.3.5; the answer of TIMELINE_HISTORY, section 55.4.
        """
        matches = (_LINE.match(line) for line in history.splitlines())
        return cls(current, tuple((int(m[1]), int(Lsn.parse(m[2]))) for m in matches if m is not None))

    @property
    def begins_at(self) -> int:
        """Where the current timeline starts; 0 without ancestors."""
        return self.switches[-1][1] if self.switches else 0

    def of_start(self, lsn: int) -> int:
        """Return the timeline of the record that starts at LSN."""
        for timeline, end in self.switches:
            if lsn < end:
                return timeline
        return self.current

    def of_end(self, lsn: int) -> int:
        """Return the timeline of the record that ends at LSN; a timeline's end belongs to its last record."""
        return self.of_start(lsn - 1)

    def end_of(self, timeline: int) -> int | None:
        """Return where a timeline ends, 2^64 for the current one; None if it is not an ancestor."""
        return dict(self._all()).get(timeline)

    def common_end(self, other: Timelines) -> int | None:
        """Return the position up to which both have the same history; None without a common timeline."""
        end: int | None = None
        for (one, one_end), (two, two_end) in zip(self._all(), other._all(), strict=False):
            if one != two:
                break
            end = min(one_end, two_end)
            if one_end != two_end:
                break
        return end

    def _all(self) -> list[tuple[int, int]]:
        return [*self.switches, (self.current, 1 << 64)]
