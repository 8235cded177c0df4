"""The tail's loop: read, hand over to the sink, confirm; and connect again after a transient error.

Reading, writing and confirming do not wait for each other: the sink writes in its own thread, the loop stops reading
while the sink is full, and status updates go out on time all the while.
"""

from __future__ import annotations

import contextlib
import random
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.tail.appended_file import AppendedFile
from rdsrepl.tail.connector import Connector
from rdsrepl.tail.ledger import Ledger
from rdsrepl.tail.model import DecodedBatch, StreamHook
from rdsrepl.tail.options import TailOptions
from rdsrepl.tail.pipeline import Pipeline
from rdsrepl.tail.progress import Observer, Progress, RecentNotes, Summary
from rdsrepl.tail.receiver import Notice, Receiver
from rdsrepl.tail.shutdown import ShutdownDetector
from rdsrepl.tail.signals import StopSignals
from rdsrepl.tail.silence import SilenceMonitor
from rdsrepl.tail.sinks.base import Sink
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.tail.commit_gate import CommitGate
    from rdsrepl.tail.continuity import LastRun
    from rdsrepl.tail.preflight import PreflightResult
    from rdsrepl.tail.sinks.recorded_file import RecordedFileSink
    from rdsrepl.tail.timelines import Timelines

QUEUE_BYTES: Final = 16 << 20
# A position is confirmed at most this long after it is durable: a killed run repeats what it has not confirmed.
_CONFIRM_SECONDS: Final = 0.2
# How often the server is asked for its position while it sends nothing.
_ASK_SECONDS: Final = 1.0
_STATUS_SECONDS: Final = 10.0
_FIRST_DELAY_SECONDS: Final = 0.1
_LONGEST_DELAY_SECONDS: Final = 10.0
_SAMPLE_SECONDS: Final = 0.25
# Output that has not taken a change for this long is slow enough to hold up a shutdown of the server.
_STALLED_SECONDS: Final = 3.0
# How many different notices of the server are reported; a notice about every change differs each time.
_MAX_NOTICES: Final = 1000


class Tail:
    """One run of ``slot tail``."""

    def __init__(
        self,
        target: Target,
        options: TailOptions,
        pipeline: Pipeline,
        sink: Sink,
        observer: Observer,
        check: Callable[[bool], PreflightResult],
        last_run: LastRun | None = None,
        file: AppendedFile | None = None,
        recorded: RecordedFileSink | None = None,
        gate: CommitGate | None = None,
        hook: StreamHook | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            target: the database.
            options: what to stream, and when to stop.
            pipeline: turns messages into lines.
            sink: takes the lines.
            observer: receives notes, warnings and the progress.
            check: the preflight check, repeated for each connection; takes whether the server must be a primary.
            last_run: what is remembered from run to run; None where positions are not confirmed.
            file: what the sink appends to, if changes that it has are left out.
            recorded: the sink, if it records positions; the stream continues at the last one.
            gate: holds commits back for a standby.
            hook: takes part in the stream; the decoder calls it, and here it learns what is delivered.
        """
        self._options = options
        self._target = target
        self._stop = options.stop
        self._decoder = pipeline.decoder
        self._sink = sink
        self._file = file
        self._recorded = recorded
        self._gate = gate
        self._hook = hook
        self._observer = observer
        self._ledger = Ledger()
        self._signals = StopSignals()
        self._connector = Connector(
            target, options, pipeline, self._ledger, observer, check, self._pause, last_run, recorded
        )
        self._silence = SilenceMonitor(options, self._ledger)
        self._notices: set[str] = set()
        self._started = self._last_change = time.monotonic()
        self._changes = self._bytes = self._reconnects = 0
        # How many changes the sink was given; a gate may hold more back.
        self._put_changes = 0
        self._last_status = self._asked = 0.0
        self._sent_flush = 0
        self._shutdown_watch: ShutdownDetector | None = None
        self._connected = False
        # When batches were handed over: (number, time), at most one in _SAMPLE_SECONDS.
        self._handed_over_at: deque[tuple[int, float]] = deque()

    @property
    def was_stopped(self) -> bool:
        """Whether a signal ended the run."""
        return self._signals.received is not None

    def continue_after(self, batches: int) -> None:
        """Begin with the batch after these, which the sink has already."""
        self._ledger.continue_after(batches)

    def run(self) -> Summary:
        """Stream until a stop condition, a signal or an error that is not transient.

        Raises:
            Error: the slot is missing, invalidated or in use; the sink failed; the server refuses. What was delivered
                until then is confirmed as far as the connection still allows.
        """
        with self._signals.installed():
            try:
                return self._run()
            finally:
                self._sink.close()
                self._stop_shutdown_watch()

    def _run(self) -> Summary:
        delay, retry_notes = _FIRST_DELAY_SECONDS, RecentNotes()
        while True:
            receiver: Receiver | None = None
            connected_at = time.monotonic()
            try:
                receiver = self._connect()
                connected_at = time.monotonic()
                if receiver is None:
                    return self._stop_unconnected()
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
                return self._summary(reason)
            except errors.Error as exc:
                self._connected = False
                if receiver is not None:
                    # What a reader that ended did with the last changes is not known: they come again.
                    if not isinstance(exc, errors.OutputClosed):
                        self._confirm_quietly(receiver)
                    receiver.close()
                    if isinstance(exc, errors.Unreachable):
                        self._silence.require_progress(receiver, self._connector.claimed_lsn)
                if isinstance(exc, errors.SlotMoved):
                    self._drain(None)  # the server cannot send it again
                if not self._connector.has_connected or not self._connector.is_transient(exc):
                    raise
                if time.monotonic() - connected_at > _LONGEST_DELAY_SECONDS:
                    delay = _FIRST_DELAY_SECONDS  # the connection was good: this is another failure
                pause = delay * random.uniform(0.5, 1.0)
                if retry_notes.is_due(exc.message, time.monotonic()):
                    self._observer.note(f"{exc.message}; connecting again in {pause:.1f}s, then repeatedly")
            self._connection_lost()
            self._reconnects += 1
            self._observer.progress(self._progress())
            if self._pause(pause):
                return self._stop_unconnected()
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)

    def _connection_lost(self) -> None:
        """Forget what the server sends again: an incomplete transaction, and what the gate holds back."""
        held = None if self._gate is None else self._gate.discard()
        if held is None:
            self._ledger.connection_lost(self._ledger.handed_over)
            return
        self._ledger.connection_lost(held - 1)
        self._changes = self._put_changes
        while self._handed_over_at and self._handed_over_at[-1][0] >= held:
            self._handed_over_at.pop()

    def _stop_unconnected(self) -> Summary:
        """Stop without a connection: what the sink still gets is not confirmed, and comes again."""
        self._drain(None)
        return self._summary(self._time_is_up(time.monotonic()) or self._signals.reason)

    def _connect(self) -> Receiver | None:
        """Return a connection that streams; None when the run was stopped while it waited for the slot."""
        self._release()
        if (self._file is not None or self._recorded is not None) and self._await_durable():
            return None
        connected = self._connector.connect(self._changes)
        if connected is None:
            return None
        receiver, timelines = connected
        self._decoder.reset(timelines)
        if self._gate is not None:
            self._open_gate(self._gate, receiver, timelines)
        if self._file is not None:
            self._read_file(self._file, receiver, timelines)
        if self._recorded is not None:
            self._continue_file(self._recorded, receiver, timelines)
        self._last_status = time.monotonic()
        self._sent_flush = 0
        self._silence.connected()
        return receiver

    def _open_gate(self, gate: CommitGate, receiver: Receiver, timelines: Timelines) -> None:
        """Let the gate compare its standby with the server.

        Raises:
            Refused: the standby is of another database system, or was promoted.
        """
        try:
            gate.connected(receiver.system_id, timelines)
            gate.release()
        except BaseException:
            receiver.close()
            raise

    def _read_file(self, file: AppendedFile, receiver: Receiver, timelines: Timelines) -> None:
        """Find out what the output file has of the stream that begins.

        Raises:
            Refused: the file is of another stream.
        """
        try:
            is_known = file.connected(timelines, self._connector.start_lsn, receiver.server_lsn)
        except BaseException:
            receiver.close()
            raise
        if not is_known:
            self._observer.warn("the end of the output file is not in this format: changes may be written again")

    def _continue_file(self, file: RecordedFileSink, receiver: Receiver, timelines: Timelines) -> None:
        """Let the output file end at the position where the stream starts.

        Raises:
            SinkFailed: the file could not be changed.
        """
        try:
            removed = file.connected(self._connector.start_lsn, receiver.system_id, timelines)
        except BaseException:
            receiver.close()
            raise
        if removed:
            self._observer.note(
                f"removed {counted(removed, 'byte')} from the end of the file, after the last position that was "
                "recorded; their changes come again"
            )

    def _await_durable(self) -> bool:
        """Wait until the output has everything that was handed over; return whether to stop."""
        while self._sink.durable < self._ledger.handed_over:
            if self._pause(_SAMPLE_SECONDS / 5):
                return True
        return False

    def _loop(self, receiver: Receiver) -> str:
        """Read and hand over until there is a reason to stop; return it."""
        sink, ledger, stop = self._sink, self._ledger, self._stop
        wakeups = [sink.wakeup, self._signals.wakeup]
        interval = _STATUS_SECONDS
        if receiver.wal_sender_timeout_seconds:
            interval = min(interval, receiver.wal_sender_timeout_seconds / 3)
        while True:
            now = time.monotonic()
            self._release()
            ledger.deliver(sink.durable)
            if self._hook is not None:
                self._hook.delivered(ledger.flush_lsn)
            self._status(receiver, now, interval)
            progress = self._progress()
            self._leave_at_shutdown(progress)
            self._observer.progress(progress)
            if self._signals.received is not None:
                return self._signals.reason
            if (reason := self._time_is_up(now)) is not None:
                return reason
            if self._pending_bytes >= QUEUE_BYTES:
                receiver.heard()
                receiver.wait(min(_ASK_SECONDS, interval), wakeups, read=False)
                sink.wakeup.drain()
                continue
            messages = receiver.read()
            for before, notice in receiver.take_notices():
                self._take_notice(messages[:before], notice)
            if messages:
                receiver.require_timeline()
            if messages and (reason := self._take(messages)) is not None:
                return reason
            if receiver.take_keepalive():
                receiver.require_timeline()
                if self._recorded is not None and not ledger.in_transaction:
                    number = ledger.hand_over(None, in_transaction=False)
                    self._put(number, [], receiver.wal_end_lsn, 0)
                ledger.keepalive(receiver.wal_end_lsn)
                if self._file is not None and not ledger.in_transaction:
                    self._file.reached(receiver.wal_end_lsn)
                reached = stop.until_lsn is not None and receiver.wal_end_lsn >= stop.until_lsn
                if reached and not ledger.in_transaction:
                    return stop.until_reason
            elif not messages:
                if stop.until_lsn is not None and now - self._asked >= _ASK_SECONDS:
                    # The server has nothing to send: ask for its position, so that a quiet database ends the run too.
                    self._confirm(receiver, reply=True)
                    self._asked = now
                if self._silence.must_ask(receiver, now):
                    self._confirm(receiver, reply=True)
                receiver.wait(self._until_next(receiver, now, interval), wakeups)
                sink.wakeup.drain()

    def _leave_at_shutdown(self, progress: Progress) -> None:
        """Detect a shutdown of the server while the output is slow, and disconnect: the server would wait for us.

        Raises:
            ConnectionLost: the server is shutting down.
        """
        if progress.oldest_undelivered_seconds < _STALLED_SECONDS:
            self._stop_shutdown_watch()
        elif self._shutdown_watch is None:
            self._shutdown_watch = ShutdownDetector(self._target)
        elif self._shutdown_watch.seen:
            self._stop_shutdown_watch()
            raise errors.ConnectionLost(
                "the server is shutting down, and the output is blocked: disconnecting without waiting for it"
            )

    def _stop_shutdown_watch(self) -> None:
        if self._shutdown_watch is not None:
            self._shutdown_watch.stop()
            self._shutdown_watch = None

    def _take_notice(self, before: Sequence[bytes], notice: Notice) -> None:
        """Report a notice of the server; each text once in a run.

        Raises:
            NotFound: the server leaves changes out that are older than a publication. The messages BEFORE the notice
                are handed over, and none after it.
        """
        if notice.skips_publication and not self._options.allow_missing_publication:
            if before:
                self._take(before)
            raise errors.NotFound(
                f"the server leaves changes out: {notice.text}",
                hint="a publication must be older than the slot's position. Create a new slot, or move this one past "
                f"these changes ({command('slot advance {} --to-current', self._options.slot_name)}), or continue "
                "without them: --allow-missing-publication",
                sqlstate=notice.sqlstate,
            )
        text = f"message from the server: {notice.text}"
        if text in self._notices or len(self._notices) >= _MAX_NOTICES:
            return
        self._notices.add(text)
        (self._observer.warn if notice.severity == "WARNING" else self._observer.note)(text)

    def _take(self, messages: Sequence[bytes]) -> str | None:
        """Decode and hand over; return a reason to stop, or None."""
        limit = self._stop.limit
        if self._file is not None and self._file.is_active:
            return self._take_each(messages)
        if limit is not None and self._changes + len(messages) >= limit:
            return self._take_each(messages)
        batch = self._decoder.feed(messages)
        self._hand_over(batch, sum(map(len, messages)))
        return self._stop.until_reason if batch.reached_until else None

    def _take_each(self, messages: Sequence[bytes]) -> str | None:
        """Decode message by message: leave out what the file has, and stop after the last wanted change.

        The commit of the last wanted change is taken as well if it comes next.
        """
        limit = self._stop.limit
        for message in messages:
            batch = self._decoder.feed([message])
            if self._file is not None and self._file.is_active:
                batch = self._file.without_repeats(batch)
            if limit is not None and self._changes >= limit and batch.changes:
                return f"reached --limit {limit}, within a transaction that is not confirmed"
            self._hand_over(batch, len(message))
            if batch.reached_until:
                if self._file is not None and self._stop.until_lsn is not None:
                    self._file.reached(self._stop.until_lsn)
                return self._stop.until_reason
            if limit is not None and self._changes >= limit and not batch.in_transaction:
                return f"reached --limit {limit}"
        return None

    def _hand_over(self, batch: DecodedBatch, size: int) -> None:
        lines, commit_end_lsn = batch.lines, batch.commit_end_lsn
        commits = [(end_lsn, self._changes + changes) for end_lsn, changes in batch.commits]
        if (self._recorded is not None or self._gate is not None) and commit_end_lsn is not None:
            whole = batch.committed_lines
            number = self._ledger.hand_over(commit_end_lsn, in_transaction=False)
            self._put(number, lines[:whole], commit_end_lsn, commit_end_lsn, commits)
            lines, commit_end_lsn, commits = lines[whole:], None, []
        number = self._ledger.hand_over(commit_end_lsn, in_transaction=batch.in_transaction)
        now = time.monotonic()
        if not self._handed_over_at or now - self._handed_over_at[-1][1] >= _SAMPLE_SECONDS:
            self._handed_over_at.append((number, now))
        if batch.changes:
            self._changes += batch.changes
            self._last_change = now
        self._put(number, lines, None, None if lines else 0, commits)
        self._bytes += size
        if batch.error is not None:
            raise batch.error

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
        changes = commits[-1][1] if commits else self._changes

        def put() -> None:
            self._put_changes = changes
            for end_lsn, until in commits:
                self._connector.commits.add(end_lsn, until)
            if self._recorded is not None and until_lsn is not None:
                self._recorded.put_until(number, lines, until_lsn)
            else:
                self._sink.put(number, lines)

        if self._gate is None:
            put()
        else:
            self._gate.hold(number, sum(map(len, lines)), put, standby_lsn)

    def _release(self) -> None:
        if self._gate is not None:
            self._gate.release()

    @property
    def _pending_bytes(self) -> int:
        return self._sink.pending_bytes + (0 if self._gate is None else self._gate.held_bytes)

    def _confirmable(self) -> int:
        may = self._options.confirm and (self._file is None or self._file.is_verified)
        return self._ledger.flush_lsn if may else 0

    def _status(self, receiver: Receiver, now: float, interval: float) -> None:
        """Send a status update when one is due: requested, a new position to confirm, or the interval is over."""
        age = now - self._last_status
        has_new = self._confirmable() > self._sent_flush
        is_due = age >= _CONFIRM_SECONDS or self._sent_flush == 0
        if receiver.reply_requested or age >= interval or (has_new and is_due):
            self._confirm(receiver)
            self._last_status = now

    def _confirm(self, receiver: Receiver, *, reply: bool = False) -> None:
        """Send a status update; what it confirms is stored before."""
        flush = self._confirmable()
        self._connector.confirming(flush)
        receiver.send_status(max(self._ledger.sent_lsn, flush), flush, reply=reply)
        self._sent_flush = flush

    def _until_next(self, receiver: Receiver, now: float, interval: float) -> float:
        """Return how long the loop may wait, in seconds."""
        due = [interval - (now - self._last_status)]
        if (check_at := self._silence.due_at(receiver)) is not None:
            due.append(check_at - now)
        if not self._ledger.all_delivered or self._confirmable() > self._sent_flush or self._stop.until_lsn is not None:
            due.append(_CONFIRM_SECONDS)
        if self._stop.duration_seconds is not None:
            due.append(self._started + self._stop.duration_seconds - now)
        if self._stop.idle_seconds is not None:
            due.append(self._last_change + self._stop.idle_seconds - now)
        return max(0.001, min(due))

    def _duration_is_over(self, now: float) -> bool:
        allowed = self._stop.duration_seconds
        return allowed is not None and now - self._started >= allowed

    def _time_is_up(self, now: float) -> str | None:
        if self._duration_is_over(now):
            return "reached --duration"
        idle = now - self._last_change
        if self._stop.idle_seconds is not None and idle >= self._stop.idle_seconds and self._ledger.all_delivered:
            return "no change for --idle-exit"
        return None

    def _finish(self, receiver: Receiver) -> None:
        """Deliver and confirm what was received."""
        is_connected = self._drain(receiver)
        if self._hook is not None:
            self._hook.delivered(self._ledger.flush_lsn)
        if is_connected:
            self._confirm(receiver)

    def _drain(self, receiver: Receiver | None) -> bool:
        """Wait until the sink has delivered everything; the connection, if there is one, is kept alive.

        Returns:
            Whether the connection still exists.

        Raises:
            Unreachable: the connection was lost while commits are held back for a standby.
        """
        allowed = self._stop.drain_seconds
        started = time.monotonic()
        deadline = None if allowed is None else started + allowed
        noted = finished = False
        while self._sink.durable < (last := self._last_to_drain()) or not finished:
            if not finished and (self._gate is None or last < (self._gate.first_number or last + 1)):
                self._sink.finish()  # nothing more comes through the gate
                finished = True
                continue
            self._ledger.deliver(self._sink.durable)
            if deadline is not None and time.monotonic() >= deadline:
                self._observer.warn(
                    f"delivery timed out after {allowed:g}s: changes that are not confirmed come again in the next run"
                )
                break
            if not noted and time.monotonic() - started >= _STALLED_SECONDS:
                again = "twice" if self._signals.received is None else "again"
                self._observer.note(f"waiting until the output has taken every change; Ctrl-C {again} ends at once")
                noted = True
            if receiver is None:
                time.sleep(0.05)
                continue
            interval = (receiver.wal_sender_timeout_seconds or 3 * _STATUS_SECONDS) / 3
            try:
                self._status(receiver, time.monotonic(), min(interval, _STATUS_SECONDS))
                self._leave_at_shutdown(self._progress())
                receiver.wait(0.5, [self._sink.wakeup], read=False)
            except errors.Unreachable as exc:
                if self._waits_for_gate:
                    raise  # only a new connection tells whether its server has what is held back
                self._observer.warn(f"{exc.message}; changes delivered from now on are not confirmed, and come again")
                self._confirm_quietly(receiver)
                receiver.close()
                receiver = None
                continue
            self._sink.wakeup.drain()
        self._ledger.deliver(self._sink.durable)
        return receiver is not None

    def _last_to_drain(self) -> int:
        """Return the number of the last batch that the sink must have.

        ``--until-lsn`` and ``--limit`` wait for what a gate holds back, a signal and ``--duration`` do not.
        """
        if self._gate is None:
            return self._ledger.handed_over
        self._gate.release()
        held = self._gate.first_number
        return self._ledger.handed_over if held is None or self._waits_for_gate else held - 1

    @property
    def _waits_for_gate(self) -> bool:
        is_cut_short = self._signals.received is not None or self._duration_is_over(time.monotonic())
        return self._gate is not None and self._gate.first_number is not None and not is_cut_short

    def _confirm_quietly(self, receiver: Receiver) -> None:
        """Confirm what is durable before an error ends the connection, if that is still possible."""
        with contextlib.suppress(Exception):
            self._ledger.deliver(self._sink.durable)
        with contextlib.suppress(Exception):
            self._confirm(receiver)

    def _pause(self, seconds: float) -> bool:
        """Wait; return whether to stop: a signal was received, or the duration is over."""
        deadline = time.monotonic() + seconds
        if self._stop.duration_seconds is not None:
            deadline = min(deadline, self._started + self._stop.duration_seconds)
        while self._signals.received is None and (left := deadline - time.monotonic()) > 0:
            select.select([self._signals.wakeup], [], [], left)
        return self._signals.received is not None or self._duration_is_over(time.monotonic())

    def _progress(self) -> Progress:
        waiting, durable, last = self._handed_over_at, self._ledger.delivered, self._ledger.handed_over
        while waiting and waiting[0][0] <= durable:
            at = waiting.popleft()[1]
            if not waiting and durable < last:
                waiting.append((last, at))
        now = time.monotonic()
        return Progress(
            self._changes,
            self._bytes,
            Lsn(self._ledger.sent_lsn),
            Lsn(self._sent_flush),
            now - self._started,
            self._reconnects,
            self._connected,
            self._pending_bytes,
            now - waiting[0][1] if waiting else 0.0,
            None if self._gate is None else self._gate.progress,
            self._connector.timeline,
            self._connector.undone_changes,
        )

    def _summary(self, reason: str) -> Summary:
        return Summary(self._progress(), reason)
