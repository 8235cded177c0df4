"""What else is known about one role: memberships, settings, slots in use and publications (manual, section 22)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.postgres import roles
from rdsrepl.postgres.roles import Role

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class Membership:
    """A role that this role is a member of.

    Attributes:
        through: the direct membership that leads to it; None for a direct one.
        admin: whether this role may grant it to others.
        inherits: whether this role has its privileges without SET ROLE.
    """

    role: str
    through: str | None
    admin: bool
    inherits: bool


@dataclass(frozen=True, slots=True)
class RoleSetting:
    """A setting of ``ALTER ROLE … SET``; ``database`` is None for all databases."""

    name: str
    value: str
    database: str | None


@dataclass(frozen=True, slots=True)
class UsedSlot:
    """A slot that a session of the role uses now."""

    slot_name: str
    pid: int
    application: str
    client: str | None


@dataclass(frozen=True, slots=True)
class RoleDetails:
    """A role, and what depends on it.

    Attributes:
        memberships: the roles that it is a member of, directly first.
        members: the roles that are direct members of it.
        settings: its settings; sessions begin with them.
        connections: its sessions now.
        slots: the slots that its sessions use now; empty also where this login may not see other roles' sessions.
        publications: the publications of this database that it owns.
    """

    role: Role
    memberships: tuple[Membership, ...]
    members: tuple[str, ...]
    settings: tuple[RoleSetting, ...]
    connections: int
    slots: tuple[UsedSlot, ...]
    publications: tuple[str, ...]


# Up to PostgreSQL 15 a membership inherits if the member has INHERIT.
_MEMBERSHIPS: Final = """
WITH RECURSIVE given AS (
    SELECT m.roleid, m.member, m.admin_option,
           coalesce((to_jsonb(m)->>'inherit_option')::boolean, r.rolinherit) AS inherits
      FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r ON r.oid = m.member
), way (roleid, through, admin_option, inherits, depth) AS (
    SELECT g.roleid, NULL::oid, g.admin_option, g.inherits, 1
      FROM given g JOIN pg_catalog.pg_roles r ON r.oid = g.member
     WHERE r.rolname = %(name)s
    UNION
    SELECT g.roleid, coalesce(w.through, w.roleid), g.admin_option, g.inherits AND w.inherits, w.depth + 1
      FROM way w JOIN given g ON g.member = w.roleid WHERE w.depth < 32
)
SELECT DISTINCT ON (r.rolname) r.rolname::text, t.rolname::text, bool_or(w.admin_option) OVER same,
       bool_or(w.inherits) OVER same, w.depth
  FROM way w JOIN pg_catalog.pg_roles r ON r.oid = w.roleid LEFT JOIN pg_catalog.pg_roles t ON t.oid = w.through
WINDOW same AS (PARTITION BY w.roleid)
 ORDER BY r.rolname, w.depth, t.rolname
"""

_MEMBERS: Final = """
SELECT DISTINCT m.rolname::text COLLATE "C" FROM pg_catalog.pg_auth_members a
  JOIN pg_catalog.pg_roles r ON r.oid = a.roleid JOIN pg_catalog.pg_roles m ON m.oid = a.member
 WHERE r.rolname = %(name)s ORDER BY 1
"""

_SETTINGS: Final = """
SELECT split_part(c.setting, '=', 1), substr(c.setting, strpos(c.setting, '=') + 1), d.datname::text
  FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
  LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase, LATERAL unnest(s.setconfig) AS c (setting)
 WHERE r.rolname = %(name)s ORDER BY 3 NULLS FIRST, 1
"""

_CONNECTIONS: Final = "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE usename = %(name)s"

_SLOTS: Final = """
SELECT s.slot_name::text, a.pid, a.application_name,
       coalesce(host(a.client_addr), CASE WHEN a.client_port = -1 THEN 'local' END)
  FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
 WHERE a.usename = %(name)s ORDER BY 1
"""

_PUBLICATIONS: Final = """
SELECT p.pubname::text FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_roles r ON r.oid = p.pubowner
 WHERE r.rolname = %(name)s ORDER BY 1
"""


def get(conn: Connection, name: str) -> RoleDetails:
    """Return everything about one role.

    Raises:
        NotFound: the server has no such role.
    """
    role, who = roles.get(conn, name), {"name": name}
    memberships = [Membership(*row[:4]) for row in conn.execute(_MEMBERSHIPS, who).fetchall()]
    (connections,) = conn.execute(_CONNECTIONS, who).fetchone() or (0,)
    return RoleDetails(
        role=role,
        memberships=tuple(sorted(memberships, key=lambda one: one.through is not None)),
        members=tuple(member for (member,) in conn.execute(_MEMBERS, who).fetchall()),
        settings=tuple(RoleSetting(*row) for row in conn.execute(_SETTINGS, who).fetchall()),
        connections=connections,
        slots=tuple(UsedSlot(*row) for row in conn.execute(_SLOTS, who).fetchall()),
        publications=tuple(one for (one,) in conn.execute(_PUBLICATIONS, who).fetchall()),
    )
