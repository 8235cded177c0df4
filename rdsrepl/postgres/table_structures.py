"""Read the structure of tables: columns with their types, unique keys, what a publication sends of each.

Manual, sections 52.7 (``pg_attribute``), 52.26 (``pg_index``), 54.17 (``pg_publication_tables``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.postgres import collations, versions
from rdsrepl.postgres.collations import Ordering
from rdsrepl.postgres.connection import server_version

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

#: Schema and name of a table.
TableName = tuple[str, str]
#: The columns of a table that ``rdsrepl snapshot create-table`` creates, with their types.
SNAPSHOT_STATE_COLUMNS: Final = {
    "slot_name": "text",
    "writer": "text",
    "saved_at": "timestamp with time zone",
    "content": "text",
}


@dataclass(frozen=True, slots=True)
class ColumnType:
    """The type of a column.

    Attributes:
        text: as SQL writes it, with its schema where it is not a built-in type and without a modifier.
        builtin: its name in ``pg_catalog``, for a domain that of its base type; None for another type.
        ordering: how the server sorts it, if its order depends on a collation.
        is_generated: the server computes its values.
    """

    text: str
    builtin: str | None
    ordering: Ordering | None = None
    is_generated: bool = False


@dataclass(frozen=True, slots=True)
class TableStructure:
    """A table.

    Attributes:
        relkind: ``r`` for an ordinary table, ``p`` for a partitioned table.
        columns: the types of its columns by name, in the table's order.
        keys: its valid, immediate, unique indexes on columns that are not null: the primary key first, then the
            replica identity.
        estimated_rows: what the last ANALYZE or VACUUM counted; 0 where none ran.
        partition_of: the partitioned table at the top of which it is a partition.
        published_columns: what the publication sends; None is all columns that are not generated.
        row_filter: the publication's row filter, as the server prints it; None without one.
    """

    schema: str
    name: str
    relkind: str
    columns: dict[str, ColumnType]
    keys: tuple[tuple[str, ...], ...]
    estimated_rows: int
    partition_of: TableName | None = None
    published_columns: frozenset[str] | None = None
    row_filter: str | None = None

    @property
    def full_name(self) -> TableName:
        """Schema and name."""
        return self.schema, self.name

    @property
    def has_snapshot_state(self) -> bool:
        """Whether it is a table in which rdsrepl keeps the state of snapshots; no stream has its changes."""
        return {name: one.text for name, one in self.columns.items()} == SNAPSHOT_STATE_COLUMNS

    @property
    def sent(self) -> tuple[str, ...]:
        """The columns that are sent, in the table's order."""
        if self.published_columns is None:
            return tuple(name for name, type_ in self.columns.items() if not type_.is_generated)
        return tuple(name for name in self.columns if name in self.published_columns)


_TABLES: Final = """
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, greatest(c.reltuples, 0)::bigint,
       (SELECT ARRAY[s.nspname::text, p.relname::text] FROM pg_catalog.pg_class p
          JOIN pg_catalog.pg_namespace s ON s.oid = p.relnamespace
         WHERE p.oid = pg_catalog.pg_partition_root(c.oid) AND c.relispartition)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""
_ALL: Final = """
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
   AND n.nspname !~ '^pg_(toast|temp)'
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY 2, 3
"""
_NAMED: Final = """
  JOIN unnest(%(schemas)s::text[], %(names)s::text[]) w (nspname, relname)
    ON w.nspname = n.nspname AND w.relname = c.relname
 WHERE c.relkind IN ('r', 'p') ORDER BY 2, 3
"""
_COLUMNS: Final = """
SELECT a.attrelid, a.attname::text, pg_catalog.format_type(a.atttypid, NULL),
       (SELECT b.typname::text FROM pg_catalog.pg_type b
         WHERE b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
           AND b.typnamespace = 'pg_catalog'::regnamespace AND b.typtype = 'b'),
       a.attcollation, a.attgenerated <> ''
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = ANY (%s) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum
"""
_KEYS: Final = """
SELECT i.indrelid,
       (SELECT array_agg(a.attname::text ORDER BY k.place)
          FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, place)
          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
         WHERE k.place <= i.indnkeyatts)
  FROM pg_catalog.pg_index i
 WHERE i.indrelid = ANY (%s) AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
   AND i.indexprs IS NULL
   AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, place)
                     JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                    WHERE k.place <= i.indnkeyatts AND NOT a.attnotnull)
 ORDER BY i.indrelid, i.indisprimary DESC, i.indisreplident DESC, i.indnatts, i.indexrelid
"""
# Before 18 the list of a publication names generated columns, which the server does not send.
_SENT: Final = """
(SELECT coalesce(array_agg(n.name::text), '{{}}') FROM unnest(t.attnames) n (name)
  WHERE {is_exact}
     OR NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                      JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relname = t.tablename
                      JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace AND s.nspname = t.schemaname
                     WHERE a.attname = n.name AND a.attgenerated <> ''))
"""
_PUBLISHED: Final = """
SELECT t.schemaname::text, t.tablename::text, {columns}, {filter}, p.pubviaroot
  FROM pg_catalog.pg_publication_tables t JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname
 WHERE t.pubname = ANY (%s)
"""
_ANCESTORS: Final = """
SELECT n.nspname::text, c.relname::text, an.nspname::text, a.relname::text
  FROM unnest(%s::text[], %s::text[]) w (nspname, relname)
  JOIN pg_catalog.pg_namespace n ON n.nspname = w.nspname
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname AND c.relispartition
 CROSS JOIN LATERAL pg_catalog.pg_partition_ancestors(c.oid) p (relid)
  JOIN pg_catalog.pg_class a ON a.oid = p.relid AND a.oid <> c.oid
  JOIN pg_catalog.pg_namespace an ON an.oid = a.relnamespace
"""


def ls(conn: Connection, names: Sequence[TableName] | None = None) -> list[TableStructure]:
    """Return tables by schema and name; those that do not exist are left out.

    Args:
        conn: the database.
        names: the tables; None is every permanent table, also partitions, that does not belong to an extension.
    """
    if names is None:
        tables = conn.execute(_TABLES + _ALL).fetchall()
    else:
        wanted = {"schemas": [schema for schema, _ in names], "names": [name for _, name in names]}
        tables = conn.execute(_TABLES + _NAMED, wanted).fetchall()
    oids = [row[0] for row in tables]
    columns: dict[int, dict[str, ColumnType]] = {oid: {} for oid in oids}
    found = conn.execute(_COLUMNS, (oids,)).fetchall()
    orderings = collations.ls(conn, (row[4] for row in found))
    for oid, name, text, builtin, collation, is_generated in found:
        columns[oid][name] = ColumnType(text, builtin, orderings.get(collation), is_generated)
    keys: dict[int, list[tuple[str, ...]]] = {oid: [] for oid in oids}
    for oid, key in conn.execute(_KEYS, (oids,)).fetchall():
        keys[oid].append(tuple(key))
    return [
        TableStructure(
            schema, name, relkind, columns[oid], tuple(keys[oid]), rows, (root[0], root[1]) if root else None
        )
        for oid, schema, name, relkind, rows, root in tables
    ]


def published(
    conn: Connection, publications: Sequence[str]
) -> dict[TableName, tuple[frozenset[str] | None, str | None]]:
    """Return what publications send of each of their tables: the columns, None for all, and the row filter.

    A table of several publications is sent if the filter of one of them accepts the row. A partition that one of them
    sends under the name of a partitioned table is left out: the server then sends it under no other name.
    """
    from psycopg import sql

    version = server_version(conn)
    has_lists = version >= versions.PUBLICATION_FILTERS_SINCE
    exactly = sql.SQL(_SENT).format(is_exact=sql.Literal(version >= versions.GENERATED_COLUMNS_SINCE))
    query = sql.SQL(_PUBLISHED).format(
        columns=exactly if has_lists else sql.SQL("NULL::text[]"),
        filter=sql.SQL("t.rowfilter" if has_lists else "NULL::text"),
    )
    sent: dict[TableName, tuple[frozenset[str] | None, str | None]] = {}
    roots: set[TableName] = set()
    for schema, name, columns, row_filter, via_root in conn.execute(query, (list(publications),)).fetchall():
        if via_root:
            roots.add((schema, name))
        these = None if columns is None else frozenset(columns)
        if (schema, name) in sent:
            # The server refuses different column lists of one table in one subscription.
            _, other = sent[schema, name]
            row_filter = None if row_filter is None or other is None else f"({other}) OR ({row_filter})"
        sent[schema, name] = these, row_filter
    if roots and len(publications) > 1:  # one publication does not list both
        names = [list(part) for part in zip(*sent, strict=True)]
        for schema, name, *ancestor in conn.execute(_ANCESTORS, names).fetchall():
            if tuple(ancestor) in roots:
                sent.pop((schema, name), None)
    return sent
