"""Opens the connection that streams the slot, again after each loss, and decides where the stream resumes.

While the connection leads to the same WAL, the stream resumes after the last commit that was handed over. On another
timeline it resumes at the slot's own position, and changes may come again. When the slot is past what this run
received, changes are missing and the run stops (``continuity``).
"""

from __future__ import annotations

import contextlib
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.tail import continuity
from rdsrepl.tail.ledger import Ledger
from rdsrepl.tail.options import TailOptions
from rdsrepl.tail.pipeline import Pipeline
from rdsrepl.tail.progress import Observer
from rdsrepl.tail.receiver import Receiver
from rdsrepl.tail.timelines import Timelines
from rdsrepl.text.counts import counted, form

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.state.streamed_slots import SlotFingerprint
    from rdsrepl.tail.continuity import LastRun
    from rdsrepl.tail.preflight import PreflightResult
    from rdsrepl.tail.sinks.recorded_file import RecordedFileSink

_ACTIVE_POLL_SECONDS: Final = 0.5
_ACTIVE_MARGIN_SECONDS: Final = 5.0
# While a password is being rotated, the secret or the server has the old one: about a minute of attempts.
_MAX_DENIALS: Final = 12

#: errors that pass once the slot was streamed: a restart, a failover, a DNS name that points elsewhere for a while.
TRANSIENT_ERRORS: Final = (
    errors.Unreachable,
    errors.NotPrimary,
    errors.SlotBeingSynced,
    errors.SlotsExhausted,
)


@dataclass(frozen=True, slots=True)
class _Server:
    """Which server a connection led to; ``timeline`` is what IDENTIFY_SYSTEM says, on Aurora too."""

    system_id: str
    timeline: int
    timelines: Timelines


class CommitCounts:
    """How many changes were handed over up to each of the last commits."""

    _MOST: Final = 1 << 16

    def __init__(self, changes: int = 0) -> None:
        self._before = changes
        self._ends = array("Q")
        self._changes = array("Q")
        self._forgotten = False

    def add(self, end_lsn: int, changes: int) -> None:
        """Record a commit that ends at a position, and how many changes came until then."""
        self._ends.append(end_lsn)
        self._changes.append(changes)
        if len(self._ends) > 2 * self._MOST:
            del self._ends[: self._MOST], self._changes[: self._MOST]
            self._forgotten = True

    def after(self, lsn: int) -> tuple[int, bool]:
        """Return how many changes belong to commits that end after a position, and whether the number is exact."""
        first = bisect_right(self._ends, lsn)
        if first == len(self._ends):
            return 0, True
        known = self._changes[first - 1] if first else self._changes[0] if self._forgotten else self._before
        return self._changes[-1] - known, bool(first) or not self._forgotten


class Connector:
    """Connects to the slot and compares it with what this run received before.

    Attributes:
        claimed_lsn: confirmed, or about to be confirmed when a connection was lost.
        start_lsn: where the stream of the last connection starts.
        undone_changes: delivered, and not on the server any more since a failover.
    """

    def __init__(
        self,
        target: Target,
        options: TailOptions,
        pipeline: Pipeline,
        ledger: Ledger,
        observer: Observer,
        check: Callable[[bool], PreflightResult],
        pause: Callable[[float], bool],
        last_run: LastRun | None,
        recorded: RecordedFileSink | None,
    ) -> None:
        """Prepare to connect.

        Args:
            target: the database.
            options: what to stream.
            pipeline: the plugin's options and the session's settings.
            ledger: knows what was received.
            observer: receives notes and warnings.
            check: the preflight check, repeated for each connection; takes whether the server must be a primary.
            pause: waits this many seconds; returns whether it is time to stop.
            last_run: what is remembered from run to run; None where positions are not confirmed.
            recorded: the output file, if it records where the stream continues.
        """
        self._target = target
        self._options = options
        self._pipeline = pipeline
        self._from_lsn = int(options.from_lsn or 0)
        self._ledger = ledger
        self._observer = observer
        self._check = check
        self._pause = pause
        self._last_run = last_run
        self._recorded = recorded
        self._server: _Server | None = None
        self._mark: SlotFingerprint | None = None
        self._plugin: str | None = None
        self._was_primary = False
        self._denials = 0
        self._commits = CommitCounts()
        self.claimed_lsn = 0
        self.start_lsn = 0
        self.undone_changes = 0

    @property
    def timeline(self) -> int:
        """The timeline of the server; 0 before the first connection, and on Aurora."""
        return 0 if self._server is None else self._server.timelines.current

    @property
    def has_connected(self) -> bool:
        """Whether the slot was streamed in this run."""
        return self._server is not None

    def is_transient(self, exc: errors.Error) -> bool:
        """Return whether another attempt to connect may succeed after this error."""
        if isinstance(exc, errors.AuthenticationFailed) and self._target.renews_login:
            self._denials += 1
            return self._denials <= _MAX_DENIALS
        return isinstance(exc, TRANSIENT_ERRORS)

    def connect(self, changes: int) -> tuple[Receiver, Timelines] | None:
        """Return a connection that streams, and the server's timelines.

        Args:
            changes: how many changes were handed over so far.

        Returns:
            None when the run was stopped while it waited for the slot.
        """
        waited_since: float | None = None
        while True:
            checked = self._check(self._was_primary)
            receiver = Receiver(self._target, self._pipeline.settings)
            try:
                timelines = receiver.timelines() if checked.has_timelines else Timelines(0)
                if checked.in_recovery:
                    receiver.follow_timeline(self._target)
                server = _Server(receiver.system_id, receiver.timeline, timelines)
                is_same_wal = self._is_same_wal(server, receiver.server_lsn)
                start_lsn = self._from_lsn if self._server is None else 0
                if is_same_wal:
                    start_lsn = self._ledger.commit_lsn or self._from_lsn
                recorded_lsn = self._recorded_lsn(receiver, timelines, checked)
                start_lsn = max(start_lsn, recorded_lsn)
                receiver.start(self._options.slot_name, start_lsn, self._pipeline.plugin_options)
                # Only now does this connection hold the slot, so that no other session moves it.
                checked = self._check(self._was_primary)
                if self._server is None and recorded_lsn:
                    self._require_no_gap(checked, recorded_lsn)
                self._resume(server, checked, is_same_wal, start_lsn, changes)
                self.start_lsn = max(start_lsn, int(checked.slot.confirmed_flush_lsn or 0))
            except errors.SlotActive as exc:
                receiver.close()
                allowed = self._options.active_wait_seconds
                if allowed is None:
                    allowed = receiver.wal_sender_timeout_seconds + _ACTIVE_MARGIN_SECONDS
                waited_since = waited_since or time.monotonic()
                if waited_since + allowed <= time.monotonic():
                    raise self._slot_in_use(exc, allowed) from exc
                if waited_since + _ACTIVE_POLL_SECONDS > time.monotonic():
                    self._observer.note(f"{exc.message}; waiting up to {allowed:g}s for it to be released")
                if self._pause(_ACTIVE_POLL_SECONDS):
                    return None
                continue
            except BaseException:
                receiver.close()
                raise
            self._was_primary = not checked.in_recovery
            self._denials = 0
            return receiver, timelines

    def committed(self, end_lsn: int, changes: int) -> None:
        """Record a commit that was handed over, by its end, and how many changes came until then."""
        self._commits.add(end_lsn, changes)

    def confirming(self, lsn: int) -> None:
        """Record that everything up to LSN is about to be confirmed."""
        if lsn > self.claimed_lsn:
            self.claimed_lsn = lsn
            if self._last_run is not None:
                self._last_run.confirming(lsn)

    def _recorded_lsn(self, receiver: Receiver, timelines: Timelines, checked: PreflightResult) -> int:
        """Return where the output file says that the stream continues; 0 if it does not.

        Raises:
            Refused: the file is of another server.
        """
        if self._recorded is None:
            return 0
        return self._recorded.resume_lsn(
            receiver.system_id, timelines, receiver.server_lsn, in_recovery=checked.in_recovery
        )

    def finish(self) -> None:
        """Remember the slot for the next run, while the connection still holds it."""
        if self._last_run is not None:
            with contextlib.suppress(errors.Error):  # what was read at the connection's start is good enough
                self._remember(self._check(self._was_primary))

    def ended(self) -> None:
        """Make what is remembered durable: the run ended without an error."""
        if self._last_run is not None:
            self._last_run.ended()

    def _is_same_wal(self, server: _Server, server_lsn: int) -> bool:
        """Return whether the stream can resume after the last commit that was handed over.

        Raises:
            SlotMoved: it is another database system, and positions cannot be compared.
        """
        if self._server is None:
            return False
        if server.system_id != self._server.system_id:
            moved = errors.SlotMoved(
                f"another database system answers now ({server.system_id}, before {self._server.system_id}); slot "
                f"{self._options.slot_name} there cannot be compared with what this run received",
                hint="connect to the server you mean; if it is this one, start again with --accept-gap",
            )
            if not self._options.accept_gap:
                raise moved
            self._observer.warn(moved.message)
            return False
        return server == self._server and server_lsn >= self._ledger.commit_lsn

    def _resume(
        self, server: _Server, checked: PreflightResult, is_same_wal: bool, start_lsn: int, changes: int
    ) -> None:
        """Compare the position of the slot, which this connection holds now, with what was received and confirmed.

        Raises:
            SlotMoved: changes are missing in between.
        """
        slot, observer = checked.slot, self._observer
        at = int(slot.confirmed_flush_lsn or 0)
        if self._server is None:
            self._ledger.begin(max(at, self._from_lsn))
            self.claimed_lsn = at
            if self._last_run is not None:
                self._last_run.compare(server.system_id, server.timelines, checked)
        elif slot.plugin != self._plugin:
            raise errors.SlotMoved(
                f"slot {slot.slot_name} was created again, with plugin {slot.plugin} instead of {self._plugin}",
                hint="start again: the changes between the two slots are missing",
            )
        elif is_same_wal:
            if at > self._ledger.received_lsn:
                self._require_no_gap(checked, self._ledger.received_lsn)
            elif at > self.claimed_lsn:
                observer.warn(
                    f"slot {slot.slot_name} was moved to {Lsn(at)} by another consumer or an advance; this run "
                    "received and delivers everything before that, but the server cannot send it again"
                )
            self._ledger.begin(at)
            observer.note(f"streaming again from {Lsn(start_lsn) if start_lsn else Lsn(at)}")
        else:
            self._resume_on_other_wal(server, checked, changes, start_lsn)
        self.claimed_lsn = max(self.claimed_lsn, at)
        self._server, self._mark, self._plugin = server, continuity.fingerprint_of(checked), slot.plugin
        self._remember(checked)

    def _remember(self, checked: PreflightResult) -> None:
        """Remember the slot, which this connection holds, as it is now."""
        if self._last_run is not None and self._server is not None:
            self._last_run.connected(self._server.system_id, self._server.timelines, checked, self.claimed_lsn)

    def _resume_on_other_wal(self, server: _Server, checked: PreflightResult, changes: int, start_lsn: int) -> None:
        """Go back to START_LSN or the slot's position on another timeline, and report what that means.

        Raises:
            SlotMoved: changes are missing between what was received of the history that both have, and the slot.
        """
        assert self._server is not None
        observer, received, at = self._observer, self._ledger.received_lsn, checked.slot.confirmed_flush_lsn or Lsn(0)
        fork = self._server.timelines.common_end(server.timelines)
        if server.system_id == self._server.system_id:
            if server.timelines != self._server.timelines:
                begins = Lsn(server.timelines.begins_at)
                observer.note(f"the server is on timeline {server.timelines.current} now, which begins at {begins}")
            elif server.timelines.current and not checked.in_recovery:  # a restarted standby replays its WAL again
                observer.warn(
                    f"the server's WAL ends before {Lsn(self._ledger.commit_lsn)}, up to which this run received it, "
                    "on the same timeline: an older state was restored, and identities may be assigned again"
                )
            base = received if fork is None else min(received, fork)
            self._require_no_gap(checked, base)
            if fork is not None and received > fork:
                after_fork, is_exact = self._commits.after(fork)
                self.undone_changes += after_fork
                if after_fork:
                    observer.warn(
                        f"{'' if is_exact else 'at least '}{counted(after_fork, 'change')} delivered of timeline "
                        f"{self._server.timelines.current} after {Lsn(fork)} "
                        f"{form(after_fork, 'does', 'do')} not exist on this server"
                    )
        if start_lsn:
            observer.note(f"streaming again from {Lsn(max(start_lsn, at))}, where the output file continues")
        else:
            observer.note(f"streaming again from {at}, the slot's position: changes after that may come again")
        self._ledger.history_changed()
        self._ledger.begin(at)
        self._commits = CommitCounts(changes)
        self.claimed_lsn = 0

    def _require_no_gap(self, checked: PreflightResult, received: int) -> None:
        """Make sure that the slot is not past what this run received; ``accept_gap`` makes that a warning."""
        at = int(checked.slot.confirmed_flush_lsn or 0)
        if at <= received:
            return
        was_recreated = self._mark is not None and self._mark.is_different_slot(continuity.fingerprint_of(checked))
        gap = continuity.gap(self._options.slot_name, at, received, was_recreated=was_recreated)
        if not self._options.accept_gap:
            raise gap
        self._observer.warn(gap.message)

    def _slot_in_use(self, exc: errors.SlotActive, seconds: float) -> errors.SlotActive:
        with contextlib.suppress(errors.Error):
            holder = self._check(self._was_primary).slot.holder
            return errors.SlotActive(
                f"slot {self._options.slot_name} is in use by {holder}; waited {seconds:g}s",
                hint="stop that consumer, or end it: SELECT pg_catalog.pg_terminate_backend(pid)",
                sqlstate=exc.sqlstate,
            )
        return exc
