"""Publications: ``pg_publication`` and its tables (manual, sections 31.1 and 54.17).

A statement here needs no guard of its own: CREATE fails on a taken name, ADD on a table that is in, DROP TABLE on one
that is out, and DROP on a publication that is gone, each leaving everything as it was.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from rdsrepl import errors
from rdsrepl.plan import Plan, Statement, require_same
from rdsrepl.postgres.connection import in_recovery, relation_oid, server_version, setting, translate
from rdsrepl.postgres.publication_checks import PublicationFacts, TableFacts, failing
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composed

    from rdsrepl.postgres.connection import Connection

OPERATIONS: Final = ("insert", "update", "delete", "truncate")
_FILTERS_SINCE, _GENERATED_SINCE = 15, 18
_NAME_BYTES: Final = 63
_FOREWARNED: Final = 5
_SYSTEM_COLUMNS: Final = frozenset({"tableoid", "ctid", "xmin", "xmax", "cmin", "cmax"})

_PART: Final = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^\W\d][\w$]*))\s*')
_UPPER_TO_LOWER: Final = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
# PostgreSQL's lexical rules (manual, section 4.1), as far as they decide where text ends and what stands in it.
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
      | (?P<comment>--|/\*)
      | (?P<text>[eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$)
      | (?P<quoted>"(?:[^"]|"")+")
      | (?P<parameter>\$\d+)
      | (?P<word>[^\W\d][\w$]*)
      | (?P<number>\d[\w.]*)
      | (?P<open>\() | (?P<close>\)) | (?P<end>;) | (?P<unfinished>['"$])
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Table:
    """A published table.

    Attributes:
        schemaname, tablename: its name.
        replica_identity: ``default``, ``nothing``, ``full`` or ``index``.
        identity_columns: the columns that identify a row.
        attnames: the published columns; None is all.
        rowfilter: the row filter; None without.
        partition_of: the partitioned root, for a partition.
        relkind: ``r`` for an ordinary table, ``p`` for a partitioned one, published under its own name, ``f`` for a
            foreign partition, which is listed and not replicated.
        partition_count: for a partitioned one, how many partitions hold its rows.
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
        schemas: the schemas published whole (15+).
        table_count: how many tables it publishes now, partitions counted.
        pubgencols: ``none`` or ``stored`` on 18 and later; None before.
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
class Published:
    """A publication with its tables."""

    publication: Publication
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """What to publish, as the user named it: names as SQL writes them, with quotes where they are needed.

    Attributes:
        tables: tables; without a schema they are looked up in ``search_path``.
        schemas: whole schemas (15+).
        all_tables: everything, now and later.
        columns: by table, the columns to publish (15+), as SQL writes them.
        filters: by table, a predicate of SQL (15+).
    """

    tables: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    all_tables: bool = False
    columns: Mapping[str, tuple[str, ...]] | None = None
    filters: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Relation:
    oid: int
    schema: str
    name: str
    quoted: str
    relkind: str
    relpersistence: str
    may_publish: bool
    owner: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """A table to publish, looked up and checked."""

    relation: _Relation
    columns: tuple[str, ...] | None
    predicate: str | None
    filter_columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Member:
    """A table that a publication names itself."""

    columns: tuple[str, ...] | None
    predicate: str | None


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
# All that is known of tables; the parts below pick theirs. A deferrable key and an invalid index identify no row.
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
# These stand apart from _TABLE_FACTS, and are joined here: where tables are many and statistics old, the server's
# joins of pg_depend take seconds for every thousand tables.
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
# A partition's parent: its root, or among the tables in question the one that is published in its place.
_ROOT: Final = """
(SELECT format('%%I.%%I', rn.nspname, rc.relname) FROM pg_catalog.pg_class rc
   JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
  WHERE c.relispartition AND rc.oid = pg_partition_root(c.oid))
"""
_PUBLISHED_ROOT: Final = """
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
# Other sessions' temporary tables are their own affair; an extension's objects are the extension's.
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
_REQUESTED: Final = """
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
_FIND: Final = """
SELECT c.oid, n.nspname::text, c.relname::text, format('%%I.%%I', n.nspname, c.relname), c.relkind::text,
       c.relpersistence::text, pg_has_role(c.relowner, 'usage'), pg_get_userbyid(c.relowner)::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE CASE WHEN %(schema)s::text IS NULL THEN c.oid = %(oid)s
            ELSE n.nspname = %(schema)s::text AND c.relname = %(table)s::text END
"""
_NAMES: Final = """
SELECT n.nspname::text, c.relname::text, format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2
"""
_SCHEMA_NAMES: Final = """
SELECT nspname::text FROM pg_catalog.pg_namespace WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'
"""
_COLUMNS: Final = """
SELECT attname::text, attgenerated::text FROM pg_catalog.pg_attribute
 WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
# A column's type where it is not built in.
_COLUMN_TYPES: Final = """
SELECT attname::text, CASE WHEN atttypid >= 16384 THEN pg_catalog.format_type(atttypid, atttypmod) END
  FROM pg_catalog.pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
"""
_USER_DEFINED: Final = """
SELECT pg_catalog.format('%%I.%%I', n.nspname, o.name)
  FROM (SELECT typname, typnamespace, oid FROM pg_catalog.pg_type
        UNION ALL SELECT proname, pronamespace, oid FROM pg_catalog.pg_proc) AS o (name, namespace, oid)
  JOIN pg_catalog.pg_namespace n ON n.oid = o.namespace
  JOIN ROWS FROM (pg_catalog.unnest(%(schemas)s::text[]), pg_catalog.unnest(%(names)s::text[])) AS g (schema, name)
    ON g.schema = n.nspname AND g.name = o.name
 WHERE o.oid >= 16384 LIMIT 1
"""
# Names in front of a parenthesis that are functions, none of them built in and immutable.
_NOT_IMMUTABLE: Final = """
SELECT p.proname::text FROM pg_catalog.pg_proc p
 WHERE p.proname = ANY (%s)
   AND NOT EXISTS (SELECT FROM pg_get_keywords() k WHERE k.word = p.proname AND k.catcode = 'R')
 GROUP BY 1 HAVING NOT bool_or(p.provolatile = 'i' AND p.oid < 16384) ORDER BY 1
"""
_RIGHTS: Final = """
SELECT r.rolsuper OR EXISTS (SELECT FROM pg_catalog.pg_roles s WHERE s.rolname = 'rds_superuser'
                                AND pg_has_role(r.oid, s.oid, 'member')),
       has_database_privilege(current_database(), 'CREATE'), r.rolname::text, quote_ident(r.rolname),
       quote_ident(current_database())
  FROM pg_catalog.pg_roles r WHERE r.rolname = current_user
"""
_OWNER: Final = """
SELECT pg_has_role(pubowner, 'usage'), pg_get_userbyid(pubowner)::text, current_user::text
  FROM pg_catalog.pg_publication WHERE pubname = %s
"""
_CONSUMERS: Final = """
SELECT s.slot_name::text, s.active_pid, w.usename::text, nullif(w.application_name, '')
  FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_replication w ON w.pid = s.active_pid
 WHERE s.database = current_database() AND s.plugin = 'pgoutput' ORDER BY s.slot_name
"""
_IDENTITY: Final = {"d": "default", "n": "nothing", "f": "full", "i": "index"}


def ls(conn: Connection) -> list[Publication]:
    """Return the database's publications, by name."""
    from psycopg import sql

    version = server_version(conn)
    query = sql.SQL(_LIST).format(
        gencols=sql.SQL(_GENCOLS if version >= _GENERATED_SINCE else "NULL"),
        schemas=sql.SQL(_SCHEMAS if version >= _FILTERS_SINCE else "'{}'::text[]"),
    )
    rows = conn.execute(query).fetchall()
    return [Publication(*(*row[:9], tuple(row[9]), row[10])) for row in rows]


def get(conn: Connection, name: str) -> Publication:
    """Return one publication.

    Raises:
        NotFound: there is none of that name in this database.
    """
    everything = ls(conn)
    for publication in everything:
        if publication.pubname == name:
            return publication
    near = difflib.get_close_matches(name, [publication.pubname for publication in everything], n=1)
    raise errors.NotFound(
        f"no publication {name} in database {conn.info.dbname}",
        hint=f"did you mean {near[0]}?"
        if near
        else "rdsrepl publication list shows them; each belongs to one database",
    )


def published(conn: Connection, name: str) -> Published:
    """Return a publication with its tables.

    Raises:
        NotFound: there is none of that name.
    """
    publication = get(conn, name)
    rows = _facts(conn, _PUBLISHED, {"name": name})
    return Published(publication, tuple(_table(row) for row in rows))


def facts(conn: Connection, name: str) -> PublicationFacts:
    """Gather what the checks look at.

    Raises:
        NotFound: there is no such publication.
    """
    publication = get(conn, name)
    scope = {"name": name, "all": publication.puballtables, "schemas": list(publication.schemas)}
    # The server's view lists foreign and unlogged partitions as well; they belong to what is left out.
    tables = [
        row
        for row in _facts(conn, _PUBLISHED, scope)
        if row.facts.relkind in ("r", "p") and row.facts.relpersistence == "p"
    ]
    # With pubviaroot the partitioned tables are among the published ones already.
    roots = [] if publication.pubviaroot else _facts(conn, _PARTITIONED, scope)
    scope["roots"] = [row.oid for row in (*tables, *roots) if row.facts.relkind == "p"]
    partitions: list[TableFacts] = []
    if publication.pubviaroot and scope["roots"]:
        lists = {row.facts.name: row.facts for row in tables}
        for row in _facts(conn, _PARTITIONS, scope, parent=_PUBLISHED_ROOT):
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
    return PublicationFacts(
        pubname=name,
        puballtables=publication.puballtables,
        pubinsert=publication.pubinsert,
        pubupdate=publication.pubupdate,
        pubdelete=publication.pubdelete,
        pubtruncate=publication.pubtruncate,
        pubviaroot=publication.pubviaroot,
        publishes_generated=publication.pubgencols == "stored",
        tables=tuple(
            replace(
                row.facts,
                sequences=tuple(sequences.get(row.oid, ())),
                references=tuple(references.get(row.oid, ())),
            )
            for row in (*tables, *roots)
        ),
        partitions=tuple(partitions),
        left_out=tuple(row.facts for row in _facts(conn, _LEFT_OUT, scope)),
        large_objects=count[0],
    )


def parse_name(text: str) -> tuple[str, ...]:
    """Return the parts of a name as SQL reads it: ``"We""ird".Orders`` is ``We"ird`` and ``orders``.

    Raises:
        BadValue: it is not a name.
    """
    parts, end = _take_name(text)
    if end != len(text):
        raise _not_a_name(text)
    return parts


def parse_columns(text: str) -> tuple[str, tuple[str, ...]]:
    """Split ``TABLE=A,B`` into the table and its columns, all still as SQL writes them.

    Raises:
        BadValue: it is not that.
    """
    wrong = errors.BadValue(f"--columns {text}: not TABLE=A,B", hint="for example --columns sales.orders=id,amount")
    try:
        _, position = _take_name(text)
        table = text[:position].strip()
        columns: list[str] = []
        while position < len(text) and text[position] == ("," if columns else "="):
            start = position + 1
            parts, position = _take_name(text, start)
            if len(parts) != 1:
                raise wrong
            columns.append(text[start:position].strip())
    except errors.BadValue as exc:
        raise wrong from exc
    if not columns or position != len(text):
        raise wrong
    return table, tuple(columns)


def parse_filter(text: str) -> tuple[str, str]:
    """Split ``TABLE: PREDICATE`` into its two.

    Raises:
        BadValue: it is not that.
    """
    wrong = errors.BadValue(
        f"--where {text}: not 'TABLE: PREDICATE'", hint="for example --where 'sales.orders: amount > 0'"
    )
    try:
        _, end = _take_name(text)
    except errors.BadValue as exc:
        raise wrong from exc
    predicate = text[end + 1 :].strip()
    if text[end : end + 1] != ":" or not predicate:
        raise wrong
    return text[:end].strip(), predicate


def create(
    conn: Connection, name: str, scope: Scope, *, publish: Sequence[str] = OPERATIONS, via_root: bool = False
) -> Plan:
    """Return the plan that creates a publication.

    Raises:
        BadValue: a name, operation, column list or predicate is malformed.
        NotFound: a table, schema or column does not exist.
        AlreadyExists: there is one that differs; with one that is the same there is nothing to do.
        Denied, Unsupported, Refused: this role, this server's version or a table's kind does not allow it.
    """
    from psycopg import sql

    if not name or len(name.encode()) > _NAME_BYTES:
        raise errors.BadValue(f"{name!r} cannot be a publication's name", hint=f"1 to {_NAME_BYTES} bytes")
    if not (scope.tables or scope.schemas or scope.all_tables):
        raise errors.BadValue("a publication of nothing", hint="add --table, --schema or --all-tables")
    if scope.all_tables and (scope.tables or scope.schemas or scope.columns or scope.filters):
        raise errors.BadValue("--all-tables stands alone", hint="leave --table, --schema, --columns and --where out")
    if unknown := [operation for operation in publish if operation not in OPERATIONS]:
        raise errors.BadValue(f"--publish {', '.join(unknown)}: no such operation", hint=", ".join(OPERATIONS))
    if not publish:
        raise errors.BadValue("--publish names no operation", hint=", ".join(OPERATIONS))
    _require_primary(conn)
    entries, schemas = _resolve(conn, scope, via_root=via_root)
    found = next((publication for publication in ls(conn) if publication.pubname == name), None)
    if found is not None:
        _require_same_publication(conn, found, scope, entries, schemas, publish=publish, via_root=via_root)
        return Plan(f"create publication {name}", (), unchanged="it exists already, as asked for")
    _require_rights(conn, whole=scope.all_tables or bool(schemas), creates=True)
    _require_owned(entries)
    statement: SQL | Composed = sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(name))
    statement += sql.SQL(" FOR ALL TABLES") if scope.all_tables else sql.SQL(" FOR ") + _objects(entries, schemas)
    options: list[SQL | Composed] = []
    operations = tuple(operation for operation in OPERATIONS if operation in publish)
    if operations != OPERATIONS:
        options.append(sql.SQL("publish = {}").format(sql.Literal(", ".join(operations))))
    if via_root:
        options.append(sql.SQL("publish_via_partition_root = true"))
    if options:
        statement += sql.SQL(" WITH ({})").format(sql.SQL(", ").join(options))
    planned = Publication(
        pubname=name,
        owner="",
        puballtables=scope.all_tables,
        pubinsert="insert" in operations,
        pubupdate="update" in operations,
        pubdelete="delete" in operations,
        pubtruncate="truncate" in operations,
        pubviaroot=via_root,
        pubgencols=None,
        schemas=(),
        table_count=0,
    )
    warnings = _forewarn(conn, planned, entries, schemas)
    if (wal_level := setting(conn, "wal_level")) != "logical":
        warnings.append(
            f"wal_level is {wal_level}: nothing can be streamed before it is logical "
            "(a restart; on RDS: rdsrepl param-group create NAME --cluster ID, then "
            "rdsrepl param-group attach NAME --cluster ID --reboot)"
        )
    return Plan(
        f"create publication {name}", (Statement(f"create publication {name}", statement, makes=True),), tuple(warnings)
    )


def add(conn: Connection, name: str, scope: Scope) -> Plan:
    """Return the plan that adds tables or schemas to a publication; those it has already are left out.

    Raises:
        NotFound: the publication, a table, schema or column does not exist.
        Refused: it publishes all tables, a table cannot be published, or is in with another column list or filter.
        BadValue, Denied, Unsupported: as in ``create``.
    """
    from psycopg import sql

    publication = get(conn, name)
    _require_partial(publication)
    _require_primary(conn)
    entries, wanted = _resolve(conn, scope, via_root=publication.pubviaroot)
    _require_publication_owner(conn, name)
    members = _members(conn, name)
    schemas = [schema for schema in wanted if schema not in publication.schemas]
    new: list[_Entry] = []
    for entry in entries:
        member = members.get(entry.relation.oid)
        if member is not None:
            _require_same(name, entry, member)
        elif entry.columns or entry.predicate or entry.relation.schema not in publication.schemas:
            new.append(entry)
    title = f"add to publication {name}"
    if not new and not schemas:
        return Plan(title, (), unchanged="it has all that already")
    listed = [entry for entry in new if entry.columns]
    if (listed and publication.schemas) or (schemas and any(member.columns for member in members.values())):
        raise errors.Refused(
            f"publication {name} would have a column list and a whole schema, which PostgreSQL does not allow",
            hint="keep column lists in a publication of their own",
        )
    if schemas:
        _require_rights(conn, whole=True, creates=False)
    _require_owned(new)
    statement = sql.SQL("ALTER PUBLICATION {} ADD ").format(sql.Identifier(name)) + _objects(new, schemas)
    what = ", ".join([*(entry.relation.quoted for entry in new), *(f"schema {schema}" for schema in schemas)])
    warnings = ["only changes from now on are published; rows that are there already are not copied"]
    warnings += _forewarn(conn, publication, new, schemas)
    return Plan(title, (Statement(f"add {what} to {name}", statement),), tuple(warnings))


def remove(conn: Connection, name: str, scope: Scope) -> Plan:
    """Return the plan that takes tables or schemas out of a publication; those it does not have are left out.

    Raises:
        NotFound: the publication, a table or a schema does not exist.
        Refused: it publishes all tables, or a table stands in it with its whole schema.
        Denied: the publication belongs to another role.
    """
    from psycopg import sql

    publication = get(conn, name)
    _require_partial(publication)
    _require_primary(conn)
    found = list(dict.fromkeys(_find(conn, text) for text in scope.tables))
    wanted = [_schema(conn, text) for text in scope.schemas]
    _require_publication_owner(conn, name)
    members = _members(conn, name)
    schemas = [schema for schema in dict.fromkeys(wanted) if schema in publication.schemas]
    tables: list[_Relation] = []
    for relation in found:
        if relation.oid in members:
            tables.append(relation)
        elif relation.schema in publication.schemas and relation.schema not in schemas:
            raise errors.Refused(
                f"{relation.quoted} is published with its whole schema; it cannot be taken out alone",
                hint=f"{command('publication remove {} --schema …', name)}, then add the tables to be kept",
            )
    title = f"remove from publication {name}"
    if not tables and not schemas:
        return Plan(title, (), unchanged="it has none of that")
    parts: list[Composed] = []
    if tables:
        names = sql.SQL(", ").join(sql.Identifier(relation.schema, relation.name) for relation in tables)
        parts.append(sql.SQL("TABLE {}").format(names))
    if schemas:
        parts.append(sql.SQL("TABLES IN SCHEMA {}").format(sql.SQL(", ").join(map(sql.Identifier, schemas))))
    statement = sql.SQL("ALTER PUBLICATION {} DROP {}").format(sql.Identifier(name), sql.SQL(", ").join(parts))
    what = ", ".join([*(relation.quoted for relation in tables), *(f"schema {schema}" for schema in schemas)])
    warnings = [f"changes of {what} are published no more"]
    if len(tables) == len(members) and len(schemas) == len(publication.schemas):
        warnings.append(f"{name} is empty then: its consumers stay connected and receive nothing")
    return Plan(title, (Statement(f"remove {what} from {name}", statement),), tuple(warnings))


def drop(conn: Connection, name: str) -> Plan:
    """Return the plan that drops a publication; its warnings name the slots that may stream it.

    Raises:
        NotFound: there is no such publication.
        Denied: it belongs to another role.
        NotPrimary: the server is a standby.
    """
    from psycopg import sql

    get(conn, name)
    _require_primary(conn)
    _require_publication_owner(conn, name)
    warnings: list[str] = []
    for slot, pid, user, application in conn.execute(_CONSUMERS).fetchall():
        who = "".join([f", user {user}" if user else "", f", application {application}" if application else ""])
        state = f"in use by PID {pid}{who}" if pid else "inactive"
        warnings.append(f"slot {slot} ({state}) may stream it: its next change then fails, until another slot is made")
    statement = sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name))
    return Plan(f"drop publication {name}", (Statement(f"drop publication {name}", statement),), tuple(warnings))


def _facts(conn: Connection, which: str, parameters: Mapping[str, Any], *, parent: str = _ROOT) -> list[_Row]:
    from psycopg import sql

    new = server_version(conn) >= _FILTERS_SINCE
    query = sql.SQL(_TABLE_FACTS).format(
        filter=sql.SQL(_MEMBER_FILTER if new else "NULL::text"),
        filter_columns=sql.SQL(_FILTER_COLUMNS if new else "'{}'::text[]"),
        columns=sql.SQL(_MEMBER_COLUMNS if new else "NULL::text[]"),
        parent=sql.SQL(parent),
    )
    found: list[_Row] = []
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
        found.append(_Row(oid, schema, table, fact))
    return found


def _sequences(conn: Connection) -> dict[int, list[str]]:
    """Return, by table, the sequences that feed its columns."""
    names: dict[int, str] = dict(conn.execute(_SEQUENCES).fetchall())
    found: dict[int, list[str]] = {}
    for sequence, table in conn.execute(_FEEDS, {"sequences": list(names)}).fetchall():
        found.setdefault(table, []).append(names[sequence])
    return {table: sorted(fed) for table, fed in found.items()}


def _members(conn: Connection, name: str) -> dict[int, _Member]:
    from psycopg import sql

    new = server_version(conn) >= _FILTERS_SINCE
    query = sql.SQL(_MEMBERS).format(
        columns=sql.SQL(_MEMBER_COLUMNS if new else "NULL::text[]"),
        filter=sql.SQL(_MEMBER_FILTER if new else "NULL::text"),
    )
    rows = conn.execute(query, (name,)).fetchall()
    return {oid: _Member(None if columns is None else tuple(columns), filter_) for oid, columns, filter_ in rows}


def _forewarn(
    conn: Connection, publication: Publication, entries: Sequence[_Entry], schemas: Sequence[str]
) -> list[str]:
    """Say which statements the server will refuse once these are published: the surprise that stops applications."""
    oids = [entry.relation.oid for entry in entries]
    scope = {"all": publication.puballtables, "schemas": list(schemas), "roots": oids}
    given = {entry.relation.quoted: entry for entry in entries}
    tables: list[TableFacts] = []
    for row in _facts(conn, _REQUESTED, scope, parent=_PUBLISHED_ROOT):
        entry = given.get(row.facts.name) or given.get(row.facts.parent or "")
        if entry is not None:
            fact = replace(
                row.facts,
                column_list=entry.columns,
                row_filter=entry.predicate,
                filter_columns=entry.filter_columns,
            )
            tables.append(fact)
        else:
            tables.append(row.facts)
    found = failing(
        PublicationFacts(
            pubname=publication.pubname,
            puballtables=publication.puballtables,
            pubinsert=publication.pubinsert,
            pubupdate=publication.pubupdate,
            pubdelete=publication.pubdelete,
            pubtruncate=publication.pubtruncate,
            pubviaroot=publication.pubviaroot,
            publishes_generated=False,
            tables=tuple(tables),
        )
    )
    said = [f"{finding.object}: {finding.message}; {finding.remedy}" for finding in found[:_FOREWARNED]]
    if len(found) > _FOREWARNED:
        said.append(
            f"and {len(found) - _FOREWARNED} more of that kind; afterwards "
            f"{command('publication check {}', publication.pubname)} lists them"
        )
    return said


def _table(row: _Row) -> Table:
    facts = row.facts
    return Table(
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


def _require_partial(publication: Publication) -> None:
    if publication.puballtables:
        raise errors.Refused(
            f"publication {publication.pubname} publishes all tables; single ones cannot be added or removed",
            hint="make a publication of single tables: rdsrepl publication create NAME --table …",
        )


def _require_primary(conn: Connection) -> None:
    if in_recovery(conn):
        raise errors.NotPrimary(
            "this server is a standby; a publication is made and changed on the primary",
            hint="connect to the primary (on RDS: the writer endpoint)",
        )


def _require_rights(conn: Connection, *, whole: bool, creates: bool) -> None:
    row = conn.execute(_RIGHTS).fetchone()
    assert row is not None
    is_super, may_create, role, role_quoted, database = row
    if whole and not is_super:
        raise errors.Denied(
            f"role {role} may not publish all tables of a database or schema",
            hint="connect as a superuser (on RDS: a member of rds_superuser), or name the tables with --table",
            sqlstate="42501",
        )
    if creates and not may_create:
        raise errors.Denied(
            f"role {role} may not create anything in database {database}",
            hint=f"as its owner: GRANT CREATE ON DATABASE {database} TO {role_quoted}",
            sqlstate="42501",
        )


def _require_publication_owner(conn: Connection, name: str) -> None:
    row = conn.execute(_OWNER, (name,)).fetchone()
    if row is not None and not row[0]:
        raise errors.Denied(
            f"publication {name} belongs to {row[1]}, and {row[2]} is not a member of that role",
            hint=f"connect as {row[1]}, or as a member of that role",
            sqlstate="42501",
        )


def _require_owned(entries: Iterable[_Entry]) -> None:
    for entry in entries:
        relation = entry.relation
        if not relation.may_publish:
            raise errors.Denied(
                f"{relation.quoted} belongs to {relation.owner}; only its owner can publish it",
                hint=f"connect as {relation.owner}, or as a member of that role",
                sqlstate="42501",
            )


def _require_same_publication(
    conn: Connection,
    found: Publication,
    scope: Scope,
    entries: Sequence[_Entry],
    schemas: Sequence[str],
    *,
    publish: Sequence[str],
    via_root: bool,
) -> None:
    name, members = found.pubname, _members(conn, found.pubname)
    listed = {entry.relation.oid: entry.relation.quoted for entry in entries}
    lacking = ", ".join(quoted for oid, quoted in listed.items() if oid not in members)
    others = sum(oid not in listed for oid in members)
    wanted = ", ".join(operation for operation in OPERATIONS if operation in publish)
    compared: dict[str, tuple[object, object]] = {
        "all tables": (found.puballtables, scope.all_tables),
        "tables": (f"without {lacking}" if lacking else f"with {others} more" if others else "these", "these"),
        "schemas": (", ".join(found.schemas) or "none", ", ".join(sorted(schemas)) or "none"),
        "publish": (", ".join(found.publish), wanted),
        "via root": (found.pubviaroot, via_root),
        "generated columns": (found.pubgencols or "none", "none"),
    }
    hint = f"{command('publication show {}', name)}; {command('publication add {}', name)} adds to it"
    require_same(f"publication {name}", compared, hint=hint)
    for entry in entries:
        member = members[entry.relation.oid]
        columns = None if entry.columns is None else set(entry.columns)
        same_columns = columns == (None if member.columns is None else set(member.columns))
        if not same_columns or _bare(entry.predicate or "") != _bare(member.predicate or ""):
            raise errors.AlreadyExists(
                f"publication {name} exists already, and differs: {_published_as(entry, member)}", hint=hint
            )


def _published_as(entry: _Entry, member: _Member) -> str:
    columns = "all columns" if member.columns is None else f"columns {', '.join(member.columns)}"
    rows = "all rows" if member.predicate is None else f"rows WHERE {member.predicate}"
    return f"{entry.relation.quoted} is in it with {columns} and {rows}"


def _require_same(name: str, entry: _Entry, member: _Member) -> None:
    """Refuse to call a table unchanged that is published, but not like that."""
    same_columns = entry.columns is None or set(entry.columns) == set(member.columns or ())
    same_filter = entry.predicate is None or _bare(entry.predicate) == _bare(member.predicate or "")
    if not (same_columns and same_filter):
        table = entry.relation.quoted
        columns = "all columns" if member.columns is None else f"columns {', '.join(member.columns)}"
        rows = "all rows" if member.predicate is None else f"rows WHERE {member.predicate}"
        raise errors.Refused(
            f"{table} is in publication {name} already, with {columns} and {rows}",
            hint="to publish it otherwise take it out and add it anew; what changes in between is not streamed: "
            + command("publication remove {} --table {}", name, table),
        )


def _bare(predicate: str) -> list[str]:
    """Return a predicate's tokens without the pair of parentheses around it all, to compare it with the server's."""
    tokens = [token for token in _TOKEN.finditer(predicate) if token.lastgroup != "space"]
    words = [token[0].lower() if token.lastgroup == "word" else token[0] for token in tokens]
    while words[:1] == ["("] and words[-1:] == [")"]:
        depth = 0
        for position, word in enumerate(words):
            depth += {"(": 1, ")": -1}.get(word, 0)
            if depth == 0 and position < len(words) - 1:
                return words
        words = words[1:-1]
    return words


def _resolve(conn: Connection, scope: Scope, *, via_root: bool) -> tuple[list[_Entry], list[str]]:
    """Look up and check all that a scope names: the tables, and the schemas' exact names."""
    version = server_version(conn)
    columns, filters = dict(scope.columns or {}), dict(scope.filters or {})
    if (columns or filters or scope.schemas) and version < _FILTERS_SINCE:
        raise errors.Unsupported(
            f"column lists, row filters and schemas need PostgreSQL 15, and this is {version}",
            hint="name whole tables with --table",
        )
    relations = list(dict.fromkeys(_find(conn, text) for text in scope.tables))
    schemas = list(dict.fromkeys(_schema(conn, text) for text in scope.schemas))
    list_of = {_find(conn, text): names for text, names in columns.items()}
    filter_of = {_find(conn, text): predicate for text, predicate in filters.items()}
    for kind, given, count in (("--columns", list_of, len(columns)), ("--where", filter_of, len(filters))):
        if len(given) < count:
            raise errors.BadValue(f"{kind} names a table twice", hint=f"one {kind} for each table")
        for relation in given:
            if relation not in relations:
                raise errors.BadValue(
                    f"{kind} names {relation.quoted}, which is no --table", hint=f"add --table {relation.quoted}"
                )
            if relation.relkind == "p" and not via_root:
                raise errors.BadValue(
                    f"{kind} {relation.quoted}: a partitioned table's partitions are published one by one here",
                    hint="publish it under its own name with create --via-root, or name the partitions",
                )
    if list_of and schemas:
        raise errors.BadValue(
            "--columns and --schema exclude each other in one publication", hint="name the tables with --table"
        )
    entries: list[_Entry] = []
    for relation in relations:
        _require_publishable(relation)
        names = _columns(conn, relation, list_of[relation]) if relation in list_of else None
        predicate = filter_of.get(relation)
        read = () if predicate is None else _check_predicate(conn, relation, predicate)
        entries.append(_Entry(relation, names, predicate, read))
    return entries, schemas


def _objects(entries: Sequence[_Entry], schemas: Sequence[str]) -> Composed:
    """Return what follows FOR or ADD: tables with their columns and filters, then schemas."""
    from psycopg import sql

    parts: list[Composed] = []
    tables: list[Composed] = []
    for entry in entries:
        table = sql.SQL("{}").format(sql.Identifier(entry.relation.schema, entry.relation.name))
        if entry.columns is not None:
            table += sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, entry.columns)))
        if entry.predicate is not None:
            # The user's own SQL, checked: shown in the plan as it stands.
            table += sql.SQL(" WHERE ({})").format(sql.SQL(entry.predicate))
        tables.append(table)
    if tables:
        parts.append(sql.SQL("TABLE {}").format(sql.SQL(", ").join(tables)))
    if schemas:
        parts.append(sql.SQL("TABLES IN SCHEMA {}").format(sql.SQL(", ").join(map(sql.Identifier, schemas))))
    return sql.SQL(", ").join(parts)


def _find(conn: Connection, text: str) -> _Relation:
    from psycopg import sql

    parts = parse_name(text)
    if len(parts) > 2:
        raise _not_a_name(text)
    schema, table = (None, parts[0]) if len(parts) == 1 else (parts[0], parts[1])
    # Not the server's own parser for a name with a schema: it refuses a schema that this role may not use.
    oid = relation_oid(conn, sql.Identifier(table).as_string(None)) if schema is None else None
    row = conn.execute(_FIND, {"schema": schema, "table": table, "oid": oid}).fetchone()
    if row is not None:
        return _Relation(*row)
    near = _near_table(conn, schema, table)
    raise errors.NotFound(
        f"no table {text}",
        hint=f"did you mean {near}?" if near else "check the name, its schema and the database",
    )


def _near_table(conn: Connection, schema: str | None, table: str) -> str | None:
    """Return the table that was probably meant: another schema's, another case's, or nearly so."""
    everything: list[tuple[str, str, str]] = conn.execute(_NAMES).fetchall()
    for same in (
        [quoted for _, name, quoted in everything if name == table],
        [quoted for _, name, quoted in everything if name.lower() == table.lower()],
    ):
        if same:
            return min(same, key=lambda quoted: -difflib.SequenceMatcher(None, quoted, f"{schema}.{table}").ratio())
    if schema is not None:
        names = {f"{namespace}.{name}": quoted for namespace, name, quoted in everything}
        near = difflib.get_close_matches(f"{schema}.{table}", names, n=1)
    else:
        names = {name: quoted for _, name, quoted in everything}
        near = difflib.get_close_matches(table, names, n=1)
    return names[near[0]] if near else None


def _schema(conn: Connection, text: str) -> str:
    parts = parse_name(text)
    if len(parts) != 1:
        raise errors.BadValue(f"{text!r} is not a schema's name", hint='as SQL writes it: sales, "Odd Name"')
    names = [name for (name,) in conn.execute(_SCHEMA_NAMES)]
    if parts[0] in names:
        return parts[0]
    if parts[0] == "information_schema" or parts[0].startswith("pg_"):
        raise errors.Refused(f"schema {parts[0]} is the system's and cannot be published", hint="name another schema")
    near = difflib.get_close_matches(parts[0].lower(), {name.lower(): name for name in names}, n=1)
    meant = next((name for name in names if near and name.lower() == near[0]), None)
    raise errors.NotFound(
        f"no schema {text}", hint=f"did you mean {_quoted(meant)}?" if meant else "check the name and the database"
    )


def _require_publishable(relation: _Relation) -> None:
    kinds = {"v": "a view", "m": "a materialised view", "f": "a foreign table", "S": "a sequence", "c": "a type"}
    what = kinds.get(relation.relkind)
    if what is None and relation.relkind not in ("r", "p"):
        what = "not a table"
    if what is None:
        what = {"u": "an unlogged table", "t": "a temporary table"}.get(relation.relpersistence)
    if what is None and relation.schema in ("pg_catalog", "information_schema"):
        what = "a system table"
    if what is not None:
        raise errors.Refused(
            f"{relation.quoted} is {what} and cannot be published", hint="name ordinary tables with --table"
        )


def _columns(conn: Connection, relation: _Relation, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the exact names of a column list."""
    present: dict[str, str] = dict(conn.execute(_COLUMNS, (relation.oid,)).fetchall())
    stored = server_version(conn) >= _GENERATED_SINCE
    found: list[str] = []
    for text in wanted:
        (column,) = parse_name(text)
        if column not in present:
            near = [name for name in present if name.lower() == column.lower()]
            near = near or difflib.get_close_matches(column, present, n=1)
            raise errors.NotFound(
                f"table {relation.quoted} has no column {text}",
                hint=f"did you mean {_quoted(near[0])}?" if near else f"its columns: {', '.join(present)}",
            )
        if column in found:
            raise errors.BadValue(f"--columns {relation.quoted} names {text} twice", hint="name it once")
        if present[column] and not (stored and present[column] == "s"):
            raise errors.Unsupported(
                f"{relation.quoted}.{text} is a generated column, which a column list cannot name here",
                hint="leave it out; PostgreSQL 18 can publish stored ones",
            )
        found.append(column)
    return tuple(found)


def _check_predicate(conn: Connection, relation: _Relation, predicate: str) -> tuple[str, ...]:
    """Make sure that a predicate is one boolean expression and nothing behind it; return the columns it reads."""
    import psycopg
    from psycopg import sql

    words, called, paths = _words(relation, predicate)
    _require_built_in(conn, relation, paths, predicate)
    table = sql.Identifier(relation.schema, relation.name)
    try:
        _prepare(conn, sql.SQL("SELECT 1 FROM {}").format(table), predicate)
    except psycopg.Error as exc:
        cause = translate(exc)
        if isinstance(cause, errors.Denied | errors.Unreachable):
            raise cause from exc
        raise _bad_predicate(relation, cause.message, predicate, cause.sqlstate) from exc
    mutable = [name for (name,) in conn.execute(_NOT_IMMUTABLE, (sorted(called),))]
    if mutable:
        reason = f"a row filter may call built-in immutable functions only, not {', '.join(mutable)}"
        raise _bad_predicate(relation, reason, predicate)
    columns = [name for (name, _) in conn.execute(_COLUMNS, (relation.oid,))]
    read: list[str] = []
    for column in columns:
        if column not in words:
            continue
        # The word may be a type's name or the like; it is the column if the predicate cannot do without that.
        others = sql.SQL(", ").join(sql.Identifier(other) for other in columns if other != column)
        source = sql.SQL("SELECT 1 FROM (SELECT {} FROM {}) AS {}").format(others, table, sql.Identifier(relation.name))
        try:
            _prepare(conn, source, predicate)
        except psycopg.errors.ProgrammingError:
            read.append(column)
    return tuple(read)


def _require_built_in(conn: Connection, relation: _Relation, paths: set[tuple[str, ...]], predicate: str) -> None:
    """Make sure, before the server reads a predicate, that it has built-in types, functions and operators only.

    PostgreSQL refuses the others in a row filter, but only after it has read the constants: what is compared with an
    array or a range of a domain runs the domain's CHECK, with the rights of whoever asks.

    Args:
        conn: the database.
        relation: the table.
        paths: the names in the predicate, each with what stands before it and a dot; ``""`` is no name.
        predicate: for the message.

    Raises:
        BadValue: it has something else.
    """
    own: dict[str, str | None] = dict(conn.execute(_COLUMN_TYPES, (relation.oid,)))
    for path in sorted(paths):
        if path == (relation.name,) and relation.name not in own:
            raise _bad_predicate(relation, "a row filter cannot read a whole row", predicate)
        if path[-1] == "" and path != ("pg_catalog", ""):
            raise _bad_predicate(relation, f"{'.'.join(path[:-1])} with a dot is not followed by a name", predicate)
        column = own.get(path[-1]) if len(path) == 1 or path[-2] == relation.name else None
        if column is not None:
            reason = f"a row filter may use built-in types only, and column {path[-1]} is of type {column}"
            raise _bad_predicate(relation, reason, predicate)
    pairs = sorted(path for path in paths if len(path) == 2)
    given = {"schemas": [schema for schema, _ in pairs], "names": [name for _, name in pairs]}
    if pairs and (row := conn.execute(_USER_DEFINED, given).fetchone()):
        raise _bad_predicate(
            relation, f"a row filter may use built-in types, functions and operators only, not {row[0]}", predicate
        )


def _prepare(conn: Connection, source: Composed, predicate: str) -> None:
    """Have the server analyse a predicate without running anything: one statement, read-only, rolled back."""
    import psycopg
    from psycopg import sql

    probe = source + sql.SQL(" WHERE ({}\n)").format(sql.SQL(predicate))
    with conn.transaction(force_rollback=True):
        conn.execute("SET TRANSACTION READ ONLY")
        result = conn.pgconn.prepare(b"", probe.as_bytes(None))
        if result.status != psycopg.pq.ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(result)


def _words(relation: _Relation, predicate: str) -> tuple[set[str], set[str], set[tuple[str, ...]]]:
    """Read a predicate as PostgreSQL's lexer does.

    Returns:
        The names in it; those in front of a parenthesis; and all with what stands before them and a dot: ``n`` is
        ``("n",)``, ``t.n`` is ``("t", "n")``, and ``t.*`` is ``("t", "")``.

    Raises:
        BadValue: it leaves the parentheses it will stand in, or is not a single plain expression.
    """
    words: set[str] = set()
    called: set[str] = set()
    paths: list[tuple[str, ...]] = []
    depth, last, may_go_on = 0, "", False
    reasons = {
        "comment": "a comment",
        "parameter": "a parameter",
        "end": "a semicolon",
        "unfinished": "a quotation that does not end",
    }
    for token in _TOKEN.finditer(predicate):
        kind = token.lastgroup or "other"
        kind = "text" if kind == "tag" else kind
        if kind == "space":
            continue
        if kind in reasons:
            raise _bad_predicate(relation, f"it contains {reasons[kind]}", predicate)
        if kind == "open":
            depth += 1
            if last:
                called.add(last)
        elif kind == "close":
            depth -= 1
            if depth < 0:
                break
        last = ""
        if kind in ("word", "quoted"):
            (last,) = parse_name(token[0])
            paths.append((*paths.pop()[:-1], last) if may_go_on and paths[-1][-1] == "" else (last,))
            words.add(last)
            if last in _SYSTEM_COLUMNS:
                raise _bad_predicate(relation, f"a row filter cannot read the system column {last}", predicate)
            if kind == "word" and last == "select":
                raise _bad_predicate(relation, "a row filter cannot have a subquery", predicate)
        elif token[0] == "." and may_go_on:
            paths[-1] = (*paths[-1], "")
        may_go_on = kind in ("word", "quoted") or (token[0] == "." and may_go_on)
    if depth != 0:
        raise _bad_predicate(relation, "its parentheses do not match", predicate)
    return words, called, set(paths)


def _bad_predicate(relation: _Relation, reason: str, predicate: str, sqlstate: str | None = None) -> errors.BadValue:
    return errors.BadValue(
        f"--where {relation.quoted}: {reason}", hint=f"mend the predicate: {predicate}", sqlstate=sqlstate
    )


def _take_name(text: str, position: int = 0) -> tuple[tuple[str, ...], int]:
    """Read a name with its dots from a position on; return its parts and where it ends."""
    parts: list[str] = []
    while match := _PART.match(text, position):
        quoted, plain = match.groups()
        # The server folds ASCII alone in UTF-8.
        parts.append(quoted.replace('""', '"') if quoted is not None else plain.translate(_UPPER_TO_LOWER))
        position = match.end()
        if text[position : position + 1] != ".":
            return tuple(parts), position
        position += 1
    raise _not_a_name(text)


def _not_a_name(text: str) -> errors.BadValue:
    return errors.BadValue(
        f"{text!r} is not a table's name", hint='schema.table, as SQL writes it: sales.orders, "Odd Name"."t"'
    )


def _quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'
