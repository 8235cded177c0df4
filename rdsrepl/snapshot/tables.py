"""The tables of a snapshot: what the publications send of each, and its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import Denied
from rdsrepl.postgres import table_structures, versions
from rdsrepl.postgres.connection import server_version
from rdsrepl.postgres.table_structures import TableName
from rdsrepl.snapshot.requests import table_text
from rdsrepl.tail.model import Column, Relation
from rdsrepl.text.commands import command
from rdsrepl.text.counts import named
from rdsrepl.text.escapes import shown

if TYPE_CHECKING:
    from psycopg.sql import Composable, Composed

    from rdsrepl.postgres.connection import Connection

# A range has at least so many pages: 8 MB.
_FEWEST_PAGES: Final = 1_024
_RANGES_PER_WORKER: Final = 4
# In a command to paste.
_MOST_GRANTED: Final = 20

_TABLE: Final = """
SELECT c.oid::bigint, c.relreplident::text, c.relkind::text FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s
"""
# As pgoutput sends them: the key is the index of the replica identity, with FULL every column.
_COLUMNS: Final = """
SELECT a.attname::text, a.atttypid::bigint, a.atttypmod,
       c.relreplident = 'f' OR EXISTS (
         SELECT FROM pg_catalog.pg_index i
          WHERE i.indrelid = c.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
            AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END),
       tn.nspname::text, t.typname::text, a.attgenerated = ''
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
 WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_PARTS: Final = """
SELECT n.nspname::text, c.relname::text,
       pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::bigint
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND (c.oid = %(oid)s
       OR c.oid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree(%(oid)s::oid::regclass) p WHERE p.isleaf))
 ORDER BY 3 DESC
"""
# The keys by which chunks are read (``chunks``).
_KEYS: Final = """
SELECT c.oid::bigint,
       (SELECT array_agg(a.attname::text) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a
            ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
         WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
           AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'f' THEN i.indisprimary
               WHEN 'i' THEN i.indisreplident ELSE false END)
  FROM pg_catalog.pg_class c WHERE c.oid = ANY (%s)
"""
_INTEGER_KEY: Final = """
SELECT a.attname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary AND i.indisvalid AND i.indnkeyatts = 1
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
 WHERE n.nspname = %s AND c.relname = %s
   AND a.atttypid IN ('pg_catalog.int2'::regtype, 'pg_catalog.int4'::regtype, 'pg_catalog.int8'::regtype)
"""
# Partitions are read directly: a right on the partitioned table is not enough.
_UNREADABLE: Final = """
SELECT n.nspname::text, c.relname::text, pg_catalog.row_security_active(c.oid), current_user::text
  FROM unnest(%s::text[], %s::text[]) w (nspname, relname)
  JOIN pg_catalog.pg_namespace n ON n.nspname = w.nspname
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname
 WHERE pg_catalog.row_security_active(c.oid) OR NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
    OR NOT (pg_catalog.has_table_privilege(c.oid, 'SELECT') OR pg_catalog.has_any_column_privilege(c.oid, 'SELECT'))
 ORDER BY 3 DESC, 1, 2
"""
_LIMITS: Final = "SELECT pg_catalog.min({key}), pg_catalog.max({key}) FROM ONLY {part}"


@dataclass(frozen=True, slots=True)
class SnapshotTable:
    """A table of a snapshot.

    Attributes:
        relation: as the stream describes it.
        types: OID, schema and name of the types of its columns.
        row_filter: which rows the publications send, as SQL of the server; None is all.
        parts: the table, or the partitions that have its rows: name and number of pages, the largest first.
    """

    relation: Relation
    types: tuple[tuple[int, str, str], ...]
    row_filter: str | None
    parts: tuple[tuple[TableName, int], ...]

    @property
    def full_name(self) -> TableName:
        """Schema and name."""
        return self.relation.schema, self.relation.table

    @property
    def name(self) -> str:
        """Its name for people."""
        return f"{self.relation.schema}.{self.relation.table}"


@dataclass(frozen=True, slots=True)
class TableRange:
    """A part of a table that one statement reads: of pages, or of the values of an integer key.

    Attributes:
        table: the number of the table in the snapshot.
        part: the table or partition.
        first, end: its first page or value, and the first one behind it; None is no limit.
        key: the column with the values; None is pages.
    """

    table: int
    part: TableName
    first: int | None = None
    end: int | None = None
    key: str | None = None


def ls(conn: Connection, publications: Sequence[str], wants: Callable[[str, str], bool]) -> list[SnapshotTable]:
    """Return the tables that publications send, the largest first."""
    sent = table_structures.published(conn, publications)
    found = [_table(conn, name, columns, row_filter) for name, (columns, row_filter) in sent.items() if wants(*name)]
    return sorted(found, key=lambda table: (-sum(pages for _, pages in table.parts), table.name))


def _table(conn: Connection, name: TableName, sent: frozenset[str] | None, row_filter: str | None) -> SnapshotTable:
    row = conn.execute(_TABLE, name).fetchone()
    assert row is not None
    oid, identity, _ = row
    sends_generated = server_version(conn) >= versions.GENERATED_COLUMNS_SINCE  # before, 15 lists them nevertheless
    columns: list[Column] = []
    types: set[tuple[int, str, str]] = set()
    for column, type_oid, typmod, is_key, type_schema, type_name, is_stored in conn.execute(
        _COLUMNS, (oid,)
    ).fetchall():
        if (is_stored or sends_generated) and (sent is None or column in sent):
            columns.append(Column(column, type_oid, typmod, is_key))
            if type_schema != "pg_catalog":
                types.add((type_oid, type_schema, type_name))
    parts = [((schema, part), pages) for schema, part, pages in conn.execute(_PARTS, {"oid": oid}).fetchall()]
    relation = Relation(oid, name[0], name[1], identity, tuple(columns))
    return SnapshotTable(relation, tuple(sorted(types)), row_filter, tuple(parts))


def require_readable(conn: Connection, tables: Sequence[SnapshotTable]) -> None:
    """Check that this role may read all rows of tables: in the middle of a copy is too late.

    Raises:
        Denied: it may not.
    """
    parts = [name for table in tables for name, _ in table.parts]
    schemas, names = [schema for schema, _ in parts], [name for _, name in parts]
    found = conn.execute(_UNREADABLE, (schemas, names)).fetchall()
    if not found:
        return
    role, has_policies = found[0][3], found[0][2]
    listed = [table_text(schema, name) for schema, name, by_policy, _ in found if by_policy == has_policies]
    if has_policies:
        raise Denied(
            f"row security policies hide rows from role {shown(role)}: {named(listed, most=3)}",
            hint="use the owner of the tables, or a role with BYPASSRLS",
        )
    some = listed[:_MOST_GRANTED]
    grant = command(f"role grant {{}} --user ADMIN{' --grant-select {}' * len(some)}", role, *some)
    raise Denied(f"role {shown(role)} may not read {named(listed, most=3)}", hint=f"grant it: {grant}")


def without_key(conn: Connection, tables: Sequence[SnapshotTable]) -> list[SnapshotTable]:
    """Return the tables that cannot be read in chunks: they have no key, or the publications do not send it."""
    rows = conn.execute(_KEYS, ([table.relation.oid for table in tables],)).fetchall()
    keys = {oid: key for oid, key in rows if key}
    return [
        table
        for table in tables
        if not {column.name for column in table.relation.columns} >= set(keys.get(table.relation.oid, [""]))
    ]


def ranges(
    conn: Connection, tables: Sequence[SnapshotTable], workers: int, *, by_pages: bool | None = None
) -> list[TableRange]:
    """Return the ranges of all tables, those of the largest first.

    Args:
        conn: the server, in the snapshot.
        tables: the tables.
        workers: how many processes read them.
        by_pages: whether the server reads a range of pages by itself; None asks its version. Before 14 it reads the
            whole table for each: then the ranges are of a primary key with one integer column, or of the whole table.
    """
    if by_pages is None:
        by_pages = server_version(conn) >= versions.TID_RANGES_SINCE
    found: list[TableRange] = []
    for number, table in enumerate(tables):
        for part, pages in table.parts:
            most = _RANGES_PER_WORKER * workers
            count = max(1, min(most, -(-pages // _FEWEST_PAGES)))
            key, low, high = (None, 0, pages) if by_pages or count == 1 else _integer_key(conn, table, part)
            edges = sorted({low + (high - low) * place // count for place in range(1, count)} - {low})
            for first, end in zip([None, *edges], [*edges, None], strict=True):
                found.append(TableRange(number, part, first, end, key))
    return found


def _integer_key(conn: Connection, table: SnapshotTable, part: TableName) -> tuple[str | None, int, int]:
    """Return a primary key of one integer column that is sent, its least value and the one behind its greatest."""
    from psycopg import sql

    row = conn.execute(_INTEGER_KEY, part).fetchone()
    if row is None or row[0] not in {column.name for column in table.relation.columns}:
        return None, 0, 0
    limits = sql.SQL(_LIMITS).format(key=sql.Identifier(row[0]), part=sql.Identifier(*part))
    limit = conn.execute(limits).fetchone()
    return (None, 0, 0) if limit is None or limit[0] is None else (row[0], int(limit[0]), int(limit[1]) + 1)


def copy_statement(table: SnapshotTable, wanted: TableRange) -> Composed:
    """Return the COPY of a range's rows, as text."""
    from psycopg import sql

    conditions: list[Composable] = [sql.SQL("true")]
    for operator, limit in ((">=", wanted.first), ("<", wanted.end)):
        if limit is None:
            continue
        if wanted.key is None:
            column, value = sql.Identifier("t", "ctid"), sql.SQL("{}::pg_catalog.tid").format(f"({limit},0)")
        else:
            column, value = sql.Identifier("t", wanted.key), sql.SQL("{}::pg_catalog.int8").format(limit)
        conditions.append(sql.SQL("{} {} {}").format(column, sql.SQL(operator), value))
    if table.row_filter is not None:
        conditions.append(sql.SQL("({})").format(sql.SQL(table.row_filter)))
    return sql.SQL("COPY (SELECT {} FROM ONLY {} AS t WHERE {}) TO STDOUT").format(
        sql.SQL(", ").join(sql.Identifier("t", column.name) for column in table.relation.columns),
        sql.Identifier(*wanted.part),
        sql.SQL(" AND ").join(conditions),
    )
