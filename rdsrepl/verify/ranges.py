"""Find the rows that differ between two tables with a key: compare ranges, split those that differ, read small ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.verify import statements
from rdsrepl.verify.statements import Key, Range, Side

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.postgres.connection import Connection

#: How many rows that differ are examined in one table.
MOST_SUSPECTS: Final = 100_000
# A range of so many rows is read row by row.
_FEW_ROWS: Final = 500
_PARTS: Final = 8
_FIRST_STEP: Final = 2_000
_LONGEST_STEP: Final = 100_000
# A statement takes about so long on the slower side.
_SECONDS: Final = 1.0


@dataclass(slots=True)
class Pair:
    """The connections to both databases; statements run on both at the same time.

    Attributes:
        source: where ranges of the source are read: the source or its replica.
        target: the target.
    """

    source: Connection
    target: Connection
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def both(self, of_source: Composed, of_target: Composed) -> tuple[list[Any], list[Any]]:
        """Return the rows of one query on each side."""
        there = self._pool.submit(_fetch, self.target, of_target)
        try:
            here = _fetch(self.source, of_source)
        except BaseException:
            self.target.cancel()
            raise
        return here, there.result()

    def close(self) -> None:
        """End a query of the target and its thread."""
        self.target.cancel()
        self._pool.shutdown()


def _fetch(conn: Connection, query: Composed) -> list[Any]:
    return conn.execute(query).fetchall()


@dataclass(slots=True)
class Differences:
    """What comparing ranges found.

    Attributes:
        source_rows, target_rows: the rows that each side had, each range at its own moment.
        suspects: the keys of rows that differed, as text.
        is_complete: whether all rows that differed are among the suspects.
    """

    source_rows: int = 0
    target_rows: int = 0
    suspects: set[Key] = field(default_factory=set)
    is_complete: bool = True


def differences(pair: Pair, source: Side, target: Side, progress: Callable[[int], None]) -> Differences:
    """Compare all rows of a table by ranges of its key.

    No statement on the source takes much longer than a second, nothing is locked, and there is no snapshot: a row that
    changes meanwhile may be among the suspects.

    Args:
        pair: the connections.
        source: how to read the table of the source.
        target: how to read that of the target.
        progress: called with the number of rows compared so far.
    """
    comparison = _Comparison(pair, source, target)
    step, low = _FIRST_STEP, None
    while True:
        began = time.monotonic()
        chain = _bounds(pair.source, source, Range(low, None), step, _PARTS)
        is_last = len(chain) < _PARTS
        comparison.add(_chained(low, chain, None if is_last else chain[-1]))
        progress(comparison.found.source_rows)
        if is_last:
            return comparison.found
        low = chain[-1]
        step = _next_step(step, time.monotonic() - began)


def _next_step(step: int, seconds: float) -> int:
    if seconds < _SECONDS / 2:
        return min(step * 2, _LONGEST_STEP)
    return max(step // 2, _FEW_ROWS) if seconds > _SECONDS * 2 else step


@dataclass(slots=True)
class _Comparison:
    """The comparison of one table."""

    pair: Pair
    source: Side
    target: Side
    found: Differences = field(default_factory=Differences)

    def add(self, chain: Sequence[Range]) -> None:
        """Compare a chain of ranges, and count their rows."""
        for one, here, there in self._totals(chain):
            self.found.source_rows += here.rows
            self.found.target_rows += there.rows
            self._examine(one, here, there)

    def _examine(self, one: Range, here: Total, there: Total) -> None:
        """Add the rows of a range that differ to the suspects: split it until it is small, then read it."""
        if here == there or not self.found.is_complete:
            return
        parts = self._parts(one, here.rows, there.rows)
        for part, of_source, of_target in self._totals(parts):
            self._examine(part, of_source, of_target)
        if not parts:
            self._read(one)

    def _parts(self, one: Range, source_rows: int, target_rows: int) -> Sequence[Range]:
        """Return the parts of a range with many rows, by the side that has more; none for a small one."""
        rows = max(source_rows, target_rows)
        if rows <= _FEW_ROWS:
            return ()
        larger = (self.pair.source, self.source) if source_rows >= target_rows else (self.pair.target, self.target)
        parts = _chained(one.low, _bounds(*larger, one, -(-rows // _PARTS), _PARTS), one.high)
        return parts if len(parts) > 1 else ()

    def _totals(self, chain: Sequence[Range]) -> Iterator[tuple[Range, Total, Total]]:
        if not chain:
            return
        both = self.pair.both(statements.totals(self.source, chain), statements.totals(self.target, chain))
        here, there = ({place: Total(count, total) for place, count, total in rows} for rows in both)
        for place, one in enumerate(chain):
            yield one, here[place], there[place]

    def _read(self, one: Range) -> None:
        both = self.pair.both(statements.rows(self.source, one), statements.rows(self.target, one))
        here, there = ({row[:-1]: row[-1] for row in rows} for rows in both)
        self.found.suspects.update(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
        self.found.is_complete = len(self.found.suspects) <= MOST_SUSPECTS


@dataclass(frozen=True, slots=True)
class Total:
    """The number of rows of a range and its fingerprint."""

    rows: int
    fingerprint: int


def _bounds(conn: Connection, side: Side, wanted: Range, step: int, count: int) -> list[Key]:
    return _fetch(conn, statements.bounds(side, wanted, step, count))


def _chained(low: Key | None, inner: Sequence[Key], high: Key | None) -> list[Range]:
    """Return the ranges between bounds; the last one ends at HIGH."""
    ends = [low, *(key for key in inner if key != high), high]
    return [Range(first, second) for first, second in pairwise(ends)]
