"""How the slots stand: one look at the server, what earlier looks saw, and the room there is, for ``retention``.

Three statements, however many slots there are. Each look is added to the history (``observations``). ``Watch`` samples
the slots without a break: before PostgreSQL 17 nothing else proves that a slot is idle.
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

#: how often ``Watch`` is to be given a sample, and how far apart two may be: a consumer that stays for longer is seen.
SAMPLE_SECONDS: Final = 0.25
MAX_GAP_SECONDS: Final = 1.0
#: between two samples; more is a clock that was set.
CLOCK_STEP_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class ServerState:
    """One look.

    Attributes:
        server: what identifies the server: its system identifier, or else its address.
        history: what was seen before, oldest first, without this look.
        storage, wal_rate: what is known from elsewhere.
        notes: what could not be found out, and why.
        promoted_at: when the server was promoted, where that is known.
        sampled: slots that were sampled without a break up to this look, by name.
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
        """What is wrong with the clocks, in words; None where nothing is."""
        return idleness.clock_doubt(self.wal, self.history)

    def assess(
        self, *, warn: Thresholds = thresholds.DEFAULT_WARNING, critical: Thresholds = thresholds.DEFAULT_CRITICAL
    ) -> Retention:
        """Return what every slot holds and what comes of it."""
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
    """Samples the slots of a server for as long as it is asked to, and knows which of them nobody touched.

    It is a proof only for what it sees. Two samples must not be further apart than ``LONGEST_GAP_SECONDS``: whoever
    attaches for longer is seen, and so is whoever reads a change (14 and later: the counters move). Time is this
    machine's monotonic clock; where the server's clock does not go along, the row begins anew.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without a sample.

        Args:
            clock: seconds that only go forward.
        """
        self._clock = clock
        self._asked_at = 0.0
        self._sampled_at: float | None = None
        self._wal: Wal | None = None
        self._states: dict[str, tuple[object, ...]] = {}
        self._rows: dict[str, SampledIdle] = {}
        #: for how long it has gone on without a break.
        self.seconds = 0.0
        #: when and why a row of samples ended and another one began, in words.
        self.interruptions: list[str] = []
        #: whether the last sample found something else than the one before.
        self.changed = False

    def sample(self, conn: Connection) -> tuple[Wal, tuple[Slot, ...]]:
        """Look at the slots once more; return what was found."""
        from rdsrepl.postgres import slots, wal

        self._asked_at = self._clock()
        now = wal.get(conn)
        rows = tuple(slots.ls(conn))
        self.add(self._asked_at, now, rows)
        return now, rows

    def add(self, at: float, now: Wal, rows: Sequence[Slot]) -> None:
        """Take note of a sample.

        Args:
            at: this machine's monotonic clock when it was asked for, in seconds.
            now: the WAL then.
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
        """Return why nothing connects this sample with the one before; None where it does."""
        before = self._wal
        if before is None:
            return None
        if (before.started_at, before.timeline, before.in_recovery) != (now.started_at, now.timeline, now.in_recovery):
            return "the server was restarted, or another one answers"
        if abs((now.at - before.at).total_seconds() - gap) > CLOCK_STEP_SECONDS:
            return "a clock was set, or this machine was suspended"
        if gap > MAX_GAP_SECONDS:
            return f"{gap:.1f}s went by between two samples"
        return None

    @property
    def idle_slots(self) -> dict[str, SampledIdle]:
        """Return the slots that nobody was seen to touch, each with the row of samples that ends with the last one."""
        return dict(self._rows)


class BackgroundSampler:
    """Goes on sampling in a thread of its own, so that the proof reaches from ``Watch``'s last sample up to the drop.

    Between them a person reads the plan, for minutes or over lunch. The connection is the thread's until the end.
    """

    def __init__(self, conn: Connection, sampler: SlotSampler) -> None:
        """Take over a row of samples.

        Args:
            conn: where they were taken.
            sampler: the samples so far.
        """
        from rdsrepl.postgres import server_identity

        self._conn, self._sampler = conn, sampler
        self._key = server_identity.history_key(conn)
        self._since = {name: row.since for name, row in sampler.idle_slots.items()}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="vigil", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; nothing waits for a server that does not answer."""
        self._stopped.set()
        self._thread.join(timeout=MAX_GAP_SECONDS)

    def require_untouched(self, slot_name: str) -> None:
        """Make sure that nobody was seen to touch a slot up to this moment.

        Raises:
            Refused: somebody was, or not all of the time was watched.
        """
        self._sample()
        with self._lock:
            row = self._sampler.idle_slots.get(slot_name)
            unbroken = row is not None and row.since == self._since.get(slot_name)
            if self._failure is None and unbroken:
                return
            why = str(self._failure or (self._sampler.interruptions or ["somebody used it"])[-1])
        raise Refused(
            f"slot {slot_name}: it is not proven any more that it is idle: since the plan was shown, {why}",
            hint="nothing was done to it; run the command again",
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
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is said when the slot is to go
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
) -> ServerState:
    """Look at the server once, and remember it; with ``watch`` as its next sample."""
    from rdsrepl.postgres import server_identity, slots, wal

    key = server_identity.history_key(conn)
    now, rows = sampler.sample(conn) if sampler is not None else (wal.get(conn), tuple(slots.ls(conn)))
    promoted_at = None
    if now.timeline is not None and now.timeline > 1:
        promoted_at = wal.promoted_at(conn, now.timeline)
    past = slot_history.history(key)
    slot_history.record(key, assessment.to_observation(now, rows))
    sampled = sampler.idle_slots if sampler is not None else {}
    server = key.partition(" ")[0]
    return ServerState(server, now, rows, past, storage, wal_rate, tuple(notes), promoted_at, sampled)
