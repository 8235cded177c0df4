"""What people and programs see of snapshots: one row for each table, with its rate and the time that is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from rdsrepl.snapshot.state import SnapshotState, Status, TableState


@dataclass(frozen=True, slots=True)
class TableProgress:
    """How far a table of a snapshot is.

    Attributes:
        snapshot: the ID of the snapshot.
        table: the table.
        state: ``requested``, ``running``, ``waiting`` for the tables before it, ``paused``, ``done``, ``cancelled`` or
            ``failed``.
        rows: how many rows were written.
        estimated_rows: how many the table has, by its statistics; None is unknown.
        rows_per_second: of the snapshot since it began, without pauses; None for a table that is not running.
        cursor: the key of the last row that was written, as the server prints its values; None without one.
        conflicts: how many rows were changed by the stream between their reading and their place in the stream.
        left_seconds: how long the table will take, by its statistics and the rate; None is unknown.
        chunks: how many chunks were written.
        read_again: how many keys are read again.
        method: how it is read: ``chunks``, or ``slot`` for a table without a key.
        slot: whose stream has the rows.
        reason: why the snapshot failed or was paused; None otherwise.
        started_at, ended_at: of the snapshot.
        waits_for: what the snapshot waits for while it runs, and what ends that; None otherwise.
    """

    snapshot: str
    table: str
    state: str
    rows: int
    estimated_rows: int | None
    rows_per_second: float | None
    cursor: tuple[str, ...] | None
    conflicts: int
    left_seconds: float | None
    chunks: int
    read_again: int
    method: str
    slot: str
    reason: str | None
    started_at: datetime | None
    ended_at: datetime | None
    waits_for: str | None = None


def progress(snapshots: Iterable[SnapshotState]) -> list[TableProgress]:
    """Return the rows of snapshots, those that have not ended first, each in the order of its tables."""
    return [row for one in sorted(snapshots, key=lambda one: one.status.has_ended) for row in _rows(one)]


def _rows(one: SnapshotState) -> list[TableProgress]:
    current = next((table.table for table in one.tables if not table.is_done), None)
    return [_row(one, table, is_current=table.table == current) for table in one.tables]


def rows_per_second(one: SnapshotState) -> float | None:
    """Return how fast a snapshot was while it ran; None before its first chunk."""
    rows = sum(table.rows for table in one.tables)
    return round(rows / one.running_seconds, 1) if rows and one.running_seconds > 0 else None


def _row(one: SnapshotState, table: TableState, *, is_current: bool) -> TableProgress:
    state = "done" if table.is_done else one.status.value
    if one.status is Status.running and not table.is_done and not is_current:
        state = "waiting"
    rate = rows_per_second(one) if state == Status.running else None
    rest = (table.estimated_rows or 0) - table.rows
    return TableProgress(
        snapshot=one.request.id,
        table=table.table,
        state=state,
        rows=table.rows,
        estimated_rows=table.estimated_rows,
        rows_per_second=rate,
        cursor=table.cursor,
        conflicts=table.conflicts,
        left_seconds=round(rest / rate, 1) if rate and rest > 0 else None,
        chunks=table.chunks,
        read_again=len(table.read_again),
        method=table.method.value,
        slot=one.request.slot,
        reason=one.reason,
        started_at=one.started_at,
        ended_at=one.ended_at,
        waits_for=waits_for(one),
    )


def waits_for(one: SnapshotState) -> str | None:
    """Return what a running snapshot waits for; what the state of another one says is from before it stopped."""
    return one.waits_for if one.status is Status.running else None
