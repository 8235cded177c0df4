"""Snapshots into a running stream: what takes place in the thread of the stream.

The stream's own messages bring signals (``requests``) and the markers of chunks. While a snapshot runs, the changes of
its tables are recorded. At a marker the recorded changes are applied to the chunk's rows (``recorded_changes``), and
what is left is written in the marker's place, with the identity of its transaction. ``chunk_reader`` reads the chunks
in a thread of its own.

A run of the reader begins with each connection of the stream, and whenever the chunks in progress become useless. It
has a random name, which is in its markers: a marker of another run is ignored, and its chunk is read again.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from json.encoder import encode_basestring as quote
from typing import Final

from rdsrepl.errors import Error, SinkFailed
from rdsrepl.lsn import Lsn
from rdsrepl.postgres.table_structures import TableName
from rdsrepl.snapshot import requests, transitions
from rdsrepl.snapshot.chunk_rows import ChunkRows
from rdsrepl.snapshot.chunks import ChunkTable, Cursor
from rdsrepl.snapshot.recorded_changes import ColumnsChanged, Key, RecordedChanges
from rdsrepl.snapshot.recording import RecordingWriter, server_text
from rdsrepl.snapshot.requests import Control, Request
from rdsrepl.snapshot.state import SnapshotState, Status, Store, TableState, without_old
from rdsrepl.snapshot.visibility import ServerSnapshot
from rdsrepl.state import json_lines
from rdsrepl.tail.formats.base import RowWriter, key_numbers
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.formats.values import Dialect
from rdsrepl.tail.model import InPlace, Relation, Transaction
from rdsrepl.tail.timelines import Timelines

#: the prefix of a chunk's marker.
MARKER_PREFIX: Final = "rdsrepl.snapshot"
# Recorded changes may occupy so many bytes before the chunks in progress are discarded.
_MOST_RECORDED_BYTES: Final = 64 << 20
# Chunks that are read or written and not yet in the output: so many, or one that is larger.
_MOST_CHUNKS: Final = 8
_MOST_CHUNK_BYTES: Final = 2 << 20
# How many signals that change nothing are reported: every role can send them.
_MOST_NOTES: Final = 100
# Keys to read again that the state of a table has before the table is read from the start.
_MOST_READ_AGAIN: Final = 5_000
# Delivered chunks that a failover may undo.
_MOST_DELIVERED: Final = 1_000

_NOTHING: Final[frozenset[TableName]] = frozenset()
# A failed snapshot that is resumed reads its unfinished tables from the start.
_UNFINISHED: Final = (Status.running, Status.paused)
_NO_ROWS: Final = InPlace()


class Restarted(Exception):
    """The run of the reader has ended: begin again from the state."""


@dataclass(slots=True)
class Chunk:
    """Rows that wait for their marker.

    Attributes:
        snapshot_id, place: whose chunk it is: the snapshot, and the table's place in it.
        number: of the chunk in the run.
        rows: what was read.
        seen: what the rows contain: the server's snapshot; on a replica a position up to which it had replayed.
        cursor: the last key; None for a chunk by keys, or without rows.
        size: of the rows in bytes, as the server sent them.
        keys: of a chunk by keys.
        is_last: whether no row comes after them.
    """

    snapshot_id: str
    place: int
    number: int
    rows: ChunkRows
    seen: ServerSnapshot | Lsn
    cursor: Cursor | None
    size: int
    keys: tuple[Cursor, ...]
    is_last: bool

    @property
    def table(self) -> ChunkTable:
        """The table as it was when the rows were read."""
        return self.rows.format.table


@dataclass(frozen=True, slots=True)
class _Written:
    """A chunk that the stream has, and the output not yet."""

    timeline: int
    commit_lsn: int
    snapshot_id: str
    place: int
    rows: int
    size: int
    conflicts: int
    cursor: Cursor | None
    done_keys: frozenset[Cursor]
    is_last: bool


@dataclass(frozen=True, slots=True)
class _Delivered:
    """How far a table was before a chunk that the output has."""

    timeline: int
    commit_lsn: int
    snapshot_id: str
    place: int
    before: TableState


class IncrementalSnapshots:
    """The snapshots of one slot; the stream's thread and the reader's thread share it.

    Methods of the stream's thread are those of ``tail.model.StreamHook``; the others are the reader's.
    """

    def __init__(
        self,
        slot_name: str,
        store: Store,
        catalog: Catalog,
        dialect: Dialect,
        note: Callable[[str], None],
        *,
        allows_conditions: bool,
        is_plain: bool,
        needs_state: bool,
    ) -> None:
        """Prepare; the state is loaded when the stream has connected, so that another process may have it until then.

        Args:
            slot_name: the slot.
            store: keeps the state.
            catalog: looks up primary keys, for the stream's thread.
            dialect: of the format.
            note: takes notes for people.
            allows_conditions: whether the SQL condition of a request is run.
            is_plain: whether the format writes values as the server does.
            needs_state: whether a state that cannot be written ends the stream; otherwise it ends only snapshots.
        """
        self._slot_name = slot_name
        self._store = store
        self._catalog = catalog
        self._dialect: Dialect = dialect
        self._note = note
        self._allows_conditions = allows_conditions
        self._is_plain = is_plain
        self._changed = threading.Condition()
        self._saving = threading.Lock()
        self._needs_state = needs_state
        self._snapshots: tuple[SnapshotState, ...] = ()
        self._is_loaded = self._must_save = self._is_stopped = False
        #: why there is no state; signals are ignored.
        self._unavailable: str | None = None
        self._run: str | None = None
        self._timelines = Timelines(0)
        # Which tables are to be recorded, which are, and whether the stream is decoding.
        self._wanted = self._recorded = _NOTHING
        # The tables whose moved rows are noted, and the state from which that was computed.
        self._watched = self._unfinished = _NOTHING
        self._watched_of: tuple[SnapshotState, ...] = ()
        self._is_decoding = False
        self._changes = RecordedChanges()
        self._tx: Transaction | None = None
        self._records_tx = True
        self._waiting: dict[int, Chunk] = {}
        self._oldest: Chunk | None = None
        self._error: Error | None = None
        self._written: deque[_Written] = deque()
        self._delivered: deque[_Delivered] = deque(maxlen=_MOST_DELIVERED)
        self._all_written: set[TableName] = set()
        self._flushed_lsn = 0
        self._noted: set[str] = set()
        #: how many times the recorded changes had to be discarded in a row; chunks are smaller after each.
        self.overflows = 0

    # The stream's thread.

    def batch_begins(self) -> bool:
        """Begin or end to record tables; see ``StreamHook``."""
        with self._changed:
            self._is_decoding = True
            watched = self._unfinished_tables()
            if self._wanted is self._recorded and watched == self._watched:
                return False
            self._recorded, self._watched = self._wanted, watched
        return True

    def _unfinished_tables(self) -> frozenset[TableName]:
        """Return the tables that are read in part: a row may move to the part that was read, also during a pause."""
        if self._watched_of is not self._snapshots:
            self._watched_of = self._snapshots
            self._unfinished = frozenset(
                name
                for one in self._snapshots
                if one.status in _UNFINISHED
                for name, table in zip(one.request.table_names, one.tables, strict=True)
                if not table.is_done
            )
        return self._unfinished

    def batch_ends(self) -> None:
        """Save signals and moved keys, and discard what was recorded if it is too much; see ``StreamHook``."""
        if self._changes.size > _MOST_RECORDED_BYTES:
            self._limit_recorded()
        with self._changed:
            self._is_decoding = False
            self._changed.notify_all()
            if self._error is not None:
                raise self._error
        if self._must_save:
            self._save()

    def writer(self, relation: Relation, writer: RowWriter) -> RowWriter:
        """Wrap the writer of a table that is recorded; see ``StreamHook``."""
        name = relation.schema, relation.table
        if name not in self._recorded and name not in self._watched:
            return writer
        key = key_numbers(relation, self._catalog)
        is_needed = self._is_needed if name in self._recorded else _never
        return RecordingWriter(writer, relation, key, self._changes, is_needed, self._moved)

    def truncate(self, relation: Relation, tx: Transaction) -> None:
        """Record a TRUNCATE; see ``StreamHook``."""
        if (relation.schema, relation.table) in self._recorded and self._is_needed(tx):
            self._changes.truncate(relation, tx)

    def message(self, prefix: str, content: bytes, lsn: str, tx: Transaction, seq: int) -> InPlace:
        """Obey a signal, or write the rows of a chunk; see ``StreamHook``."""
        if prefix == MARKER_PREFIX:
            return self._marker(content, lsn, tx, seq)
        if prefix == requests.PREFIX:
            self._signal(content)
        return _NO_ROWS

    def reset(self, timelines: Timelines) -> None:
        """Begin a new run: the server sends again what was not delivered; see ``StreamHook``.

        Raises:
            Error: the state cannot be loaded.
        """
        if not self._is_loaded and self._unavailable is None:
            self._load()
        with self._changed:
            self._timelines = timelines
            while self._delivered and (last := self._delivered[-1]).timeline != timelines.of_start(last.commit_lsn):
                self._undo(self._delivered.pop())
            self._undo_unknown(timelines)
            self._written.clear()
            self._flushed_lsn = 0
            self._is_decoding = False
            self._begin_run()

    def _load(self) -> None:
        try:
            self._snapshots = self._store.load()
            self._is_loaded = True
        except SinkFailed as exc:
            if self._needs_state:
                raise
            self._unavailable = exc.message

    def delivered(self, lsn: int) -> None:
        """Wake the reader if the output has a chunk; see ``StreamHook``.

        Raises:
            Error: the reader has failed.
        """
        if self._error is not None:
            raise self._error
        if self._written and self._flushed_lsn != lsn:
            with self._changed:
                self._flushed_lsn = lsn
                self._changed.notify_all()

    def _begin_run(self) -> None:
        """End the run of the reader, with what it has in progress, and begin another; the lock is held."""
        self._run = secrets.token_hex(8)
        self._waiting.clear()
        self._oldest = None
        self._changes.clear()
        self._all_written.clear()
        self._tx = None
        self._wanted = _NOTHING
        self._changed.notify_all()

    def _is_needed(self, tx: Transaction) -> bool:
        """Return whether a transaction must be recorded: no chunk's snapshot is known that sees it."""
        if tx is not self._tx:
            self._tx = tx
            oldest = self._oldest
            self._records_tx = oldest is None or not _sees(oldest.seen, tx)
        return self._records_tx

    def _limit_recorded(self) -> None:
        if (oldest := self._oldest) is not None:
            self._forget(oldest)
        if self._changes.size > _MOST_RECORDED_BYTES:
            with self._changed:
                self.overflows += 1
                self._begin_run()

    def _forget(self, chunk: Chunk) -> None:
        if isinstance(chunk.seen, Lsn):
            self._changes.forget_before(chunk.seen)
        else:
            self._changes.forget_seen(chunk.seen)

    def _moved(self, relation: Relation, old: Key, new: Key) -> None:
        """Remember that a row must be read by its new key, which may be in a part of the table that was read."""
        name = relation.schema, relation.table
        key_columns = key_numbers(relation, self._catalog)
        types = [relation.columns[number].type_oid for number in key_columns]
        keys = [server_text(key, types, self._dialect, is_plain=self._is_plain) for key in (new, old)]
        with self._changed:
            for one in self._snapshots:
                if one.status not in _UNFINISHED:
                    continue
                for place, table in enumerate(one.tables):
                    if one.request.table_names[place] != name or table.is_done:
                        continue
                    if name in self._all_written and keys[1] not in table.read_again:
                        continue
                    if name not in self._recorded and not self._has_rows(one.request.id, place, table):
                        continue  # the first chunk sees the move, because it waits until it is visible
                    if keys[0] is None or len(table.read_again) >= _MOST_READ_AGAIN:
                        self._read_from_start(one.request.id, place, table)
                    else:
                        again = (*(key for key in table.read_again if key != keys[0]), keys[0])
                        self._set_table(one.request.id, place, replace(table, read_again=again))
                        self._keep(one.request.id, place, keys[0])
                    self._must_save = True

    def _has_rows(self, snapshot_id: str, place: int, table: TableState) -> bool:
        """Return whether the output has rows of a table, or will have them."""
        of_table = (snapshot_id, place)
        return table.cursor is not None or any((one.snapshot_id, one.place) == of_table for one in self._written)

    def _read_from_start(self, snapshot_id: str, place: int, table: TableState) -> None:
        """Read a table again: the text of a moved key is not known, or there are too many."""
        self._set_table(snapshot_id, place, replace(table, cursor=None, read_again=()))
        written = [chunk for chunk in self._written if (chunk.snapshot_id, chunk.place) != (snapshot_id, place)]
        self._written = deque(written)  # a chunk that the output has later would bring the cursor back
        self._begin_run()

    def _keep(self, snapshot_id: str, place: int, key: Cursor) -> None:
        """Keep a key on the list of those to read again: the chunks that are written were read before its move."""
        for number, chunk in enumerate(self._written):
            if (chunk.snapshot_id, chunk.place) == (snapshot_id, place):
                self._written[number] = replace(chunk, done_keys=chunk.done_keys - {key})

    def _signal(self, content: bytes) -> None:
        try:
            signal = requests.parse(content)
        except requests.Malformed as exc:
            self._note_once(f"a signal for snapshots is ignored: {exc}")
            return
        if signal.slot != self._slot_name:
            return
        if self._unavailable is not None:
            self._note_once(f"signals for snapshots are ignored: {self._unavailable}; name a file with --state")
            return
        with self._changed:
            result = transitions.after(
                self._snapshots, signal, now=datetime.now(UTC), allows_conditions=self._allows_conditions
            )
            if not result.is_refused:
                self._snapshots = without_old(result.snapshots)
                self._must_save = True
                if isinstance(signal, Control):
                    self._begin_run()
                self._changed.notify_all()
        is_condition = isinstance(signal, Request) and signal.where is not None
        if result.is_refused or (is_condition and not self._allows_conditions):
            self._note_once(result.message)
        else:
            self._note(result.message)

    def _note_once(self, text: str) -> None:
        """Note what every role can cause as often as it likes: each text once, and a limited number of texts."""
        if text not in self._noted and len(self._noted) < _MOST_NOTES:
            self._noted.add(text)
            self._note(text)

    def _marker(self, content: bytes, lsn: str, tx: Transaction, seq: int) -> InPlace:
        try:
            fields = json_lines.parse(content)  # every role can write a message, nested as deep as it likes
            run, number = fields["run"], fields["chunk"]
        except (ValueError, TypeError, KeyError):
            return _NO_ROWS
        with self._changed:
            if run != self._run or not isinstance(number, int) or (chunk := self._waiting.pop(number, None)) is None:
                return _NO_ROWS
            self._oldest = next(iter(self._waiting.values()), None)
        self._forget(chunk)
        relation = chunk.table.relation
        marked = replace(tx, extra=f'"snapshot":{{"id":{quote(chunk.snapshot_id)},"chunk":{number}}},', _suffix="")
        try:
            in_place, applied = chunk.rows.written(self._changes, lsn, marked, seq)
        except ColumnsChanged:
            with self._changed:
                self._begin_run()
            return _NO_ROWS
        of_key = [relation.columns[place].type_oid for place in chunk.rows.format.key_numbers]
        again = {server_text(key, of_key, self._dialect, is_plain=self._is_plain) for key in applied.read_again}
        with self._changed:
            if chunk.is_last:
                self._all_written.add(chunk.table.name)
            done_keys = frozenset(chunk.keys) - again
            self._written.append(
                _Written(
                    tx.timeline,
                    int(Lsn.parse(tx.commit_lsn)),
                    chunk.snapshot_id,
                    chunk.place,
                    in_place.rows,
                    chunk.size,
                    applied.conflicts,
                    chunk.cursor,
                    done_keys,
                    chunk.is_last,
                )
            )
            self.overflows = 0
            self._changed.notify_all()
        return in_place

    def _undo(self, chunk: _Delivered) -> None:
        if not self._has(chunk.snapshot_id):
            return
        again = self._get(chunk.snapshot_id).tables[chunk.place].read_again
        keys = tuple(dict.fromkeys((*chunk.before.read_again, *again)))
        self._go_back(chunk.snapshot_id, chunk.place, replace(chunk.before, read_again=keys))

    def _undo_unknown(self, timelines: Timelines) -> None:
        """Read tables again whose last chunk this server does not have; an earlier process wrote the chunks before."""
        for one in self._snapshots:
            for place, table in enumerate(one.tables):
                if table.marker and timelines.of_start(table.marker) != table.timeline:
                    again = TableState(table.table, estimated_rows=table.estimated_rows, read_again=table.read_again)
                    self._go_back(one.request.id, place, again)

    def _go_back(self, snapshot_id: str, place: int, table: TableState) -> None:
        self._set_table(snapshot_id, place, table)
        one = self._get(snapshot_id)
        if one.status is Status.done:
            self._set(replace(one, status=Status.running, ended_at=None))
        self._must_save = True

    # The reader's thread.

    def end(self) -> None:
        """Let the reader end."""
        with self._changed:
            self._is_stopped = True
            self._run = None
            self._changed.notify_all()

    def close(self) -> None:
        """Save how far the snapshots are, and release the state; no thread uses it any more."""
        with self._changed:
            self._take_delivered()
        if self._must_save:
            self._save()
        if self._is_loaded:
            self._store.close()

    def next(self) -> tuple[str, SnapshotState] | None:
        """Wait for a snapshot to read; return the run and the snapshot, or None to end."""
        with self._changed:
            while not self._is_stopped:
                self._take_delivered()
                if self._run is not None and not self._written:
                    for one in self._snapshots:
                        if one.status in (Status.requested, Status.running):
                            return self._run, one
                self._changed.wait(1.0)
        return None

    def is_over(self, run: str) -> bool:
        """Return whether a run has ended."""
        return self._run != run

    def record(self, run: str, tables: frozenset[TableName]) -> None:
        """Wait until every change of some tables, and of no other one, is recorded that is decoded from now on.

        Raises:
            Restarted: the run has ended.
        """
        with self._changed:
            self._require(run)
            self._wanted = tables
            self._all_written.clear()
            while self._is_decoding and self._recorded is not tables:
                self._changed.wait(1.0)
                self._require(run)

    def give_up(self, run: str) -> None:
        """End a run whose reader failed: its markers may still come, and nothing of its chunks can be used."""
        with self._changed:
            if self._run == run:
                self._begin_run()

    def offer(self, run: str, chunk: Chunk) -> None:
        """Let a chunk wait for its marker, which is written after this.

        Raises:
            Restarted: the run has ended.
        """
        with self._changed:
            self._require(run)
            self._waiting[chunk.number] = chunk
            self._oldest = self._oldest or chunk

    def pause(self, run: str, seconds: float) -> None:
        """Wait for a time.

        Raises:
            Restarted: the run has ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._run != run, seconds)
            self._require(run)

    def wait(self, run: str, *, for_all: bool = False) -> None:
        """Wait until another chunk may be read, or until the output has all chunks.

        Raises:
            Restarted: the run has ended.
        """
        with self._changed:
            while True:
                self._require(run)
                self._take_delivered()
                sizes = [chunk.size for chunk in self._waiting.values()] + [chunk.size for chunk in self._written]
                is_little = len(sizes) < _MOST_CHUNKS and sum(sizes) < _MOST_CHUNK_BYTES
                if not sizes or (not for_all and is_little):
                    return
                self._changed.wait(1.0)

    def table(self, snapshot_id: str, place: int) -> TableState:
        """Return how far a table is."""
        with self._changed:
            return self._get(snapshot_id).tables[place]

    def update(self, run: str, snapshot_id: str, change: Callable[[SnapshotState], SnapshotState]) -> SnapshotState:
        """Change and save a snapshot's state.

        Raises:
            Restarted: the run has ended.
        """
        with self._changed:
            self._require(run)
            changed = change(self._get(snapshot_id))
            self._set(changed)
        self._save()
        return changed

    def save(self) -> None:
        """Save how far the snapshots are.

        Raises:
            Error: it could not be saved.
        """
        if self._must_save:
            self._save()

    def fail(self, error: Error) -> None:
        """End the stream with an error."""
        with self._changed:
            self._error = error
            self._run = None

    def _require(self, run: str) -> None:
        if self._run != run:
            raise Restarted

    def _take_delivered(self) -> None:
        """Move the state behind the chunks that the output has. The lock is held."""
        while self._written and self._written[0].commit_lsn < self._flushed_lsn:
            chunk = self._written.popleft()
            if not self._has(chunk.snapshot_id):
                continue
            before = self._get(chunk.snapshot_id).tables[chunk.place]
            self._delivered.append(_Delivered(chunk.timeline, chunk.commit_lsn, chunk.snapshot_id, chunk.place, before))
            after = replace(
                before,
                cursor=chunk.cursor or before.cursor,
                rows=before.rows + chunk.rows,
                chunks=before.chunks + 1,
                conflicts=before.conflicts + chunk.conflicts,
                read_again=tuple(key for key in before.read_again if key not in chunk.done_keys),
                timeline=chunk.timeline,
                marker=chunk.commit_lsn,
            )
            self._set_table(chunk.snapshot_id, chunk.place, after)
            self._must_save = True

    def _has(self, snapshot_id: str) -> bool:
        """Return whether a snapshot is known; one that ended long ago is not."""
        return any(one.request.id == snapshot_id for one in self._snapshots)

    def _get(self, snapshot_id: str) -> SnapshotState:
        for one in self._snapshots:
            if one.request.id == snapshot_id:
                return one
        raise Restarted

    def _set(self, changed: SnapshotState) -> None:
        self._snapshots = tuple(changed if one.request.id == changed.request.id else one for one in self._snapshots)

    def _set_table(self, snapshot_id: str, place: int, table: TableState) -> None:
        one = self._get(snapshot_id)
        self._set(replace(one, tables=(*one.tables[:place], table, *one.tables[place + 1 :])))

    def _save(self) -> None:
        with self._saving:
            with self._changed:
                snapshots, self._must_save = self._snapshots, False
            try:
                self._store.save(snapshots)
            except BaseException:
                self._must_save = True
                raise


def _never(tx: Transaction) -> bool:  # noqa: ARG001
    return False


def _sees(seen: ServerSnapshot | Lsn, tx: Transaction) -> bool:
    if isinstance(seen, Lsn):
        return Lsn.parse(tx.commit_lsn) < seen
    return tx.xid is not None and seen.sees(tx.xid)
