"""Which position may be confirmed to the server. Pure: no I/O, no clock.

The rule: a position is confirmed only when everything before it is durable. It moves at commit boundaries or, when
everything is delivered, to the keepalive's WAL end.
"""

from __future__ import annotations

from collections import deque


class Ledger:
    """Knows for each batch handed to the sink which WAL position its delivery allows to confirm.

    Batches are numbered from 1 in the order in which they are handed over; the sink reports the number up to which
    every batch is durable. ``flush_lsn`` never moves back, and never past a change that is not durable.
    """

    __slots__ = (
        "_begun",
        "_delivered",
        "_handed_over",
        "_in_transaction",
        "_marks",
        "commit_lsn",
        "flush_lsn",
        "received_lsn",
        "sent_lsn",
    )

    def __init__(self) -> None:
        #: the position that may be confirmed; 0 is none yet.
        self.flush_lsn = 0
        #: the end of the last commit handed over, durable or not; a new connection may resume there.
        self.commit_lsn = 0
        #: everything before it was handed over, or precedes the start of the run.
        self.received_lsn = 0
        #: the position up to which the server has sent.
        self.sent_lsn = 0
        self._begun = 0
        self._handed_over = 0
        self._delivered = 0
        self._in_transaction = False
        self._marks: deque[tuple[int, int]] = deque()

    def continue_after(self, batches: int) -> None:
        """Begin with the batch after these, which are durable and belong to no position."""
        self._handed_over = self._delivered = batches

    @property
    def handed_over(self) -> int:
        """The number of the last batch."""
        return self._handed_over

    @property
    def delivered(self) -> int:
        """The number up to which every batch is durable."""
        return self._delivered

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is incomplete."""
        return self._in_transaction

    @property
    def all_delivered(self) -> bool:
        """Whether everything handed over is durable and no transaction is incomplete."""
        return self._delivered == self._handed_over and not self._in_transaction

    def hand_over(self, commit_end_lsn: int | None, *, in_transaction: bool) -> int:
        """Record a batch and return its number.

        Args:
            commit_end_lsn: the end of the last commit in the batch; None without one.
            in_transaction: whether the batch ends within a transaction.
        """
        self._handed_over += 1
        self._in_transaction = in_transaction
        if commit_end_lsn is not None:
            self._mark(commit_end_lsn)
            self.commit_lsn = max(self.commit_lsn, commit_end_lsn)
            self.received_lsn = max(self.received_lsn, commit_end_lsn)
            self.sent_lsn = max(self.sent_lsn, commit_end_lsn)
        return self._handed_over

    def keepalive(self, wal_end_lsn: int) -> None:
        """Record that the server has sent everything before this position.

        Within a transaction this has no effect: the transaction's own commit will move the position.
        """
        self.sent_lsn = max(self.sent_lsn, wal_end_lsn)
        if not self._in_transaction:
            self._mark(wal_end_lsn)
            self.received_lsn = max(self.received_lsn, wal_end_lsn)

    def deliver(self, number: int) -> None:
        """Record that every batch up to NUMBER is durable."""
        if number > self._handed_over:
            raise ValueError("a batch was delivered that was not handed over")
        if number > self._delivered:
            self._delivered = number
            self._release()

    def connection_lost(self, last: int) -> None:
        """Forget the incomplete transaction and every batch after LAST, which no sink has: the server sends them again.

        The numbers after LAST are given again.
        """
        self._in_transaction = False
        if last >= self._handed_over:
            return
        self._handed_over = last
        marks = self._marks
        while marks and marks[-1][0] > last:
            marks.pop()
        reached = marks[-1][1] if marks else self.flush_lsn
        self.commit_lsn = min(self.commit_lsn, reached)
        self.received_lsn = max(reached, self._begun)

    def history_changed(self) -> None:
        """Forget all positions: they belong to another WAL than the server has now.

        A promoted standby's timeline may start before them; then other changes have the same positions.
        """
        self._in_transaction = False
        self._marks.clear()
        self.flush_lsn = self.commit_lsn = self.received_lsn = self.sent_lsn = self._begun = 0

    def begin(self, lsn: int) -> None:
        """Record the slot's position: changes before it were delivered earlier, or are skipped."""
        if lsn > self.received_lsn:
            self.received_lsn = self._begun = lsn

    def _mark(self, lsn: int) -> None:
        if self._marks and self._marks[-1][0] == self._handed_over:
            self._marks[-1] = (self._handed_over, max(lsn, self._marks[-1][1]))
        else:
            self._marks.append((self._handed_over, lsn))
        self._release()

    def _release(self) -> None:
        while self._marks and self._marks[0][0] <= self._delivered:
            self.flush_lsn = max(self.flush_lsn, self._marks.popleft()[1])
