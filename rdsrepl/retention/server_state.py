"""Read the state of the server and its slots, with the earlier samples, and sample slots without interruption.

A read takes three statements, however many slots there are, and adds a sample to the history (``slot_history``).
``SlotSampler`` samples the slots without interruption: before PostgreSQL 17 only this proves that a slot is idle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, Self

from rdsrepl.errors import Refused
from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal
from rdsrepl.retention import assessment, idleness, thresholds
from rdsrepl.retention.assessment import Retention
from rdsrepl.retention.forecast import Rate, Storage
from rdsrepl.retention.idleness import SampledIdle
from rdsrepl.retention.thresholds import Thresholds
from rdsrepl.state import slot_history
from rdsrepl.state.slot_history import Observation

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

#: The time between two samples, and the longest time between two that counts as uninterrupted: a consumer that is
#: connected for longer is detected.
SAMPLE_SECONDS: Final = 0.25
MAX_GAP_SECONDS: Final = 1.0
#: A larger difference between the clocks' steps means that a clock was set.
CLOCK_STEP_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class ServerState:
    """The state of a server and its slots at one moment.

    Attributes:
        server: identifies the server: its system identifier, or else its address.
        history: earlier samples, oldest first, without this one.
        storage, wal_rate: from CloudWatch or the options, if known.
        notes: what could not be read, and why.
        promoted_at: when the server was promoted, if known.
        sampled: the slots that were sampled without interruption up to now, by name.
    """

    server: str
    wal: Wal
    slots: tuple[Slot, ...]
    history: tuple[Observation, ...] = ()
    storage: Storage | None = None
    wal_rate: Rate | None = None
    notes: tuple[str, ...] = ()
    promoted_at: datetime | None = None
    sampled: Mapping[str, SampledIdle] = field(default_factory=dict)

    @property
    def clock_doubt(self) -> str | None:
        """Why the clocks prove nothing, for a person; None if they are reliable."""
        return idleness.clock_doubt(self.wal, self.history)

    def assess(
        self, *, warn: Thresholds = thresholds.DEFAULT_WARNING, critical: Thresholds = thresholds.DEFAULT_CRITICAL
    ) -> Retention:
        """Return what each slot retains, and which failures follow."""
        return assessment.assess(
            self.wal,
            self.slots,
            self.history,
            storage=self.storage,
            wal_rate=self.wal_rate,
            warn=warn,
            critical=critical,
            promoted_at=self.promoted_at,
            sampled=self.sampled,
        )


class SlotSampler:
    """Samples the slots of a server, and keeps which of them had no activity.

    Two samples must be at most ``MAX_GAP_SECONDS`` apart. A consumer that is connected for longer is detected, and so
    is one that reads a change (14 and later: the statistics counters change). Times are of this machine's monotonic
    clock. If the server's clock differs from it, the sampling starts again from zero.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a sampler without samples.

        Args:
            clock: a monotonic clock, in seconds.
        """
        self._clock = clock
        self._sampled_at: float | None = None
        self._wal: Wal | None = None
        self._states: dict[str, tuple[object, ...]] = {}
        self._rows: dict[str, SampledIdle] = {}
        #: How long the sampling has run without interruption.
        self.seconds = 0.0
        #: When and why the sampling was interrupted, for a person.
        self.interruptions: list[str] = []
        #: Whether the last sample differs from the one before.
        self.changed = False

    def sample(self, conn: Connection) -> tuple[Wal, tuple[Slot, ...]]:
        """Read the slots once more; return the WAL and the slots."""
        from rdsrepl.postgres import slots, wal

        at = self._clock()
        now = wal.get(conn)
        rows = tuple(slots.ls(conn))
        self.add(at, now, rows)
        return now, rows

    def add(self, at: float, now: Wal, rows: Sequence[Slot]) -> None:
        """Add a sample.

        Args:
            at: this machine's monotonic clock when the sample was requested, in seconds.
            now: the WAL at that time.
            rows: all slots.
        """
        gap = 0.0 if self._sampled_at is None else at - self._sampled_at
        why = self._interruption(gap, now)
        self.seconds = self.seconds + gap if why is None else 0.0
        if why is not None:
            self.interruptions.append(f"{now.at:%H:%M:%S}: {why}")
        states = {slot.slot_name: slot.state for slot in rows if not slot.active}
        self.changed = self._wal is None or why is not None or states != self._states
        fresh = SampledIdle(0.0, now.at, 1, 0.0)
        self._rows = {
            name: replace(
                before,
                seconds=before.seconds + gap,
                samples=before.samples + 1,
                widest_gap_seconds=max(before.widest_gap_seconds, gap),
            )
            if why is None and (before := self._rows.get(name)) is not None and self._states.get(name) == state
            else fresh
            for name, state in states.items()
        }
        self._sampled_at, self._wal, self._states = at, now, states

    def _interruption(self, gap: float, now: Wal) -> str | None:
        """Return why this sample does not continue the one before; None if it does."""
        before = self._wal
        if before is None:
            return None
        if (before.started_at, before.timeline, before.in_recovery) != (now.started_at, now.timeline, now.in_recovery):
            return "the server was restarted, or another server answered"
        if abs((now.at - before.at).total_seconds() - gap) > CLOCK_STEP_SECONDS:
            return "a clock was set, or this machine was suspended"
        if gap > MAX_GAP_SECONDS:
            return f"{gap:.1f}s passed between two samples"
        return None

    @property
    def idle_slots(self) -> dict[str, SampledIdle]:
        """The slots without activity, each with its uninterrupted samples up to the last one."""
        return dict(self._rows)


class BackgroundSampler:
    """Continues a ``SlotSampler`` in a thread, so that the proof covers the time from its last sample to the drop.

    In this time the user reads the plan and confirms it. Only the thread uses the connection until the end.
    """

    def __init__(self, conn: Connection, sampler: SlotSampler) -> None:
        """Create the thread.

        Args:
            conn: the connection on which the samples were taken.
            sampler: the samples so far.
        """
        from rdsrepl.postgres import server_identity

        self._conn, self._sampler = conn, sampler
        self._key = server_identity.history_key(conn)
        self._since = {name: row.since for name, row in sampler.idle_slots.items()}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="slot-sampler", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread; do not wait for a server that does not answer."""
        self._stopped.set()
        self._thread.join(timeout=MAX_GAP_SECONDS)

    def require_untouched(self, slot_name: str) -> None:
        """Check that a slot had no activity up to now.

        Raises:
            Refused: it had activity, or the sampling was interrupted.
        """
        self._sample()
        with self._lock:
            row = self._sampler.idle_slots.get(slot_name)
            unbroken = row is not None and row.since == self._since.get(slot_name)
            if self._failure is None and unbroken:
                return
            why = str(self._failure or (self._sampler.interruptions or ["it was used"])[-1])
        raise Refused(
            f"slot {slot_name} is no longer proven idle: since the plan was shown, {why}",
            hint="the slot was not changed; run the command again",
        )

    def _work(self) -> None:
        while self._failure is None and not self._stopped.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            if self._failure is not None:
                return
            try:
                now, rows = self._sampler.sample(self._conn)
            except Exception as exc:  # noqa: BLE001 - reported by require_untouched
                self._failure = exc
                return
            if self._sampler.changed:
                slot_history.record(self._key, assessment.to_observation(now, rows))


def read(
    conn: Connection,
    *,
    storage: Storage | None = None,
    wal_rate: Rate | None = None,
    notes: Sequence[str] = (),
    sampler: SlotSampler | None = None,
    with_history: bool = True,
) -> ServerState:
    """Return the state of the server, and add it to the history.

    Args:
        conn: the server.
        storage: see ``ServerState``.
        wal_rate: see ``ServerState``.
        notes: see ``ServerState``.
        sampler: add the state to it as its next sample.
        with_history: read the earlier samples as well, which an assessment needs.
    """
    from rdsrepl.postgres import server_identity, slots, wal

    key = server_identity.history_key(conn)
    now, rows = sampler.sample(conn) if sampler is not None else (wal.get(conn), tuple(slots.ls(conn)))
    promoted_at = None
    if now.timeline is not None and now.timeline > 1:
        promoted_at = wal.promoted_at(conn, now.timeline)
    past = slot_history.history(key) if with_history else ()
    slot_history.record(key, assessment.to_observation(now, rows))
    sampled = sampler.idle_slots if sampler is not None else {}
    server = key.partition(" ")[0]
    return ServerState(server, now, rows, past, storage, wal_rate, tuple(notes), promoted_at, sampled)
