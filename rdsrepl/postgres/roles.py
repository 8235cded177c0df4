"""Roles that may replicate, and what a subscriber's role needs to read (manual, sections 22 and 31.11).

On RDS the right comes from membership of ``rds_replication``, elsewhere from the ``REPLICATION`` attribute. Passwords
leave this process as SCRAM verifiers only, so that no server log ever holds one.
"""

from __future__ import annotations

import difflib
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.plan import Plan, Statement, require_same
from rdsrepl.postgres.connection import relation_oid, server_version
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composed

    from rdsrepl.postgres.connection import Connection

RDS_GROUP: Final = "rds_replication"
_MASK: Final = "'********'"
_PASSWORD_LENGTH: Final = 32
_NAME_BYTES: Final = 63
_ADMIN_OPTION_SINCE: Final = 16
_NAMED_AT_MOST: Final = 5
_NO_RIGHT: Final = "42501"
# What REVOKE … ON takes; any other kind here is of default privileges.
_SINGLE: Final = ("TABLE", "SEQUENCE", "ROUTINE", "SCHEMA", "DATABASE")


@dataclass(frozen=True, slots=True)
class Role:
    """A row of ``pg_roles``, and whether it may replicate.

    Attributes:
        rolconnlimit: how many connections it may have; -1 is any number.
        rolvaliduntil: when its password expires; None is never.
        may_replicate: whether it may use replication slots and connections.
        reasons: why: ``superuser``, ``REPLICATION attribute``, ``member of rds_replication`` (``through`` whom).
    """

    rolname: str
    rolsuper: bool
    rolinherit: bool
    rolcreaterole: bool
    rolcreatedb: bool
    rolcanlogin: bool
    rolreplication: bool
    rolbypassrls: bool
    rolconnlimit: int
    rolvaliduntil: datetime | None
    may_replicate: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Me:
    """Who this connection is, where, and what it may do about roles."""

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
    """A schema as a role sees it: whether it lacks USAGE, and whether this connection may grant that."""

    name: str
    owner: str
    lacking: bool
    grantable: bool
    has_default: bool


@dataclass(frozen=True, slots=True)
class _Table:
    """A table as a role sees it: whether it lacks SELECT, and whether this connection may grant that."""

    schema: str
    name: str
    owner: str
    lacking: bool
    grantable: bool


@dataclass(frozen=True, slots=True)
class _Held:
    """Privileges a role holds on one object; ``foreign`` granted those that this connection cannot revoke."""

    kind: str
    schema: str | None
    name: str
    privileges: str
    foreign: list[str] | None


# A membership that carries the ADMIN OPTION alone (16+: who creates a role has that on it) passes no right on.
_LIST: Final = """
WITH RECURSIVE given (roleid, member) AS (
    SELECT m.roleid, m.member FROM pg_catalog.pg_auth_members m
     WHERE coalesce((to_jsonb(m)->>'inherit_option')::boolean OR (to_jsonb(m)->>'set_option')::boolean, true)
), way (member, through) AS (
    SELECT g.member, NULL::oid FROM given g JOIN pg_catalog.pg_roles r ON r.oid = g.roleid
     WHERE r.rolname = 'rds_replication'
    UNION
    SELECT g.member, g.roleid FROM way w JOIN given g ON g.roleid = w.member
)
SELECT r.rolname::text, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication,
       r.rolbypassrls, r.rolconnlimit,
       -- What Python's years, 1 to 9999, cannot hold.
       CASE WHEN r.rolvaliduntil < '9999-12-31' THEN greatest(r.rolvaliduntil, '0001-01-03') END,
       (SELECT CASE WHEN bool_or(w.through IS NULL) THEN '' ELSE min(t.rolname::text COLLATE "C") END
          FROM way w LEFT JOIN pg_catalog.pg_roles t ON t.oid = w.through WHERE w.member = r.oid)
  FROM pg_catalog.pg_roles r
 ORDER BY r.rolname
"""
_ADMIN: Final = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r ON r.oid = m.roleid
                WHERE r.rolname = %s AND m.admin_option AND pg_has_role(current_user, m.member, 'usage'))
"""
_ME: Final = """
SELECT current_user::text AS name, session_user::text AS session, current_database()::text AS database,
       pg_is_in_recovery() AS standby, rolsuper AS is_super, rolreplication AS replication,
       rolcreaterole AS create_role,
       EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rds_replication') AS has_group,
       EXISTS (SELECT FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
                WHERE g.rolname = 'rds_replication' AND m.admin_option
                  AND pg_has_role(current_user, m.member, 'usage')) AS group_admin
  FROM pg_catalog.pg_roles WHERE rolname = current_user
"""
# The name exactly as given first, then as SQL reads it. Two queries: the planner would try both at once, and before 16
# what is no name to SQL is an error.
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
_SESSIONS: Final = """
SELECT a.pid, coalesce(nullif(a.application_name, ''), 'no name'), r.active_pid IS NOT NULL,
       coalesce(r.slot_name::text, '')
  FROM pg_catalog.pg_stat_activity a LEFT JOIN pg_catalog.pg_replication_slots r ON r.active_pid = a.pid
 WHERE a.usename = %s AND a.pid <> pg_backend_pid() ORDER BY a.pid
"""
# 'o' is owner; the others are privileges ('a'), policies ('r') and initial privileges ('i', 17+).
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
# Whoever acts for the owner revokes what the owner granted; another grantor's grants only that one revokes.
_HELD: Final = """
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


def ls(conn: Connection) -> list[Role]:
    """Return all roles but PostgreSQL's predefined ones (``pg_…``), by name."""
    return [role for role in _all(conn) if not role.rolname.startswith("pg_")]


def get(conn: Connection, name: str) -> Role:
    """Return one role, a predefined one as well.

    Raises:
        NotFound: there is none of that name.
    """
    everything = _all(conn)
    for role in everything:
        if role.rolname == name:
            return role
    near = difflib.get_close_matches(name, [role.rolname for role in everything], n=1)
    raise errors.NotFound(
        f"no role {name}", hint=f"did you mean {near[0]}?" if near else "rdsrepl role list --all shows them"
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
        BadValue: NAME cannot be a role's, or the password cannot be one.
        AlreadyExists: there is one that differs. Another one is given what it lacks; its password stays as it is.
        NotFound: a table or schema does not exist.
        Denied: this connection's role may not do it.
        NotPrimary: the server is a standby.
    """
    from psycopg import sql

    _check_name(name)
    if (found := next((role for role in _all(conn) if role.rolname == name), None)) is not None:
        return _complete(conn, found, tables, schemas, connection_limit, has_password=password is not None)
    me = _me(conn)
    via_group = _require_right(conn, me, creates=True)
    role = sql.Identifier(name)
    head = sql.SQL("CREATE ROLE {} LOGIN").format(role)
    if not via_group:
        head += sql.SQL(" REPLICATION")
    if connection_limit is not None:
        head += sql.SQL(" CONNECTION LIMIT {}").format(sql.Literal(connection_limit))
    shown = None
    if password is not None:
        shown = head.as_string(None) + f" PASSWORD {_MASK}"
        head += sql.SQL(" PASSWORD {}").format(sql.Literal(_verifier(conn, name, password)))
    steps = [Statement(f"create role {name}", head, shown=shown, makes=True)]
    if via_group:
        steps.append(_join_group(name))
    # A new role has what PUBLIC has.
    reads, warnings = _reads(conn, me, name, tables, schemas, reader="public")
    return Plan(f"create role {name}", (*steps, *reads), tuple(warnings))


def exists(conn: Connection, name: str) -> bool:
    """Say whether there is a role of that name."""
    return any(role.rolname == name for role in _all(conn))


def _complete(
    conn: Connection,
    found: Role,
    tables: Sequence[str],
    schemas: Sequence[str],
    connection_limit: int | None,
    *,
    has_password: bool,
) -> Plan:
    """Plan what a role lacks that exists already, such as after a creation that was interrupted."""
    name = found.rolname
    compared: dict[str, tuple[object, object]] = {
        "LOGIN": (found.rolcanlogin, True),
        "SUPERUSER": (found.rolsuper, False),
        "CONNECTION LIMIT": (found.rolconnlimit, connection_limit),
    }
    hint = f"choose another name, or give it what it lacks: {command('role grant {}', name)}"
    require_same(f"role {name}", compared, hint=hint)
    plan = grant(conn, name, tables=tables, schemas=schemas)
    kept = f"; its password stays as it is ({command('role password {}', name)} changes it)" if has_password else ""
    return replace(
        plan,
        title=f"create role {name}",
        warnings=(f"role {name} exists already: it is given what it lacks{kept}", *plan.warnings),
        unchanged=f"it exists already and has all that{kept}",
    )


def grant(conn: Connection, name: str, *, tables: Sequence[str] = (), schemas: Sequence[str] = ()) -> Plan:
    """Return the plan that gives a role the right to replicate and to read, as far as it lacks it.

    Raises:
        NotFound: the role, a table or a schema does not exist.
        Refused: the role is the server's or RDS's own.
        Denied: this connection's role may not do it.
        NotPrimary: the server is a standby.
    """
    from psycopg import sql

    role = get(conn, name)
    if _is_internal(name):
        raise errors.Refused(f"role {name} is {_whose(name)}; it is left alone", hint="name a role of your own")
    me = _me(conn)
    steps: list[Statement] = []
    warnings: list[str] = []
    if not role.may_replicate:
        if _require_right(conn, me, creates=False, of=name):
            steps.append(_join_group(name))
        else:
            statement = sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(name))
            steps.append(Statement(f"give role {name} the REPLICATION attribute", statement))
        if not role.rolcanlogin:
            # The attribute is not inherited, membership is.
            whom = "its members gain the right" if me.has_group else "nobody gains anything"
            warnings.append(f"role {name} may not log in (NOLOGIN): {whom}")
    reads, more = _reads(conn, me, name, tables, schemas, reader=name)
    return Plan(
        f"grant to role {name}", (*steps, *reads), (*warnings, *more), unchanged="nothing to do, it has all that"
    )


def change_password(conn: Connection, name: str, password: str) -> Plan:
    """Return the plan that gives a role another password.

    Args:
        conn: a connection to any database of the server.
        name: the role.
        password: in clear; it leaves as a SCRAM-SHA-256 verifier.

    Raises:
        BadValue: it cannot be a password.
        NotFound: there is no such role.
        Refused: the role is the server's or RDS's own.
        Denied: this connection's role may not do it.
        NotPrimary: the server is a standby.
    """
    from psycopg import sql

    role = get(conn, name)
    if _is_internal(name):
        raise errors.Refused(f"role {name} is {_whose(name)}; it is left alone", hint="name a role of your own")
    me = _me(conn)
    since_16 = server_version(conn) >= _ADMIN_OPTION_SINCE
    # Before 16 a role with the REPLICATION attribute is a superuser's to alter, its own password included.
    superusers = role.rolsuper or (role.rolreplication and not since_16)
    may = name == me.name or (me.create_role and (not since_16 or _may_administer(conn, name)))
    if not me.is_super and (superusers or not may):
        raise errors.Denied(
            f"role {me.name} may not change the password of role {name}",
            hint="connect as a superuser" if superusers else _admin_hint(conn, me, name),
            sqlstate=_NO_RIGHT,
        )
    head = sql.SQL("ALTER ROLE {} PASSWORD ").format(sql.Identifier(name))
    step = Statement(
        f"change the password of role {name}",
        head + sql.Literal(_verifier(conn, name, password)),
        shown=head.as_string(None) + _MASK,
    )
    warnings = [f"whoever logs in as {name} needs the new password; connections that are open stay open"]
    if role.rolvaliduntil is not None:
        warnings.append(f"the new password, too, is valid until {role.rolvaliduntil.isoformat(sep=' ')} only")
    return Plan(f"change the password of role {name}", (step,), tuple(warnings))


def drop(conn: Connection, name: str) -> Plan:
    """Return the plan that takes a role's privileges in this database away and drops it.

    Raises:
        NotFound: there is no such role.
        Refused: it is in use, owns something, holds privileges that this connection cannot revoke (in another
            database, or granted by another role), or is not ours to drop.
        Denied: this connection's role may not do it.
        NotPrimary: the server is a standby.
    """
    from psycopg import sql

    role = get(conn, name)
    me = _me(conn)
    if name in (me.name, me.session) or role.rolsuper or _is_internal(name):
        why = _whose(name) if _is_internal(name) else "a superuser" if role.rolsuper else "this connection's own role"
        raise errors.Refused(
            f"role {name} is {why}; it is not dropped here", hint="name a replication role (rdsrepl role list)"
        )
    _refuse_connected(conn, name)
    if not me.is_super and not (
        me.create_role and (server_version(conn) < _ADMIN_OPTION_SINCE or _may_administer(conn, name))
    ):
        raise errors.Denied(
            f"role {me.name} may not drop role {name}", hint=_admin_hint(conn, me, name), sqlstate=_NO_RIGHT
        )
    _refuse_dependent(conn, me, name)
    steps = [_revoke(name, held) for held in _revocable(conn, name)]
    steps.append(Statement(f"drop role {name}", sql.SQL("DROP ROLE {}").format(sql.Identifier(name))))
    return Plan(f"drop role {name}", tuple(steps), (f"whoever logs in as {name} can do so no more",))


def _all(conn: Connection) -> list[Role]:
    found: list[Role] = []
    for name, is_super, *flags, limit, until, through in conn.execute(_LIST).fetchall():
        inherit, create_role, create_db, login, attribute, bypass = flags
        reasons = [reason for reason, holds in (("superuser", is_super), ("REPLICATION attribute", attribute)) if holds]
        if through is not None:
            reasons.append(f"member of {RDS_GROUP}" + (f" through {through}" if through else ""))
        found.append(
            Role(
                rolname=name,
                rolsuper=is_super,
                rolinherit=inherit,
                rolcreaterole=create_role,
                rolcreatedb=create_db,
                rolcanlogin=login,
                rolreplication=attribute,
                rolbypassrls=bypass,
                rolconnlimit=limit,
                rolvaliduntil=until,
                may_replicate=bool(reasons),
                reasons=tuple(reasons),
            )
        )
    return found


def _check_name(name: str) -> None:
    if "\0" in name or not 0 < len(name.encode(errors="replace")) <= _NAME_BYTES:
        raise errors.BadValue(f"{name!r} cannot be a role's name", hint="1 to 63 bytes; longer ones the server cuts")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise errors.BadValue(f"{name!r} cannot be a role's name", hint="it is not UTF-8") from None
    if name in ("public", "none") or _is_internal(name):
        raise errors.BadValue(f"role name {name} is {_whose(name)}", hint="choose another name")


def _is_internal(name: str) -> bool:
    return name.startswith(("pg_", "rds_")) or name in ("rdsadmin", "rdsrepladmin")


def _whose(name: str) -> str:
    return "one of RDS's own" if name.startswith("rds") else "reserved by PostgreSQL"


def _quoted(name: str) -> str:
    from psycopg import sql

    return sql.Identifier(name).as_string(None)


def _verifier(conn: Connection, name: str, password: str) -> str:
    # libpq reads up to a NUL: what follows would be lost without a word. No cause is kept, it would hold the password.
    try:
        secret = password.encode()
    except UnicodeEncodeError:
        secret = b""
    if not secret or b"\0" in secret:
        raise errors.BadValue("this cannot be a password", hint="one or more characters in UTF-8, no NUL among them")
    return conn.pgconn.encrypt_password(secret, name.encode(), b"scram-sha-256").decode()


def _me(conn: Connection) -> _Me:
    """Return who this connection is; refuse a standby, where nothing can be changed."""
    from psycopg.rows import class_row

    with conn.cursor(row_factory=class_row(_Me)) as cursor:
        me = cursor.execute(_ME).fetchone()
    assert me is not None
    if me.standby:
        raise errors.NotPrimary(
            "this server is a standby; roles change on the primary",
            hint="connect to the primary (on RDS: the writer endpoint)",
        )
    return me


def _may_administer(conn: Connection, name: str) -> bool:
    row = conn.execute(_ADMIN, (name,)).fetchone()
    return row is not None and bool(row[0])


def _admin_hint(conn: Connection, me: _Me, name: str) -> str:
    if server_version(conn) < _ADMIN_OPTION_SINCE or not me.create_role:
        return "connect as the master user, or a role with CREATEROLE"
    return (
        f"connect as the role that made it, or as a superuser: "
        f"GRANT {_quoted(name)} TO {_quoted(me.name)} WITH ADMIN OPTION"
    )


def _require_right(conn: Connection, me: _Me, *, creates: bool, of: str | None = None) -> bool:
    """Make sure this role may give the right to replicate (OF an existing role); return whether it is membership."""
    if me.is_super:
        return me.has_group
    if creates and not me.create_role:
        raise errors.Denied(
            f"role {me.name} may not create roles",
            hint="connect as the master user, or a role with CREATEROLE",
            sqlstate=_NO_RIGHT,
        )
    since_16 = server_version(conn) >= _ADMIN_OPTION_SINCE
    if me.has_group:
        # Before 16, CREATEROLE may grant any group but a superuser's.
        if not (me.group_admin or (me.create_role and not since_16)):
            raise errors.Denied(
                f"role {me.name} may not grant {RDS_GROUP}: it has no ADMIN OPTION on it",
                hint=f"connect as the master user (rds_superuser), or there: GRANT {RDS_GROUP} TO "
                f"{_quoted(me.name)} WITH ADMIN OPTION",
                sqlstate=_NO_RIGHT,
            )
        return True
    if not (since_16 and me.create_role and me.replication):
        raise errors.Denied(
            f"role {me.name} may not give the REPLICATION attribute",
            hint="connect as a superuser" + (", or as a role with CREATEROLE and REPLICATION" if since_16 else ""),
            sqlstate=_NO_RIGHT,
        )
    if of is not None and not _may_administer(conn, of):
        raise errors.Denied(
            f"role {me.name} may not change role {of}", hint=_admin_hint(conn, me, of), sqlstate=_NO_RIGHT
        )
    return False


def _join_group(name: str) -> Statement:
    from psycopg import sql

    statement = sql.SQL("GRANT {} TO {}").format(sql.Identifier(RDS_GROUP), sql.Identifier(name))
    return Statement(f"make {name} a member of {RDS_GROUP}", statement)


def _reads(
    conn: Connection, me: _Me, name: str, tables: Sequence[str], schemas: Sequence[str], *, reader: str
) -> tuple[list[Statement], list[str]]:
    """Return the grants for NAME to read these tables and schemas, without what READER has already.

    A grant without the right to it is no error to PostgreSQL when the role holds any other privilege there, only a
    warning; so the right is looked at first.
    """
    from psycopg import sql

    role = sql.Identifier(name)
    steps: list[Statement] = []
    warnings: list[str] = []
    used: set[str] = set()
    read: set[tuple[str, str]] = set()

    def use(schema: _Schema) -> None:
        if schema.name in used or not schema.lacking:
            return
        if not schema.grantable:
            raise _not_grantable(me, f"USAGE on schema {schema.name}", schema.owner)
        used.add(schema.name)
        statement = sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema.name), role)
        steps.append(Statement(f"let {name} look into schema {schema.name}", statement))

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
            steps.append(Statement(f"let {name} read all tables of schema {schema.name}", statement))
        read.update((table.schema, table.name) for table in inside)
        if not schema.has_default:
            statement = sql.SQL("ALTER DEFAULT PRIVILEGES IN SCHEMA {} GRANT SELECT ON TABLES TO {}").format(
                identifier, role
            )
            steps.append(Statement(f"let {name} read future tables of schema {schema.name}", statement))
            others = sorted({table.owner for table in inside} - {me.name})
            note = f"; for those of {', '.join(others)}, run it as that role, too" if others else ""
            warnings.append(f"future tables of schema {schema.name}: {name} may read those that {me.name} makes{note}")
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
        steps.append(Statement(f"let {name} read {table.schema}.{table.name}", statement))
    return steps, warnings


def _not_grantable(me: _Me, what: str, owner: str) -> errors.Denied:
    return errors.Denied(
        f"role {me.name} may not grant {what}: it belongs to {owner}",
        hint=f"connect as {owner}, or have {owner} grant that to {_quoted(me.name)} WITH GRANT OPTION",
        sqlstate=_NO_RIGHT,
    )


def _schema(conn: Connection, text: str, reader: str) -> _Schema:
    import psycopg
    from psycopg.rows import class_row

    found = None
    for query in _SCHEMA_NAMED:
        try:
            named = conn.execute(query, (text,)).fetchone()
        except (psycopg.ProgrammingError, psycopg.NotSupportedError):
            break
        if named is not None and named[0] is not None:
            with conn.cursor(row_factory=class_row(_Schema)) as cursor:
                found = cursor.execute(_SCHEMA, {"oid": named[0], "reader": reader}).fetchone()
            break
    if found is None:
        raise errors.NotFound(f"no schema {text}", hint="check the name and the database")
    if found.name in ("pg_catalog", "information_schema") or found.name.startswith("pg_"):
        raise errors.BadValue(f"schema {found.name} is the server's own", hint="name a schema of your tables")
    return found


def _table(conn: Connection, text: str, reader: str) -> _Table:
    import psycopg

    try:
        oid = relation_oid(conn, text)
    except (psycopg.ProgrammingError, psycopg.NotSupportedError) as exc:
        raise errors.BadValue(
            f"{text!r} is not a table's name", hint='schema.table, as SQL writes it: sales.orders, "Odd Name"."t"'
        ) from exc
    found = [] if oid is None else _tables(conn, reader, "c.oid = %(value)s", oid)
    if not found:
        raise errors.NotFound(
            f"no table {text}", hint="check name, schema and database; odd names in double quotes: sales.'\"Orders\"'"
        )
    return found[0]


def _tables(conn: Connection, reader: str, condition: str, value: str | int) -> list[_Table]:
    from psycopg import sql
    from psycopg.rows import class_row

    with conn.cursor(row_factory=class_row(_Table)) as cursor:
        query = sql.SQL(_TABLES).format(sql.SQL(condition))
        return cursor.execute(query, {"reader": reader, "value": value}).fetchall()


def _refuse_connected(conn: Connection, name: str) -> None:
    found = [
        f"PID {pid} ({application}{f', slot {slot}' if active else ''})"
        for pid, application, active, slot in conn.execute(_SESSIONS, (name,)).fetchall()
    ]
    if found:
        raise errors.Refused(
            f"role {name} is connected: {_some(found)}",
            hint="stop its consumer first (rdsrepl slot list shows who streams)",
        )


def _refuse_dependent(conn: Connection, me: _Me, name: str) -> None:
    """Refuse a role that owns something, or holds privileges that the plan's statements would not reach."""
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
        # What stands in another database only that database can name.
        listed = [
            f"{_some(things) if things[0] else _count(things, 'object')} in {where}" for where, things in owned.items()
        ]
        raise errors.Refused(
            f"role {name} owns {'; '.join(listed)}",
            hint=f"hand them over first, in each database: REASSIGN OWNED BY {_quoted(name)} TO …",
        )
    revoke = f"DROP OWNED BY {_quoted(name)} (it owns nothing, so only privileges go)"
    if elsewhere:
        others = list(dict.fromkeys(elsewhere))
        raise errors.Refused(
            f"role {name} holds privileges in other databases: {', '.join(others)}",
            hint=f"connect to {'each' if len(others) > 1 else others[0]} and run: {revoke}",
        )
    if beyond:
        raise errors.Refused(f"role {name} is bound to {_some(beyond)} in {me.database}", hint=f"first run: {revoke}")


def _revocable(conn: Connection, name: str) -> list[_Held]:
    from psycopg.rows import class_row

    with conn.cursor(row_factory=class_row(_Held)) as cursor:
        rows = cursor.execute(_HELD, (name,)).fetchall()
    for held in rows:
        if held.foreign:
            grantors = ", ".join(held.foreign)
            raise errors.Refused(
                f"role {name} holds {held.privileges} on {_what(held)}, granted by {grantors}",
                hint=f"revoke it as {grantors}, or as a superuser: DROP OWNED BY {_quoted(name)}",
            )
    return rows


def _what(held: _Held) -> str:
    where = f"{held.schema}." if held.schema else ""
    if held.kind in _SINGLE:
        return f"{held.kind.lower()} {where}{held.name}"
    return f"future {held.kind.lower()} of {held.name}" + (f" in schema {held.schema}" if held.schema else "")


def _revoke(name: str, held: _Held) -> Statement:
    from psycopg import sql

    role = sql.Identifier(name)
    statement: SQL | Composed
    if held.kind in _SINGLE:
        # A routine's name comes with its arguments, quoted by the server.
        names = (held.schema, held.name) if held.schema else (held.name,)
        thing = sql.SQL(held.name) if held.kind == "ROUTINE" else sql.Identifier(*names)
        statement = sql.SQL("REVOKE ALL ON {} {} FROM {}").format(sql.SQL(held.kind), thing, role)
    else:
        scope = sql.SQL("IN SCHEMA {} ").format(sql.Identifier(held.schema)) if held.schema else sql.SQL("")
        statement = sql.SQL("ALTER DEFAULT PRIVILEGES FOR ROLE {} {}REVOKE ALL ON {} FROM {}").format(
            sql.Identifier(held.name), scope, sql.SQL(held.kind), role
        )
    return Statement(f"revoke {held.privileges} on {_what(held)}", statement)


def _some(things: Sequence[str]) -> str:
    """Return the first few, and how many more there are."""
    more = len(things) - _NAMED_AT_MOST
    return ", ".join(things[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"
