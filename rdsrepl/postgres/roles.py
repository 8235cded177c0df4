"""Roles and whether they may replicate (manual, sections 22 and 31.11).

On RDS the right comes from membership in ``rds_replication``, elsewhere from the ``REPLICATION`` attribute.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.text.suggestions import did_you_mean

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection


RDS_GROUP: Final = "rds_replication"


@dataclass(frozen=True, slots=True)
class Role:
    """A row of ``pg_roles``, and whether it may replicate.

    Attributes:
        rolconnlimit: its connection limit; -1 is no limit.
        rolvaliduntil: when its password expires; None is never.
        may_replicate: whether it may use replication slots and replication connections.
        reasons: why it may: ``superuser``, ``REPLICATION attribute``, ``member of rds_replication`` (``through …``).
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


# A membership with only the ADMIN OPTION (16+: the creator of a role has it) inherits no privilege.
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
       -- Python supports only the years 1 to 9999.
       CASE WHEN r.rolvaliduntil < '9999-12-31' THEN greatest(r.rolvaliduntil, '0001-01-03') END,
       (SELECT CASE WHEN bool_or(w.through IS NULL) THEN '' ELSE min(t.rolname::text COLLATE "C") END
          FROM way w LEFT JOIN pg_catalog.pg_roles t ON t.oid = w.through WHERE w.member = r.oid)
  FROM pg_catalog.pg_roles r
 ORDER BY r.rolname
"""


def ls(conn: Connection) -> list[Role]:
    """Return all roles except the predefined ones (``pg_…``), by name."""
    return [role for role in all_roles(conn) if not role.rolname.startswith("pg_")]


def get(conn: Connection, name: str) -> Role:
    """Return one role; a predefined one, too.

    Raises:
        NotFound: the server has no such role.
    """
    everything = all_roles(conn)
    for role in everything:
        if role.rolname == name:
            return role
    names = [role.rolname for role in everything]
    raise errors.NotFound(
        f"no role {name}", hint=did_you_mean(name, names, otherwise="list them: rdsrepl role list --all")
    )


def exists(conn: Connection, name: str) -> bool:
    """Say whether a role exists."""
    return any(role.rolname == name for role in all_roles(conn))


def all_roles(conn: Connection) -> list[Role]:
    """Return all roles, the predefined ones as well, by name."""
    rows: list[Role] = []
    for name, is_super, *flags, limit, until, through in conn.execute(_LIST).fetchall():
        inherit, create_role, create_db, login, attribute, bypass = flags
        reasons = [reason for reason, holds in (("superuser", is_super), ("REPLICATION attribute", attribute)) if holds]
        if through is not None:
            reasons.append(f"member of {RDS_GROUP}" + (f" through {through}" if through else ""))
        rows.append(
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
    return rows
