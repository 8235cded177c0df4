"""The replication connection: START_REPLICATION, COPY-BOTH on libpq, status updates.

Protocol: manual, section 55.4 (streaming replication). Messages from the server are XLogData (``w``: start LSN, end
LSN, send time, 8 bytes each, then the plugin's payload) and keepalives (``k``: WAL end LSN, time, reply requested).

Reading many messages at once, instead of waking up for each, makes this fast: after a read that returned messages, the
reader lets more of them accumulate before the next one (``transport``), and waits for the socket when nothing came.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import ConnectionLost, MalformedMessage
from rdsrepl.lsn import Lsn
from rdsrepl.tail.server_notices import Notice
from rdsrepl.tail.timelines import Timelines
from rdsrepl.tail.transport import Transport
from rdsrepl.tail.wakeup import WakeupPipe
from rdsrepl.tail.xlogdata import XLOGDATA, start_lsn

if TYPE_CHECKING:
    from psycopg.errors import Diagnostic
    from psycopg.sql import Composable

    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection

_KEEPALIVE_KIND: Final = 0x6B
_KEEPALIVE: Final = struct.Struct(">cQQB")
_STATUS: Final = struct.Struct(">cQQQQB")
_UNIX_TO_PG_EPOCH_SECONDS: Final = 946_684_800
_READ_BYTES: Final = 256 * 1024


class Receiver:
    """One replication connection to one slot, from START_REPLICATION to its end.

    Attributes:
        wal_sender_timeout_seconds: the server's; 0 is disabled.
        system_id, timeline: which server this is (IDENTIFY_SYSTEM), to compare after a reconnect.
        server_lsn: the end of its WAL when we connected (IDENTIFY_SYSTEM).
        notices: from the server, each with how many messages of the last ``read`` precede it.
        wal_end_lsn: the last keepalive's WAL end; 0 before the first.
        reply_requested: a keepalive asked for a status update.
        heard_at: when data was received last, or reading resumed; on the monotonic clock.
        longest_silence_seconds: between two times when data was received.
        asked_at: when the server was asked for a reply that has not come yet; None if no reply is expected.
    """

    def __init__(self, target: Target, settings: Mapping[str, str]) -> None:
        """Connect, without starting to stream.

        Raises:
            Error: the server is unreachable or refuses the connection.
        """
        from rdsrepl.postgres import connection

        self.notices: list[tuple[int, Notice]] = []
        self._timeline_connection: Receiver | None = None
        self._messages: list[bytes] = []
        # Overrides the role's default: the server reports some losses only as warnings.
        wanted = {"client_min_messages": "notice", **settings}
        self._conn: Connection = connection.connect(target, replication=True, settings=wanted)
        self._conn.add_notice_handler(self._take_notice)
        try:
            with _translating():
                row = self._conn.execute("IDENTIFY_SYSTEM").fetchone()
                assert row is not None
                self.system_id, self.timeline = connection.text(row[0]), int(row[1])
                self.server_lsn = Lsn.parse(connection.text(row[2]))
                self.wal_sender_timeout_seconds = _seconds(connection.setting(self._conn, "wal_sender_timeout"))
        except BaseException:
            self._conn.close()
            raise
        self._pgconn = self._conn.pgconn
        self._transport: Transport | None = None
        self._last_bytes = 0
        self.wal_end_lsn = 0
        self.reply_requested = False
        self.heard_at = time.monotonic()
        self.asked_at: float | None = None
        self.longest_silence_seconds = 0.0
        self._keepalive = False
        self._malformed: MalformedMessage | None = None
        self._lost: Exception | None = None

    def timelines(self) -> Timelines:
        """Return the server's timeline and its ancestors; may be called only before ``start``.

        Raises:
            Error: the connection ended.
        """
        import psycopg

        if self.timeline <= 1:
            return Timelines(self.timeline)
        with _translating():
            try:
                cursor = self._conn.execute(f"TIMELINE_HISTORY {self.timeline:d}".encode())
            except psycopg.DatabaseError as exc:
                if exc.sqlstate is None or self._conn.closed:
                    raise
                # Without its history file a timeline has no known ancestors; the server's decoding assumes that, too.
                text = (
                    f"could not read the history of timeline {self.timeline}: repeated changes that are "
                    "older than the timeline have another identity than before"
                )
                self.notices.append((0, Notice("WARNING", exc.sqlstate, text, exc.diag.message_primary, None, "")))
                return Timelines(self.timeline)
            assert cursor.pgresult is not None
            content = cursor.pgresult.get_value(0, 1) or b""
        return Timelines.parse(self.timeline, content.decode("utf-8", "replace"))

    def follow_timeline(self, target: Target) -> None:
        """Open a second connection, which asks a standby for its timeline while this one streams.

        A standby continues to stream when it is promoted, or follows its promoted primary, without a message in the
        stream. May be called only before ``start``.

        Raises:
            ConnectionLost: the second connection led to another server.
            Error: the server refuses it.
        """
        self._timeline_connection = Receiver(target, {"idle_session_timeout": "0"})
        if self._timeline_connection._started_at() != self._started_at():
            raise ConnectionLost("two servers answer at this address", hint="use the address of one server")

    def require_timeline(self) -> None:
        """Make sure that everything received so far was written on the known timelines.

        Raises:
            ConnectionLost: the standby is on another timeline now.
        """
        if self._timeline_connection is None:
            return
        with _translating():
            row = self._timeline_connection._conn.execute("IDENTIFY_SYSTEM").fetchone()
        assert row is not None
        if int(row[1]) != self.timeline:
            raise ConnectionLost(f"the standby is on timeline {row[1]} now", hint="run the command again")

    def _started_at(self) -> object:
        with _translating():
            return self._conn.execute("SELECT pg_catalog.pg_postmaster_start_time()").fetchone()

    def start(self, slot: str, lsn: int, options: Mapping[str, str]) -> None:
        """Start to stream SLOT from LSN (0: from the slot's position).

        Raises:
            Error: the server refuses: slot missing, active, invalidated, plugin not allowed, …
        """
        from psycopg import generators, pq, sql

        command = sql.SQL("START_REPLICATION SLOT {} LOGICAL {}").format(sql.Identifier(slot), sql.SQL(str(Lsn(lsn))))
        if options:
            pairs = [sql.SQL("{} {}").format(sql.Identifier(k), _literal(v)) for k, v in options.items()]
            command += sql.SQL(" (") + sql.SQL(", ").join(pairs) + sql.SQL(")")
        self._pgconn.send_query(command.as_string(None).encode("utf-8", "surrogateescape"))
        with _translating():
            result = self._conn.wait(generators.execute(self._pgconn))[0]
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise self._failure(result)
        self._pgconn.nonblocking = 1
        self._transport = Transport(self._pgconn, is_unix=self._conn.info.host.startswith(("/", "@")))
        self.heard()

    def heard(self) -> None:
        """Record that data was received now, or that none could be, because nothing was read."""
        now = time.monotonic()
        self.longest_silence_seconds = max(self.longest_silence_seconds, now - self.heard_at)
        self.heard_at = now
        self.asked_at = None

    def read(self) -> list[bytes]:
        """Return the XLogData messages that have arrived, in order, up to a few hundred kilobytes; may be empty.

        Stops after a keepalive, so that ``wal_end_lsn`` belongs to the end of the returned list.

        Raises:
            ConnectionLost: the connection ended.
            MalformedMessage: the server sent neither XLogData nor a keepalive; messages before it were returned.
            Error: the server ended the stream with an error.
        """
        import psycopg

        if self._malformed is not None:
            raise self._malformed
        get, consume, transport = self._pgconn.get_copy_data, self._pgconn.consume_input, self._transport
        assert transport is not None
        messages = self._messages = []
        append = messages.append
        size = 0
        # A TLS record has one message in most cases: reading one for each message saves a question in between.
        ahead = transport.reads_ahead
        with _translating():
            while size < _READ_BYTES:
                length, view = get(1)
                if length == 0:
                    if self._lost is not None:
                        raise self._lost
                    if self._last_bytes:
                        transport.gather(self._last_bytes)
                        self._last_bytes = 0
                    consume()
                    length, view = get(1)
                    if length == 0:
                        if transport.has_unread():
                            continue
                        break
                if length < 0:
                    raise self._stream_end_error()
                message = view.tobytes()
                size += length
                if message[0] == XLOGDATA:
                    append(message)
                    if ahead:
                        try:
                            consume()
                        except psycopg.OperationalError as exc:
                            # First what was read, which may be the server's reason.
                            ahead, self._lost = False, exc
                    continue
                if len(message) != _KEEPALIVE.size or message[0] != _KEEPALIVE_KIND:
                    self._malformed = _malformed(message, messages)
                    break
                _, self.wal_end_lsn, _, reply = _KEEPALIVE.unpack(message)
                self.reply_requested = self.reply_requested or bool(reply)
                self._keepalive = True
                break
        if self._malformed is not None and not messages:
            raise self._malformed
        self._last_bytes = size if messages else 0
        if messages or self._keepalive:
            self.heard()
        self._messages = []  # a notice between two reads precedes the next one's messages
        return messages

    def take_notices(self) -> list[tuple[int, Notice]]:
        """Return and clear the notices until the end of the last ``read``."""
        taken, self.notices = self.notices, []
        return taken

    def take_keepalive(self) -> bool:
        """Return and clear whether a keepalive ended the last ``read``."""
        seen, self._keepalive = self._keepalive, False
        return seen

    def wait(self, seconds: float, wakeups: Sequence[WakeupPipe], *, read: bool = True) -> None:
        """Wait until the server sends something, one of the pipes is readable, or time is up.

        Raises:
            ConnectionLost: the connection ended.
        """
        if read and self._transport is not None and self._transport.has_unread():
            return
        with _translating():
            socket = self._pgconn.socket
            writing = [socket] if self._flush() else []
        reading: list[WakeupPipe | int] = [*wakeups, socket] if read else list(wakeups)
        # Also parts of a message: a large one may take long to arrive.
        if socket in select.select(reading, writing, [], max(0.0, seconds))[0]:
            self.heard()

    def send_status(self, written_lsn: int, flushed_lsn: int, *, reply: bool = False) -> None:
        """Send a standby status update: up to FLUSHED_LSN the server may remove WAL (0: nothing new).

        Args:
            written_lsn: the position up to which we received.
            flushed_lsn: the position that is confirmed.
            reply: ask the server for a keepalive in return.

        Raises:
            ConnectionLost: the connection ended.
        """
        now = int((time.time() - _UNIX_TO_PG_EPOCH_SECONDS) * 1_000_000)
        with _translating():
            self._pgconn.put_copy_data(_STATUS.pack(b"r", written_lsn, flushed_lsn, flushed_lsn, now, reply))
            self._flush()
        self.reply_requested = False
        if reply and self.asked_at is None:
            self.asked_at = time.monotonic()

    def close(self, *, polite: bool = False) -> None:
        """Close the connection; POLITE first ends the stream and waits until the server releases the slot."""
        import psycopg

        try:
            if polite:
                self._end_stream()
        except (psycopg.Error, OSError):
            pass  # the connection is closed in any case, and everything was confirmed before
        finally:
            self._conn.close()
            if self._timeline_connection is not None:
                self._timeline_connection.close()

    def _end_stream(self) -> None:
        """Send CopyDone and read until the server answers it, so that the last status update has arrived."""
        deadline = time.monotonic() + 5.0
        if self._transport is not None:
            self._transport.stop_reading_ahead()
        self._pgconn.put_copy_end()
        while time.monotonic() < deadline:
            self._flush()
            length, _ = self._pgconn.get_copy_data(1)
            if length == -1:
                break
            if length == 0:
                select.select([self._pgconn.socket], [], [], 0.1)
                self._pgconn.consume_input()

    def _take_notice(self, diag: Diagnostic) -> None:
        """Store a notice, with its place among the messages; libpq calls this while it reads the stream."""
        self.notices.append((len(self._messages), Notice.of(diag)))

    def _flush(self) -> bool:
        """Send what libpq has buffered; return whether something is left."""
        return bool(self._pgconn.flush())

    def _stream_end_error(self) -> Exception:
        """Return the error with which the server ended the stream."""
        from psycopg import pq

        if self._transport is not None:
            self._transport.stop_reading_ahead()
        self._pgconn.nonblocking = 0
        result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            return self._failure(result)
        return ConnectionLost("the server ended the stream", hint="it shuts down or fails over; run the command again")

    def _failure(self, result: object) -> Exception:
        from psycopg import errors as driver

        from rdsrepl.postgres.error_mapping import translate

        return translate(driver.error_from_result(result))  # type: ignore[arg-type]


def _literal(value: str) -> Composable:
    """Quote a value for the replication grammar, where a backslash has no special meaning (repl_scanner.l)."""
    from psycopg import sql

    return sql.SQL("'" + value.replace("'", "''") + "'")


def _malformed(message: bytes, before: Sequence[bytes]) -> MalformedMessage:
    after = f" after {Lsn(start_lsn(before[-1]))}" if before else ""
    return MalformedMessage(
        f"a message of the replication protocol{after} is neither XLogData nor a keepalive: {message[:20].hex()}",
        hint="everything before it is delivered, nothing past it is confirmed; run the command again",
    )


@contextmanager
def _translating() -> Iterator[None]:
    """Convert psycopg's errors to ours."""
    import psycopg

    from rdsrepl.postgres.error_mapping import translate

    try:
        yield
    except psycopg.Error as exc:
        raise translate(exc) from exc


def _seconds(text: str) -> float:
    """Return the seconds of a time setting as SHOW prints it (``1min``, ``30s``, ``2500ms``, ``0``)."""
    from rdsrepl.units import parse_duration

    return parse_duration(text)
