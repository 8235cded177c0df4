"""What slots hold back, how fast that grows, and when something breaks. Pure: no I/O, no clock.

Three things break. The server invalidates a slot that holds more than ``max_slot_wal_keep_size``. The disk fills with
the WAL that the oldest slot holds. And the server runs out of transaction numbers, because rows that a slot still
needs cannot be frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Final, Literal

from rdsrepl.observations import Observation, SlotSeen
from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal
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
class Holding:
    """What one slot holds back, and what comes of it; unknown is None.

    Attributes:
        retained_bytes: WAL the server keeps for it (from ``restart_lsn``).
        undelivered_bytes: WAL its consumer has not confirmed (from ``confirmed_flush_lsn``).
        xid_age: the age of the older of ``xmin`` and ``catalog_xmin``, in transactions.
        growth: of ``retained_bytes``; negative while a consumer catches up.
        delivery: bytes of WAL its consumer confirms in a second.
        inactive_seconds: for how long nobody consumes it, as far as that is known; None while it is active.
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
            slot.restart_lsn,
            slot.confirmed_flush_lsn,
            xid_age(slot),
            slot.holder if slot.active else None,
            slot.total_bytes,
        )
        for slot in slots
        if not slot.temporary
    )
    return Observation(wal.at, wal.started_at, wal.timeline, wal.lsn, wal.next_xid, tuple(seen))


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
    """
    now = observe(wal, slots)
    earlier = tuple(one for one in history if _same_wal(one, now))
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
        holding = Holding(
            slot=slot,
            retained_bytes=slot.retained_bytes,
            undelivered_bytes=slot.lag_bytes,
            xid_age=xid_age(slot),
            growth=growth,
            delivery=delivery,
            inactive_seconds=inactive_seconds(slot, earlier, wal),
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
    ours = [slot for slot in slots if slot.slot_name in dropped and slot.restart_lsn is not None]
    if not ours:
        return 0, None
    oldest = min(slot.restart_lsn for slot in ours if slot.restart_lsn is not None)
    floor = max(0, wal.lsn - wal.keep_bytes)
    others = [slot for slot in slots if slot.slot_name not in dropped and slot.restart_lsn is not None]
    keeper = min(others, key=lambda slot: slot.restart_lsn or 0, default=None)
    if keeper is None or keeper.restart_lsn is None or keeper.restart_lsn >= floor:
        return max(0, floor - oldest), None
    return max(0, keeper.restart_lsn - oldest), keeper.slot_name


def xid_age(slot: Slot) -> int | None:
    """Return the age of the older of ``xmin`` and ``catalog_xmin``, in transactions."""
    return max((age for age in (slot.xmin_age, slot.catalog_xmin_age) if age is not None), default=None)


def inactive_seconds(slot: Slot, history: Sequence[Observation], wal: Wal) -> float | None:
    """Return for how long nobody has consumed a slot, as far as that is known; None while it is active.

    From 17 on the server says it. Before, it is since the first of the looks in an unbroken row up to now at which the
    slot was inactive, stood where it stands, and had been read no further. No claim reaches back behind the server's
    start or a promotion: a consumer that reconnects after a failover is no idle one.

    Args:
        slot: as it is now.
        history: what was seen before, oldest first.
        wal: the WAL as it is now.
    """
    if slot.active:
        return None
    if slot.inactive_since is not None:
        since = slot.inactive_since
    else:
        since = wal.at
        for one in reversed(history):
            seen = one.slot(slot.slot_name)
            still = (
                one.started_at == wal.started_at
                and one.timeline == wal.timeline
                and seen is not None
                and not seen.active
                and (seen.restart_lsn, seen.confirmed_flush_lsn) == (slot.restart_lsn, slot.confirmed_flush_lsn)
                and seen.total_bytes == slot.total_bytes
            )
            if not still or one.at > wal.at:
                break
            since = one.at
    return max(0.0, (wal.at - max(since, wal.started_at)).total_seconds())


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
    """Say whether positions of an earlier look can be compared: the WAL may have been another one."""
    return one.timeline == now.timeline and one.lsn <= now.lsn and one.at < now.at


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
    if is_lost(slot):
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


def is_lost(slot: Slot) -> bool:
    """Say whether the server has given a slot up."""
    return slot.wal_status == "lost" or bool(slot.invalidation_reason) or bool(slot.conflicting)


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
    elif is_lost(slot) and "lost" in limits.wal_status:
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
        yield Reason(severity, "inactive", f"nobody has consumed it for {format_duration(one.inactive_seconds)}")
    if limits.xid_age is not None and one.xid_age is not None and one.xid_age >= limits.xid_age:
        yield Reason(severity, "xid_age", f"it holds back {one.xid_age:,} transactions from VACUUM")


_BREAK_WORDS: Final = {
    "slot_invalidated": "the slot is invalidated",
    "storage_full": "the disk is full",
    "xid_wraparound": "transaction numbers run out",
}
