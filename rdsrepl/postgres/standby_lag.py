"""How far the standbys of a primary are behind, in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

# Walsenders of logical slots report what their consumers confirm. pg_receivewal replays nothing. The last figure of a
# standby that has replayed everything stays until its next two reports.
_STANDBYS: Final = """
SELECT coalesce(nullif(r.application_name, ''), 'PID ' || r.pid), extract(epoch FROM r.replay_lag)::float8
  FROM pg_catalog.pg_stat_replication r
 WHERE r.replay_lsn < pg_catalog.pg_current_wal_flush_lsn() AND r.replay_lag IS NOT NULL
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s
                    WHERE s.slot_type = 'logical' AND s.active_pid = r.pid)
 ORDER BY r.replay_lag DESC
"""


@dataclass(frozen=True, slots=True)
class StandbyLag:
    """A standby that has not replayed everything.

    Attributes:
        name: its ``application_name``.
        seconds: between the flush of WAL on the primary and its replay on the standby (``replay_lag``).
    """

    name: str
    seconds: float


def ls(conn: Connection) -> tuple[StandbyLag, ...]:
    """Return the standbys of a primary that have not replayed everything, the farthest behind first.

    A role without the rights of ``pg_read_all_stats`` sees none.
    """
    return tuple(StandbyLag(*row) for row in conn.execute(_STANDBYS).fetchall())
