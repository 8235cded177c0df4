"""Limits how much is tried while Kinesis refuses most records, as at a shard's limits. Pure: no I/O, no clock.

The limits of a shard are by the second: what is refused once is refused until the next one, so trying everything again
all the time only multiplies the refusals. While most records are refused, one small request is tried at an interval. As
soon as one is accepted, the requests follow each other again and become larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_PAUSE_SECONDS: Final = 0.1
_FEWEST_RECORDS: Final = 50
# From this size on, requests are no longer limited.
_MANY_RECORDS: Final = 4_000
# How many of the last records decide, and how few never do.
_REMEMBERED: Final = 100.0
_FEWEST_REFUSED: Final = 10.0


@dataclass(slots=True)
class Pace:
    """How many records the next request may have, and when it may go.

    Attributes:
        records: the maximum of a request; None is no limit.
        resumes_at: nothing is sent before this time.
    """

    records: int | None = None
    resumes_at: float = 0.0
    _acknowledged: float = 0.0
    _refused: float = 0.0

    def sent(self, now: float) -> None:
        """Record that a request was sent."""
        if self.records is not None:
            self.resumes_at = now + _PAUSE_SECONDS

    def answered(self, acknowledged: int, refused: int, now: float) -> None:
        """Record an answer, by the number of records."""
        self._acknowledged += acknowledged
        self._refused += refused
        if (total := self._acknowledged + self._refused) > _REMEMBERED:
            self._acknowledged *= _REMEMBERED / total
            self._refused *= _REMEMBERED / total
        if refused > acknowledged:
            if self._refused > max(self._acknowledged, _FEWEST_REFUSED):
                self.records = _FEWEST_RECORDS
                self.resumes_at = now + _PAUSE_SECONDS
        elif self.records is not None:
            self.records = self.records * 2 if self.records < _MANY_RECORDS else None
            self.resumes_at = now
