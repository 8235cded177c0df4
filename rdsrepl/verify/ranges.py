"""Find the rows that differ between two tables with a key: compare ranges, split those that differ, read small ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.verify import limited, statements
from rdsrepl.verify.statements import Key, Range, Side

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.postgres.connection import Connection

#: How many rows that differ are examined in one table.
MOST_SUSPECTS: Final = 100_000
# A range of so many rows is read row by row.
_FEW_ROWS: Final = 500
_PARTS: Final = 8
_FIRST_STEP: Final = 250
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

    def both(self, of_source: Composed, of_target: Composed, *, is_limited: bool) -> tuple[list[Any], list[Any]]:
        """Return the rows of one query on each side.

        Raises:
            TookTooLongError: one of them took too long.
        """
        there = self._pool.submit(limited.fetch, self.target, of_target, is_limited=is_limited)
        try:
            here = limited.fetch(self.source, of_source, is_limited=is_limited)
        except BaseException:
            self.target.cancel()
            there.exception()
            raise
        return here, there.result()

    def close(self) -> None:
        """End a query of the target and its thread."""
        self.target.cancel()
        self._pool.shutdown()


@dataclass(slots=True)
class Differences:
    """What comparing ranges found.

    Attributes:
        source_rows, target_rows: the rows that each side had, each range at its own moment.
        suspects: the keys of rows that differed, as text.
    """

    source_rows: int = 0
    target_rows: int = 0
    suspects: set[Key] = field(default_factory=set)

    @property
    def is_complete(self) -> bool:
        """Whether all rows that differed are among the suspects."""
        return len(self.suspects) <= MOST_SUSPECTS

    def add_rows(self, pair: Pair, of_source: Composed, of_target: Composed, *, is_limited: bool = False) -> None:
        """Read rows of both sides, and add the keys of those that differ.

        Raises:
            TookTooLongError: a statement took too long.
        """
        both = pair.both(of_source, of_target, is_limited=is_limited)
        here, there = ({row[:-1]: row[-1] for row in rows} for rows in both)
        self.suspects.update(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))


def differences(pair: Pair, source: Side, target: Side, progress: Callable[[int], None]) -> Differences:
    """Compare all rows of a table by ranges of its key.

    A statement takes about a second, and is ended after four (``limited``); nothing is locked, and there is no
    snapshot: a row that changes meanwhile may be among the suspects.

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
        chain = comparison.bounds(Range(low, None), step)
        is_last = len(chain) < _PARTS
        comparison.add(_chained(low, chain, None if is_last else chain[-1]), step)
        progress(comparison.found.source_rows)
        if is_last:
            return comparison.found
        low = chain[-1]
        step = _next_step(step, time.monotonic() - began) if comparison.has_index else _LONGEST_STEP


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
    has_index: bool = True

    def add(self, chain: Sequence[Range], step: int) -> None:
        """Compare a chain of ranges of about STEP rows, and count their rows."""
        for one, here, there in self._totals(chain, step):
            self.found.source_rows += here.rows
            self.found.target_rows += there.rows
            self._examine(one, here, there)

    def bounds(self, wanted: Range, step: int, *, of_source: bool = True) -> list[Key]:
        """Return up to ``_PARTS`` keys of one side in a range, about STEP rows apart.

        A statement that takes too long even for few rows has no index to use: it takes as long as it needs.
        """
        conn, side = (self.pair.source, self.source) if of_source else (self.pair.target, self.target)
        while True:
            try:
                return limited.fetch(conn, statements.bounds(side, wanted, step, _PARTS), is_limited=self.has_index)
            except limited.TookTooLongError:
                self.has_index = step > _FEW_ROWS
                step = max(step // _PARTS, _FEW_ROWS)

    def _examine(self, one: Range, here: Total, there: Total) -> None:
        """Add the rows of a range that differ to the suspects: split it until it is small, then read it."""
        if here == there or not self.found.is_complete:
            return
        rows = max(here.rows, there.rows)
        if rows <= _FEW_ROWS and self._read(one, is_limited=rows > 1):
            return
        step = -(-rows // _PARTS)
        inner = self.bounds(one, step, of_source=here.rows >= there.rows)
        parts = _chained(one.low, inner, one.high)
        if len(parts) < 2:
            self._read(one, is_limited=False)
            return
        for part, of_source, of_target in self._totals(parts, step):
            self._examine(part, of_source, of_target)

    def _read(self, one: Range, *, is_limited: bool) -> bool:
        """Add the rows of a range that differ to the suspects; return False if that takes too long."""
        queries = (statements.rows(side, one) for side in (self.source, self.target))
        try:
            self.found.add_rows(self.pair, *queries, is_limited=is_limited)
        except limited.TookTooLongError:
            return False
        return True

    def _totals(self, chain: Sequence[Range], step: int) -> Iterator[tuple[Range, Total, Total]]:
        """Yield ranges of about STEP rows, with their totals; smaller ones where that takes too long."""
        queries = (statements.totals(side, chain) for side in (self.source, self.target))
        try:
            both = self.pair.both(*queries, is_limited=len(chain) > 1 or step > 1)
        except limited.TookTooLongError:
            yield from self._smaller_totals(chain, step)
            return
        here, there = ({place: Total(count, total) for place, count, total in rows} for rows in both)
        for place, one in enumerate(chain):
            yield one, here[place], there[place]

    def _smaller_totals(self, chain: Sequence[Range], step: int) -> Iterator[tuple[Range, Total, Total]]:
        if len(chain) == 1:
            (one,) = chain
            step = max(step // _PARTS, 1)
            chain = _chained(one.low, self.bounds(one, step), one.high)
        half = -(-len(chain) // 2)
        for some in (chain[:half], chain[half:]):
            if some:
                yield from self._totals(some, step)


@dataclass(frozen=True, slots=True)
class Total:
    """The number of rows of a range and its fingerprint."""

    rows: int
    fingerprint: int


def _chained(low: Key | None, inner: Sequence[Key], high: Key | None) -> list[Range]:
    """Return the ranges between bounds; the last one ends at HIGH."""
    ends = [low, *(key for key in inner if key != high), high]
    return [Range(first, second) for first, second in pairwise(ends)]
