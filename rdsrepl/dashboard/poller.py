"""Poll a server on one connection, in a thread so that the screen does not wait for the server.

A poll takes three statements, however many slots there are. The identity of the server is read once a connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from rdsrepl.dashboard.state import TREND_SECONDS, Sample, Snapshot
from rdsrepl.errors import Error
from rdsrepl.retention import assessment
from rdsrepl.retention.forecast import Storage
from rdsrepl.state import slot_history
from rdsrepl.state.slot_history import Observation

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.activity import ServerInfo
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.slots import Slot
    from rdsrepl.postgres.wal import Wal
    from rdsrepl.retention.rds_metrics import RdsMetrics

#: How often a snapshot is added to the history, which other commands use too.
_RECORD_SECONDS: Final = 60.0
#: After a failover a host name can resolve to the old writer for some time: it is resolved again this often.
_WRITER_SECONDS: Final = 5.0
_MAX_SAMPLES: Final = 600
#: CloudWatch has one value a minute.
_METRICS_SECONDS: Final = 60.0


class SlotPoller:
    """Polls one server. Only ``abort`` may be called from another thread."""

    def __init__(
        self,
        target: Target,
        *,
        window_seconds: float,
        free_bytes: int | None = None,
        metrics: MetricsPoller | None = None,
    ) -> None:
        """Create a poller without a connection.

        Args:
            target: the database.
            window_seconds: the window of the rates.
            free_bytes: the free storage at the first poll, if given.
            metrics: the metrics of RDS, where a cluster or an instance is named.
        """
        self._metrics = metrics
        self._target = target
        self._window_seconds = window_seconds
        self._free_bytes = free_bytes
        self._first_retained_bytes: int | None = None
        self._conn: Connection | None = None
        self._connected_at = 0.0
        self._identity: str | None = None
        self._promotion: tuple[datetime, int, datetime | None] | None = None
        self._server: ServerInfo | None = None
        self._was_primary = False
        self._history: tuple[Observation, ...] = ()
        self._recorded: tuple[Observation, ...] = ()
        self._samples: deque[Sample] = deque(maxlen=_MAX_SAMPLES)
        self._recorded_at = float("-inf")

    def poll(self) -> Snapshot:
        """Return the current snapshot.

        Raises:
            Error: the connection failed or was lost; the next poll opens a new one.
        """
        import psycopg

        from rdsrepl.postgres import activity, error_mapping, slots, wal

        try:
            conn = self._connection()
            now = wal.get(conn)
            rows = slots.ls(conn)
            senders = tuple(activity.senders(conn))
        except psycopg.Error as exc:
            self.close()
            raise error_mapping.translate(exc) from exc
        except Error:
            self.close()
            raise
        assert self._server is not None
        retention = assessment.assess(
            now,
            rows,
            self._history,
            storage=self._storage(rows),
            wal_rate=None if self._metrics is None else self._metrics.latest.wal_rate,
            window_seconds=self._window_seconds,
            promoted_at=self._promoted(conn, now),
        )
        self._record(assessment.to_observation(now, rows))
        if now.in_recovery and self._was_primary and time.monotonic() - self._connected_at > _WRITER_SECONDS:
            self.close()
        self._was_primary = self._was_primary or not now.in_recovery
        return Snapshot(self._server, retention, senders, tuple(self._samples), self._pictured())

    def abort(self) -> None:
        """Abort a poll that hangs, from another thread: it then fails as if the connection were lost."""
        conn = self._conn
        with contextlib.suppress(Exception):
            if conn is not None:
                with socket.socket(fileno=os.dup(conn.fileno())) as duplicate:
                    duplicate.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next poll opens a new one."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def _connection(self) -> Connection:
        if self._conn is None or self._conn.broken:
            from rdsrepl.postgres import activity, connection, server_identity

            self.close()
            conn = self._conn = connection.connect(self._target)
            self._connected_at = time.monotonic()
            identity = server_identity.history_key(conn)
            self._server = activity.server(conn)
            if identity != self._identity:
                self._identity = identity
                self._recorded = slot_history.history(identity)
                self._history = thin_history(self._recorded)
                self._samples.clear()
                self._samples.extend(_sample(one) for one in self._history)
        return self._conn

    def _promoted(self, conn: Connection, now: Wal) -> datetime | None:
        """Return when the server was promoted, if known; read once a connection and timeline."""
        from rdsrepl.postgres import wal

        if now.timeline is None or now.timeline == 1:
            return None
        if self._promotion is None or self._promotion[:2] != (now.started_at, now.timeline):
            self._promotion = (now.started_at, now.timeline, wal.promoted_at(conn, now.timeline))
        return self._promotion[2]

    def _storage(self, rows: Sequence[Slot]) -> Storage | None:
        """Return the free storage from CloudWatch, or the given one less the WAL retained since the first poll."""
        if self._free_bytes is None:
            return None if self._metrics is None else self._metrics.latest.storage
        retained = max((slot.retained_bytes or 0 for slot in rows), default=0)
        if self._first_retained_bytes is None:
            self._first_retained_bytes = retained
        return Storage(max(0, self._free_bytes - (retained - self._first_retained_bytes)), source="--free-space")

    def _record(self, seen: Observation) -> None:
        self._history = thin_history((*(one for one in self._history if one.at < seen.at), seen))
        while self._samples and self._samples[-1].at >= seen.at:
            self._samples.pop()
        self._samples.append(_sample(seen))
        while self._samples[0].at < seen.at - timedelta(seconds=TREND_SECONDS):
            self._samples.popleft()
        if self._identity is not None and time.monotonic() - self._recorded_at >= _RECORD_SECONDS:
            self._recorded_at = time.monotonic()
            slot_history.record(self._identity, seen)
            # Other commands record too, and the file is thinned: this bounds the memory.
            self._recorded = slot_history.history(self._identity)

    def _pictured(self) -> tuple[Observation, ...]:
        """Return the history for pictures: what is recorded, and the samples after that."""
        last = self._recorded[-1].at if self._recorded else None
        return (*self._recorded, *(one for one in self._history if last is None or one.at > last))


class MetricsPoller:
    """Reads the metrics of RDS once a minute in a thread, so that no poll waits for them."""

    def __init__(self, target: Target, first: RdsMetrics) -> None:
        """Start the thread, if the target names a cluster or an instance.

        Args:
            target: the database.
            first: the metrics that were read first.
        """
        self.latest = first
        self._target = target
        if target.aws.identifier:
            threading.Thread(target=self._work, name="metrics-poller", daemon=True).start()

    def _work(self) -> None:
        from rdsrepl.retention import rds_metrics

        while True:
            time.sleep(_METRICS_SECONDS)
            with contextlib.suppress(Error):
                metrics = rds_metrics.read(self._target)
                if metrics.metrics:  # keep the last values during an outage of CloudWatch
                    self.latest = metrics


class PollerThread:
    """Runs a ``SlotPoller`` in a thread, one poll at a time."""

    def __init__(self, poller: SlotPoller, *, wake: Callable[[], None] = lambda: None) -> None:
        """Start the thread.

        Args:
            poller: reads the snapshots.
            wake: called in the thread when a result is available.
        """
        self._results: SimpleQueue[Snapshot | BaseException] = SimpleQueue()
        self._poller = poller
        self._wake = wake
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._started_at: float | None = None
        self._thread = threading.Thread(target=self._work, name="slot-poller", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a poll is in progress, or its result was not read yet."""
        return self._started_at is not None

    def start(self) -> None:
        """Start a poll; ``result`` returns the snapshot or the error."""
        assert not self.busy
        self._started_at = time.monotonic()
        self._wanted.put(True)

    def result(self, timeout: float | None = None) -> Snapshot | BaseException | None:
        """Return the result of the poll; None if it is not available yet.

        Args:
            timeout: how long to wait for it, in seconds; None does not wait.
        """
        from queue import Empty

        try:
            result = self._results.get(timeout=timeout) if timeout is not None else self._results.get_nowait()
        except Empty:
            return None
        self._started_at = None
        return result

    def abort_after(self, seconds: float) -> None:
        """Abort a poll that has taken longer than this."""
        if self._started_at is not None and time.monotonic() - self._started_at > seconds:
            self._poller.abort()

    def stop(self) -> None:
        """Stop the thread; do not wait for a poll that hangs."""
        self._wake = lambda: None
        self._wanted.put(False)
        if self.busy:
            self._poller.abort()
        self._thread.join(timeout=0.5)

    def _work(self) -> None:
        while self._wanted.get():
            try:
                self._results.put(self._poller.poll())
            except Exception as exc:  # noqa: BLE001 - the main thread raises it, or retries
                self._results.put(exc)
            self._wake()
        self._poller.close()


def thin_history(history: Sequence[Observation], *, share: float = 0.05) -> tuple[Observation, ...]:
    """Return a history with fewer old samples: the time between two samples is a share of their age.

    This bounds the cost of a poll, however long the history is. The last change and the last use of each slot are kept.
    """
    if not history:
        return ()
    kept = [False] * len(history)
    end, last = history[-1].at, None
    for number in reversed(range(len(history))):
        one = history[number]
        if not one.partial and (
            last is None or (last - one.at).total_seconds() >= (end - one.at).total_seconds() * share
        ):
            kept[number], last = True, one.at
    return tuple(slot_history.keep_changes(history, kept, last_only=True))


def _sample(seen: Observation) -> Sample:
    return Sample(
        seen.at,
        {one.slot_name: max(0, seen.lsn - one.restart_lsn) for one in seen.slots if one.restart_lsn is not None},
    )
