"""Sends standby status updates: which WAL the server may remove, and that this client is connected."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from rdsrepl.tail.connector import Connector
from rdsrepl.tail.ledger import Ledger
from rdsrepl.tail.receiver import Receiver

# A position is confirmed at most this long after it is durable: a killed run repeats what it has not confirmed.
CONFIRM_SECONDS: Final = 0.2
_STATUS_SECONDS: Final = 10.0


class StatusUpdates:
    """The status updates of one connection after the other.

    Attributes:
        confirmed_lsn: the position that was confirmed last on this connection; 0 before that.
    """

    def __init__(self, ledger: Ledger, connector: Connector, confirmable_lsn: Callable[[], int]) -> None:
        """Prepare.

        Args:
            ledger: knows what the server has sent.
            connector: remembers what was confirmed.
            confirmable_lsn: returns the position up to which everything is stored.
        """
        self._ledger = ledger
        self._connector = connector
        self._confirmable_lsn = confirmable_lsn
        self._sent_at = 0.0
        self.confirmed_lsn = 0

    def connected(self) -> None:
        """Begin with a new connection."""
        self._sent_at = time.monotonic()
        self.confirmed_lsn = 0

    @property
    def has_new(self) -> bool:
        """Whether there is a position to confirm."""
        return self._confirmable_lsn() > self.confirmed_lsn

    def seconds_left(self, receiver: Receiver) -> float:
        """Return the time until the next update is due, if nothing new is delivered until then."""
        return interval_seconds(receiver) - (time.monotonic() - self._sent_at)

    def send_due(self, receiver: Receiver) -> None:
        """Send an update if one is due: requested, a new position to confirm, or the interval is over.

        Raises:
            ConnectionLost: the connection ended.
        """
        age = time.monotonic() - self._sent_at
        may_confirm = age >= CONFIRM_SECONDS or self.confirmed_lsn == 0
        if receiver.reply_requested or age >= interval_seconds(receiver) or (may_confirm and self.has_new):
            self.send(receiver)
            self._sent_at = time.monotonic()

    def send(self, receiver: Receiver, *, reply: bool = False) -> None:
        """Send an update; REPLY asks the server for its position. What it confirms is stored before.

        Raises:
            ConnectionLost: the connection ended.
        """
        flush_lsn = self._confirmable_lsn()
        self._connector.confirming(flush_lsn)
        receiver.send_status(max(self._ledger.sent_lsn, flush_lsn), flush_lsn, reply=reply)
        self.confirmed_lsn = flush_lsn


def interval_seconds(receiver: Receiver) -> float:
    """Return the longest time between two status updates, in seconds."""
    allowed = receiver.wal_sender_timeout_seconds
    return min(_STATUS_SECONDS, allowed / 3) if allowed else _STATUS_SECONDS
