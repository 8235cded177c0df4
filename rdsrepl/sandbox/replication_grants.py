"""Grants the ``REPLICATION`` attribute to roles while they log in, for the relay.

PostgreSQL requires the attribute for a replication connection; on RDS membership in ``rds_replication`` is enough. The
attribute is granted before the authentication of such a connection and revoked right after. At all other times
``rolreplication`` is false, as on RDS.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.sandbox.directory import SandboxDirectory
from rdsrepl.sandbox.servers.postgres_server import ADMIN_OPTIONS, SUPERUSER, require_peer
from rdsrepl.sandbox.state import ServerState

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.AsyncConnection[tuple[Any, ...]]

log = logging.getLogger("rdsrepl.sandbox.replication_grants")

_ADMIN_SECONDS: Final = 5
_REPLAY_SECONDS: Final = 15.0

_MAY_REPLICATE: Final = """
    SELECT rolreplication OR rolsuper, EXISTS (
        SELECT FROM pg_catalog.pg_roles AS r
         WHERE r.rolname = 'rds_replication' AND pg_has_role(u.oid, r.oid, 'MEMBER'))
    FROM pg_catalog.pg_roles AS u WHERE u.rolname = %s
"""


@dataclass(frozen=True, slots=True, order=True)
class GrantedRole:
    """A role of one primary and its standbys (``State.family``)."""

    family: str
    role: str


@dataclass(slots=True)
class ReplicationGrants:
    """Grants the ``REPLICATION`` attribute to roles while they log in.

    Attributes:
        directory: the directory of the sandbox. A file in it names the roles that have the attribute, so that a relay
            that was killed revokes it when it starts again.
    """

    directory: SandboxDirectory
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _users: dict[GrantedRole, int] = field(default_factory=dict)
    _to_revoke: set[GrantedRole] = field(default_factory=set)
    _lsn: dict[GrantedRole, str] = field(default_factory=dict)

    def load(self) -> None:
        """Read the roles from which an earlier process did not revoke the attribute."""
        with suppress(OSError, ValueError, TypeError):
            left = json.loads(self.directory.granted_roles_file.read_text(encoding="utf-8"))
            self._to_revoke = {GrantedRole(family, role) for family, role in left}

    async def grant(self, role: str, server: ServerState) -> GrantedRole | None:
        """Grant the attribute to a role that may have it; return what ``revoke`` needs, None when it was not granted.

        Args:
            role: the role that logs in.
            server: the server that it logs in to; a standby has to replay the grant first.
        """
        state = self.directory.read()
        if state is None:
            return None
        granted_role = GrantedRole(state.family(server), role)
        async with self._lock:
            if not self._users.get(granted_role) and not await self._grant(granted_role):
                return None
            self._users[granted_role] = self._users.get(granted_role, 0) + 1
            lsn = self._lsn[granted_role]
        if server.source:
            try:
                await self._await_replay(server, lsn)
            except BaseException:
                await self.revoke(granted_role)
                raise
        return granted_role

    async def revoke(self, granted_role: GrantedRole) -> None:
        """Revoke the attribute when no other connection of the role needs it."""
        async with self._lock:
            self._users[granted_role] -= 1
            if self._users[granted_role] == 0:
                del self._users[granted_role]
                await self._revoke(granted_role)

    async def revoke_leftovers(self) -> None:
        """Revoke what could not be revoked before: the server was down, or the relay was killed."""
        if self._to_revoke - self._users.keys():
            async with self._lock:
                for granted_role in self._to_revoke - self._users.keys():
                    await self._revoke(granted_role)

    async def _grant(self, granted_role: GrantedRole) -> bool:
        import psycopg
        from psycopg import sql

        try:
            async with self._primary(granted_role) as conn:
                row = await (await conn.execute(_MAY_REPLICATE, [granted_role.role])).fetchone()
                if row is None or (row[0] and granted_role not in self._to_revoke) or not row[1]:
                    return False
                self._to_revoke.add(granted_role)
                self._save()
                await conn.execute(sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(granted_role.role)))
                position = await (await conn.execute("SELECT pg_current_wal_flush_lsn()::text")).fetchone()
                self._lsn[granted_role] = position[0] if position is not None else "0/0"
        except (psycopg.Error, OSError, UnicodeError) as exc:
            # The client gets the error from its own server.
            log.warning("could not grant REPLICATION to %r of %s: %s", granted_role.role, granted_role.family, exc)
            return False
        return True

    async def _revoke(self, granted_role: GrantedRole) -> None:
        import psycopg
        from psycopg import sql

        try:
            async with self._primary(granted_role) as conn:
                await conn.execute(sql.SQL("ALTER ROLE {} NOREPLICATION").format(sql.Identifier(granted_role.role)))
        except (psycopg.errors.UndefinedObject, _PrimaryNotFound):
            pass
        except (psycopg.Error, OSError) as exc:
            log.warning("could not revoke REPLICATION from %r of %s: %s", granted_role.role, granted_role.family, exc)
            return
        self._to_revoke.discard(granted_role)
        self._save()

    async def _await_replay(self, reader: ServerState, lsn: str) -> None:
        import psycopg

        try:
            async with asyncio.timeout(_REPLAY_SECONDS), self._connect(reader) as conn:
                while True:
                    query = "SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= %s::pg_lsn"
                    row = await (await conn.execute(query, [lsn])).fetchone()
                    if row is not None and row[0]:
                        return
                    await asyncio.sleep(0.01)
        except (psycopg.Error, OSError) as exc:  # TimeoutError is an OSError
            log.warning("server %s has not replayed %s: %s", reader.name, lsn, exc or "timed out")

    def _primary(self, granted_role: GrantedRole) -> Any:
        state = self.directory.read()
        servers = state.servers if state is not None else ()
        primaries = [s for s in servers if s.source is None and granted_role.family in (s.cluster or s.name, s.name)]
        if not primaries:
            raise _PrimaryNotFound(f"no writer in {granted_role.family}")
        return self._connect(primaries[0])

    @asynccontextmanager
    async def _connect(self, server: ServerState) -> AsyncIterator[Connection]:
        import psycopg

        state = self.directory.read()
        keywords: dict[str, Any] = {**require_peer(server.binaries.launcher)}
        async with await psycopg.AsyncConnection.connect(
            host=state.socket_dir if state is not None else "",
            port=server.port,
            user=SUPERUSER,
            dbname="postgres",
            connect_timeout=_ADMIN_SECONDS,
            application_name="rdsrepl-sandbox-relay",
            options=f"{ADMIN_OPTIONS} -c statement_timeout={_ADMIN_SECONDS}s",
            autocommit=True,
            **keywords,
        ) as conn:
            yield conn

    def _save(self) -> None:
        if self._to_revoke:
            self.directory.save(
                self.directory.granted_roles_file, [[h.family, h.role] for h in sorted(self._to_revoke)]
            )
        else:
            self.directory.granted_roles_file.unlink(missing_ok=True)


class _PrimaryNotFound(OSError):
    """The primary no longer exists."""
