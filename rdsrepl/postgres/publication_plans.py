"""Plans that create, change and drop publications.

A statement here needs no guard of its own. CREATE fails on a taken name, ADD on a table that is a member, DROP TABLE on
one that is not, and DROP on a publication that does not exist. Each failure leaves everything unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.plan import Plan, Statement, require_same
from rdsrepl.postgres import publications, row_filters
from rdsrepl.postgres.connection import in_recovery, setting
from rdsrepl.postgres.error_mapping import PRIMARY_REMEDY, WAL_LEVEL_REMEDY
from rdsrepl.postgres.publication_checks import TableFacts, failing
from rdsrepl.postgres.publication_objects import RequestedObjects, TableToPublish, find_schema, objects, resolve
from rdsrepl.postgres.publications import (
    OPERATIONS,
    PUBLISHED_ROOT,
    REQUESTED,
    Member,
    Publication,
    read_members,
    table_facts,
)
from rdsrepl.postgres.relations import Relation, find
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composed

    from rdsrepl.postgres.connection import Connection


_NAME_BYTES: Final = 63
_MAX_WARNINGS: Final = 5
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


def create(
    conn: Connection, name: str, scope: RequestedObjects, *, publish: Sequence[str] = OPERATIONS, via_root: bool = False
) -> Plan:
    """Return the plan that creates a publication.

    Raises:
        BadValue: a name, operation, column list or row filter is not valid.
        NotFound: a table, schema or column does not exist.
        AlreadyExists: the publication exists and differs. The plan is empty for one that is the same.
        Denied, Unsupported, Refused: the role, the version of the server or the kind of a table does not allow it.
    """
    from psycopg import sql

    if not name or len(name.encode()) > _NAME_BYTES:
        raise errors.BadValue(f"{name!r} is not a valid publication name", hint=f"1 to {_NAME_BYTES} bytes")
    if not (scope.tables or scope.schemas or scope.all_tables):
        raise errors.BadValue("no tables selected", hint="add --table, --schema or --all-tables")
    if scope.all_tables and (scope.tables or scope.schemas or scope.columns or scope.filters):
        raise errors.BadValue("--all-tables excludes --table, --schema, --columns and --where", hint="remove those")
    if unknown := [operation for operation in publish if operation not in OPERATIONS]:
        raise errors.BadValue(f"--publish {', '.join(unknown)} is not an operation", hint=", ".join(OPERATIONS))
    if not publish:
        raise errors.BadValue("--publish names no operation", hint=", ".join(OPERATIONS))
    _require_primary(conn)
    entries, schemas = resolve(conn, scope, via_root=via_root)
    existing = next((publication for publication in publications.ls(conn) if publication.pubname == name), None)
    if existing is not None:
        _require_same_publication(conn, existing, scope, entries, schemas, publish=publish, via_root=via_root)
        return Plan(f"create publication {name}", (), unchanged="it already exists as requested")
    _require_rights(conn, whole=scope.all_tables or bool(schemas), creates=True)
    _require_owned(entries)
    statement: SQL | Composed = sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(name))
    statement += sql.SQL(" FOR ALL TABLES") if scope.all_tables else sql.SQL(" FOR ") + objects(entries, schemas)
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
    warnings = _failure_warnings(conn, planned, entries, schemas)
    if (wal_level := setting(conn, "wal_level")) != "logical":
        warnings.append(f"wal_level is {wal_level}: no changes can be streamed until it is logical; {WAL_LEVEL_REMEDY}")
    return Plan(
        f"create publication {name}",
        (Statement(f"create publication {name}", statement, effect="create"),),
        tuple(warnings),
    )


def add(conn: Connection, name: str, scope: RequestedObjects) -> Plan:
    """Return the plan that adds tables or schemas to a publication, without those that it already has.

    Raises:
        NotFound: the publication, a table, schema or column does not exist.
        Refused: it publishes all tables, or a table cannot be published or is in it with another column list or filter.
        BadValue, Denied, Unsupported: as in ``create``.
    """
    from psycopg import sql

    publication = publications.get(conn, name)
    _require_table_list(publication)
    _require_primary(conn)
    entries, wanted = resolve(conn, scope, via_root=publication.pubviaroot)
    _require_publication_owner(conn, name)
    members = read_members(conn, name)
    schemas = [schema for schema in wanted if schema not in publication.schemas]
    new: list[TableToPublish] = []
    for entry in entries:
        member = members.get(entry.relation.oid)
        if member is not None:
            _require_same_member(name, entry, member)
        elif entry.columns or entry.predicate or entry.relation.schema not in publication.schemas:
            new.append(entry)
    title = f"add to publication {name}"
    if not new and not schemas:
        return Plan(title, (), unchanged="it already contains them")
    listed = [entry for entry in new if entry.columns]
    if (listed and publication.schemas) or (schemas and any(member.columns for member in members.values())):
        raise errors.Refused(
            f"publication {name} would contain a column list and a schema, which PostgreSQL does not allow",
            hint="use another publication for tables with column lists",
        )
    if schemas:
        _require_rights(conn, whole=True, creates=False)
    _require_owned(new)
    statement = sql.SQL("ALTER PUBLICATION {} ADD ").format(sql.Identifier(name)) + objects(new, schemas)
    what = ", ".join([*(entry.relation.quoted for entry in new), *(f"schema {schema}" for schema in schemas)])
    warnings = [
        "only future changes are published; to write the existing rows into a stream: rdsrepl snapshot start --help"
    ]
    warnings += _failure_warnings(conn, publication, new, schemas)
    return Plan(title, (Statement(f"add {what} to {name}", statement, effect="change"),), tuple(warnings))


def remove(conn: Connection, name: str, scope: RequestedObjects) -> Plan:
    """Return the plan that removes tables or schemas from a publication, without those that it does not have.

    Raises:
        NotFound: the publication, a table or a schema does not exist.
        Refused: it publishes all tables, or a table is published through its schema.
        Denied: another role owns the publication.
    """
    from psycopg import sql

    publication = publications.get(conn, name)
    _require_table_list(publication)
    _require_primary(conn)
    relations = list(dict.fromkeys(find(conn, text) for text in scope.tables))
    wanted = [find_schema(conn, text) for text in scope.schemas]
    _require_publication_owner(conn, name)
    members = read_members(conn, name)
    schemas = [schema for schema in dict.fromkeys(wanted) if schema in publication.schemas]
    tables: list[Relation] = []
    for relation in relations:
        if relation.oid in members:
            tables.append(relation)
        elif relation.schema in publication.schemas and relation.schema not in schemas:
            raise errors.Refused(
                f"{relation.quoted} is published through its schema; it cannot be removed alone",
                hint=f"{command('publication remove {} --schema …', name)}, then add the tables to keep",
            )
    title = f"remove from publication {name}"
    if not tables and not schemas:
        return Plan(title, (), unchanged="it does not contain them")
    parts: list[Composed] = []
    if tables:
        names = sql.SQL(", ").join(sql.Identifier(relation.schema, relation.name) for relation in tables)
        parts.append(sql.SQL("TABLE {}").format(names))
    if schemas:
        parts.append(sql.SQL("TABLES IN SCHEMA {}").format(sql.SQL(", ").join(map(sql.Identifier, schemas))))
    statement = sql.SQL("ALTER PUBLICATION {} DROP {}").format(sql.Identifier(name), sql.SQL(", ").join(parts))
    what = ", ".join([*(relation.quoted for relation in tables), *(f"schema {schema}" for schema in schemas)])
    warnings = [f"changes of {what} are no longer published"]
    if len(tables) == len(members) and len(schemas) == len(publication.schemas):
        warnings.append(f"{name} will be empty: its consumers stay connected and receive nothing")
    return Plan(title, (Statement(f"remove {what} from {name}", statement, effect="change"),), tuple(warnings))


def drop(conn: Connection, name: str) -> Plan:
    """Return the plan that drops a publication; its warnings name the slots that may use it.

    Raises:
        NotFound: there is no such publication.
        Denied: another role owns it.
        NotPrimary: the server is a standby.
    """
    from psycopg import sql

    publications.get(conn, name)
    _require_primary(conn)
    _require_publication_owner(conn, name)
    warnings: list[str] = []
    for slot, pid, user, application in conn.execute(_CONSUMERS).fetchall():
        who = "".join([f", user {user}" if user else "", f", application {application}" if application else ""])
        state = f"in use by PID {pid}{who}" if pid else "inactive"
        warnings.append(
            f"slot {slot} ({state}) may use it: the stream then fails at the next change, and needs a new slot"
        )
    statement = sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name))
    return Plan(
        f"drop publication {name}", (Statement(f"drop publication {name}", statement, effect="drop"),), tuple(warnings)
    )


def _failure_warnings(
    conn: Connection, publication: Publication, entries: Sequence[TableToPublish], schemas: Sequence[str]
) -> list[str]:
    """Warn of UPDATE and DELETE statements that will fail once the tables are published."""
    oids = [entry.relation.oid for entry in entries]
    scope = {"all": publication.puballtables, "schemas": list(schemas), "roots": oids}
    given = {entry.relation.quoted: entry for entry in entries}
    tables: list[TableFacts] = []
    for row in table_facts(conn, REQUESTED, scope, parent=PUBLISHED_ROOT):
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
    findings = failing(publications.to_facts(publication, tables))
    warnings = [f"{finding.object}: {finding.message}; {finding.remedy}" for finding in findings[:_MAX_WARNINGS]]
    if len(findings) > _MAX_WARNINGS:
        warnings.append(
            f"and {counted(len(findings) - _MAX_WARNINGS, 'more such problem')}; to list them afterwards: "
            + command("publication check {}", publication.pubname)
        )
    return warnings


def _require_table_list(publication: Publication) -> None:
    if publication.puballtables:
        raise errors.Refused(
            f"publication {publication.pubname} publishes all tables; single tables cannot be added or removed",
            hint="create a publication of single tables: rdsrepl publication create NAME --table …",
        )


def _require_primary(conn: Connection) -> None:
    if in_recovery(conn):
        raise errors.NotPrimary(
            "this server is a standby; publications can be changed only on the primary",
            hint=PRIMARY_REMEDY,
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
            f"role {role} may not create objects in database {database}",
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


def _require_owned(entries: Iterable[TableToPublish]) -> None:
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
    existing: Publication,
    scope: RequestedObjects,
    entries: Sequence[TableToPublish],
    schemas: Sequence[str],
    *,
    publish: Sequence[str],
    via_root: bool,
) -> None:
    name, members = existing.pubname, read_members(conn, existing.pubname)
    listed = {entry.relation.oid: entry.relation.quoted for entry in entries}
    lacking = ", ".join(quoted for oid, quoted in listed.items() if oid not in members)
    others = sum(oid not in listed for oid in members)
    wanted = ", ".join(operation for operation in OPERATIONS if operation in publish)
    compared: dict[str, tuple[object, object]] = {
        "all tables": (existing.puballtables, scope.all_tables),
        "tables": (f"without {lacking}" if lacking else f"with {others} more" if others else "these", "these"),
        "schemas": (", ".join(existing.schemas) or "none", ", ".join(sorted(schemas)) or "none"),
        "publish": (", ".join(existing.publish), wanted),
        "via root": (existing.pubviaroot, via_root),
        "generated columns": (existing.pubgencols or "none", "none"),
    }
    hint = f"{command('publication show {}', name)}; add to it: {command('publication add {}', name)}"
    require_same(f"publication {name}", compared, hint=hint)
    for entry in entries:
        member = members[entry.relation.oid]
        columns = None if entry.columns is None else set(entry.columns)
        same_columns = columns == (None if member.columns is None else set(member.columns))
        if not same_columns or not row_filters.are_equal(entry.predicate, member.predicate):
            raise errors.AlreadyExists(
                f"publication {name} already exists and differs: {entry.relation.quoted} is in it with "
                f"{member.description}",
                hint=hint,
            )


def _require_same_member(name: str, entry: TableToPublish, member: Member) -> None:
    """Make sure that a table in the publication has the requested column list and row filter."""
    same_columns = entry.columns is None or set(entry.columns) == set(member.columns or ())
    same_filter = entry.predicate is None or row_filters.are_equal(entry.predicate, member.predicate)
    if not (same_columns and same_filter):
        table = entry.relation.quoted
        raise errors.Refused(
            f"{table} is already in publication {name}, with {member.description}",
            hint="to change that, remove and add it; changes in between are not streamed: "
            + command("publication remove {} --table {}", name, table),
        )
