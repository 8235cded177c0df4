"""Wait until commits that a logical decoder may have sent are visible to new snapshots.

A commit is in the WAL, and decoded, before it is visible: a moment, or with synchronous replication as long as the
standby takes to acknowledge it (manual, section 27.2.8; the wait event ``SyncRep``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.text.counts import counted, named

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

# The backend that ends a prepared transaction has no transaction id of its own.
_COMMITTING: Final = """
SELECT pg_catalog.concat_ws(' ', pid, backend_xid, query_start),
       pg_catalog.concat('PID ', pid, ' (', nullif(application_name, '') || ', ', 'role ', usename, ')')
  FROM pg_catalog.pg_stat_activity WHERE wait_event = 'SyncRep' ORDER BY query_start
"""
# A transaction holds this lock from its first change until it is visible, and every role sees it.
_IN_PROGRESS: Final = """
SELECT l.transactionid::text, coalesce('PID ' || l.pid, 'prepared transaction ' || l.transactionid)
  FROM pg_catalog.pg_locks l
 WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
   AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid() ORDER BY pg_catalog.age(l.transactionid) DESC
"""
_SEES_ALL: Final = """
SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'usage'),
       pg_catalog.current_setting('synchronous_standby_names') <> ''
"""
_VISIBLE_SECONDS: Final = 0.1
_VISIBLE_SECONDS_UNSEEN: Final = 2.0
_POLL_SECONDS: Final = 0.02
_POLL_SECONDS_UNSEEN: Final = 0.2


@dataclass(frozen=True, slots=True)
class Blocked:
    """What is waited for, for people.

    Attributes:
        what: the commits or transactions, with their backends.
        remedy: what ends the wait.
    """

    what: str
    remedy: str


def wait_until_visible(
    conn: Connection, is_over: Callable[[], bool], waits: Callable[[Blocked], None] = lambda _: None
) -> bool:
    """Wait until the commits are visible that were in the WAL when this was called.

    Args:
        conn: the primary. Without the rights of ``pg_read_all_stats`` the wait events of other roles are hidden. Then
            a longer time passes; and on a server with ``synchronous_standby_names`` all transactions must end that
            are in progress.
        is_over: whether to end the wait early.
        waits: is called again and again while commits wait for a standby.

    Returns:
        Whether they are visible.
    """
    row = conn.execute(_SEES_ALL).fetchone()
    sees_all, is_synchronous = (False, False) if row is None else row
    until = time.monotonic() + (_VISIBLE_SECONDS if sees_all else _VISIBLE_SECONDS_UNSEEN)
    in_progress = {} if sees_all or not is_synchronous else _in_progress(conn)
    while not is_over() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _VISIBLE_SECONDS))
    waiting = _committing(conn)
    while (waiting or in_progress) and not is_over():
        waits(_blocked(waiting, in_progress))
        time.sleep(_POLL_SECONDS_UNSEEN if in_progress else _POLL_SECONDS)
        waiting = _still(waiting, _committing(conn))
        in_progress = _still(in_progress, _in_progress(conn) if in_progress else {})
    return not waiting and not in_progress and not is_over()


def wait_until_ended(
    conn: Connection, is_over: Callable[[], bool], waits: Callable[[Blocked], None] = lambda _: None
) -> None:
    """Wait until the transactions have ended that are in progress now: a new logical slot waits for them.

    Args:
        conn: the primary.
        is_over: whether to end the wait early.
        waits: is called again and again while there are such transactions.
    """
    left = _in_progress(conn)
    while left and not is_over():
        what = f"{counted(len(left), 'transaction')} in progress to end: {named(list(left.values()), most=3)}"
        waits(Blocked(what, "see how long they take: rdsrepl doctor --only long_transactions"))
        time.sleep(_POLL_SECONDS_UNSEEN)
        left = _still(left, _in_progress(conn))


def _committing(conn: Connection) -> dict[str, str]:
    return dict(conn.execute(_COMMITTING).fetchall())


def _in_progress(conn: Connection) -> dict[str, str]:
    return dict(conn.execute(_IN_PROGRESS).fetchall())


def _still(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in before.items() if key in now}


def _blocked(waiting: Mapping[str, str], in_progress: Mapping[str, str]) -> Blocked:
    if waiting:
        return Blocked(
            f"{counted(len(waiting), 'commit')} that no synchronous standby has acknowledged: "
            f"{named(list(waiting.values()), most=3)}",
            "start the standby, or remove it from synchronous_standby_names",
        )
    return Blocked(
        f"{counted(len(in_progress), 'transaction')} that may have committed, because this role does not see which "
        f"wait for a synchronous standby: {named(list(in_progress.values()), most=3)}",
        "grant the role pg_monitor, or end these transactions",
    )
