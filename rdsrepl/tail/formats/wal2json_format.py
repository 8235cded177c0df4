"""The ``wal2json`` format: what the wal2json plugin itself prints, format-version 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring as quote
from typing import ClassVar

from rdsrepl.tail.formats.base import RowWriter, Values, json_bool, template
from rdsrepl.tail.formats.fast_lines import LineParts
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.formats.values import Conversion, Dialect, wal2json_conversion
from rdsrepl.tail.model import Relation, Transaction


class Wal2jsonFormat:
    """Writes what the wal2json plugin would print, in format-version 2 with its default options."""

    dialect: ClassVar[Dialect] = "wal2json"
    # The plugin prints values with the session's defaults, so nothing is set here.
    settings: ClassVar[Mapping[str, str]] = {}

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def conversions(self, relation: Relation) -> list[Conversion]:
        """Return each column's conversion to JSON."""
        return [wal2json_conversion(column.type_oid) for column in relation.columns]

    def writer(self, relation: Relation) -> RowWriter:
        """Return the writer of a relation's changes."""
        names = self._catalog.type_names(
            [column.type_oid for column in relation.columns], [column.typmod for column in relation.columns]
        )
        return _Wal2jsonWriter(relation, names)

    def of_transaction(self, tx: Transaction) -> tuple[bytes, ...]:
        """Return nothing: a line has no member of its transaction."""
        return ()

    def begin(self, tx: Transaction) -> str:
        """Write the B line."""
        return '{"action":"B"}\n'

    def commit(self, tx: Transaction) -> str:
        """Write the C line."""
        return '{"action":"C"}\n'

    def truncate(
        self,
        relation: Relation,
        cascade: bool,
        restart_identity: bool,
        lsn: str,
        tx: Transaction,
        seq: int,
    ) -> str:
        """Write a TRUNCATE of one table; the plugin does not print CASCADE."""
        return f'{{"action":"T","schema":{quote(relation.schema)},"table":{quote(relation.table)}}}\n'

    def message(self, prefix: str, content: bytes, transactional: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a message of ``pg_logical_emit_message``."""
        text = quote(content.decode("utf-8", "surrogateescape"))
        return (
            f'{{"action":"M","transactional":{json_bool(transactional)},"prefix":{quote(prefix)},"content":{text}}}\n'
        )

    def resolution(self, verb: str, gid: str, lsn: str, tx: Transaction, seq: int) -> str:
        """Fail: the format has no such line, and slots with prepared transactions are refused before."""
        raise ValueError(f"the format has no line for {verb}")


class _Wal2jsonWriter:
    __slots__ = ("_entries", "_full", "_head", "_identity", "_insert", "_key", "_update", "parts")

    def __init__(self, relation: Relation, type_names: Sequence[str]) -> None:
        self._entries = [
            f'{{"name":{quote(column.name)},"type":{_type_name(name)},"value":'
            for column, name in zip(relation.columns, type_names, strict=True)
        ]
        self._head = f'"schema":{quote(relation.schema)},"table":{quote(relation.table)}'
        self._full = relation.replica_identity == "f"
        every = list(range(len(relation.columns)))
        self._key = every if self._full else [n for n, column in enumerate(relation.columns) if column.is_key]
        insert = [f'{{"action":"I",{self._head},"columns":[', *self._list(every), "]}\n"]
        update = [
            f'{{"action":"U",{self._head},"columns":[',
            *self._list(every),
            '],"identity":[',
            *self._list(self._key),
            "]}\n",
        ]
        delete = [f'{{"action":"D",{self._head},"identity":[', *self._list(self._key), "]}\n"]
        self._insert, self._update = template(insert), template(update)
        self.parts = LineParts(insert, update, delete, delete)

    def _list(self, numbers: Sequence[int]) -> list[str | int]:
        parts: list[str | int] = []
        for position, number in enumerate(numbers):
            parts += [("," if position else "") + self._entries[number], number, "}"]
        return parts

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        return self._insert(new)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        if old is None and None not in new:
            return self._update(new)
        known = [n for n in range(len(self._entries)) if new[n] is not None]
        identity = new if old is None else old
        columns = template(self._list(known))(new)
        return f'{{"action":"U",{self._head},"columns":[{columns}],"identity":[{self._old(identity)}]}}\n'

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        return f'{{"action":"D",{self._head},"identity":[{self._old(old)}]}}\n'

    def _old(self, values: Values) -> str:
        return template(self._list([n for n in self._key if values[n] is not None]))(values)


def _type_name(name: str) -> str:
    """Return a type's name as the plugin prints it: a name that SQL quotes is not quoted again.

    If that would not be JSON (with quotes inside, or an array of such a type), the name is quoted, unlike the plugin's.
    """
    return name if name[0] == name[-1] == '"' and '""' not in name and "\\" not in name else quote(name)
