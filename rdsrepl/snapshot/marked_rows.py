"""Rows that were read, and wait for the marker in whose place the stream writes them."""

from __future__ import annotations

from dataclasses import dataclass

from rdsrepl.lsn import Lsn
from rdsrepl.snapshot.chunk_rows import ChunkRows
from rdsrepl.snapshot.chunk_table import ChunkTable, Cursor
from rdsrepl.snapshot.held_changes import HeldChanges
from rdsrepl.snapshot.visibility import ServerSnapshot


@dataclass(slots=True)
class Chunk:
    """Some rows of a table, in the order of its key, or those of some keys.

    Attributes:
        snapshot_id, place: whose chunk it is: the snapshot, and the table's place in it.
        number: of the chunk in the run.
        rows: what was read.
        seen: what the rows contain: the server's snapshot; on a replica a position up to which it had replayed.
        cursor: the last key; None for a chunk by keys, or without rows.
        size: of the rows in bytes, as the server sent them.
        keys: of a chunk by keys.
        is_last: whether no row comes after them.
    """

    snapshot_id: str
    place: int
    number: int
    rows: ChunkRows
    seen: ServerSnapshot | Lsn
    cursor: Cursor | None
    size: int
    keys: tuple[Cursor, ...]
    is_last: bool

    @property
    def table(self) -> ChunkTable:
        """The table as it was when the rows were read."""
        return self.rows.format.table


@dataclass(slots=True)
class TableBlock:
    """Some rows of a table without a key.

    Attributes:
        snapshot_id, place, number, rows, size: see ``Chunk``.
        held: the changes of the table.
        is_first: whether a truncate comes before them.
        is_last: whether no row comes after them; then the changes follow.
    """

    snapshot_id: str
    place: int
    number: int
    rows: ChunkRows
    size: int
    held: HeldChanges
    is_first: bool
    is_last: bool
