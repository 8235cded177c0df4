"""The write-ahead log as a whole: how far it is, what limits it, since when this server writes it.

Manual, sections 9.28.3 (``pg_current_wal_lsn``), 20.6.1 (``max_slot_wal_keep_size``), 25.1.5 (wraparound).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rdsrepl.lsn import Lsn

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class Wal:
    """The server's WAL at one moment.

    Attributes:
        at: the server's clock.
        lsn: the end of the WAL; on a standby what it has replayed.
        timeline: None on a standby, and on Aurora.
        started_at: since when the server runs.
        slot_keep_bytes: ``max_slot_wal_keep_size``; None is unlimited.
        keep_bytes: ``wal_keep_size``: kept with or without slots.
        checkpoint_seconds: ``checkpoint_timeout``: a slot over its limit is given up at a checkpoint.
        next_xid: the next transaction's 64-bit number.
        freeze_max_age: ``autovacuum_freeze_max_age``.
        idle_timeout_seconds: ``idle_replication_slot_timeout`` (18); None where it is off or not known.
        clock_skew_seconds: how far the server's clock is ahead of this machine's; 0 where they agree within the time
            that the question took.
    """

    at: datetime
    version: int
    in_recovery: bool
    lsn: Lsn
    timeline: int | None
    started_at: datetime
    slot_keep_bytes: int | None
    keep_bytes: int
    checkpoint_seconds: int
    next_xid: int
    freeze_max_age: int
    idle_timeout_seconds: int | None = None
    clock_skew_seconds: float = 0.0


# A timeline has no function of its own; it is the first eight digits of the current segment's name. Aurora's storage
# knows no segments, and no timelines.
_WAL: Final = """
SELECT clock_timestamp(), current_setting('server_version_num')::integer / 10000, w.in_recovery,
       CASE WHEN w.in_recovery THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
       CASE WHEN NOT w.in_recovery AND NOT w.aurora
            THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint END,
       pg_postmaster_start_time(),
       nullif((SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'), -1) << 20,
       coalesce((SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'wal_keep_size'), 0) << 20,
       (SELECT setting::integer FROM pg_catalog.pg_settings WHERE name = 'checkpoint_timeout'),
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
       current_setting('autovacuum_freeze_max_age')::bigint,
       (SELECT nullif(setting::bigint, 0) * CASE unit WHEN 'min' THEN 60 ELSE 1 END FROM pg_catalog.pg_settings
         WHERE name = 'idle_replication_slot_timeout')
  FROM (SELECT pg_is_in_recovery() AS in_recovery,
               EXISTS (SELECT FROM pg_catalog.pg_proc WHERE proname = 'aurora_version') AS aurora) w
"""
# The file that says where a timeline left the one before is written by the promotion; its time has whole seconds.
_PROMOTED: Final = """
SELECT modification + interval '1 second' FROM pg_ls_waldir()
 WHERE name = upper(lpad(to_hex(%s::bigint), 8, '0')) || '.history'
"""


def get(conn: Connection) -> Wal:
    """Return the WAL's state."""
    asked = _now()
    row = conn.execute(_WAL).fetchone()
    answered = _now()
    assert row is not None
    found = Wal(*row)
    skew = max((found.at - answered).total_seconds(), 0.0) or min((found.at - asked).total_seconds(), 0.0)
    return replace(found, clock_skew_seconds=skew)


def _now() -> datetime:
    """Return this machine's clock."""
    return datetime.now(UTC)


def promoted_at(conn: Connection, timeline: int) -> datetime | None:
    """Return when the server became a primary by a promotion, not earlier than it did; None where that is not known.

    A standby that is promoted goes on running: ``started_at`` says nothing of it.

    Args:
        conn: the server, a primary.
        timeline: its timeline, which is not the first.
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
