"""The statements that read the rows of a table in chunks, in the order of the key.

Only the server compares keys: with the operators and collations of the key's index, which define its order, and which
an empty ``search_path`` would not find by their names. The cursor is the server's text of the last key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import Refused
from rdsrepl.snapshot.chunk_table import ChunkTable, Cursor, KeyColumn
from rdsrepl.snapshot.requests import table_text

if TYPE_CHECKING:
    from psycopg.sql import Composable, Composed

#: what a session sets: rows come from the key's index, whatever the statistics say, and no other process helps.
SETTINGS: Final = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "enable_incremental_sort": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}

_FIELD: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


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
