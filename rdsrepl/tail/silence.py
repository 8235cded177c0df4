"""Decides when a silent connection is dead, and when reconnecting does not help.

A server that has nothing to send says nothing on its own while it receives status updates. So after half of the
allowed time it is asked for a reply; without one in the other half, the connection is lost.
"""

from __future__ import annotations

import time
from typing import Final

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.tail.ledger import Ledger
from rdsrepl.tail.options import TailOptions
from rdsrepl.tail.receiver import Receiver

# How long a server without wal_sender_timeout may be silent; PostgreSQL's default of that parameter.
_SILENCE_SECONDS: Final = 60.0
# After so many connections in a row that brought no commit and ended in silence, the run ends.
_MAX_FRUITLESS: Final = 5


class SilenceMonitor:
    """Watches how long the server is silent, on each connection and over several."""

    def __init__(self, options: TailOptions, ledger: Ledger) -> None:
        self._options = options
        self._ledger = ledger
        # Connections in a row that brought no new commit, and the last commit before the last of them.
        self._fruitless = 0
        self._commit_before = 0

    def connected(self) -> None:
        """Start to watch a new connection."""
        if self._ledger.commit_lsn != self._commit_before:
            self._commit_before, self._fruitless = self._ledger.commit_lsn, 0

    def allowed_seconds(self, receiver: Receiver) -> float:
        """Return how long the server may be silent; 0 is unlimited."""
        given = self._options.receive_timeout_seconds
        if given is not None:
            return given
        # A server that decodes for longer than that may only be slow, so each attempt allows more.
        return (receiver.wal_sender_timeout_seconds or _SILENCE_SECONDS) * (1 << self._fruitless)

    def due_at(self, receiver: Receiver) -> float | None:
        """Return when the connection is to be checked next, on the monotonic clock; None is never."""
        allowed = self.allowed_seconds(receiver)
        return (receiver.asked_at or receiver.heard_at) + allowed / 2 if allowed else None

    def must_ask(self, receiver: Receiver, now: float) -> bool:
        """Return whether the server is to be asked for a reply.

        Raises:
            ConnectionLost: it was asked, and did not reply in time.
        """
        due = self.due_at(receiver)
        if due is None or now < due:
            return False
        if receiver.asked_at is not None:
            silent = now - receiver.heard_at
            raise errors.ConnectionLost(f"the server was silent for {silent:.1f}s and did not reply to a status update")
        return True

    def require_progress(self, receiver: Receiver, claimed_lsn: int) -> None:
        """Count connections that ended in silence and brought no commit, although the server has one.

        Raises:
            TimedOut: this was the last attempt: the server decodes for longer than both sides wait for each other.
        """
        at, allowed = self._ledger.commit_lsn, receiver.wal_sender_timeout_seconds
        silent = max(receiver.longest_silence_seconds, time.monotonic() - receiver.heard_at)
        # Parts of a transaction, and keepalives, are no progress: the server starts again before that transaction.
        has_more = self._ledger.in_transaction or receiver.server_lsn > self._ledger.received_lsn
        if at != self._commit_before or not has_more:
            self._fruitless = 0
            return
        limits = [seconds for seconds in (self.allowed_seconds(receiver), allowed) if seconds]
        if not limits or silent < min(limits) / 2:
            return
        self._fruitless += 1
        if self._fruitless >= _MAX_FRUITLESS:
            raise errors.TimedOut(
                f"slot {self._options.slot_name}: {_MAX_FRUITLESS} connections in a row brought no change after "
                f"{Lsn(at or claimed_lsn)}, and ended after the server was silent for up to {silent:.1f}s: it "
                f"decodes a change or a transaction for longer than wal_sender_timeout ({allowed:g}s) and "
                "--receive-timeout allow, or the network drops large packets",
                hint="allow more: PGOPTIONS='-c wal_sender_timeout=30min -c logical_decoding_work_mem=1GB' and "
                "--receive-timeout 30min",
            )
