"""The tail's loop: read, hand over to the sink, confirm; and connect again after a transient error.

Reading, writing and confirming do not wait for each other: the sink writes in its own thread, the loop stops reading
while the sink is full, and status updates go out on time all the while.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.tail.connector import Connector
from rdsrepl.tail.delivery import Delivery
from rdsrepl.tail.ledger import Ledger
from rdsrepl.tail.model import DecodedBatch, StreamHook
from rdsrepl.tail.options import TailOptions
from rdsrepl.tail.output import Output
from rdsrepl.tail.pipeline import Pipeline
from rdsrepl.tail.progress import Observer, Progress, RecentNotes, Summary
from rdsrepl.tail.receiver import Receiver
from rdsrepl.tail.run_clock import RunClock
from rdsrepl.tail.server_notices import ServerNotices
from rdsrepl.tail.shutdown import BLOCKED_SECONDS, ShutdownWatch
from rdsrepl.tail.silence import SilenceMonitor
from rdsrepl.tail.status_updates import CONFIRM_SECONDS, StatusUpdates, interval_seconds

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.tail.commit_gate import CommitGate
    from rdsrepl.tail.continuity import LastRun
    from rdsrepl.tail.preflight import PreflightResult

# How often the server is asked for its position while it sends nothing.
_ASK_SECONDS: Final = 1.0
_FIRST_DELAY_SECONDS: Final = 0.1
_LONGEST_DELAY_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05


class Tail:
    """One run of ``slot tail``."""

    def __init__(
        self,
        target: Target,
        options: TailOptions,
        pipeline: Pipeline,
        output: Output,
        observer: Observer,
        check: Callable[[bool], PreflightResult],
        last_run: LastRun | None = None,
        gate: CommitGate | None = None,
        hook: StreamHook | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            target: the database.
            options: what to stream, and when to stop.
            pipeline: turns messages into lines.
            output: takes the lines.
            observer: receives notes, warnings and the progress.
            check: the preflight check, repeated for each connection; takes whether the server must be a primary.
            last_run: what is remembered from run to run; None where positions are not confirmed.
            gate: holds commits back for a standby.
            hook: takes part in the stream; the decoder calls it, and here it learns what is delivered.
        """
        self._stop = options.stop
        self._decoder = pipeline.decoder
        self._sink = output.sink
        self._observer = observer
        self._clock = RunClock(options.stop)
        self._ledger = Ledger()
        self._connector = Connector(
            target, options, pipeline, self._ledger, observer, check, self._clock.pause, last_run, output.recorded
        )
        self._delivery = Delivery(
            output, self._ledger, observer, self._connector.committed, gate, hook, confirm=options.confirm
        )
        self._updates = StatusUpdates(self._ledger, self._connector, self._delivery.confirmable_lsn)
        self._silence = SilenceMonitor(options, self._ledger)
        self._shutdown = ShutdownWatch(target)
        self._notices = ServerNotices(options, observer)
        self._reconnects = 0
        self._connected = False
        self._asked_at = 0.0

    @property
    def was_stopped(self) -> bool:
        """Whether a signal ended the run."""
        return self._clock.signals.received is not None

    def continue_after(self, batches: int) -> None:
        """Begin with the batch after these, which the sink has already; they were the last change."""
        self._ledger.continue_after(batches)
        self._clock.changed()

    def run(self) -> Summary:
        """Stream until a stop condition, a signal or an error that is not transient.

        Raises:
            Error: the slot is missing, invalidated or in use; the sink failed; the server refuses. What was delivered
                until then is confirmed as far as the connection still allows.
        """
        with self._clock.signals.installed():
            try:
                return self._run()
            finally:
                self._sink.close()
                self._shutdown.stop()

    def _run(self) -> Summary:
        delay, retry_notes = _FIRST_DELAY_SECONDS, RecentNotes()
        while True:
            receiver: Receiver | None = None
            connected_at = time.monotonic()
            try:
                receiver = self._connect()
                if receiver is None:
                    return self._stop_unconnected()
                connected_at = time.monotonic()
                return self._stream(receiver)
            except errors.Error as exc:
                self._connected = False
                if receiver is not None:
                    self._disconnect(receiver, exc)
                if isinstance(exc, errors.SlotMoved):
                    self._drain(None)  # the server cannot send it again
                if not self._connector.has_connected or not self._connector.is_transient(exc):
                    raise
                if time.monotonic() - connected_at > _LONGEST_DELAY_SECONDS:
                    delay = _FIRST_DELAY_SECONDS  # the connection was good: this is another failure
                pause = delay * random.uniform(0.5, 1.0)
                if retry_notes.is_due(exc.message, time.monotonic()):
                    self._observer.note(f"{exc.message}; connecting again in {pause:.1f}s, then repeatedly")
            self._delivery.connection_lost()
            self._reconnects += 1
            self._observer.progress(self._progress())
            if self._clock.pause(pause):
                return self._stop_unconnected()
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)

    def _connect(self) -> Receiver | None:
        """Return a connection that streams; None when the run was stopped while it waited."""
        self._delivery.advance()
        while not self._delivery.may_connect:
            if self._clock.pause(_POLL_SECONDS):
                return None
        connected = self._connector.connect(self._delivery.changes)
        if connected is None:
            return None
        receiver, timelines = connected
        try:
            self._decoder.reset(timelines)
            self._delivery.connected(receiver, timelines, self._connector.start_lsn)
        except BaseException:
            receiver.close()
            raise
        self._updates.connected()
        self._silence.connected()
        return receiver

    def _stream(self, receiver: Receiver) -> Summary:
        """Stream on one connection until the run stops."""
        self._connected = True
        try:
            reason = self._loop(receiver)
        except errors.MalformedMessage:
            # Deliver and confirm everything before it, so that the slot's position is exactly the message's.
            self._finish(receiver)
            receiver.close(polite=True)
            raise
        self._finish(receiver)
        self._connector.finish()
        receiver.close(polite=True)
        self._connector.ended()
        return Summary(self._progress(), reason)

    def _disconnect(self, receiver: Receiver, exc: errors.Error) -> None:
        """Close a connection after an error, and confirm before that what is delivered.

        Raises:
            TimedOut: it was one of many connections that ended in silence.
        """
        # What a reader that ended did with the last changes is not known: they come again.
        if not isinstance(exc, errors.OutputClosed):
            self._confirm_quietly(receiver)
        receiver.close()
        if isinstance(exc, errors.Unreachable):
            self._silence.require_progress(receiver, self._connector.claimed_lsn)

    def _stop_unconnected(self) -> Summary:
        """Stop without a connection: what the sink still gets is not confirmed, and comes again."""
        self._drain(None)
        reason = self._clock.reason_to_stop(all_delivered=False)
        assert reason is not None
        return Summary(self._progress(), reason)

    def _loop(self, receiver: Receiver) -> str:
        """Read and hand over until there is a reason to stop; return it."""
        wakeups = [self._sink.wakeup, self._clock.signals.wakeup]
        while True:
            self._delivery.advance()
            self._updates.send_due(receiver)
            progress = self._progress()
            self._shutdown.check(progress.oldest_undelivered_seconds)
            self._observer.progress(progress)
            if (reason := self._clock.reason_to_stop(all_delivered=self._ledger.all_delivered)) is not None:
                return reason
            if self._delivery.is_full:
                receiver.heard()
                receiver.wait(min(_ASK_SECONDS, interval_seconds(receiver)), wakeups, read=False)
                self._sink.wakeup.drain()
                continue
            messages = receiver.read()
            for before, notice in receiver.take_notices():
                if (refused := self._notices.report(notice)) is not None:
                    if before:
                        self._take(messages[:before])
                    raise refused
            if messages:
                receiver.require_timeline()
                if (reason := self._take(messages)) is not None:
                    return reason
            if receiver.take_keepalive():
                if (reason := self._take_keepalive(receiver)) is not None:
                    return reason
            elif not messages:
                self._ask(receiver)
                receiver.wait(self._seconds_left(receiver), wakeups)
                self._sink.wakeup.drain()

    def _take(self, messages: Sequence[bytes]) -> str | None:
        """Decode and hand over; return a reason to stop, or None."""
        limit = self._stop.limit
        if self._delivery.compares_lines or (limit is not None and self._delivery.changes + len(messages) >= limit):
            return self._take_each(messages)
        batch = self._decoder.feed(messages)
        self._hand_over(batch, sum(map(len, messages)))
        return self._stop.until_reason if batch.reached_until else None

    def _take_each(self, messages: Sequence[bytes]) -> str | None:
        """Decode message by message: leave out what the file has, and stop after the last wanted change.

        The commit of the last wanted change is taken as well if it comes next.
        """
        limit, delivery = self._stop.limit, self._delivery
        for message in messages:
            batch = delivery.without_repeats(self._decoder.feed([message]))
            if limit is not None and delivery.changes >= limit and batch.changes:
                return f"reached --limit {limit}, within a transaction that is not confirmed"
            self._hand_over(batch, len(message))
            if batch.reached_until:
                if self._stop.until_lsn is not None:
                    delivery.reached(self._stop.until_lsn)
                return self._stop.until_reason
            if limit is not None and delivery.changes >= limit and not batch.in_transaction:
                return f"reached --limit {limit}"
        return None

    def _hand_over(self, batch: DecodedBatch, size: int) -> None:
        if batch.changes:
            self._clock.changed()
        self._delivery.hand_over(batch, size)

    def _take_keepalive(self, receiver: Receiver) -> str | None:
        """Record how far the server has sent; return a reason to stop, or None."""
        receiver.require_timeline()
        self._delivery.keepalive(receiver.wal_end_lsn)
        until_lsn = self._stop.until_lsn
        if until_lsn is not None and receiver.wal_end_lsn >= until_lsn and not self._ledger.in_transaction:
            return self._stop.until_reason
        return None

    def _ask(self, receiver: Receiver) -> None:
        """Ask the server for a keepalive while it sends nothing, if one is needed now.

        Raises:
            ConnectionLost: it was asked before, and did not reply in time.
        """
        now = time.monotonic()
        if self._stop.until_lsn is not None and now - self._asked_at >= _ASK_SECONDS:
            # Its position ends the run also on a quiet database.
            self._updates.send(receiver, reply=True)
            self._asked_at = now
        if self._silence.must_ask(receiver, now):
            self._updates.send(receiver, reply=True)

    def _seconds_left(self, receiver: Receiver) -> float:
        """Return how long the loop may wait."""
        now = time.monotonic()
        due = [self._updates.seconds_left(receiver)]
        if (check_at := self._silence.due_at(receiver)) is not None:
            due.append(check_at - now)
        if not self._ledger.all_delivered or self._updates.has_new or self._stop.until_lsn is not None:
            due.append(CONFIRM_SECONDS)
        if (left := self._clock.seconds_left()) is not None:
            due.append(left)
        return max(0.001, min(due))

    def _finish(self, receiver: Receiver) -> None:
        """Deliver and confirm what was received."""
        if self._drain(receiver):
            self._updates.send(receiver)

    def _drain(self, receiver: Receiver | None) -> bool:
        """Wait until the sink has stored everything; the connection, if there is one, is kept alive.

        ``--until-lsn`` and ``--limit`` wait for what a gate holds back, a signal and ``--duration`` do not.

        Returns:
            Whether the connection still exists.

        Raises:
            Unreachable: the connection was lost while commits are held back for a standby.
        """
        allowed, started_at, noted = self._stop.drain_seconds, time.monotonic(), False
        while not self._delivery.is_finished(wait_for_held=not self._clock.is_cut_short):
            waited = time.monotonic() - started_at
            if allowed is not None and waited >= allowed:
                self._observer.warn(
                    f"delivery timed out after {allowed:g}s: changes that are not confirmed come again in the next run"
                )
                break
            if not noted and waited >= BLOCKED_SECONDS:
                again = "again" if self.was_stopped else "twice"
                self._observer.note(f"waiting until the output has taken every change; Ctrl-C {again} ends at once")
                noted = True
            if receiver is None:
                time.sleep(_POLL_SECONDS)
                continue
            try:
                self._updates.send_due(receiver)
                self._shutdown.check(self._delivery.oldest_undelivered_seconds)
                receiver.wait(0.5, [self._sink.wakeup], read=False)
            except errors.Unreachable as exc:
                if self._delivery.has_held_back and not self._clock.is_cut_short:
                    raise  # only a new connection tells whether its server has what is held back
                self._observer.warn(f"{exc.message}; changes delivered from now on are not confirmed, and come again")
                self._confirm_quietly(receiver)
                receiver.close()
                receiver = None
                continue
            self._sink.wakeup.drain()
        return receiver is not None

    def _confirm_quietly(self, receiver: Receiver) -> None:
        """Confirm what is durable before an error ends the connection, if that is still possible."""
        with contextlib.suppress(Exception):
            self._ledger.deliver(self._sink.durable)
        with contextlib.suppress(Exception):
            self._updates.send(receiver)

    def _progress(self) -> Progress:
        delivery = self._delivery
        return Progress(
            changes=delivery.changes,
            received_bytes=delivery.received_bytes,
            received_lsn=Lsn(self._ledger.sent_lsn),
            confirmed_lsn=Lsn(self._updates.confirmed_lsn),
            seconds=self._clock.seconds,
            reconnects=self._reconnects,
            connected=self._connected,
            pending_bytes=delivery.pending_bytes,
            oldest_undelivered_seconds=delivery.oldest_undelivered_seconds,
            gate=delivery.gate_progress,
            timeline=self._connector.timeline,
            undone_changes=self._connector.undone_changes,
        )
