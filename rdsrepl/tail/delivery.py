"""The way of decoded batches to the sink, and of the sink's answers to the position that may be confirmed.

Between the decoder and the sink stand, where they are in use: the output file, which has some changes already
(``appended_file``) or records positions (``recorded_file``), and a gate, which holds commits back (``commit_gate``).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from rdsrepl.tail.commit_gate import CommitGate
from rdsrepl.tail.ledger import Ledger
from rdsrepl.tail.model import DecodedBatch, StreamHook
from rdsrepl.tail.output import Output
from rdsrepl.text.counts import counted

if TYPE_CHECKING:
    from rdsrepl.tail.progress import GateProgress, Observer
    from rdsrepl.tail.receiver import Receiver
    from rdsrepl.tail.timelines import Timelines

# Reading pauses while this much waits for the sink.
_QUEUE_BYTES: Final = 16 << 20
_SAMPLE_SECONDS: Final = 0.25


class Delivery:
    """Hands batches over, and counts them.

    Attributes:
        changes, received_bytes: handed over since the start.
    """

    def __init__(
        self,
        output: Output,
        ledger: Ledger,
        observer: Observer,
        committed: Callable[[int, int], None],
        gate: CommitGate | None,
        hook: StreamHook | None,
        *,
        confirm: bool,
    ) -> None:
        """Prepare.

        Args:
            output: takes the lines.
            ledger: knows which batch allows to confirm what.
            observer: receives notes and warnings.
            committed: told the end of each commit that the sink is given, and how many changes came until then.
            gate: holds commits back for a standby.
            hook: learns what is delivered.
            confirm: whether positions are confirmed.
        """
        self._sink = output.sink
        self._file = output.appended
        self._recorded = output.recorded
        self._ledger = ledger
        self._observer = observer
        self._committed = committed
        self._gate = gate
        self._hook = hook
        self._confirm = confirm
        self.changes = self.received_bytes = 0
        # How many changes the sink was given; a gate may hold more back.
        self._put_changes = 0
        # When batches were handed over: (number, time), at most one in _SAMPLE_SECONDS.
        self._handed_over_at: deque[tuple[int, float]] = deque()
        self._is_finishing = False

    @property
    def may_connect(self) -> bool:
        """Whether everything that was handed over is where the next connection looks for it.

        A file is compared with the stream, or ends at its recorded position, at the beginning of each connection.
        """
        is_compared = self._file is not None or self._recorded is not None
        return not is_compared or self._sink.durable >= self._ledger.handed_over

    def connected(self, receiver: Receiver, timelines: Timelines, start_lsn: int) -> None:
        """Begin with the stream of a new connection, which starts at a position.

        Raises:
            Refused: the standby is of another database system or was promoted, or the file is of another stream.
            SinkFailed: the file could not be changed.
        """
        if self._gate is not None:
            self._gate.connected(receiver.system_id, timelines)
            self._gate.release()
        if self._file is not None and not self._file.connected(timelines, start_lsn, receiver.server_lsn):
            self._observer.warn("the end of the output file is not in this format: changes may be written again")
        if self._recorded is not None:
            removed = self._recorded.connected(start_lsn, receiver.system_id, timelines)
            if removed:
                self._observer.note(
                    f"removed {counted(removed, 'byte')} from the end of the file, after the last position that was "
                    "recorded; their changes come again"
                )

    def connection_lost(self) -> None:
        """Forget what the server sends again: an incomplete transaction, and what the gate holds back."""
        held = None if self._gate is None else self._gate.discard()
        if held is None:
            self._ledger.connection_lost(self._ledger.handed_over)
            return
        self._ledger.connection_lost(held - 1)
        self.changes = self._put_changes
        while self._handed_over_at and self._handed_over_at[-1][0] >= held:
            self._handed_over_at.pop()

    @property
    def compares_lines(self) -> bool:
        """Whether the next change may be one that the file has: batches must have at most one change."""
        return self._file is not None and self._file.is_active

    def without_repeats(self, batch: DecodedBatch) -> DecodedBatch:
        """Return a batch without the lines that the file has.

        Raises:
            Refused: the file is of another stream.
        """
        return batch if self._file is None or not self._file.is_active else self._file.without_repeats(batch)

    def reached(self, lsn: int) -> None:
        """Record that the server has sent everything that was committed before a position.

        Raises:
            Refused: the file is of another stream.
        """
        if self._file is not None:
            self._file.reached(lsn)

    def hand_over(self, batch: DecodedBatch, size: int) -> None:
        """Give the lines of a batch, decoded from SIZE bytes, to the sink.

        Raises:
            Error: an earlier batch could not be written.
            MalformedMessage: the batch ends before such a message; its lines were handed over.
        """
        lines, commit_end_lsn = batch.lines, batch.commit_end_lsn
        commits = [(end_lsn, self.changes + changes) for end_lsn, changes in batch.commits]
        if (self._recorded is not None or self._gate is not None) and commit_end_lsn is not None:
            whole = batch.committed_lines
            number = self._ledger.hand_over(commit_end_lsn, in_transaction=False)
            self._put(number, lines[:whole], commit_end_lsn, commit_end_lsn, commits)
            lines, commit_end_lsn, commits = lines[whole:], None, []
        number = self._ledger.hand_over(commit_end_lsn, in_transaction=batch.in_transaction)
        now = time.monotonic()
        if not self._handed_over_at or now - self._handed_over_at[-1][1] >= _SAMPLE_SECONDS:
            self._handed_over_at.append((number, now))
        self.changes += batch.changes
        self._put(number, lines, None, None if lines else 0, commits)
        self.received_bytes += size
        if batch.error is not None:
            raise batch.error

    def keepalive(self, wal_end_lsn: int) -> None:
        """Record that the server has sent everything before this position.

        Raises:
            Error: a batch could not be written, or the file is of another stream.
        """
        if self._recorded is not None and not self._ledger.in_transaction:
            number = self._ledger.hand_over(None, in_transaction=False)
            self._put(number, [], wal_end_lsn, 0)
        self._ledger.keepalive(wal_end_lsn)
        if not self._ledger.in_transaction:
            self.reached(wal_end_lsn)

    def advance(self) -> None:
        """Give the sink what the gate need not hold back any more, and take note of what the sink has stored.

        Raises:
            Error: a batch could not be written.
            Refused: the standby of the gate was promoted.
        """
        if self._gate is not None:
            self._gate.release()
        self._ledger.deliver(self._sink.durable)
        if self._hook is not None:
            self._hook.delivered(self._ledger.flush_lsn)

    def confirmable_lsn(self) -> int:
        """Return the position that may be confirmed to the server; 0 if none may."""
        may = self._confirm and (self._file is None or self._file.is_verified)
        return self._ledger.flush_lsn if may else 0

    @property
    def has_held_back(self) -> bool:
        """Whether the gate holds something back."""
        return self._gate is not None and self._gate.first_number is not None

    def is_finished(self, *, wait_for_held: bool) -> bool:
        """Return whether the sink has stored everything; it is told when nothing more comes.

        Args:
            wait_for_held: whether that includes what the gate holds back.

        Raises:
            Error: as ``advance``.
        """
        self.advance()
        held = None if self._gate is None else self._gate.first_number
        if held is not None and wait_for_held:
            return False
        if not self._is_finishing:
            self._sink.finish()
            self._is_finishing = True
        return self._ledger.delivered >= (self._ledger.handed_over if held is None else held - 1)

    @property
    def pending_bytes(self) -> int:
        """The size of what was handed over and is not yet written."""
        return self._sink.pending_bytes + (0 if self._gate is None else self._gate.held_bytes)

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the sink that nothing more should be read."""
        return self.pending_bytes >= _QUEUE_BYTES

    @property
    def gate_progress(self) -> GateProgress | None:
        """What the gate holds back; None without one."""
        return None if self._gate is None else self._gate.progress

    @property
    def oldest_undelivered_seconds(self) -> float:
        """How long the oldest change that is not durable has waited since it was received."""
        waiting, durable, last = self._handed_over_at, self._ledger.delivered, self._ledger.handed_over
        while waiting and waiting[0][0] <= durable:
            at = waiting.popleft()[1]
            if not waiting and durable < last:
                waiting.append((last, at))
        return time.monotonic() - waiting[0][1] if waiting else 0.0

    def _put(
        self,
        number: int,
        lines: Sequence[str] | Sequence[bytes],
        until_lsn: int | None,
        standby_lsn: int | None,
        commits: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Give a batch to the sink, or to the gate in front of it.

        Args:
            number: of the batch.
            lines: its lines.
            until_lsn: everything that was committed before this position ends with it; None if that is not known.
            standby_lsn: what the standby of a gate must have replayed; None if that is not known yet.
            commits: the end of each commit in it, and how many changes came until then.
        """
        changes = commits[-1][1] if commits else self.changes

        def put() -> None:
            self._put_changes = changes
            for end_lsn, until in commits:
                self._committed(end_lsn, until)
            if self._recorded is not None and until_lsn is not None:
                self._recorded.put_until(number, lines, until_lsn)
            else:
                self._sink.put(number, lines)

        if self._gate is None:
            put()
        else:
            self._gate.hold(number, sum(map(len, lines)), put, standby_lsn)
