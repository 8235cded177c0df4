"""A heartbeat: a small transaction in the slot's database at an interval, so that slots advance in a quiet database.

A slot advances when its consumer confirms a commit of the slot's own database. If that database is quiet and others on
the server are busy, the slot keeps WAL that no consumer needs. ``slot tail`` confirms idle positions without a
heartbeat; other consumers of the same database (DMS, Debezium) need it, and a failover slot is synchronised only after
it advanced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import Denied, Error, NotFound, NotPrimary, Refused
from rdsrepl.tail.model import HEARTBEAT_PREFIX

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.tail.preflight import PreflightResult

_MESSAGE: Final = "SELECT pg_catalog.pg_logical_emit_message(true, %s, %s)"
_NAME: Final = """
SELECT n.nspname::text, c.relname::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s
"""
# The table may have row security policies; they apply to the heartbeat as to any client.
_SETTINGS: Final = {"row_security": "on"}
_RETRY_SECONDS: Final = 5.0
#: each heartbeat is a transaction.
MIN_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class HeartbeatOptions:
    """How often to write, and into which table; without one, a message of ``pg_logical_emit_message``."""

    every_seconds: float
    table: str | None = None


class Heartbeat:
    """Writes heartbeats in its own thread, on its own connection."""

    def __init__(self, target: Target, slot_name: str, options: HeartbeatOptions, note: Callable[[str], None]) -> None:
        self._target = target
        self._slot_name = slot_name
        self._options = options
        self._note = note
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self, checked: PreflightResult) -> None:
        """Write one heartbeat, so that an error is reported before the stream starts.

        Raises:
            NotPrimary: the server is a standby, which cannot write.
            NotFound, Denied, Refused: the table does not exist, may not be written, or has other columns.
        """
        from rdsrepl.postgres import connection

        if checked.in_recovery:
            raise NotPrimary(
                "--heartbeat writes to the database, and this server is a standby",
                hint="connect to the primary, or omit --heartbeat",
            )
        try:
            with connection.open(self._target, settings=_SETTINGS) as conn:
                self._write(conn)
        except Error as exc:
            if self._options.table is None or exc.sqlstate is None:
                raise
            kind: type[Error] = {"42P01": NotFound, "3F000": NotFound, "42501": Denied}.get(exc.sqlstate, Refused)
            raise kind(
                f"--heartbeat-table {self._options.table}: {exc.message}",
                hint=f"CREATE TABLE {self._options.table} (slot_name text PRIMARY KEY, beat_at timestamptz NOT NULL), "
                "and GRANT SELECT, INSERT, UPDATE on it",
                sqlstate=exc.sqlstate,
            ) from exc

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=0.5)

    def _work(self) -> None:
        from rdsrepl.postgres import connection

        failing = False
        while not self._stopped.wait(min(_RETRY_SECONDS, self._options.every_seconds) if failing else 0.0):
            try:
                with connection.open(self._target, settings=_SETTINGS) as conn:
                    while not self._stopped.wait(self._options.every_seconds):
                        self._write(conn)
                        failing = False
            except Error as exc:
                if not failing:
                    self._note(f"heartbeat: {exc.message}; retrying")
                failing = True

    def _write(self, conn: Connection) -> None:
        if self._options.table is None:
            conn.execute(_MESSAGE, (HEARTBEAT_PREFIX, self._slot_name))
        else:
            conn.execute(self._upsert(conn, self._options.table), (self._slot_name,))

    def _upsert(self, conn: Connection, table: str) -> Composed:
        from psycopg import sql

        from rdsrepl.postgres import relations
        from rdsrepl.postgres.sql_names import parse_name

        parts = parse_name(table)
        if len(parts) == 1 and (oid := relations.find_oid(conn, sql.Identifier(*parts).as_string(None))):
            parts = conn.execute(_NAME, (oid,)).fetchone() or parts
        return sql.SQL(
            "INSERT INTO {} AS h (slot_name, beat_at) VALUES (%s, pg_catalog.clock_timestamp()) "
            "ON CONFLICT (slot_name) DO UPDATE SET beat_at = excluded.beat_at"
        ).format(sql.Identifier(*parts))
