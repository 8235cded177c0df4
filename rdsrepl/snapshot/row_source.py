"""The connection that reads the rows of a snapshot: on the primary, or on a replica of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import NotPrimary, Refused
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import commit_visibility, connection, server_identity
from rdsrepl.snapshot import chunks
from rdsrepl.snapshot.requests import table_text
from rdsrepl.snapshot.waiting import WaitReport

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.snapshot.chunk_table import ChunkTable

_REPLAYED: Final = "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_last_wal_replay_lsn()"
# Only flushed WAL is decoded and sent to standbys. The insert position can be behind the header of a page that has no
# record yet, which no standby reaches.
_FLUSHED: Final = "SELECT pg_catalog.pg_current_wal_flush_lsn()"
_REPLAY_POLL_SECONDS: Final = 0.05


class RowSource:
    """Reads rows in transactions that are REPEATABLE READ and READ ONLY.

    Attributes:
        conn: the connection.
    """

    def __init__(self, conn: Connection, primary: Connection, replica: str | None) -> None:
        self.conn = conn
        self._primary = primary
        self._replica = replica

    def require_condition(self, table: ChunkTable, where: str) -> None:
        """Make sure that the condition of a request is one condition on a table.

        Raises:
            Refused: it is not.
        """
        from psycopg import pq
        from psycopg.errors import error_from_result

        with self.conn.transaction(force_rollback=True):
            self.conn.execute("SELECT 1")
            # Sent alone: the server refuses a second statement behind it.
            for check in chunks.condition_checks(table, where):
                result = self.conn.pgconn.exec_params(check.as_bytes(self.conn), None)
                if result.status != pq.ExecStatus.TUPLES_OK:
                    reason = str(error_from_result(result)).splitlines()[0]
                    raise Refused(f"the condition does not fit table {table_text(*table.name)}: {reason}")

    def wait_until_visible(self, is_over: Callable[[], bool], report: WaitReport) -> None:
        """Wait until the rows contain every change that was decoded before this.

        Raises:
            NotPrimary: the replica was promoted.
            Refused: the replica does not report its position.
        """
        if self._replica is None:
            commit_visibility.wait_until_visible(
                self._primary, is_over, lambda blocked: report.waits(blocked.what, blocked.remedy)
            )
        else:
            row = self._primary.execute(_FLUSHED).fetchone()
            assert row is not None
            while not is_over() and (self.replayed() or 0) < row[0]:
                report.waits(f"the replica {self._replica} to replay {row[0]}")
                time.sleep(_REPLAY_POLL_SECONDS)
        report.ends()

    def wait_until_ended(self, is_over: Callable[[], bool], report: WaitReport) -> None:
        """Wait until the transactions have ended that are in progress now."""
        commit_visibility.wait_until_ended(
            self._primary, is_over, lambda blocked: report.waits(blocked.what, blocked.remedy)
        )
        report.ends()

    def replayed(self) -> Lsn | None:
        """Return a position up to which rows that are read after this contain every commit; None on the primary.

        Raises:
            NotPrimary: the replica was promoted.
            Refused: the replica does not report its position.
        """
        if self._replica is None:
            return None
        row = self.conn.execute(_REPLAYED).fetchone()
        assert row is not None
        in_recovery, lsn = row
        if not in_recovery:
            raise NotPrimary("the replica was promoted", hint="start the snapshot again, from another replica")
        if lsn is None:
            raise Refused(
                "the replica does not report what it has replayed (pg_last_wal_replay_lsn() is null)",
                hint="start the snapshot again, without --read-from",
            )
        return Lsn(lsn)


@contextmanager
def connected(
    target: Target, settings: Mapping[str, str], primary: Connection, replica: str | None
) -> Iterator[RowSource]:
    """Yield the rows of a server; the connection is closed at the end.

    Args:
        target: the server.
        settings: of the session.
        primary: a connection to the primary.
        replica: the name of the replica that the target must be; None if it is the primary.

    Raises:
        Refused: it is a connection pooler, or not a replica of the primary.
    """
    import psycopg

    conn = connection.connect(target, settings=settings)
    try:
        if connection.is_pooled(conn):
            raise Refused("a snapshot does not read through a connection pooler", hint="connect to the server itself")
        if replica is not None:
            _require_replica(conn, primary, replica)
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.read_only = True
        yield RowSource(conn, primary, replica)
    finally:
        conn.close()


def _require_replica(conn: Connection, primary: Connection, name: str) -> None:
    """Make sure that a server is a standby of the primary.

    Raises:
        Refused: it is not.
    """
    ours, theirs = (server_identity.system_identifier(one) for one in (primary, conn))
    row = conn.execute(_REPLAYED).fetchone()
    assert row is not None
    if not row[0]:
        raise Refused(f"--read-from {name} is not a standby", hint="name a read replica, or omit --read-from")
    if ours is None or ours != theirs:
        raise Refused(f"--read-from {name} is not a replica of this server")
