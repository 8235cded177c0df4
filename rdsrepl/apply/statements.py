"""Run one SQL statement in a thread that can be watched, cancelled and undone."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from rdsrepl import errors
from rdsrepl.apply.results import (
    FIRST_POLL_SECONDS,
    LAST_POLL_SECONDS,
    POLL_GROWTH,
    Blocker,
    Cancelled,
    OnWaiting,
    StepResult,
)
from rdsrepl.plan import Meanwhile, Statement
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection

_REPORT_AFTER_SECONDS: Final = 1.0
_CANCEL_SECONDS: Final = 10.0
# Longer than a crash recovery or a failover.
_SERVER_BACK_SECONDS: Final = 90.0
_STILL_THERE: Final = """
SELECT FROM pg_catalog.pg_stat_activity
 WHERE pid = %s AND pid <> pg_catalog.pg_backend_pid() AND usename = current_user
"""
#: the sessions and prepared transactions whose locks a server process waits for, the oldest first.
_LOCK_HOLDERS: Final = """
WITH blocking AS (SELECT DISTINCT unnest(pg_catalog.pg_blocking_pids(%(pid)s)) AS pid)
SELECT 'PID ' || b.pid, a.usename::text, a.application_name, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age, a.query
  FROM blocking b LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid WHERE b.pid <> 0
UNION ALL
SELECT coalesce(format('prepared transaction %%L', p.gid), 'a prepared transaction'), p.owner::text, NULL, NULL,
       extract(epoch FROM clock_timestamp() - p.prepared)::float8, NULL
  FROM blocking b LEFT JOIN pg_catalog.pg_prepared_xacts p ON true WHERE b.pid = 0
 ORDER BY age DESC NULLS LAST
"""
_OTHERWISE_SECONDS: Final = 5.0
_TERMINATE: Final = "SELECT pg_catalog.pg_terminate_backend(%s)"


def was_executed(step: Statement, target: Target, pid: int, waiting: OnWaiting) -> bool | None:
    """Ask the server whether it executed a statement that it did not answer; wait until the server is available.

    Args:
        step: the statement.
        target: the database.
        pid: the server process that got the statement. It can outlive its connection: the answer counts after its end.
        waiting: called with what this waits for.

    Returns:
        None if the server does not know.

    Raises:
        Unreachable: the server did not answer in time.
    """
    from rdsrepl.postgres import connection

    assert step.done_if is not None
    started = time.monotonic()
    pause = FIRST_POLL_SECONDS
    while True:
        try:
            with connection.open(target) as conn:
                if conn.execute(_STILL_THERE, (pid,)).fetchone() is None:
                    row = conn.execute(step.done_if).fetchone()
                    return None if row is None or row[0] is None else bool(row[0])
            what = f"the end of server process {pid}"
            failure: errors.Unreachable | None = None
        except errors.Unreachable as exc:
            what, failure = "the server to become available", exc
        elapsed = time.monotonic() - started
        if elapsed >= _SERVER_BACK_SECONDS:
            if failure is None:
                return None
            raise failure
        waiting(step, elapsed, [f"waiting for {what}"])
        time.sleep(pause)
        pause = min(pause * POLL_GROWTH, LAST_POLL_SECONDS)


def connect(stack: ExitStack, target: Target, protocol: str) -> Connection:
    """Open the connection for the statements of a plan; STACK closes it."""
    from rdsrepl.postgres import connection, versions

    conn = connection.connect(target, replication=protocol == "replication")
    stack.callback(conn.close)
    if protocol == "sql" and connection.server_version(conn) >= versions.CLIENT_CHECK_INTERVAL_SINCE:
        # If this process is killed, the server cancels the statement instead of completing it later.
        connection.configure(conn, {"client_connection_check_interval": "1s"})
    return conn


def require_own_session(step: Statement, conn: Connection) -> None:
    """Refuse a statement behind a connection pooler if its server process must be known: for blockers, cancel, recheck.

    Raises:
        Refused: a pooler hides the server process of such a statement.
    """
    from rdsrepl.postgres import connection

    watched = step.timeout_seconds is not None or step.blockers or step.undo or step.done_if
    if watched and connection.is_pooled(conn):
        raise errors.Refused(
            f"{step.summary}: the connection goes through a pooler, which hides the server process that runs it",
            hint="connect to the server directly (on RDS: the endpoint of the cluster or instance)",
        )


def execute(step: Statement, conn: Connection, target: Target, waiting: OnWaiting) -> tuple[StepResult, bool]:
    """Run a statement; return its result, and whether Ctrl-C came too late to cancel it."""
    import psycopg
    from psycopg.rows import dict_row

    result: list[dict[str, Any] | None] = []
    failure: list[BaseException] = []
    # The first holder decides: the worker starts the statement, or Ctrl-C prevents its start.
    start_lock = threading.Lock()
    # After Ctrl-C in Thread.join, is_alive is False although the thread runs (Python 3.11); an event is reliable.
    ended = threading.Event()

    def work() -> None:
        if not start_lock.acquire(blocking=False):
            return
        try:
            with conn.cursor(row_factory=dict_row) as cursor:
                cursor.execute(step.sql)
                result.append(cursor.fetchone() if cursor.description else {})
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that waits
            failure.append(exc)
        finally:
            ended.set()

    started = time.monotonic()
    worker = threading.Thread(target=work, name="statement", daemon=True)
    if step.meanwhile is not None:
        threading.Thread(target=_repeat, args=(step.meanwhile, ended), name="meanwhile", daemon=True).start()
    blockers: list[Blocker] = []
    timed_out = interrupted = False
    try:
        worker.start()
        while not ended.is_set():
            elapsed = time.monotonic() - started
            left = None if step.timeout_seconds is None else step.timeout_seconds - elapsed
            if left is not None and left <= 0:
                timed_out = True
                # Ask for the blockers before the statement ends.
                blockers = _blockers(step, conn, target) or blockers
                _cancel(conn, target, ended)
                break
            ended.wait(_REPORT_AFTER_SECONDS if left is None else min(left, _REPORT_AFTER_SECONDS))
            if not ended.is_set() and time.monotonic() - started >= _REPORT_AFTER_SECONDS:
                blockers = _blockers(step, conn, target)
                waiting(step, time.monotonic() - started, blockers or ["waiting"])
    except KeyboardInterrupt:
        if start_lock.acquire(blocking=False):
            raise Cancelled(was_sent=False) from None
        interrupted = True
        _cancel(conn, target, ended)
        if not result:
            _undo(step, target)
            reported = failure and isinstance(failure[0], psycopg.Error) and failure[0].sqlstate
            if reported and (not conn.closed or step.undo is not None):
                raise Cancelled from None  # the server reported an error, or the change is undone
            raise
    if timed_out and not result:
        _undo(step, target)
        cause = f"; it waited for {'; '.join(one.text for one in blockers)}" if blockers else ""
        raise errors.TimedOut(
            f"{step.summary}: timed out after {format_duration(step.timeout_seconds or 0)}{cause}",
            hint=step.timeout_hint or "end what it waits for, or set a longer --timeout; nothing was changed",
        )
    if failure:
        if isinstance(failure[0], psycopg.Error):
            from rdsrepl.postgres.error_mapping import translate

            raise translate(failure[0]) from failure[0]
        raise failure[0]
    if step.guard is not None and not result[0]:
        raise errors.StalePlan(
            f"{step.summary}: {step.guard}",
            hint="this step changed nothing; check the object, then run the command again",
        )
    # RETURNING 1 only says whether the guard holds.
    returned = {name: value for name, value in (result[0] or {}).items() if name != "?column?"}
    return StepResult(step, returned, time.monotonic() - started), interrupted


def _blockers(step: Statement, conn: Connection, target: Target) -> list[Blocker]:
    """Return what the statement waits for, read on a second connection; empty if that fails."""
    from rdsrepl.postgres import connection

    if connection.is_pooled(conn):  # it reports a PID of its own
        return []
    try:
        with connection.open(target, settings={"statement_timeout": "2s"}) as watcher:
            rows = watcher.execute(_LOCK_HOLDERS, {"pid": conn.info.backend_pid}).fetchall()
            if step.blockers is not None:
                rows += watcher.execute(step.blockers).fetchall()
        if step.meanwhile is not None and step.meanwhile.blockers is not None:
            with connection.open(step.meanwhile.target, settings={"statement_timeout": "2s"}) as watcher:
                rows += watcher.execute(step.meanwhile.blockers).fetchall()
        return [Blocker(*row) for row in rows]
    except errors.Error:
        return []


def _repeat(meanwhile: Meanwhile, ended: threading.Event) -> None:
    """Repeat a statement on another server until ENDED; after an error, try again while there is time."""
    from rdsrepl.postgres import connection

    sql, pause = meanwhile.sql, meanwhile.every_seconds
    while not ended.is_set():
        try:
            with connection.open(meanwhile.target, settings={"statement_timeout": "5s"}) as conn:
                while not ended.is_set():
                    conn.execute(sql)
                    ended.wait(pause)
        except errors.Denied:
            if meanwhile.otherwise is None or sql is meanwhile.otherwise:
                return
            sql, pause = meanwhile.otherwise, _OTHERWISE_SECONDS
        except errors.Error:
            ended.wait(1.0)


def _cancel(conn: Connection, target: Target, ended: threading.Event) -> None:
    """Cancel the statement; terminate a server process that ignores the cancel request."""
    import psycopg

    from rdsrepl.postgres import connection

    pid = conn.info.backend_pid
    try:
        conn.cancel_safe(timeout=_CANCEL_SECONDS)
        ended.wait(_CANCEL_SECONDS)
    except psycopg.Error:
        pass
    if not ended.is_set() and not connection.is_pooled(conn):  # a pooler reports a PID of its own
        with connection.open(target) as other:
            other.execute(_TERMINATE, (pid,))
        ended.wait(_CANCEL_SECONDS)


def _undo(step: Statement, target: Target) -> None:
    from rdsrepl.postgres import connection

    if step.undo is not None:
        with connection.open(target) as conn:
            conn.execute(step.undo)
