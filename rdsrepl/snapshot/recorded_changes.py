"""The rule that brings the rows of a chunk to the chunk's place in the stream.

A chunk is read in a snapshot of the server and written behind a marker that was committed after it. Every change whose
transaction the snapshot does not see is either recorded here when the marker is decoded, or comes behind the marker.
The stream has already written the recorded ones, so they are applied to the chunk's rows in their order. What is left
is each row as of the marker: no row is older than what was written before it, and no value is lost.

Applying a change that the rows already contain does no harm: values are absolute, and a key that another row takes over
leaves the chunk when it is deleted, moved or inserted. That is why changes may be forgotten late, and why rows may come
from a standby, whose snapshot is only known to be at least as new as a position.

What must hold around it (``tests/workloads/snapshot_model.py`` is the whole protocol, and shows what breaks otherwise):

- Recording begins before the first chunk's snapshot, and everything committed before its beginning is visible in it. On
  a standby: its replay has reached the primary's position at that moment, and never falls below an earlier chunk's.
- Changes are recorded as long as a chunk waits for its marker, also if nothing else is left to read.
- Every moved row with a missing value is put on the list of those to read again, whether or not it must be recorded.
- A key that is put on that list stays there if a chunk that was written before names it, even if the output stores that
  chunk later.
- Snapshots that read from different servers do not share the recorded changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from rdsrepl.lsn import Lsn
from rdsrepl.snapshot.visibility import ServerSnapshot
from rdsrepl.tail.model import Relation, Transaction

#: The JSON texts of a row's key columns.
Key: TypeAlias = tuple[str, ...]
#: The JSON texts of all columns of a row; None is a value that the stream does not have (an unchanged TOAST value).
Row: TypeAlias = tuple[str | None, ...]

# The approximate memory of the objects of a change and of a transaction without their texts, in bytes.
_BYTES_OF_CHANGE: Final = 200
_BYTES_OF_TRANSACTION: Final = 300


def must_read_again(key: Key, old_key: Key, new: Row) -> bool:
    """Return whether an updated row must be read again by its key: the key was moved, and a value is missing.

    A consumer that does not have the old row would never get that value: the new key may be in a part of the table that
    was read already. This holds for every such update while a snapshot runs, also if a chunk in progress sees it. Save
    KEY in the list of the table before anything behind the update can be confirmed. (If all chunks of the table are
    written, it is only needed if OLD_KEY is on the list: a consumer has every other row.) Remove KEY from the list when
    a chunk that was asked for it is in the output, ``Applied.read_again`` of that chunk does not name it, and no later
    update has put it there again.
    """
    return old_key != key and None in new


class ColumnsChanged(Exception):
    """The table has other columns, or another name, in the stream than when the chunk was read.

    The chunk's rows cannot be written: discard them and read the chunk again.
    """


@dataclass(frozen=True, slots=True)
class Applied:
    """What recorded changes did to a chunk.

    Attributes:
        conflicts: how many of its rows were changed or left the chunk.
        read_again: the new keys of moved rows for which this chunk is no proof: a value of theirs is missing in the
            stream, and the chunk's snapshot is older than the move. Keep those that are to be read again on their list.
    """

    conflicts: int
    read_again: frozenset[Key]


@dataclass(frozen=True, slots=True)
class _Change:
    """A change; ``gone`` are the keys whose rows leave the chunk (None: all), ``key`` with ``new`` is an update."""

    relation: Relation
    gone: tuple[Key, ...] | None
    key: Key = ()
    new: Row | None = None
    read_again: Key | None = None


@dataclass(slots=True)
class _Recorded:
    """The recorded changes of a transaction, in their order; ``commit`` is its ``commit_lsn`` as text."""

    commit: str
    xid: int
    commit_lsn: int
    size: int = _BYTES_OF_TRANSACTION
    changes: list[_Change] = field(default_factory=list)


class RecordedChanges:
    """The changes of the tables of a snapshot that no chunk's snapshot has seen so far, in the order of the stream.

    Not for use by several threads: the decoder's thread records and applies.

    Attributes:
        size: how much memory they occupy, in bytes, approximately.
    """

    def __init__(self) -> None:
        self.size = 0
        self._transactions: list[_Recorded] = []

    def insert(self, relation: Relation, tx: Transaction, key: Key, new: Row) -> None:  # noqa: ARG002
        """Record an inserted row. The stream wrote it whole, so a row of the chunk with its key is of no use."""
        self._record(tx, _Change(relation, (key,)))

    def update(self, relation: Relation, tx: Transaction, key: Key, old_key: Key | None, new: Row) -> None:
        """Record an updated row; see also ``must_read_again``, whose answer does not depend on what is recorded.

        Args:
            relation: its table, as the stream describes it now.
            tx: the transaction.
            key: its key after the update.
            old_key: its key before the update, if the stream has it; the same key or None if it was not moved.
            new: all its columns; None for a value that the stream does not have.
        """
        if old_key is None or old_key == key:
            self._record(tx, _Change(relation, (), key, new))
        else:
            again = key if must_read_again(key, old_key, new) else None
            self._record(tx, _Change(relation, (old_key, key), read_again=again))

    def delete(self, relation: Relation, tx: Transaction, key: Key) -> None:
        """Record a deleted row."""
        self._record(tx, _Change(relation, (key,)))

    def truncate(self, relation: Relation, tx: Transaction) -> None:
        """Record that a table was truncated."""
        self._record(tx, _Change(relation, None))

    def forget_seen(self, snapshot: ServerSnapshot) -> None:
        """Forget the transactions that a chunk's snapshot sees: every later snapshot sees them too."""
        self._keep(lambda recorded: not snapshot.sees(recorded.xid))

    def forget_before(self, lsn: int) -> None:
        """Forget the transactions whose commit record begins before a position.

        For chunks from a standby: LSN is ``pg_last_wal_replay_lsn()``, read there before the chunk's transaction.
        """
        self._keep(lambda recorded: recorded.commit_lsn >= lsn)

    def apply(self, relation: Relation, rows: dict[Key, Row]) -> Applied:
        """Bring a chunk's rows to the present place in the stream; call ``forget_seen`` or ``forget_before`` first.

        Args:
            relation: the table as it was when the chunk was read.
            rows: the chunk's rows by key; changed in place, the order of those that stay is kept.

        Raises:
            ColumnsChanged: a recorded change has other columns; ROWS is unchanged.
        """
        definition = _definition(relation)
        changes = self._changes_of(relation)
        if any(_definition(other) != definition for other in {id(c.relation): c.relation for c in changes}.values()):
            raise ColumnsChanged(f"{relation.schema}.{relation.table}")
        touched: set[Key] = set()
        read_again: set[Key] = set()
        for change in changes:
            if (row := rows.get(change.key)) is not None and change.new is not None:
                rows[change.key] = tuple(
                    value if value is not None else kept for value, kept in zip(change.new, row, strict=True)
                )
                touched.add(change.key)
            for key in list(rows) if change.gone is None else change.gone:
                if rows.pop(key, None) is not None:
                    touched.add(key)
            read_again.difference_update(list(read_again) if change.gone is None else change.gone)
            if change.read_again is not None:
                read_again.add(change.read_again)
        return Applied(len(touched), frozenset(read_again))

    def keys(self, relation: Relation) -> set[Key] | None:
        """Return the keys of rows that ``apply`` may change; None is every key, after a TRUNCATE."""
        changes = self._changes_of(relation)
        if any(change.gone is None for change in changes):
            return None
        return {key for change in changes for key in (change.key, *(change.gone or ())) if key}

    def clear(self) -> None:
        """Forget everything: recording begins again."""
        self._transactions.clear()
        self.size = 0

    def _changes_of(self, relation: Relation) -> list[_Change]:
        return [
            change
            for recorded in self._transactions
            for change in recorded.changes
            if change.relation.oid == relation.oid
        ]

    def _record(self, tx: Transaction, change: _Change) -> None:
        if not self._transactions or self._transactions[-1].commit != tx.commit_lsn:
            assert tx.xid is not None, "pgoutput sends the id of every transaction"
            self._transactions.append(_Recorded(tx.commit_lsn, tx.xid, Lsn.parse(tx.commit_lsn)))
            self.size += _BYTES_OF_TRANSACTION
        recorded = self._transactions[-1]
        texts = sum(map(len, change.key)) + sum(len(value) for value in change.new or () if value is not None)
        size = _BYTES_OF_CHANGE + texts + sum(len(part) for key in change.gone or () for part in key)
        recorded.changes.append(change)
        recorded.size += size
        self.size += size

    def _keep(self, is_needed: Callable[[_Recorded], bool]) -> None:
        self._transactions = [recorded for recorded in self._transactions if is_needed(recorded)]
        self.size = sum(recorded.size for recorded in self._transactions)


def _definition(relation: Relation) -> tuple[object, ...]:
    """Return what a chunk's rows depend on: the table's name; names and types of its columns, and its key."""
    columns = tuple((column.name, column.type_oid, column.is_key) for column in relation.columns)
    return relation.schema, relation.table, columns
