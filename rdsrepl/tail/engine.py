"""The tail itself: one loop that reads, hands over and confirms, and a way back after every kind of bad weather.

Reading, writing and confirming do not wait on each other: the sink writes in a thread of its own, this loop stops
reading while the sink is full, and status updates go out on time all the while.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.tail.changes import Batch, Decoder, Stop
from rdsrepl.tail.ledger import Ledger
from rdsrepl.tail.receiver import Receiver
from rdsrepl.tail.sinks import Sink
from rdsrepl.tail.timelines import Timelines

if TYPE_CHECKING:
    from types import FrameType

    from rdsrepl.config import Target
    from rdsrepl.tail.preflight import Findings

QUEUE_BYTES: Final = 16 << 20
_CONFIRM_SECONDS: Final = 1.0
_STATUS_SECONDS: Final = 10.0
_FIRST_DELAY_SECONDS: Final = 0.1
_LONGEST_DELAY_SECONDS: Final = 10.0
_ACTIVE_POLL_SECONDS: Final = 0.5
_ACTIVE_MARGIN_SECONDS: Final = 5.0
# A password that is being rotated is wrong for a while, either in the secret or at the server: about a minute's tries.
_DENIALS: Final = 12
_SAMPLE_SECONDS: Final = 0.25

#: what passes by itself, once the slot has been streamed: a restart, a failover, a name that points elsewhere for now.
_WEATHER: Final = (errors.Unreachable, errors.NotPrimary, errors.SlotBeingSynced, errors.SlotsExhausted)


@dataclass(frozen=True, slots=True)
class Bounds:
    """When to stop by itself; None is never.

    Attributes:
        until_lsn: after every transaction whose commit record begins before it.
        limit: after so many changes.
        duration_seconds: after so long.
        idle_seconds: after so long without a change.
        drain_seconds: how long what was received may take to be delivered at the end; what is not in by then is not
            confirmed, and comes again.
    """

    until_lsn: int | None = None
    limit: int | None = None
    duration_seconds: float | None = None
    idle_seconds: float | None = None
    drain_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """What to stream.

    Attributes:
        target: the database.
        slot_name: the slot.
        options: the plugin's.
        settings: server parameters of the session.
        from_lsn: where to begin; 0 is where the slot stands.
        confirm: whether positions are confirmed.
        active_wait_seconds: how long to wait for a slot that another connection holds; None is a little longer than
            the server's ``wal_sender_timeout``, after which it lets go of a dead consumer.
    """

    target: Target
    slot_name: str
    options: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    from_lsn: int = 0
    confirm: bool = True
    active_wait_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a tail is.

    Attributes:
        changes, received_bytes: since its start.
        received_lsn: how far the server has sent.
        confirmed_lsn: what the server may forget.
        seconds: since its start.
        reconnects: how often the connection was made anew.
        connected: whether the slot is being streamed now.
        pending_bytes: received, not durable, and held in memory.
        oldest_undelivered_seconds: for how long the oldest change that is not durable has waited since it was received.
    """

    changes: int
    received_bytes: int
    received_lsn: Lsn
    confirmed_lsn: Lsn
    seconds: float
    reconnects: int
    connected: bool = False
    pending_bytes: int = 0
    oldest_undelivered_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """How a tail ended: its progress and the reason."""

    progress: Progress
    reason: str


class Observer(Protocol):
    """Whom the tail tells what happens; nothing of it goes to stdout."""

    def note(self, text: str) -> None:
        """Take a word worth reading."""
        ...

    def warn(self, text: str) -> None:
        """Take a word that must be read."""
        ...

    def progress(self, progress: Progress) -> None:
        """Take a measure of the progress, several times a second at most."""
        ...


class _Signals:
    """SIGINT and SIGTERM while the tail runs: the first asks for a clean stop, a second exits at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def fd(self) -> int:
        """Return a file descriptor that is readable after a signal."""
        return self._read

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._read)
            os.close(self._write)

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.received is not None:
            os._exit(128 + number)
        self.received = number


class Tail:
    """One run of ``slot tail``."""

    def __init__(
        self,
        stream: Stream,
        bounds: Bounds,
        decoder: Decoder,
        sink: Sink,
        observer: Observer,
        look: Callable[[bool], Findings],
    ) -> None:
        """Prepare a run.

        Args:
            stream: what to stream.
            bounds: when to stop by itself.
            decoder: turns messages into lines.
            sink: takes the lines.
            observer: is told what happens.
            look: the preflight, repeated before each new connection; takes whether it must find a primary.
        """
        self._stream = stream
        self._bounds = bounds
        self._decoder = decoder
        self._sink = sink
        self._observer = observer
        self._look = look
        self._ledger = Ledger()
        self._signals = _Signals()
        self._history: tuple[str, int] | None = None
        self._was_primary = False
        self._started = self._last_change = time.monotonic()
        self._changes = self._bytes = self._reconnects = 0
        self._received_lsn = 0
        self._last_status = self._asked = 0.0
        self._sent_flush = 0
        self._denials = 0
        self._connected = False
        # When batches were handed over: (number, time), one in a quarter of a second at most.
        self._handed_over_at: deque[tuple[int, float]] = deque()

    def run(self) -> Summary:
        """Stream until a bound, a signal or an error that does not pass.

        Raises:
            Error: the slot is gone, invalidated, held by another; the sink failed; the server refuses. What was
                delivered until then is confirmed as far as the connection still allows.
        """
        with self._signals.installed():
            try:
                return self._run()
            finally:
                self._sink.close()

    def _run(self) -> Summary:
        delay = _FIRST_DELAY_SECONDS
        while True:
            receiver: Receiver | None = None
            connected_at = time.monotonic()
            try:
                receiver = self._connect()
                connected_at = time.monotonic()
                if receiver is None:
                    return self._give_up()
                self._connected = True
                try:
                    reason = self._loop(receiver)
                except errors.MalformedMessage:
                    # All that stands before it, so that the slot's position says exactly where it stands.
                    self._finish(receiver)
                    receiver.close(polite=True)
                    raise
                self._finish(receiver)
                receiver.close(polite=True)
                return self._summary(reason)
            except errors.Error as exc:
                self._connected = False
                if receiver is not None:
                    self._confirm_quietly(receiver)
                    receiver.close()
                if self._history is None or not self._passes(exc):
                    raise
                if time.monotonic() - connected_at > _LONGEST_DELAY_SECONDS:
                    delay = _FIRST_DELAY_SECONDS  # it was a good connection, and this is new weather
                pause = delay * random.uniform(0.5, 1.0)
                self._observer.note(f"{exc.message}; connecting again in {pause:.1f}s")
            self._ledger.connection_lost()
            self._reconnects += 1
            self._observer.progress(self._progress())
            if self._rest(pause):
                return self._give_up()
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)

    def _give_up(self) -> Summary:
        """Stop without a connection: what the sink still gets is not confirmed, and comes again."""
        self._drain(None)
        return self._summary(self._time_is_up(time.monotonic()) or f"signal {self._signals.received}")

    def _passes(self, exc: errors.Error) -> bool:
        """Say whether an error passes by itself."""
        if isinstance(exc, errors.AuthenticationFailed) and self._stream.target.renew is not None:
            self._denials += 1
            return self._denials <= _DENIALS
        return isinstance(exc, _WEATHER)

    def _connect(self) -> Receiver | None:
        """Return a connection that streams; None where a signal came while it waited for the slot."""
        waited_since: float | None = None
        while True:
            findings = self._look(self._was_primary)
            receiver = Receiver(self._stream.target, self._stream.settings)
            start_lsn = self._start_lsn(receiver)
            try:
                timelines = receiver.timelines() if findings.has_timelines else Timelines(0)
                receiver.start(self._stream.slot_name, start_lsn, self._stream.options)
            except errors.SlotActive as exc:
                receiver.close()
                allowed = self._stream.active_wait_seconds
                if allowed is None:
                    allowed = receiver.wal_sender_timeout_seconds + _ACTIVE_MARGIN_SECONDS
                waited_since = waited_since or time.monotonic()
                if waited_since + allowed <= time.monotonic():
                    raise self._held(exc, allowed) from exc
                if waited_since + _ACTIVE_POLL_SECONDS > time.monotonic():
                    self._observer.note(f"{exc.message}; waiting up to {allowed:g}s for it to be let go")
                if self._rest(_ACTIVE_POLL_SECONDS):
                    return None
                continue
            except BaseException:
                receiver.close()
                raise
            if self._history is not None:
                where = Lsn(start_lsn) if start_lsn else "the slot's confirmed position"
                self._observer.note(f"streaming again from {where}")
            self._history = (receiver.system_id, receiver.timeline)
            self._decoder.reset(timelines)
            self._was_primary = not findings.in_recovery
            self._denials = 0
            self._last_status = time.monotonic()
            self._sent_flush = 0
            return receiver

    def _start_lsn(self, receiver: Receiver) -> int:
        """Return where to go on: behind the last commit handed over if this is still the same WAL, else 0."""
        if self._history is None:
            return self._stream.from_lsn
        if self._history != (receiver.system_id, receiver.timeline) or receiver.server_lsn < self._ledger.commit_lsn:
            self._ledger.history_changed()
            self._received_lsn = 0
            return 0
        return self._ledger.commit_lsn or self._stream.from_lsn

    def _held(self, exc: errors.SlotActive, seconds: float) -> errors.SlotActive:
        with contextlib.suppress(errors.Error):
            who = self._look(self._was_primary).slot.holder
            return errors.SlotActive(
                f"slot {self._stream.slot_name} is in use by {who}; waited {seconds:g}s",
                hint="stop that consumer, or end it: SELECT pg_terminate_backend(pid)",
                sqlstate=exc.sqlstate,
            )
        return exc

    def _loop(self, receiver: Receiver) -> str:
        """Read and hand over until there is a reason to stop; return it."""
        sink, ledger, bounds = self._sink, self._ledger, self._bounds
        wake = [sink.wake_fd(), self._signals.fd()]
        interval = _STATUS_SECONDS
        if receiver.wal_sender_timeout_seconds:
            interval = min(interval, receiver.wal_sender_timeout_seconds / 3)
        while True:
            now = time.monotonic()
            ledger.deliver(sink.durable)
            self._status(receiver, now, interval)
            self._observer.progress(self._progress())
            if self._signals.received is not None:
                return f"signal {self._signals.received}"
            if (reason := self._time_is_up(now)) is not None:
                return reason
            if sink.pending_bytes >= QUEUE_BYTES:
                receiver.wait(min(_CONFIRM_SECONDS, interval), wake, read=False)
                sink.drain_wake()
                continue
            messages = receiver.read()
            if messages and (reason := self._take(messages)) is not None:
                return reason
            if receiver.take_keepalive():
                self._received_lsn = max(self._received_lsn, receiver.wal_end_lsn)
                ledger.keepalive(receiver.wal_end_lsn)
                reached = bounds.until_lsn is not None and receiver.wal_end_lsn >= bounds.until_lsn
                if reached and not ledger.in_transaction:
                    return Stop.UNTIL.value
            elif not messages:
                if bounds.until_lsn is not None and now - self._asked >= _CONFIRM_SECONDS:
                    # Nothing comes: ask how far the server is, so that a quiet database ends the run as well.
                    receiver.send_status(self._received_lsn, self._confirmable(), reply=True)
                    self._asked = now
                receiver.wait(self._until_next(now, interval), wake)
                sink.drain_wake()

    def _take(self, messages: Sequence[bytes]) -> str | None:
        """Decode and hand over; return a reason to stop, if there is one."""
        limit = self._bounds.limit
        if limit is not None and self._changes + len(messages) >= limit:
            return self._take_to_limit(messages, limit)
        batch = self._decoder.feed(messages)
        self._hand_over(batch, sum(map(len, messages)))
        return None if batch.stop is None else batch.stop.value

    def _take_to_limit(self, messages: Sequence[bytes], limit: int) -> str | None:
        """Go message by message, and stop behind the last wanted change; with its commit, where that comes next."""
        for message in messages:
            batch = self._decoder.feed([message])
            if self._changes >= limit and batch.changes:
                return f"reached --limit {limit}, in the middle of a transaction that is not confirmed"
            self._hand_over(batch, len(message))
            if batch.stop is not None:
                return str(batch.stop.value)
            if self._changes >= limit and not batch.in_transaction:
                return f"reached --limit {limit}"
        return None

    def _hand_over(self, batch: Batch, size: int) -> None:
        number = self._ledger.hand_over(batch.commit_end_lsn, in_transaction=batch.in_transaction)
        now = time.monotonic()
        if not self._handed_over_at or now - self._handed_over_at[-1][1] >= _SAMPLE_SECONDS:
            self._handed_over_at.append((number, now))
        self._sink.put(number, batch.lines)
        self._bytes += size
        if batch.commit_end_lsn is not None:
            self._received_lsn = max(self._received_lsn, batch.commit_end_lsn)
        if batch.changes:
            self._changes += batch.changes
            self._last_change = now
        if batch.error is not None:
            raise batch.error

    def _confirmable(self) -> int:
        return self._ledger.flush_lsn if self._stream.confirm else 0

    def _status(self, receiver: Receiver, now: float, interval: float) -> None:
        """Send a status update when one is due: asked for, something new to confirm, or the interval is over."""
        flush = self._confirmable()
        age = now - self._last_status
        if receiver.reply_requested or age >= interval or (flush > self._sent_flush and age >= _CONFIRM_SECONDS):
            receiver.send_status(max(self._received_lsn, flush), flush)
            self._last_status, self._sent_flush = now, flush

    def _until_next(self, now: float, interval: float) -> float:
        """Return how long the loop may sleep, in seconds."""
        due = [interval - (now - self._last_status)]
        if not self._ledger.settled or self._confirmable() > self._sent_flush or self._bounds.until_lsn is not None:
            due.append(_CONFIRM_SECONDS)
        if self._bounds.duration_seconds is not None:
            due.append(self._started + self._bounds.duration_seconds - now)
        if self._bounds.idle_seconds is not None:
            due.append(self._last_change + self._bounds.idle_seconds - now)
        return max(0.001, min(due))

    def _duration_is_over(self, now: float) -> bool:
        allowed = self._bounds.duration_seconds
        return allowed is not None and now - self._started >= allowed

    def _time_is_up(self, now: float) -> str | None:
        bounds = self._bounds
        if self._duration_is_over(now):
            return "reached --duration"
        idle = now - self._last_change
        if bounds.idle_seconds is not None and idle >= bounds.idle_seconds and self._ledger.settled:
            return "nothing came for --idle-exit"
        return None

    def _finish(self, receiver: Receiver) -> None:
        """Read no more; deliver what was received, and confirm it."""
        self._drain(receiver)
        receiver.send_status(max(self._received_lsn, self._confirmable()), self._confirmable())
        self._sent_flush = self._confirmable()

    def _drain(self, receiver: Receiver | None) -> None:
        """Wait until the sink has everything; the connection, if there is one, is kept alive meanwhile."""
        self._sink.finish()
        allowed = self._bounds.drain_seconds
        deadline = None if allowed is None else time.monotonic() + allowed
        while self._sink.durable < self._ledger.handed_over:
            self._ledger.deliver(self._sink.durable)
            if deadline is not None and time.monotonic() >= deadline:
                self._observer.warn(
                    f"not everything was delivered within {allowed:g}s: what is not confirmed comes again"
                )
                return
            if receiver is None:
                time.sleep(0.05)
                continue
            interval = (receiver.wal_sender_timeout_seconds or 3 * _STATUS_SECONDS) / 3
            self._status(receiver, time.monotonic(), min(interval, _STATUS_SECONDS))
            receiver.wait(0.5, [self._sink.wake_fd()], read=False)
            self._sink.drain_wake()
        self._ledger.deliver(self._sink.durable)

    def _confirm_quietly(self, receiver: Receiver) -> None:
        """Confirm what is durable before an error ends the connection, if it still carries that."""
        with contextlib.suppress(Exception):
            self._ledger.deliver(self._sink.durable)
        with contextlib.suppress(Exception):
            receiver.send_status(max(self._received_lsn, self._confirmable()), self._confirmable())

    def _rest(self, seconds: float) -> bool:
        """Wait; return whether it is time to stop: a signal came, or the duration is over."""
        deadline = time.monotonic() + seconds
        if self._bounds.duration_seconds is not None:
            deadline = min(deadline, self._started + self._bounds.duration_seconds)
        while self._signals.received is None and (left := deadline - time.monotonic()) > 0:
            select.select([self._signals.fd()], [], [], left)
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
            Lsn(self._received_lsn),
            Lsn(self._sent_flush),
            now - self._started,
            self._reconnects,
            self._connected,
            self._sink.pending_bytes,
            now - waiting[0][1] if waiting else 0.0,
        )

    def _summary(self, reason: str) -> Summary:
        return Summary(self._progress(), reason)
