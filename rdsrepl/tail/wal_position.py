"""The end of the server's WAL, polled in a thread so that the tail never waits for the answer."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rdsrepl.config import Target

_MIN_INTERVAL_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 10.0


class WalPositionPoller:
    """Polls the end of the server's WAL."""

    def __init__(self, target: Target, interval_seconds: float = _MIN_INTERVAL_SECONDS) -> None:
        self._target = replace(target, answer_seconds=_ANSWER_SECONDS)
        self._interval = max(_MIN_INTERVAL_SECONDS, interval_seconds)
        self._lsn: int | None = None
        self._started = False
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start to poll; later calls do nothing."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._work, name="wal-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop to poll, without waiting for a poll in progress; the last answer remains."""
        self._stopped.set()

    @property
    def lsn(self) -> int | None:
        """The end of the WAL at the last answer; None before the first."""
        return self._lsn

    def lag_bytes(self, lsn: int) -> int | None:
        """Return how much WAL follows a position; None before the first answer."""
        return None if self._lsn is None or not lsn else max(0, self._lsn - lsn)

    def _work(self) -> None:
        from rdsrepl.errors import Error
        from rdsrepl.postgres import connection

        while not self._stopped.is_set():
            try:
                with connection.open(self._target) as conn:
                    while not self._stopped.is_set():
                        self._lsn = connection.current_lsn(conn)
                        self._stopped.wait(self._interval)
            except Error:
                self._stopped.wait(self._interval)
