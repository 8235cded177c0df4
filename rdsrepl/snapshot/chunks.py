"""Read the rows of a table in chunks, in the order of its key, each in a short transaction of its own.

Only the server compares keys: with the operators and collations of the key's index, which define its order, and which
an empty ``search_path`` would not find by their names. The cursor is the server's text of the last key.
"""

from __future__ import annotations

import re
import select
import shlex
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import NotFound, Refused
from rdsrepl.postgres import table_structures
from rdsrepl.postgres.error_mapping import translate
from rdsrepl.postgres.sql_names import quote_if_needed
from rdsrepl.postgres.table_structures import TableName
from rdsrepl.snapshot import tables as snapshot_tables
from rdsrepl.snapshot.requests import Method, table_text
from rdsrepl.tail.model import Relation
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted, named

if TYPE_CHECKING:
    from psycopg.sql import Composable, Composed

    from rdsrepl.postgres.connection import Connection

#: The server's text of a key's values.
Cursor = tuple[str, ...]

#: what a session sets: rows come from the key's index, whatever the statistics say, and no other process helps.
SETTINGS: Final = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "enable_incremental_sort": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}

_KEY: Final = """
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, -1),
       array_agg(n.nspname::text ORDER BY ao.amopstrategy), array_agg(o.oprname::text ORDER BY ao.amopstrategy),
       cn.nspname::text, co.collname::text
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
  CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[], i.indcollation::oid[])
       WITH ORDINALITY k (attnum, opclass, collation_oid, place)
  JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
  JOIN pg_catalog.pg_opclass oc ON oc.oid = k.opclass
  JOIN pg_catalog.pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amoplefttype = oc.opcintype
       AND ao.amoprighttype = oc.opcintype AND ao.amopstrategy IN (1, 3, 5)
  JOIN pg_catalog.pg_operator o ON o.oid = ao.amopopr
  JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
  LEFT JOIN pg_catalog.pg_collation co ON co.oid = k.collation_oid
  LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
 WHERE i.indrelid = %s AND i.indisvalid AND i.indimmediate AND k.place <= i.indnkeyatts
   AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'f' THEN i.indisprimary WHEN 'i' THEN i.indisreplident
       ELSE false END
 GROUP BY k.place, a.attname, a.atttypid, cn.nspname, co.collname ORDER BY k.place
"""
_ABOUT: Final = """
SELECT c.relkind::text,
       CASE c.relkind WHEN 'p' THEN (SELECT sum(greatest(l.reltuples, 0))::bigint
                                       FROM pg_catalog.pg_partition_tree(c.oid::regclass) p
                                       JOIN pg_catalog.pg_class l ON l.oid = p.relid WHERE p.isleaf)
            ELSE greatest(c.reltuples, 0)::bigint END
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s
"""
_LEAVES: Final = """
SELECT ln.nspname::text, l.relname::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN LATERAL pg_catalog.pg_partition_tree(c.oid::regclass) p
  JOIN pg_catalog.pg_class l ON l.oid = p.relid JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace
 WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'p' AND p.isleaf ORDER BY 1, 2
"""
_DEFINITION: Final = """
SELECT n.nspname::text, c.relname::text, c.relkind::text, c.relreplident::text,
       (SELECT array_agg(pg_catalog.concat_ws(' ', a.attname, a.atttypid, a.atttypmod, a.attnotnull) ORDER BY a.attnum)
          FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
       (SELECT array_agg(i.indexrelid::bigint ORDER BY i.indexrelid)
          FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident)),
       (SELECT array_agg(r.xmin::text ORDER BY r.oid) FROM pg_catalog.pg_publication_rel r WHERE r.prrelid = c.oid)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s
"""
_FIELD: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_POLL_SECONDS: Final = 0.2
_CANCEL_SECONDS: Final = 10.0


class Stopped(Exception):
    """The reader was asked to end."""


class Altered(Exception):
    """The table is not as it was described."""


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A column of the key, and how its index compares it.

    Attributes:
        name: the column's name.
        type: its type, as SQL writes it.
        less, equal, greater: schema and name of the operators.
        collation: schema and name of the index's collation; None for a type without one.
    """

    name: str
    type: str
    less: tuple[str, str]
    equal: tuple[str, str]
    greater: tuple[str, str]
    collation: tuple[str, str] | None

    def __str__(self) -> str:
        collation = "" if self.collation is None else f" COLLATE {table_text(*self.collation)}"
        return f"{quote_if_needed(self.name)} {self.type}{collation} {'.'.join(self.less)}"


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """A table that is read in chunks.

    Attributes:
        relation: as the stream describes it.
        types: OID, schema and name of the types of its columns that are not built in.
        row_filter: which rows the publications send, as SQL of the server; None is all.
        key: the columns of the key, in the order of its index; empty without one.
        is_partitioned: whether its partitions have the rows.
        estimated_rows: by its statistics; None is unknown.
        definition: what shows that the table or its publication was altered.
    """

    relation: Relation
    types: tuple[tuple[int, str, str], ...]
    row_filter: str | None
    key: tuple[KeyColumn, ...]
    is_partitioned: bool
    estimated_rows: int | None
    definition: tuple[object, ...] | None

    @property
    def name(self) -> TableName:
        """Schema and name."""
        return self.relation.schema, self.relation.table

    @property
    def sent(self) -> tuple[str, ...]:
        """The columns with their types, and the row filter; a row that was read with fewer of these lacks something."""
        columns = (f"{quote_if_needed(column.name)} {column.type_oid}" for column in self.relation.columns)
        return (*columns, f"WHERE {self.row_filter or 'true'}")

    @property
    def key_numbers(self) -> tuple[int, ...]:
        """Where the key's columns are in a row."""
        places = {column.name: number for number, column in enumerate(self.relation.columns)}
        return tuple(places[column.name] for column in self.key)


def expanded(conn: Connection, name: TableName, publications: Sequence[str]) -> list[TableName]:
    """Return the published tables for a name: a partitioned table whose partitions are published stands for those.

    Raises:
        NotFound: the table does not exist.
        Refused: the publications do not send it, or only some of its partitions.
    """
    sent = table_structures.published(conn, publications)
    if name in sent:
        return [name]
    leaves = [(schema, table) for schema, table in conn.execute(_LEAVES, name).fetchall()]
    published = [leaf for leaf in leaves if leaf in sent]
    if leaves and published == leaves:
        return leaves
    if published:
        texts = [table_text(*leaf) for leaf in published]
        raise Refused(
            f"the publications have only {len(texts)} of {counted(len(leaves), 'partition')} of {table_text(*name)}",
            hint=f"name those, each with --table: {named([shlex.quote(one) for one in texts], most=5)}; "
            "or publish the others",
        )
    if conn.execute(_ABOUT, name).fetchone() is None:
        raise NotFound(f"table {table_text(*name)} does not exist")
    raise _not_published(name)


def describe(
    conn: Connection, name: TableName, publications: Sequence[str], method: Method = Method.chunks
) -> ChunkTable:
    """Return how a table is read.

    Args:
        conn: the server.
        name: schema and name.
        publications: those of the stream.
        method: ``slot`` allows a table without a key.

    Raises:
        NotFound: it does not exist.
        Refused: it is not published, or has no key in the stream.
    """
    about = conn.execute(_ABOUT, name).fetchone()
    text = table_text(*name)
    if about is None:
        raise NotFound(f"table {text} does not exist")
    kind, rows = about
    found = next(iter(snapshot_tables.ls(conn, publications, lambda *other: other == name)), None)
    if found is None:
        raise _not_published(name)
    key = tuple(
        KeyColumn(
            column,
            type_name,
            (schemas[0], operators[0]),
            (schemas[1], operators[1]),
            (schemas[2], operators[2]),
            None if collation is None else (collation_schema, collation),
        )
        for column, type_name, schemas, operators, collation_schema, collation in conn.execute(
            _KEY, (found.relation.oid,)
        ).fetchall()
    )
    names = {column.name for column in found.relation.columns}
    missing = [column.name for column in key if column.name not in names]
    if method is Method.slot and missing:
        key = ()
    elif missing:
        raise Refused(f"table {text}: the publications do not send the column {missing[0]} of its key")
    elif not key and method is Method.chunks:
        raise Refused(
            f"table {text} has no primary key or replica identity index",
            hint=f"ALTER TABLE {text} ADD PRIMARY KEY (…), or REPLICA IDENTITY USING INDEX; --method slot writes it "
            "whole, after a TRUNCATE in the output",
        )
    definition = _definition(conn, found.relation.oid)
    relation = found.relation
    if key and relation.replica_identity == "f":
        relation = replace(relation, key=frozenset(column.name for column in key))
    return ChunkTable(relation, found.types, found.row_filter, key, kind == "p", rows or None, definition)


def _not_published(name: TableName) -> Refused:
    text = table_text(*name)
    return Refused(
        f"table {text} is not published in this stream",
        hint=f"add it: {command('publication add NAME --table {}', text)}",
    )


def is_unchanged(conn: Connection, table: ChunkTable) -> bool:
    """Return whether the table and what is published of it are the same as when it was described."""
    return _definition(conn, table.relation.oid) == table.definition


def _definition(conn: Connection, oid: int) -> tuple[object, ...] | None:
    return conn.execute(_DEFINITION, (oid,)).fetchone()


def lock_statement(table: ChunkTable) -> Composed:
    """Return what keeps the table's definition and file as they are until the end of the transaction."""
    from psycopg import sql

    return sql.SQL("LOCK TABLE {}{} IN ACCESS SHARE MODE").format(_only(table), sql.Identifier(*table.name))


def chunk_statement(table: ChunkTable, after: Cursor | None, rows: int, where: str | None) -> Composed:
    """Return the COPY of the first ROWS rows whose keys come after a cursor."""
    from psycopg import sql

    conditions = [] if after is None else [_after(table, after)]
    order = sql.SQL(", ").join(
        sql.SQL("{} USING {}").format(_column(column), _operator(column.less)) for column in table.key
    )
    return sql.SQL("COPY (SELECT {} FROM {}{} AS t{} ORDER BY {} LIMIT {}) TO STDOUT").format(
        _columns(table),
        _only(table),
        sql.Identifier(*table.name),
        _where(table, conditions, where),
        order,
        sql.Literal(rows),
    )


def whole_statement(table: ChunkTable, where: str | None) -> Composed:
    """Return the COPY of all rows."""
    from psycopg import sql

    return sql.SQL("COPY (SELECT {} FROM {}{} AS t{}) TO STDOUT").format(
        _columns(table), _only(table), sql.Identifier(*table.name), _where(table, (), where)
    )


def keys_statement(table: ChunkTable, keys: Sequence[Cursor], where: str | None) -> Composed:
    """Return the COPY of the rows with these keys."""
    from psycopg import sql

    one_of = [
        sql.SQL(" AND ").join(
            _compared(column, column.equal, value) for column, value in zip(table.key, key, strict=True)
        )
        for key in keys
    ]
    condition = sql.SQL("({})").format(sql.SQL(" OR ").join(sql.SQL("({})").format(one) for one in one_of))
    return sql.SQL("COPY (SELECT {} FROM {}{} AS t{}) TO STDOUT").format(
        _columns(table), _only(table), sql.Identifier(*table.name), _where(table, [condition], where)
    )


def condition_checks(table: ChunkTable, where: str) -> tuple[Composed, ...]:
    """Return statements of which one is an error unless WHERE is one condition on the table's rows.

    A comment that hides what follows, and text after the end of the condition, are syntax errors in the first. In the
    second, parentheses that end early are: ``a) OR (b`` would be read with another precedence in a chunk's statement.
    Two statements, because a string could begin in the first half of a single one and end in the second.
    """
    from psycopg import sql

    table_sql = sql.SQL("{}{}").format(_only(table), sql.Identifier(*table.name))
    return tuple(
        sql.SQL(text).format(sql.SQL(where), table_sql)
        for text in (
            "SELECT (\n{}\n)::pg_catalog.bool FROM {} AS t LIMIT 0",
            "SELECT CASE WHEN\n{}\nTHEN true END FROM {} AS t LIMIT 0",
        )
    )


def cursor_of(table: ChunkTable, line: str) -> Cursor:
    """Return the key of a line of COPY's text format."""
    fields = line.split("\t")
    key: list[str] = []
    for number in table.key_numbers:
        if fields[number] == "\\N":
            raise Refused(f"a row of {table_text(*table.name)} has a null in its key")
        key.append(_FIELD.sub(lambda match: _ESCAPES.get(match[1], match[1]), fields[number]))
    return tuple(key)


def copied(conn: Connection, statement: Composed, is_stopped: Callable[[], bool]) -> Generator[bytes, None, None]:
    """Yield the lines of a COPY, each with its newline; nothing here waits longer than a moment within libpq.

    The statement is sent alone: the server refuses a second one behind it. Closing the generator before its end cancels
    the statement: the connection can be used again, after its transaction is rolled back.

    Raises:
        Stopped: the reader was asked to end; the connection cannot be used again.
        Error: the statement failed.
    """
    from psycopg import errors, pq
    from psycopg.errors import error_from_result

    pgconn = conn.pgconn

    def receive() -> None:
        while not select.select([pgconn.socket], [], [], _POLL_SECONDS)[0]:
            if is_stopped():
                raise Stopped
        pgconn.consume_input()

    try:
        pgconn.send_query_params(statement.as_bytes(conn), None)
        while pgconn.flush():
            select.select([pgconn.socket], [pgconn.socket], [], _POLL_SECONDS)
            pgconn.consume_input()
        while pgconn.is_busy():
            receive()
        result = pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            raise translate(errors.OperationalError("no answer") if result is None else error_from_result(result))
        get = pgconn.get_copy_data
        length, line = get(1)
        while length >= 0:
            if length:
                try:
                    yield bytes(line)
                except GeneratorExit:
                    conn.cancel_safe(timeout=_CANCEL_SECONDS)
                    while (length := get(1)[0]) >= 0:
                        if not length:
                            receive()
                    while pgconn.get_result() is not None:
                        pass
                    raise
            else:
                receive()
            length, line = get(1)
        while True:
            while pgconn.is_busy():
                receive()
            ended = pgconn.get_result()
            if ended is None:
                return
            if ended.status != pq.ExecStatus.COMMAND_OK:
                raise translate(error_from_result(ended))
    except errors.Error as exc:
        raise translate(exc) from exc


def _columns(table: ChunkTable) -> Composed:
    from psycopg import sql

    return sql.SQL(", ").join(sql.Identifier("t", column.name) for column in table.relation.columns)


def _only(table: ChunkTable) -> Composable:
    from psycopg import sql

    return sql.SQL("" if table.is_partitioned else "ONLY ")


def _where(table: ChunkTable, conditions: Sequence[Composable], where: str | None) -> Composable:
    from psycopg import sql

    every = [*conditions]
    if table.row_filter is not None:
        every.append(sql.SQL("({})").format(sql.SQL(table.row_filter)))
    if where is not None:
        every.append(sql.SQL("(\n{}\n)").format(sql.SQL(where)))
    return sql.SQL(" WHERE {}").format(sql.SQL(" AND ").join(every)) if every else sql.SQL("")


def _operator(name: tuple[str, str]) -> Composed:
    from psycopg import sql

    return sql.SQL("OPERATOR({}.{})").format(sql.Identifier(name[0]), sql.SQL(name[1]))


def _column(column: KeyColumn) -> Composable:
    from psycopg import sql

    name = sql.Identifier("t", column.name)
    if column.collation is None:
        return name
    return sql.SQL("{} COLLATE {}").format(name, sql.Identifier(*column.collation))


def _value(column: KeyColumn, value: str) -> Composed:
    from psycopg import sql

    return sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(column.type))


def _compared(column: KeyColumn, operator: tuple[str, str], value: str) -> Composed:
    from psycopg import sql

    return sql.SQL("{} {} {}").format(_column(column), _operator(operator), _value(column, value))


def _after(table: ChunkTable, cursor: Cursor) -> Composable:
    """Return the condition on a key that comes after a cursor; a comparison of rows if one operator compares all."""
    from psycopg import sql

    if len(cursor) != len(table.key):
        raise Refused(f"the cursor of {table_text(*table.name)} has not as many values as its key has columns")
    if len({column.greater for column in table.key}) == 1:
        return sql.SQL("ROW({}) {} ROW({})").format(
            sql.SQL(", ").join(map(_column, table.key)),
            _operator(table.key[0].greater),
            sql.SQL(", ").join(_value(column, value) for column, value in zip(table.key, cursor, strict=True)),
        )
    condition: Composable = sql.SQL("false")
    for column, value in reversed(list(zip(table.key, cursor, strict=True))):
        condition = sql.SQL("({} OR ({} AND {}))").format(
            _compared(column, column.greater, value), _compared(column, column.equal, value), condition
        )
    return condition
