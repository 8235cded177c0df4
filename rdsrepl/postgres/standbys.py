"""Logical slots on a primary and its standby: read both sides, create and advance the follower of a pair.

Logical decoding on a standby: PostgreSQL 16 and later (manual, section 47.2.3).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.plan import Meanwhile, Plan, Statement
from rdsrepl.postgres import slot_plans, slots, wal
from rdsrepl.postgres.connection import setting
from rdsrepl.postgres.server_slots import ServerSlots
from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection

#: the prefix of a message that only moves positions; ``slot tail`` does not write it to its output.
NUDGE: Final = "SELECT pg_catalog.pg_logical_emit_message(true, 'rdsrepl.heartbeat', '')"
_SNAPSHOT: Final = "SELECT pg_catalog.pg_log_standby_snapshot()"
_SNAPSHOT_SECONDS: Final = 0.1
_IS_AURORA: Final = "SELECT EXISTS (SELECT FROM pg_catalog.pg_proc WHERE proname = 'aurora_version')"
# The creation on the standby waits for the transactions of the primary, also for those that wrote nothing.
_PRIMARY_TRANSACTIONS: Final = """
SELECT 'PID ' || a.pid || ' on the primary', a.usename::text, a.application_name, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age, a.query
  FROM pg_catalog.pg_stat_activity a
 WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_catalog.pg_backend_pid()
UNION ALL
SELECT format('prepared transaction %L on the primary', p.gid), p.owner::text, NULL, NULL,
       extract(epoch FROM clock_timestamp() - p.prepared)::float8, NULL
  FROM pg_catalog.pg_prepared_xacts p
 ORDER BY age DESC NULLS LAST LIMIT 3
"""
# The least() shows that the position is never beyond what the server has, which PostgreSQL also ensures itself. A slot
# that was used or replaced, a restart and a promotion give no row.
_ADVANCE: Final = """
SELECT a.end_lsn
  FROM (SELECT c.slot_name FROM pg_catalog.pg_replication_slots c
         WHERE c.slot_name = %(name)s AND NOT c.active AND NOT c.temporary AND c.slot_type = 'logical'
           AND c.plugin = %(plugin)s AND c.database = pg_catalog.current_database()
           AND c.confirmed_flush_lsn < least(%(lsn)s::pg_lsn, {reached})
           AND pg_catalog.pg_is_in_recovery() = %(in_recovery)s
           AND pg_catalog.pg_postmaster_start_time() = %(started_at)s) s,
       LATERAL pg_catalog.pg_replication_slot_advance(s.slot_name, least(%(lsn)s::pg_lsn, {reached})) a
"""


def read(conn: Connection, label: str) -> ServerSlots:
    """Return the server behind a connection and its slots.

    Raises:
        Denied: the role may not use replication slots.
    """
    row = conn.execute(_IS_AURORA).fetchone()
    assert row is not None
    return ServerSlots(label, wal.get(conn), tuple(slots.ls(conn)), bool(row[0]), setting(conn, "wal_level"))


def read_again(conn: Connection, before: ServerSlots) -> ServerSlots:
    """Return the same server as it is now."""
    return replace(before, wal=wal.get(conn), slots=tuple(slots.ls(conn)))


def create_follower(
    conn: Connection, leader: Slot, *, target: Target, primary: Target | None, timeout_seconds: float
) -> Plan:
    """Return the plan that creates the follower of a leader.

    On a standby the creation waits until the primary logs a snapshot of its running transactions, and until every
    transaction that runs then has ended.

    Args:
        conn: the follower's server, in the leader's database.
        leader: the slot to follow; it need not exist.
        target: the follower's server.
        primary: the leader's server, where the follower is made on its standby; None where it is made on the primary.
        timeout_seconds: when the statement is canceled; nothing is left then.

    Raises:
        BadValue, AlreadyExists, Denied, Unsupported, SlotsExhausted, PluginNotAllowed: as ``slot_plans.create``.
    """
    plan = slot_plans.create(
        conn,
        leader.slot_name,
        plugin=str(leader.plugin),
        two_phase=bool(leader.two_phase),
        timeout_seconds=timeout_seconds,
    )
    meanwhile = None if primary is None else snapshots(primary)
    steps = tuple(
        replace(
            step,
            target=target,
            meanwhile=meanwhile,
            blockers=None if meanwhile else step.blockers,
            key=leader.slot_name,
            reason="the follower of the slot pair",
        )
        for step in plan.steps
        if isinstance(step, Statement)
    )
    warning = f"{target.label} keeps WAL on its own disk for each follower"
    return replace(plan, steps=steps, warnings=(warning,) if steps else ())


def snapshots(primary: Target) -> Meanwhile:
    """Return what the primary does while a slot is created on its standby: log its running transactions.

    A role that may not call the function writes a message instead: the background writer then logs a snapshot within
    15 seconds.
    """
    from psycopg import sql

    return Meanwhile(
        primary, sql.SQL(_SNAPSHOT), _SNAPSHOT_SECONDS, otherwise=sql.SQL(NUDGE), blockers=_PRIMARY_TRANSACTIONS
    )


def advance(conn: Connection, name: str, plugin: str | None, lsn: Lsn, server: Wal) -> Lsn | None:
    """Advance the follower NAME to LSN, as far as its server has the WAL; return its new position.

    Returns:
        None if it was not advanced: it is in use or was replaced, it is there already, or the server restarted or was
        promoted since SERVER was read.

    Raises:
        psycopg.Error: the server failed; 55006 if a consumer began to read the slot at this moment.
    """
    from psycopg import sql

    # A position that is not flushed could be lost in a crash of the server.
    reached = "pg_catalog.pg_last_wal_replay_lsn()" if server.in_recovery else "pg_catalog.pg_current_wal_flush_lsn()"
    row = conn.execute(
        sql.SQL(_ADVANCE).format(reached=sql.SQL(reached)),
        {
            "name": name,
            "plugin": plugin,
            "lsn": str(lsn),
            "in_recovery": server.in_recovery,
            "started_at": server.started_at,
        },
    ).fetchone()
    end: Lsn | None = None if row is None else row[0]
    return end


def nudge(conn: Connection) -> None:
    """Write a small message to the WAL of the primary, so that a consumer of this database confirms a new position.

    Raises:
        Denied: the role may not write one.
    """
    conn.execute(NUDGE)


def require_pairable(server: ServerSlots, conn: Connection) -> None:
    """Make sure that the role may use the slots of a server.

    Raises:
        Denied: it may not.
    """
    try:
        slots.require_replication_right(conn)
    except errors.Denied as exc:
        raise errors.Denied(f"{server.label}: {exc.message}", hint=exc.hint, sqlstate=exc.sqlstate) from exc
