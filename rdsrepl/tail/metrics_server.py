"""Serve ``/metrics``, in the exposition format of Prometheus, and ``/healthz`` over HTTP.

Threads answer the requests, with limits for each connection; the service never waits for a client.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.errors import UsageError

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.registry import Collector

# The time limit for receiving a request, and for sending its answer.
_REQUEST_SECONDS: Final = 5.0
_MAX_REQUEST_BYTES: Final = 64 << 10
_MAX_CONNECTIONS: Final = 32
_Start = Callable[[str, list[tuple[str, str]]], object]
_Application = Callable[[dict[str, Any], _Start], Iterable[bytes]]


class MetricsEndpoint:
    """Listens until it is closed.

    Attributes:
        address: where the metrics are: ``http://127.0.0.1:9187/metrics``.
    """

    def __init__(
        self, host: str, port: int, collector: Collector, health: Callable[[], tuple[bool, Mapping[str, object]]]
    ) -> None:
        """Start to listen.

        Args:
            host: the address.
            port: the port; 0 takes a free one.
            collector: returns the metrics as they are when a client asks.
            health: returns whether ``/healthz`` answers 200 or 503, and its document.

        Raises:
            UsageError: the port is in use or not permitted.
        """
        try:
            self._server = _server(host, port, _application(collector, health))
        except OSError as exc:
            raise UsageError(
                f"--metrics-port {port}: could not listen on {host}: {exc.strerror or exc}",
                hint="choose another port, or stop the process that uses it",
            ) from exc
        self.address = f"http://{host}:{self._server.server_port}/metrics"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()

    def close(self) -> None:
        """Stop listening, without waiting for requests in progress."""
        self._server.shutdown()
        self._server.server_close()


def _application(collector: Collector, health: Callable[[], tuple[bool, Mapping[str, object]]]) -> _Application:
    from prometheus_client import CollectorRegistry, make_wsgi_app

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/healthz":
            is_healthy, document = health()
            start("200 OK" if is_healthy else "503 Service Unavailable", [("Content-Type", "application/json")])
            return [json.dumps(document).encode() + b"\n"]
        if environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start)  # type: ignore[no-any-return]
        start("404 Not Found", [("Content-Type", "text/plain")])
        return [b"not found; the paths are /metrics and /healthz\n"]

    return answer


def _server(host: str, port: int, application: _Application) -> WSGIServer:
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
