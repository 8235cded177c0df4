"""Make passes over slot pairs until a signal, and serve metrics: what ``slot sync --every`` runs."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from rdsrepl import errors
from rdsrepl.failover import slot_pairs
from rdsrepl.failover.slot_pairs import PairState, SlotPair
from rdsrepl.tail.metrics_server import MetricsEndpoint
from rdsrepl.tail.signals import StopSignals
from rdsrepl.text.escapes import shown
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from rdsrepl.slot_sync.passes import PairSynchronizer
    from rdsrepl.tail.metrics import MetricsOptions

# A follower that was not advanced for so many periods, although its leader is ahead, is behind.
_STALLED_PERIODS: Final = 3
_REPORT_SECONDS: Final = 60.0


class Observer(Protocol):
    """Receives what the service reports; it must not write to stdout."""

    def note(self, text: str) -> None:
        """Report an event."""
        ...

    def warn(self, text: str) -> None:
        """Report an event that needs attention."""
        ...

    def passed(self, pairs: Sequence[SlotPair]) -> None:
        """Report the pairs after a pass."""
        ...


class Progress:
    """What is known of the pairs from pass to pass. Pure: time is passed in.

    Attributes:
        pairs: as they were after the last pass; ``broken`` if that failed because they are no pairs any more.
        passed_at: when the last pass succeeded; None before the first.
    """

    def __init__(self, every_seconds: float, now: float) -> None:
        self._stalled_seconds = _STALLED_PERIODS * every_seconds
        self._started_at = now
        self._positions: dict[str, object] = {}
        self._moved_at: dict[str, float] = {}
        self.pairs: list[SlotPair] = []
        self.passed_at: float | None = None

    def passed(self, pairs: Sequence[SlotPair], now: float) -> None:
        """Record a pass."""
        self.passed_at = now
        for pair in pairs:
            is_in_step = pair.follower_lsn is not None and pair.follower_lsn == pair.leader_lsn
            if is_in_step or self._positions.get(pair.slot_name) != pair.follower_lsn:
                self._moved_at[pair.slot_name] = now
            self._positions[pair.slot_name] = pair.follower_lsn
        self.pairs = [self._judged(pair, now) for pair in pairs]

    def failed(self, reason: str) -> None:
        """Record that the servers are no primary and standby any more."""
        self.pairs = [slot_pairs.broken(pair, reason) for pair in self.pairs]

    def seconds_since_advance(self, name: str, now: float) -> float:
        """Return for how long a follower has not moved, although it was not in step."""
        return now - self._moved_at.get(name, self._started_at)

    def is_healthy(self, now: float) -> bool:
        """Return whether a pass succeeded in the last periods."""
        last = self._started_at if self.passed_at is None else self.passed_at
        return now - last <= max(self._stalled_seconds, 30.0)

    def _judged(self, pair: SlotPair, now: float) -> SlotPair:
        idle = self.seconds_since_advance(pair.slot_name, now)
        if pair.state is not PairState.ready or idle <= self._stalled_seconds:
            return pair
        reason = pair.reason or "its leader is ahead of it"
        return replace(
            pair, state=PairState.behind, reason=f"the follower was not advanced for {format_duration(idle)}: {reason}"
        )


def run(
    synchronizer: PairSynchronizer,
    every_seconds: float,
    observer: Observer,
    *,
    metrics: MetricsOptions | None = None,
    before_pass: Callable[[], None] | None = None,
    after_pass: Callable[[Sequence[SlotPair]], None] | None = None,
) -> list[SlotPair]:
    """Make a pass every so often until a signal; return the pairs after the last pass.

    A server that does not answer is connected again at the next pass. After a promotion the pairs are ``broken``, and
    nothing is advanced any more.

    Args:
        synchronizer: makes the passes.
        every_seconds: the time from one pass to the next.
        observer: receives what happens.
        metrics: where metrics are served.
        before_pass: called before each pass.
        after_pass: called after each pass that succeeded.

    Raises:
        UsageError: the port for metrics is in use.
        Error: the first pass failed.
    """
    signals, progress = StopSignals(), Progress(every_seconds, time.monotonic())
    endpoint: MetricsEndpoint | None = None
    if metrics is not None:
        endpoint = MetricsEndpoint(metrics.host, metrics.port, _Collector(progress), lambda: _health(progress))
        observer.note(f"metrics: {endpoint.address}, and /healthz")
    failure, reported_at = "", 0.0
    states: dict[str, PairState] = {}
    try:
        with signals.installed():
            while signals.received is None:
                started = time.monotonic()
                try:
                    if before_pass is not None:
                        before_pass()
                    progress.passed(synchronizer.run(), started)
                    if after_pass is not None:
                        after_pass(progress.pairs)
                    failure = ""
                except errors.Error as exc:
                    synchronizer.close()
                    if progress.passed_at is None:
                        raise
                    if isinstance(exc, errors.Refused):
                        progress.failed(exc.message)
                    if exc.message != failure:
                        observer.warn(f"{exc.message}; trying again every {format_duration(every_seconds)}")
                    failure = exc.message
                _report_changes(progress.pairs, states, observer)
                if started - reported_at >= _REPORT_SECONDS and not failure:
                    observer.passed(progress.pairs)
                    reported_at = started
                left = every_seconds - (time.monotonic() - started)
                select.select([signals.wakeup], [], [], max(left, 0.0))
            observer.note(signals.reason)
    finally:
        if endpoint is not None:
            endpoint.close()
    return progress.pairs


def _report_changes(pairs: Iterable[SlotPair], states: dict[str, PairState], observer: Observer) -> None:
    """Report each pair whose state is another one than before."""
    for pair in pairs:
        if states.get(pair.slot_name) is pair.state:
            continue
        states[pair.slot_name] = pair.state
        text = f"pair {shown(pair.slot_name)}: {pair.state}" + (f": {shown(pair.reason)}" if pair.reason else "")
        (observer.warn if pair.rank else observer.note)(text)


class _Collector:
    """The metrics as they are when a client asks (a collector of prometheus_client)."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        now, progress = time.monotonic(), self._progress
        state = GaugeMetricFamily("rdsrepl_pair_state", "1 for the state of the pair.", labels=("slot", "state"))
        repeats = GaugeMetricFamily(
            "rdsrepl_pair_repeat_bytes", "WAL whose changes a failover would repeat.", labels=("slot",)
        )
        gap = GaugeMetricFamily("rdsrepl_pair_gap_bytes", "WAL whose changes a failover would lose.", labels=("slot",))
        since = GaugeMetricFamily(
            "rdsrepl_pair_seconds_since_advance",
            "Time since the follower was advanced or in step.",
            labels=("slot",),
        )
        for pair in list(progress.pairs):
            name = shown(pair.slot_name)
            for one in PairState:
                state.add_metric([name, one.value], float(pair.state is one))
            if pair.repeat_bytes is not None:
                repeats.add_metric([name], float(pair.repeat_bytes))
            if pair.gap_bytes is not None:
                gap.add_metric([name], float(pair.gap_bytes))
            since.add_metric([name], progress.seconds_since_advance(pair.slot_name, now))
        yield from (state, repeats, gap, since)
        last = progress.passed_at
        if last is not None:
            yield GaugeMetricFamily(
                "rdsrepl_pair_seconds_since_pass", "Time since the last pass that succeeded.", value=now - last
            )


def _health(progress: Progress) -> tuple[bool, Mapping[str, object]]:
    now, last = time.monotonic(), progress.passed_at
    is_healthy = progress.is_healthy(now)
    return is_healthy, {
        "healthy": is_healthy,
        "pairs": {pair.slot_name: pair.state.value for pair in list(progress.pairs)},
        "seconds_since_pass": None if last is None else round(now - last, 1),
    }
