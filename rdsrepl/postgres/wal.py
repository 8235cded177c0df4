"""The WAL of a server: its position and its limits.

Manual, sections 9.28.3 (``pg_current_wal_lsn``), 20.6.1 (``max_slot_wal_keep_size``), 25.1.5 (wraparound).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rdsrepl.postgres import server_identity
from rdsrepl.postgres.server_identity import ServerIdentity

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Wal(ServerIdentity):
    """The WAL of a server at one moment.

    Attributes:
        at: the clock of the server.
        slot_keep_bytes: ``max_slot_wal_keep_size``; None is unlimited.
        keep_bytes: ``wal_keep_size``, which the server keeps with or without slots.
        next_xid: the 64-bit number of the next transaction.
        idle_timeout_seconds: ``idle_replication_slot_timeout`` (18); None where it is off or not known.
        clock_skew_seconds: how far the clock of the server is ahead of this machine's; 0 where they agree within the
            time that the query took.
    """

    at: datetime
    version: int
    slot_keep_bytes: int | None
    keep_bytes: int
    next_xid: int
    idle_timeout_seconds: int | None = None
    clock_skew_seconds: float = 0.0


# On Aurora there are no WAL files and no timelines.
_WAL: Final = """
SELECT current_database()::text AS database, pg_postmaster_start_time() AS started_at, w.in_recovery,
       CASE WHEN w.in_recovery THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn,
       CASE WHEN NOT w.in_recovery AND NOT w.aurora THEN {timeline} END AS timeline,
       clock_timestamp() AS at, current_setting('server_version_num')::integer / 10000 AS version,
       nullif((SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'), -1) << 20
           AS slot_keep_bytes,
       coalesce((SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'wal_keep_size'), 0) << 20
           AS keep_bytes,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next_xid,
       (SELECT nullif(setting::bigint, 0) * CASE unit WHEN 'min' THEN 60 ELSE 1 END FROM pg_catalog.pg_settings
         WHERE name = 'idle_replication_slot_timeout') AS idle_timeout_seconds
  FROM (SELECT pg_is_in_recovery() AS in_recovery,
               EXISTS (SELECT FROM pg_catalog.pg_proc WHERE proname = 'aurora_version') AS aurora) w
"""
# A promotion writes the history file of the new timeline; its modification time has whole seconds.
_PROMOTED: Final = """
SELECT modification + interval '1 second' FROM pg_ls_waldir()
 WHERE name = upper(lpad(to_hex(%s::bigint), 8, '0')) || '.history'
"""


def get(conn: Connection) -> Wal:
    """Return the state of the WAL, and which server this is."""
    from psycopg import sql
    from psycopg.rows import dict_row

    identifier = server_identity.system_identifier(conn)
    with conn.cursor(row_factory=dict_row) as cursor:
        asked = _now()
        row = cursor.execute(sql.SQL(_WAL).format(timeline=sql.SQL(server_identity.TIMELINE))).fetchone()
        answered = _now()
    assert row is not None
    skew = max((row["at"] - answered).total_seconds(), 0.0) or min((row["at"] - asked).total_seconds(), 0.0)
    return Wal(**row, system_identifier=identifier, clock_skew_seconds=skew)


def _now() -> datetime:
    """Return this machine's clock."""
    return datetime.now(UTC)


def promoted_at(conn: Connection, timeline: int) -> datetime | None:
    """Return when the server was promoted, at most one second too late; None where that is not known.

    A promotion does not restart the server, so ``started_at`` does not show it.

    Args:
        conn: the server, a primary.
        timeline: its timeline, 2 or higher.
    """
    import psycopg

    try:
        row = conn.execute(_PROMOTED, (timeline,)).fetchone()
    except (
        psycopg.errors.InsufficientPrivilege,  # it needs pg_monitor
        psycopg.errors.FeatureNotSupported,
        psycopg.errors.UndefinedFunction,
    ):
        return None
    return row[0] if row is not None else None
