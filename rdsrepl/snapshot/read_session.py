"""One attempt to read what is left of a snapshot, from the connections to its end.

Two connections: one reads rows, on the primary or on a replica of it; the other one writes the markers, always on the
primary. A chunk waits for the one before the last, so that a slow output slows the snapshot and not the stream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import MalformedMessage, Refused
from rdsrepl.postgres import connection, standby_lag
from rdsrepl.postgres.error_mapping import translating
from rdsrepl.postgres.table_structures import TableName
from rdsrepl.snapshot import chunk_table, chunks, copied_lines, pacing, row_source, table_copy
from rdsrepl.snapshot.chunk_rows import ChunkRows, RowFormat
from rdsrepl.snapshot.chunk_table import Altered, ChunkTable, Cursor
from rdsrepl.snapshot.incremental import MARKER_PREFIX
from rdsrepl.snapshot.marked_rows import Chunk, TableBlock
from rdsrepl.snapshot.requests import Method, Request, table_text
from rdsrepl.snapshot.shared_state import Restarted, SharedState
from rdsrepl.snapshot.state import SnapshotState, Status, TableState
from rdsrepl.snapshot.table_copy import CopiedRows
from rdsrepl.snapshot.visibility import ServerSnapshot
from rdsrepl.snapshot.waiting import WaitReport
from rdsrepl.tail.formats.base import Format
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.xlogdata import MALFORMED
from rdsrepl.text.counts import counted, form, named
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.tail.preflight import PreflightResult

_CURRENT_SNAPSHOT: Final = "SELECT pg_catalog.pg_current_snapshot()::text"
_MARKER: Final = "SELECT pg_catalog.pg_logical_emit_message(true, %s, %s)"
# The marker needs no standby: what it names is read again if it is lost.
_PRIMARY_SETTINGS: Final = {"synchronous_commit": "local", "default_transaction_read_only": "off"}
_KEYS_PER_CHUNK: Final = 500
_SAVE_SECONDS: Final = 0.5
_LAG_CHECK_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Stream:
    """The stream that gets the rows.

    Attributes:
        snapshots: what to read.
        target: the primary.
        checked: the result of the preflight check.
        format: writes the rows.
        catalog: the types of FORMAT.
        settings: of the session that reads rows.
        wants: whether the stream has a table.
        replica: returns the server that a request names.
        note: takes notes for people.
        keeps_table_order: whether the output keeps the order of a table's changes, also without a key.
        standbys: for which standbys of the primary to wait.
    """

    snapshots: SharedState
    target: Target
    checked: PreflightResult
    format: Format
    catalog: Catalog
    settings: Mapping[str, str]
    wants: Callable[[str, str], bool]
    replica: Callable[[str], Target]
    note: Callable[[str], None]
    keeps_table_order: bool
    standbys: pacing.StandbyLimit


class ReadSession:
    """Reads one snapshot in one run."""

    def __init__(self, stream: Stream, run: str, snapshot_id: str) -> None:
        """Prepare; RUN is that of the state which names the snapshot."""
        self._stream = stream
        self._snapshots = stream.snapshots
        self._run = run
        self._id = snapshot_id
        self._number = 0
        self._formats: dict[tuple[str, str], RowFormat] = {}
        self._saved_at = self._counted_at = self._lag_checked_at = time.monotonic()
        self._wait_report = WaitReport(lambda text: stream.note(f"snapshot {snapshot_id} {text}"), self._save_wait)

    def _is_over(self) -> bool:
        return self._snapshots.is_over(self._run)

    def read(self) -> None:
        """Read every table that is not done.

        Raises:
            Restarted, Stopped: the run has ended.
            Error: a table cannot be read, or a connection was lost.
        """
        stream = self._stream
        if stream.checked.in_recovery:
            raise Refused("the stream comes from a standby, which cannot write the markers of chunks")
        with (
            closing(connection.connect(stream.target, settings=_PRIMARY_SETTINGS)) as primary,
            translating(),
        ):
            self._primary = primary
            state = self._begun()
            replica = state.request.read_from
            target = stream.target if replica is None else stream.replica(replica)
            with row_source.connected(target, stream.settings, primary, replica) as self._rows:
                self._read(state)
        self._snapshots.record(self._run, frozenset())
        done = self._changed(lambda one: replace(one, status=Status.done, ended_at=datetime.now(UTC)))
        rows_read = sum(table.rows for table in done.tables)
        stream.note(f"snapshot {self._id} is complete: {rows_read:,} {form(rows_read, 'row', 'rows')}")

    def _read(self, state: SnapshotState) -> None:
        self._require_condition(state)
        self._pace = pacing.Pace(state.request, lambda: self._snapshots.overflows)
        left = [place for place, table in enumerate(state.tables) if not table.is_done]
        if by_key := [place for place in left if state.tables[place].method is Method.chunks]:
            names = frozenset(state.request.table_names[place] for place in by_key)
            self._snapshots.record(self._run, names)
            self._rows.wait_until_visible(self._is_over, self._wait_report)
            for place in by_key:
                self._read_table(state, place)
        # After the others: nothing else is recorded while a table is copied, which takes long.
        for place in left:
            if place not in by_key:
                self._copy_table(state, place)

    def _require_condition(self, state: SnapshotState) -> None:
        """Make sure that the condition of a request is one condition on each table.

        Raises:
            Refused: it is not.
        """
        request = state.request
        for name in request.table_names if request.where is not None else ():
            table = chunk_table.describe(self._rows.conn, name, self._stream.checked.publications, request.method)
            self._rows.require_condition(table, request.where or "")

    def _changed(self, change: Callable[[SnapshotState], SnapshotState]) -> SnapshotState:
        """Change the state, and count how long the snapshot ran."""
        now = time.monotonic()
        seconds, self._counted_at = now - self._counted_at, now
        return self._snapshots.update(
            self._run, self._id, lambda one: change(replace(one, running_seconds=one.running_seconds + seconds))
        )

    def _begun(self) -> SnapshotState:
        """Name the tables that are read, and set the state to running."""
        stream = self._stream

        def begun(one: SnapshotState) -> SnapshotState:
            tables = {
                table.table: replace(table, method=Method.slot if table.method is Method.slot else methods[table.table])
                for table in one.tables
                if table.table in methods
            }
            texts = tuple(table_text(*name) for name in names)
            return replace(
                one,
                request=replace(one.request, tables=texts),
                status=Status.running,
                waits_for=None,
                started_at=one.started_at or datetime.now(UTC),
                tables=tuple(tables.get(text, TableState(text, method=methods[text])) for text in texts),
            )

        one = self._snapshots.update(self._run, self._id, lambda one: one)
        names = list(dict.fromkeys(part for name in one.request.table_names for part in self._parts(name)))
        methods = {}
        for name in names:
            table = chunk_table.describe(self._primary, name, stream.checked.publications, one.request.method)
            methods[table_text(*name)] = Method.chunks if table.key else Method.slot
        if Method.slot in methods.values():
            self._require_whole(one.request)
        return self._changed(begun)

    def _parts(self, name: TableName) -> list[TableName]:
        """Return the tables of the stream for a name: itself, or the partitions by which it is published.

        Raises:
            NotFound: it does not exist.
            Refused: it is not in the stream.
        """
        stream = self._stream
        parts = chunk_table.expanded(self._primary, name, stream.checked.publications)
        found = [part for part in parts if stream.wants(*part)]
        if not found:
            raise Refused(
                f"table {table_text(*name)} is not in the stream: --table of slot tail leaves it out",
                hint="start a snapshot without it, or run slot tail with another --table",
            )
        if left_out := [table_text(*part) for part in parts if part not in found]:
            stream.note(
                f"snapshot {self._id}: the stream has {len(found)} of {counted(len(parts), 'partition')} of "
                f"{table_text(*name)}; --table of slot tail leaves out {named(left_out, most=3)}"
            )
        return found

    def _require_whole(self, request: Request) -> None:
        """Make sure that a table without a key can be written whole.

        Raises:
            Refused: it cannot.
        """
        if request.read_from is not None:
            raise Refused("a table without a key is read in the snapshot of a slot, which a replica does not have")
        if not self._stream.keeps_table_order:
            raise Refused(
                "the TRUNCATE and the rows of a table without a key would be in different shards",
                hint="slot tail --partition-by key or table",
            )

    def _read_table(self, state: SnapshotState, place: int) -> None:
        name = state.request.table_names[place]
        cursor = self._snapshots.table(self._id, place).cursor
        is_last = False
        self._pace.begins_table()
        while True:
            self._wait_for_turn()
            now = self._snapshots.table(self._id, place)
            if now.read_again:
                self._snapshots.wait(self._run, for_all=True)
                now = self._snapshots.table(self._id, place)
            keys = now.read_again[:_KEYS_PER_CHUNK]
            if is_last and not keys:
                self._snapshots.wait(self._run, for_all=True)
                if not self._snapshots.table(self._id, place).read_again:
                    break
                continue
            chunk = self._chunk(state, place, name, cursor, keys)
            cursor, is_last = chunk.cursor or cursor, is_last or chunk.is_last
            self._send(chunk)
        self._done(place)

    def _send(self, chunk: Chunk | TableBlock) -> None:
        """Write the marker of a chunk or block, and wait until another one may be read."""
        began = time.monotonic()
        self._snapshots.offer(self._run, chunk)
        content = {"run": self._run, "id": self._id, "chunk": chunk.number}
        self._primary.execute(_MARKER, (MARKER_PREFIX, json.dumps(content)))
        rows = chunk.rows.count
        self._snapshots.wait(self._run)
        self._pace.was_written(rows, time.monotonic() - began)
        self._save()

    def _copy_table(self, state: SnapshotState, place: int) -> None:
        """Write a table without a key: a TRUNCATE, its rows, and the changes that were kept meanwhile."""
        stream, name = self._stream, state.request.table_names[place]
        fmt = self._row_format(name, state.tables[place].method)
        self._note_definition(place, fmt.table)
        self._rows.wait_until_ended(self._is_over, self._wait_report)
        found = table_copy.read(
            self._rows.conn,
            self._primary,
            stream.target,
            stream.checked,
            fmt.table,
            state.request.where,
            most_rows=self._pace.most_rows,
            record=lambda held: self._snapshots.record(self._run, frozenset(), held),
            is_stopped=self._is_over,
        )
        try:
            with closing(found):  # before the connection is closed
                for copied in found:
                    self._wait_for_turn()
                    self._send_block(place, fmt, copied)
                    if copied.held.failure is not None:
                        raise Refused(copied.held.failure)
        except Altered:
            raise Restarted from None
        self._snapshots.wait(self._run, for_all=True)
        while not copied.held.is_over:  # what changed while the rows were written
            self._send_block(place, fmt, replace(copied, lines=[], size=0, is_first=False))
        if copied.held.failure is not None:
            raise Refused(copied.held.failure)
        self._snapshots.wait(self._run, for_all=True)
        self._done(place)

    def _send_block(self, place: int, fmt: RowFormat, copied: CopiedRows) -> None:
        self._number += 1
        self._stream.catalog.xid = copied.xid
        self._stream.catalog.batch_received()
        rows = self._chunk_rows(fmt, copied.lines)
        block = TableBlock(
            self._id, place, self._number, rows, copied.size, copied.held, copied.is_first, copied.is_last
        )
        self._send(block)

    def _done(self, place: int) -> None:
        self._changed(lambda one: one.with_table(place, replace(one.tables[place], is_done=True)))

    def _chunk(
        self, state: SnapshotState, place: int, name: tuple[str, str], cursor: Cursor | None, keys: Sequence[Cursor]
    ) -> Chunk:
        """Read one chunk; describe the table again if it was altered."""
        while True:
            if name not in self._formats:
                self._formats[name] = self._row_format(name)
                self._note_definition(place, self._formats[name].table)
            try:
                return self._read_chunk(state, place, self._formats[name], cursor, keys)
            except Altered:
                del self._formats[name]

    def _read_chunk(
        self, state: SnapshotState, place: int, fmt: RowFormat, cursor: Cursor | None, keys: Sequence[Cursor]
    ) -> Chunk:
        table, where, limit = fmt.table, state.request.where, self._pace.rows
        statement = (
            chunks.keys_statement(table, _in_order(table, keys), where)
            if keys
            else chunks.chunk_statement(table, cursor, limit, where)
        )
        replayed = self._rows.replayed()
        lines: list[bytes] = []
        size, is_cut = 0, False
        conn = self._rows.conn
        with conn.transaction():
            # The lock first: TRUNCATE and some forms of ALTER TABLE change what older snapshots see.
            conn.execute(chunks.lock_statement(table))
            row = conn.execute(_CURRENT_SNAPSHOT).fetchone()
            assert row is not None
            if not chunk_table.is_unchanged(conn, table):
                raise Altered
            copied = copied_lines.copied(conn, statement, self._is_over)
            with closing(copied):
                for line in copied:
                    lines.append(line)
                    size += len(line)
                    if size > pacing.MOST_BYTES and not keys and len(lines) < limit:
                        is_cut = True
                        break
        snapshot = ServerSnapshot.parse(row[0])
        catalog = self._stream.catalog
        catalog.xid = snapshot.xmax & 0xFFFFFFFF
        catalog.batch_received()
        rows = self._chunk_rows(fmt, lines)
        self._pace.was_read(len(lines), size, is_cut=is_cut)
        self._number += 1
        return Chunk(
            self._id,
            place,
            self._number,
            rows,
            snapshot if replayed is None else replayed,
            chunks.cursor_of(table, lines[-1][:-1].decode("utf-8", "surrogateescape")) if lines and not keys else None,
            size,
            tuple(keys),
            not keys and not is_cut and len(lines) < limit,
        )

    def _chunk_rows(self, fmt: RowFormat, lines: Sequence[bytes]) -> ChunkRows:
        """Return the rows of COPY's lines.

        Raises:
            MalformedMessage: a value is not valid text.
        """
        try:
            rows = ChunkRows.of(fmt, lines)
            if not self._stream.checked.lenient_text and not rows.copied.isascii():
                rows.copied.decode()
        except MALFORMED as exc:
            raise MalformedMessage(f"could not read the rows of {table_text(*fmt.table.name)}: {exc}"[:300]) from exc
        return rows

    def _row_format(self, name: tuple[str, str], method: Method = Method.chunks) -> RowFormat:
        stream = self._stream
        with self._rows.conn.transaction():
            table = chunk_table.describe(self._rows.conn, name, stream.checked.publications, method)
        for oid, schema, type_name in table.types:
            stream.catalog.type_named(oid, schema, type_name)
        stream.catalog.batch_received()
        return RowFormat(table, stream.format, lenient=stream.checked.lenient_text)

    def _note_definition(self, place: int, table: ChunkTable) -> None:
        """Note the key of the cursor, what the rows contain, and how many the table has.

        With another key, a column more or another row filter, the rows that were read are not enough: the table is read
        from the start.

        Raises:
            Restarted: it is.
        """
        self._snapshots.wait(self._run, for_all=True)
        described = tuple(map(str, table.key))
        before = self._snapshots.table(self._id, place)
        is_other = before.key not in ((), described) or (before.sent and not set(table.sent) <= set(before.sent))
        begins = is_other or not table.key

        def noted(one: SnapshotState) -> SnapshotState:
            before = one.tables[place].from_start() if begins else one.tables[place]
            is_part = one.request.where is not None or table.row_filter is not None
            estimate = None if is_part else before.estimated_rows or table.estimated_rows
            return one.with_table(place, replace(before, key=described, estimated_rows=estimate, sent=table.sent))

        self._changed(noted)
        if is_other:
            self._snapshots.give_up(self._run)
            raise Restarted

    def _wait_for_turn(self) -> None:
        """Wait as long as the rate demands, and while a standby is far behind."""
        if (left := self._pace.left_seconds) > 0:
            self._snapshots.pause(self._run, left)
        if time.monotonic() - self._lag_checked_at < _LAG_CHECK_SECONDS:
            return
        while (name := self._stream.standbys.waits_for(standby_lag.ls(self._primary))) is not None:
            self._wait_report.waits(
                f"the standby {name}, which is over {format_duration(pacing.MOST_LAG_SECONDS)} behind"
            )
            self._snapshots.pause(self._run, _LAG_CHECK_SECONDS)
        self._lag_checked_at = time.monotonic()
        self._wait_report.ends()

    def _save_wait(self, text: str | None) -> None:
        self._changed(lambda one: replace(one, waits_for=text))

    def _save(self) -> None:
        now = time.monotonic()
        if now - self._saved_at >= _SAVE_SECONDS:
            self._saved_at = now
            self._changed(lambda one: one)


def _in_order(table: ChunkTable, keys: Sequence[Cursor]) -> list[Cursor]:
    """Return keys in the order of the index; the stream has them in the order of the table's columns."""
    places = [sorted(table.key_numbers).index(number) for number in table.key_numbers]
    return [tuple(key[place] for place in places) for key in keys]
