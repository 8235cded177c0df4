"""Which timeline a WAL position belongs to. Pure: no I/O.

After a promotion the server writes a new timeline, and may give other transactions the positions that the old primary
gave already. A position alone therefore identifies nothing for ever; timeline and position do. A transaction that
was committed before the promotion keeps the timeline on which its commit was written, whichever server sends it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from rdsrepl.lsn import Lsn

_LINE: Final = re.compile(r"\s*([0-9]{1,10})\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})")


@dataclass(frozen=True, slots=True)
class Timelines:
    """A server's timeline and those it descends from.

    Attributes:
        current: the one that the server writes, or replays; 0 where the storage has no timelines (Aurora).
        switches: (timeline, where the next one begins) for each ancestor, oldest first.
    """

    current: int
    switches: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, current: int, history: str) -> Timelines:
        """Read a timeline history file: a line for each ancestor, with its number and where it was left.

        Source: manual, section 26.3.5; the answer of TIMELINE_HISTORY, section 55.4.
        """
        matches = (_LINE.match(line) for line in history.splitlines())
        return cls(current, tuple((int(m[1]), int(Lsn.parse(m[2]))) for m in matches if m is not None))

    @property
    def begins_at(self) -> int:
        """Where the current timeline begins; 0 for one without ancestors."""
        return self.switches[-1][1] if self.switches else 0

    def of_start(self, lsn: int) -> int:
        """Return the timeline of the record that begins at LSN."""
        for timeline, left_at in self.switches:
            if lsn < left_at:
                return timeline
        return self.current

    def of_end(self, lsn: int) -> int:
        """Return the timeline of the record that ends at LSN: where one is left, its last record ends."""
        return self.of_start(lsn - 1)

    def end_of(self, timeline: int) -> int | None:
        """Return where a timeline was left, beyond any position for the current one; None where it is no ancestor."""
        return dict(self._all()).get(timeline)

    def common_end(self, other: Timelines) -> int | None:
        """Return up to which position both have the same history; None where they have no timeline in common."""
        end: int | None = None
        for (one, one_left), (two, two_left) in zip(self._all(), other._all(), strict=False):
            if one != two:
                break
            end = min(one_left, two_left)
            if one_left != two_left:
                break
        return end

    def _all(self) -> list[tuple[int, int]]:
        return [*self.switches, (self.current, 1 << 64)]
