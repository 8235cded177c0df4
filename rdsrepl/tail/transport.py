"""What is below libpq on a replication connection: how much waits on the socket, and OpenSSL's read-ahead.

Each message of a stream is one TLS record, and OpenSSL reads a record with two system calls: its header, then the rest.
With read-ahead it reads what the socket has, up to 16 kB, in one call. Measured with a backlog of 2 million messages
over TLS: receiving a change takes 2.5 instead of 4.1 µs of CPU.

Neither libpq nor psycopg has an option for it, but libpq gives its ``SSL`` object to the application (``PQsslStruct``,
manual, section 32.2). OpenSSL is called through the module of psycopg that is linked with libpq: a symbol that is
looked up there is found in the very libraries that the connection uses, not in Python's own OpenSSL. Where this is not
possible (psycopg without a C module, GSSAPI, no TLS), the connection is used without read-ahead.

With read-ahead OpenSSL may have a whole record while the socket has nothing, and libpq does not see it: ``SSL_pending``
counts only decrypted bytes. So nobody may wait for the socket before ``has_unread`` is False.
"""

from __future__ import annotations

import ctypes
import fcntl
import struct
import sys
import termios
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

# SSL_want: the last operation could not continue without more bytes from the socket (SSL_want(3)).
_SSL_READING: Final = 3
_NO_BYTES: Final = bytes(4)
# How long to rest after a read that returned messages, so that one wake-up is for many of them: each costs the server
# a context switch, too. A unix socket holds only a few hundred small messages. Measured, 600,000 messages: TCP 3.8 s
# at 0.3 ms, 2.8 s at 2 ms, 5.0 s at 4 ms; unix 6.6 s without a rest, 5.4 s at 0.2 ms, 13 s at 1 ms.
_REST_TCP_SECONDS: Final = 0.0015
_REST_UNIX_SECONDS: Final = 0.0002
# In a backlog, how many rests are added while more and more waits on the socket.
_MOST_RESTS: Final = 7
# A read of this size is part of a backlog.
_BACKLOG_BYTES: Final = 32 * 1024


class Transport:
    """The socket and the TLS session of one connection that streams."""

    def __init__(self, pgconn: PGconn, *, is_unix: bool) -> None:
        """Take a connection after START_REPLICATION, and switch read-ahead on if it uses OpenSSL.

        Args:
            pgconn: the connection.
            is_unix: whether it is a unix socket.
        """
        self._fd = pgconn.socket
        self._consume = pgconn.consume_input
        self._rest_seconds = _REST_UNIX_SECONDS if is_unix else _REST_TCP_SECONDS
        self._tls = _OpenSsl.of(pgconn)
        if self._tls is not None:
            self._tls.set_read_ahead(True)

    @property
    def reads_ahead(self) -> bool:
        """Whether OpenSSL's read-ahead is on."""
        return self._tls is not None

    def gather(self, last_bytes: int) -> None:
        """Let messages accumulate, after a read of LAST_BYTES.

        After a large read the server has a backlog to send: then wait until the socket's buffer is full, which is when
        no more bytes arrive, or for about 10 ms. Measured, 2 million messages, TCP: 12.6 s, and with one rest 16.6 s.
        """
        time.sleep(self._rest_seconds)
        if last_bytes < _BACKLOG_BYTES:
            return
        before = -1
        for _ in range(_MOST_RESTS):
            waiting = self._waiting_bytes()
            if waiting <= before:
                return
            before = waiting
            time.sleep(self._rest_seconds)

    def has_unread(self) -> bool:
        """Return whether libpq may get more bytes without waiting for the socket; only with read-ahead."""
        return self._tls is not None and self._tls.has_unread()

    def stop_reading_ahead(self) -> None:
        """Give libpq everything that OpenSSL has, and switch read-ahead off: from now on libpq itself may wait."""
        if self._tls is None:
            return
        tls, self._tls = self._tls, None
        tls.set_read_ahead(False)
        self._consume()
        while tls.has_unread():
            self._consume()

    def _waiting_bytes(self) -> int:
        """Return how many bytes the socket has."""
        waiting: int = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, _NO_BYTES))[0]
        return waiting


class _OpenSsl:
    """The ``SSL`` object of a connection."""

    def __init__(self, set_read_ahead: Callable[[int], None], want: Callable[[], int]) -> None:
        self._set_read_ahead = set_read_ahead
        self._want = want

    @classmethod
    def of(cls, pgconn: PGconn) -> _OpenSsl | None:
        """Return a connection's; None if it has none, or its library cannot be called."""
        module = getattr(sys.modules.get(type(pgconn).__module__), "__file__", None)
        pointer: int | None = getattr(pgconn, "pgconn_ptr", None)
        if not pgconn.ssl_in_use or pointer is None or module is None or module.endswith(".py"):
            return None
        try:
            library = ctypes.CDLL(module)
            struct_of, set_read_ahead, want = library.PQsslStruct, library.SSL_set_read_ahead, library.SSL_want
        except (OSError, AttributeError):
            return None
        struct_of.argtypes, struct_of.restype = (ctypes.c_void_p, ctypes.c_char_p), ctypes.c_void_p
        set_read_ahead.argtypes, set_read_ahead.restype = (ctypes.c_void_p, ctypes.c_int), None
        want.argtypes, want.restype = (ctypes.c_void_p,), ctypes.c_int
        ssl = struct_of(pointer, b"OpenSSL")
        if not ssl:
            return None
        return cls(lambda on: set_read_ahead(ssl, on), lambda: int(want(ssl)))

    def set_read_ahead(self, on: bool) -> None:
        """Switch read-ahead on or off; what was read ahead stays."""
        self._set_read_ahead(on)

    def has_unread(self) -> bool:
        """Return whether the last read ended for another reason than that the socket had no more bytes."""
        return self._want() != _SSL_READING
