"""What is recorded of an initial copy: which tables the output has.

When the copy ends early, the state has the snapshot as one that runs. The stream then reads the tables that are not
complete in chunks, like those of a snapshot that is requested while it runs (``incremental``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from rdsrepl.snapshot.requests import MAX_TABLES, Method, Request, table_text
from rdsrepl.snapshot.state import SnapshotState, Status, Store, TableState
from rdsrepl.snapshot.tables import SnapshotTable, TableRange

_ID: Final = "initial"
_SAVE_SECONDS: Final = 1.0


def is_initial(snapshot_id: str) -> bool:
    """Return whether a snapshot is the copy with which a slot was created."""
    return snapshot_id == _ID or snapshot_id.startswith(f"{_ID}-")


class InitialState:
    """The state of one initial copy.

    Attributes:
        goes_on: whether the stream can read what the copy leaves; otherwise a copy that ends early begins again.
    """

    def __init__(
        self,
        store: Store,
        slot_name: str,
        tables: Sequence[SnapshotTable],
        ranges: Sequence[TableRange],
        *,
        whole: Sequence[SnapshotTable] = (),
        goes_on: bool,
    ) -> None:
        """Claim the state of the slot, and change nothing.

        Args:
            store: keeps it.
            slot_name: the slot that is created.
            tables: those to copy.
            ranges: their parts.
            whole: those without a key, which the stream reads whole.
            goes_on: whether the stream can read what the copy leaves.

        Raises:
            BadState, InUse, SinkFailed: the state is damaged, in use, or cannot be written.
        """
        self._store = store
        self.goes_on = goes_on
        # What did not end belongs to an older slot of this name, and this copy has all tables.
        self._others = [one for one in store.load() if one.status.has_ended and not is_initial(one.request.id)]
        self._slot_name = slot_name
        self._tables = [
            TableState(table_text(*table.full_name), method=Method.slot if table in whole else Method.chunks)
            for table in tables
        ]
        self._ranges = Counter(one.table for one in ranges)
        self._last_batch = [0] * len(tables)
        self._rows = [0] * len(tables)
        self._began = datetime.now(UTC)
        self._saved_at = time.monotonic()

    @property
    def left(self) -> list[str]:
        """The names of the tables that are not complete."""
        return [table.table for table in self._tables if not table.is_done]

    def received(self, table: int, rows: int, batch: int, *, ends_range: bool) -> None:
        """Note that a batch has rows of a table."""
        self._rows[table] += rows
        self._last_batch[table] = batch
        self._ranges[table] -= ends_range

    def stored(self, durable: int) -> None:
        """Note that the output has all batches up to one; save which tables are complete, at most once a second."""
        changed = False
        for number, table in enumerate(self._tables):
            if not table.is_done and not self._ranges[number] and self._last_batch[number] <= durable:
                self._tables[number] = replace(table, rows=self._rows[number], is_done=True)
                changed = True
        if self.goes_on and changed and time.monotonic() - self._saved_at >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write which tables are complete.

        Raises:
            Error: the state could not be written.
        """
        now = datetime.now(UTC)
        snapshots = [*self._others]
        for first in range(0, len(self._tables), MAX_TABLES):
            tables = tuple(self._tables[first : first + MAX_TABLES])
            name = f"{_ID}-{first // MAX_TABLES + 1}" if first else _ID
            method = Method.slot if any(table.method is Method.slot for table in tables) else Method.chunks
            is_done = all(table.is_done for table in tables)
            snapshots.append(
                SnapshotState(
                    Request(name, self._slot_name, tuple(table.table for table in tables), method=method),
                    Status.done if is_done else Status.running,
                    tables=tables,
                    started_at=self._began,
                    ended_at=now if is_done else None,
                    running_seconds=(now - self._began).total_seconds(),
                )
            )
        self._store.save(snapshots)
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Release the state."""
        self._store.close()
