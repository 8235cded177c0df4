"""The tail's metrics for Prometheus, and a health check, over HTTP.

``/metrics`` in the exposition format; ``/healthz`` is 200, or 503 when nothing was confirmed for a while although the
lag grew. Threads answer; the tail only leaves its last progress here, and never waits for whoever asks.
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

# A request must have come, and its answer must have been taken, within this time.
_REQUEST_SECONDS: Final = 5.0
_LARGEST_REQUEST: Final = 64 << 10
_MOST_CONNECTIONS: Final = 32
Start = Callable[[str, list[tuple[str, str]]], object]


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """Where metrics are served, and after how long without a confirmation the tail is unhealthy."""

    port: int
    host: str = "127.0.0.1"
    unhealthy_seconds: float = 300.0


class Health:
    """Whether the tail gets on. Pure: time is passed in.

    It is unhealthy when the confirmed position has not moved for a while and the lag is larger than when it last did.
    A server that cannot be asked says nothing about the lag: an outage is no fault of the tail.
    """

    def __init__(self, unhealthy_seconds: float) -> None:
        self._unhealthy_seconds = unhealthy_seconds
        self._confirmed_lsn = -1
        self._moved_at = 0.0
        self._lag_then: int | None = None
        self._lag: int | None = None

    def observe(self, confirmed_lsn: int, lag_bytes: int | None, now: float) -> None:
        """Take a measure."""
        if confirmed_lsn != self._confirmed_lsn:
            self._confirmed_lsn, self._moved_at, self._lag_then = confirmed_lsn, now, lag_bytes
        if lag_bytes is not None:
            self._lag = lag_bytes
            if self._lag_then is None:
                self._lag_then = lag_bytes

    def stuck_seconds(self, now: float) -> float | None:
        """Return for how long it has been stuck, in seconds; None while it is healthy."""
        idle = now - self._moved_at
        grown = self._lag is not None and self._lag_then is not None and self._lag > self._lag_then
        return idle if grown and idle >= self._unhealthy_seconds else None


class Exporter:
    """Passes on what the tail tells, and shows it to whoever asks over HTTP."""

    def __init__(self, options: MetricsOptions, slot_name: str, observer: Observer, watch: WalPositionPoller) -> None:
        """Begin to answer.

        Raises:
            UsageError: the port is taken, or not ours to take.
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
                f"--metrics-port {options.port}: cannot listen on {options.host}: {exc.strerror or exc}",
                hint="choose another port, or stop what listens there",
            ) from exc
        watch.begin()
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()
        observer.note(f"metrics: http://{options.host}:{self._server.server_port}/metrics, and /healthz")

    def note(self, text: str) -> None:
        """Pass a word on."""
        self._observer.note(text)

    def warn(self, text: str) -> None:
        """Pass a warning on."""
        self._observer.warn(text)

    def progress(self, progress: Progress) -> None:
        """Keep the last progress, and pass it on."""
        self._progress = progress
        self._observer.progress(progress)

    def close(self) -> None:
        """Answer no more; whoever is being answered is not waited for."""
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
            yield "counter", "reconnects", "Connections made anew.", now.reconnects
            yield "gauge", "connected", "Whether the slot is being streamed (1) or not (0).", now.connected
            yield "gauge", "received_lsn", "How far the server has sent, as a number of bytes.", now.received_lsn
            yield "gauge", "confirmed_lsn", "What was confirmed to the server, as a number of bytes.", now.confirmed_lsn
            yield "gauge", "pending_bytes", "What was received and is not acknowledged, in memory.", now.pending_bytes
            yield (
                "gauge",
                "oldest_undelivered_seconds",
                "For how long the oldest change that was received has waited to be acknowledged.",
                now.oldest_undelivered_seconds,
            )
            lag = self._watch.lag_bytes(now.confirmed_lsn)
            if lag is not None:
                yield "gauge", "lag_bytes", "WAL of the server that is not confirmed.", lag
        if self.counts is not None:
            yield "counter", "records", "Changes acknowledged by Kinesis.", self.counts.records
            yield "counter", "requests", "PutRecords requests.", self.counts.requests
            yield "counter", "retries", "Changes sent again.", self.counts.retries
            yield "counter", "throttles", "Changes for which the stream had no room.", self.counts.throttles
            yield "counter", "dead_letters", "Changes that went to the dead letter file.", self.counts.dead_letters
        yield "gauge", "healthy", "Whether /healthz says so.", self._stuck_seconds() is None

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
            return [b"/metrics and /healthz are here\n"]

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
    """Return a server that gives each connection a thread, a time and a size; of too many it ends the oldest."""
    from socketserver import TCPServer, ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    class Handler(WSGIRequestHandler):
        timeout = _REQUEST_SECONDS

        def setup(self) -> None:
            super().setup()
            head = _head(self.connection)
            self.is_too_large = len(head) > _LARGEST_REQUEST
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
        request_queue_size = _MOST_CONNECTIONS

        def server_bind(self) -> None:
            # Not HTTPServer's: that asks the resolver for our own name, which may take long where there is none.
            TCPServer.server_bind(self)
            self.socket.setblocking(False)  # who hung up before being accepted must not be waited for
            self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
            self.setup_environ()
            self.connections: dict[int, socket.socket] = {}
            self.lock = threading.Lock()

        def process_request(self, request: Any, client_address: Any) -> None:
            with self.lock:
                if len(self.connections) >= _MOST_CONNECTIONS:
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
            pass  # who was too slow, or went away

    return make_server(host, port, application, Server, Handler)


def _head(connection: socket.socket) -> bytes:
    """Return a request up to the end of its head, or a little more than the largest that is read.

    Raises:
        TimeoutError: it has not come in time, however it trickles in.
    """
    deadline = time.monotonic() + _REQUEST_SECONDS
    head = b""
    while b"\n\r\n" not in head and b"\n\n" not in head and len(head) <= _LARGEST_REQUEST:
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
