"""Notice that the server is shutting down while its walsender cannot say so.

In a fast shutdown a walsender sends everything that is left and waits until its client has confirmed it (manual,
section 19.5), without a limit: a client whose output takes nothing holds the whole server up. Such a client does not
read either, so nothing in the stream tells it. An ordinary session is ended at the beginning of the shutdown, and no
new one is let in: that is what is looked at here.
"""

from __future__ import annotations

import select
import threading
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import Error, Unreachable

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection

_ANSWER_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 5.0
# cannot_connect_now: what a server answers that shuts down, or is not up yet.
_CANNOT_CONNECT_NOW: Final = "57P03"


class ShutdownDetector:
    """Keeps an idle session, in a thread, from its creation until ``stop``."""

    def __init__(self, target: Target) -> None:
        """Begin."""
        self._target = replace(target, answer_seconds=_ANSWER_SECONDS)
        self._stopped = threading.Event()
        self._seen = threading.Event()
        threading.Thread(target=self._work, name="shutdown-watch", daemon=True).start()

    @property
    def seen(self) -> bool:
        """Whether the server was seen to shut down."""
        return self._seen.is_set()

    def stop(self) -> None:
        """Let the session end soon; nothing waits for it."""
        self._stopped.set()

    def _work(self) -> None:
        from rdsrepl.postgres import connection

        was_ended = False
        while not self._stopped.is_set():
            try:
                conn = connection.connect(self._target)
            except Unreachable as exc:
                # The server says it in its own language, and libpq passes on no SQLSTATE.
                if was_ended or exc.sqlstate == _CANNOT_CONNECT_NOW:
                    self._seen.set()
                    return
            except Error:
                pass  # max_connections, for example: that says nothing
            else:
                was_ended = self._is_ended(conn)
                continue
            was_ended = False
            self._stopped.wait(_RETRY_SECONDS)

    def _is_ended(self, conn: Connection) -> bool:
        """Wait until the session is ended, and say so, or nobody needs it any more."""
        with closing(conn):
            while not self._stopped.is_set():
                if select.select([conn.fileno()], [], [], _LOOK_SECONDS)[0]:
                    return True
        return False
