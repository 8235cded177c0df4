"""Publications: ``pg_publication`` and its tables (manual, sections 31.1 and 54.17)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rdsrepl import errors
from rdsrepl.plan import Plan, Statement
from rdsrepl.postgres.connection import server_version, translate
from rdsrepl.postgres.publication_checks import PublicationFacts, TableFacts

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composed

    from rdsrepl.postgres.connection import Connection

OPERATIONS: Final = ("insert", "update", "delete", "truncate")
_FILTERS_SINCE, _GENERATED_SINCE = 15, 18


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
    """

    schemaname: str
    tablename: str
    replica_identity: str
    identity_columns: tuple[str, ...]
    attnames: tuple[str, ...] | None
    rowfilter: str | None
    partition_of: str | None


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
    """What to publish, as the user named it; names as SQL writes them.

    Attributes:
        tables: tables.
        schemas: whole schemas (15+).
        all_tables: everything, now and later.
        columns: by table, the columns to publish (15+).
        filters: by table, a predicate of SQL (15+).
    """

    tables: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    all_tables: bool = False
    columns: Mapping[str, tuple[str, ...]] | None = None
    filters: Mapping[str, str] | None = None


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
# All that is known of tables; `published` and `left_out` pick theirs.
_TABLE_FACTS: Final = """
SELECT n.nspname::text, c.relname::text, format('%%I.%%I', n.nspname, c.relname), c.relkind::text,
       c.relpersistence::text, c.relreplident::text,
       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_index i
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
                  WHERE i.indrelid = c.oid AND i.indisvalid
                    AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident
                        ELSE false END), '{{}}'),
       {filter}, {filter_columns}, {columns},
       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
                  WHERE a.attrelid = c.oid AND a.attgenerated = 's' AND NOT a.attisdropped), '{{}}'),
       coalesce((SELECT array_agg(DISTINCT d.objid::regclass::text) FROM pg_catalog.pg_depend d
                   JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
                  WHERE d.refobjid = c.oid AND d.deptype IN ('a', 'i')), '{{}}'),
       coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
                   JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND t.typname IN ('oid', 'lo') AND NOT a.attisdropped),
                '{{}}'),
       (SELECT pg_partition_root(c.oid)::regclass::text WHERE c.relispartition),
       coalesce((SELECT array_agg(DISTINCT format('%%I.%%I', fn.nspname, fc.relname)) FROM pg_catalog.pg_constraint k
                   JOIN pg_catalog.pg_class fc ON fc.oid = k.conrelid
                   JOIN pg_catalog.pg_namespace fn ON fn.oid = fc.relnamespace
                  WHERE k.confrelid = c.oid AND k.contype = 'f' AND k.conparentid = 0 AND k.conrelid <> c.oid), '{{}}'),
       pg_relation_size(c.oid)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""
_PUBLISHED: Final = """
  JOIN pg_catalog.pg_publication_tables t ON t.schemaname = n.nspname AND t.tablename = c.relname
  LEFT JOIN pg_catalog.pg_publication_rel pr ON pr.prrelid = c.oid
       AND pr.prpubid = (SELECT oid FROM pg_catalog.pg_publication WHERE pubname = t.pubname)
 WHERE t.pubname = %(name)s ORDER BY 1, 2
"""
_ROOTS: Final = """
  JOIN pg_catalog.pg_publication_rel pr ON pr.prrelid = c.oid
 WHERE c.relkind = 'p' AND pr.prpubid = (SELECT oid FROM pg_catalog.pg_publication WHERE pubname = %(name)s)
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_tables t
                    WHERE t.pubname = %(name)s AND t.schemaname = n.nspname AND t.tablename = c.relname)
 ORDER BY 1, 2
"""
_LEFT_OUT: Final = """
  LEFT JOIN pg_catalog.pg_publication_rel pr ON false
 WHERE (c.relkind IN ('v', 'm', 'f') OR (c.relkind = 'r' AND c.relpersistence <> 'p'))
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
   AND (%(all)s OR n.nspname = ANY (%(schemas)s))
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
 ORDER BY 1, 2
"""
_FIND: Final = """
SELECT n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
       pg_has_role(c.relowner, 'usage'), pg_get_userbyid(c.relowner)::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = to_regclass(%s)
"""
_NAMES: Final = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
"""
_COLUMNS: Final = """
SELECT attname::text FROM pg_catalog.pg_attribute
 WHERE attrelid = format('%%I.%%I', %s::text, %s::text)::regclass AND attnum > 0 AND NOT attisdropped
"""
_RIGHTS: Final = """
SELECT r.rolsuper OR EXISTS (SELECT FROM pg_catalog.pg_roles s WHERE s.rolname = 'rds_superuser'
                                AND pg_has_role(r.oid, s.oid, 'member')),
       has_database_privilege(current_database(), 'CREATE'), r.rolname::text, current_database()::text
  FROM pg_catalog.pg_roles r WHERE r.rolname = current_user
"""
_CONSUMERS: Final = """
SELECT s.slot_name::text, s.active_pid FROM pg_catalog.pg_replication_slots s
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
    return Published(publication, tuple(_table(schema, table, facts) for schema, table, facts in rows))


def facts(conn: Connection, name: str) -> PublicationFacts:
    """Gather what the checks look at.

    Raises:
        NotFound: there is no such publication.
    """
    publication = get(conn, name)
    tables = _facts(conn, _PUBLISHED, {"name": name})
    roots = _facts(conn, _ROOTS, {"name": name})
    scope = {"all": publication.puballtables, "schemas": list(publication.schemas)}
    left_out = _facts(conn, _LEFT_OUT, scope) if publication.puballtables or publication.schemas else []
    row = conn.execute("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata").fetchone()
    assert row is not None
    return PublicationFacts(
        name,
        publication.puballtables,
        publication.pubinsert,
        publication.pubupdate,
        publication.pubdelete,
        publication.pubtruncate,
        publication.pubviaroot,
        publication.pubgencols == "stored",
        tuple(entry[2] for entry in [*tables, *roots]),
        tuple(entry[2] for entry in left_out),
        row[0],
    )


def create(
    conn: Connection, name: str, scope: Scope, *, publish: Sequence[str] = OPERATIONS, via_root: bool = False
) -> Plan:
    """Return the plan that creates a publication.

    Raises:
        BadValue: a name, operation, column list or predicate is malformed.
        NotFound: a table, schema or column does not exist.
        AlreadyExists: the name is taken.
        Denied, Unsupported, Refused: this role, this server's version or a table's kind does not allow it.
    """
    from psycopg import sql

    if not name or len(name.encode()) > 63:
        raise errors.BadValue(f"{name!r} cannot be a publication's name", hint="1 to 63 bytes")
    if any(publication.pubname == name for publication in ls(conn)):
        raise errors.AlreadyExists(
            f"publication {name} exists already", hint=f"rdsrepl publication show {name}, add or remove tables there"
        )
    if not (scope.tables or scope.schemas or scope.all_tables):
        raise errors.BadValue("a publication of nothing", hint="add --table, --schema or --all-tables")
    if unknown := [operation for operation in publish if operation not in OPERATIONS]:
        raise errors.BadValue(f"--publish {', '.join(unknown)}: no such operation", hint=", ".join(OPERATIONS))
    _require_create(conn, scope)
    statement: SQL | Composed = sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(name))
    if scope.all_tables:
        if scope.tables or scope.schemas or scope.columns or scope.filters:
            raise errors.BadValue(
                "--all-tables stands alone", hint="leave --table, --schema, --columns and --where out"
            )
        statement += sql.SQL(" FOR ALL TABLES")
    else:
        statement += sql.SQL(" FOR ") + _objects(conn, scope)
    options: list[SQL | Composed] = []
    if tuple(publish) != OPERATIONS:
        options.append(sql.SQL("publish = {}").format(sql.Literal(", ".join(publish))))
    if via_root:
        options.append(sql.SQL("publish_via_partition_root = true"))
    if options:
        statement += sql.SQL(" WITH ({})").format(sql.SQL(", ").join(options))
    return Plan(f"create publication {name}", (Statement(f"create publication {name}", statement),))


def add(conn: Connection, name: str, scope: Scope) -> Plan:
    """Return the plan that adds tables or schemas to a publication; those it has already are left out.

    Raises:
        NotFound: the publication, a table, schema or column does not exist.
        Refused: it publishes all tables, or a table cannot be published.
        BadValue, Denied, Unsupported: as in ``create``.
    """
    from psycopg import sql

    publication = get(conn, name)
    _require_partial(publication)
    if scope.schemas:
        _require_create(conn, scope)
    present = {(table.schemaname, table.tablename) for table in published(conn, name).tables}
    tables = tuple(text for text in scope.tables if _find(conn, text)[:2] not in present)
    schemas = tuple(schema for schema in scope.schemas if schema not in publication.schemas)
    title = f"add to publication {name}"
    if not tables and not schemas:
        return Plan(title, (), unchanged="it has all that already")
    rest = Scope(tables, schemas, columns=scope.columns, filters=scope.filters)
    statement = sql.SQL("ALTER PUBLICATION {} ADD ").format(sql.Identifier(name)) + _objects(conn, rest)
    warning = "only changes from now on are published; rows that are there already are not copied"
    return Plan(title, (Statement(f"add {', '.join([*tables, *schemas])} to {name}", statement),), (warning,))


def remove(conn: Connection, name: str, scope: Scope) -> Plan:
    """Return the plan that takes tables or schemas out of a publication; those it does not have are left out.

    Raises:
        NotFound: the publication or a table does not exist.
        Refused: it publishes all tables.
    """
    from psycopg import sql

    publication = get(conn, name)
    _require_partial(publication)
    present = {(table.schemaname, table.tablename) for table in published(conn, name).tables}
    found = [_find(conn, text) for text in scope.tables]
    tables = [entry[:2] for entry in found if entry[:2] in present or entry[2] == "p"]
    schemas = [schema for schema in scope.schemas if schema in publication.schemas]
    title = f"remove from publication {name}"
    if not tables and not schemas:
        return Plan(title, (), unchanged="it has none of that")
    parts: list[Composed] = []
    if tables:
        names = sql.SQL(", ").join(sql.Identifier(*entry) for entry in tables)
        parts.append(sql.SQL("TABLE {}").format(names))
    if schemas:
        parts.append(sql.SQL("TABLES IN SCHEMA {}").format(sql.SQL(", ").join(map(sql.Identifier, schemas))))
    statement = sql.SQL("ALTER PUBLICATION {} DROP {}").format(sql.Identifier(name), sql.SQL(", ").join(parts))
    what = ", ".join([*(".".join(entry) for entry in tables), *schemas])
    warnings = [f"changes of {what} are published no more"]
    if publication.table_count <= len(tables):
        warnings.append(f"{name} is empty then: its consumers stay connected and receive nothing")
    return Plan(title, (Statement(f"remove {what} from {name}", statement),), tuple(warnings))


def drop(conn: Connection, name: str) -> Plan:
    """Return the plan that drops a publication; its warnings name the slots that may stream it.

    Raises:
        NotFound: there is no such publication.
    """
    from psycopg import sql

    get(conn, name)
    warnings: list[str] = []
    for slot, pid in conn.execute(_CONSUMERS).fetchall():
        state = f"in use by PID {pid}" if pid else "inactive"
        warnings.append(f"slot {slot} ({state}) may stream it: its next change then fails, until another slot is made")
    statement = sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name))
    return Plan(f"drop publication {name}", (Statement(f"drop publication {name}", statement),), tuple(warnings))


def _facts(conn: Connection, which: str, parameters: Mapping[str, Any]) -> list[tuple[str, str, TableFacts]]:
    from psycopg import sql

    new = server_version(conn) >= _FILTERS_SINCE
    query = sql.SQL(_TABLE_FACTS).format(
        filter=sql.SQL("pg_get_expr(pr.prqual, pr.prrelid)" if new else "NULL::text"),
        filter_columns=sql.SQL(
            """coalesce((SELECT array_agg(DISTINCT a.attname::text) FROM pg_catalog.pg_attribute a
                          WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND pr.prqual::text ~
                                (':varno 1 :varattno ' || a.attnum || ' ')), '{}')"""
            if new
            else "'{}'::text[]"
        ),
        columns=sql.SQL(
            """(SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
                 WHERE a.attrelid = c.oid AND a.attnum = ANY (pr.prattrs::int2[]))"""
            if new
            else "NULL::text[]"
        ),
    )
    found: list[tuple[str, str, TableFacts]] = []
    for row in conn.execute(query + sql.SQL(which), parameters).fetchall():
        schema, table, name, kind, persistence, identity, keys, filter_, read, columns, *rest = row
        generated, sequences, large, parent, references, size = rest
        fact = TableFacts(
            name, kind, persistence, identity, tuple(keys), filter_, tuple(read),
            None if columns is None else tuple(columns), tuple(generated), tuple(sequences), tuple(large), parent,
            tuple(references), size,
        )  # fmt: skip
        found.append((schema, table, fact))
    return found


def _table(schema: str, table: str, facts: TableFacts) -> Table:
    identity = _IDENTITY.get(facts.replica_identity, facts.replica_identity)
    return Table(schema, table, identity, facts.identity_columns, facts.column_list, facts.row_filter, facts.parent)


def _require_partial(publication: Publication) -> None:
    if publication.puballtables:
        raise errors.Refused(
            f"publication {publication.pubname} publishes all tables; single ones cannot be added or removed",
            hint="make a publication of single tables: rdsrepl publication create NAME --table …",
        )


def _require_create(conn: Connection, scope: Scope) -> None:
    row = conn.execute(_RIGHTS).fetchone()
    assert row is not None
    is_super, may_create, role, database = row
    if (scope.all_tables or scope.schemas) and not is_super:
        raise errors.Denied(
            f"role {role} may not publish all tables of a database or schema",
            hint="connect as a superuser (on RDS: a member of rds_superuser), or name the tables with --table",
            sqlstate="42501",
        )
    if not may_create:
        raise errors.Denied(
            f"role {role} may not create anything in database {database}",
            hint=f"as the owner: GRANT CREATE ON DATABASE {database} TO {role}",
            sqlstate="42501",
        )


def _objects(conn: Connection, scope: Scope) -> Composed:
    """Return what follows FOR or ADD: tables with their columns and filters, then schemas."""
    from psycopg import sql

    version = server_version(conn)
    columns, filters = dict(scope.columns or {}), dict(scope.filters or {})
    if (columns or filters or scope.schemas) and version < _FILTERS_SINCE:
        raise errors.Unsupported(
            f"column lists, row filters and schemas need PostgreSQL 15, and this is {version}", hint="name whole tables"
        )
    by_name = {_find(conn, text)[:2]: text for text in scope.tables}
    list_of = {_find(conn, text)[:2]: names for text, names in columns.items()}
    filter_of = {_find(conn, text)[:2]: predicate for text, predicate in filters.items()}
    for kind, given in (("--columns", list_of), ("--where", filter_of)):
        for schema, table in given:
            if (schema, table) not in by_name:
                raise errors.BadValue(f"{kind} names {schema}.{table}, which is no --table", hint="add it with --table")
    parts: list[Composed] = []
    tables: list[Composed] = []
    for key, text in by_name.items():
        _require_publishable(conn, text)
        entry: Composed = sql.SQL("{}").format(sql.Identifier(*key))
        if key in list_of:
            _require_columns(conn, key, list_of[key])
            entry += sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, list_of[key])))
        if key in filter_of:
            predicate = _checked(conn, key, filter_of[key])
            entry += sql.SQL(" WHERE ({})").format(predicate)
        tables.append(entry)
    if tables:
        parts.append(sql.SQL("TABLE {}").format(sql.SQL(", ").join(tables)))
    if scope.schemas:
        for schema in scope.schemas:
            if conn.execute("SELECT FROM pg_catalog.pg_namespace WHERE nspname = %s", (schema,)).fetchone() is None:
                raise errors.NotFound(f"no schema {schema}", hint="check the name and the database")
        parts.append(sql.SQL("TABLES IN SCHEMA {}").format(sql.SQL(", ").join(map(sql.Identifier, scope.schemas))))
    return sql.SQL(", ").join(parts)


def _find(conn: Connection, text: str) -> tuple[str, str, str, str, bool, str]:
    import psycopg

    try:
        row = conn.execute(_FIND, (text,)).fetchone()
    except psycopg.Error as exc:
        raise errors.BadValue(
            f"{text!r} is not a table's name", hint='schema.table, as SQL writes it: sales.orders, "Odd Name"."t"'
        ) from exc
    if row is not None:
        return row
    near = difflib.get_close_matches(text, [name for (name,) in conn.execute(_NAMES)], n=1, cutoff=0.5)
    raise errors.NotFound(
        f"no table {text}", hint=f"did you mean {near[0]}?" if near else "check the name, its schema and the database"
    )


def _require_publishable(conn: Connection, text: str) -> None:
    schema, table, kind, persistence, is_owner, owner = _find(conn, text)
    kinds = {"v": "a view", "m": "a materialised view", "f": "a foreign table", "S": "a sequence", "i": "an index"}
    what = kinds.get(kind) or {"u": "an unlogged table", "t": "a temporary table"}.get(persistence)
    if what is not None:
        raise errors.Refused(f"{schema}.{table} is {what}, which cannot be published", hint="name ordinary tables")
    if not is_owner:
        raise errors.Denied(
            f"{schema}.{table} belongs to {owner}; only its owner can publish it",
            hint=f"connect as {owner}, or as a member of that role",
            sqlstate="42501",
        )


def _require_columns(conn: Connection, key: tuple[str, str], wanted: Sequence[str]) -> None:
    present = [name for (name,) in conn.execute(_COLUMNS, key)]
    for column in wanted:
        if column not in present:
            near = difflib.get_close_matches(column, present, n=1)
            raise errors.NotFound(
                f"table {'.'.join(key)} has no column {column!r}",
                hint=f"did you mean {near[0]}?" if near else f"its columns: {', '.join(present)}",
            )


def _checked(conn: Connection, key: tuple[str, str], predicate: str) -> SQL:
    """Have the server parse a predicate before anything is changed; one expression, and nothing behind it.

    The extended protocol takes a single statement, so text that closes the parenthesis and begins another statement
    fails to parse; the transaction is read-only besides.
    """
    import psycopg
    from psycopg import sql

    expression = sql.SQL(predicate)  # the user's own SQL: shown in the plan as it stands
    probe = sql.SQL("SELECT FROM {} WHERE ({}\n) LIMIT 0").format(sql.Identifier(*key), expression)
    try:
        with conn.transaction(force_rollback=True):
            conn.execute("SET TRANSACTION READ ONLY")
            result = conn.pgconn.prepare(b"", probe.as_bytes(None))
            if result.status != psycopg.pq.ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(result)
    except psycopg.Error as exc:
        cause = translate(exc)
        raise errors.BadValue(
            f"--where {'.'.join(key)}: {cause.message}", hint=f"the predicate was: {predicate}", sqlstate=cause.sqlstate
        ) from exc
    if _leaves_parenthesis(predicate):
        raise errors.BadValue(f"--where {'.'.join(key)}: its parentheses do not match", hint=f"it was: {predicate}")
    return expression


def _leaves_parenthesis(predicate: str) -> bool:
    """Say whether the text closes more parentheses than it opens, outside quotes: it would leave ours."""
    depth, quote_, comment = 0, "", False
    for position, character in enumerate(predicate):
        if comment:
            comment = character != "\n"
        elif quote_:
            quote_ = "" if character == quote_ else quote_
        elif character in "'\"":
            quote_ = character
        elif predicate.startswith("--", position):
            comment = True
        elif character in "()":
            depth += 1 if character == "(" else -1
            if depth < 0:
                return True
    return depth != 0 or comment
