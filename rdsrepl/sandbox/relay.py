"""The endpoints of the sandbox: a process that relays connections to the current writer, a reader or an instance.

The address of an endpoint stays the same while servers restart or change roles, because the relay reads the state for
every new connection. It listens on the endpoints that the state names and closes all others.

The relay decodes only the first packet of a connection. A role that opens a logical replication connection has the
``REPLICATION`` attribute during its authentication (``replication_grants.py``).

``up`` runs it as ``python -m rdsrepl.sandbox.relay DIRECTORY``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rdsrepl.sandbox.directory import SandboxDirectory, StateReader
from rdsrepl.sandbox.replication_grants import GrantedRole, ReplicationGrants
from rdsrepl.sandbox.servers import processes
from rdsrepl.sandbox.servers.postgres_server import HOST, PORTS, READER_HOST
from rdsrepl.sandbox.state import EndpointState, RelayState, ServerState, State

log = logging.getLogger("rdsrepl.sandbox.relay")

CHUNK_BYTES: Final = 256 * 1024
# The request code of a startup packet (manual, section 55.7).
_SSL_REQUEST: Final = 80877103
_GSS_REQUEST: Final = 80877104
_STARTUP_BYTES: Final = 10_000
_HANDSHAKE_SECONDS: Final = 60.0
# A client that reads slowly has this long to receive the last messages of the server.
_CLOSE_SECONDS: Final = 30.0
# How often the state is read for new endpoints.
_POLL_SECONDS: Final = 0.1
_REVOKE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class StartupPacket:
    """The first packet of a client.

    Attributes:
        packet: the bytes, with the length.
        code: the protocol version or request code.
        user: the role that logs in.
        logical: whether it is a logical replication connection.
    """

    packet: bytes
    code: int
    user: str = ""
    logical: bool = False

    @classmethod
    def parse(cls, packet: bytes) -> StartupPacket:
        """Parse a packet that starts with its length."""
        code = int.from_bytes(packet[4:8], "big")
        if code >> 16 != 3:
            return cls(packet, code)
        words = packet[8:].split(b"\0")
        pairs = dict(zip(words[::2], words[1::2], strict=False))
        user = pairs.get(b"user", b"").decode(errors="surrogateescape")
        return cls(packet, code, user, pairs.get(b"replication") == b"database")


class AuthenticationEnd:
    """Finds the message of a server that ends the authentication: ReadyForQuery or an error."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> bool:
        """Read the next bytes; return whether the message has started."""
        self._rest += data
        while len(self._rest) >= 5:
            if self._rest[0] in b"ZE":
                return True
            end = 1 + int.from_bytes(self._rest[1:5], "big")
            if len(self._rest) < end:
                break
            del self._rest[:end]
        return False


@dataclass(slots=True)
class _Listener:
    """An open endpoint and the connections through it."""

    server: asyncio.Server | None
    port: int
    tasks: set[asyncio.Task[None]]

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Relay:
    """Listens on all endpoints and relays their connections."""

    def __init__(self, directory: SandboxDirectory) -> None:
        self._directory = directory
        self._grants = ReplicationGrants(directory)
        self._listeners: dict[str, _Listener] = {}
        self._states = StateReader(directory)

    async def run(self) -> None:
        """Listen until SIGTERM, or until the sandbox is removed."""
        if self._states.read() is None:
            raise SystemExit(f"no sandbox in {self._directory.path}")
        self._grants.load()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        last_revoke = 0.0
        written: dict[str, int] | None = None
        while not stop.is_set() and self._directory.state_file.exists():
            await self._update_listeners(self._states.read())
            ports = {key: listener.port for key, listener in self._listeners.items()}
            if ports != written:
                own = RelayState(os.getpid(), processes.start_time(os.getpid()) or "", ports)
                self._directory.save(self._directory.endpoint_file, asdict(own))
                log.info("listening: %s", ", ".join(f"{key} {port}" for key, port in ports.items()) or "nowhere")
                written = ports
            if loop.time() > last_revoke + _REVOKE_SECONDS:
                await self._grants.revoke_leftovers()
                last_revoke = loop.time()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _POLL_SECONDS)
        for listener in self._listeners.values():
            await listener.close()
        await self._grants.revoke_leftovers()
        log.info("stopped")

    async def _update_listeners(self, state: State | None) -> None:
        """Listen on the endpoints that the state names, and close all others."""
        wanted = {endpoint.key: endpoint for endpoint in state.endpoints} if state is not None else {}
        for key in self._listeners.keys() - wanted.keys():
            await self._listeners.pop(key).close()
        # In reverse order, so that a writer has its port before the reader-host that uses the same port.
        for key in sorted(wanted.keys() - self._listeners.keys(), reverse=True):
            self._listeners[key] = await self._listen(wanted[key])

    async def _listen(self, endpoint: EndpointState) -> _Listener:
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(endpoint, reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        if endpoint.kind == "reader-host":
            writer = self._listeners.get(EndpointState("writer", endpoint.of).key)
            with suppress(OSError):
                if writer is not None:
                    server = await asyncio.start_server(connected, READER_HOST, writer.port, limit=CHUNK_BYTES)
                    return _Listener(server, writer.port, tasks)
            return _Listener(None, 0, tasks)
        # The previous port when it is still free, else any port.
        for port in [*([endpoint.port] if endpoint.port else []), *random.sample(PORTS, 200)]:
            with suppress(OSError):
                server = await asyncio.start_server(connected, HOST, port, limit=CHUNK_BYTES, backlog=512)
                return _Listener(server, port, tasks)
        raise SystemExit(f"no free port on {HOST}")

    def _backend(self, endpoint: EndpointState) -> ServerState | None:
        state = self._states.read()
        servers = state.backends(endpoint) if state is not None else ()
        return random.choice(servers) if servers else None

    async def _serve(self, endpoint: EndpointState, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                startup = await _startup(reader, writer)
            if startup is not None:
                await self._relay(endpoint, startup, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        except Exception:
            log.exception("a connection to %s failed", endpoint.key)
        finally:
            await _close(writer)

    async def _relay(
        self,
        endpoint: EndpointState,
        startup: StartupPacket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        backend = self._backend(endpoint)
        if backend is None or backend.port == 0:
            writer.write(_error_response(f"no server is available for the endpoint {endpoint.key}"))
            return
        granted = await self._grants.grant(startup.user, backend) if startup.logical else None
        try:
            try:
                server_reader, server_writer = await asyncio.open_connection(HOST, backend.port, limit=CHUNK_BYTES)
            except OSError:
                writer.write(_error_response("the database system is not yet accepting connections"))
                return
            try:
                server_writer.write(startup.packet)
                if granted is not None:
                    granted_role, granted = granted, None
                    await self._authenticate(granted_role, reader, writer, server_reader, server_writer)
                await _relay_both_ways(reader, writer, server_reader, server_writer)
            finally:
                await _close(server_writer)
        finally:
            if granted is not None:
                await self._grants.revoke(granted)

    async def _authenticate(
        self,
        granted_role: GrantedRole,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        """Relay the authentication; revoke the attribute before the client gets the result."""
        end = AuthenticationEnd()
        to_server = asyncio.create_task(_forward(reader, server_writer))
        data = b""
        try:
            while data := await server_reader.read(CHUNK_BYTES):
                if end.feed(data):
                    break
                writer.write(data)
                await writer.drain()
        finally:
            # Cancelling loses no data: the task writes what it read, and is cancelled only while it waits for more.
            to_server.cancel()
            await asyncio.gather(to_server, return_exceptions=True)
            await self._grants.revoke(granted_role)
        writer.write(data)


async def _startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> StartupPacket | None:
    """Read the first packet that is not an encryption request; those are declined."""
    while True:
        head = await reader.readexactly(4)
        length = int.from_bytes(head, "big")
        if not 8 <= length <= _STARTUP_BYTES:
            return None  # not a PostgreSQL client, or one that starts with TLS
        startup = StartupPacket.parse(head + await reader.readexactly(length - 4))
        if startup.code not in (_SSL_REQUEST, _GSS_REQUEST):
            return startup
        writer.write(b"N")
        await writer.drain()


async def _relay_both_ways(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    server_reader: asyncio.StreamReader,
    server_writer: asyncio.StreamWriter,
) -> None:
    """Relay until the server closes; a client that only closed its sending side still gets the answers."""
    to_server = asyncio.create_task(_forward(reader, server_writer))
    to_client = asyncio.create_task(_forward(server_reader, writer))
    try:
        await asyncio.wait((to_server, to_client), return_when=asyncio.FIRST_COMPLETED)
        if not to_client.done():
            if to_server.exception() is None:
                server_writer.write_eof()
                await to_client
            else:
                # The client disconnected; the server gets a reset, as without a relay.
                server_writer.transport.abort()
    finally:
        for task in (to_server, to_client):
            task.cancel()
        await asyncio.gather(to_server, to_client, return_exceptions=True)


async def _forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK_BYTES):
        sink.write(data)
        await sink.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close a connection; discard what the other side does not read in time."""
    writer.close()
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await writer.wait_closed()
    except OSError:
        writer.transport.abort()


def _error_response(text: str) -> bytes:
    """Return an ErrorResponse: FATAL, cannot_connect_now."""
    fields = b"".join(
        kind + value.encode() + b"\0"
        for kind, value in ((b"S", "FATAL"), (b"V", "FATAL"), (b"C", "57P03"), (b"M", text))
    )
    return b"E" + (len(fields) + 5).to_bytes(4, "big") + fields + b"\0"


def main() -> None:
    """Relay for the sandbox whose directory is the only argument."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    # An error now is better than one at the first replication connection.
    import psycopg  # noqa: F401

    asyncio.run(Relay(SandboxDirectory(Path(sys.argv[1]))).run())


if __name__ == "__main__":
    main()
