"""Read all rows of a table without a key with one statement, in a snapshot that a temporary slot exports.

The slot names the position of the snapshot: the rows contain what committed before it, and no later change. The slot is
needed until the transaction that reads has taken the snapshot over.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.postgres import connection
from rdsrepl.snapshot import chunk_table, chunks, copied_lines
from rdsrepl.snapshot.chunk_table import Altered, ChunkTable
from rdsrepl.snapshot.exported_snapshot import exported
from rdsrepl.snapshot.held_changes import HeldChanges

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.tail.preflight import PreflightResult

# A block is written into the stream at once: the changes behind it wait so long.
_WANTED_BYTES: Final = 512 << 10
_TIMEOUT_SECONDS: Final = 60.0
_NEXT_XID: Final = """
SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::numeric % 4294967296
"""
# The catalog in the snapshot, and the files as they are now. To older snapshots a table that was rewritten is empty.
_REWRITTEN: Final = """
SELECT 1 FROM pg_catalog.pg_class c
 WHERE (c.oid = %(oid)s OR c.oid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree(%(oid)s::oid::regclass) p))
   AND c.relkind = 'r' AND pg_catalog.pg_relation_filenode(c.oid) IS DISTINCT FROM c.relfilenode
"""
# Chunks are read by the index of the key; here there is none.
_BY_PAGES: Final = "SET LOCAL enable_seqscan = on"


@dataclass(frozen=True, slots=True)
class CopiedRows:
    """Some rows of the table.

    Attributes:
        lines: as COPY sent them, each with its newline.
        size: in bytes.
        held: the changes of the table.
        xid: the first transaction that they do not contain, 32 bits.
        is_first: whether they are the first ones.
        is_last: whether no row follows.
    """

    lines: list[bytes]
    size: int
    held: HeldChanges
    xid: int
    is_first: bool
    is_last: bool


def read(
    rows: Connection,
    current: Connection,
    target: Target,
    checked: PreflightResult,
    table: ChunkTable,
    where: str | None,
    *,
    most_rows: int,
    record: Callable[[HeldChanges], None],
    is_stopped: Callable[[], bool],
) -> Generator[CopiedRows, None, None]:
    """Yield the rows; at least once, also without any. Closing the generator ends the statement.

    Args:
        rows: the connection that reads, outside of a transaction.
        current: another connection to the server, outside of a transaction.
        target: the same server, for the temporary slot.
        checked: the result of the preflight check of the stream.
        table: the table.
        where: an SQL condition on the rows; None is all.
        most_rows: how many rows are yielded at once.
        record: lets the stream keep the changes of the table.
        is_stopped: whether to end.

    Raises:
        Altered: the table is not as it was described.
        Stopped: asked to end; the connection cannot be used again.
        TimedOut: transactions that were in progress did not end in time.
        Error: a statement failed.
    """
    lines: list[bytes] = []
    size, is_first = 0, True
    # Its position is before that of the slot: what committed before it is of no use.
    held = HeldChanges(table.name, connection.current_lsn(rows))
    record(held)
    with rows.transaction():
        # The slot waits for transactions, which may wait for the table: it must not be locked before.
        with exported(target, checked, _TIMEOUT_SECONDS) as source:
            rows.execute(source.take_over_statement())
        rows.execute(chunks.lock_statement(table))
        if not all(chunk_table.is_unchanged(conn, table) for conn in (rows, current)) or _is_rewritten(rows, table):
            raise Altered
        held.since = source.position
        rows.execute(_BY_PAGES)
        row = rows.execute(_NEXT_XID).fetchone()
        assert row is not None
        xid = int(row[0])
        copied = copied_lines.copied(rows, chunks.whole_statement(table, where), is_stopped)
        with closing(copied):
            for line in copied:
                lines.append(line)
                size += len(line)
                if size >= _WANTED_BYTES or len(lines) >= most_rows:
                    yield CopiedRows(lines, size, held, xid, is_first, is_last=False)
                    lines, size, is_first = [], 0, False
    yield CopiedRows(lines, size, held, xid, is_first, is_last=True)


def _is_rewritten(rows: Connection, table: ChunkTable) -> bool:
    """Return whether the table has another file than in the snapshot of the transaction, after TRUNCATE for example."""
    return rows.execute(_REWRITTEN, {"oid": table.relation.oid}).fetchone() is not None
