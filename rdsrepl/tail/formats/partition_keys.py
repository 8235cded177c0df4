"""Adds a partition key to each line, separated by a NUL, which no JSON text contains.

A key consists of a row's values, so that all changes of a row are in one shard and in order. An update that changes the
key has the new key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from json.encoder import encode_basestring as quote
from typing import Final

from rdsrepl.errors import BadValue
from rdsrepl.tail.formats.base import Format, RowWriter, Values, key_numbers, members, template, with_old_values
from rdsrepl.tail.formats.debezium import KeyUpdateWriter
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.formats.values import Conversion, Dialect
from rdsrepl.tail.model import Relation, Transaction

SEPARATOR: Final = "\0"
# PutRecords takes 1 to 256 characters.
_LONGEST_KEY: Final = 256

Keys = Callable[[Values], str]


def split(line: str) -> tuple[str, str]:
    """Return a keyed line's partition key and its text; a key that Kinesis refuses is replaced by its SHA-256."""
    key, _, text = line.partition(SEPARATOR)
    # A key must be Unicode text, and the bytes of a SQL_ASCII database may not be.
    if len(key) > _LONGEST_KEY or not (key.isascii() or _is_unicode(key)):
        key = sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return key, text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class KeyedFormat:
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
        self._inner = inner
        self._catalog = catalog
        self._by = by

    @property
    def dialect(self) -> Dialect:
        """The inner format's."""
        return self._inner.dialect

    @property
    def settings(self) -> Mapping[str, str]:
        """The inner format's."""
        return self._inner.settings

    def conversions(self, relation: Relation) -> list[Conversion]:
        """Return each column's conversion to JSON."""
        return self._inner.conversions(relation)

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
        return _ByValues(inner, self._keys(relation))

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
        return f"{relation.schema}.{relation.table}{SEPARATOR}{line}"

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

    def _keys(self, relation: Relation) -> Keys:
        table = f"{_plain(relation.schema)}.{_plain(relation.table)}"
        if self._by == "table":
            return lambda values: table
        if self._by == "key":
            numbers = key_numbers(relation, self._catalog)
            if self._event_keys and numbers:
                return template(members(relation, numbers))
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
        return template(parts)


class _ByTransaction:
    __slots__ = ("_inner",)

    def __init__(self, inner: RowWriter) -> None:
        self._inner = inner

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        return f"{_transaction(tx)}{SEPARATOR}{self._inner.insert(new, lsn, tx, seq)}"

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        return f"{_transaction(tx)}{SEPARATOR}{self._inner.update(new, old, whole, lsn, tx, seq)}"

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        return f"{_transaction(tx)}{SEPARATOR}{self._inner.delete(old, whole, lsn, tx, seq)}"


class _ByValues:
    __slots__ = ("_inner", "_keys")

    def __init__(self, inner: RowWriter, keys: Keys) -> None:
        self._inner = inner
        self._keys = keys

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
    return name.replace(SEPARATOR, "")
