"""Privileges of a role: plan the grants that a subscriber needs and the revokes before a drop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.plan import Statement
from rdsrepl.postgres.error_mapping import PRIMARY_REMEDY
from rdsrepl.postgres.relations import find_oid
from rdsrepl.postgres.sql_names import quote
from rdsrepl.text.counts import counted

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composed

    from rdsrepl.postgres.connection import Connection


_MAX_NAMED: Final = 5
INSUFFICIENT_PRIVILEGE: Final = "42501"
# The kinds of objects that REVOKE … ON accepts; all other kinds are default privileges.
_SINGLE: Final = ("TABLE", "SEQUENCE", "ROUTINE", "SCHEMA", "DATABASE")


@dataclass(frozen=True, slots=True)
class CurrentRole:
    """The role of this connection, its database, and what it may do with roles."""

    name: str
    session: str
    database: str
    standby: bool
    is_super: bool
    replication: bool
    create_role: bool
    has_group: bool
    group_admin: bool


@dataclass(frozen=True, slots=True)
class _Schema:
    """A schema: whether a role lacks USAGE on it, and whether this connection may grant that."""

    name: str
    owner: str
    lacking: bool
    grantable: bool
    has_default: bool


@dataclass(frozen=True, slots=True)
class _Table:
    """A table: whether a role lacks SELECT on it, and whether this connection may grant that."""

    schema: str
    name: str
    owner: str
    lacking: bool
    grantable: bool


@dataclass(frozen=True, slots=True)
class _HeldPrivileges:
    """The privileges of a role on one object; this connection cannot revoke what the roles ``foreign`` granted."""

    kind: str
    schema: str | None
    name: str
    privileges: str
    foreign: list[str] | None


_CURRENT_ROLE: Final = """
SELECT current_user::text AS name, session_user::text AS session, current_database()::text AS database,
       pg_is_in_recovery() AS standby, rolsuper AS is_super, rolreplication AS replication,
       rolcreaterole AS create_role,
       EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rds_replication') AS has_group,
       EXISTS (SELECT FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
                WHERE g.rolname = 'rds_replication' AND m.admin_option
                  AND pg_has_role(current_user, m.member, 'usage')) AS group_admin
  FROM pg_catalog.pg_roles WHERE rolname = current_user
"""
# The exact name first, then the name as SQL writes it. Two queries, because the second one fails before 16 for text
# that is not a name.
_SCHEMA_NAMED: Final = ("SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s", "SELECT to_regnamespace(%s)::oid")
_SCHEMA: Final = """
SELECT n.nspname::text AS name, pg_get_userbyid(n.nspowner)::text AS owner,
       NOT has_schema_privilege(%(reader)s, n.oid, 'USAGE') AS lacking,
       has_schema_privilege(n.oid, 'USAGE WITH GRANT OPTION') AS grantable,
       EXISTS (SELECT FROM pg_catalog.pg_default_acl d, LATERAL aclexplode(d.defaclacl) a
                WHERE d.defaclnamespace IN (n.oid, 0) AND d.defaclobjtype = 'r' AND a.privilege_type = 'SELECT'
                  AND d.defaclrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)
                  AND a.grantee = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %(reader)s)) AS has_default
  FROM pg_catalog.pg_namespace n
 WHERE n.oid = %(oid)s
"""
_TABLES: Final = """
SELECT n.nspname::text AS schema, c.relname::text AS name, pg_get_userbyid(c.relowner)::text AS owner,
       NOT has_table_privilege(%(reader)s, c.oid, 'SELECT') AS lacking,
       has_table_privilege(c.oid, 'SELECT WITH GRANT OPTION') AS grantable
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND {}
 ORDER BY 1, 2
"""
# deptype: owner ('o'), privileges ('a'), policies ('r'), initial privileges ('i', 17+).
_DEPENDENCIES: Final = """
SELECT coalesce(d.datname::text, ''), s.deptype = 'o', s.dbid = 0 OR d.datname = current_database(),
       CASE WHEN s.dbid = 0 OR d.datname = current_database() THEN pg_describe_object(s.classid, s.objid, s.objsubid)
            END,
       s.deptype = 'a' AND s.classid IN ('pg_class'::regclass, 'pg_namespace'::regclass, 'pg_proc'::regclass,
                                         'pg_database'::regclass, 'pg_default_acl'::regclass)
  FROM pg_catalog.pg_shdepend s LEFT JOIN pg_catalog.pg_database d ON d.oid = s.dbid
 WHERE s.refclassid = 'pg_authid'::regclass
   AND s.refobjid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %s)
 ORDER BY 1, 4
"""
# A member of the owner revokes what the owner granted; only the grantor revokes other grants.
_HELD_PRIVILEGES: Final = """
WITH held (kind, schema, name, owner, acl) AS (
    SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, n.nspname::text, c.relname::text, c.relowner,
           c.relacl
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    UNION ALL
    SELECT 'TABLE', n.nspname, c.relname, c.relowner, t.attacl
      FROM pg_catalog.pg_attribute t JOIN pg_catalog.pg_class c ON c.oid = t.attrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE t.attacl IS NOT NULL AND NOT t.attisdropped
    UNION ALL
    SELECT 'SCHEMA', NULL, nspname, nspowner, nspacl FROM pg_catalog.pg_namespace
    UNION ALL
    SELECT 'ROUTINE', NULL, format('%%I.%%I(%%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
           p.proowner, p.proacl
      FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
     WHERE p.proacl IS NOT NULL
    UNION ALL
    SELECT 'DATABASE', NULL, datname, datdba, datacl FROM pg_catalog.pg_database
    UNION ALL
    SELECT CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'ROUTINES'
                                WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END,
           n.nspname, pg_get_userbyid(d.defaclrole), d.defaclrole, d.defaclacl
      FROM pg_catalog.pg_default_acl d LEFT JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace
)
SELECT h.kind, h.schema, h.name::text AS name, string_agg(DISTINCT a.privilege_type, ', ') AS privileges,
       array_agg(DISTINCT pg_get_userbyid(a.grantor)::text) FILTER (WHERE NOT CASE
           WHEN pg_has_role(current_user, h.owner, 'usage') THEN a.grantor = h.owner
           ELSE a.grantor = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user) END) AS "foreign"
  FROM held h, LATERAL aclexplode(h.acl) a
 WHERE a.grantee = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %s)
 GROUP BY h.kind, h.schema, h.name
 ORDER BY array_position(ARRAY['TABLE', 'SEQUENCE', 'ROUTINE', 'SCHEMA', 'DATABASE'], h.kind), 1, 2, 3
"""


def current_role(conn: Connection) -> CurrentRole:
    """Return the role of this connection.

    Raises:
        NotPrimary: the server is a standby, which cannot be changed.
    """
    from psycopg.rows import class_row

    with conn.cursor(row_factory=class_row(CurrentRole)) as cursor:
        me = cursor.execute(_CURRENT_ROLE).fetchone()
    assert me is not None
    if me.standby:
        raise errors.NotPrimary(
            "this server is a standby; roles can be changed only on the primary",
            hint=PRIMARY_REMEDY,
        )
    return me


def grant_reads(
    conn: Connection, me: CurrentRole, name: str, tables: Sequence[str], schemas: Sequence[str], *, reader: str
) -> tuple[list[Statement], list[str]]:
    """Return the grants that NAME needs to read these tables and schemas, and warnings.

    READER is the role whose present privileges count. Where this connection has another privilege on an object but may
    not grant it, PostgreSQL only warns. So this function checks the right to grant first.
    """
    from psycopg import sql

    role = sql.Identifier(name)
    steps: list[Statement] = []
    warnings: list[str] = []
    used: set[str] = set()
    read: set[tuple[str, str]] = set()

    def grant(privilege: str, statement: Composed, reason: str) -> None:
        steps.append(Statement(f"grant {privilege} to {name}", statement, reason=reason, effect="change"))

    def use(schema: _Schema) -> None:
        if schema.name in used or not schema.lacking:
            return
        if not schema.grantable:
            raise _not_grantable(me, f"USAGE on schema {schema.name}", schema.owner)
        used.add(schema.name)
        statement = sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema.name), role)
        grant(f"USAGE on schema {schema.name}", statement, "required to read the tables of the schema")

    for schema in {schema.name: schema for schema in (_schema(conn, text, reader) for text in schemas)}.values():
        use(schema)
        inside = _tables(conn, reader, "n.nspname = %(value)s", schema.name)
        lacking = [table for table in inside if table.lacking]
        for table in lacking:
            if not table.grantable:
                raise _not_grantable(me, f"SELECT on {table.schema}.{table.name}", table.owner)
        identifier = sql.Identifier(schema.name)
        if lacking:
            statement = sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(identifier, role)
            reason = f"lacking on {len(lacking)} of {counted(len(inside), 'table')}"
            grant(f"SELECT on all tables of schema {schema.name}", statement, reason)
        read.update((table.schema, table.name) for table in inside)
        if not schema.has_default:
            statement = sql.SQL("ALTER DEFAULT PRIVILEGES IN SCHEMA {} GRANT SELECT ON TABLES TO {}").format(
                identifier, role
            )
            grant(f"SELECT on future tables of schema {schema.name}", statement, f"for those that {me.name} creates")
            others = sorted({table.owner for table in inside} - {me.name})
            note = f"; for those of {', '.join(others)}, run the command as that role, too" if others else ""
            warnings.append(
                f"future tables of schema {schema.name}: {name} may read those that {me.name} creates{note}"
            )
    for text in tables:
        table = _table(conn, text, reader)
        if (table.schema, table.name) in read:
            continue
        read.add((table.schema, table.name))
        use(_schema(conn, table.schema, reader))
        if not table.lacking:
            continue
        if not table.grantable:
            raise _not_grantable(me, f"SELECT on {table.schema}.{table.name}", table.owner)
        statement = sql.SQL("GRANT SELECT ON TABLE {} TO {}").format(sql.Identifier(table.schema, table.name), role)
        grant(f"SELECT on {table.schema}.{table.name}", statement, "")
    return steps, warnings


def _not_grantable(me: CurrentRole, what: str, owner: str) -> errors.Denied:
    return errors.Denied(
        f"role {me.name} may not grant {what}: it belongs to {owner}",
        hint=f"connect as {owner}, or have {owner} grant that to {quote(me.name)} WITH GRANT OPTION",
        sqlstate=INSUFFICIENT_PRIVILEGE,
    )


def _schema(conn: Connection, text: str, reader: str) -> _Schema:
    import psycopg
    from psycopg.rows import class_row

    schema = None
    for query in _SCHEMA_NAMED:
        try:
            named = conn.execute(query, (text,)).fetchone()
        except (psycopg.ProgrammingError, psycopg.NotSupportedError):
            break
        if named is not None and named[0] is not None:
            with conn.cursor(row_factory=class_row(_Schema)) as cursor:
                schema = cursor.execute(_SCHEMA, {"oid": named[0], "reader": reader}).fetchone()
            break
    if schema is None:
        raise errors.NotFound(f"no schema {text}", hint="check the name and the database")
    if schema.name in ("pg_catalog", "information_schema") or schema.name.startswith("pg_"):
        raise errors.BadValue(f"schema {schema.name} is a system schema", hint="name a schema of your tables")
    return schema


def _table(conn: Connection, text: str, reader: str) -> _Table:
    import psycopg

    try:
        oid = find_oid(conn, text)
    except (psycopg.ProgrammingError, psycopg.NotSupportedError) as exc:
        raise errors.BadValue(
            f"{text!r} is not a table's name", hint='schema.table, as SQL writes it: sales.orders, "Odd Name"."t"'
        ) from exc
    tables = [] if oid is None else _tables(conn, reader, "c.oid = %(value)s", oid)
    if not tables:
        raise errors.NotFound(
            f"no table {text}",
            hint="check name, schema and database; put other than simple names in double quotes: sales.'\"Orders\"'",
        )
    return tables[0]


def _tables(conn: Connection, reader: str, condition: str, value: str | int) -> list[_Table]:
    from psycopg import sql
    from psycopg.rows import class_row

    with conn.cursor(row_factory=class_row(_Table)) as cursor:
        query = sql.SQL(_TABLES).format(sql.SQL(condition))
        return cursor.execute(query, {"reader": reader, "value": value}).fetchall()


def require_no_dependencies(conn: Connection, name: str) -> None:
    """Make sure that a role owns nothing and has no privileges that the plan cannot revoke.

    Raises:
        Refused: it owns objects, or has privileges in another database or on another kind of object.
    """
    owned: dict[str, list[str]] = {}
    elsewhere: list[str] = []
    beyond: list[str] = []
    for database, owns, here, described, revocable in conn.execute(_DEPENDENCIES, (name,)).fetchall():
        if owns:
            owned.setdefault(database or "the cluster", []).append(described or "")
        elif not here:
            elsewhere.append(database)
        elif not revocable:
            beyond.append(described)
    if owned:
        # Objects of another database have no name here.
        listed = [
            f"{first_few(things) if things[0] else counted(len(things), 'object')} in {where}"
            for where, things in owned.items()
        ]
        raise errors.Refused(
            f"role {name} owns {'; '.join(listed)}",
            hint=f"first run in each database: REASSIGN OWNED BY {quote(name)} TO …",
        )
    revoke = f"DROP OWNED BY {quote(name)} (it owns no objects, so this only revokes privileges)"
    if elsewhere:
        others = list(dict.fromkeys(elsewhere))
        raise errors.Refused(
            f"role {name} has privileges in other databases: {', '.join(others)}",
            hint=f"connect to {'each' if len(others) > 1 else others[0]} and run: {revoke}",
        )
    if beyond:
        raise errors.Refused(f"role {name} also depends on {first_few(beyond)}", hint=f"first run: {revoke}")


def revocable_privileges(conn: Connection, name: str) -> list[_HeldPrivileges]:
    """Return the privileges of a role in this database, which this connection can revoke.

    Raises:
        Refused: another role granted one of them.
    """
    from psycopg.rows import class_row

    with conn.cursor(row_factory=class_row(_HeldPrivileges)) as cursor:
        rows = cursor.execute(_HELD_PRIVILEGES, (name,)).fetchall()
    for held in rows:
        if held.foreign:
            grantors = ", ".join(held.foreign)
            raise errors.Refused(
                f"role {name} has {held.privileges} on {_described(held)}, granted by {grantors}",
                hint=f"revoke it as {grantors}, or as a superuser: DROP OWNED BY {quote(name)}",
            )
    return rows


def _described(held: _HeldPrivileges) -> str:
    where = f"{held.schema}." if held.schema else ""
    if held.kind in _SINGLE:
        return f"{held.kind.lower()} {where}{held.name}"
    return f"future {held.kind.lower()} of {held.name}" + (f" in schema {held.schema}" if held.schema else "")


def revoke_statement(name: str, held: _HeldPrivileges) -> Statement:
    """Return the step that revokes the privileges of a role on one object."""
    from psycopg import sql

    role = sql.Identifier(name)
    statement: SQL | Composed
    if held.kind in _SINGLE:
        # The server returns the name of a routine quoted and with its arguments.
        names = (held.schema, held.name) if held.schema else (held.name,)
        thing = sql.SQL(held.name) if held.kind == "ROUTINE" else sql.Identifier(*names)
        statement = sql.SQL("REVOKE ALL ON {} {} FROM {}").format(sql.SQL(held.kind), thing, role)
    else:
        scope = sql.SQL("IN SCHEMA {} ").format(sql.Identifier(held.schema)) if held.schema else sql.SQL("")
        statement = sql.SQL("ALTER DEFAULT PRIVILEGES FOR ROLE {} {}REVOKE ALL ON {} FROM {}").format(
            sql.Identifier(held.name), scope, sql.SQL(held.kind), role
        )
    reason = "a role with privileges cannot be dropped"
    return Statement(f"revoke {held.privileges} on {_described(held)}", statement, reason=reason, effect="change")


def first_few(things: Sequence[str]) -> str:
    """Return the first names of a list, and the number of the others."""
    more = len(things) - _MAX_NAMED
    return ", ".join(things[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
