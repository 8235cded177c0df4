"""Plans that create, change and drop roles that may replicate.

A password leaves this process only as a SCRAM verifier, so that no server log contains it.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.plan import Plan, Statement, require_same
from rdsrepl.postgres import roles, versions
from rdsrepl.postgres.connection import server_version
from rdsrepl.postgres.privileges import (
    INSUFFICIENT_PRIVILEGE,
    CurrentRole,
    current_role,
    first_few,
    grant_reads,
    require_no_dependencies,
    revocable_privileges,
    revoke_statement,
)
from rdsrepl.postgres.roles import RDS_GROUP, Role
from rdsrepl.postgres.sql_names import quote
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection


_MASK: Final = "'********'"
_MAY_REPLICATE: Final = "gives the right to replicate"
_PASSWORD_LENGTH: Final = 32
_NAME_BYTES: Final = 63
_ADMIN: Final = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r ON r.oid = m.roleid
                WHERE r.rolname = %s AND m.admin_option AND pg_has_role(current_user, m.member, 'usage'))
"""
_SESSIONS: Final = """
SELECT a.pid, coalesce(nullif(a.application_name, ''), 'no name'), r.active_pid IS NOT NULL,
       coalesce(r.slot_name::text, '')
  FROM pg_catalog.pg_stat_activity a LEFT JOIN pg_catalog.pg_replication_slots r ON r.active_pid = a.pid
 WHERE a.usename = %s AND a.pid <> pg_backend_pid() ORDER BY a.pid
"""


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
    """Return the plan that creates a role that may log in, replicate, and read the given tables and schemas.

    Args:
        conn: a connection to the database of the tables.
        name: the role; any name, it is quoted.
        password: in clear text; the statement contains a SCRAM-SHA-256 verifier. None: no password (IAM, certificates).
        tables: the tables to read, as SQL writes their names.
        schemas: the schemas of which to read all tables, future ones included.
        connection_limit: the connection limit of the role.

    Raises:
        BadValue: NAME is not a valid role name, or the password is not valid.
        AlreadyExists: the role exists and differs. One that is the same only gets what it lacks; its password stays.
        NotFound: a table or schema does not exist.
        Denied: the role of this connection may not do that.
        NotPrimary: the server is a standby.
    """
    from psycopg import sql

    _check_name(name)
    existing = next((role for role in roles.all_roles(conn) if role.rolname == name), None)
    if existing is not None:
        return _complete(conn, existing, tables, schemas, connection_limit, has_password=password is not None)
    me = current_role(conn)
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
    steps = [Statement(f"create role {name}", head, shown=shown, effect="create")]
    if via_group:
        steps.append(_join_group(name))
    # A new role has the privileges of PUBLIC.
    reads, warnings = grant_reads(conn, me, name, tables, schemas, reader="public")
    return Plan(f"create role {name}", (*steps, *reads), tuple(warnings))


def _complete(
    conn: Connection,
    existing: Role,
    tables: Sequence[str],
    schemas: Sequence[str],
    connection_limit: int | None,
    *,
    has_password: bool,
) -> Plan:
    """Return the plan that completes an existing role, for example after an interrupted creation."""
    name = existing.rolname
    compared: dict[str, tuple[object, object]] = {
        "LOGIN": (existing.rolcanlogin, True),
        "SUPERUSER": (existing.rolsuper, False),
        "CONNECTION LIMIT": (existing.rolconnlimit, connection_limit),
    }
    hint = f"choose another name, or grant what is missing: {command('role grant {}', name)}"
    require_same(f"role {name}", compared, hint=hint)
    plan = grant(conn, name, tables=tables, schemas=schemas)
    kept = f"; its password does not change; to change it: {command('role password {}', name)}" if has_password else ""
    return replace(
        plan,
        title=f"create role {name}",
        warnings=(f"role {name} already exists and gets only what it lacks{kept}", *plan.warnings),
        unchanged=f"it already exists with these privileges{kept}",
    )


def grant(conn: Connection, name: str, *, tables: Sequence[str] = (), schemas: Sequence[str] = ()) -> Plan:
    """Return the plan that grants a role the missing privileges to replicate and to read.

    Raises:
        NotFound: the role, a table or a schema does not exist.
        Refused: the role belongs to PostgreSQL or RDS.
        Denied: the role of this connection may not do that.
        NotPrimary: the server is a standby.
    """
    from psycopg import sql

    role, me = _changeable(conn, name)
    steps: list[Statement] = []
    warnings: list[str] = []
    if not role.may_replicate:
        if _require_right(conn, me, creates=False, of=name):
            steps.append(_join_group(name))
        else:
            statement = sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(name))
            summary = f"set the REPLICATION attribute of role {name}"
            steps.append(Statement(summary, statement, reason=_MAY_REPLICATE, effect="change"))
        if not role.rolcanlogin:
            # Members inherit the membership, but not the attribute.
            effect = "only its members may replicate" if me.has_group else "the attribute has no effect"
            warnings.append(f"role {name} may not log in (NOLOGIN): {effect}")
    reads, more = grant_reads(conn, me, name, tables, schemas, reader=name)
    return Plan(
        f"grant to role {name}", (*steps, *reads), (*warnings, *more), unchanged="it already has these privileges"
    )


def change_password(conn: Connection, name: str, password: str) -> Plan:
    """Return the plan that changes the password of a role.

    Args:
        conn: a connection to any database of the server.
        name: the role.
        password: in clear text; the statement contains a SCRAM-SHA-256 verifier.

    Raises:
        BadValue: the password is not valid.
        NotFound: the server has no such role.
        Refused: the role belongs to PostgreSQL or RDS.
        Denied: the role of this connection may not do that.
        NotPrimary: the server is a standby.
    """
    from psycopg import sql

    role, me = _changeable(conn, name)
    since_16 = server_version(conn) >= versions.ADMIN_OPTION_SINCE
    # Before 16 only a superuser may alter a role with the REPLICATION attribute, even its own password.
    superusers = role.rolsuper or (role.rolreplication and not since_16)
    may = name == me.name or (me.create_role and (not since_16 or _may_administer(conn, name)))
    if not me.is_super and (superusers or not may):
        raise errors.Denied(
            f"role {me.name} may not change the password of role {name}",
            hint="connect as a superuser" if superusers else _admin_hint(conn, me, name),
            sqlstate=INSUFFICIENT_PRIVILEGE,
        )
    head = sql.SQL("ALTER ROLE {} PASSWORD ").format(sql.Identifier(name))
    step = Statement(
        f"change the password of role {name}",
        head + sql.Literal(_verifier(conn, name, password)),
        shown=head.as_string(None) + _MASK,
        effect="change",
    )
    warnings = [f"every client of {name} needs the new password; open connections stay open"]
    if role.rolvaliduntil is not None:
        warnings.append(f"the new password, too, expires at {role.rolvaliduntil.isoformat(sep=' ')}")
    return Plan(f"change the password of role {name}", (step,), tuple(warnings))


def drop(conn: Connection, name: str) -> Plan:
    """Return the plan that revokes the privileges of a role in this database and drops it.

    Raises:
        NotFound: the server has no such role.
        Refused: it is in use, owns objects, has privileges that this connection cannot revoke (in another database, or
            granted by another role), or belongs to PostgreSQL or RDS.
        Denied: the role of this connection may not do that.
        NotPrimary: the server is a standby.
    """
    from psycopg import sql

    role = roles.get(conn, name)
    me = current_role(conn)
    if name in (me.name, me.session) or role.rolsuper or _is_internal(name):
        why = _whose(name) if _is_internal(name) else "a superuser" if role.rolsuper else "the role of this connection"
        raise errors.Refused(
            f"role {name} is {why} and cannot be dropped", hint="name a replication role (rdsrepl role list)"
        )
    _require_not_connected(conn, name)
    if not me.is_super and not (
        me.create_role and (server_version(conn) < versions.ADMIN_OPTION_SINCE or _may_administer(conn, name))
    ):
        raise errors.Denied(
            f"role {me.name} may not drop role {name}",
            hint=_admin_hint(conn, me, name),
            sqlstate=INSUFFICIENT_PRIVILEGE,
        )
    require_no_dependencies(conn, name)
    steps = [revoke_statement(name, held) for held in revocable_privileges(conn, name)]
    steps.append(Statement(f"drop role {name}", sql.SQL("DROP ROLE {}").format(sql.Identifier(name)), effect="drop"))
    return Plan(f"drop role {name}", tuple(steps), (f"{name} can no longer log in",))


def _changeable(conn: Connection, name: str) -> tuple[Role, CurrentRole]:
    """Return a role that may be changed, and the role of this connection."""
    role = roles.get(conn, name)
    if _is_internal(name):
        raise errors.Refused(f"role {name} is {_whose(name)} and is not changed", hint="name another role")
    return role, current_role(conn)


def _check_name(name: str) -> None:
    if "\0" in name or not 0 < len(name.encode(errors="replace")) <= _NAME_BYTES:
        raise errors.BadValue(
            f"{name!r} is not a valid role name", hint="use 1 to 63 bytes; the server truncates longer names"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise errors.BadValue(f"{name!r} is not a valid role name", hint="it is not UTF-8") from None
    if name in ("public", "none") or _is_internal(name):
        raise errors.BadValue(f"role name {name} is {_whose(name)}", hint="choose another name")


def _is_internal(name: str) -> bool:
    return name.startswith(("pg_", "rds_")) or name in ("rdsadmin", "rdsrepladmin")


def _whose(name: str) -> str:
    return "reserved by RDS" if name.startswith("rds") else "reserved by PostgreSQL"


def _verifier(conn: Connection, name: str, password: str) -> str:
    # libpq ignores everything after a NUL. The error has no cause, as that would contain the password.
    try:
        secret = password.encode()
    except UnicodeEncodeError:
        secret = b""
    if not secret or b"\0" in secret:
        raise errors.BadValue("the password is not valid", hint="use at least one UTF-8 character and no NUL")
    return conn.pgconn.encrypt_password(secret, name.encode(), b"scram-sha-256").decode()


def _may_administer(conn: Connection, name: str) -> bool:
    row = conn.execute(_ADMIN, (name,)).fetchone()
    return row is not None and bool(row[0])


def _admin_hint(conn: Connection, me: CurrentRole, name: str) -> str:
    if server_version(conn) < versions.ADMIN_OPTION_SINCE or not me.create_role:
        return "connect as the master user, or a role with CREATEROLE"
    return (
        f"connect as the role that created it, or as a superuser run: "
        f"GRANT {quote(name)} TO {quote(me.name)} WITH ADMIN OPTION"
    )


def _require_right(conn: Connection, me: CurrentRole, *, creates: bool, of: str | None = None) -> bool:
    """Make sure that this role may grant the right to replicate; return whether that is a membership.

    Args:
        conn: the server.
        me: the role of this connection.
        creates: whether the plan creates the role.
        of: the role that exists, if it does not.
    """
    if me.is_super:
        return me.has_group
    if creates and not me.create_role:
        raise errors.Denied(
            f"role {me.name} may not create roles",
            hint="connect as the master user, or a role with CREATEROLE",
            sqlstate=INSUFFICIENT_PRIVILEGE,
        )
    since_16 = server_version(conn) >= versions.ADMIN_OPTION_SINCE
    if me.has_group:
        # Before 16, CREATEROLE may grant membership in every role that is not a superuser.
        if not (me.group_admin or (me.create_role and not since_16)):
            raise errors.Denied(
                f"role {me.name} may not grant {RDS_GROUP}: it does not have the ADMIN OPTION",
                hint=f"connect as the master user (rds_superuser), or as that user run: GRANT {RDS_GROUP} TO "
                f"{quote(me.name)} WITH ADMIN OPTION",
                sqlstate=INSUFFICIENT_PRIVILEGE,
            )
        return True
    if not (since_16 and me.create_role and me.replication):
        raise errors.Denied(
            f"role {me.name} may not set the REPLICATION attribute",
            hint="connect as a superuser" + (", or as a role with CREATEROLE and REPLICATION" if since_16 else ""),
            sqlstate=INSUFFICIENT_PRIVILEGE,
        )
    if of is not None and not _may_administer(conn, of):
        raise errors.Denied(
            f"role {me.name} may not change role {of}", hint=_admin_hint(conn, me, of), sqlstate=INSUFFICIENT_PRIVILEGE
        )
    return False


def _join_group(name: str) -> Statement:
    from psycopg import sql

    statement = sql.SQL("GRANT {} TO {}").format(sql.Identifier(RDS_GROUP), sql.Identifier(name))
    return Statement(f"grant {RDS_GROUP} to {name}", statement, reason=_MAY_REPLICATE, effect="change")


def _require_not_connected(conn: Connection, name: str) -> None:
    sessions = [
        f"PID {pid} ({application}{f', slot {slot}' if active else ''})"
        for pid, application, active, slot in conn.execute(_SESSIONS, (name,)).fetchall()
    ]
    if sessions:
        raise errors.Refused(
            f"role {name} is connected: {first_few(sessions)}",
            hint="stop its consumer first (rdsrepl slot list)",
        )
