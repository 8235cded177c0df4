"""A snapshot that a temporary slot exports, with its position (manual, section 49.2.5).

What is visible in the snapshot committed before the position; a slot that begins there sends everything else. The
temporary slot goes with its connection. Another transaction keeps the snapshot once it has taken it over.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import TimedOut
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import connection, versions
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.tail.preflight import PreflightResult

_RANDOM_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class ExportedSnapshot:
    """A snapshot, for as long as its connection does nothing else.

    Attributes:
        exporting: the replication connection that holds it.
        slot_name: the temporary slot.
        position: what committed before it is visible in the snapshot.
        name: for ``SET TRANSACTION SNAPSHOT``.
        timeline: the server's; 0 if the stream does not have timelines.
    """

    exporting: Connection
    slot_name: str
    position: Lsn
    name: str
    timeline: int

    def take_over_statement(self) -> Composed:
        """Return what gives the snapshot to a transaction that has not run a query."""
        from psycopg import sql

        return sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self.name))


@contextmanager
def exported(target: Target, checked: PreflightResult, seconds: float) -> Iterator[ExportedSnapshot]:
    """Yield a snapshot; the slot and the connection end afterwards.

    Args:
        target: the database.
        checked: the result of the preflight check of the stream.
        seconds: how long to wait for transactions that are in progress.

    Raises:
        TimedOut: they did not end in that time; nothing is left.
        Error: the server refused it.
    """
    import psycopg
    from psycopg import sql

    # Not by the process ID: processes of several containers can have the same one.
    slot_name = f"rdsrepl_snapshot_{secrets.token_hex(_RANDOM_BYTES)}"
    options = "(SNAPSHOT 'export')" if checked.version >= versions.REPLICATION_OPTION_LISTS_SINCE else "EXPORT_SNAPSHOT"
    create = sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL {} {}").format(
        sql.Identifier(slot_name), sql.Identifier(checked.slot.plugin or "pgoutput"), sql.SQL(options)
    )
    with connection.open(replace(target, answer_seconds=seconds), replication=True) as conn:
        system = conn.execute("IDENTIFY_SYSTEM").fetchone()
        try:
            row = conn.execute(create).fetchone()
        except psycopg.OperationalError as exc:
            if not conn.closed:
                raise
            raise TimedOut(
                f"the snapshot was not ready within {format_duration(seconds)}: the server waits for transactions that "
                "are in progress; nothing is left",
                hint="find them with: rdsrepl doctor --only long_transactions",
            ) from exc
        assert row is not None and system is not None
        position, name = (connection.text(value) for value in row[1:3])
        timeline = int(system[1]) if checked.has_timelines else 0
        yield ExportedSnapshot(conn, slot_name, Lsn.parse(position), name, timeline)
