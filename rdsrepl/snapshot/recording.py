"""Record the changes of the tables of a snapshot on their way to the format's writer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final

from rdsrepl.snapshot.recorded_changes import Key, RecordedChanges, Row, must_read_again
from rdsrepl.tail.formats.base import RowWriter, Values, with_old_values
from rdsrepl.tail.formats.values import BUILT_IN, PLAIN, Dialect, ValueKind
from rdsrepl.tail.model import Relation, Transaction

# Types whose JSON text is the quoted text of the server in every format: "char", name, text, bpchar, varchar, uuid.
_QUOTED: Final = frozenset({18, 19, 25, 1042, 1043, 2950})
_INTEGERS: Final = frozenset({20, 21, 23})
_BOOLEAN: Final = 16


class RecordingWriter:
    """Wraps the writer of a relation; every change is recorded before it is written."""

    __slots__ = ("_changes", "_inner", "_is_recorded", "_key", "_moved", "_relation", "_width")

    def __init__(
        self,
        inner: RowWriter,
        relation: Relation,
        key: Sequence[int],
        changes: RecordedChanges,
        is_recorded: Callable[[Transaction], bool],
        moved: Callable[[Relation, Key, Key], None],
    ) -> None:
        """Wrap INNER.

        Args:
            inner: writes the changes.
            relation: the table.
            key: the numbers of the key's columns.
            changes: takes them.
            is_recorded: whether the changes of a transaction have to be recorded.
            moved: takes a row that must be read again: its old key and its new one.
        """
        self._inner = inner
        self._relation = relation
        self._key = tuple(key)
        self._changes = changes
        self._is_recorded = is_recorded
        self._moved = moved
        self._width = len(relation.columns)

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        """Record and write an INSERT."""
        if self._is_recorded(tx):
            self._changes.insert(self._relation, tx, self._key_of(new), self._row(new))
        return self._inner.insert(new, lsn, tx, seq)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Record and write an UPDATE."""
        is_recorded = self._is_recorded(tx)
        # A chunk that sees the move has not the row if its new key is before the chunk.
        if is_recorded or (old is not None and None in new):
            self._update(new, old, whole, tx, is_recorded)
        return self._inner.update(new, old, whole, lsn, tx, seq)

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Record and write a DELETE."""
        if self._is_recorded(tx):
            self._changes.delete(self._relation, tx, self._key_of(old))
        return self._inner.delete(old, whole, lsn, tx, seq)

    def _update(self, new: Values, old: Values | None, whole: bool, tx: Transaction, is_recorded: bool) -> None:
        old_key: Key | None = None
        if old is not None:
            old_key = self._key_of(old)
            # The old row is complete with FULL; otherwise it has the key, and null for everything else.
            new = with_old_values(self._row(new), self._row(old)) if whole else self._with_key(new, old)
        key, row = self._key_of(new), self._row(new)
        if is_recorded:
            self._changes.update(self._relation, tx, key, old_key, row)
        if old_key is not None and must_read_again(key, old_key, row):
            self._moved(self._relation, old_key, key)

    def _key_of(self, values: Values) -> Key:
        return tuple(values[number] for number in self._key)

    def _row(self, values: Values) -> Row:
        return tuple(values[: self._width])

    def _with_key(self, new: Values, old: Values) -> Values:
        return tuple(
            old[number] if value is None and number in self._key else value for number, value in enumerate(new)
        )


def server_text(key: Key, type_oids: Sequence[int], dialect: Dialect, *, is_plain: bool) -> tuple[str, ...] | None:
    """Return the server's text of a key that a format has written; None if a value cannot be read back.

    Args:
        key: the JSON texts.
        type_oids: the types of the key's columns.
        dialect: the format's.
        is_plain: whether the format writes values as the server does (all but ``debezium``).
    """
    values = [_server_text(text, type_oid, dialect, is_plain) for text, type_oid in zip(key, type_oids, strict=True)]
    return tuple(value for value in values if value is not None) if None not in values else None


def _server_text(text: str, type_oid: int, dialect: Dialect, is_plain: bool) -> str | None:
    if text is None or text == "null":
        return None
    if type_oid in _INTEGERS or type_oid == _BOOLEAN:
        return text
    if type_oid in _QUOTED:
        return str(json.loads(text))
    kind = BUILT_IN.get(type_oid)
    if not is_plain or dialect != "json" or (kind is None and type_oid not in PLAIN):
        return None
    if kind in (ValueKind.JSON, ValueKind.JSONB):
        return text
    return str(json.loads(text)) if text.startswith('"') else text
