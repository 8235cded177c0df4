"""Read the chunks of incremental snapshots and write their markers, in a thread beside the stream.

Two connections: one reads rows, on the primary or on a replica of it; the other one writes the markers, always on the
primary. A chunk waits for the one before the last, so that a slow output slows the snapshot and not the stream.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import (
    BadState,
    Denied,
    Error,
    InUse,
    MalformedMessage,
    NotFound,
    NotPrimary,
    Refused,
    SinkFailed,
    TimedOut,
    Unreachable,
)
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import commit_visibility, connection, server_identity, standby_lag
from rdsrepl.postgres.error_mapping import translating
from rdsrepl.snapshot import chunks, table_copy
from rdsrepl.snapshot.chunk_rows import ChunkRows, RowFormat
from rdsrepl.snapshot.chunks import Altered, ChunkTable, Cursor, Stopped
from rdsrepl.snapshot.incremental import MARKER_PREFIX
from rdsrepl.snapshot.requests import Method, Request, table_text
from rdsrepl.snapshot.shared_state import Chunk, Restarted, SharedState, TableBlock
from rdsrepl.snapshot.state import SnapshotState, Status, TableState
from rdsrepl.snapshot.table_copy import CopiedRows
from rdsrepl.snapshot.visibility import ServerSnapshot
from rdsrepl.snapshot.waiting import WaitReport
from rdsrepl.tail.formats.base import Format
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.xlogdata import MALFORMED
from rdsrepl.text.counts import form

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.tail.preflight import PreflightResult

_CURRENT_SNAPSHOT: Final = "SELECT pg_catalog.pg_current_snapshot()::text"
_REPLAYED: Final = "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_last_wal_replay_lsn()"
# Only flushed WAL is decoded and sent to standbys. The insert position can be behind the header of a page that has no
# record yet, which no standby reaches.
_FLUSHED: Final = "SELECT pg_catalog.pg_current_wal_flush_lsn()"
_MARKER: Final = "SELECT pg_catalog.pg_logical_emit_message(true, %s, %s)"
# The marker needs no standby: what it names is read again if it is lost.
_PRIMARY_SETTINGS: Final = {"synchronous_commit": "local", "default_transaction_read_only": "off"}
# A chunk is written into the stream at once: the changes behind it wait so long.
_WANTED_BYTES: Final = 512 << 10
_MOST_BYTES: Final = 4 << 20
_FEWEST_ROWS: Final = 100
_FEWEST_AFTER_OVERFLOW: Final = 1
_SLOW_SECONDS: Final = 1.0
_QUICK_SECONDS: Final = 0.3
_KEYS_PER_CHUNK: Final = 500
_SAVE_SECONDS: Final = 0.5
_LAG_CHECK_SECONDS: Final = 2.0
_MOST_LAG_SECONDS: Final = 10.0
_FIRST_RETRY_SECONDS: Final = 0.5
_LONGEST_RETRY_SECONDS: Final = 30.0
_REPLAY_POLL_SECONDS: Final = 0.05


class ChunkReader:
    """The thread that reads chunks."""

    def __init__(
        self,
        snapshots: SharedState,
        target: Target,
        checked: PreflightResult,
        make_format: Callable[[Catalog], Format],
        wants: Callable[[str, str], bool],
        replica: Callable[[str], Target],
        note: Callable[[str], None],
        *,
        keeps_table_order: bool,
    ) -> None:
        """Prepare the thread.

        Args:
            snapshots: what to read.
            target: the primary.
            checked: the result of the preflight check of the stream.
            make_format: returns the format for rows of a snapshot.
            wants: whether the stream has a table.
            replica: returns the server that a request names.
            note: takes notes for people.
            keeps_table_order: whether the output keeps the order of a table's changes, also without a key.
        """
        self._keeps_table_order = keeps_table_order
        self._snapshots = snapshots
        self._target = target
        self._checked = checked
        self._wants = wants
        self._replica = replica
        self._note = note
        self._catalog = Catalog(target, note)
        self._format = make_format(self._catalog)
        self._settings = {**self._format.settings, **chunks.SETTINGS}
        if checked.lenient_text:
            self._settings["client_encoding"] = "SQL_ASCII"
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="snapshot", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._snapshots.end()
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        self._catalog.close()

    def _work(self) -> None:
        delay = _FIRST_RETRY_SECONDS
        while (found := self._snapshots.next()) is not None:
            run, state = found
            try:
                _Session(self, run, state.request.id).read()
                delay = _FIRST_RETRY_SECONDS
                continue
            except (Restarted, Stopped):
                continue
            except (InUse, BadState, SinkFailed) as exc:
                self._snapshots.fail(exc)
                return
            except Error as exc:
                if not is_transient(exc):
                    self._fail(run, state.request.id, exc)
                    continue
                self._note(f"snapshot {state.request.id}: {exc.message}; trying again")
                self._snapshots.give_up(run)
            except Exception as exc:  # the stream must not go on as if the snapshot did
                self._snapshots.fail(Error(f"the reader of snapshot {state.request.id} failed: {exc!r}"))
                raise
            self._ended.wait(delay)
            delay = min(2 * delay, _LONGEST_RETRY_SECONDS)

    def _fail(self, run: str, snapshot_id: str, exc: Error) -> None:
        reason = exc.message if exc.hint is None else f"{exc.message}; {exc.hint}"
        self._note(f"snapshot {snapshot_id} failed: {reason}")
        with suppress(Restarted):
            self._snapshots.update(
                run,
                snapshot_id,
                lambda one: replace(one, status=Status.failed, reason=reason, ended_at=datetime.now(UTC)),
            )
        self._snapshots.give_up(run)


class _Session:
    """Reads one snapshot in one run."""

    def __init__(self, reader: ChunkReader, run: str, snapshot_id: str) -> None:
        self._reader = reader
        self._snapshots = reader._snapshots
        self._run = run
        self._id = snapshot_id
        self._number = 0
        self._limit = self._fitting = 0
        self._formats: dict[tuple[str, str], RowFormat] = {}
        self._due = time.monotonic()
        self._saved_at = self._counted_at = self._lag_checked_at = time.monotonic()
        self._wait_report = WaitReport(lambda text: reader._note(f"snapshot {snapshot_id} {text}"), self._save_wait)

    def _is_over(self) -> bool:
        return self._snapshots.is_over(self._run)

    def read(self) -> None:
        """Read every table that is not done.

        Raises:
            Restarted, Stopped: the run has ended.
            Error: a table cannot be read, or a connection was lost.
        """
        reader = self._reader
        if reader._checked.in_recovery:
            raise Refused("the stream comes from a standby, which cannot write the markers of chunks")
        with (
            closing(connection.connect(reader._target, settings=_PRIMARY_SETTINGS)) as primary,
            translating(),
        ):
            self._primary = primary
            state = self._begun()
            with closing(self._connect_rows(state.request.read_from)) as rows:
                self._rows = rows
                self._require_condition(state)
                self._limit = self._most(state)
                left = [place for place, table in enumerate(state.tables) if not table.is_done]
                if by_key := [place for place in left if state.tables[place].method is Method.chunks]:
                    names = frozenset(state.request.table_names[place] for place in by_key)
                    self._snapshots.record(self._run, names)
                    self._wait_until_visible(state)
                    for place in by_key:
                        self._read_table(state, place)
                # After the others: nothing else is recorded while a table is copied, which takes long.
                for place in left:
                    if place not in by_key:
                        self._copy_table(state, place)
        self._snapshots.record(self._run, frozenset())
        done = self._changed(lambda one: replace(one, status=Status.done, ended_at=datetime.now(UTC)))
        rows_read = sum(table.rows for table in done.tables)
        reader._note(f"snapshot {self._id} is complete: {rows_read:,} {form(rows_read, 'row', 'rows')}")

    def _changed(self, change: Callable[[SnapshotState], SnapshotState]) -> SnapshotState:
        """Change the state, and count how long the snapshot ran."""
        now = time.monotonic()
        seconds, self._counted_at = now - self._counted_at, now
        return self._snapshots.update(
            self._run, self._id, lambda one: change(replace(one, running_seconds=one.running_seconds + seconds))
        )

    def _begun(self) -> SnapshotState:
        """Name the tables that are read, and set the state to running."""
        reader = self._reader

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
        names = chunks.expanded(self._primary, one.request.table_names, reader._checked.publications)
        methods = {}
        for name in names:
            if not reader._wants(*name):
                raise Refused(f"table {table_text(*name)} is not in the stream: --table of slot tail leaves it out")
            table = chunks.describe(self._primary, name, reader._checked.publications, one.request.method)
            methods[table_text(*name)] = Method.chunks if table.key else Method.slot
        if Method.slot in methods.values():
            self._require_whole(one.request)
        return self._changed(begun)

    def _require_whole(self, request: Request) -> None:
        """Make sure that a table without a key can be written whole.

        Raises:
            Refused: it cannot.
        """
        if request.read_from is not None:
            raise Refused("a table without a key is read in the snapshot of a slot, which a replica does not have")
        if not self._reader._keeps_table_order:
            raise Refused(
                "the TRUNCATE and the rows of a table without a key would be in different shards",
                hint="slot tail --partition-by key or table",
            )

    def _connect_rows(self, read_from: str | None) -> Connection:
        import psycopg

        reader = self._reader
        target = reader._target if read_from is None else reader._replica(read_from)
        conn = connection.connect(target, settings=reader._settings)
        try:
            if connection.is_pooled(conn):
                raise Refused(
                    "a snapshot does not read through a connection pooler", hint="connect to the server itself"
                )
            if read_from is not None:
                self._require_replica(conn, read_from)
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            conn.read_only = True
        except BaseException:
            conn.close()
            raise
        return conn

    def _require_replica(self, conn: Connection, read_from: str) -> None:
        """Make sure that a server is a standby of the primary.

        Raises:
            Refused: it is not.
        """
        ours, theirs = (server_identity.system_identifier(one) for one in (self._primary, conn))
        row = conn.execute(_REPLAYED).fetchone()
        assert row is not None
        if not row[0]:
            raise Refused(f"--read-from {read_from} is not a standby", hint="name a read replica, or omit --read-from")
        if ours is None or ours != theirs:
            raise Refused(f"--read-from {read_from} is not a replica of this server")

    def _require_condition(self, state: SnapshotState) -> None:
        """Make sure that the condition of a request is one condition on each table.

        Raises:
            Refused: it is not.
        """
        where = state.request.where
        if where is None:
            return
        from psycopg import pq
        from psycopg.errors import error_from_result

        for name in state.request.table_names:
            table = chunks.describe(self._rows, name, self._reader._checked.publications, state.request.method)
            with self._rows.transaction(force_rollback=True):
                self._rows.execute("SELECT 1")
                # Sent alone: the server refuses a second statement behind it.
                for check in chunks.condition_checks(table, where):
                    result = self._rows.pgconn.exec_params(check.as_bytes(self._rows), None)
                    if result.status != pq.ExecStatus.TUPLES_OK:
                        reason = str(error_from_result(result)).splitlines()[0]
                        raise Refused(f"the condition does not fit table {table_text(*name)}: {reason}")

    def _wait_until_visible(self, state: SnapshotState) -> None:
        """Wait until the rows contain every change that was decoded before recording began."""
        name = state.request.read_from
        if name is None:
            commit_visibility.wait_until_visible(
                self._primary, self._is_over, lambda blocked: self._wait_report.waits(blocked.what, blocked.remedy)
            )
        else:
            row = self._primary.execute(_FLUSHED).fetchone()
            assert row is not None
            while not self._is_over() and self._replayed() < row[0]:
                self._wait_report.waits(f"the replica {name} to replay {row[0]}")
                time.sleep(_REPLAY_POLL_SECONDS)
        self._wait_report.ends()

    def _replayed(self) -> Lsn:
        row = self._rows.execute(_REPLAYED).fetchone()
        assert row is not None
        in_recovery, lsn = row
        if not in_recovery:
            raise NotPrimary("the replica was promoted", hint="start the snapshot again, from another replica")
        if lsn is None:
            raise Refused(
                "the replica does not report what it has replayed (pg_last_wal_replay_lsn() is null)",
                hint="start the snapshot again, without --read-from",
            )
        return Lsn(lsn)

    def _read_table(self, state: SnapshotState, place: int) -> None:
        name = state.request.table_names[place]
        cursor = self._snapshots.table(self._id, place).cursor
        is_last = False
        while True:
            self._pace(state)
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
            self._adapt(state, self._send(state, chunk))
        self._done(place)

    def _send(self, state: SnapshotState, chunk: Chunk | TableBlock) -> float:
        """Write the marker of a chunk or block, and wait until another one may be read; return how long it took."""
        began = time.monotonic()
        self._snapshots.offer(self._run, chunk)
        content = {"run": self._run, "id": self._id, "chunk": chunk.number}
        self._primary.execute(_MARKER, (MARKER_PREFIX, json.dumps(content)))
        rows = chunk.rows.count
        self._snapshots.wait(self._run)
        self._save()
        if state.request.rows_per_second is not None:
            self._due = max(self._due, began) + rows / state.request.rows_per_second
        return time.monotonic() - began

    def _copy_table(self, state: SnapshotState, place: int) -> None:
        """Write a table without a key: a TRUNCATE, its rows, and the changes that were kept meanwhile."""
        reader, name = self._reader, state.request.table_names[place]
        fmt = self._row_format(name, state.tables[place].method)
        self._note_key(place, fmt.table)
        found = table_copy.read(
            self._rows,
            reader._target,
            reader._checked,
            fmt.table,
            state.request.where,
            most_rows=self._most(state),
            record=lambda held: self._snapshots.record(self._run, frozenset(), held),
            is_stopped=self._is_over,
        )
        try:
            for copied in found:
                self._pace(state)
                self._send_block(state, place, fmt, copied)
        except Altered:
            raise Restarted from None
        while not copied.held.is_over:  # what changed while the rows were written
            self._send_block(state, place, fmt, replace(copied, lines=[], size=0, is_first=False))
        if copied.held.failure is not None:
            raise Refused(copied.held.failure)
        self._snapshots.wait(self._run, for_all=True)
        self._done(place)

    def _send_block(self, state: SnapshotState, place: int, fmt: RowFormat, copied: CopiedRows) -> None:
        self._number += 1
        self._reader._catalog.xid = copied.xid
        self._reader._catalog.batch_received()
        rows = self._chunk_rows(fmt, copied.lines)
        block = TableBlock(
            self._id, place, self._number, rows, copied.size, copied.held, copied.is_first, copied.is_last
        )
        self._send(state, block)

    def _done(self, place: int) -> None:
        self._changed(
            lambda one: replace(
                one,
                tables=tuple(
                    replace(table, is_done=True) if number == place else table
                    for number, table in enumerate(one.tables)
                ),
            )
        )

    def _chunk(
        self, state: SnapshotState, place: int, name: tuple[str, str], cursor: Cursor | None, keys: Sequence[Cursor]
    ) -> Chunk:
        """Read one chunk; describe the table again if it was altered."""
        while True:
            if name not in self._formats:
                self._formats[name] = self._row_format(name)
                self._note_key(place, self._formats[name].table)
            try:
                return self._read_chunk(state, place, self._formats[name], cursor, keys)
            except Altered:
                del self._formats[name]

    def _read_chunk(
        self, state: SnapshotState, place: int, fmt: RowFormat, cursor: Cursor | None, keys: Sequence[Cursor]
    ) -> Chunk:
        table, where, limit = fmt.table, state.request.where, self._limit
        statement = (
            chunks.keys_statement(table, _in_order(table, keys), where)
            if keys
            else chunks.chunk_statement(table, cursor, limit, where)
        )
        replayed = None if state.request.read_from is None else self._replayed()
        lines: list[bytes] = []
        size, is_cut = 0, False
        conn = self._rows
        with conn.transaction():
            # The lock first: TRUNCATE and some forms of ALTER TABLE change what older snapshots see.
            conn.execute(chunks.lock_statement(table))
            row = conn.execute(_CURRENT_SNAPSHOT).fetchone()
            assert row is not None
            if not chunks.is_unchanged(conn, table):
                raise Altered
            copied = chunks.copied(conn, statement, self._is_over)
            with closing(copied):
                for line in copied:
                    lines.append(line)
                    size += len(line)
                    if size > _MOST_BYTES and not keys and len(lines) < limit:
                        is_cut = True
                        break
        snapshot = ServerSnapshot.parse(row[0])
        catalog = self._reader._catalog
        catalog.xid = snapshot.xmax & 0xFFFFFFFF
        catalog.batch_received()
        rows = self._chunk_rows(fmt, lines)
        if lines:
            self._fitting = max(1, _WANTED_BYTES * len(lines) // size)
        if is_cut:
            self._limit = max(_FEWEST_AFTER_OVERFLOW, len(lines))
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
            if not self._reader._checked.lenient_text and not rows.copied.isascii():
                rows.copied.decode()
        except MALFORMED as exc:
            raise MalformedMessage(f"could not read the rows of {table_text(*fmt.table.name)}: {exc}"[:300]) from exc
        return rows

    def _row_format(self, name: tuple[str, str], method: Method = Method.chunks) -> RowFormat:
        reader = self._reader
        with self._rows.transaction():
            table = chunks.describe(self._rows, name, reader._checked.publications, method)
        for oid, schema, type_name in table.types:
            reader._catalog.type_named(oid, schema, type_name)
        reader._catalog.batch_received()
        return RowFormat(table, reader._format, lenient=reader._checked.lenient_text)

    def _note_key(self, place: int, table: ChunkTable) -> None:
        """Note which key the cursor is of, and how many rows the table has; with another key, read it from the start.

        Raises:
            Restarted: the table has another key than the cursor.
        """
        self._snapshots.wait(self._run, for_all=True)
        described = tuple(map(str, table.key))
        is_other = self._snapshots.table(self._id, place).key not in ((), described)

        def noted(one: SnapshotState) -> SnapshotState:
            before = one.tables[place]
            after = replace(before, key=described, estimated_rows=before.estimated_rows or table.estimated_rows)
            if is_other:
                after = replace(after, cursor=None, read_again=())
            return replace(one, tables=(*one.tables[:place], after, *one.tables[place + 1 :]))

        self._changed(noted)
        if is_other:
            self._snapshots.give_up(self._run)
            raise Restarted

    def _adapt(self, state: SnapshotState, seconds: float) -> None:
        """Make chunks smaller while the output is slow, and larger again when it is not."""
        most = self._most(state)
        if seconds > _SLOW_SECONDS:
            self._limit = max(min(_FEWEST_ROWS, most), self._limit // 2)
        elif seconds < _QUICK_SECONDS and self._limit < most:
            self._limit = self._limit * 2
        self._limit = min(most, self._limit, self._fitting or most)

    def _most(self, state: SnapshotState) -> int:
        """Return how many rows a chunk may have: those of a second, if there is a rate; fewer after an overflow."""
        rows = min(state.request.chunk_rows, state.request.rows_per_second or state.request.chunk_rows)
        return max(1, rows >> self._snapshots.overflows)

    def _pace(self, state: SnapshotState) -> None:
        """Wait as long as the rate demands, and while a standby is far behind."""
        if state.request.rows_per_second is not None and (left := self._due - time.monotonic()) > 0:
            self._snapshots.pause(self._run, left)
        now = time.monotonic()
        if now - self._lag_checked_at < _LAG_CHECK_SECONDS:
            return
        while (lag := standby_lag.longest(self._primary)) is not None and lag.seconds >= _MOST_LAG_SECONDS:
            self._wait_report.waits(f"standby {lag.name}, which is more than {_MOST_LAG_SECONDS:.0f} seconds behind")
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


def is_transient(exc: Error) -> bool:
    """Return whether another attempt may succeed: a lost connection, a conflict with recovery, a shortage."""
    if isinstance(exc, (NotFound, Denied)):
        return False
    if isinstance(exc, (Unreachable, NotPrimary, TimedOut)):
        return True
    state = exc.sqlstate or ""
    return state[:2] in ("40", "53", "57", "58") or state == "55P03"
