"""How long a slot has been idle, and what proves it. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal
from rdsrepl.state.slot_history import Observation
from rdsrepl.units import format_duration

#: clocks that differ by more than this prove nothing; NTP keeps them within milliseconds.
CLOCK_TOLERANCE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class SampledIdle:
    """A slot that was sampled without a break up to now, and at which nothing was seen to happen.

    Attributes:
        seconds: for how long, by this machine's monotonic clock.
        since: the server's clock at the first sample.
        samples: how many.
        widest_gap_seconds: the longest time between two of them: a consumer that came and went in it, and read nothing,
            was not seen.
    """

    seconds: float
    since: datetime
    samples: int
    widest_gap_seconds: float


@dataclass(frozen=True, slots=True)
class Idleness:
    """What is known of a slot's being idle.

    Attributes:
        seconds: for how long.
        since: from when on.
        proof: who says so: ``server`` (``inactive_since``), ``observed`` (one run sampled it without a break, and
            nothing moved), ``looks`` (it stood still at every look of separate runs, which proves nothing of the time
            between them), ``lost`` (nobody can consume it any more), ``none``.
        looks: at how many looks or samples.
        counted_from: what ``since`` is, where it is not the slot's own doing; empty else.
        doubt: why nothing is known, where there is a reason; empty else.
        widest_gap_seconds: of ``observed``: the longest time between two samples.
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
        """Whether a slot may be dropped for it."""
        return self.proof in ("server", "observed", "lost")

    @property
    def text(self) -> str:
        """The proof in words."""
        if self.proof == "lost":
            return "nobody can consume it any more"
        if self.proof == "none":
            return self.doubt or "nothing is known yet of how long it has been idle"
        how = {
            "server": "says the server",
            "observed": f"no activity in {self.looks} samples, at most {self.widest_gap_seconds or 0:.1f}s apart",
            "looks": f"not in use at {self.looks} looks, which prove nothing of the time between them",
        }[self.proof]
        how += f", counted from {self.counted_from}" if self.counted_from else ""
        return f"idle for {format_duration(self.seconds)} ({how})"


def assess_idleness(
    slot: Slot,
    history: Sequence[Observation],
    wal: Wal,
    *,
    promoted_at: datetime | None = None,
    sampled: SampledIdle | None = None,
) -> Idleness:
    """Return for how long a slot is known to be idle, and by what.

    From 17 on the server says since when it is inactive. Before, only a row of samples without a break proves it; looks
    of separate runs at which it stood still are worth knowing, and no proof. No claim reaches back behind the server's
    start, its promotion, a look at which the slot was in use, be it at the primary before this one, or a clock that was
    set.

    Args:
        slot: as it is now.
        history: what was seen before, oldest first.
        wal: the WAL as it is now.
        promoted_at: when the server was promoted; None where that is not known.
        sampled: what a row of samples up to now saw of it.
    """
    if slot.active:
        return Idleness(0.0, wal.at, "none")
    found = _idle_by_clock(slot, history, wal, promoted_at)
    if slot.is_lost:
        return replace(found, proof="lost")
    if sampled is not None and (not found.is_proven or found.seconds < sampled.seconds):
        return Idleness(
            sampled.seconds, sampled.since, "observed", sampled.samples, widest_gap_seconds=sampled.widest_gap_seconds
        )
    return found


def _idle_by_clock(slot: Slot, history: Sequence[Observation], wal: Wal, promoted_at: datetime | None) -> Idleness:
    if abs(wal.clock_skew_seconds) > CLOCK_TOLERANCE_SECONDS:
        return Idleness(0.0, wal.at, "none", doubt=clock_doubt(wal, ()) or "")
    bounds = list(_bounds(slot, history, wal, promoted_at))
    if slot.inactive_since is not None:
        since, counted_from = max([(slot.inactive_since, ""), *bounds], key=lambda bound: bound[0])
        return Idleness(max(0.0, (wal.at - since).total_seconds()), since, "server", counted_from=counted_from)
    state = (slot.held_lsn, slot.confirmed_flush_lsn, slot.counters)
    looks: list[datetime] = []
    for one in reversed(history):
        seen = one.slot(slot.slot_name)
        if (one.started_at, one.timeline) != (wal.started_at, wal.timeline) or (seen is None and one.partial):
            continue  # another server, or a look of which only the changes are left
        if seen is None or seen.active or seen.position != state or one.at > wal.at:
            break
        looks.append(one.at)
    since, counted_from = max([(looks[-1] if looks else wal.at, ""), *bounds], key=lambda bound: bound[0])
    count = sum(at >= since for at in looks)
    if not count:
        return Idleness(0.0, wal.at, "none")
    return Idleness((wal.at - since).total_seconds(), since, "looks", count + 1, counted_from)


def _bounds(
    slot: Slot, history: Sequence[Observation], wal: Wal, promoted_at: datetime | None
) -> Iterable[tuple[datetime, str]]:
    """Yield the moments behind which no word on idleness counts for anything, and what they are."""
    yield wal.started_at, "the server's start"
    if wal.timeline is not None and wal.timeline > 1:
        # A standby's own slots, and such as a service copied there, keep their time through its promotion.
        if promoted_at is not None:
            yield promoted_at, "the server's promotion"
        else:
            same = (one.at for one in history if (one.started_at, one.timeline) == (wal.started_at, wal.timeline))
            yield (
                min(next(same, wal.at), wal.at),
                "the first look after the server's promotion (only a role with pg_monitor may see when that was)",
            )
    for one in reversed(history):
        seen = one.slot(slot.slot_name)
        if seen is not None and seen.active:
            yield min(one.at, wal.at), "a look at which it was in use"
            break
    after = wal.at
    for one in reversed(history):
        if clock_jumped(one, wal.clock_skew_seconds):
            yield after, "the first look after a clock was set"
            break
        after = min(one.at, wal.at)


def clock_jumped(one: Observation, skew_seconds: float) -> bool:
    """Say whether one of the two clocks was set between an earlier look and now.

    Args:
        one: the earlier look.
        skew_seconds: how far the server's clock is ahead of this machine's now.
    """
    return abs(one.clock_skew_seconds - skew_seconds) > CLOCK_TOLERANCE_SECONDS


def clock_doubt(wal: Wal, history: Sequence[Observation]) -> str | None:
    """Return what is wrong with the clocks, in words; None where nothing is.

    Args:
        wal: the server as it is now.
        history: what was seen before, oldest first.
    """
    skew = wal.clock_skew_seconds
    if abs(skew) > CLOCK_TOLERANCE_SECONDS:
        how = "ahead of" if skew > 0 else "behind"
        return f"the server's clock is {format_duration(abs(skew))} {how} this machine's, so no time is proven"
    if history and clock_jumped(history[-1], skew):
        return (
            f"since the last look one of the clocks, the server's or this machine's, was set by "
            f"{format_duration(abs(history[-1].clock_skew_seconds - skew))}: what was before proves nothing"
        )
    return None
