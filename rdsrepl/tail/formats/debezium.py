"""The ``debezium`` format: the events of Debezium's PostgreSQL connector, as its JSON converter prints them.

A change is one event, except an update that changes the row's key: that is a delete of the old key and a create of the
new one. With ``DebeziumOptions.keys`` each line is ``{"key":…,"value":…}``, and a delete is followed by a tombstone,
which is the same key with the value null.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring as quote
from typing import Final

from rdsrepl import __version__
from rdsrepl.tail.formats.base import (
    ChangesOnly,
    RowImages,
    RowWriter,
    Values,
    WriterInParts,
    null_if_unsent,
    template,
    with_old_values,
)
from rdsrepl.tail.formats.debezium_options import DebeziumOptions
from rdsrepl.tail.formats.debezium_values import DebeziumValues
from rdsrepl.tail.formats.fast_lines import Field, LineParts, Parts, Piece
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.formats.values import Conversion
from rdsrepl.tail.model import Relation, Transaction

_NO_TABLE: Final = '""'
_NO_TYPMOD: Final = -1


class DebeziumFormat(ChangesOnly):
    """Writes Debezium's events.

    ``source`` has three members more than Debezium's: ``timeline``, ``commit_lsn`` and ``seq``, which identify the
    event (``model.Transaction``). Its ``seq`` is twice the change's number, so that the delete of an update of the key
    has its own number: the odd one before its create's.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        database: str,
        name: str,
        options: DebeziumOptions | None = None,
        snapshot: str | None = None,
    ) -> None:
        """Create the format.

        Args:
            catalog: looks up types.
            database: ``source.db``.
            name: ``source.name``, Debezium's ``topic.prefix``; the slot's name.
            options: how keys and values are written; None is Debezium's defaults.
            snapshot: ``source.snapshot`` of rows that are read from tables; None for changes.
        """
        super().__init__(catalog, snapshot=snapshot)
        self.options = options or DebeziumOptions()
        self._values = DebeziumValues(catalog, self.options)
        self._head = f'"source":{{"version":"{__version__}","connector":"postgresql","name":{quote(name)},"ts_ms":'
        self._database = f',"snapshot":"{snapshot or "false"}","db":{quote(database)},"sequence":"[\\"'
        self._of: Transaction | None = None
        self._parts = ("", "", "", "")

    def conversions(self, relation: Relation) -> list[Conversion]:
        """Return each column's conversion to JSON."""
        typmods: Mapping[tuple[str, int], int] = {}
        if not relation.oid:  # wal2json does not send the modifiers of types
            typmods = self._catalog.type_modifiers(relation.schema, relation.table)
        return [
            self._values.conversion(c.type_oid, typmods.get((c.name, c.type_oid), _NO_TYPMOD) if typmods else c.typmod)
            for c in relation.columns
        ]

    def writer(self, relation: Relation) -> RowWriter:
        """Return the writer of a relation's changes."""
        images = RowImages(relation, self._catalog)
        placeholders = tuple(self._values.placeholder(column.type_oid) for column in relation.columns)
        events = _EventWriter(self, images, placeholders)
        return KeyUpdateWriter(events, images.key_columns)

    def of_transaction(self, tx: Transaction) -> tuple[bytes, ...]:
        """Return the parts of ``source`` that all events of a transaction share."""
        return tuple(part.encode("utf-8", "surrogateescape") for part in self._of_transaction(tx))

    def truncate(
        self,
        relation: Relation,
        cascade: bool,
        restart_identity: bool,
        lsn: str,
        tx: Transaction,
        seq: int,
    ) -> str:
        """Write a TRUNCATE of one table."""
        schema, table = quote(relation.schema), quote(relation.table)
        return self.line("null", self.envelope("null", "null", "t", schema, table, lsn, tx, 2 * seq))

    def message(self, prefix: str, content: bytes, transactional: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a message; its content is bytes, in the binary mode."""
        source = self._source(_NO_TABLE, _NO_TABLE, lsn, tx, 2 * seq)
        text = f'{{"prefix":{quote(prefix)},"content":{self._values.octets(content)}}}'
        value = f'{{"op":"m",{_now()},{source},"transaction":null,"message":{text}}}'
        return self.line(f'{{"prefix":{quote(prefix)}}}', value)

    def resolution(self, verb: str, gid: str, lsn: str, tx: Transaction, seq: int) -> str:
        """Fail: Debezium has no such event, and slots with prepared transactions are refused before."""
        raise ValueError(f"the format has no event for {verb}")

    def line(self, key: str, value: str) -> str:
        """Return an event's line."""
        return f'{{"key":{key},"value":{value}}}\n' if self.options.keys else f"{value}\n"

    def envelope(
        self, before: str, after: str, op: str, schema: str, table: str, lsn: str, tx: Transaction, seq: int
    ) -> str:
        """Write one event; SEQ is its number in this format."""
        source = self._source(schema, table, lsn, tx, seq)
        return f'{{"before":{before},"after":{after},{tx.as_text}{source},"transaction":null,"op":"{op}",{_now()}}}'

    def _source(self, schema: str, table: str, lsn: str, tx: Transaction, seq: int) -> str:
        if self._of is not tx:
            self._of, self._parts = tx, self._of_transaction(tx)
        head, times, xid, rest = self._parts
        number = _position(lsn)
        return f'{head}{number}{times}"schema":{schema},"table":{table}{xid}{number}{rest}{seq}}}'

    def _of_transaction(self, tx: Transaction) -> tuple[str, str, str, str]:
        """Return the parts of ``source`` that all events of a transaction share."""
        # A message outside of a transaction has no time: like in Debezium, it gets the time when it was read.
        micros = time.time_ns() // 1000 if tx.commit_us is None else tx.commit_us
        commit = _position(tx.commit_lsn)
        xid = "null" if tx.xid is None else tx.xid
        origin = "null" if tx.origin is None else quote(tx.origin)
        origin_lsn = "null" if tx.origin_lsn is None else tx.origin_lsn
        return (
            f'{self._head}{micros // 1000}{self._database}{commit}\\",\\"',
            f'\\"]","ts_us":{micros},"ts_ns":{micros * 1000},',
            f',"txId":{xid},"lsn":',
            f',"xmin":null,"origin":{origin},"origin_lsn":{origin_lsn},"timeline":{tx.timeline},'
            f'"commit_lsn":{commit},"seq":',
        )


def _now() -> str:
    nanoseconds = time.time_ns()
    return f'"ts_ms":{nanoseconds // 1_000_000},"ts_us":{nanoseconds // 1000},"ts_ns":{nanoseconds}'


def _position(lsn: str) -> int:
    high, _, low = lsn.partition("/")
    return int(high, 16) << 32 | int(low, 16)


class _EventWriter:
    """Writes each change of a relation as one event with the given number."""

    __slots__ = ("_after", "_format", "_images", "_key", "_placeholders", "_schema", "_table", "parts")

    def __init__(self, fmt: DebeziumFormat, images: RowImages, placeholders: Values) -> None:
        self._format = fmt
        self._images = images
        self._placeholders = placeholders
        self._schema = quote(images.relation.schema)
        self._table = quote(images.relation.table)
        self._after = template(images.after)
        self._key = template(images.key)
        insert, update = self._parts(fmt.insert_op, ["null"], images.after), self._parts("u", ["null"], images.after)
        key, row = (self._parts("d", images.before(whole), ["null"]) for whole in (False, True))
        self.parts = LineParts(insert, update, key, row)

    def _parts(self, op: str, before: Sequence[str | int], after: Sequence[str | int]) -> Parts:
        """Return the parts of an event's line, as ``_event`` writes it, and of the tombstone of a delete."""
        keys, key = self._format.options.keys, self._images.key
        names = f'"schema":{self._schema},"table":{self._table}'
        source = (Piece(0), Field.POSITION, Piece(1), names, Piece(2), Field.POSITION, Piece(3), Field.DOUBLE_SEQ, "}")
        rest = (*source, f',"transaction":null,"op":"{op}",', Field.NOW, "}")
        value = ('{"before":', *before, ',"after":', *after, ",", *rest)
        if not keys:
            return (*value, "\n")
        tombstone = ('{"key":', *key, ',"value":null}\n') if op == "d" and self._images.key_columns else ()
        return ('{"key":', *key, ',"value":', *value, "}\n", *tombstone)

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        return self._event(self._format.insert_op, new, "null", self._row(new), lsn, tx, seq)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        before = "null" if old is None else template(self._images.before(whole))(old)
        return self._event("u", new, before, self._row(new), lsn, tx, seq)

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        before = template(self._images.before(whole))(old)
        event = self._event("d", old, before, "null", lsn, tx, seq)
        if not self._format.options.keys or not self._images.key_columns:
            return event
        return event + self._format.line(self._key(null_if_unsent(old)), "null")

    def _row(self, new: Values) -> str:
        if None not in new:
            return self._after(new)
        _, unchanged = self._images.known_after(new)
        placeholders = self._placeholders
        row = tuple(placeholders[number] if value is None else value for number, value in enumerate(new))
        return f'{self._after(row)},"unchanged":{unchanged}'

    def _event(self, op: str, keyed_by: Values, before: str, after: str, lsn: str, tx: Transaction, seq: int) -> str:
        value = self._format.envelope(before, after, op, self._schema, self._table, lsn, tx, seq)
        return self._format.line(self._key(null_if_unsent(keyed_by)) if self._format.options.keys else "null", value)


class KeyUpdateWriter:
    """Wraps a writer: an update that changes the key becomes a delete and a create (``DebeziumFormat``)."""

    __slots__ = ("_inner", "_key", "parts")

    def __init__(self, inner: RowWriter, key: Sequence[int]) -> None:
        """Wrap INNER.

        Args:
            inner: writes the events.
            key: the numbers of the key's columns.
        """
        self._inner = inner
        self._key = key
        if isinstance(inner, WriterInParts):  # an update without an old row does not change the key
            self.parts = inner.parts

    def wrap(self, wrap: Callable[[RowWriter], RowWriter]) -> KeyUpdateWriter:
        """Return this writer with the inner one wrapped, so that the wrapper receives the delete and the create."""
        return KeyUpdateWriter(wrap(self._inner), self._key)

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an INSERT."""
        return self._inner.insert(new, lsn, tx, 2 * seq)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an UPDATE."""
        if old is not None:
            # With REPLICA IDENTITY FULL the old row has every value; otherwise only the key's, and nulls.
            new = with_old_values(new, old) if whole else self._with_key(new, old)
            if any(new[number] != old[number] for number in self._key):
                return self._inner.delete(old, whole, lsn, tx, 2 * seq - 1) + self._inner.insert(new, lsn, tx, 2 * seq)
        return self._inner.update(new, old, whole, lsn, tx, 2 * seq)

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a DELETE."""
        return self._inner.delete(old, whole, lsn, tx, 2 * seq)

    def _with_key(self, new: Values, old: Values) -> Values:
        return tuple(
            old[number] if value is None and number in self._key else value for number, value in enumerate(new)
        )
