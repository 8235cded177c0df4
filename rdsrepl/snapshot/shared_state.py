"""What the thread of the stream and the thread that reads chunks share: the state of the snapshots, and the chunks.

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
from typing import Final

from rdsrepl.errors import Error, SinkFailed
from rdsrepl.lsn import Lsn
from rdsrepl.postgres.table_structures import TableName
from rdsrepl.snapshot import transitions
from rdsrepl.snapshot.chunk_table import Cursor
from rdsrepl.snapshot.held_changes import HeldChanges
from rdsrepl.snapshot.marked_rows import Chunk, TableBlock
from rdsrepl.snapshot.requests import Control, Method, Signal
from rdsrepl.snapshot.state import SnapshotState, Status, Store, TableState, without_old
from rdsrepl.snapshot.transitions import Allowed, Transition
from rdsrepl.tail.model import Transaction
from rdsrepl.tail.timelines import Timelines

# Chunks that are read or written and not yet in the output: so many, or one that is larger.
_MOST_CHUNKS: Final = 8
_MOST_CHUNK_BYTES: Final = 2 << 20
# Keys to read again that the state of a table has before the table is read from the start.
_MOST_READ_AGAIN: Final = 5_000
# Delivered chunks that a failover may undo.
_MOST_DELIVERED: Final = 1_000

# A failed snapshot that is resumed reads its unfinished tables from the start.
_UNFINISHED: Final = (Status.running, Status.paused)


class Restarted(Exception):
    """The run of the reader has ended: begin again from the state."""


@dataclass(frozen=True, slots=True)
class _Written:
    """A chunk or block that the stream has, and the output not yet; ``begins`` the rows of its table."""

    timeline: int
    commit_lsn: int
    snapshot_id: str
    place: int
    rows: int
    size: int
    conflicts: int
    cursor: Cursor | None
    done_keys: frozenset[Cursor]
    begins: bool


@dataclass(frozen=True, slots=True)
class _Delivered:
    """How far a table was before a chunk that the output has."""

    timeline: int
    commit_lsn: int
    snapshot_id: str
    place: int
    before: TableState


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """What the thread of the stream records.

    Attributes:
        run: for which run of the reader; another run needs nothing of what was recorded before.
        tables: whose changes, to apply them to chunks.
        held: the changes of the table without a key that is copied; None without one.
    """

    run: str
    tables: frozenset[TableName] = frozenset()
    held: HeldChanges | None = None


class SharedState:
    """The snapshots of one slot, and the chunks between the reader and the stream."""

    def __init__(self, store: Store, *, needs_state: bool) -> None:
        """Prepare; the state is loaded when the stream has connected, so that another process may have it until then.

        Args:
            store: keeps the state.
            needs_state: whether a state that cannot be written ends the stream; otherwise it ends only snapshots.
        """
        self._store = store
        self._needs_state = needs_state
        self._changed = threading.Condition()
        self._saving = threading.Lock()
        self._snapshots: tuple[SnapshotState, ...] = ()
        self._is_loaded = self._is_stopped = False
        # How many changes of the state must be saved before they are confirmed (signals, moved keys), how many are, and
        # whether a cursor has moved: an older one costs only repeats.
        self._required = self._saved = 0
        self._has_progress = False
        #: why there is no state; signals are ignored.
        self.unavailable: str | None = None
        self._run: str | None = None
        # What is to be recorded, what is, and whether the stream is decoding.
        self._wanted = self._recorded = Recording("")
        self._is_decoding = False
        # The tables that are read in part, and the state from which that was computed.
        self._unfinished = frozenset[TableName]()
        self._unfinished_of: tuple[SnapshotState, ...] = ()
        self._waiting: dict[int, Chunk | TableBlock] = {}
        #: the first of the chunks that wait for their markers.
        self.oldest: Chunk | None = None
        self._error: Error | None = None
        self._written: deque[_Written] = deque()
        self._delivered: deque[_Delivered] = deque(maxlen=_MOST_DELIVERED)
        self._all_written: set[TableName] = set()
        self._flushed_lsn = 0
        #: how many times the recorded changes had to be discarded in a row; chunks are smaller after each.
        self.overflows = 0

    # The stream's thread.

    def connected(self, timelines: Timelines) -> dict[TableName, int]:
        """Begin a new run: the server sends again what was not delivered.

        Returns:
            The tables without a key that the output has, and the position of the last marker of each: the output has
            the changes before it, some of them under the identity of a marker.

        Raises:
            Error: the state cannot be loaded.
        """
        if not self._is_loaded and self.unavailable is None:
            self._load()
        with self._changed:
            while self._delivered and (last := self._delivered[-1]).timeline != timelines.of_start(last.commit_lsn):
                self._undo(self._delivered.pop())
            self._undo_unknown(timelines)
            self._written.clear()
            self._flushed_lsn = 0
            self._is_decoding = False
            self.begin_run()
            written = [
                (table.marker, name)
                for one in self._snapshots
                for name, table in zip(one.request.table_names, one.tables, strict=True)
                if table.is_done and table.method is Method.slot
            ]
            return {name: marker for marker, name in sorted(written)}

    def _load(self) -> None:
        try:
            self._snapshots = self._store.load()
            self._is_loaded = True
        except SinkFailed as exc:
            if self._needs_state:
                raise
            self.unavailable = exc.message

    def batch_begins(self) -> tuple[Recording, frozenset[TableName]]:
        """Return what to record from here on, and the tables that are read in part."""
        with self._changed:
            self._is_decoding = True
            self._recorded = self._wanted
            return self._recorded, self._unfinished_tables()

    def _unfinished_tables(self) -> frozenset[TableName]:
        """Return the tables that are read in part: a row may move to the part that was read, also during a pause."""
        if self._unfinished_of is not self._snapshots:
            self._unfinished_of = self._snapshots
            self._unfinished = frozenset(
                name
                for one in self._snapshots
                if one.status in _UNFINISHED
                for name, table in zip(one.request.table_names, one.tables, strict=True)
                if not table.is_done and table.method is Method.chunks
            )
        return self._unfinished

    def batch_ends(self) -> None:
        """Save what must be saved before anything that was decoded can be confirmed.

        Raises:
            Error: it could not be saved, or the reader has failed.
        """
        with self._changed:
            self._is_decoding = False
            self._changed.notify_all()
            if self._error is not None:
                raise self._error
        if self._required > self._saved:
            self._save()

    def delivered(self, lsn: int) -> None:
        """Wake the reader if the output has a chunk.

        Raises:
            Error: the reader has failed.
        """
        if self._error is not None:
            raise self._error
        if self._written and self._flushed_lsn != lsn:
            with self._changed:
                self._flushed_lsn = lsn
                self._changed.notify_all()

    def begin_run(self, *, is_overflow: bool = False) -> None:
        """End the run of the reader, with what it has in progress, and begin another one."""
        with self._changed:
            self.overflows += is_overflow
            self._run = secrets.token_hex(8)
            self._waiting.clear()
            self.oldest = None
            self._all_written.clear()
            self._wanted = Recording(self._run)
            self._changed.notify_all()

    def obey(self, signal: Signal, allowed: Allowed) -> Transition:
        """Change the snapshots as a signal says, and return what happened."""
        with self._changed:
            result = transitions.after(self._snapshots, signal, now=datetime.now(UTC), allowed=allowed)
            if not result.is_refused:
                self._snapshots = without_old(result.snapshots)
                self._required += 1
                if isinstance(signal, Control):
                    self.begin_run()
                self._changed.notify_all()
        return result

    def take(self, run: object, number: object) -> Chunk | TableBlock | None:
        """Return the chunk or block of a marker; None if it is not one of this run."""
        with self._changed:
            if run != self._run or not isinstance(number, int) or (found := self._waiting.pop(number, None)) is None:
                return None
            self.oldest = next((one for one in self._waiting.values() if isinstance(one, Chunk)), None)
            return found

    def wrote(
        self,
        chunk: Chunk | TableBlock,
        tx: Transaction,
        rows: int,
        conflicts: int,
        done_keys: frozenset[Cursor] = frozenset(),
    ) -> None:
        """Note that the stream has a chunk or block; the output will have it later.

        Args:
            chunk: the chunk or block.
            tx: the transaction of its marker.
            rows: how many were written.
            conflicts: how many rows were changed or left the chunk; behind a block, how many changes follow.
            done_keys: those of the chunk's keys that need not be read again.
        """
        with self._changed:
            if isinstance(chunk, Chunk) and chunk.is_last:
                self._all_written.add(chunk.table.name)
            self._written.append(
                _Written(
                    tx.timeline,
                    int(Lsn.parse(tx.commit_lsn)),
                    chunk.snapshot_id,
                    chunk.place,
                    rows,
                    chunk.size,
                    conflicts,
                    chunk.cursor if isinstance(chunk, Chunk) else None,
                    done_keys,
                    isinstance(chunk, TableBlock) and chunk.is_first,
                )
            )
            self.overflows = 0
            self._changed.notify_all()

    def moved(self, name: TableName, old: Cursor | None, new: Cursor | None) -> None:
        """Remember that a row must be read by its new key, which may be in a part of the table that was read.

        Args:
            name: the table.
            old: the server's text of its key before; None if that is not known.
            new: that of its key now.
        """
        with self._changed:
            for one in self._snapshots:
                if one.status not in _UNFINISHED:
                    continue
                for place, table in enumerate(one.tables):
                    if one.request.table_names[place] != name or table.is_done:
                        continue
                    if name in self._all_written and old not in table.read_again:
                        continue
                    if name not in self._recorded.tables and not self._has_rows(one.request.id, place, table):
                        continue  # the first chunk sees the move, because it waits until it is visible
                    if new is None or len(table.read_again) >= _MOST_READ_AGAIN:
                        self._read_from_start(one.request.id, place, table)
                    else:
                        again = (*(key for key in table.read_again if key != new), new)
                        self._set_table(one.request.id, place, replace(table, read_again=again))
                        self._keep(one.request.id, place, new)
                    self._required += 1

    def _has_rows(self, snapshot_id: str, place: int, table: TableState) -> bool:
        """Return whether the output has rows of a table, or will have them."""
        of_table = (snapshot_id, place)
        return table.cursor is not None or any((one.snapshot_id, one.place) == of_table for one in self._written)

    def _read_from_start(self, snapshot_id: str, place: int, table: TableState) -> None:
        """Read a table again: the text of a moved key is not known, or there are too many."""
        self._set_table(snapshot_id, place, table.from_start())
        written = [chunk for chunk in self._written if (chunk.snapshot_id, chunk.place) != (snapshot_id, place)]
        self._written = deque(written)  # a chunk that the output has later would bring the cursor back
        self.begin_run()

    def _keep(self, snapshot_id: str, place: int, key: Cursor) -> None:
        """Keep a key on the list of those to read again: the chunks that are written were read before its move."""
        for number, chunk in enumerate(self._written):
            if (chunk.snapshot_id, chunk.place) == (snapshot_id, place):
                self._written[number] = replace(chunk, done_keys=chunk.done_keys - {key})

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
                    again = replace(table.from_start(), read_again=table.read_again, key=(), marker=0)
                    self._go_back(one.request.id, place, again)

    def _go_back(self, snapshot_id: str, place: int, table: TableState) -> None:
        self._set_table(snapshot_id, place, table)
        one = self._get(snapshot_id)
        if one.status is Status.done:
            self._set(replace(one, status=Status.running, ended_at=None))
        self._required += 1

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
        self.save()
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

    def record(self, run: str, tables: frozenset[TableName], held: HeldChanges | None = None) -> None:
        """Wait until every change of some tables, and of no other one, is recorded that is decoded from now on.

        Args:
            run: the run.
            tables: those that are read in chunks.
            held: what keeps the changes of the table without a key that is copied.

        Raises:
            Restarted: the run has ended.
        """
        with self._changed:
            self._require(run)
            self._wanted = wanted = Recording(run, tables, held)
            self._all_written.clear()
            while self._is_decoding and self._recorded is not wanted:
                self._changed.wait(1.0)
                self._require(run)

    def give_up(self, run: str) -> None:
        """End a run whose reader failed: its markers may still come, and nothing of its chunks can be used."""
        with self._changed:
            if self._run == run:
                self.begin_run()

    def offer(self, run: str, chunk: Chunk | TableBlock) -> None:
        """Let a chunk or block wait for its marker, which is written after this.

        Raises:
            Restarted: the run has ended.
        """
        with self._changed:
            self._require(run)
            self._waiting[chunk.number] = chunk
            if isinstance(chunk, Chunk):
                self.oldest = self.oldest or chunk

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
        if self._required > self._saved or self._has_progress:
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
            if chunk.begins:
                before = replace(before, rows=0, chunks=0, conflicts=0)
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
            self._has_progress = True

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
        self._set(self._get(snapshot_id).with_table(place, table))

    def _save(self) -> None:
        with self._saving:
            with self._changed:
                snapshots, required = self._snapshots, self._required
                self._has_progress = False
            try:
                self._store.save(snapshots)
            except BaseException:
                self._has_progress = True
                raise
            self._saved = required
