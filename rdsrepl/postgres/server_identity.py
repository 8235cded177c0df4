"""Which server a connection leads to, and the conditions that hold only on that server."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from rdsrepl.lsn import Lsn

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """The server behind a connection, as a planned statement can check it again when it runs; ``wal.get`` reads it.

    Attributes:
        database: the database of the connection.
        started_at: when the server started. It differs after a restart, and on another server at the same address.
        in_recovery: whether the server is a standby.
        lsn: the end of the server's WAL; on a standby the last position that it replayed.
        timeline: it changes at a promotion, not at a crash. None on a standby and on Aurora.
        system_identifier: the number that ``initdb`` gave the cluster. Standbys and restored copies have the same one.
            None where this role may not read it.
    """

    database: str
    started_at: datetime
    in_recovery: bool
    lsn: Lsn
    timeline: int | None
    system_identifier: str | None = None


_SYSTEM_IDENTIFIER: Final = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"
# No function returns the timeline; the name of a WAL file begins with it.
TIMELINE: Final = (
    "('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::bigint"
)
_KNOWN: Final[WeakKeyDictionary[Connection, str | None]] = WeakKeyDictionary()


def system_identifier(conn: Connection) -> str | None:
    """Return the number that ``initdb`` gave the cluster; None where this role may not read it."""
    import psycopg

    if conn not in _KNOWN:
        try:
            row = conn.execute(_SYSTEM_IDENTIFIER).fetchone()
        except psycopg.errors.InsufficientPrivilege:
            row = None
        _KNOWN[conn] = None if row is None else str(row[0])
    return _KNOWN[conn]


def identifier(conn: Connection) -> str:
    """Return the system identifier, which a promoted standby shares with its primary.

    Where this role may not read it, return the address.
    """
    return system_identifier(conn) or f"{conn.info.host}:{conn.info.port}"


def history_key(conn: Connection) -> str:
    """Return the key under which the slot history of this server is stored: its identifier and its address.

    A restored copy and a standby have the identifier of their origin, but another address. Where one of them takes over
    the address, the start time and the timeline of each observation tell them apart.
    """
    return f"{identifier(conn)} {conn.info.host}:{conn.info.port}"


def unchanged_condition(identity: ServerIdentity) -> Composed:
    """Return the SQL condition that the server is still the same one and did not restart or fail over.

    After a restart or a failover every slot is inactive at its old position, because its consumer has not reconnected
    yet.
    """
    from psycopg import sql

    return sql.SQL("{} AND pg_catalog.pg_is_in_recovery() = {}").format(
        _same_server(identity), sql.Literal(identity.in_recovery)
    )


def done_query(identity: ServerIdentity, done: Composed) -> Composed:
    """Return the query that tells whether a statement ran whose answer was lost.

    It returns NULL on another server, and on the same one after a restart: a restored snapshot, the other side of a
    blue/green deployment, a promoted standby or a server that crashed cannot tell what the first one did.

    Args:
        identity: the server that the statement was sent to.
        done: the condition that is true there when the statement ran.
    """
    from psycopg import sql

    same = _same_server(identity)
    if identity.timeline is not None:
        # pg_walfile_name fails on a standby.
        same = sql.SQL("NOT pg_catalog.pg_is_in_recovery() AND {} AND {} = {}").format(
            same, sql.SQL(TIMELINE), sql.Literal(identity.timeline)
        )
    return sql.SQL("SELECT CASE WHEN {} THEN {} END").format(same, done)


def _same_server(identity: ServerIdentity) -> Composed:
    from psycopg import sql

    conditions = [
        sql.SQL("pg_catalog.pg_postmaster_start_time() = {}::timestamptz").format(
            sql.Literal(identity.started_at.isoformat())
        )
    ]
    if identity.system_identifier is not None:
        conditions.append(
            sql.SQL("(SELECT system_identifier::text FROM pg_catalog.pg_control_system()) = {}").format(
                sql.Literal(identity.system_identifier)
            )
        )
    return sql.SQL(" AND ").join(conditions)
