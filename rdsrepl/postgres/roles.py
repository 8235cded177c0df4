"""Roles that may replicate, and what a subscriber's role needs to read (manual, sections 22 and 31.11).

On RDS the right comes from membership of ``rds_replication``, elsewhere from the ``REPLICATION`` attribute. Passwords
leave this process as SCRAM verifiers only, so that no server log ever holds one.
"""

from __future__ import annotations

import difflib
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.plan import Plan, Statement
from rdsrepl.postgres.connection import server_version

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composed

    from rdsrepl.postgres.connection import Connection

RDS_GROUP: Final = "rds_replication"
_MASK: Final = "'********'"
_PASSWORD_LENGTH: Final = 32
_NAME_BYTES: Final = 63
_ADMIN_OPTION_SINCE: Final = 16


@dataclass(frozen=True, slots=True)
class Role:
    """A row of ``pg_roles``, and whether it may replicate.

    Attributes:
        may_replicate: whether it may use replication slots and connections.
        reasons: why: ``superuser``, ``REPLICATION attribute``, ``member of rds_replication`` (``through`` whom).
    """

    rolname: str
    rolsuper: bool
    rolreplication: bool
    rolcanlogin: bool
    rolconnlimit: int
    rolvaliduntil: datetime | None
    may_replicate: bool
    reasons: tuple[str, ...]


_LIST: Final = """
WITH RECURSIVE way (roleid, member, through) AS (
    SELECT m.roleid, m.member, ''::text COLLATE "C" FROM pg_catalog.pg_auth_members m
      JOIN pg_catalog.pg_roles g ON g.oid = m.roleid AND g.rolname = 'rds_replication'
    UNION
    SELECT w.roleid, m.member, (SELECT rolname::text COLLATE "C" FROM pg_catalog.pg_roles WHERE oid = w.member)
      FROM way w JOIN pg_catalog.pg_auth_members m ON m.roleid = w.member
)
SELECT r.rolname::text, r.rolsuper, r.rolreplication, r.rolcanlogin, r.rolconnlimit,
       nullif(r.rolvaliduntil, 'infinity'::timestamptz),
       (SELECT min(w.through) FROM way w WHERE w.member = r.oid)
  FROM pg_catalog.pg_roles r
 ORDER BY r.rolname
"""
_ME: Final = """
SELECT current_user::text, rolsuper, rolreplication, rolcreaterole,
       EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rds_replication'),
       EXISTS (SELECT FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
                WHERE g.rolname = 'rds_replication' AND m.admin_option AND pg_has_role(current_user, m.member, 'usage'))
  FROM pg_catalog.pg_roles WHERE rolname = current_user
"""
_TABLE: Final = """
SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = to_regclass(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
_MISSING_SCHEMA: Final = """
SELECT NOT has_schema_privilege(%(role)s, n.oid, 'USAGE') FROM pg_catalog.pg_namespace n WHERE n.nspname = %(schema)s
"""
_MISSING_TABLES: Final = """
SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
   AND NOT has_table_privilege(%(role)s, c.oid, 'SELECT')
"""
_HAS_DEFAULT: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_default_acl d JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace,
           LATERAL aclexplode(d.defaclacl) a
     WHERE n.nspname = %(schema)s AND d.defaclrole = current_user::regrole AND d.defaclobjtype = 'r'
       AND a.grantee = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %(role)s) AND a.privilege_type = 'SELECT')
"""
_SESSIONS: Final = """
SELECT pid, application_name FROM pg_catalog.pg_stat_activity WHERE usename = %s AND pid <> pg_backend_pid()
"""
_OWNED: Final = """
SELECT coalesce(d.datname::text, '(shared)'), s.deptype::text, count(*),
       min(CASE WHEN s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                THEN pg_describe_object(s.classid, s.objid, s.objsubid) END)
  FROM pg_catalog.pg_shdepend s LEFT JOIN pg_catalog.pg_database d ON d.oid = s.dbid
 WHERE s.refclassid = 'pg_authid'::regclass AND s.deptype IN ('o', 'a')
   AND s.refobjid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %s)
 GROUP BY 1, 2 ORDER BY 1, 2 DESC
"""
_GRANTED: Final = """
SELECT 'table', n.nspname::text, c.relname::text, string_agg(DISTINCT a.privilege_type, ', ')
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace,
       LATERAL aclexplode(c.relacl) a
 WHERE a.grantee = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %(role)s) AND c.relkind <> 'S'
 GROUP BY 2, 3
UNION ALL
SELECT 'schema', n.nspname::text, NULL, string_agg(DISTINCT a.privilege_type, ', ')
  FROM pg_catalog.pg_namespace n, LATERAL aclexplode(n.nspacl) a
 WHERE a.grantee = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %(role)s)
 GROUP BY 2
UNION ALL
SELECT 'default', n.nspname::text, d.defaclrole::regrole::text, a.privilege_type
  FROM pg_catalog.pg_default_acl d JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace,
       LATERAL aclexplode(d.defaclacl) a
 WHERE d.defaclobjtype = 'r' AND a.grantee = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %(role)s)
 ORDER BY 1, 2, 3
"""


def ls(conn: Connection) -> list[Role]:
    """Return all roles but the server's own predefined ones, by name."""
    found: list[Role] = []
    for name, is_super, attribute, login, limit, until, through in conn.execute(_LIST).fetchall():
        if name.startswith("pg_"):
            continue
        reasons = [reason for reason, holds in (("superuser", is_super), ("REPLICATION attribute", attribute)) if holds]
        if through is not None:
            reasons.append(f"member of {RDS_GROUP}" + (f" through {through}" if through else ""))
        found.append(Role(name, is_super, attribute, login, limit, until, bool(reasons), tuple(reasons)))
    return found


def get(conn: Connection, name: str) -> Role:
    """Return one role.

    Raises:
        NotFound: there is none of that name.
    """
    everything = ls(conn)
    for role in everything:
        if role.rolname == name:
            return role
    near = difflib.get_close_matches(name, [role.rolname for role in everything], n=1)
    raise errors.NotFound(
        f"no role {name}", hint=f"did you mean {near[0]}?" if near else "rdsrepl role list shows them"
    )


def generate_password() -> str:
    """Return a new password of 32 letters and digits (190 bits)."""
    alphabet = string.ascii_letters + string.digits
    return "".join(secrets.choice(alphabet) for _ in range(_PASSWORD_LENGTH))


def create(
    conn: Connection,
    name: str,
    *,
    password: str | None,
    tables: Sequence[str] = (),
    schemas: Sequence[str] = (),
    connection_limit: int | None = None,
) -> Plan:
    """Return the plan that creates a role that may log in, replicate, and read what is named.

    Args:
        conn: a connection to the database where the tables are.
        name: the role; any name, it is quoted.
        password: in clear; it leaves as a SCRAM-SHA-256 verifier. None: the role gets none (IAM, certificates).
        tables: tables it may read, as SQL names them.
        schemas: schemas of which it may read every table, present and future.
        connection_limit: how many connections it may have.

    Raises:
        BadValue: NAME cannot be a role's.
        AlreadyExists: it is taken.
        NotFound: a table or schema does not exist.
        Denied: this connection's role may not do it.
    """
    from psycopg import sql

    _check_name(name)
    if any(role.rolname == name for role in ls(conn)):
        raise errors.AlreadyExists(
            f"role {name} exists already", hint=f"give it what it lacks: rdsrepl role grant {name}"
        )
    via_group = _require_right(conn, creates=True)
    role = sql.Identifier(name)
    head = sql.SQL("CREATE ROLE {} LOGIN").format(role)
    if not via_group:
        head += sql.SQL(" REPLICATION")
    if connection_limit is not None:
        head += sql.SQL(" CONNECTION LIMIT {}").format(sql.Literal(connection_limit))
    shown = None
    if password is not None:
        verifier = conn.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
        shown = head.as_string(None) + f" PASSWORD {_MASK}"
        head += sql.SQL(" PASSWORD {}").format(sql.Literal(verifier))
    steps = [Statement(f"create role {name}", head, shown=shown)]
    if via_group:
        steps.append(_join_group(name))
    reads, warnings = _reads(conn, name, tables, schemas, exists=False)
    return Plan(f"create role {name}", (*steps, *reads), tuple(warnings))


def grant(conn: Connection, name: str, *, tables: Sequence[str] = (), schemas: Sequence[str] = ()) -> Plan:
    """Return the plan that gives a role the right to replicate and to read, as far as it lacks it.

    Raises:
        NotFound: the role, a table or a schema does not exist.
        Denied: this connection's role may not do it.
    """
    from psycopg import sql

    role = get(conn, name)
    steps: list[Statement] = []
    if not role.may_replicate:
        if _require_right(conn, creates=False):
            steps.append(_join_group(name))
        else:
            statement = sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(name))
            steps.append(Statement(f"give role {name} the REPLICATION attribute", statement))
    reads, warnings = _reads(conn, name, tables, schemas, exists=True)
    return Plan(f"grant to role {name}", (*steps, *reads), tuple(warnings), unchanged="it has all that already")


def drop(conn: Connection, name: str) -> Plan:
    """Return the plan that takes a role's grants in this database away and drops it.

    Raises:
        NotFound: there is no such role.
        Refused: it is in use, owns something, has grants in other databases, or is not ours to drop.
    """
    from psycopg import sql

    role = get(conn, name)
    row = conn.execute("SELECT current_user::text, current_database()::text").fetchone()
    assert row is not None
    me, database = row
    if name == me or role.rolsuper or name == "rdsadmin" or name.startswith("rds_"):
        why = "this connection's own role" if name == me else "a superuser" if role.rolsuper else "one of RDS's own"
        raise errors.Refused(f"role {name} is {why}; it is not dropped here", hint="name a replication role")
    sessions = conn.execute(_SESSIONS, (name,)).fetchall()
    if sessions:
        pids = ", ".join(f"PID {pid} ({application or 'no name'})" for pid, application in sessions)
        raise errors.Refused(f"role {name} is connected: {pids}", hint="stop its consumer first")
    for where, kind, count, example in conn.execute(_OWNED, (name,)).fetchall():
        if kind == "o":
            what = f", {example} among them" if example else ""
            raise errors.Refused(
                f"role {name} owns {count} objects in {where}{what}",
                hint=f"hand them over first: REASSIGN OWNED BY {name} TO … in {where}",
            )
        if where not in (database, "(shared)"):
            raise errors.Refused(
                f"role {name} has grants in database {where}", hint=f"connect to {where} and revoke them there first"
            )
    steps = [_revoke(name, *grant_) for grant_ in conn.execute(_GRANTED, {"role": name}).fetchall()]
    steps.append(Statement(f"drop role {name}", sql.SQL("DROP ROLE {}").format(sql.Identifier(name))))
    return Plan(f"drop role {name}", tuple(steps), (f"whoever logs in as {name} can do so no more",))


def _check_name(name: str) -> None:
    if not name or len(name.encode()) > _NAME_BYTES or "\0" in name:
        raise errors.BadValue(f"{name!r} cannot be a role's name", hint="1 to 63 bytes; longer ones the server cuts")
    if name.startswith("pg_") or name in ("public", "none"):
        raise errors.BadValue(f"role name {name} is reserved by PostgreSQL", hint="choose another name")
    if name.startswith("rds_") or name == "rdsadmin":
        raise errors.BadValue(f"role name {name} is one of RDS's own", hint="choose another name")


def _require_right(conn: Connection, *, creates: bool) -> bool:
    """Make sure this role may give the right to replicate; return whether through ``rds_replication``."""
    row = conn.execute(_ME).fetchone()
    assert row is not None
    me, is_super, replication, create_role, has_group, is_admin = row
    if is_super:
        return bool(has_group)
    if creates and not create_role:
        raise errors.Denied(
            f"role {me} may not create roles",
            hint="connect as the master user, or a role with CREATEROLE",
            sqlstate="42501",
        )
    version = server_version(conn)
    if has_group:
        # Before 16, CREATEROLE may grant any group but a superuser's.
        if not (is_admin or (create_role and version < _ADMIN_OPTION_SINCE)):
            raise errors.Denied(
                f"role {me} may not grant {RDS_GROUP}: it has no ADMIN OPTION on it",
                hint="connect as the master user (a member of rds_superuser)",
                sqlstate="42501",
            )
        return True
    if version < _ADMIN_OPTION_SINCE or not (create_role and replication):
        raise errors.Denied(
            f"role {me} may not give the REPLICATION attribute",
            hint="connect as a superuser"
            + (", or as a role with CREATEROLE and REPLICATION" if version >= _ADMIN_OPTION_SINCE else ""),
            sqlstate="42501",
        )
    return False


def _join_group(name: str) -> Statement:
    from psycopg import sql

    statement = sql.SQL("GRANT {} TO {}").format(sql.Identifier(RDS_GROUP), sql.Identifier(name))
    return Statement(f"make {name} a member of {RDS_GROUP}", statement)


def _reads(
    conn: Connection, name: str, tables: Sequence[str], schemas: Sequence[str], *, exists: bool
) -> tuple[list[Statement], list[str]]:
    """Return the grants that NAME lacks to read these tables and schemas."""
    from psycopg import sql

    role = sql.Identifier(name)
    steps: list[Statement] = []
    warnings: list[str] = []
    usage: set[str] = set()

    def use(schema: str) -> None:
        if schema in usage or (exists and not _lacks_usage(conn, name, schema)):
            return
        usage.add(schema)
        statement = sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), role)
        steps.append(Statement(f"let {name} look into schema {schema}", statement))

    for text in tables:
        schema, table = _find_table(conn, text)
        use(schema)
        if exists and table not in _unreadable(conn, name, schema):
            continue
        statement = sql.SQL("GRANT SELECT ON TABLE {} TO {}").format(sql.Identifier(schema, table), role)
        steps.append(Statement(f"let {name} read {schema}.{table}", statement))
    for schema in schemas:
        _require_schema(conn, schema)
        use(schema)
        identifier = sql.Identifier(schema)
        if not exists or _unreadable(conn, name, schema):
            statement = sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(identifier, role)
            steps.append(Statement(f"let {name} read all tables of schema {schema}", statement))
        if not exists or not _has_default(conn, name, schema):
            statement = sql.SQL("ALTER DEFAULT PRIVILEGES IN SCHEMA {} GRANT SELECT ON TABLES TO {}").format(
                identifier, role
            )
            steps.append(Statement(f"let {name} read future tables of schema {schema}", statement))
            me = conn.execute("SELECT current_user::text").fetchone()
            assert me is not None
            warnings.append(f"future tables of schema {schema}: only those that {me[0]} creates will be readable")
    return steps, warnings


def _lacks_usage(conn: Connection, name: str, schema: str) -> bool:
    row = conn.execute(_MISSING_SCHEMA, {"role": name, "schema": schema}).fetchone()
    return row is None or bool(row[0])


def _unreadable(conn: Connection, name: str, schema: str) -> set[str]:
    return {row[0] for row in conn.execute(_MISSING_TABLES, {"role": name, "schema": schema})}


def _has_default(conn: Connection, name: str, schema: str) -> bool:
    row = conn.execute(_HAS_DEFAULT, {"role": name, "schema": schema}).fetchone()
    return row is not None and bool(row[0])


def _find_table(conn: Connection, text: str) -> tuple[str, str]:
    import psycopg

    try:
        row = conn.execute(_TABLE, (text,)).fetchone()
    except psycopg.Error as exc:
        raise errors.BadValue(
            f"{text!r} is not a table's name", hint='schema.table, as SQL writes it: sales.orders, "Odd Name"."t"'
        ) from exc
    if row is None:
        raise errors.NotFound(f"no table {text}", hint="check the name, its schema and the database (rdsrepl -v …)")
    return row[0], row[1]


def _require_schema(conn: Connection, schema: str) -> None:
    if conn.execute("SELECT FROM pg_catalog.pg_namespace WHERE nspname = %s", (schema,)).fetchone() is None:
        raise errors.NotFound(f"no schema {schema}", hint="check the name and the database")


def _revoke(name: str, kind: str, schema: str, other: str | None, privileges: str) -> Statement:
    from psycopg import sql

    role = sql.Identifier(name)
    statement: SQL | Composed
    if kind == "table":
        assert other is not None
        statement = sql.SQL("REVOKE ALL ON TABLE {} FROM {}").format(sql.Identifier(schema, other), role)
        return Statement(f"revoke {privileges} on {schema}.{other}", statement)
    if kind == "schema":
        statement = sql.SQL("REVOKE ALL ON SCHEMA {} FROM {}").format(sql.Identifier(schema), role)
        return Statement(f"revoke {privileges} on schema {schema}", statement)
    statement = sql.SQL("ALTER DEFAULT PRIVILEGES FOR ROLE {} IN SCHEMA {} REVOKE ALL ON TABLES FROM {}").format(
        sql.SQL(other or ""), sql.Identifier(schema), role
    )
    return Statement(f"revoke {privileges} on future tables of schema {schema}", statement)
