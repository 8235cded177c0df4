"""The tail's metrics for Prometheus, and a health check, over HTTP.

``/metrics`` is in Prometheus's exposition format; ``/healthz`` is 200, or 503 when nothing was confirmed for some time
while the lag grew. Threads answer the requests; the tail only stores its last progress here, and never waits for a
client.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.errors import UsageError

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.core import Metric

    from rdsrepl.tail.progress import Observer, Progress
    from rdsrepl.tail.sinks.kinesis import KinesisCounts
    from rdsrepl.tail.wal_position import WalPositionPoller

# The time limit for receiving a request, and for sending its answer.
_REQUEST_SECONDS: Final = 5.0
_MAX_REQUEST_BYTES: Final = 64 << 10
_MAX_CONNECTIONS: Final = 32
Start = Callable[[str, list[tuple[str, str]]], object]


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
        try:
            self._server = _server(options.host, options.port, self._application())
        except OSError as exc:
            raise UsageError(
                f"--metrics-port {options.port}: could not listen on {options.host}: {exc.strerror or exc}",
                hint="choose another port, or stop the process that uses it",
            ) from exc
        watch.start()
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()
        observer.note(f"metrics: http://{options.host}:{self._server.server_port}/metrics, and /healthz")

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
        self._server.shutdown()
        self._server.server_close()

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

    def _application(self) -> Callable[[dict[str, Any], Start], Iterable[bytes]]:
        from prometheus_client import CollectorRegistry, make_wsgi_app

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        metrics = make_wsgi_app(registry)

        def answer(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
            if environ["PATH_INFO"] == "/healthz":
                return self._healthz(start)
            if environ["PATH_INFO"] == "/metrics":
                return metrics(environ, start)  # type: ignore[no-any-return]
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"not found; the paths are /metrics and /healthz\n"]

        return answer

    def _healthz(self, start: Start) -> Iterable[bytes]:
        stuck = self._stuck_seconds()
        progress = self._progress
        document = {
            "healthy": stuck is None,
            "slot": self._slot_name,
            "confirmed_lsn": None if progress is None else str(progress.confirmed_lsn),
            "lag_bytes": None if progress is None else self._watch.lag_bytes(progress.confirmed_lsn),
            "stuck_seconds": None if stuck is None else round(stuck, 1),
        }
        start("200 OK" if stuck is None else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [json.dumps(document).encode() + b"\n"]


def _server(host: str, port: int, application: Callable[[dict[str, Any], Start], Iterable[bytes]]) -> WSGIServer:
    """Return a server with a thread and limits for each connection; if there are too many, the oldest ends."""
    from socketserver import TCPServer, ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    class Handler(WSGIRequestHandler):
        timeout = _REQUEST_SECONDS

        def setup(self) -> None:
            super().setup()
            head = _head(self.connection)
            self.is_too_large = len(head) > _MAX_REQUEST_BYTES
            self.rfile = io.BufferedReader(io.BytesIO(head))

        def handle(self) -> None:
            if self.is_too_large:
                self.requestline, self.request_version, self.command = "", "HTTP/1.0", ""
                self.send_error(431)
            else:
                super().handle()

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def get_stderr(self) -> Any:
            return io.StringIO()

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = _MAX_CONNECTIONS

        def server_bind(self) -> None:
            # Not HTTPServer's: it resolves our own host name, which may take long without a DNS server.
            TCPServer.server_bind(self)
            self.socket.setblocking(False)  # do not wait for a client that disconnected before it was accepted
            self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
            self.setup_environ()
            self.connections: dict[int, socket.socket] = {}
            self.lock = threading.Lock()

        def process_request(self, request: Any, client_address: Any) -> None:
            with self.lock:
                if len(self.connections) >= _MAX_CONNECTIONS:
                    oldest = self.connections.pop(next(iter(self.connections)))
                    with contextlib.suppress(OSError):
                        oldest.shutdown(socket.SHUT_RDWR)
                self.connections[id(request)] = request
            super().process_request(request, client_address)

        def shutdown_request(self, request: Any) -> None:
            with self.lock:
                self.connections.pop(id(request), None)
            super().shutdown_request(request)

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # the client was too slow, or disconnected

    return make_server(host, port, application, Server, Handler)


def _head(connection: socket.socket) -> bytes:
    """Return a request up to the end of its head, or a little more than the size limit.

    Raises:
        TimeoutError: it was not complete in time.
    """
    deadline = time.monotonic() + _REQUEST_SECONDS
    head = b""
    while b"\n\r\n" not in head and b"\n\n" not in head and len(head) <= _MAX_REQUEST_BYTES:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(8192)
        if not piece:
            break
        head += piece
    connection.settimeout(_REQUEST_SECONDS)
    return head
