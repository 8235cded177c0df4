"""A table that is read in chunks: what the publications send of it, and the key that orders its rows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import NotFound, Refused
from rdsrepl.postgres import table_structures
from rdsrepl.postgres.sql_names import quote_if_needed
from rdsrepl.postgres.table_structures import TableName
from rdsrepl.snapshot import tables as snapshot_tables
from rdsrepl.snapshot.requests import Method, table_text
from rdsrepl.tail.model import Relation
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted, named

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

#: The server's text of a key's values.
Cursor = tuple[str, ...]

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
