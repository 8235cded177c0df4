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
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.tail import continuity
from rdsrepl.tail.ledger import Ledger
from rdsrepl.tail.model import Batch, Decoder, Stop
from rdsrepl.tail.receiver import Notice, Receiver
from rdsrepl.tail.shutdown import ShutdownWatch
from rdsrepl.tail.sinks import Sink
from rdsrepl.tail.timelines import Timelines
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from types import FrameType

    from rdsrepl.config import Target
    from rdsrepl.state.streamed_slots import SlotFingerprint
    from rdsrepl.tail.continuity import LastRun
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
# How long a server without wal_sender_timeout may be silent; PostgreSQL's default of that parameter.
_SILENCE_SECONDS: Final = 60.0
# So many connections in a row on which the server was silent for too long, behind the same position, end the run.
_FRUITLESS: Final = 5
# Output that has not taken a change for this long is slow enough to hold up a shutdown of the server.
_STALLED_SECONDS: Final = 3.0
# Of the server's notices; one that tells of every change says something new each time.
_MOST_TOLD: Final = 1000

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
        accept_gap: go on where the slot is beyond what was received.
        allow_missing_publication: go on where the server leaves changes out because a publication did not exist yet.
        receive_timeout_seconds: after how long without a sign of the server's the connection is taken for dead; 0 is
            never, None is ``wal_sender_timeout``.
    """

    target: Target
    slot_name: str
    options: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    from_lsn: int = 0
    confirm: bool = True
    active_wait_seconds: float | None = None
    accept_gap: bool = False
    allow_missing_publication: bool = False
    receive_timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _Server:
    """Which server a connection led to; ``timeline`` is what it says itself, on Aurora as well."""

    system_id: str
    timeline: int
    timelines: Timelines


class _Commits:
    """How many changes were handed over up to each of the last commits."""

    _MOST: Final = 1 << 16

    def __init__(self, changes: int = 0) -> None:
        self._before = changes
        self._ends = array("Q")
        self._changes = array("Q")
        self._forgotten = False

    def add(self, end_lsn: int, changes: int) -> None:
        """Take a commit that ends at a position, and how many changes came until then."""
        self._ends.append(end_lsn)
        self._changes.append(changes)
        if len(self._ends) > 2 * self._MOST:
            del self._ends[: self._MOST], self._changes[: self._MOST]
            self._forgotten = True

    def beyond(self, lsn: int) -> tuple[int, bool]:
        """Return how many changes are of commits that end behind a position, and whether that is exact."""
        first = bisect_right(self._ends, lsn)
        if first == len(self._ends):
            return 0, True
        known = self._changes[first - 1] if first else self._changes[0] if self._forgotten else self._before
        return self._changes[-1] - known, bool(first) or not self._forgotten


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
    """SIGINT, SIGTERM and SIGHUP while the tail runs: the first asks for a clean stop, a second exits at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def fd(self) -> int:
        """Return a file descriptor that is readable after a signal."""
        return self._read

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._take) for number in numbers}
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
        last_run: LastRun | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            stream: what to stream.
            bounds: when to stop by itself.
            decoder: turns messages into lines.
            sink: takes the lines.
            observer: is told what happens.
            look: the preflight, repeated for each new connection; takes whether it must find a primary.
            last_run: what is remembered from run to run; None where positions are not confirmed.
        """
        self._stream = stream
        self._bounds = bounds
        self._decoder = decoder
        self._sink = sink
        self._observer = observer
        self._look = look
        self._ledger = Ledger()
        self._signals = _Signals()
        self._last_run = last_run
        self._server: _Server | None = None
        self._mark: SlotFingerprint | None = None
        self._plugin: str | None = None
        self._commits = _Commits()
        # What was confirmed, or was about to be when a connection broke.
        self._claimed = 0
        self._told: set[str] = set()
        self._was_primary = False
        self._started = self._last_change = time.monotonic()
        self._changes = self._bytes = self._reconnects = 0
        self._received_lsn = 0
        self._last_status = self._asked = 0.0
        self._sent_flush = 0
        self._denials = 0
        # Connections in a row that brought nothing new, and the last commit before the last of them.
        self._fruitless = 0
        self._commit_before = 0
        self._watch: ShutdownWatch | None = None
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
                self._stop_watch()

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
                if self._last_run is not None:
                    with contextlib.suppress(errors.Error):  # what was seen at the connection's start will do
                        self._remember(self._look(self._was_primary))
                receiver.close(polite=True)
                if self._last_run is not None:
                    self._last_run.ended()
                return self._summary(reason)
            except errors.Error as exc:
                self._connected = False
                if receiver is not None:
                    self._confirm_quietly(receiver)
                    receiver.close()
                    if isinstance(exc, errors.Unreachable):
                        self._require_progress(receiver)
                if isinstance(exc, errors.SlotMoved):
                    self._drain(None)  # the server does not have it any more
                if self._server is None or not self._passes(exc):
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
        if isinstance(exc, errors.AuthenticationFailed) and self._stream.target.renews_login:
            self._denials += 1
            return self._denials <= _DENIALS
        return isinstance(exc, _WEATHER)

    def _connect(self) -> Receiver | None:
        """Return a connection that streams; None where a signal came while it waited for the slot."""
        waited_since: float | None = None
        while True:
            findings = self._look(self._was_primary)
            receiver = Receiver(self._stream.target, self._stream.settings)
            try:
                timelines = receiver.timelines() if findings.has_timelines else Timelines(0)
                if findings.in_recovery:
                    receiver.follow_timeline(self._stream.target)
                server = _Server(receiver.system_id, receiver.timeline, timelines)
                goes_on = self._goes_on(server, receiver.server_lsn)
                start_lsn = self._stream.from_lsn if self._server is None else 0
                if goes_on:
                    start_lsn = self._ledger.commit_lsn or self._stream.from_lsn
                receiver.start(self._stream.slot_name, start_lsn, self._stream.options)
                # Only now that this connection holds the slot does nobody else move it.
                findings = self._look(self._was_primary)
                self._take_up(server, findings, goes_on, start_lsn)
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
            self._decoder.reset(timelines)
            self._was_primary = not findings.in_recovery
            self._denials = 0
            self._last_status = time.monotonic()
            self._sent_flush = 0
            if self._ledger.commit_lsn != self._commit_before:
                self._commit_before, self._fruitless = self._ledger.commit_lsn, 0
            return receiver

    def _goes_on(self, server: _Server, server_lsn: int) -> bool:
        """Say whether the stream can go on behind the last commit that was handed over: this is still the same WAL.

        Raises:
            SlotMoved: it is another database system, and positions cannot be compared.
        """
        if self._server is None:
            return False
        if server.system_id != self._server.system_id:
            moved = errors.SlotMoved(
                f"another database system answers now ({server.system_id}, before {self._server.system_id}): whether "
                f"slot {self._stream.slot_name} there goes on where this run ended cannot be told",
                hint="connect to the server you mean; if it is this one, start again, or let it pass: --accept-gap",
            )
            if not self._stream.accept_gap:
                raise moved
            self._observer.warn(moved.message)
            return False
        return server == self._server and server_lsn >= self._ledger.commit_lsn

    def _take_up(self, server: _Server, findings: Findings, goes_on: bool, start_lsn: int) -> None:
        """Compare where the slot stands, which this connection holds now, with what was received and confirmed.

        Raises:
            SlotMoved: changes are missing in between.
        """
        slot, observer = findings.slot, self._observer
        at = int(slot.confirmed_flush_lsn or 0)
        if self._server is None:
            self._ledger.begin(max(at, self._stream.from_lsn))
            self._claimed = at
            if self._last_run is not None:
                self._last_run.compare(server.system_id, server.timelines, findings)
        elif slot.plugin != self._plugin:
            raise errors.SlotMoved(
                f"slot {slot.slot_name} was made again, with plugin {slot.plugin} in place of {self._plugin}",
                hint="start again: the changes between the two slots are missing",
            )
        elif goes_on:
            if at > self._ledger.received_lsn:
                self._require_no_gap(findings, self._ledger.received_lsn)
            elif at > self._claimed:
                observer.warn(
                    f"slot {slot.slot_name} was moved to {Lsn(at)} by another consumer or an advance; this run "
                    "received everything before that, and delivers it, but does not get it again"
                )
            self._ledger.begin(at)
            observer.note(f"streaming again from {Lsn(start_lsn) if start_lsn else Lsn(at)}")
        else:
            self._change_history(server, findings)
        self._claimed = max(self._claimed, at)
        self._server, self._mark, self._plugin = server, continuity.mark_of(findings), slot.plugin
        self._remember(findings)

    def _remember(self, findings: Findings) -> None:
        """Remember the slot, which this connection holds, as it is now."""
        if self._last_run is not None and self._server is not None:
            self._last_run.connected(self._server.system_id, self._server.timelines, findings, self._claimed)

    def _change_history(self, server: _Server, findings: Findings) -> None:
        """Go back to where the slot stands on another timeline, and say what that means.

        Raises:
            SlotMoved: changes are missing between what was received of the history that both have, and the slot.
        """
        assert self._server is not None
        observer, received, at = self._observer, self._ledger.received_lsn, findings.slot.confirmed_flush_lsn or Lsn(0)
        fork = self._server.timelines.common_end(server.timelines)
        if server.system_id == self._server.system_id:
            if server.timelines != self._server.timelines:
                begins = Lsn(server.timelines.begins_at)
                observer.note(f"the server is on timeline {server.timelines.current} now, which begins at {begins}")
            elif server.timelines.current and not findings.in_recovery:  # a restarted standby replays its WAL again
                observer.warn(
                    f"the server's WAL ends before {Lsn(self._ledger.commit_lsn)}, up to which this run received it, "
                    "on the same timeline: an older state was restored; other changes may come under known identities"
                )
            base = received if fork is None else min(received, fork)
            self._require_no_gap(findings, base)
            if fork is not None and received > fork:
                beyond, is_exact = self._commits.beyond(fork)
                if beyond:
                    observer.warn(
                        f"{'' if is_exact else 'at least '}{beyond} changes that were received of timeline "
                        f"{self._server.timelines.current} beyond {Lsn(fork)} are not on this server"
                    )
        observer.note(f"streaming again from {at}, where the slot stands: changes after that may come again")
        self._ledger.history_changed()
        self._ledger.begin(at)
        self._commits = _Commits(self._changes)
        self._received_lsn = self._claimed = 0

    def _require_no_gap(self, findings: Findings, received: int) -> None:
        """Make sure that the slot is not beyond what this run received; ``accept_gap`` makes that a warning."""
        at = int(findings.slot.confirmed_flush_lsn or 0)
        if at <= received:
            return
        made_again = self._mark is not None and self._mark.is_another(continuity.mark_of(findings))
        found = continuity.gap(self._stream.slot_name, at, received, made_again=made_again)
        if not self._stream.accept_gap:
            raise found
        self._observer.warn(found.message)

    def _held(self, exc: errors.SlotActive, seconds: float) -> errors.SlotActive:
        with contextlib.suppress(errors.Error):
            who = self._look(self._was_primary).slot.holder
            return errors.SlotActive(
                f"slot {self._stream.slot_name} is in use by {who}; waited {seconds:g}s",
                hint="stop that consumer, or end it: SELECT pg_catalog.pg_terminate_backend(pid)",
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
            progress = self._progress()
            self._yield_to_shutdown(progress)
            self._observer.progress(progress)
            if self._signals.received is not None:
                return f"signal {self._signals.received}"
            if (reason := self._time_is_up(now)) is not None:
                return reason
            if sink.pending_bytes >= QUEUE_BYTES:
                receiver.heard()
                receiver.wait(min(_CONFIRM_SECONDS, interval), wake, read=False)
                sink.drain_wake()
                continue
            messages = receiver.read()
            for before, notice in receiver.take_notices():
                self._take_notice(messages[:before], notice)
            if messages:
                receiver.require_timeline()
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
                    self._confirm(receiver, reply=True)
                    self._asked = now
                self._require_sign(receiver, now)
                receiver.wait(self._until_next(receiver, now, interval), wake)
                sink.drain_wake()

    def _silence_seconds(self, receiver: Receiver) -> float:
        """Return for how long the server may be silent; 0 is for ever."""
        given = self._stream.receive_timeout_seconds
        if given is not None:
            return given
        # A server that decodes for longer than that gets the time, where it is only slow.
        return (receiver.wal_sender_timeout_seconds or _SILENCE_SECONDS) * (1 << self._fruitless)

    def _require_sign(self, receiver: Receiver, now: float) -> None:
        """Ask a server that is silent for a sign, and make sure that it comes.

        By itself it says nothing where it has nothing to send and gets our status updates.

        Raises:
            ConnectionLost: it did not come.
        """
        half = self._silence_seconds(receiver) / 2
        if not half:
            return
        if receiver.asked_at is not None:
            if now - receiver.asked_at >= half:
                silent = now - receiver.heard_at
                raise errors.ConnectionLost(f"the server has been silent for {silent:.1f}s, and was asked for a reply")
        elif now - receiver.heard_at >= half:
            self._confirm(receiver, reply=True)

    def _require_progress(self, receiver: Receiver) -> None:
        """Count connections that ended in silence and brought nothing, although the server has something.

        Raises:
            TimedOut: it was one too many: the server decodes for longer than it, or we, wait for the other side.
        """
        at, allowed = self._ledger.commit_lsn, receiver.wal_sender_timeout_seconds
        silent = max(receiver.longest_silence_seconds, time.monotonic() - receiver.heard_at)
        # What comes on the way to a commit, keepalives included, is no progress: the server starts again before it.
        has_more = self._ledger.in_transaction or receiver.server_lsn > self._ledger.received_lsn
        if at != self._commit_before or not has_more:
            self._fruitless = 0
            return
        limits = [seconds for seconds in (self._silence_seconds(receiver), allowed) if seconds]
        if not limits or silent < min(limits) / 2:
            return
        self._fruitless += 1
        if self._fruitless >= _FRUITLESS:
            raise errors.TimedOut(
                f"slot {self._stream.slot_name}: {_FRUITLESS} connections in a row brought nothing behind "
                f"{Lsn(at or self._claimed)}, and ended after the server was silent for up to {silent:.1f}s: it "
                f"decodes a change or a transaction for longer than wal_sender_timeout ({allowed:g}s) and "
                "--receive-timeout allow, or the network passes no large packets",
                hint="allow more: PGOPTIONS='-c wal_sender_timeout=30min -c logical_decoding_work_mem=1GB' and "
                "--receive-timeout 30min",
            )

    def _yield_to_shutdown(self, progress: Progress) -> None:
        """Watch the server while the output is slow, and leave it when it shuts down: it would wait for us.

        Raises:
            ConnectionLost: it shuts down.
        """
        if progress.oldest_undelivered_seconds < _STALLED_SECONDS:
            self._stop_watch()
        elif self._watch is None:
            self._watch = ShutdownWatch(self._stream.target)
        elif self._watch.seen:
            self._stop_watch()
            raise errors.ConnectionLost(
                "the server is shutting down, and what the output has not taken yet is not waited for"
            )

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _take_notice(self, before: Sequence[bytes], notice: Notice) -> None:
        """Pass on what the server says; each text once a run.

        Raises:
            NotFound: it leaves changes out, because a publication did not exist yet when they were made. What came
                BEFORE is handed over, and nothing behind it.
        """
        if notice.skips_publication and not self._stream.allow_missing_publication:
            if before:
                self._take(before)
            raise errors.NotFound(
                f"the server leaves changes out: {notice.text}",
                hint="a publication must be older than the slot's position. Make a new slot, or move this one past "
                f"these changes ({command('slot advance {} --to-current', self._stream.slot_name)}), or let them be "
                "left out: "
                "--allow-missing-publication",
                sqlstate=notice.sqlstate,
            )
        text = f"the server says: {notice.text}"
        if text in self._told or len(self._told) >= _MOST_TOLD:
            return
        self._told.add(text)
        (self._observer.warn if notice.severity == "WARNING" else self._observer.note)(text)

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
        for end_lsn, changes in batch.commits:
            self._commits.add(end_lsn, self._changes + changes)
        if batch.changes:
            self._changes += batch.changes
            self._last_change = now
        if batch.error is not None:
            raise batch.error

    def _confirmable(self) -> int:
        return self._ledger.flush_lsn if self._stream.confirm else 0

    def _status(self, receiver: Receiver, now: float, interval: float) -> None:
        """Send a status update when one is due: asked for, something new to confirm, or the interval is over."""
        age = now - self._last_status
        news = self._confirmable() > self._sent_flush
        if receiver.reply_requested or age >= interval or (news and age >= _CONFIRM_SECONDS):
            self._confirm(receiver)
            self._last_status = now

    def _confirm(self, receiver: Receiver, *, reply: bool = False) -> None:
        """Send a status update, and remember before what it confirms."""
        flush = self._confirmable()
        if flush > self._claimed:
            self._claimed = flush
            if self._last_run is not None:
                self._last_run.confirming(flush)
        receiver.send_status(max(self._received_lsn, flush), flush, reply=reply)
        self._sent_flush = flush

    def _until_next(self, receiver: Receiver, now: float, interval: float) -> float:
        """Return how long the loop may sleep, in seconds."""
        due = [interval - (now - self._last_status)]
        if silence := self._silence_seconds(receiver):
            due.append((receiver.asked_at or receiver.heard_at) + silence / 2 - now)
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
        if self._drain(receiver):
            self._confirm(receiver)

    def _drain(self, receiver: Receiver | None) -> bool:
        """Wait until the sink has everything; the connection, if there is one, is kept alive meanwhile.

        Returns:
            Whether there still is one at the end.
        """
        self._sink.finish()
        allowed = self._bounds.drain_seconds
        deadline = None if allowed is None else time.monotonic() + allowed
        while self._sink.durable < self._ledger.handed_over:
            self._ledger.deliver(self._sink.durable)
            if deadline is not None and time.monotonic() >= deadline:
                self._observer.warn(
                    f"not everything was delivered within {allowed:g}s: what is not confirmed comes again"
                )
                break
            if receiver is None:
                time.sleep(0.05)
                continue
            interval = (receiver.wal_sender_timeout_seconds or 3 * _STATUS_SECONDS) / 3
            try:
                self._status(receiver, time.monotonic(), min(interval, _STATUS_SECONDS))
                self._yield_to_shutdown(self._progress())
            except errors.Unreachable as exc:
                self._observer.warn(f"{exc.message}; what is delivered from now on is not confirmed, and comes again")
                self._confirm_quietly(receiver)
                receiver.close()
                receiver = None
                continue
            receiver.wait(0.5, [self._sink.wake_fd()], read=False)
            self._sink.drain_wake()
        self._ledger.deliver(self._sink.durable)
        return receiver is not None

    def _confirm_quietly(self, receiver: Receiver) -> None:
        """Confirm what is durable before an error ends the connection, if it still carries that."""
        with contextlib.suppress(Exception):
            self._ledger.deliver(self._sink.durable)
        with contextlib.suppress(Exception):
            self._confirm(receiver)

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
