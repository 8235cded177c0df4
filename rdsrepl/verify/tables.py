"""Compare one table: find the rows that differ, prove each, name the columns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from rdsrepl.plan import Statement
from rdsrepl.text.counts import counted
from rdsrepl.verify import buckets, limited, ranges, repair, statements
from rdsrepl.verify.links import Link
from rdsrepl.verify.proof import Proof, ReadRows, by_key
from rdsrepl.verify.ranges import Pair
from rdsrepl.verify.results import DifferingRow, Progress, TableResult, TableState
from rdsrepl.verify.row_state import Reading, RowState
from rdsrepl.verify.statements import Key, Side
from rdsrepl.verify.structure import ComparedTable

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

#: How many rows that differ are named in the result of a table.
MOST_KEYS: Final = 100
# 128 MB of a table without a key.
_PAGES: Final = 16_384
_INTEGERS: Final = frozenset(("int2", "int4", "int8"))
# Stands for a table without a key.
_WHOLE: Final[Key] = ()


@dataclass(frozen=True, slots=True)
class Servers:
    """The connections of a verification.

    Attributes:
        pair: where ranges are read.
        source: the primary; proofs are read there.
        link: how the target gets the changes.
        back: how the source gets the changes of the target; None if it does not.
    """

    pair: Pair
    source: Connection
    link: Link
    back: Link | None = None

    def lost(self) -> str | None:
        """Return which connection is closed; None if none is."""
        places = {"source": self.source, "--read-from": self.pair.source, "target": self.pair.target}
        return next((name for name, conn in places.items() if conn.closed), None)


@dataclass(frozen=True, slots=True)
class How:
    """How to compare.

    Attributes:
        hashes_records: both servers are 14 or later.
        exact_text: compare all values as text.
        columns: name the columns that differ.
        proof_seconds: after this time rows that differ are not proven.
        repairs: return the statements that make the rows equal.
    """

    hashes_records: bool
    exact_text: bool
    columns: bool
    proof_seconds: float
    repairs: bool = False


def compare(
    servers: Servers, table: ComparedTable, how: How, progress: Progress
) -> tuple[TableResult, tuple[Statement, ...]]:
    """Compare a table on both sides; return what was found, and the statements that make the rows equal.

    Raises:
        psycopg.Error: a statement failed.
    """
    comparison = _Comparison(servers, table, how, progress)
    return comparison.with_key() if table.key else (comparison.without_key(), ())


class _Comparison:
    """The comparison of one table."""

    def __init__(self, servers: Servers, table: ComparedTable, how: How, progress: Progress) -> None:
        self._servers, self._table, self._how, self._progress = servers, table, how, progress
        self._began = time.monotonic()
        self._hashes_records = how.hashes_records and bool(table.key)
        self._source, self._target = (
            statements.side(table, is_source=one, hashes_records=self._hashes_records, exact_text=how.exact_text)
            for one in (True, False)
        )

    def with_key(self) -> tuple[TableResult, tuple[Statement, ...]]:
        """Find the rows that differ by ranges of the key, and prove each."""
        sides = self._source, self._target
        if self._source.is_ordered:
            found = ranges.differences(self._servers.pair, *sides, self._compared)
        else:
            found = buckets.differences(self._servers.pair, *sides, self._table.estimated_rows, self._compared)
        evaluated = self._proof(
            by_key(self._servers.source, self._source), by_key(self._servers.pair.target, self._target)
        ).run(sorted(found.suspects, key=self._order))
        proven = {key: one for key, one in evaluated.items() if one[0].is_proven}
        named = list(proven)[:MOST_KEYS]
        columns = self._differing_columns(named) if self._how.columns else {}
        names = [column.name for column in self._table.key]
        notes = self._table.notes
        if not found.is_complete:
            notes += (f"more than {counted(ranges.MOST_SUSPECTS, 'row')} differ; the others were not examined",)
        result = self._result(
            found.source_rows,
            Counter(state for state, _ in evaluated.values()),
            rows=tuple(
                DifferingRow(dict(zip(names, key, strict=True)), proven[key][0], columns.get(key)) for key in named
            ),
            notes=notes,
            is_complete=found.is_complete,
        )
        if not self._how.repairs:
            return result, ()
        if len(proven) > repair.MOST_ROWS:
            return replace(result, notes=(*result.notes, repair.TOO_MANY)), ()
        return result, repair.steps(self._servers.source, self._table, (self._source, self._target), proven)

    def _order(self, key: Key) -> tuple[tuple[int, str], ...]:
        """Return what to sort keys by: numbers by their value."""
        return tuple(
            (int(part), "") if column.builtin in _INTEGERS else (0, part)
            for column, part in zip(self._table.key, key, strict=True)
        )

    def without_key(self) -> TableResult:
        """Compare the table as a whole: the number of its rows and the sum of their fingerprints."""
        sizes: dict[str, int] = {}

        def read(name: str, conn: Connection, side: Side) -> dict[Key, Reading]:
            count = total = version = 0
            for rows, hashes, versions in _pages(conn, side):
                count, total, version = count + rows, total + hashes, version + versions
                self._compared(count)
            sizes[name] = count
            return {_WHOLE: Reading((count, total), f"{count} {version}")}

        proof = self._proof(
            lambda _: read("source", self._servers.source, self._source),
            lambda _: read("target", self._servers.pair.target, self._target),
        )
        state = replace(proof, rounds=(True,)).run([_WHOLE])[_WHOLE][0]
        counts: Counter[RowState] = Counter() if state is RowState.cleared else Counter([state])
        if state.is_proven and (missing := sizes["source"] - sizes["target"]):
            counts = Counter({RowState.missing if missing > 0 else RowState.extra: abs(missing)})
        return self._result(sizes["source"], counts, notes=self._table.notes)

    def _proof(self, read_source: ReadRows, read_target: ReadRows) -> Proof:
        servers = self._servers
        back = None if servers.back is None else (servers.pair.target, servers.back)
        seconds = self._how.proof_seconds
        return Proof(servers.source, servers.link, read_source, read_target, seconds, self._proved, back)

    def _compared(self, rows: int) -> None:
        about = self._table.estimated_rows
        of = f" of about {about:,}" if about > rows else ""
        self._progress("comparing", f"{self._table.sql_name}: {counted(rows, 'row', grouped=True)}{of}")

    def _proved(self, left: int) -> None:
        self._progress("reading again", f"{self._table.sql_name}: {counted(left, 'row', grouped=True)}")

    def _differing_columns(self, keys: Sequence[Key]) -> Mapping[Key, tuple[str, ...]]:
        """Return, for keys that both sides have, the columns whose values differ now."""
        from psycopg import sql

        columns = self._table.columns
        exact = self._how.exact_text
        hashes = [
            statements.fingerprint([column], hashes_records=self._hashes_records, exact_text=exact)
            for column in columns
        ]
        array = sql.SQL("ARRAY[{}]").format(sql.SQL(", ").join(hashes))

        def read(conn: Connection, side: Side) -> dict[Key, Sequence[int]]:
            found: dict[Key, Sequence[int]] = {}
            query = partial(statements.lookup, side, extra=[array])
            for some, rows in limited.in_parts(conn, keys, query, is_limited=side.is_indexed) if keys else ():
                found |= {some[place - 1]: values for place, *_, values in rows}
            return found

        here = read(self._servers.source, self._source)
        there = read(self._servers.pair.target, self._target)
        return {
            key: tuple(
                column.name for column, one, other in zip(columns, here[key], there[key], strict=True) if one != other
            )
            for key in here.keys() & there.keys()
        }

    def _result(
        self,
        rows_of_source: int,
        counts: Mapping[RowState, int],
        *,
        rows: tuple[DifferingRow, ...] = (),
        notes: tuple[str, ...] = (),
        is_complete: bool = True,
    ) -> TableResult:
        proven = any(count and state.is_proven for state, count in counts.items())
        not_proven = counts[RowState.again] + (not is_complete)
        return TableResult(
            self._table.sql_name,
            TableState.different if proven else TableState.not_proven if not_proven else TableState.equal,
            rows_of_source,
            counts[RowState.missing],
            counts[RowState.extra],
            counts[RowState.different],
            not_proven,
            counts[RowState.cleared],
            rows,
            notes,
            time.monotonic() - self._began,
        )


def _pages(conn: Connection, side: Side) -> Iterator[tuple[int, int, int]]:
    """Read a table in parts; the last one has no end, because the table may grow."""
    row = conn.execute(statements.page_count(side)).fetchone()
    pages = int(row[0]) if row is not None else 0
    first, size = 0, _PAGES
    while first <= pages:
        count = None if first + size > pages else size
        try:
            # Of a partitioned table no part is smaller than the whole.
            yield from limited.fetch(conn, statements.whole_table(side, first, count), is_limited=min(size, pages) > 1)
        except limited.TookTooLongError:
            size = min(size, pages) // 2
            continue
        first += size
