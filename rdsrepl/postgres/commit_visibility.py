"""Wait until commits that a logical decoder may have sent are visible to new snapshots.

A commit is in the WAL, and decoded, before it is visible: a moment, or with synchronous replication as long as the
standby takes to acknowledge it (manual, section 27.2.8; the wait event ``SyncRep``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

# The backend that ends a prepared transaction has no transaction id of its own.
_COMMITTING: Final = """
SELECT coalesce(array_agg(pg_catalog.concat_ws(' ', pid, backend_xid, query_start)), '{}')
  FROM pg_catalog.pg_stat_activity WHERE wait_event = 'SyncRep'
"""
_SEES_ALL: Final = "SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'usage')"
_VISIBLE_SECONDS: Final = 0.1
_VISIBLE_SECONDS_UNSEEN: Final = 2.0
_POLL_SECONDS: Final = 0.02


def wait_until_visible(conn: Connection, is_over: Callable[[], bool]) -> bool:
    """Wait until the commits are visible that were in the WAL when this was called.

    Args:
        conn: the primary. Without the rights of ``pg_read_all_stats`` the wait events of other roles are hidden; then
            a longer time passes.
        is_over: whether to end the wait early.

    Returns:
        Whether they are visible.
    """
    row = conn.execute(_SEES_ALL).fetchone()
    until = time.monotonic() + (_VISIBLE_SECONDS if row is not None and row[0] else _VISIBLE_SECONDS_UNSEEN)
    while not is_over() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _VISIBLE_SECONDS))
    waiting = _committing(conn)
    while waiting and not is_over():
        time.sleep(_POLL_SECONDS)
        waiting &= _committing(conn)
    return not waiting and not is_over()


def _committing(conn: Connection) -> set[str]:
    row = conn.execute(_COMMITTING).fetchone()
    return set(row[0]) if row is not None else set()
