"""The changes as SQL that repeats them on another server: ``failover diff --format sql``.

Values are the server's own text, as untyped literals: the column decides the type. Names and literals are quoted here,
so that nothing in them is a statement. An UPDATE or a DELETE that finds no row is an error: the row is not there, or
its key is another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final

from rdsrepl.tail.formats.base import ISO_SETTINGS, RowWriter, Values, json_bool, key_numbers
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.formats.values import Conversion, Dialect, ValueKind
from rdsrepl.tail.model import Relation, Transaction

#: begins the file: values are read as they were written. A name without a schema is found in pg_catalog only.
PREAMBLE: Final = "".join(
    f"SET {name} = {value};\n"
    for name, value in (
        ("client_encoding", "'UTF8'"),
        ("standard_conforming_strings", "on"),
        ("search_path", "''"),
        *((name, f"'{value}'") for name, value in ISO_SETTINGS.items()),
    )
)


def literal(text: str) -> str:
    """Return a text as an SQL literal, valid with every value of ``standard_conforming_strings``."""
    quoted = text.replace("'", "''")
    return "E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in text else f"'{quoted}'"


def identifier(name: str) -> str:
    """Return a name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


class SqlFormat:
    """Writes statements; each transaction between BEGIN and COMMIT."""

    dialect: ClassVar[Dialect] = "json"
    settings: ClassVar[Mapping[str, str]] = ISO_SETTINGS

    def __init__(self, catalog: Catalog, not_set: Mapping[tuple[str, str], Mapping[str, str]]) -> None:
        """Make the format.

        Args:
            catalog: knows the primary keys.
            not_set: by schema and table, the columns that a statement may not set: ``generated`` never, ``identity``
                (GENERATED ALWAYS AS IDENTITY) not in an UPDATE.
        """
        self._catalog = catalog
        self._not_set = not_set

    def conversions(self, relation: Relation) -> list[Conversion]:
        """Return each column's conversion to a literal; NULL is written as ``null``."""
        return [Conversion(ValueKind.CONVERT, literal, literal)] * len(relation.columns)

    def writer(self, relation: Relation) -> RowWriter:
        """Return the writer of a relation's changes."""
        return _SqlWriter(relation, self._catalog, self._not_set.get((relation.schema, relation.table), {}))

    def begin(self, tx: Transaction) -> str:
        """Write BEGIN, with the transaction's identity as a comment."""
        when = f" of {tx.commit_time}" if tx.commit_time is not None else ""
        return f"\n-- timeline {tx.timeline}, commit {tx.commit_lsn}, transaction {tx.xid}{when}\nBEGIN;\n"

    def commit(self, tx: Transaction) -> str:
        """Write COMMIT."""
        return "COMMIT;\n"

    def truncate(
        self,
        relation: Relation,
        cascade: bool,
        restart_identity: bool,
        lsn: str,
        tx: Transaction,
        seq: int,
    ) -> str:
        """Write a TRUNCATE that stops the replay: it would also remove what the new primary wrote since."""
        words = f"{' RESTART IDENTITY' if restart_identity else ''}{' CASCADE' if cascade else ''}"
        statement = f"TRUNCATE {_table(relation)}{words}"
        return _do(_raise(f"decide about this statement, then replace it: {statement}"))

    def message(
        self,
        prefix: str,
        content: bytes,
        transactional: bool,
        lsn: str,
        tx: Transaction,
        seq: int,
    ) -> str:
        """Write a message of ``pg_logical_emit_message``."""
        try:
            value = literal(content.decode())
        except UnicodeDecodeError:
            value = f"pg_catalog.decode('{content.hex()}', 'hex')"
        arguments = f"{json_bool(transactional)}, {literal(prefix)}, {value}"
        return f"SELECT pg_catalog.pg_logical_emit_message({arguments});\n"

    def resolution(self, verb: str, gid: str, lsn: str, tx: Transaction, seq: int) -> str:
        """Write the end of a prepared transaction."""
        return f"{verb.replace('_', ' ').upper()} {literal(gid)};\n"


class _SqlWriter:
    """Writes the changes of one relation; ``null`` in its place finds a row whose value is NULL."""

    __slots__ = ("_insertable", "_is_whole", "_key", "_names", "_settable", "_table")

    def __init__(self, relation: Relation, catalog: Catalog, not_set: Mapping[str, str]) -> None:
        self._table = _table(relation)
        self._names = [identifier(column.name) for column in relation.columns]
        key = key_numbers(relation, catalog)
        every = range(len(self._names))
        # A replica identity FULL without a primary key: the whole old row identifies it.
        self._is_whole = not key
        self._key: Sequence[int] = key or list(every)
        self._insertable = [n for n in every if not_set.get(relation.columns[n].name) != "generated"]
        self._settable = [n for n in every if relation.columns[n].name not in not_set]

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an INSERT; an identity column keeps its value."""
        if not self._insertable:
            return f"INSERT INTO {self._table} DEFAULT VALUES;\n"
        names = ", ".join(self._names[n] for n in self._insertable)
        values = ", ".join(new[n] for n in self._insertable)
        return f"INSERT INTO {self._table} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values});\n"

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an UPDATE of what may have changed."""
        before = new if old is None else old
        key = () if self._is_whole else self._key
        changed = [
            n for n in self._settable if new[n] is not None and (new[n] != before[n] if whole or n in key else True)
        ]
        if not changed:
            return ""
        values = ", ".join(f"{self._names[n]} = {new[n]}" for n in changed)
        return self._checked(f"UPDATE {self._table} SET {values} WHERE", before, "UPDATE")

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a DELETE."""
        return self._checked(f"DELETE FROM {self._table} WHERE", old, "DELETE")

    def _checked(self, statement: str, row: Values, verb: str) -> str:
        """Return the statement on one row, which is an error if there is none."""
        if any(row[n] is None for n in self._key):
            return _do(_raise(f"{verb} of {self._table}: the old row was not written to the WAL"))
        condition = " AND ".join(self._equals(n, row[n]) for n in self._key)
        if self._is_whole:  # equal rows may exist; the change was of one of them
            condition = f"ctid = (SELECT ctid FROM {self._table} WHERE {condition} LIMIT 1)"
        missing = _raise(f"{verb} of {self._table}: the row does not exist")
        return _do(f"{statement} {condition}; IF NOT FOUND THEN {missing} END IF;")

    def _equals(self, number: int, value: str) -> str:
        name = self._names[number]
        if value == "null":
            return f"{name} IS NULL"
        # Some types have no operator "=": json, point, xml.
        return f"{name}::text = {value}" if self._is_whole else f"{name} = {value}"


def _table(relation: Relation) -> str:
    return f"{identifier(relation.schema)}.{identifier(relation.table)}"


def _raise(message: str) -> str:
    return f"RAISE EXCEPTION USING MESSAGE = {literal(message)};"


def _do(body: str) -> str:
    """Return a DO statement; its tag is not in its body."""
    tag = "$replay$"
    while tag in body:
        tag = f"$r{tag[1:]}"
    return f"DO {tag} BEGIN {body} END {tag};\n"


def columns_not_set(rows: Iterable[tuple[str, str, str, str]]) -> dict[tuple[str, str], dict[str, str]]:
    """Return the columns by table, from rows of schema, table, column and ``generated`` or ``identity``."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for schema, table, column, kind in rows:
        found.setdefault((schema, table), {})[column] = kind
    return found
