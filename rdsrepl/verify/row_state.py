"""Decide about one row that differed: is the difference real, or was a change on its way? Pure functions.

One round reads the source; waits until the target has applied everything that the source had committed by then; reads
the source again, for rows that change often, and the target; and reads the source a last time. Before the last reading
a long round waits until every commit that the target could have applied is visible on the source. A short round does
not wait, so that a row can be proven between two changes that follow each other closely.

- A row that equals one of the readings of the source is **cleared**.
- A row that did not change on the source between the first reading and the last one, by value and by version
  (``xmin``), and differs on the target, is **proven**: the target had applied a state of the source that did not change
  meanwhile. In a short round the last reading must also show that no transaction has begun to change the row
  (``xmax``): one that committed and is not visible yet may be what the target has applied.
- A row that the source does not have has no version there: it may have been inserted and deleted in between. It is
  proven by two long rounds in which the target has the same version of it: that version is older than the source's
  reading of the second round, and the target has applied everything up to that reading without removing it.
- Everything else is read **again**.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class RowState(StrEnum):
    """What is known about a row that differed."""

    again = "not proven"
    cleared = "cleared"
    missing = "missing"
    extra = "extra"
    different = "different"

    @property
    def is_proven(self) -> bool:
        """Whether the row differs, for certain."""
        return self in (RowState.missing, RowState.extra, RowState.different)


@dataclass(frozen=True, slots=True)
class Reading:
    """A row as one side had it.

    Attributes:
        fingerprint: equal for equal rows.
        version: changes whenever the row changes.
        is_settled: no transaction has changed, deleted or locked the row since; one that was aborted counts as well.
    """

    fingerprint: int | tuple[int, ...]
    version: str
    is_settled: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Round:
    """The readings of one round; None is: no such row.

    Attributes:
        before: the source, first.
        near: the source, just before the target.
        target: the target.
        after: the source, last.
        is_long: before the last reading every commit that the target could have applied became visible.
        target_changed: the source gets the changes of the target as well, and may not have this one yet.
    """

    before: Reading | None
    near: Reading | None
    target: Reading | None
    after: Reading | None
    is_long: bool = True
    target_changed: bool = False


#: The readings of a row before the first round ended.
NOT_READ: Final = Round(None, None, None, None)


def evaluate(now: Round, last: Round | None) -> RowState:
    """Return what a round proves about a row.

    Args:
        now: the readings of this round.
        last: those of the long round before; None without one.
    """
    target = _fingerprint(now.target)
    if target in map(_fingerprint, (now.before, now.near, now.after)):
        return RowState.cleared
    if now.target_changed:
        return RowState.again
    if now.before is None:
        stayed = now.is_long and last is not None and now.target is not None and last.target == now.target
        return RowState.extra if stayed and now.after is None else RowState.again
    if now.after is None or now.before != now.after or not (now.is_long or now.after.is_settled):
        return RowState.again
    return RowState.missing if now.target is None else RowState.different


def _fingerprint(reading: Reading | None) -> int | tuple[int, ...] | None:
    return None if reading is None else reading.fingerprint
