"""Whether a primary is being written to.

A transaction gets its number with its first write, and holds a lock on it until it ends; every role may read
``pg_locks`` (manual, section 52.12). The end of a transaction moves the upper limit of ``pg_current_snapshot``; its
beginning does not, so that both are needed. A prepared transaction does not count as running: it is on the standby as
well, and can be ended there. But its end is a write that moves no limit, so that the prepared ones are compared, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.lsn import Lsn
from rdsrepl.text.escapes import shown

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

_NAMED: Final = 3
_PAGE_BYTES: Final = 8192
_PAGE_HEADERS: Final = (24, 40)
# The locks first: what ends after they were read moves the limit, which is read after them.
_RUNNING: Final = """
SELECT DISTINCT 'PID ' || l.pid || coalesce(' (' || nullif(concat_ws(', ', a.usename, nullif(a.application_name, ''),
       a.state), '') || ')', '')
  FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted AND l.pid IS NOT NULL
 ORDER BY 1
"""
# The position last: everything that ended before is in front of it.
_ENDED: Final = """
SELECT pg_catalog.pg_snapshot_xmax(s.now)::text::bigint, s.prepared, pg_catalog.pg_current_wal_insert_lsn()
  FROM (SELECT ARRAY(SELECT p.transaction::text::bigint FROM pg_catalog.pg_prepared_xacts p ORDER BY 1) AS prepared,
               pg_catalog.pg_current_snapshot() AS now OFFSET 0) s
"""


@dataclass(frozen=True, slots=True)
class WriteActivity:
    """The writing transactions of a primary at one moment.

    Attributes:
        running: those that have written and not ended, in words.
        next_xid: it moves when a transaction that has written ends; 64 bits.
        lsn: the end of the WAL, read last.
        prepared: the XIDs of the prepared transactions (32 bits).
    """

    running: tuple[str, ...]
    next_xid: int
    lsn: Lsn
    prepared: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The running transactions in words."""
        more = len(self.running) - _NAMED
        return ", ".join(map(shown, self.running[:_NAMED])) + (f" and {more} more" if more > 0 else "")

    def has_ended_since(self, next_xid: int, prepared: tuple[int, ...]) -> bool:
        """Return whether a transaction that had written has ended since another moment, with these values."""
        return self.next_xid != next_xid or self.prepared != prepared


def end_of_record(insert_lsn: int) -> Lsn:
    """Return where the last record ends, from where the next one is inserted.

    They differ at the start of a page, whose header (24 bytes, of a file 40) precedes the next record. No consumer
    confirms a position behind the header before that record is written. Source: xlog.c, XLogBytePosToEndRecPtr.
    """
    in_page = insert_lsn % _PAGE_BYTES
    return Lsn(insert_lsn - in_page if in_page in _PAGE_HEADERS else insert_lsn)


def read(conn: Connection) -> WriteActivity:
    """Return the writing transactions of the primary behind a connection."""
    running = [str(one) for (one,) in conn.execute(_RUNNING).fetchall()]
    row = conn.execute(_ENDED).fetchone()
    assert row is not None
    return WriteActivity(tuple(running), int(row[0]), end_of_record(row[2]), tuple(row[1]))
