"""The tail's metrics for Prometheus, and a health check, over HTTP.

``/metrics`` is in Prometheus's exposition format; ``/healthz`` is 200, or 503 when nothing was confirmed for some time
while the lag grew. Threads answer the requests; the tail only stores its last progress here, and never waits for a
client.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdsrepl.tail.metrics_server import MetricsEndpoint

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from rdsrepl.tail.progress import Observer, Progress
    from rdsrepl.tail.sinks.kinesis import KinesisCounts
    from rdsrepl.tail.wal_position import WalPositionPoller


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """Where metrics are served, and after how long without a confirmation the tail is unhealthy."""

    port: int
    host: str = "127.0.0.1"
    unhealthy_seconds: float = 300.0


class Health:
    """Whether the tail makes progress. Pure: time is passed in.

    It is unhealthy when the confirmed position did not move for some time, and the lag is larger than when it last
    moved. While the server cannot be reached, the lag is unknown, and an outage does not make the tail unhealthy.
    """

    def __init__(self, unhealthy_seconds: float) -> None:
        self._unhealthy_seconds = unhealthy_seconds
        self._confirmed_lsn = -1
        self._moved_at = 0.0
        self._lag_then: int | None = None
        self._lag: int | None = None

    def observe(self, confirmed_lsn: int, lag_bytes: int | None, now: float) -> None:
        """Record a measurement."""
        if confirmed_lsn != self._confirmed_lsn:
            self._confirmed_lsn, self._moved_at, self._lag_then = confirmed_lsn, now, lag_bytes
        if lag_bytes is not None:
            self._lag = lag_bytes
            if self._lag_then is None:
                self._lag_then = lag_bytes

    def stuck_seconds(self, now: float) -> float | None:
        """Return how long the tail has been stuck, in seconds; None while it is healthy."""
        idle = now - self._moved_at
        grown = self._lag is not None and self._lag_then is not None and self._lag > self._lag_then
        return idle if grown and idle >= self._unhealthy_seconds else None


class Exporter:
    """Serves the tail's progress over HTTP, and passes everything on to another observer."""

    def __init__(self, options: MetricsOptions, slot_name: str, observer: Observer, watch: WalPositionPoller) -> None:
        """Start to listen.

        Raises:
            UsageError: the port is in use or not permitted.
        """
        self.counts: KinesisCounts | None = None
        self._observer = observer
        self._slot_name = slot_name
        self._watch = watch
        self._health = Health(options.unhealthy_seconds)
        self._progress: Progress | None = None
        self._health.observe(0, None, time.monotonic())
        self._lock = threading.Lock()
        self._endpoint = MetricsEndpoint(options.host, options.port, self, self._healthz)
        watch.start()
        observer.note(f"metrics: {self._endpoint.address}, and /healthz")

    def note(self, text: str) -> None:
        """Pass a note on."""
        self._observer.note(text)

    def warn(self, text: str) -> None:
        """Pass a warning on."""
        self._observer.warn(text)

    def progress(self, progress: Progress) -> None:
        """Store the progress, and pass it on."""
        self._progress = progress
        self._observer.progress(progress)

    def close(self) -> None:
        """Stop listening, without waiting for requests in progress."""
        self._endpoint.close()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now (a collector of prometheus_client)."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for kind, name, text, value in self._values():
            family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(
                f"rdsrepl_tail_{name}", text, labels=["slot"]
            )
            family.add_metric([self._slot_name], float(value))
            yield family

    def _values(self) -> Iterator[tuple[str, str, str, float]]:
        now = self._progress
        if now is not None:
            yield "counter", "changes", "Changes received.", now.changes
            yield "counter", "received_bytes", "Bytes received from the server.", now.received_bytes
            yield "counter", "reconnects", "Reconnections.", now.reconnects
            yield "gauge", "connected", "Whether the slot is being streamed (1) or not (0).", now.connected
            yield "gauge", "received_lsn", "Position up to which the server has sent, in bytes.", now.received_lsn
            yield "gauge", "confirmed_lsn", "Position confirmed to the server, in bytes.", now.confirmed_lsn
            yield "gauge", "pending_bytes", "Bytes received and not yet acknowledged, in memory.", now.pending_bytes
            yield (
                "gauge",
                "oldest_undelivered_seconds",
                "Age of the oldest received change that is not yet acknowledged.",
                now.oldest_undelivered_seconds,
            )
            lag = self._watch.lag_bytes(now.confirmed_lsn)
            if lag is not None:
                yield "gauge", "lag_bytes", "WAL on the server that is not yet confirmed.", lag
            yield "gauge", "timeline", "Timeline of the server.", now.timeline
            yield "counter", "undone_changes", "Changes delivered that a failover has undone.", now.undone_changes
            if now.gate is not None:
                yield "gauge", "held_bytes", "Bytes held back until the standby has replayed them.", now.gate.held_bytes
                yield "gauge", "standby_connected", "Whether the standby answers (1) or not (0).", now.gate.is_connected
                yield "gauge", "standby_lsn", "Position that the standby has replayed, in bytes.", now.gate.replayed_lsn
        if self.counts is not None:
            yield "counter", "records", "Changes acknowledged by Kinesis.", self.counts.records
            yield "counter", "requests", "PutRecords requests.", self.counts.requests
            yield "counter", "retries", "Changes sent again to Kinesis.", self.counts.retries
            yield "counter", "throttles", "Changes throttled by Kinesis.", self.counts.throttles
            yield "counter", "dead_letters", "Changes written to the dead-letter file.", self.counts.dead_letters
        yield "gauge", "healthy", "Whether /healthz returns 200 (1) or 503 (0).", self._stuck_seconds() is None

    def _stuck_seconds(self) -> float | None:
        with self._lock:
            now, progress = time.monotonic(), self._progress
            if progress is not None:
                self._health.observe(progress.confirmed_lsn, self._watch.lag_bytes(progress.confirmed_lsn), now)
            return self._health.stuck_seconds(now)

    def _healthz(self) -> tuple[bool, Mapping[str, object]]:
        stuck = self._stuck_seconds()
        progress = self._progress
        document = {
            "healthy": stuck is None,
            "slot": self._slot_name,
            "confirmed_lsn": None if progress is None else str(progress.confirmed_lsn),
            "lag_bytes": None if progress is None else self._watch.lag_bytes(progress.confirmed_lsn),
            "stuck_seconds": None if stuck is None else round(stuck, 1),
        }
        return stuck is None, document
