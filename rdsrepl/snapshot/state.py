"""The state of the snapshots of one slot: which were requested, and how far each table has come.

It has two forms with one document (``state_document``): a file (``state_file``) and a row of a table (``table_store``).
The process that streams the slot writes it; ``rdsrepl snapshot list`` reads it. A cursor in it decides which rows are
not read again, so a document that is damaged, or of another slot, database or server, is an error, and never a new
start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from rdsrepl.errors import BadValue
from rdsrepl.postgres.sql_names import parse_name
from rdsrepl.postgres.table_structures import TableName
from rdsrepl.snapshot import requests
from rdsrepl.snapshot.requests import Method, Request

#: How many unfinished snapshots a slot can have: every role of the database may request one.
MAX_UNFINISHED: Final = 100
_MAX_ENDED: Final = 50


class Status(StrEnum):
    """How far a snapshot is."""

    requested = "requested"
    running = "running"
    paused = "paused"
    done = "done"
    cancelled = "cancelled"
    failed = "failed"

    @property
    def has_ended(self) -> bool:
        """Whether nothing follows, unless a failed snapshot is resumed."""
        return self in (Status.done, Status.cancelled, Status.failed)


@dataclass(frozen=True, slots=True)
class TableState:
    """How far one table of a snapshot is.

    Attributes:
        table: as in ``Request.tables``.
        cursor: the key of the last row that the output has, as the server prints its values; None: no row yet.
        rows: how many rows were written.
        estimated_rows: how many the table has, by its statistics; None is unknown.
        chunks: how many chunks were written.
        conflicts: how many rows of chunks were changed by the stream between their reading and their marker.
        read_again: keys of rows that a chunk by keys reads again.
        is_done: whether all rows were written.
        key: the columns of the cursor, with what defines their order.
        timeline, marker: of the last chunk's marker: a server that does not have it has undone what the chunk contains.
        method: how it is read; ``slot`` is only for a table without a key.
        sent: the columns with their types, and the row filter, of the rows that were read; empty is not known.
    """

    table: str
    cursor: tuple[str, ...] | None = None
    rows: int = 0
    estimated_rows: int | None = None
    chunks: int = 0
    conflicts: int = 0
    read_again: tuple[tuple[str, ...], ...] = ()
    is_done: bool = False
    key: tuple[str, ...] = ()
    timeline: int = 0
    marker: int = 0
    method: Method = Method.chunks
    sent: tuple[str, ...] = ()

    @property
    def is_incomplete(self) -> bool:
        """Whether the output has a TRUNCATE of the table, and not all rows and changes since."""
        return self.method is Method.slot and self.marker > 0 and not self.is_done

    def from_start(self) -> TableState:
        """Return the table as it is when it is read again from the start: its rows are counted again."""
        return replace(self, cursor=None, rows=0, chunks=0, conflicts=0, read_again=(), is_done=False)


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """How far a snapshot is.

    Attributes:
        request: what was requested.
        status: how far it is.
        reason: why it failed or was paused by the streaming process; None otherwise.
        tables: the tables of the request, in its order; partitions stand for a partitioned table that is published by
            them.
        started_at: when its first chunk was read (UTC).
        ended_at: when it ended (UTC).
        running_seconds: for how long it ran, without pauses and stops.
        waits_for: what the streaming process waits for before it reads on, and what ends that; None otherwise.
    """

    request: Request
    status: Status = Status.requested
    reason: str | None = None
    tables: tuple[TableState, ...] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    running_seconds: float = 0.0
    waits_for: str | None = None

    @classmethod
    def new(cls, request: Request) -> SnapshotState:
        """Return the state of a request that was just received."""
        return cls(request, tables=tuple(TableState(table) for table in request.tables))

    def with_table(self, place: int, table: TableState) -> SnapshotState:
        """Return the snapshot with another state of the table at PLACE; the rate is that of the rows that count."""
        before, after = sum(one.rows for one in self.tables), table.rows - self.tables[place].rows
        seconds = self.running_seconds * (before + after) / before if after < 0 else self.running_seconds
        tables = (*self.tables[:place], table, *self.tables[place + 1 :])
        return replace(self, tables=tables, running_seconds=seconds)


@dataclass(frozen=True, slots=True)
class StreamIdentity:
    """Whose state it is.

    Attributes:
        system_identifier: of the server; its standbys have the same one.
        database, slot_name: the slot.
    """

    system_identifier: str
    database: str
    slot_name: str

    def __str__(self) -> str:
        return f"slot {self.slot_name} of database {self.database} on server {self.system_identifier}"


class Store(Protocol):
    """Where the streaming process keeps the state; only one process at a time."""

    def load(self) -> tuple[SnapshotState, ...]:
        """Claim the state for this process, until ``close``, and return it.

        Raises:
            BadState: it is damaged, or of another slot, database or server.
            InUse: another process has it.
        """
        ...

    def save(self, snapshots: Sequence[SnapshotState]) -> None:
        """Write the state to disk.

        Raises:
            InUse: another process claimed it.
            SinkFailed: it could not be written; the state before it is still there.
        """
        ...

    def close(self) -> None:
        """Release the state."""
        ...


@dataclass(frozen=True, slots=True)
class FilePlace:
    """The state is a file; None is the default file of the slot."""

    path: Path | None = None

    @property
    def tables(self) -> tuple[TableName, ...]:
        """The tables that have the state, which no output has."""
        return ()

    def __str__(self) -> str:
        return "the default file" if self.path is None else str(self.path)


@dataclass(frozen=True, slots=True)
class TablePlace:
    """The state is a row of a table in the slot's database."""

    schema: str
    table: str

    @property
    def tables(self) -> tuple[TableName, ...]:
        """The tables that have the state, which no output has."""
        return ((self.schema, self.table),)

    def __str__(self) -> str:
        return f"table:{requests.table_text(self.schema, self.table)}"


Place = FilePlace | TablePlace


def parse_place(text: str | None) -> Place:
    """Return the place that ``--state`` names: FILE or ``table:SCHEMA.NAME``; None is the default file.

    Raises:
        BadValue: it is neither.
    """
    if text is None:
        return FilePlace()
    if text.startswith("table:"):
        return parse_table(text.removeprefix("table:"))
    if not text or "\0" in text or Path(text).is_dir():
        raise BadValue(f"--state {text} is not a file", hint="give a file, or table:SCHEMA.NAME")
    return FilePlace(Path(text).absolute())


def parse_table(text: str) -> TablePlace:
    """Return the table that SCHEMA.NAME names.

    Raises:
        BadValue: it is not such a name.
    """
    parts = parse_name(text)
    if len(parts) != 2:
        raise BadValue(
            f"the table {text} for the state of snapshots has no schema",
            hint="name it with its schema, for example rdsrepl.snapshots",
        )
    return TablePlace(parts[0], parts[1])


def without_old(snapshots: Sequence[SnapshotState]) -> tuple[SnapshotState, ...]:
    """Return snapshots without those that ended long ago: every role can request any number of them."""
    ended = [one for one in snapshots if one.status.has_ended]
    left_out = {one.request.id for one in ended[: max(0, len(ended) - _MAX_ENDED)]}
    return tuple(one for one in snapshots if one.request.id not in left_out)
