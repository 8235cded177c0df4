"""Tell how long a slot has been idle, and what proves it. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal
from rdsrepl.state.slot_history import Observation
from rdsrepl.text.counts import counted
from rdsrepl.units import format_duration

#: If the clocks differ by more than this, they prove nothing; NTP keeps them within milliseconds.
CLOCK_TOLERANCE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class SampledIdle:
    """A slot that was sampled without interruption up to now, and had no activity.

    Attributes:
        seconds: how long, by this machine's monotonic clock.
        since: the server's clock at the first sample.
        samples: the number of samples.
        widest_gap_seconds: the longest time between two samples. A consumer that was connected only within such a gap,
            and read nothing, is not detected.
    """

    seconds: float
    since: datetime
    samples: int
    widest_gap_seconds: float


@dataclass(frozen=True, slots=True)
class Idleness:
    """How long a slot has been idle, as far as known.

    Attributes:
        seconds: how long.
        since: the start of that time.
        proof: what proves it: ``server`` (``inactive_since``), ``observed`` (one run sampled the slot without
            interruption, and there was no activity), ``lost`` (the slot is invalidated), ``looks`` (no activity in the
            samples of separate runs; this is no proof, because nothing is known about the time between them), ``none``.
        looks: the number of samples.
        counted_from: what happened at ``since``, if it was not the slot that became idle; or else empty.
        doubt: why the clocks prove nothing; or else empty.
        widest_gap_seconds: for ``observed``: the longest time between two samples.
    """

    seconds: float
    since: datetime
    proof: Literal["server", "observed", "looks", "lost", "none"]
    looks: int = 0
    counted_from: str = ""
    doubt: str = ""
    widest_gap_seconds: float | None = None

    @property
    def is_proven(self) -> bool:
        """Whether it is a reason to drop the slot."""
        return self.proof in ("server", "observed", "lost")

    @property
    def text(self) -> str:
        """The time and its proof, for a person."""
        if self.proof == "lost":
            return "it is invalidated: no consumer can use it"
        if self.proof == "none":
            return self.doubt or "idle time unknown: there are no earlier samples"
        samples = counted(self.looks, "sample")
        how = {
            "server": "inactive_since of the server",
            "observed": f"no activity in {samples}, at most {self.widest_gap_seconds or 0:.1f}s apart",
            "looks": f"not in use in {samples} of separate runs, which is no proof",
        }[self.proof]
        how += f", counted from {self.counted_from}" if self.counted_from else ""
        return f"idle {format_duration(self.seconds)} ({how})"


def assess_idleness(
    slot: Slot,
    history: Sequence[Observation],
    wal: Wal,
    *,
    promoted_at: datetime | None = None,
    sampled: SampledIdle | None = None,
) -> Idleness:
    """Return how long a slot is known to be idle, and what proves it.

    Since PostgreSQL 17 the server reports when a slot became inactive. Before 17 only uninterrupted samples prove it.
    The idle time never begins before the start of the server, its promotion, the last sample in which the slot was in
    use (on this server or its former primary), or a change of a clock.

    Args:
        slot: the current state of the slot.
        history: earlier samples, oldest first.
        wal: the current state of the WAL.
        promoted_at: when the server was promoted; None if unknown.
        sampled: the uninterrupted samples of the slot up to now.
    """
    if slot.active:
        return Idleness(0.0, wal.at, "none")
    idle = _idle_by_clock(slot, history, wal, promoted_at)
    if slot.is_lost:
        return replace(idle, proof="lost")
    if sampled is not None and (not idle.is_proven or idle.seconds < sampled.seconds):
        return Idleness(
            sampled.seconds, sampled.since, "observed", sampled.samples, widest_gap_seconds=sampled.widest_gap_seconds
        )
    return idle


def _idle_by_clock(slot: Slot, history: Sequence[Observation], wal: Wal, promoted_at: datetime | None) -> Idleness:
    if abs(wal.clock_skew_seconds) > CLOCK_TOLERANCE_SECONDS:
        return Idleness(0.0, wal.at, "none", doubt=clock_doubt(wal, ()) or "")
    bounds = list(_bounds(slot, history, wal, promoted_at))
    if slot.inactive_since is not None:
        since, counted_from = max([(slot.inactive_since, ""), *bounds], key=lambda bound: bound[0])
        return Idleness(max(0.0, (wal.at - since).total_seconds()), since, "server", counted_from=counted_from)
    state = (slot.held_lsn, slot.confirmed_flush_lsn, slot.counters)
    samples: list[datetime] = []
    for one in reversed(history):
        seen = one.slot(slot.slot_name)
        if (one.started_at, one.timeline) != (wal.started_at, wal.timeline) or (seen is None and one.partial):
            continue  # a sample of another server, or one of which only the changes are stored
        if seen is None or seen.active or seen.position != state or one.at > wal.at:
            break
        samples.append(one.at)
    since, counted_from = max([(samples[-1] if samples else wal.at, ""), *bounds], key=lambda bound: bound[0])
    count = sum(at >= since for at in samples)
    if not count:
        return Idleness(0.0, wal.at, "none")
    return Idleness((wal.at - since).total_seconds(), since, "looks", count + 1, counted_from)


def _bounds(
    slot: Slot, history: Sequence[Observation], wal: Wal, promoted_at: datetime | None
) -> Iterable[tuple[datetime, str]]:
    """Yield the moments before which an idle time cannot begin, with what happened then."""
    yield wal.started_at, "the server's start"
    if wal.timeline is not None and wal.timeline > 1:
        # A standby's own slots, and slots that a service copied to it, keep their inactive_since at the promotion.
        if promoted_at is not None:
            yield promoted_at, "the server's promotion"
        else:
            same = (one.at for one in history if (one.started_at, one.timeline) == (wal.started_at, wal.timeline))
            yield (
                min(next(same, wal.at), wal.at),
                "the first sample after the server's promotion; pg_monitor is required to read the promotion time",
            )
    for one in reversed(history):
        seen = one.slot(slot.slot_name)
        if seen is not None and seen.active:
            yield min(one.at, wal.at), "a sample in which it was in use"
            break
    after = wal.at
    for one in reversed(history):
        if clock_jumped(one, wal.clock_skew_seconds):
            yield after, "the first sample after a clock was set"
            break
        after = min(one.at, wal.at)


def clock_jumped(one: Observation, skew_seconds: float) -> bool:
    """Return whether the clock of the server or of this machine was set between an earlier sample and now.

    Args:
        one: the earlier sample.
        skew_seconds: how far the server's clock is ahead of this machine's clock now.
    """
    return abs(one.clock_skew_seconds - skew_seconds) > CLOCK_TOLERANCE_SECONDS


def clock_doubt(wal: Wal, history: Sequence[Observation]) -> str | None:
    """Return why the clocks prove nothing, for a person; None if they are reliable.

    Args:
        wal: the current state of the WAL.
        history: earlier samples, oldest first.
    """
    skew = wal.clock_skew_seconds
    if abs(skew) > CLOCK_TOLERANCE_SECONDS:
        how = "ahead of" if skew > 0 else "behind"
        return (
            f"the server's clock is {format_duration(abs(skew))} {how} this machine's clock: idle times are not proven"
        )
    if history and clock_jumped(history[-1], skew):
        return (
            "the clock of the server or of this machine was set by "
            f"{format_duration(abs(history[-1].clock_skew_seconds - skew))} since the last sample: "
            "idle times before that are not proven"
        )
    return None
