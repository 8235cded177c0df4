"""Detects that the server is shutting down while the tail does not read the stream.

In a fast shutdown a walsender sends all remaining WAL and waits until its client has confirmed it (manual, section
19.5), without a limit: a client whose output is blocked delays the shutdown of the whole server. Such a client does
not read, so it cannot learn of the shutdown from the stream. But the server ends ordinary sessions at the start of the
shutdown and refuses new ones, so an idle session shows it.
"""

from __future__ import annotations

import select
import threading
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import ConnectionLost, Error, Unreachable

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection

# Output that has not taken a change for this long is slow enough to hold up a shutdown of the server.
BLOCKED_SECONDS: Final = 3.0
_ANSWER_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 5.0
# cannot_connect_now: the server is shutting down or starting.
_CANNOT_CONNECT_NOW: Final = "57P03"


class ShutdownWatch:
    """Looks for a shutdown while the output is blocked."""

    def __init__(self, target: Target) -> None:
        """Prepare, without a session on the server."""
        self._target = target
        self._detector: ShutdownDetector | None = None

    def check(self, waiting_seconds: float) -> None:
        """Start or end to look for a shutdown.

        Args:
            waiting_seconds: how long the output has not taken a change.

        Raises:
            ConnectionLost: the server is shutting down, and would wait for this client.
        """
        if waiting_seconds < BLOCKED_SECONDS:
            self.stop()
        elif self._detector is None:
            self._detector = ShutdownDetector(self._target)
        elif self._detector.seen:
            self.stop()
            raise ConnectionLost(
                "the server is shutting down, and the output is blocked: disconnecting without waiting for it"
            )

    def stop(self) -> None:
        """End the session, if there is one."""
        if self._detector is not None:
            self._detector.stop()
            self._detector = None


class ShutdownDetector:
    """Keeps an idle session open, in a thread, from its creation until ``stop``."""

    def __init__(self, target: Target) -> None:
        """Open the session."""
        self._target = replace(target, answer_seconds=_ANSWER_SECONDS)
        self._stopped = threading.Event()
        self._seen = threading.Event()
        threading.Thread(target=self._work, name="shutdown-watch", daemon=True).start()

    @property
    def seen(self) -> bool:
        """Whether a shutdown was detected."""
        return self._seen.is_set()

    def stop(self) -> None:
        """End the session soon, without waiting for it."""
        self._stopped.set()

    def _work(self) -> None:
        from rdsrepl.postgres import connection

        was_ended = False
        while not self._stopped.is_set():
            try:
                conn = connection.connect(self._target)
            except Unreachable as exc:
                # The server's text may be translated, and libpq has no SQLSTATE of it.
                if was_ended or exc.sqlstate == _CANNOT_CONNECT_NOW:
                    self._seen.set()
                    return
            except Error:
                pass  # max_connections, for example: no sign of a shutdown
            else:
                was_ended = self._is_ended(conn)
                continue
            was_ended = False
            self._stopped.wait(_RETRY_SECONDS)

    def _is_ended(self, conn: Connection) -> bool:
        """Return True when the server ends the session, False after ``stop``."""
        with closing(conn):
            while not self._stopped.is_set():
                if select.select([conn.fileno()], [], [], _POLL_SECONDS)[0]:
                    return True
        return False
