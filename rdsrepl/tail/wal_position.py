"""How far the server's WAL is, asked now and then in a thread: the tail never waits for the answer."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rdsrepl.config import Target

_SHORTEST_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 10.0


class WalPositionPoller:
    """Asks the server how far its WAL is."""

    def __init__(self, target: Target, every_seconds: float = _SHORTEST_SECONDS) -> None:
        self._target = replace(target, answer_seconds=_ANSWER_SECONDS)
        self._every = max(_SHORTEST_SECONDS, every_seconds)
        self._lsn: int | None = None
        self._begun = False

    def begin(self) -> None:
        """Start asking, the first time it is called."""
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._work, name="wal-watch", daemon=True).start()

    @property
    def lsn(self) -> int | None:
        """The end of the WAL at the last answer; None before there is one."""
        return self._lsn

    def lag_bytes(self, lsn: int) -> int | None:
        """Return how much WAL lies behind a position; None before anything is known."""
        return None if self._lsn is None or not lsn else max(0, self._lsn - lsn)

    def _work(self) -> None:
        from rdsrepl.errors import Error
        from rdsrepl.postgres import connection

        while True:
            try:
                with connection.open(self._target) as conn:
                    while True:
                        self._lsn = connection.current_lsn(conn)
                        time.sleep(self._every)
            except Error:
                time.sleep(self._every)
