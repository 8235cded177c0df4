"""Adds a partition key to each line, separated by a NUL, which no JSON text contains.

A key consists of a row's values, so that all changes of a row are in one shard and in order. An update that changes the
key has the new key.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from json.encoder import encode_basestring as quote
from typing import Final

from rdsrepl.errors import BadValue
from rdsrepl.tail.formats.base import (
    Format,
    FormatInParts,
    FormatWrapper,
    RowWriter,
    Values,
    WriterInParts,
    key_numbers,
    members,
    template,
    with_old_values,
)
from rdsrepl.tail.formats.debezium import KeyUpdateWriter
from rdsrepl.tail.formats.fast_lines import LineParts, Parts, Piece
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.model import Relation, Transaction, joined

SEPARATOR: Final = "\0"
_SEPARATOR: Final = SEPARATOR.encode()
# PutRecords takes 1 to 256 characters.
_LONGEST_KEY: Final = 256


def keyed_records(lines: Sequence[str] | Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Return partition key and data of each record in a decoder's keyed lines, in UTF-8.

    A tombstone has no key of its own: it gets that of the delete before it.
    """
    records: list[tuple[bytes, bytes]] = []
    key = b""
    for line in joined(lines).split(b"\n")[:-1]:
        first, separator, data = line.partition(_SEPARATOR)
        if not separator:
            records.append((key, first))
            continue
        key = first if len(first) <= _LONGEST_KEY and first.isascii() else _accepted(first)
        records.append((key, data))
    return records


def _accepted(key: bytes) -> bytes:
    """Return a partition key that Kinesis accepts: KEY itself, or else its SHA-256."""
    # A key must be Unicode text, and the bytes of a SQL_ASCII database may not be.
    with suppress(UnicodeDecodeError):
        if len(key.decode()) <= _LONGEST_KEY:
            return key
    return sha256(key).hexdigest().encode()


class KeyedFormat(FormatWrapper):
    """Wraps a format: its lines start with their partition key."""

    def __init__(self, inner: Format, catalog: Catalog, by: str, *, event_keys: bool = False) -> None:
        """Wrap INNER.

        Args:
            inner: writes the lines.
            catalog: looks up primary keys.
            by: ``key``, ``table``, ``transaction``, or a column's name.
            event_keys: with ``key``, the partition key is the event's own key, a JSON text (Debezium).
        """
        self._event_keys = event_keys
        super().__init__(inner)
        self._in_parts = inner if isinstance(inner, FormatInParts) else None
        self._catalog = catalog
        self._by = by

    def writer(self, relation: Relation) -> RowWriter:
        """Return the writer of a relation's changes.

        Raises:
            BadValue: the table does not have the named column.
        """
        inner = self._inner.writer(relation)
        if isinstance(inner, KeyUpdateWriter):  # its delete has the old key, its create the new one
            return inner.wrap(lambda events: self._keyed(events, relation))
        return self._keyed(inner, relation)

    def _keyed(self, inner: RowWriter, relation: Relation) -> RowWriter:
        if self._by == "transaction":
            return _ByTransaction(inner)
        return _ByValues(inner, self._key_parts(relation))

    def of_transaction(self, tx: Transaction) -> tuple[bytes, ...]:
        """Return the inner format's pieces, and the transaction's key as the last one."""
        pieces = () if self._in_parts is None else self._in_parts.of_transaction(tx)
        return (*pieces, _transaction(tx).encode())

    def begin(self, tx: Transaction) -> str:
        """Write a transaction's begin."""
        return self._of_transaction(self._inner.begin(tx), tx)

    def commit(self, tx: Transaction) -> str:
        """Write a transaction's end."""
        return self._of_transaction(self._inner.commit(tx), tx)

    def truncate(
        self, relation: Relation, cascade: bool, restart_identity: bool, lsn: str, tx: Transaction, seq: int
    ) -> str:
        """Write a TRUNCATE of one table; the key is the table's name."""
        line = self._inner.truncate(relation, cascade, restart_identity, lsn, tx, seq)
        if self._by == "transaction":
            return self._of_transaction(line, tx)
        return f"{_plain(relation.schema)}.{_plain(relation.table)}{SEPARATOR}{line}"

    def message(self, prefix: str, content: bytes, transactional: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a message; the key is its prefix."""
        line = self._inner.message(prefix, content, transactional, lsn, tx, seq)
        if self._by == "transaction":
            return self._of_transaction(line, tx)
        if self._event_keys and self._by == "key":
            return f'{{"prefix":{quote(prefix)}}}{SEPARATOR}{line}'
        return f"{_plain(prefix) or 'message'}{SEPARATOR}{line}"

    def resolution(self, verb: str, gid: str, lsn: str, tx: Transaction, seq: int) -> str:
        """Write the end of a prepared transaction."""
        return self._of_transaction(self._inner.resolution(verb, gid, lsn, tx, seq), tx)

    @staticmethod
    def _of_transaction(line: str, tx: Transaction) -> str:
        return f"{_transaction(tx)}{SEPARATOR}{line}" if line else line

    def _key_parts(self, relation: Relation) -> list[str | int]:
        table = f"{_plain(relation.schema)}.{_plain(relation.table)}"
        if self._by == "table":
            return [table]
        if self._by == "key":
            numbers = key_numbers(relation, self._catalog)
            if self._event_keys and numbers:
                return members(relation, numbers)
        else:
            numbers = [n for n, column in enumerate(relation.columns) if column.name == self._by]
            if not numbers:
                raise BadValue(
                    f"--partition-by {self._by}: table {relation.schema}.{relation.table} does not have this column",
                    hint="--partition-by key uses each table's own key; --table selects tables",
                )
        parts: list[str | int] = [table]
        for number in numbers:
            parts += [":", number]
        return parts


def _keyed(inner: LineParts, key: Parts) -> LineParts:
    """Return a writer's lines with the key before each of them."""
    insert, update, delete_key, delete_row = (
        None if parts is None else (*key, SEPARATOR, *parts)
        for parts in (inner.insert, inner.update, inner.delete_key, inner.delete_row)
    )
    return LineParts(insert, update, delete_key, delete_row)


class _ByTransaction:
    __slots__ = ("_inner", "parts")

    def __init__(self, inner: RowWriter) -> None:
        self._inner = inner
        if isinstance(inner, WriterInParts):
            self.parts = _keyed(inner.parts, [Piece(-1)])

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        return f"{_transaction(tx)}{SEPARATOR}{self._inner.insert(new, lsn, tx, seq)}"

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        return f"{_transaction(tx)}{SEPARATOR}{self._inner.update(new, old, whole, lsn, tx, seq)}"

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        return f"{_transaction(tx)}{SEPARATOR}{self._inner.delete(old, whole, lsn, tx, seq)}"


class _ByValues:
    __slots__ = ("_inner", "_keys", "parts")

    def __init__(self, inner: RowWriter, key: Sequence[str | int]) -> None:
        self._inner = inner
        self._keys = template(key)
        if isinstance(inner, WriterInParts):
            self.parts = _keyed(inner.parts, key)

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        return self._keys(new) + SEPARATOR + self._inner.insert(new, lsn, tx, seq)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        values = new
        if old is not None and None in new:
            # An unchanged TOAST value of the key is in the old row.
            values = with_old_values(new, old)
        return self._keys(values) + SEPARATOR + self._inner.update(new, old, whole, lsn, tx, seq)

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        return self._keys(old) + SEPARATOR + self._inner.delete(old, whole, lsn, tx, seq)


def _transaction(tx: Transaction) -> str:
    return str(tx.xid) if tx.xid is not None else str(tx.commit_lsn or "message")


def _plain(name: str) -> str:
    return name.replace("\n", " ").replace(SEPARATOR, "")
