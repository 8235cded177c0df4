"""Holds each commit back until a standby has replayed it: ``slot tail --behind``.

The output then never has a change that is missing on the standby after its promotion. PostgreSQL 17 has
``synchronized_standby_slots`` for that. What is held back was received and is not durable. So it is not confirmed, it
counts as memory that the output has not taken yet, and keepalives go on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import Refused
from rdsrepl.lsn import Lsn
from rdsrepl.tail.progress import GateProgress
from rdsrepl.tail.timelines import Timelines

if TYPE_CHECKING:
    from rdsrepl.tail.progress import Observer
    from rdsrepl.tail.standby_position import StandbyPoller

# A transaction of which only a part has arrived is asked for after this time: its commit may be far behind.
_ASK_SECONDS: Final = 0.2


@dataclass(slots=True)
class _Held:
    """Lines that are held back.

    Attributes:
        number: of the batch.
        size: in bytes.
        put: gives the lines to the sink.
        end_lsn: what the standby must have replayed; None while that is not known.
        held_at: since when, by the monotonic clock.
    """

    number: int
    size: int
    put: Callable[[], None]
    end_lsn: int | None
    held_at: float


class CommitGate:
    """A queue in front of the sink.

    Attributes:
        held_bytes: the size of what is held back.
    """

    def __init__(self, poller: StandbyPoller, observer: Observer) -> None:
        """Prepare.

        Args:
            poller: knows how far the standby is.
            observer: receives notes and warnings.
        """
        self.held_bytes = 0
        self._poller = poller
        self._observer = observer
        self._held: deque[_Held] = deque()
        self._timelines = Timelines(0)
        self._failure: str | None = None
        self._holds_other_wal = False

    @property
    def first_number(self) -> int | None:
        """The number of the first batch that is held back; None if none is."""
        return self._held[0].number if self._held else None

    @property
    def progress(self) -> GateProgress:
        """What is held back now."""
        return GateProgress(self.held_bytes, self._poller.failure is None, Lsn(self._replayed_lsn))

    @property
    def _replayed_lsn(self) -> int:
        """Up to where the standby has replayed the WAL of the tail's server."""
        return self._poller.position.on(self._timelines)

    def connected(self, system_id: str, timelines: Timelines) -> None:
        """Begin with the stream of a new connection.

        Raises:
            Refused: the standby belongs to another database system.
        """
        position, self._timelines = self._poller.position, timelines
        if position.system_id != system_id:
            raise Refused(
                f"--behind: {self._poller.label} is of the database system {position.system_id}, and the slot's server "
                f"of {system_id}",
                hint="name a standby of the server that is read",
            )

    def discard(self) -> int | None:
        """Forget everything that is held back, because the connection was lost: the server sends it again.

        Held commits are neither confirmed nor in the output, and perhaps the next server does not have them.

        Returns:
            The number of the first batch that was held back; None if none was.
        """
        first = self.first_number
        self._held.clear()
        self.held_bytes = 0
        return first

    def hold(self, number: int, size: int, put: Callable[[], None], end_lsn: int | None) -> None:
        """Hold a batch back.

        Args:
            number: of the batch.
            size: in bytes.
            put: gives its lines to the sink.
            end_lsn: the end of its last commit; None if it is a part of a transaction, 0 if it has no lines.
        """
        if end_lsn:
            for one in reversed(self._held):
                if one.end_lsn is not None:
                    break
                one.end_lsn = end_lsn
        self._held.append(_Held(number, size, put, end_lsn, time.monotonic()))
        self.held_bytes += size
        self.release()

    def release(self) -> None:
        """Give the sink what the standby has replayed.

        Raises:
            Refused: the standby was promoted.
        """
        self._report()
        reached = self._replayed_lsn
        while self._held and self._may_pass(self._held[0], reached):
            first = self._held.popleft()
            self.held_bytes -= first.size
            first.put()

    def _may_pass(self, first: _Held, reached: int) -> bool:
        if first.end_lsn is None and time.monotonic() - first.held_at >= _ASK_SECONDS:
            # The server sends only what is committed, so the commit precedes any later position of the server.
            answer = self._poller.server_position_after(first.held_at)
            if answer is not None:
                asked_at, lsn = answer
                for one in self._held:
                    if one.end_lsn is None and one.held_at < asked_at:
                        one.end_lsn = lsn
        return first.end_lsn is not None and first.end_lsn <= reached

    def _report(self) -> None:
        """Report when the standby is lost, answers again, or has another WAL.

        Raises:
            Refused: it was promoted.
        """
        label, position, failure = self._poller.label, self._poller.position, self._poller.failure
        if failure != self._failure:
            self._failure = failure
            if failure is not None:
                self._observer.warn(f"{label}: {failure}; nothing is delivered until it answers again")
            else:
                self._observer.note(f"{label} answers again")
        if not position.in_recovery:
            raise Refused(
                f"{label} was promoted: no change is held back for it any more, so nothing more is delivered",
                hint="if it is the primary now, stream the slot from it; otherwise run the command again without "
                "--behind, or with another standby",
            )
        has_other_wal = bool(self._timelines.current) and self._timelines.end_of(position.timeline) is None
        if has_other_wal and not self._holds_other_wal:
            self._observer.warn(
                f"{label} is on timeline {position.timeline}, which the slot's server does not have; nothing is "
                "delivered until it follows that server"
            )
        self._holds_other_wal = has_other_wal
