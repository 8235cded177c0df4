"""How far a standby has replayed, polled in a thread so that the tail never waits for the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import Error, Refused
from rdsrepl.lsn import Lsn
from rdsrepl.tail.timelines import Timelines

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection

POLL_SECONDS: Final = 0.2
_ANSWER_SECONDS: Final = 5.0
# The timeline comes last: a position that was read before a switch is then counted on the later timeline, which the
# tail's server does not have yet, so nothing is delivered too early.
_REPLAYED: Final = b"SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text"


@dataclass(frozen=True, slots=True)
class StandbyPosition:
    """How far a standby was at one moment.

    Attributes:
        system_id: of its database system.
        timeline, lsn: the last position that it replayed.
        in_recovery: False once it is promoted.
    """

    system_id: str
    timeline: int
    lsn: int
    in_recovery: bool

    def on(self, timelines: Timelines) -> int:
        """Return up to where it has replayed the WAL of a server with these timelines; 0 if it has another WAL."""
        end = timelines.end_of(self.timeline)
        return 0 if end is None else min(self.lsn, end)


class StandbyPoller:
    """Polls a standby's position, and when asked also that of the server that the tail reads.

    Attributes:
        position: the last answer of the standby.
        failure: why it does not answer now; None while it does.
    """

    def __init__(self, standby: Target, server: Target) -> None:
        """Read the position for the first time.

        Args:
            standby: the standby.
            server: the server that the tail reads.

        Raises:
            Refused: the first one is no standby.
            Error: it does not answer, or refuses the role.
        """
        self.label = standby.label
        self._standby = replace(standby, answer_seconds=_ANSWER_SECONDS)
        self._server = replace(server, answer_seconds=_ANSWER_SECONDS)
        self._wake: Callable[[], None] = lambda: None
        self._stopped = threading.Event()
        self._asked_at: float | None = None
        self._answer: tuple[float, int] | None = None
        self.failure: str | None = None
        self.position = self._first()

    def start(self, wake: Callable[[], None]) -> None:
        """Start to poll; WAKE is called after each answer."""
        self._wake = wake
        for work in (self._poll_standby, self._poll_server):
            threading.Thread(target=work, name="behind", daemon=True).start()

    def stop(self) -> None:
        """Stop to poll; does not wait for a poll in progress."""
        self._stopped.set()

    def server_position_after(self, moment: float) -> tuple[float, int] | None:
        """Return a position of the tail's server that was read after a moment, and when; None until there is one.

        Everything that the server had sent before it was read was written before that position.
        """
        answer = self._answer
        if answer is not None and answer[0] > moment:
            return answer
        self._asked_at = moment
        return None

    def _first(self) -> StandbyPosition:
        """Return the position now; see ``__init__``."""
        from rdsrepl.postgres import connection

        with connection.open(self._standby, replication=True) as conn:
            position = _read(conn)
        if not position.in_recovery:
            raise Refused(f"--behind: {self.label} is not a standby", hint="name a standby of the server that is read")
        return position

    def _poll_standby(self) -> None:
        from rdsrepl.postgres import connection

        while not self._stopped.is_set():
            try:
                with connection.open(self._standby, replication=True) as conn:
                    while not self._stopped.wait(POLL_SECONDS):
                        self.position = _read(conn)
                        self.failure = None
                        self._wake()
            except Error as exc:
                self.failure = exc.message
                self._wake()
                self._stopped.wait(1.0)

    def _poll_server(self) -> None:
        """Read the position of the tail's server, while the tail wants one that is newer than the last."""
        from rdsrepl.postgres import connection

        while not self._stopped.is_set():
            try:
                with connection.open(self._server) as conn:
                    while not self._stopped.wait(POLL_SECONDS):
                        asked_at, started = self._asked_at, time.monotonic()
                        if asked_at is None or (self._answer is not None and self._answer[0] > asked_at):
                            continue
                        self._answer = started, int(connection.current_lsn(conn))
                        self._wake()
            except Error:
                self._stopped.wait(1.0)


def _read(conn: Connection) -> StandbyPosition:
    from rdsrepl.postgres import connection

    first, second = conn.execute(_REPLAYED).fetchone(), conn.execute(b"IDENTIFY_SYSTEM").fetchone()
    assert first is not None and second is not None
    (in_recovery, lsn), (system_id, timeline) = first, second[:2]
    replayed = 0 if lsn is None else int(Lsn.parse(connection.text(lsn)))
    return StandbyPosition(connection.text(system_id), int(timeline), replayed, bool(in_recovery))
