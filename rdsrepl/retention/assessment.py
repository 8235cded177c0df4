"""What slots hold back, how fast that grows, and when something breaks. Pure: no I/O, no clock.

Three things break. The server invalidates a slot that holds more than ``max_slot_wal_keep_size``. The disk fills with
the WAL that the oldest slot holds. And the server runs out of transaction numbers, because rows that a slot still
needs cannot be frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Literal

from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal
from rdsrepl.state.slot_history import Observation, SlotSeen
from rdsrepl.units import format_duration, format_size

#: from here on the server gives out no transaction numbers (3 million before the end, 14+).
LAST_XID_AGE: Final = 2**31 - 3_000_000
#: a rate over less than this says little.
SHORTEST_WINDOW_SECONDS: Final = 1.0
_GOOD_WINDOW_SECONDS: Final = 60.0
_HOUR: Final = 3600.0
# A rate says nothing about what is further away than so many times its window: a quarter of an hour is good for a day.
_FAR_SIGHTED: Final = 100


class Severity(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


#: clocks that differ by more than this prove nothing; NTP keeps them within milliseconds.
CLOCK_TOLERANCE_SECONDS: Final = 10.0

Measure = Literal["retained", "undelivered", "breaks", "inactive", "xid_age", "wal_status"]
Break = Literal["slot_invalidated", "storage_full", "xid_wraparound"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on it is worth a word; None is never.

    Attributes:
        retained_bytes, undelivered_bytes: at least so much.
        breaks_seconds: something breaks within so long.
        inactive_seconds: nobody consumes it for at least so long.
        xid_age: it holds back so many transactions.
        wal_status: one of these.
    """

    retained_bytes: int | None = None
    undelivered_bytes: int | None = None
    breaks_seconds: float | None = None
    inactive_seconds: float | None = None
    xid_age: int | None = None
    wal_status: frozenset[str] = frozenset()


WARN: Final = Thresholds(10 << 30, None, 24 * _HOUR, _HOUR, 500_000_000, frozenset({"unreserved"}))
CRITICAL: Final = Thresholds(100 << 30, None, _HOUR, None, 1_000_000_000, frozenset({"unreserved", "lost"}))


@dataclass(frozen=True, slots=True)
class Storage:
    """The room there is for WAL.

    Attributes:
        free_bytes: now.
        may_grow_bytes: what storage autoscaling may add.
        source: who says so: ``CloudWatch``, ``--free-space``.
    """

    free_bytes: int
    may_grow_bytes: int = 0
    source: str = "what was said"


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast something grows.

    Attributes:
        per_second: bytes, or transactions.
        window_seconds: over how long it was observed; 0 where it comes from elsewhere.
        source: ``observed``, ``CloudWatch``.
    """

    per_second: float
    window_seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class Breakage:
    """Something that breaks if nothing is done.

    Attributes:
        what: which of the three.
        seconds: from now; 0 is now.
        reason: in words.
        window_seconds: over how long the rate behind it was observed; None where it needs none or is AWS's.
    """

    what: Break
    seconds: float
    reason: str
    window_seconds: float | None = None

    @property
    def is_founded(self) -> bool:
        """Whether the rate was observed for long enough to look so far ahead: a burst is no trend."""
        return self.window_seconds is None or self.seconds <= self.window_seconds * _FAR_SIGHTED


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a slot is worth a word."""

    severity: Severity
    measure: Measure
    text: str


@dataclass(frozen=True, slots=True)
class Watched:
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


@dataclass(frozen=True, slots=True)
class Holding:
    """What one slot holds back, and what comes of it; unknown is None.

    Attributes:
        retained_bytes: WAL the server keeps for it (from ``restart_lsn``).
        undelivered_bytes: WAL its consumer has not confirmed (from ``confirmed_flush_lsn``).
        xid_age: the age of the older of ``xmin`` and ``catalog_xmin``, in transactions.
        growth: of ``retained_bytes``; negative while a consumer catches up.
        delivery: bytes of WAL its consumer confirms in a second.
        inactive_seconds: for how long nobody consumes it, as far as that is known; None while it is active.
        idleness: the same, and what says so.
        lag_seconds: how old the WAL is that its consumer confirmed last, by what was observed.
        breaks: what breaks on its account, the soonest first.
        freed_bytes: what dropping it alone would free.
        shared_with: the slot that holds the same WAL, where dropping it alone frees less than it holds.
        reasons: why ``severity``, the worst first.
    """

    slot: Slot
    retained_bytes: int | None
    undelivered_bytes: int | None
    xid_age: int | None
    growth: Rate | None
    delivery: Rate | None
    inactive_seconds: float | None
    idleness: Idleness
    lag_seconds: float | None
    breaks: tuple[Breakage, ...]
    freed_bytes: int
    shared_with: str | None
    severity: Severity = Severity.OK
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Retention:
    """The whole server: its slots, the one that holds most, and how fast its WAL grows."""

    wal: Wal
    wal_rate: Rate | None
    storage: Storage | None
    holdings: tuple[Holding, ...]
    blamed: str | None = None
    severity: Severity = Severity.OK


def observe(wal: Wal, slots: Iterable[Slot]) -> Observation:
    """Return a look at a server as it is remembered."""
    seen = (
        SlotSeen(
            slot.slot_name,
            slot.active,
            slot.held_lsn,
            slot.confirmed_flush_lsn,
            xid_age(slot),
            slot.holder if slot.active else None,
            slot.counters,
        )
        for slot in slots
        if not slot.temporary
    )
    return Observation(wal.at, wal.started_at, wal.timeline, wal.lsn, wal.next_xid, tuple(seen), wal.clock_skew_seconds)


def assess(
    wal: Wal,
    slots: Sequence[Slot],
    history: Sequence[Observation] = (),
    *,
    storage: Storage | None = None,
    wal_rate: Rate | None = None,
    warn: Thresholds = WARN,
    critical: Thresholds = CRITICAL,
    window_seconds: float = 900.0,
    promoted_at: datetime | None = None,
    watched: Mapping[str, Watched] | None = None,
) -> Retention:
    """Return what every slot holds and what comes of it, the worst first.

    Args:
        wal: the WAL as it is.
        slots: all slots of the server.
        history: what was seen before, oldest first.
        storage: the room there is, where that is known.
        wal_rate: where it is known from elsewhere; what was observed for a minute or longer wins.
        warn: from where on it is worth a word.
        critical: from where on somebody must act.
        window_seconds: rates are taken over so long, or the longest there is below it.
        promoted_at: when the server was promoted, where that is known.
        watched: slots that were sampled without a break up to now, by name.
    """
    now = observe(wal, slots)
    earlier = tuple(one for one in history if not one.partial and _same_wal(one, now))
    start = _window_start(earlier, now, window_seconds)
    rate = None if start is None else _rate(start.lsn, now.lsn, _between(start, now))
    if rate is None or (wal_rate is not None and rate.window_seconds < _GOOD_WINDOW_SECONDS):
        rate = wal_rate
    kept = [slot for slot in slots if not slot.temporary]
    oldest = max((slot.retained_bytes or 0 for slot in kept), default=0)
    xids = None if start is None else _rate(start.next_xid, now.next_xid, _between(start, now))
    holdings = []
    for slot in kept:
        before = None if start is None else start.slot(slot.slot_name)
        growth, delivery = _movement(slot, before, start, now, rate)
        freed, shared = freed_by_dropping([slot.slot_name], slots, wal)
        idle = idleness(slot, history, wal, promoted_at=promoted_at, watched=(watched or {}).get(slot.slot_name))
        holding = Holding(
            slot=slot,
            retained_bytes=slot.retained_bytes,
            undelivered_bytes=slot.lag_bytes,
            xid_age=xid_age(slot),
            growth=growth,
            delivery=delivery,
            inactive_seconds=None if slot.active else idle.seconds,
            idleness=idle,
            lag_seconds=_lag_seconds(slot, earlier, now),
            breaks=(),
            freed_bytes=freed,
            shared_with=shared,
        )
        breaks = _breaks(holding, wal, storage, oldest, xids, before)
        reasons = _reasons(holding, breaks, warn, critical)
        severity = reasons[0].severity if reasons else Severity.OK
        holdings.append(replace(holding, breaks=breaks, severity=severity, reasons=reasons))
    holdings.sort(key=lambda one: (-_RANK[one.severity], -(one.retained_bytes or 0), one.slot.slot_name))
    worst = max((one.severity for one in holdings), key=_RANK.__getitem__, default=Severity.OK)
    blamed = max(holdings, key=lambda one: one.retained_bytes or 0, default=None)
    name = blamed.slot.slot_name if blamed is not None and blamed.retained_bytes else None
    return Retention(wal, rate, storage, tuple(holdings), name, worst)


def freed_by_dropping(names: Iterable[str], slots: Sequence[Slot], wal: Wal) -> tuple[int, str | None]:
    """Return how many bytes of WAL the server could remove without these slots, and which slot keeps the rest.

    The server keeps ``wal_keep_size`` in any case. The name is None where no other slot keeps anything they hold.
    """
    dropped = set(names)
    held = {slot.slot_name: slot.held_lsn for slot in slots if slot.held_lsn is not None}
    ours = [lsn for name, lsn in held.items() if name in dropped]
    if not ours:
        return 0, None
    oldest = min(ours)
    floor = max(0, wal.lsn - wal.keep_bytes)
    keeper, kept = min(
        ((name, lsn) for name, lsn in held.items() if name not in dropped), key=lambda one: one[1], default=(None, None)
    )
    if kept is None or kept >= floor:
        return max(0, floor - oldest), None
    return max(0, kept - oldest), keeper


def xid_age(slot: Slot) -> int | None:
    """Return the age of the older of ``xmin`` and ``catalog_xmin``, in transactions; an invalidated slot holds none."""
    if slot.is_lost:
        return None
    return max((age for age in (slot.xmin_age, slot.catalog_xmin_age) if age is not None), default=None)


def idleness(
    slot: Slot,
    history: Sequence[Observation],
    wal: Wal,
    *,
    promoted_at: datetime | None = None,
    watched: Watched | None = None,
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
        watched: what a row of samples up to now saw of it.
    """
    if slot.active:
        return Idleness(0.0, wal.at, "none")
    found = _idle_by_clock(slot, history, wal, promoted_at)
    if slot.is_lost:
        return replace(found, proof="lost")
    if watched is not None and (not found.is_proven or found.seconds < watched.seconds):
        return Idleness(
            watched.seconds, watched.since, "observed", watched.samples, widest_gap_seconds=watched.widest_gap_seconds
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


def history_rates(
    history: Sequence[Observation], name: str | None, *, points: int, seconds: float
) -> tuple[float | None, ...]:
    """Return a slot's retained bytes, or (None) the server's WAL rate, in the recent past: one value a step.

    A step in which nobody looked is None. The last step ends at the last look.
    """
    if not history:
        return ()
    end = history[-1].at
    step = seconds / points
    values: list[float | None] = [None] * points
    previous: Observation | None = None
    for one in history:
        age = (end - one.at).total_seconds()
        if age < seconds:
            index = min(points - 1, int((seconds - age) / step))
            if name is None:
                if previous is not None and one.at > previous.at:
                    values[index] = max(0, one.lsn - previous.lsn) / (one.at - previous.at).total_seconds()
            else:
                seen = one.slot(name)
                if seen is not None and seen.restart_lsn is not None:
                    values[index] = float(max(0, one.lsn - seen.restart_lsn))
        previous = one
    return tuple(values)


_RANK: Final = {Severity.OK: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}


def _same_wal(one: Observation, now: Observation) -> bool:
    """Say whether an earlier look can be compared: it was at the same run of the same server, by the same clock.

    A restored copy, a standby and a server that was restarted have another start; their WAL may be another one.
    """
    return (
        (one.started_at, one.timeline) == (now.started_at, now.timeline)
        and one.lsn <= now.lsn
        and one.at < now.at
        and not clock_jumped(one, now.clock_skew_seconds)
    )


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


def _between(one: Observation, other: Observation) -> float:
    return (other.at - one.at).total_seconds()


def _window_start(earlier: Sequence[Observation], now: Observation, seconds: float) -> Observation | None:
    """Return the oldest look in the window; where there is none, the last before it."""
    far_enough = [one for one in earlier if _between(one, now) >= SHORTEST_WINDOW_SECONDS]
    inside = [one for one in far_enough if _between(one, now) <= seconds]
    return inside[0] if inside else (far_enough[-1] if far_enough else None)


def _rate(start: int, end: int, seconds: float) -> Rate | None:
    return Rate((end - start) / seconds, seconds, "observed") if seconds >= SHORTEST_WINDOW_SECONDS else None


def _movement(
    slot: Slot, before: SlotSeen | None, start: Observation | None, now: Observation, wal_rate: Rate | None
) -> tuple[Rate | None, Rate | None]:
    """Return how fast what a slot holds grows, and how fast its consumer confirms."""
    if before is None or start is None or before.restart_lsn is None or slot.restart_lsn is None:
        # A slot that stands still grows as the WAL does; of one that moves nothing is known yet.
        return (wal_rate if not slot.active and slot.restart_lsn is not None else None), None
    seconds = _between(start, now)
    growth = Rate(((now.lsn - slot.restart_lsn) - (start.lsn - before.restart_lsn)) / seconds, seconds, "observed")
    if before.confirmed_flush_lsn is None or slot.confirmed_flush_lsn is None:
        return growth, None
    moved = (slot.confirmed_flush_lsn - before.confirmed_flush_lsn) / seconds
    return growth, Rate(max(0.0, moved), seconds, "observed")


def _lag_seconds(slot: Slot, earlier: Sequence[Observation], now: Observation) -> float | None:
    """Return how old the last confirmed WAL is: the time at which the server's WAL was there, by what was observed."""
    position = slot.confirmed_flush_lsn
    if position is None:
        return None
    if position >= now.lsn:
        return 0.0
    later = now
    for one in reversed(earlier):
        if one.lsn <= position:
            span = later.lsn - one.lsn
            part = (position - one.lsn) / span if span else 1.0
            at = one.at + timedelta(seconds=_between(one, later) * part)
            return max(0.0, (now.at - at).total_seconds())
        later = one
    return None


def _breaks(
    one: Holding, wal: Wal, storage: Storage | None, oldest: int, xids: Rate | None, before: SlotSeen | None
) -> tuple[Breakage, ...]:
    found: list[Breakage] = []
    slot, growth = one.slot, one.growth.per_second if one.growth is not None else 0.0
    window = (one.growth.window_seconds or None) if one.growth is not None else None
    if slot.is_lost:
        return (Breakage("slot_invalidated", 0.0, "the server has given it up: its changes are gone"),)
    if slot.wal_status == "unreserved":
        found.append(
            Breakage("slot_invalidated", 0.0, "it is over max_slot_wal_keep_size: the next checkpoint ends it")
        )
    elif wal.slot_keep_bytes is not None and slot.safe_wal_size is not None and growth > 0:
        found.append(
            Breakage(
                "slot_invalidated",
                max(0, slot.safe_wal_size) / growth,
                f"{format_size(max(0, slot.safe_wal_size))} more WAL and it is over max_slot_wal_keep_size "
                f"({format_size(wal.slot_keep_bytes)}); the checkpoint after that ends it",
                window,
            )
        )
    found += _idle_timeout(slot, wal)
    if storage is not None and growth > 0 and one.retained_bytes is not None and not wal.in_recovery:
        # Slots share WAL: this one fills the disk only with what it holds beyond the oldest.
        room = storage.free_bytes + storage.may_grow_bytes + oldest - one.retained_bytes
        limited = wal.slot_keep_bytes is not None and wal.slot_keep_bytes - one.retained_bytes < room
        if not limited:
            grows = f" (and {format_size(storage.may_grow_bytes)} by autoscaling)" if storage.may_grow_bytes else ""
            found.append(
                Breakage(
                    "storage_full",
                    max(0, room) / growth,
                    f"{format_size(storage.free_bytes)} of storage is free{grows}, by {storage.source}",
                    window,
                )
            )
    if one.xid_age is not None and xids is not None and xids.per_second > 0:
        stands = before is None or before.xmin_age is None or one.xid_age > before.xmin_age
        if stands:
            found.append(
                Breakage(
                    "xid_wraparound",
                    max(0, LAST_XID_AGE - one.xid_age) / xids.per_second,
                    f"{one.xid_age:,} of {LAST_XID_AGE:,} transaction numbers are used that it keeps from being frozen",
                    xids.window_seconds,
                )
            )
    return tuple(sorted(found, key=lambda item: item.seconds))


def _idle_timeout(slot: Slot, wal: Wal) -> Iterable[Breakage]:
    """Yield when ``idle_replication_slot_timeout`` (18) ends a slot; a standby's synchronised copies are spared."""
    limit = wal.idle_timeout_seconds
    if not limit or slot.active or slot.inactive_since is None or slot.restart_lsn is None:
        return
    if slot.synced and wal.in_recovery:
        return
    idle = max(0.0, (wal.at - slot.inactive_since).total_seconds())
    yield Breakage(
        "slot_invalidated",
        max(0.0, limit - idle),
        f"it has been idle for {format_duration(idle)}, and idle_replication_slot_timeout is "
        f"{format_duration(limit)}; the checkpoint after that ends it",
        idle,  # a consumer that is away for a moment only is no trend
    )


def _reasons(one: Holding, breaks: Sequence[Breakage], warn: Thresholds, critical: Thresholds) -> tuple[Reason, ...]:
    found: list[Reason] = []
    for severity, limits in ((Severity.CRITICAL, critical), (Severity.WARNING, warn)):
        said = {reason.measure for reason in found}
        found += [reason for reason in _over(one, breaks, severity, limits) if reason.measure not in said]
    return tuple(found)


def _over(one: Holding, breaks: Sequence[Breakage], severity: Severity, limits: Thresholds) -> Iterable[Reason]:
    slot = one.slot
    if slot.wal_status is not None and slot.wal_status in limits.wal_status:
        yield Reason(severity, "wal_status", f"wal_status is {slot.wal_status}")
    elif slot.is_lost and "lost" in limits.wal_status:
        yield Reason(severity, "wal_status", f"it is invalidated ({slot.invalidation_reason or 'conflict'})")
    soonest = next((one for one in breaks if one.is_founded), None)
    if limits.breaks_seconds is not None and soonest is not None and soonest.seconds <= limits.breaks_seconds:
        when = f"in {format_duration(soonest.seconds)}" if soonest.seconds else "now"
        yield Reason(severity, "breaks", f"{_BREAK_WORDS[soonest.what]} {when}: {soonest.reason}")
    for measure, value, limit, words in (
        ("retained", one.retained_bytes, limits.retained_bytes, "of WAL are kept for it"),
        ("undelivered", one.undelivered_bytes, limits.undelivered_bytes, "of WAL are not delivered"),
    ):
        if limit is not None and value is not None and value >= limit:
            yield Reason(severity, measure, f"{format_size(value)} {words}")  # type: ignore[arg-type]
    if (
        limits.inactive_seconds is not None
        and one.inactive_seconds is not None
        and one.inactive_seconds >= limits.inactive_seconds
    ):
        how = (
            f"not in use at {one.idleness.looks} looks in"
            if one.idleness.proof == "looks"
            else "nobody has consumed it for"
        )
        yield Reason(severity, "inactive", f"{how} {format_duration(one.inactive_seconds)}")
    if limits.xid_age is not None and one.xid_age is not None and one.xid_age >= limits.xid_age:
        yield Reason(severity, "xid_age", f"it holds back {one.xid_age:,} transactions from VACUUM")


_BREAK_WORDS: Final = {
    "slot_invalidated": "the slot is invalidated",
    "storage_full": "the disk is full",
    "xid_wraparound": "transaction numbers run out",
}
