"""Publications: ``pg_publication`` and its tables (manual, sections 31.1 and 54.17)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from rdsrepl import errors
from rdsrepl.postgres import versions
from rdsrepl.postgres.connection import server_version
from rdsrepl.postgres.publication_checks import PublicationFacts, TableFacts
from rdsrepl.text.suggestions import did_you_mean

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection


OPERATIONS: Final = ("insert", "update", "delete", "truncate")


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A published table.

    Attributes:
        schemaname, tablename: its name.
        replica_identity: ``default``, ``nothing``, ``full`` or ``index``.
        identity_columns: the columns of the replica identity.
        attnames: the published columns; None is all columns.
        rowfilter: the row filter; None without one.
        partition_of: the root table of a partition.
        relkind: ``r`` for an ordinary table, ``p`` for a partitioned table that is published under its own name, ``f``
            for a foreign partition, which is listed but not replicated.
        partition_count: how many partitions hold the rows of a partitioned table.
    """

    schemaname: str
    tablename: str
    replica_identity: str
    identity_columns: tuple[str, ...]
    attnames: tuple[str, ...] | None
    rowfilter: str | None
    partition_of: str | None
    relkind: str
    partition_count: int | None


@dataclass(frozen=True, slots=True)
class Publication:
    """A row of ``pg_publication``.

    Attributes:
        schemas: the schemas of which all tables are published (15+).
        table_count: how many tables it publishes now, partitions included.
        pubgencols: ``none`` or ``stored`` (18+); None before.
    """

    pubname: str
    owner: str
    puballtables: bool
    pubinsert: bool
    pubupdate: bool
    pubdelete: bool
    pubtruncate: bool
    pubviaroot: bool
    pubgencols: str | None
    schemas: tuple[str, ...]
    table_count: int

    @property
    def publish(self) -> tuple[str, ...]:
        """The published operations."""
        flags = (self.pubinsert, self.pubupdate, self.pubdelete, self.pubtruncate)
        return tuple(name for name, on in zip(OPERATIONS, flags, strict=True) if on)


@dataclass(frozen=True, slots=True)
class PublicationDetails:
    """A publication with its tables."""

    publication: Publication
    tables: tuple[PublishedTable, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A table in the list of a publication, with its column list and row filter or None."""

    columns: tuple[str, ...] | None
    predicate: str | None

    @property
    def description(self) -> str:
        """What of the table is published, in words."""
        columns = "all columns" if self.columns is None else f"columns {', '.join(self.columns)}"
        return f"{columns} and {'all rows' if self.predicate is None else f'rows WHERE {self.predicate}'}"


@dataclass(frozen=True, slots=True)
class _Row:
    oid: int
    schemaname: str
    tablename: str
    facts: TableFacts


_LIST: Final = """
SELECT p.pubname::text, pg_get_userbyid(p.pubowner)::text, p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete,
       p.pubtruncate, p.pubviaroot, {gencols}, {schemas},
       (SELECT count(*) FROM pg_catalog.pg_publication_tables t WHERE t.pubname = p.pubname)
  FROM pg_catalog.pg_publication p ORDER BY p.pubname
"""
_SCHEMAS: Final = """
coalesce((SELECT array_agg(n.nspname::text ORDER BY n.nspname) FROM pg_catalog.pg_publication_namespace pn
            JOIN pg_catalog.pg_namespace n ON n.oid = pn.pnnspid WHERE pn.pnpubid = p.oid), '{}')
"""
_GENCOLS: Final = "CASE p.pubgencols WHEN 's' THEN 'stored' ELSE 'none' END"
# Facts about tables; the queries below select which. A deferrable key or an invalid index is no replica identity.
_TABLE_FACTS: Final = """
SELECT c.oid, n.nspname::text, c.relname::text, format('%%I.%%I', n.nspname, c.relname), c.relkind::text,
       c.relpersistence::text, c.relreplident::text,
       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_index i
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
                  WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                    AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident
                        ELSE false END), '{{}}'),
       EXISTS (SELECT FROM pg_catalog.pg_index i
                WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate),
       {filter}, {filter_columns}, {columns},
       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
                  WHERE a.attrelid = c.oid AND a.attgenerated = 's' AND NOT a.attisdropped), '{{}}'),
       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
                  WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped), '{{}}'),
       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
                   JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND t.typname IN ('oid', 'lo') AND NOT a.attisdropped),
                '{{}}'),
       {parent},
       CASE c.relkind WHEN 'p' THEN (SELECT count(*) FROM pg_partition_tree(c.oid) pt WHERE pt.isleaf) END,
       coalesce(pg_relation_size(c.oid), 0)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""
# These are separate queries, joined in Python: with many tables and old statistics, the server needs seconds for every
# thousand tables to join pg_depend.
_SEQUENCES: Final = """
SELECT s.oid, format('%I.%I', n.nspname, s.relname) FROM pg_catalog.pg_class s
  JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace WHERE s.relkind = 'S' ORDER BY 2
"""
_FEEDS: Final = """
SELECT d.objid, d.refobjid FROM pg_catalog.pg_depend d
 WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
   AND d.objid = ANY (%(sequences)s)
UNION
SELECT d.refobjid, e.adrelid FROM pg_catalog.pg_attrdef e
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = e.oid
       AND d.refclassid = 'pg_class'::regclass
 WHERE d.refobjid = ANY (%(sequences)s)
"""
_REFERENCES: Final = """
SELECT k.confrelid, array_agg(DISTINCT format('%I.%I', n.nspname, c.relname))
  FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid <> k.confrelid
 GROUP BY k.confrelid
"""
# The parent of a partition: its root, or the ancestor that is published instead of it.
_ROOT: Final = """
(SELECT format('%%I.%%I', rn.nspname, rc.relname) FROM pg_catalog.pg_class rc
   JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
  WHERE c.relispartition AND rc.oid = pg_partition_root(c.oid))
"""
PUBLISHED_ROOT: Final = """
(SELECT format('%%I.%%I', rn.nspname, rc.relname) FROM pg_partition_ancestors(c.oid) pa
   JOIN pg_catalog.pg_class rc ON rc.oid = pa.relid JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
  WHERE c.relispartition AND pa.relid <> c.oid AND pa.relid = ANY (%(roots)s) LIMIT 1)
"""
_PUBLISHED: Final = """
  JOIN pg_catalog.pg_publication_tables t ON t.schemaname = n.nspname AND t.tablename = c.relname
  LEFT JOIN pg_catalog.pg_publication_rel pr ON pr.prrelid = c.oid
       AND pr.prpubid = (SELECT oid FROM pg_catalog.pg_publication WHERE pubname = t.pubname)
 WHERE t.pubname = %(name)s ORDER BY n.nspname, c.relname
"""
_PARTITIONED: Final = """
  LEFT JOIN pg_catalog.pg_publication_rel pr ON pr.prrelid = c.oid
       AND pr.prpubid = (SELECT oid FROM pg_catalog.pg_publication WHERE pubname = %(name)s)
 WHERE c.relkind = 'p'
   AND (pr.oid IS NOT NULL OR (NOT c.relispartition AND (%(all)s OR n.nspname = ANY (%(schemas)s))))
 ORDER BY n.nspname, c.relname
"""
_PARTITIONS: Final = """
  LEFT JOIN pg_catalog.pg_publication_rel pr ON false
 WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.relispartition
   AND EXISTS (SELECT FROM pg_partition_ancestors(c.oid) a WHERE a.relid = ANY (%(roots)s))
 ORDER BY n.nspname, c.relname
"""
# Without temporary tables of other sessions and objects of extensions.
_LEFT_OUT: Final = """
  LEFT JOIN pg_catalog.pg_publication_rel pr ON false
 WHERE (c.relkind IN ('v', 'm', 'f') OR (c.relkind = 'r' AND c.relpersistence <> 'p'))
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
   AND (%(all)s OR n.nspname = ANY (%(schemas)s)
        OR (c.relispartition AND EXISTS (SELECT FROM pg_partition_ancestors(c.oid) a WHERE a.relid = ANY (%(roots)s))))
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY n.nspname, c.relname
"""
REQUESTED: Final = """
  LEFT JOIN pg_catalog.pg_publication_rel pr ON false
 WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
   AND (%(all)s OR n.nspname = ANY (%(schemas)s) OR c.oid = ANY (%(roots)s)
        OR (c.relispartition AND EXISTS (SELECT FROM pg_partition_ancestors(c.oid) a WHERE a.relid = ANY (%(roots)s))))
 ORDER BY n.nspname, c.relname
"""
_MEMBERS: Final = """
SELECT pr.prrelid, {columns}, {filter} FROM pg_catalog.pg_publication_rel pr
  JOIN pg_catalog.pg_publication p ON p.oid = pr.prpubid WHERE p.pubname = %s
"""
_MEMBER_COLUMNS: Final = """
(SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
  WHERE a.attrelid = pr.prrelid AND a.attnum = ANY (pr.prattrs::int2[]))
"""
_MEMBER_FILTER: Final = "pg_get_expr(pr.prqual, pr.prrelid)"
_FILTER_COLUMNS: Final = """
coalesce((SELECT array_agg(DISTINCT a.attname::text) FROM pg_catalog.pg_attribute a
           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND pr.prqual::text ~
                 (':varno 1 :varattno ' || a.attnum || ' ')), '{}')
"""
_IDENTITY: Final = {"d": "default", "n": "nothing", "f": "full", "i": "index"}


def ls(conn: Connection) -> list[Publication]:
    """Return the database's publications, by name."""
    from psycopg import sql

    version = server_version(conn)
    query = sql.SQL(_LIST).format(
        gencols=sql.SQL(_GENCOLS if version >= versions.GENERATED_COLUMNS_SINCE else "NULL"),
        schemas=sql.SQL(_SCHEMAS if version >= versions.PUBLICATION_FILTERS_SINCE else "'{}'::text[]"),
    )
    rows = conn.execute(query).fetchall()
    return [Publication(*(*row[:9], tuple(row[9]), row[10])) for row in rows]


def get(conn: Connection, name: str) -> Publication:
    """Return one publication.

    Raises:
        NotFound: the database has no such publication.
    """
    everything = ls(conn)
    for publication in everything:
        if publication.pubname == name:
            return publication
    raise errors.NotFound(
        f"no publication {name} in database {conn.info.dbname}",
        hint=did_you_mean(
            name,
            [publication.pubname for publication in everything],
            otherwise="list them: rdsrepl publication list; each belongs to one database",
        ),
    )


def published(conn: Connection, name: str) -> PublicationDetails:
    """Return a publication with its tables.

    Raises:
        NotFound: the database has no such publication.
    """
    publication = get(conn, name)
    rows = table_facts(conn, _PUBLISHED, {"name": name})
    return PublicationDetails(publication, tuple(_table(row) for row in rows))


def facts(conn: Connection, name: str) -> PublicationFacts:
    """Return the facts that the checks need.

    Raises:
        NotFound: the database has no such publication.
    """
    publication = get(conn, name)
    scope = {"name": name, "all": publication.puballtables, "schemas": list(publication.schemas)}
    # The view also lists foreign and unlogged partitions, which are not replicated.
    tables = [
        row
        for row in table_facts(conn, _PUBLISHED, scope)
        if row.facts.relkind in ("r", "p") and row.facts.relpersistence == "p"
    ]
    # With pubviaroot the view lists the partitioned tables themselves.
    roots = [] if publication.pubviaroot else table_facts(conn, _PARTITIONED, scope)
    scope["roots"] = [row.oid for row in (*tables, *roots) if row.facts.relkind == "p"]
    partitions: list[TableFacts] = []
    if publication.pubviaroot and scope["roots"]:
        lists = {row.facts.name: row.facts for row in tables}
        for row in table_facts(conn, _PARTITIONS, scope, parent=PUBLISHED_ROOT):
            root = lists[row.facts.parent or ""]
            partitions.append(
                replace(
                    row.facts,
                    column_list=root.column_list,
                    row_filter=root.row_filter,
                    filter_columns=root.filter_columns,
                )
            )
    sequences = _sequences(conn)
    references: dict[int, list[str]] = dict(conn.execute(_REFERENCES).fetchall())
    count = conn.execute("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata").fetchone()
    assert count is not None
    return replace(
        to_facts(
            publication,
            (
                replace(
                    row.facts,
                    sequences=tuple(sequences.get(row.oid, ())),
                    references=tuple(references.get(row.oid, ())),
                )
                for row in (*tables, *roots)
            ),
        ),
        partitions=tuple(partitions),
        left_out=tuple(row.facts for row in table_facts(conn, _LEFT_OUT, scope)),
        large_objects=count[0],
    )


def to_facts(publication: Publication, tables: Iterable[TableFacts]) -> PublicationFacts:
    """Return the facts about a publication with these tables, and nothing else that the checks need."""
    return PublicationFacts(
        pubname=publication.pubname,
        puballtables=publication.puballtables,
        pubinsert=publication.pubinsert,
        pubupdate=publication.pubupdate,
        pubdelete=publication.pubdelete,
        pubtruncate=publication.pubtruncate,
        pubviaroot=publication.pubviaroot,
        publishes_generated=publication.pubgencols == "stored",
        tables=tuple(tables),
    )


def table_facts(conn: Connection, which: str, parameters: Mapping[str, Any], *, parent: str = _ROOT) -> list[_Row]:
    """Return facts about tables.

    Args:
        conn: the database.
        which: the end of the query, which selects the tables.
        parameters: the parameters of ``which``.
        parent: the expression for the parent of a partition.
    """
    from psycopg import sql

    new = server_version(conn) >= versions.PUBLICATION_FILTERS_SINCE
    query = sql.SQL(_TABLE_FACTS).format(
        filter=sql.SQL(_MEMBER_FILTER if new else "NULL::text"),
        filter_columns=sql.SQL(_FILTER_COLUMNS if new else "'{}'::text[]"),
        columns=sql.SQL(_MEMBER_COLUMNS if new else "NULL::text[]"),
        parent=sql.SQL(parent),
    )
    rows: list[_Row] = []
    for row in conn.execute(query + sql.SQL(which), parameters).fetchall():
        oid, schema, table, name, kind, persistence, identity, keys, deferrable, filter_, read, columns, *rest = row
        generated, virtual, large, root, count, size = rest
        fact = TableFacts(
            name=name,
            relkind=kind,
            relpersistence=persistence,
            replica_identity=identity,
            identity_columns=tuple(keys),
            deferrable_key=deferrable,
            row_filter=filter_,
            filter_columns=tuple(read),
            column_list=None if columns is None else tuple(columns),
            generated_columns=tuple(generated),
            virtual_columns=tuple(virtual),
            large_object_columns=tuple(large),
            parent=root,
            partition_count=count,
            approximate_bytes=size,
        )
        rows.append(_Row(oid, schema, table, fact))
    return rows


def _sequences(conn: Connection) -> dict[int, list[str]]:
    """Return the sequences that the columns of each table use, by OID of the table."""
    names: dict[int, str] = dict(conn.execute(_SEQUENCES).fetchall())
    used: dict[int, list[str]] = {}
    for sequence, table in conn.execute(_FEEDS, {"sequences": list(names)}).fetchall():
        used.setdefault(table, []).append(names[sequence])
    return {table: sorted(fed) for table, fed in used.items()}


def read_members(conn: Connection, name: str) -> dict[int, Member]:
    """Return the tables in the list of a publication, by OID."""
    from psycopg import sql

    new = server_version(conn) >= versions.PUBLICATION_FILTERS_SINCE
    query = sql.SQL(_MEMBERS).format(
        columns=sql.SQL(_MEMBER_COLUMNS if new else "NULL::text[]"),
        filter=sql.SQL(_MEMBER_FILTER if new else "NULL::text"),
    )
    rows = conn.execute(query, (name,)).fetchall()
    return {oid: Member(None if columns is None else tuple(columns), filter_) for oid, columns, filter_ in rows}


def _table(row: _Row) -> PublishedTable:
    facts = row.facts
    return PublishedTable(
        schemaname=row.schemaname,
        tablename=row.tablename,
        replica_identity=_IDENTITY.get(facts.replica_identity, facts.replica_identity),
        identity_columns=facts.identity_columns,
        attnames=facts.column_list,
        rowfilter=facts.row_filter,
        partition_of=facts.parent,
        relkind=facts.relkind,
        partition_count=facts.partition_count,
    )
