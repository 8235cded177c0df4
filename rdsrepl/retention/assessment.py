"""What slots hold back, how fast that grows, and when something breaks. Pure: no I/O, no clock.

Three things break. The server invalidates a slot that holds more than ``max_slot_wal_keep_size``. The disk fills with
the WAL that the oldest slot holds. And the server runs out of transaction numbers, because rows that a slot still
needs cannot be frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal
from rdsrepl.retention.forecast import Forecast, Rate, Storage, forecasts
from rdsrepl.retention.idleness import Idleness, SampledIdle, assess_idleness, clock_jumped
from rdsrepl.retention.thresholds import DEFAULT_CRITICAL, DEFAULT_WARNING, Measure, Severity, Thresholds
from rdsrepl.state.slot_history import Observation, SlotObservation
from rdsrepl.units import format_duration, format_size

#: a rate over less than this says little.
MIN_WINDOW_SECONDS: Final = 1.0
_GOOD_WINDOW_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a slot is worth a word."""

    severity: Severity
    measure: Measure
    text: str


@dataclass(frozen=True, slots=True)
class SlotRetention:
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
    breaks: tuple[Forecast, ...]
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
    holdings: tuple[SlotRetention, ...]
    blamed: str | None = None
    severity: Severity = Severity.OK


def to_observation(wal: Wal, slots: Iterable[Slot]) -> Observation:
    """Return a look at a server as it is remembered."""
    seen = (
        SlotObservation(
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
    warn: Thresholds = DEFAULT_WARNING,
    critical: Thresholds = DEFAULT_CRITICAL,
    window_seconds: float = 900.0,
    promoted_at: datetime | None = None,
    sampled: Mapping[str, SampledIdle] | None = None,
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
        sampled: slots that were sampled without a break up to now, by name.
    """
    now = to_observation(wal, slots)
    earlier = tuple(one for one in history if not one.partial and _same_wal(one, now))
    start = _window_start(earlier, now, window_seconds)
    rate = None if start is None else _rate(start.lsn, now.lsn, _seconds_between(start, now))
    if rate is None or (wal_rate is not None and rate.window_seconds < _GOOD_WINDOW_SECONDS):
        rate = wal_rate
    kept = [slot for slot in slots if not slot.temporary]
    oldest = max((slot.retained_bytes or 0 for slot in kept), default=0)
    xids = None if start is None else _rate(start.next_xid, now.next_xid, _seconds_between(start, now))
    holdings = []
    for slot in kept:
        before = None if start is None else start.slot(slot.slot_name)
        growth, delivery = _slot_rates(slot, before, start, now, rate)
        freed, shared = freed_by_dropping([slot.slot_name], slots, wal)
        idle = assess_idleness(slot, history, wal, promoted_at=promoted_at, sampled=(sampled or {}).get(slot.slot_name))
        holding = SlotRetention(
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
        breaks = forecasts(
            slot,
            wal,
            growth_rate=growth,
            xid_age=holding.xid_age,
            xid_rate=xids,
            storage=storage,
            most_retained_bytes=oldest,
            before=before,
        )
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


def retained_history(
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


def _seconds_between(one: Observation, other: Observation) -> float:
    return (other.at - one.at).total_seconds()


def _window_start(earlier: Sequence[Observation], now: Observation, seconds: float) -> Observation | None:
    """Return the oldest look in the window; where there is none, the last before it."""
    far_enough = [one for one in earlier if _seconds_between(one, now) >= MIN_WINDOW_SECONDS]
    inside = [one for one in far_enough if _seconds_between(one, now) <= seconds]
    return inside[0] if inside else (far_enough[-1] if far_enough else None)


def _rate(start: int, end: int, seconds: float) -> Rate | None:
    return Rate((end - start) / seconds, seconds, "observed") if seconds >= MIN_WINDOW_SECONDS else None


def _slot_rates(
    slot: Slot, before: SlotObservation | None, start: Observation | None, now: Observation, wal_rate: Rate | None
) -> tuple[Rate | None, Rate | None]:
    """Return how fast what a slot holds grows, and how fast its consumer confirms."""
    if before is None or start is None or before.restart_lsn is None or slot.restart_lsn is None:
        # A slot that stands still grows as the WAL does; of one that moves nothing is known yet.
        return (wal_rate if not slot.active and slot.restart_lsn is not None else None), None
    seconds = _seconds_between(start, now)
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
            at = one.at + timedelta(seconds=_seconds_between(one, later) * part)
            return max(0.0, (now.at - at).total_seconds())
        later = one
    return None


def _reasons(
    one: SlotRetention, breaks: Sequence[Forecast], warn: Thresholds, critical: Thresholds
) -> tuple[Reason, ...]:
    found: list[Reason] = []
    for severity, limits in ((Severity.CRITICAL, critical), (Severity.WARNING, warn)):
        said = {reason.measure for reason in found}
        found += [reason for reason in _exceeded(one, breaks, severity, limits) if reason.measure not in said]
    return tuple(found)


def _exceeded(
    one: SlotRetention, breaks: Sequence[Forecast], severity: Severity, limits: Thresholds
) -> Iterable[Reason]:
    slot = one.slot
    if slot.wal_status is not None and slot.wal_status in limits.wal_status:
        yield Reason(severity, "wal_status", f"wal_status is {slot.wal_status}")
    elif slot.is_lost and "lost" in limits.wal_status:
        yield Reason(severity, "wal_status", f"it is invalidated ({slot.lost_reason})")
    soonest = next((one for one in breaks if one.has_enough_history), None)
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
