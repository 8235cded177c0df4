"""The HTTP server: it answers requests to RDS itself and passes those to other services to moto.

All services have the same address; the signature of a request names its service. ``/_sandbox/faults`` sets the rules of
``fault_injection``: ``POST`` adds, ``GET`` shows, ``DELETE`` clears. ``POST /_sandbox/NAME`` runs an action for tests.

Every local user, and every page in a local browser, can connect. So every request must be signed with the credentials
of the sandbox and must have this address as its host, also those to ``/_sandbox/``.
"""

from __future__ import annotations

import json
import logging
import random
import socketserver
import sys
import threading
import uuid
from contextlib import suppress
from datetime import UTC
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote_to_bytes

from rdsrepl.errors import Error
from rdsrepl.sandbox.api import query_protocol, signatures
from rdsrepl.sandbox.api.api_errors import Fault, fault
from rdsrepl.sandbox.api.fault_injection import FaultRules
from rdsrepl.sandbox.api.kinesis_shards import reshard_like_aws
from rdsrepl.sandbox.api.parameter_groups import ParameterGroups
from rdsrepl.sandbox.api.request import DENIED, EXPIRED, Call
from rdsrepl.sandbox.api.service import Service, dispatch
from rdsrepl.sandbox.api.signatures import SignedRequest, SigningKey
from rdsrepl.sandbox.api.store import Store
from rdsrepl.sandbox.credentials import Credentials
from rdsrepl.sandbox.servers.postgres_server import HOST, PORTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

log = logging.getLogger("rdsrepl.sandbox.api")

# A request to Kinesis has up to 10 MiB, and a third more in base64.
_MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_SANDBOX_PATH: Final = "/_sandbox/"
_FAULTS_PATH: Final = f"{_SANDBOX_PATH}faults"
# Paths that the moto server answers without a signature: its own controls and the instance metadata.
_BLOCKED_PATHS: Final = ("/moto-api", "/favicon.ico", "/latest/meta-data", "/latest/api")


class Hooks(Protocol):
    """What the server calls besides the operations."""

    def before_request(self, service: str) -> None:
        """Prepare for a request to a service other than RDS."""

    def run_test_action(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Run the action that was posted to ``/_sandbox/NAME``.

        Raises:
            Error: the action failed.
        """


class MotoServices:
    """The services of moto."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: Callable[..., Iterable[bytes]] | None = None

    def answer(self, environ: dict[str, Any]) -> tuple[int, list[tuple[str, str]], bytes]:
        """Answer a request: return the status, headers and body.

        Raises:
            Fault: moto is not installed.
        """
        status: list[int] = []
        headers: list[tuple[str, str]] = []

        def start(line: str, given: list[tuple[str, str]], *_: Any) -> Any:
            status.append(int(line.split(" ", 1)[0]))
            headers.extend(given)

        made = self._app()(environ, start)
        try:
            body = b"".join(made)
        finally:
            if close := getattr(made, "close", None):
                close()
        return status[-1], headers, body

    def session(self, access_key: str) -> SigningKey | None:
        """Return the signing key of an assumed role's access key; None when STS did not issue the access key."""
        with self._lock:
            if self._made is None:
                return None
        from moto.backends import get_backend

        for partitions in get_backend("sts").values():
            for backend in partitions.values():
                for role in backend.assumed_roles:
                    if role.access_key_id == access_key:
                        expires = role.expiration.replace(tzinfo=UTC)
                        return SigningKey(role.secret_access_key, role.session_token, expires)
        return None

    def _app(self) -> Callable[..., Iterable[bytes]]:
        # Loaded at the first request, because it takes time that requests to RDS should not wait for.
        with self._lock:
            if self._made is None:
                try:
                    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
                except ImportError as exc:
                    message = "This service needs moto: pip install 'rdsrepl[sandbox]'"
                    raise fault("NotImplemented", message) from exc
                reshard_like_aws()
                made: Callable[..., Iterable[bytes]] = DomainDispatcherApplication(create_backend_app)
                self._made = made
            return self._made


class ApiServer(socketserver.ThreadingTCPServer):
    """Serves the AWS API of one sandbox, each connection in a thread."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def __init__(self, service: Service, credentials: Credentials, port: int = 0, hooks: Hooks | None = None) -> None:
        """Bind to PORT if it is free, else to another port.

        Args:
            service: RDS in the region of the sandbox.
            credentials: sign all requests.
            port: the previous port, or 0.
            hooks: called besides the operations.

        Raises:
            OSError: no port is free.
        """
        self.hooks = hooks
        self.fault_rules = FaultRules()
        self.moto = MotoServices()
        self._credentials = credentials
        self._services = {service.region: service}
        self._lock = threading.Lock()
        candidates = [*([port] if port else []), *random.sample(PORTS, 200)]
        for candidate in candidates:
            with suppress(OSError):
                super().__init__((HOST, candidate), RequestHandler)
                return
        raise OSError(f"no free port on {HOST}")

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return int(self.server_address[1])

    def service(self, region: str) -> Service:
        """Return RDS in a region; outside the region of the sandbox it has no servers and does not save its records."""
        with self._lock:
            if region not in self._services:
                store = Store(None)
                self._services[region] = Service(store, ParameterGroups(store), region=region)
            return self._services[region]

    def secret(self, access_key: str) -> SigningKey | None:
        """Return the signing key of an access key; None when the access key is not known."""
        # Access keys that are always refused have the same secret key.
        if access_key == self._credentials.access_key or access_key.startswith((DENIED, EXPIRED)):
            return SigningKey(self._credentials.secret_key)
        return self.moto.session(access_key)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's
        """Log why a connection failed, unless the client disconnected."""
        if not isinstance(sys.exc_info()[1], OSError):
            log.exception("a connection failed")


class RequestHandler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    # Without these two settings a response is sent in two packets, and the second one waits for an acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: ApiServer

    def handle_one_request(self) -> None:
        """Read one request and answer it."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline:
            self.close_connection = True
            return
        if len(self.raw_requestline) > 65536:
            self.requestline = self.request_version = self.command = ""
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
            return
        if self.parse_request():
            self._answer()
            self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: it would be a line for each request."""

    def _answer(self) -> None:
        body = self._body()
        if body is None:
            return
        # A web page whose host name resolves to this address (DNS rebinding) sends that name.
        hosts = [f"{name}:{self.server.port}" for name in (HOST, "localhost")]
        if [host.lower() for host in self.headers.get_all("Host", [])] not in [[host] for host in hosts]:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
        environ = self._environ(body)
        if not self.path.startswith("/") or environ["PATH_INFO"].startswith(_BLOCKED_PATHS):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        call = Call.read({name.lower(): value for name, value in self.headers.items()}, body)
        request_id = str(uuid.uuid4())
        signed = SignedRequest(self.command, self.path, self.headers.items(), body)
        try:
            if refused := signatures.refusal(signed, call, self.server.secret) or call.refusal():
                raise refused
            if self.path.startswith(_SANDBOX_PATH):
                if self.path.partition("?")[0] == _FAULTS_PATH:
                    self._faults(body)
                else:
                    self._act(self.path.removeprefix(_SANDBOX_PATH), body)
                return
            if refused := self.server.fault_rules.take(call):
                raise refused
            if call.service == "rds":
                request = query_protocol.read(body)
                answer = dispatch(self.server.service(call.region), request)
                text = query_protocol.write(request.operation, answer, request_id)
                self._send(200, [("Content-Type", query_protocol.CONTENT_TYPE), ("x-amzn-RequestId", request_id)], text)
            else:
                if self.server.hooks is not None:
                    self.server.hooks.before_request(call.service)
                self._send(*self.server.moto.answer(environ))
        except Fault as exc:
            self._refuse(call, exc, request_id)
        except OSError:
            raise
        except Exception:
            log.exception("%s %s failed", call.service, call.operation)
            self._refuse(call, fault("InternalFailure", "The sandbox failed; the reason is in its log."), request_id)

    def _refuse(self, call: Call, error: Fault, request_id: str) -> None:
        content_type, text = call.error_response(error, request_id)
        self._send(error.status, [("Content-Type", content_type), ("x-amzn-RequestId", request_id)], text)

    def _faults(self, body: bytes) -> None:
        injection = self.server.fault_rules
        try:
            if self.command == "POST":
                injection.add(json.loads(body))
            elif self.command == "DELETE":
                injection.clear()
            elif self.command != "GET":
                raise ValueError(f"{self.command} is not supported")
            status, answer = 200, json.dumps(injection.rules())
        except (ValueError, TypeError) as exc:
            status, answer = 400, json.dumps({"message": str(exc)})
        self._send(status, [("Content-Type", "application/json")], answer.encode() + b"\n")

    def _act(self, name: str, body: bytes) -> None:
        try:
            if self.server.hooks is None or self.command != "POST":
                raise ValueError(f"{self.command} {self.path} is not supported")
            status, answer = 200, json.dumps(self.server.hooks.run_test_action(name, json.loads(body or b"{}")))
        except (ValueError, TypeError, AttributeError, Error) as exc:
            status, answer = 400, json.dumps({"message": str(exc)})
        self._send(status, [("Content-Type", "application/json")], answer.encode() + b"\n")

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
            return None
        if len(length) > len(str(_MAX_BODY_BYTES)) or int(length) > _MAX_BODY_BYTES:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return None
        return self.rfile.read(int(length))

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _environ(self, body: bytes) -> dict[str, Any]:
        path, _, query = self.path.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "REQUEST_URI": self.path,
            "RAW_URI": self.path,
            "REMOTE_ADDR": HOST,
            "SERVER_NAME": HOST,
            "SERVER_PORT": str(self.server.port),
            "SERVER_PROTOCOL": self.request_version,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body),
            "wsgi.errors": _LogStream(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in self.headers.items():
            key = "HTTP_" + name.upper().replace("-", "_")
            if key not in ("HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"):
                environ[key] = f"{environ[key]},{value}" if key in environ else value
        return environ


class _LogStream:
    """Logs the errors of moto."""

    def write(self, text: str) -> int:
        """Log a text."""
        if text.strip():
            log.warning("%s", text.rstrip())
        return len(text)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""
