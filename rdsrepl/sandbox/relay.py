"""The sandbox's stable endpoints: a process that relays connections to whichever server is the writer, or a reader.

Clients keep their address while servers restart, move or change roles: each new connection reads the state file anew.
Endpoints that the state names are listened on within a moment, those that it no longer names are closed. Nothing is
decoded, but the first packet: a replication connection of a member of ``rds_replication`` gets the ``REPLICATION``
attribute, on which plain PostgreSQL insists, on loan from before its authentication until just after, so that
``rolreplication`` is false on either side of that moment, as it is on RDS.

Run as ``python -m rdsrepl.sandbox.relay DIRECTORY``, by ``up``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.sandbox.servers import processes
from rdsrepl.sandbox.servers.postgres_server import ADMIN_OPTIONS, HOST, PORTS, READER_HOST, SUPERUSER, peer
from rdsrepl.sandbox.state import Directory, EndpointState, RelayState, ServerState, State

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.AsyncConnection[tuple[Any, ...]]

log = logging.getLogger("rdsrepl.sandbox.relay")

CHUNK_BYTES: Final = 256 * 1024
# What a start-up packet's second word says (manual, section 55.7).
_SSL_REQUEST: Final = 80877103
_GSS_REQUEST: Final = 80877104
_CANCEL_REQUEST: Final = 80877102
_STARTUP_BYTES: Final = 10_000
_HANDSHAKE_SECONDS: Final = 60.0
_ADMIN_SECONDS: Final = 5
_REPLAY_SECONDS: Final = 15.0
# A client that reads slowly shall still get a server's last words.
_CLOSE_SECONDS: Final = 30.0
# How late a new endpoint may be listened on.
_LOOK_SECONDS: Final = 0.05
_SETTLE_SECONDS: Final = 1.0

_MAY: Final = """
    SELECT rolreplication OR rolsuper, EXISTS (
        SELECT FROM pg_catalog.pg_roles AS r
         WHERE r.rolname = 'rds_replication' AND pg_has_role(u.oid, r.oid, 'MEMBER'))
    FROM pg_catalog.pg_roles AS u WHERE u.rolname = %s
"""


@dataclass(frozen=True, slots=True)
class Startup:
    """A client's first packet: as it came, and what matters in it."""

    packet: bytes
    code: int
    user: str = ""
    logical: bool = False

    @classmethod
    def parse(cls, packet: bytes) -> Startup:
        """Read the packet, its length word included."""
        code = int.from_bytes(packet[4:8], "big")
        if code >> 16 != 3:
            return cls(packet, code)
        words = packet[8:].split(b"\0")
        pairs = dict(zip(words[::2], words[1::2], strict=False))
        user = pairs.get(b"user", b"").decode(errors="surrogateescape")
        return cls(packet, code, user, pairs.get(b"replication") == b"database")


class AuthenticationEnd:
    """Finds, in what a server sends, the first message that ends the authentication: ready, or an error."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; return whether the message has begun."""
        self._rest += data
        while len(self._rest) >= 5:
            if self._rest[0] in b"ZE":
                return True
            end = 1 + int.from_bytes(self._rest[1:5], "big")
            if len(self._rest) < end:
                break
            del self._rest[:end]
        return False


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """A role of one primary and its standbys (``State.family``)."""

    family: str
    role: str


@dataclass(slots=True)
class Loans:
    """The ``REPLICATION`` attribute, lent to roles while they log in.

    Attributes:
        directory: the sandbox's; a file in it names the roles that hold the attribute on loan, so that one that was
            killed in between gives it back when it starts again.
    """

    directory: Directory
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _holders: dict[Holder, int] = field(default_factory=dict)
    _owed: set[Holder] = field(default_factory=set)
    _lsn: dict[Holder, str] = field(default_factory=dict)

    def load(self) -> None:
        """Read what an earlier process left owing."""
        with suppress(OSError, ValueError, TypeError):
            owed = json.loads(self.directory.lent_file.read_text(encoding="utf-8"))
            self._owed = {Holder(family, role) for family, role in owed}

    async def lend(self, role: str, server: ServerState) -> Holder | None:
        """Lend ROLE the attribute when it may have it; return whom ``give_back`` is due for, None when it did not.

        Args:
            role: the role that logs in.
            server: the one it logs in to; a standby has to learn of it first.
        """
        state = self.directory.read()
        if state is None:
            return None
        holder = Holder(state.family(server), role)
        async with self._lock:
            if not self._holders.get(holder) and not await self._give(holder):
                return None
            self._holders[holder] = self._holders.get(holder, 0) + 1
            lsn = self._lsn[holder]
        if server.source:
            try:
                await self._replayed(server, lsn)
            except BaseException:
                await self.give_back(holder)
                raise
        return holder

    async def give_back(self, holder: Holder) -> None:
        """Take the attribute back when this was the last connection of the role that needed it."""
        async with self._lock:
            self._holders[holder] -= 1
            if self._holders[holder] == 0:
                del self._holders[holder]
                await self._take(holder)

    async def settle(self) -> None:
        """Take back what could not be taken back before: the server was down, or we were killed."""
        if self._owed - self._holders.keys():
            async with self._lock:
                for holder in self._owed - self._holders.keys():
                    await self._take(holder)

    async def _give(self, holder: Holder) -> bool:
        import psycopg
        from psycopg import sql

        try:
            async with self._primary(holder) as conn:
                row = await (await conn.execute(_MAY, [holder.role])).fetchone()
                if row is None or (row[0] and holder not in self._owed) or not row[1]:
                    return False
                self._owed.add(holder)
                self._save()
                await conn.execute(sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(holder.role)))
                where = await (await conn.execute("SELECT pg_current_wal_flush_lsn()::text")).fetchone()
                self._lsn[holder] = where[0] if where is not None else "0/0"
        except (psycopg.Error, OSError, UnicodeError) as exc:
            # The client learns from its own server what is wrong.
            log.warning("could not lend REPLICATION to %r of %s: %s", holder.role, holder.family, exc)
            return False
        return True

    async def _take(self, holder: Holder) -> None:
        import psycopg
        from psycopg import sql

        try:
            async with self._primary(holder) as conn:
                await conn.execute(sql.SQL("ALTER ROLE {} NOREPLICATION").format(sql.Identifier(holder.role)))
        except (psycopg.errors.UndefinedObject, _Gone):
            pass
        except (psycopg.Error, OSError) as exc:
            log.warning("could not take REPLICATION back from %r of %s: %s", holder.role, holder.family, exc)
            return
        self._owed.discard(holder)
        self._save()

    async def _replayed(self, reader: ServerState, lsn: str) -> None:
        import psycopg

        try:
            async with asyncio.timeout(_REPLAY_SECONDS), self._admin(reader) as conn:
                while True:
                    query = "SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= %s::pg_lsn"
                    row = await (await conn.execute(query, [lsn])).fetchone()
                    if row is not None and row[0]:
                        return
                    await asyncio.sleep(0.01)
        except (psycopg.Error, OSError) as exc:  # TimeoutError is an OSError
            log.warning("server %s has not replayed %s: %s", reader.name, lsn, exc or "too far behind")

    def _primary(self, holder: Holder) -> Any:
        state = self.directory.read()
        servers = state.servers if state is not None else ()
        found = [s for s in servers if s.source is None and holder.family in (s.cluster or s.name, s.name)]
        if not found:
            raise _Gone(f"there is no writer in {holder.family}")
        return self._admin(found[0])

    @asynccontextmanager
    async def _admin(self, server: ServerState) -> AsyncIterator[Connection]:
        import psycopg

        state = self.directory.read()
        behind: dict[str, Any] = {**peer(processes.launcher(str(Path(server.bin_dir) / "postgres")))}
        async with await psycopg.AsyncConnection.connect(
            host=state.socket_dir if state is not None else "",
            port=server.port,
            user=SUPERUSER,
            dbname="postgres",
            connect_timeout=_ADMIN_SECONDS,
            application_name="rdsrepl sandbox endpoint",
            options=f"{ADMIN_OPTIONS} -c statement_timeout={_ADMIN_SECONDS}s",
            autocommit=True,
            **behind,
        ) as conn:
            yield conn

    def _save(self) -> None:
        if self._owed:
            self.directory.save(self.directory.lent_file, [[h.family, h.role] for h in sorted(self._owed)])
        else:
            self.directory.lent_file.unlink(missing_ok=True)


class _Gone(OSError):
    """There is no such primary any more."""


@dataclass(slots=True)
class _Listener:
    """One endpoint that is listened on, and the connections through it."""

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
    """All endpoints, and the connections that go through them."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._loans = Loans(directory)
        self._listeners: dict[str, _Listener] = {}
        self._stamp: tuple[int, int] | None = None
        self._state: State | None = None

    async def run(self) -> None:
        """Listen until SIGTERM, or until the sandbox's directory is gone."""
        if self._current() is None:
            raise SystemExit(f"there is no sandbox in {self._directory.path}")
        self._loans.load()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        settled = 0.0
        said: dict[str, int] | None = None
        while not stop.is_set() and self._directory.state_file.exists():
            await self._follow(self._current())
            ports = {key: listener.port for key, listener in self._listeners.items()}
            if ports != said:
                own = RelayState(os.getpid(), processes.started(os.getpid()) or "", ports)
                self._directory.save(self._directory.endpoint_file, asdict(own))
                log.info("listening: %s", ", ".join(f"{key} {port}" for key, port in ports.items()) or "nowhere")
                said = ports
            if loop.time() > settled + _SETTLE_SECONDS:
                await self._loans.settle()
                settled = loop.time()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _LOOK_SECONDS)
        for listener in self._listeners.values():
            await listener.close()
        await self._loans.settle()
        log.info("stopped")

    async def _follow(self, state: State | None) -> None:
        """Listen on the endpoints that the state names, and on no others."""
        wanted = {endpoint.key: endpoint for endpoint in state.endpoints} if state is not None else {}
        for key in self._listeners.keys() - wanted.keys():
            await self._listeners.pop(key).close()
        # The writers' ports have to be known before those that are to have the same.
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
        # The port of before if it is still free, else any.
        for port in [*([endpoint.port] if endpoint.port else []), *random.sample(PORTS, 200)]:
            with suppress(OSError):
                server = await asyncio.start_server(connected, HOST, port, limit=CHUNK_BYTES, backlog=512)
                return _Listener(server, port, tasks)
        raise SystemExit(f"no free port on {HOST}")

    def _current(self) -> State | None:
        """Return the state file's content, read again when it has changed."""
        with suppress(OSError):
            stat = self._directory.state_file.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns)
            if stamp != self._stamp:
                self._state, self._stamp = self._directory.read(), stamp
        return self._state

    def _backend(self, endpoint: EndpointState) -> ServerState | None:
        state = self._current()
        servers = state.backends(endpoint) if state is not None else ()
        return random.choice(servers) if servers else None

    async def _serve(self, endpoint: EndpointState, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one connection from its first byte to its last."""
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                startup = await _startup(reader, writer)
            if startup is not None:
                await self._relay(endpoint, startup, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        except Exception:
            log.exception("a connection to %s broke", endpoint.key)
        finally:
            await _close(writer)

    async def _relay(
        self,
        endpoint: EndpointState,
        startup: Startup,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        backend = self._backend(endpoint)
        if backend is None or backend.port == 0:
            writer.write(_refusal(f"the sandbox has no server behind {endpoint.key} now"))
            return
        lent = await self._loans.lend(startup.user, backend) if startup.logical else None
        try:
            try:
                up_reader, up_writer = await asyncio.open_connection(HOST, backend.port, limit=CHUNK_BYTES)
            except OSError:
                writer.write(_refusal("the database system is not yet accepting connections"))
                return
            try:
                up_writer.write(startup.packet)
                if lent is not None:
                    holder, lent = lent, None
                    await self._authenticate(holder, reader, writer, up_reader, up_writer)
                await _both_ways(reader, writer, up_reader, up_writer)
            finally:
                await _close(up_writer)
        finally:
            if lent is not None:
                await self._loans.give_back(lent)

    async def _authenticate(
        self,
        holder: Holder,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        """Relay until the server has let the client in or not; the loan ends before the client hears of it."""
        end = AuthenticationEnd()
        to_server = asyncio.create_task(_pump(reader, up_writer))
        data = b""
        try:
            while data := await up_reader.read(CHUNK_BYTES):
                if end.feed(data):
                    break
                writer.write(data)
                await writer.drain()
        finally:
            # Nothing is lost: what the task has read it has written, and it only ever waits for more.
            to_server.cancel()
            await asyncio.gather(to_server, return_exceptions=True)
            await self._loans.give_back(holder)
        writer.write(data)


async def _startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Startup | None:
    """Read up to the first packet that is not a question for encryption, which we decline."""
    while True:
        head = await reader.readexactly(4)
        length = int.from_bytes(head, "big")
        if not 8 <= length <= _STARTUP_BYTES:
            return None  # no client of PostgreSQL's, or one that begins with TLS unasked
        startup = Startup.parse(head + await reader.readexactly(length - 4))
        if startup.code not in (_SSL_REQUEST, _GSS_REQUEST):
            return startup
        writer.write(b"N")
        await writer.drain()


async def _both_ways(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    up_reader: asyncio.StreamReader,
    up_writer: asyncio.StreamWriter,
) -> None:
    """Relay until the server has closed: a client that has only closed its half still gets its answers."""
    to_server = asyncio.create_task(_pump(reader, up_writer))
    to_client = asyncio.create_task(_pump(up_reader, writer))
    try:
        await asyncio.wait((to_server, to_client), return_when=asyncio.FIRST_COMPLETED)
        if not to_client.done():
            if to_server.exception() is None:
                up_writer.write_eof()
                await to_client
            else:
                # The client is gone; the server shall notice as if there were nothing between the two.
                up_writer.transport.abort()
    finally:
        for task in (to_server, to_client):
            task.cancel()
        await asyncio.gather(to_server, to_client, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK_BYTES):
        sink.write(data)
        await sink.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close a connection; what the other side does not fetch in a moment is thrown away."""
    writer.close()
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await writer.wait_closed()
    except OSError:
        writer.transport.abort()


def _refusal(text: str) -> bytes:
    """Return an ErrorResponse: FATAL, cannot_connect_now."""
    fields = b"".join(
        kind + value.encode() + b"\0"
        for kind, value in ((b"S", "FATAL"), (b"V", "FATAL"), (b"C", "57P03"), (b"M", text))
    )
    return b"E" + (len(fields) + 5).to_bytes(4, "big") + fields + b"\0"


def main() -> None:
    """Serve the sandbox in the directory that is the only argument."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    # Missing, it shall be missed now, not at the first replication connection.
    import psycopg  # noqa: F401

    asyncio.run(Relay(Directory(Path(sys.argv[1]))).run())


if __name__ == "__main__":
    main()
