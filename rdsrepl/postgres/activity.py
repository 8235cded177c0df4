"""The server itself, its walsenders and its old transactions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

Flavour = Literal["aurora", "rds", "postgresql"]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server, as this connection sees it.

    Attributes:
        version: as the server prints it: ``16.4``.
        flavour: ``aurora``, ``rds`` (its roles exist) or ``postgresql``.
        tls: whether this connection is encrypted; None where not known.
        local: whether the client is on the same machine as the server.
        sees_sessions: whether this role may read the sessions of other roles (pg_read_all_stats).
        sees_settings: whether this role may read every parameter (pg_read_all_settings).
        now: the clock of the server.
        oldest_xmin_slot, oldest_xmin_age: the slot with the oldest ``xmin``, and the age of that in transactions.
        address: host and port of this connection, or the directory of its socket.
    """

    version: str
    major: int
    flavour: Flavour
    in_recovery: bool
    database: str
    user: str
    tls: bool | None
    local: bool
    sees_sessions: bool
    sees_settings: bool
    now: datetime
    oldest_xmin_slot: str | None = None
    oldest_xmin_age: int | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Sender:
    """A row of ``pg_stat_replication``; a value that this role may not read is None.

    Attributes:
        unsent_bytes: WAL not sent to it yet.
        unflushed_bytes: WAL that it has not confirmed yet.
        slot, slot_type: the slot that it uses; None without a slot.
    """

    pid: int
    user: str | None
    application: str | None
    state: str | None
    unsent_bytes: int | None
    unflushed_bytes: int | None
    slot: str | None
    slot_type: str | None


@dataclass(frozen=True, slots=True)
class Transaction:
    """An open transaction that has written data; the creation of a slot waits for it.

    Attributes:
        kind: ``session`` or ``prepared``.
        id: the PID, or the name of the prepared transaction.
        about: application and state of a session; database of a prepared transaction.
    """

    kind: Literal["session", "prepared"]
    id: str
    user: str | None
    about: str
    age_seconds: float


_SERVER: Final = """
SELECT current_setting('server_version'), current_setting('server_version_num')::integer / 10000,
       CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_proc WHERE proname = 'aurora_version') THEN 'aurora'
            WHEN EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rds_superuser') THEN 'rds'
            ELSE 'postgresql' END,
       pg_is_in_recovery(), current_database()::text, current_user::text,
       (SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()),
       coalesce(inet_client_addr() <<= inet '127.0.0.0/8' OR inet_client_addr() = inet '::1', true),
       pg_has_role('pg_read_all_stats', 'usage'), pg_has_role('pg_read_all_settings', 'usage'), clock_timestamp(),
       x.slot_name::text, age(x.xmin)
  FROM (SELECT) one
  LEFT JOIN (SELECT slot_name, xmin FROM pg_catalog.pg_replication_slots WHERE xmin IS NOT NULL
              ORDER BY age(xmin) DESC LIMIT 1) x ON true
"""
_SENDERS: Final = """
SELECT r.pid, r.usename::text, r.application_name, r.state,
       -- greatest() ignores NULL: without the CASE a value that may not be read would be 0.
       CASE WHEN r.sent_lsn IS NOT NULL THEN greatest(pg_wal_lsn_diff(w.lsn, r.sent_lsn), 0)::bigint END,
       CASE WHEN r.flush_lsn IS NOT NULL THEN greatest(pg_wal_lsn_diff(w.lsn, r.flush_lsn), 0)::bigint END,
       s.slot_name::text, s.slot_type
  FROM pg_catalog.pg_stat_replication r
 CROSS JOIN (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                         ELSE pg_current_wal_lsn() END AS lsn) w
  LEFT JOIN pg_catalog.pg_replication_slots s ON s.active_pid = r.pid
 ORDER BY r.pid
"""
_TRANSACTIONS: Final = """
SELECT 'session', a.pid::text, a.usename::text,
       concat_ws(', ', nullif(a.application_name, ''), a.datname, coalesce(a.state, a.backend_type)),
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age
  FROM pg_catalog.pg_stat_activity a
 WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_backend_pid()
   AND a.xact_start <= clock_timestamp() - make_interval(secs => %(seconds)s)
UNION ALL
SELECT 'prepared', p.gid, p.owner::text, p.database::text, extract(epoch FROM clock_timestamp() - p.prepared)::float8
  FROM pg_catalog.pg_prepared_xacts p
 WHERE p.prepared <= clock_timestamp() - make_interval(secs => %(seconds)s)
 ORDER BY age DESC
 LIMIT 100
"""


def server(conn: Connection) -> ServerInfo:
    """Return the server, and what the role of this connection may read."""
    row = conn.execute(_SERVER).fetchone()
    assert row is not None
    return replace(ServerInfo(*row), address=f"{conn.info.host}:{conn.info.port}")


def senders(conn: Connection) -> list[Sender]:
    """Return the walsenders: consumers of logical slots, standbys, backups."""
    return [Sender(*row) for row in conn.execute(_SENDERS).fetchall()]


def transactions(conn: Connection, *, older_than_seconds: float) -> list[Transaction]:
    """Return the 100 oldest open transactions that have written data, prepared ones included, oldest first."""
    rows = conn.execute(_TRANSACTIONS, {"seconds": older_than_seconds}).fetchall()
    return [Transaction(*row) for row in rows]
