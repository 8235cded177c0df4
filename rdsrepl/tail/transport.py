"""What is below libpq on a replication connection: how much waits on the socket, and OpenSSL's read-ahead.

Each message of a stream is one TLS record, and OpenSSL reads a record with two system calls: its header, then the rest.
With read-ahead it reads what the socket has, up to 16 kB, in one call. Measured with a backlog of 2 million messages
over TLS: receiving a change takes 2.5 instead of 4.1 µs of CPU.

Neither libpq nor psycopg has an option for it, but libpq gives its ``SSL`` object to the application (``PQsslStruct``,
manual, section 32.2). OpenSSL is called through the module of psycopg that is linked with libpq: a symbol that is
looked up there is found in the very libraries that the connection uses, not in Python's own OpenSSL. Where this is not
possible (psycopg without a C module, GSSAPI, no TLS), the connection is used without read-ahead.

A thread that reads and decrypts while another one decodes would not be faster: the wal sender is never blocked. Of 15 s
for a million messages over TLS it slept 0.01 s.

With read-ahead OpenSSL may have a whole record while the socket has nothing, and libpq does not see it: ``SSL_pending``
counts only decrypted bytes. So the socket may be waited for only when ``has_unread`` is False.
"""

from __future__ import annotations

import ctypes
import fcntl
import struct
import sys
import termios
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

# SSL_want: the last operation could not continue without more bytes from the socket (SSL_want(3)).
_SSL_READING: Final = 3
_NO_BYTES: Final = bytes(4)
# How long to pause after a read that returned messages, so that one wake-up is for many of them: each costs the server
# a context switch, too. A unix socket holds only a few hundred small messages. Measured, 600,000 messages: TCP 3.8 s
# at 0.3 ms, 2.8 s at 2 ms, 5.0 s at 4 ms; unix 6.6 s without a pause, 5.4 s at 0.2 ms, 13 s at 1 ms.
_PAUSE_TCP_SECONDS: Final = 0.0015
_PAUSE_UNIX_SECONDS: Final = 0.0002
# In a backlog, how many pauses in a row while more and more waits on the socket.
_MOST_PAUSES: Final = 7
# A read of this size is part of a backlog, and no more than a read of that size needs to wait on the socket.
_BACKLOG_BYTES: Final = 32 * 1024
_ENOUGH_BYTES: Final = 256 * 1024


class Transport:
    """The socket and the TLS session of one connection that streams."""

    def __init__(self, pgconn: PGconn, *, is_unix: bool) -> None:
        """Take a connection after START_REPLICATION, and switch read-ahead on if it uses OpenSSL.

        Args:
            pgconn: the connection.
            is_unix: whether it is a unix socket.
        """
        self._pgconn = pgconn
        self._consume = pgconn.consume_input
        self._pause_seconds = _PAUSE_UNIX_SECONDS if is_unix else _PAUSE_TCP_SECONDS
        self._enough_bytes = _ENOUGH_BYTES
        self._tls = _OpenSsl.of(pgconn)
        if self._tls is not None:
            self._tls.set_read_ahead(True)

    @property
    def reads_ahead(self) -> bool:
        """Whether OpenSSL's read-ahead is on."""
        return self._tls is not None

    def gather(self, last_bytes: int) -> None:
        """Let messages accumulate, after a read of LAST_BYTES.

        After a large read the server has a backlog to send: then wait until enough waits on the socket, or no more
        bytes arrive because the socket's buffer is full, or for about 10 ms.

        Raises:
            psycopg.OperationalError: the connection was lost.
        """
        if last_bytes < _BACKLOG_BYTES:
            time.sleep(self._pause_seconds)
            return
        waiting = self._waiting_bytes()
        for _ in range(_MOST_PAUSES):
            if waiting >= self._enough_bytes:
                return
            before = waiting
            time.sleep(self._pause_seconds)
            waiting = self._waiting_bytes()
            if waiting <= before:
                # The buffer is full: from now on this is enough, so that the server does not have to stop.
                self._enough_bytes = max(waiting, _BACKLOG_BYTES)

    def has_unread(self) -> bool:
        """Return whether libpq may get more bytes without waiting for the socket; only with read-ahead."""
        return self._tls is not None and self._tls.has_unread()

    def stop_reading_ahead(self) -> None:
        """Give libpq everything that OpenSSL has, and switch read-ahead off: from now on libpq itself may wait."""
        if self._tls is None:
            return
        tls, self._tls = self._tls, None
        tls.set_read_ahead(False)
        while tls.has_unread():
            self._consume()

    def _waiting_bytes(self) -> int:
        """Return how many bytes the socket has; libpq closes it when the connection is lost."""
        waiting: int = struct.unpack("i", fcntl.ioctl(self._pgconn.socket, termios.FIONREAD, _NO_BYTES))[0]
        return waiting


class _OpenSsl:
    """The ``SSL`` object of a connection.

    libpq frees it when the connection ends, so it is asked for the object each time.
    """

    def __init__(self, pgconn: PGconn, library: ctypes.CDLL) -> None:
        """Prepare the functions of LIBRARY.

        Raises:
            AttributeError: it does not have them.
        """
        self._pgconn = pgconn
        self._struct, self._set_read_ahead, self._want = (
            library.PQsslStruct,
            library.SSL_set_read_ahead,
            library.SSL_want,
        )
        self._struct.argtypes, self._struct.restype = (ctypes.c_void_p, ctypes.c_char_p), ctypes.c_void_p
        self._set_read_ahead.argtypes, self._set_read_ahead.restype = (ctypes.c_void_p, ctypes.c_int), None
        self._want.argtypes, self._want.restype = (ctypes.c_void_p,), ctypes.c_int

    @classmethod
    def of(cls, pgconn: PGconn) -> _OpenSsl | None:
        """Return a connection's; None if it has none, or its library cannot be called."""
        module = getattr(sys.modules.get(type(pgconn).__module__), "__file__", None)
        if not pgconn.ssl_in_use or module is None or module.endswith(".py"):
            return None
        try:
            made = cls(pgconn, ctypes.CDLL(module))
        except (OSError, AttributeError):
            return None
        return made if made._object() else None

    def set_read_ahead(self, on: bool) -> None:
        """Switch read-ahead on or off; what was read ahead stays."""
        if ssl := self._object():
            self._set_read_ahead(ssl, on)

    def has_unread(self) -> bool:
        """Return whether the last read ended for another reason than that the socket had no more bytes."""
        ssl = self._object()
        return ssl is not None and self._want(ssl) != _SSL_READING

    def _object(self) -> int | None:
        pointer: int | None = getattr(self._pgconn, "pgconn_ptr", None)
        ssl: int | None = None if pointer is None else self._struct(pointer, b"OpenSSL")
        return ssl
