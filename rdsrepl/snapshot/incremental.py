"""Snapshots into a running stream: what takes place in the thread of the stream.

The stream's own messages bring signals (``requests``) and the markers of chunks. While a snapshot runs, the changes of
its tables are recorded. At a marker the recorded changes are applied to the chunk's rows (``recorded_changes``), and
what is left is written in the marker's place, with the identity of its transaction. ``chunk_reader`` reads the chunks
in a thread of its own; what the two threads share is in ``shared_state``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from json.encoder import encode_basestring as quote
from typing import Final

from rdsrepl.lsn import Lsn
from rdsrepl.postgres.table_structures import TableName
from rdsrepl.snapshot import requests
from rdsrepl.snapshot.held_changes import LaterWriter
from rdsrepl.snapshot.marked_rows import Chunk, TableBlock
from rdsrepl.snapshot.recorded_changes import ColumnsChanged, Key, RecordedChanges
from rdsrepl.snapshot.recording import RecordingWriter, server_text
from rdsrepl.snapshot.requests import Request
from rdsrepl.snapshot.shared_state import Recording, SharedState
from rdsrepl.snapshot.state import Store
from rdsrepl.snapshot.transitions import Allowed
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
# A marker behind the rows of a table without a key writes so much of its changes.
_MOST_RELEASED_BYTES: Final = 512 << 10
# How many signals that change nothing are reported: every role can send them.
_MOST_NOTES: Final = 100

_NO_ROWS: Final = InPlace()


class IncrementalSnapshots:
    """The snapshots of one slot; all methods are called in the stream's thread, and are those of ``StreamHook``.

    Attributes:
        shared: what the reader's thread uses as well.
    """

    def __init__(
        self,
        slot_name: str,
        store: Store,
        catalog: Catalog,
        dialect: Dialect,
        note: Callable[[str], None],
        *,
        allowed: Allowed,
        is_plain: bool,
        needs_state: bool,
    ) -> None:
        """Prepare.

        Args:
            slot_name: the slot.
            store: keeps the state.
            catalog: looks up primary keys.
            dialect: of the format.
            note: takes notes for people.
            allowed: what requests may ask for.
            is_plain: whether the format writes values as the server does.
            needs_state: whether a state that cannot be written ends the stream; otherwise it ends only snapshots.
        """
        self.shared = SharedState(store, needs_state=needs_state)
        self._slot_name = slot_name
        self._catalog = catalog
        self._dialect: Dialect = dialect
        self._note = note
        self._allowed = allowed
        self._is_plain = is_plain
        self._recording = Recording("")
        # The tables whose moved rows are noted.
        self._watched = frozenset[TableName]()
        self._changes = RecordedChanges()
        self._tx: Transaction | None = None
        self._records_tx = True
        # Tables without a key whose changes before a position the output has.
        self._written_before: dict[TableName, int] = {}
        self._is_past = False
        self._noted: set[str] = set()

    def batch_begins(self) -> bool:
        """Begin or end to record tables; see ``StreamHook``."""
        before, watched = self._recording, self._watched
        self._recording, self._watched = recording, unfinished = self.shared.batch_begins()
        if recording.run != before.run or not recording.tables:
            self._changes.clear()
            self._tx = None
        if before.held is not None and recording.held is not before.held:
            before.held.close()
        is_past, self._is_past = self._is_past, False
        return recording is not before or unfinished != watched or is_past

    def batch_ends(self) -> None:
        """Save signals and moved keys, and discard what was recorded if it is too much; see ``StreamHook``."""
        if self._changes.size > _MOST_RECORDED_BYTES:
            if (oldest := self.shared.oldest) is not None:
                self._forget(oldest)
            if self._changes.size > _MOST_RECORDED_BYTES:
                self.shared.begin_run(is_overflow=True)
        self.shared.batch_ends()

    def writer(self, relation: Relation, writer: RowWriter) -> RowWriter:
        """Wrap the writer of a table that is recorded; see ``StreamHook``."""
        name = relation.schema, relation.table
        held = self._recording.held
        if name in self._written_before:
            writer = LaterWriter(writer, lambda tx: self._is_written(name, tx))
        if held is not None and held.name == name:
            return held.writer(relation, writer)
        is_recorded = name in self._recording.tables
        if not is_recorded and name not in self._watched:
            return writer
        key = key_numbers(relation, self._catalog)
        is_needed = self._is_needed if is_recorded else _never
        return RecordingWriter(writer, relation, key, self._changes, is_needed, self._moved)

    def truncate(self, relation: Relation, cascade: bool, restart_identity: bool, tx: Transaction) -> bool:
        """Record a TRUNCATE; see ``StreamHook``."""
        name, held = (relation.schema, relation.table), self._recording.held
        if self._is_written(name, tx):
            return True
        if held is not None and held.name == name:
            return held.truncate(relation, cascade, restart_identity, tx)
        if name in self._recording.tables and self._is_needed(tx):
            self._changes.truncate(relation, tx)
        return False

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
        self._written_before = self.shared.connected(timelines)

    def delivered(self, lsn: int) -> None:
        """Wake the reader if the output has a chunk; see ``StreamHook``.

        Raises:
            Error: the reader has failed.
        """
        self.shared.delivered(lsn)

    def close(self) -> None:
        """Forget the changes that are withheld; the stream has ended."""
        if self._recording.held is not None:
            self._recording.held.close()

    def _is_written(self, name: TableName, tx: Transaction) -> bool:
        """Return whether a transaction comes again whose changes of a table the output has."""
        before = self._written_before.get(name, 0)
        if Lsn.parse(tx.commit_lsn) < before:
            return True
        if before:
            del self._written_before[name]
            self._is_past = True
        return False

    def _is_needed(self, tx: Transaction) -> bool:
        """Return whether a transaction must be recorded: no chunk's snapshot is known that sees it."""
        if tx is not self._tx:
            self._tx = tx
            oldest = self.shared.oldest
            self._records_tx = oldest is None or not _sees(oldest.seen, tx)
        return self._records_tx

    def _forget(self, chunk: Chunk) -> None:
        if isinstance(chunk.seen, Lsn):
            self._changes.forget_before(chunk.seen)
        else:
            self._changes.forget_seen(chunk.seen)

    def _moved(self, relation: Relation, old: Key, new: Key) -> None:
        """Remember that a row must be read by its new key."""
        types = [relation.columns[number].type_oid for number in key_numbers(relation, self._catalog)]
        before, after = (server_text(key, types, self._dialect, is_plain=self._is_plain) for key in (old, new))
        self.shared.moved((relation.schema, relation.table), before, after)

    def _signal(self, content: bytes) -> None:
        try:
            signal = requests.parse(content)
        except requests.Malformed as exc:
            self._note_once(f"a signal for snapshots is ignored: {exc}")
            return
        if signal.slot != self._slot_name:
            return
        if self.shared.unavailable is not None:
            self._note_once(f"signals for snapshots are ignored: {self.shared.unavailable}; name a file with --state")
            return
        result = self.shared.obey(signal, self._allowed)
        if result.is_refused or (isinstance(signal, Request) and self._allowed.reason_against(signal) is not None):
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
            chunk = self.shared.take(fields["run"], number := fields["chunk"])
        except (ValueError, TypeError, KeyError):
            return _NO_ROWS
        if chunk is None:
            return _NO_ROWS
        marked = replace(tx, extra=f'"snapshot":{{"id":{quote(chunk.snapshot_id)},"chunk":{number}}},', _suffix="")
        if isinstance(chunk, TableBlock):
            return self._block(chunk, lsn, marked, seq)
        self._forget(chunk)
        try:
            in_place, applied = chunk.rows.written(self._changes, lsn, marked, seq)
        except ColumnsChanged:
            self.shared.begin_run()
            return _NO_ROWS
        relation = chunk.table.relation
        of_key = [relation.columns[place].type_oid for place in chunk.rows.format.key_numbers]
        again = {server_text(key, of_key, self._dialect, is_plain=self._is_plain) for key in applied.read_again}
        self.shared.wrote(chunk, tx, in_place.rows, applied.conflicts, frozenset(chunk.keys) - again)
        return in_place

    def _block(self, block: TableBlock, lsn: str, tx: Transaction, seq: int) -> InPlace:
        """Write rows of a table without a key; behind the last ones the changes that were withheld."""
        held, fmt, lines, rows = block.held, block.rows.format, list[bytes](), 0
        changes = 0
        if not held.is_over:
            if block.is_first:
                held.is_withheld = True
                lines.append(fmt.truncate_line(lsn, tx, seq))
            in_place = block.rows.unchanged(lsn, tx, seq + len(lines))
            count, rows = len(lines) + in_place.rows, in_place.rows
            lines += in_place.lines
            if block.is_last:
                written = held.written(fmt.truncate, lsn, tx, seq + count, _MOST_RELEASED_BYTES)
                lines += written
                changes = len(written)
                if held.is_empty:
                    held.close()
        self.shared.wrote(block, tx, rows, changes)
        return InPlace(lines, rows + changes + (block.is_first and bool(lines)))


def _never(tx: Transaction) -> bool:  # noqa: ARG001
    return False


def _sees(seen: ServerSnapshot | Lsn, tx: Transaction) -> bool:
    if isinstance(seen, Lsn):
        return Lsn.parse(tx.commit_lsn) < seen
    return tx.xid is not None and seen.sees(tx.xid)
