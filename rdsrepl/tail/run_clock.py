"""When a run stops: after a signal, ``--duration`` or ``--idle-exit``."""

from __future__ import annotations

import select
import time

from rdsrepl.tail.options import StopConditions
from rdsrepl.tail.signals import StopSignals


class RunClock:
    """Measures a run from its creation.

    Attributes:
        signals: what stops the run.
    """

    def __init__(self, stop: StopConditions) -> None:
        """Start to measure; STOP has the allowed times."""
        self.signals = StopSignals()
        self._stop = stop
        self._started_at = self._last_change_at = time.monotonic()

    def changed(self) -> None:
        """Record that a change was received now."""
        self._last_change_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self._started_at

    @property
    def is_cut_short(self) -> bool:
        """Whether the run ends without waiting for anything more: after a signal, or when the duration is over."""
        return self.signals.received is not None or self._is_duration_over()

    def reason_to_stop(self, *, all_delivered: bool) -> str | None:
        """Return why the run stops now; None if it does not stop.

        Args:
            all_delivered: whether no change waits for its delivery; a run is not idle while one does.
        """
        if self.signals.received is not None:
            return self.signals.reason
        if self._is_duration_over():
            return "reached --duration"
        allowed = self._stop.idle_seconds
        if allowed is not None and all_delivered and time.monotonic() - self._last_change_at >= allowed:
            return "no change for --idle-exit"
        return None

    def seconds_left(self) -> float | None:
        """Return the time until one of the allowed times may be over; None without one."""
        now = time.monotonic()
        ends = []
        if self._stop.duration_seconds is not None:
            ends.append(self._started_at + self._stop.duration_seconds - now)
        if self._stop.idle_seconds is not None:
            ends.append(self._last_change_at + self._stop.idle_seconds - now)
        return min(ends, default=None)

    def pause(self, seconds: float) -> bool:
        """Wait; return whether the run is cut short."""
        deadline = time.monotonic() + seconds
        if self._stop.duration_seconds is not None:
            deadline = min(deadline, self._started_at + self._stop.duration_seconds)
        while self.signals.received is None and (left := deadline - time.monotonic()) > 0:
            select.select([self.signals.wakeup], [], [], left)
        return self.is_cut_short

    def _is_duration_over(self) -> bool:
        allowed = self._stop.duration_seconds
        return allowed is not None and self.seconds >= allowed
