"""Assess how much WAL each slot retains, how fast it grows, and which failures follow. Pure: no I/O, no clock.

Three failures are possible. The server invalidates a slot that retains more than ``max_slot_wal_keep_size``. The WAL
that the oldest slot retains fills the disk. The server runs out of transaction IDs, because rows that a slot still
needs cannot be frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from rdsrepl.lsn import Lsn
from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal
from rdsrepl.retention.forecast import Forecast, Rate, Storage, forecasts
from rdsrepl.retention.idleness import Idleness, SampledIdle, assess_idleness, clock_jumped
from rdsrepl.retention.thresholds import DEFAULT_CRITICAL, DEFAULT_WARNING, Measure, Severity, Thresholds
from rdsrepl.state.slot_history import Observation, SlotObservation
from rdsrepl.text.counts import counted
from rdsrepl.units import format_duration, format_size

#: A rate over a shorter window is too inaccurate.
MIN_WINDOW_SECONDS: Final = 1.0
_GOOD_WINDOW_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Reason:
    """A threshold that a slot has reached."""

    severity: Severity
    measure: Measure
    text: str


@dataclass(frozen=True, slots=True)
class SlotRetention:
    """What one slot retains, and what follows; None is unknown.

    Attributes:
        retained_bytes: WAL that the server keeps for the slot (from ``restart_lsn``).
        undelivered_bytes: WAL that the consumer has not confirmed (from ``confirmed_flush_lsn``).
        xid_age: the age of the older of ``xmin`` and ``catalog_xmin``, in transactions.
        growth: the rate of ``retained_bytes``; negative while a consumer catches up.
        delivery: bytes of WAL that the consumer confirms in a second.
        inactive_seconds: how long the slot has been inactive, as far as known; None while it is active.
        idleness: the same with its proof.
        lag_seconds: the age of the WAL that the consumer confirmed last, by earlier samples.
        breaks: the failures that the slot causes, the earliest first.
        freed_bytes: the WAL that dropping this slot alone frees.
        shared_with: the slot that retains the same WAL, if dropping this slot alone frees less than it retains.
        reasons: the reasons for ``severity``, the worst first.
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
    """The slots of a server.

    Attributes:
        wal_rate: the bytes of WAL that the server writes in a second.
        holdings: the slots, the worst first.
        blamed: the slot that retains the most WAL.
    """

    wal: Wal
    wal_rate: Rate | None
    storage: Storage | None
    holdings: tuple[SlotRetention, ...]
    blamed: str | None = None
    severity: Severity = Severity.OK


def to_observation(wal: Wal, slots: Iterable[Slot]) -> Observation:
    """Return a sample of a server as the history stores it."""
    seen = (
        SlotObservation(
            slot.slot_name,
            slot.active,
            slot.held_lsn,
            slot.confirmed_flush_lsn,
            slot.xid_age,
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
    """Return what each slot retains and what follows, the worst first.

    Args:
        wal: the current state of the WAL.
        slots: all slots of the server.
        history: earlier samples, oldest first.
        storage: the free storage, if known.
        wal_rate: the rate from CloudWatch; an observed rate over a minute or longer takes precedence.
        warn: the thresholds of a warning.
        critical: the thresholds of a critical finding.
        window_seconds: the window of the rates; a shorter one if the history is shorter.
        promoted_at: when the server was promoted, if known.
        sampled: the slots that were sampled without interruption up to now, by name.
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
    held = _by_held_lsn(slots)
    holdings = []
    for slot in kept:
        before = None if start is None else start.slot(slot.slot_name)
        growth, delivery = _slot_rates(slot, before, start, now, rate)
        freed, shared = _freed(slot.held_lsn, frozenset([slot.slot_name]), held, wal)
        idle = assess_idleness(slot, history, wal, promoted_at=promoted_at, sampled=(sampled or {}).get(slot.slot_name))
        holding = SlotRetention(
            slot=slot,
            retained_bytes=slot.retained_bytes,
            undelivered_bytes=slot.lag_bytes,
            xid_age=slot.xid_age,
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
    holdings.sort(key=lambda one: (-one.severity.rank, -(one.retained_bytes or 0), one.slot.slot_name))
    worst = max((one.severity for one in holdings), key=lambda severity: severity.rank, default=Severity.OK)
    blamed = max(holdings, key=lambda one: one.retained_bytes or 0, default=None)
    name = blamed.slot.slot_name if blamed is not None and blamed.retained_bytes else None
    return Retention(wal, rate, storage, tuple(holdings), name, worst)


def freed_by_dropping(names: Iterable[str], slots: Sequence[Slot], wal: Wal) -> tuple[int, str | None]:
    """Return how many bytes of WAL the server can remove after a drop of these slots, and which slot retains the rest.

    The server always keeps ``wal_keep_size``. The name is None if no other slot retains WAL that these slots retain.
    """
    dropped, held = frozenset(names), _by_held_lsn(slots)
    return _freed(next((lsn for name, lsn in held if name in dropped), None), dropped, held, wal)


def _by_held_lsn(slots: Iterable[Slot]) -> list[tuple[str, Lsn]]:
    """Return the slots that retain WAL, with the position from which they do, the oldest first."""
    held = ((slot.slot_name, slot.held_lsn) for slot in slots)
    return sorted(((name, lsn) for name, lsn in held if lsn is not None), key=lambda one: one[1])


def _freed(
    oldest: Lsn | None, dropped: frozenset[str], held: Sequence[tuple[str, Lsn]], wal: Wal
) -> tuple[int, str | None]:
    """Return the result of ``freed_by_dropping``.

    Args:
        oldest: the oldest position that the dropped slots hold; None if they hold none.
        dropped: their names.
        held: ``_by_held_lsn`` of all slots.
        wal: the current state of the WAL.
    """
    if oldest is None:
        return 0, None
    floor = max(0, wal.lsn - wal.keep_bytes)
    keeper, kept = next(((name, lsn) for name, lsn in held if name not in dropped), (None, None))
    if kept is None or kept >= floor:
        return max(0, floor - oldest), None
    return max(0, kept - oldest), keeper


def not_freed_by(keeper: str | None, freed_bytes: int, retained_bytes: int, wal: Wal) -> str:
    """Return what retains the WAL that a drop does not free, as the end of a sentence; empty if the drop frees all."""
    if keeper is not None:
        return f"; slot {keeper} retains the rest"
    if freed_bytes >= retained_bytes or not wal.keep_bytes:
        return ""
    return f"; wal_keep_size ({format_size(wal.keep_bytes)}) retains the rest"


def retained_history(
    history: Sequence[Observation], slot_name: str, *, points: int, seconds: float
) -> tuple[float | None, ...]:
    """Return a slot's retained bytes in the recent past, one value for each step; a step without a sample is None.

    The last step ends at the last sample.
    """
    if not history:
        return ()
    end = history[-1].at
    values: list[float | None] = [None] * points
    for one in history:
        age = (end - one.at).total_seconds()
        seen = one.slot(slot_name)
        if age < seconds and seen is not None and seen.restart_lsn is not None:
            index = min(points - 1, int((seconds - age) * points / seconds))
            values[index] = float(max(0, one.lsn - seen.restart_lsn))
    return tuple(values)


def _same_wal(one: Observation, now: Observation) -> bool:
    """Return whether an earlier sample is comparable: from the same run of the same server, with the same clock.

    A restored copy, a standby and a restarted server have another start time, and possibly other WAL.
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
    """Return the oldest sample in the window, or else the last one before it."""
    far_enough = [one for one in earlier if _seconds_between(one, now) >= MIN_WINDOW_SECONDS]
    inside = [one for one in far_enough if _seconds_between(one, now) <= seconds]
    return inside[0] if inside else (far_enough[-1] if far_enough else None)


def _rate(start: int, end: int, seconds: float) -> Rate | None:
    return Rate((end - start) / seconds, seconds, "observed") if seconds >= MIN_WINDOW_SECONDS else None


def _slot_rates(
    slot: Slot, before: SlotObservation | None, start: Observation | None, now: Observation, wal_rate: Rate | None
) -> tuple[Rate | None, Rate | None]:
    """Return how fast a slot's retained WAL grows, and how fast its consumer confirms."""
    if before is None or start is None or before.restart_lsn is None or slot.restart_lsn is None:
        # The retained WAL of an inactive slot grows as fast as the WAL. The rate of an active slot is not known yet.
        return (wal_rate if not slot.active and slot.restart_lsn is not None else None), None
    seconds = _seconds_between(start, now)
    growth = Rate(((now.lsn - slot.restart_lsn) - (start.lsn - before.restart_lsn)) / seconds, seconds, "observed")
    if before.confirmed_flush_lsn is None or slot.confirmed_flush_lsn is None:
        return growth, None
    moved = (slot.confirmed_flush_lsn - before.confirmed_flush_lsn) / seconds
    return growth, Rate(max(0.0, moved), seconds, "observed")


def _lag_seconds(slot: Slot, earlier: Sequence[Observation], now: Observation) -> float | None:
    """Return the age of the last confirmed WAL: interpolate when the server was at that position."""
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
    reasons: list[Reason] = []
    for severity, limits in ((Severity.CRITICAL, critical), (Severity.WARNING, warn)):
        measures = {reason.measure for reason in reasons}
        reasons += [reason for reason in _exceeded(one, breaks, severity, limits) if reason.measure not in measures]
    return tuple(reasons)


def _exceeded(
    one: SlotRetention, breaks: Sequence[Forecast], severity: Severity, limits: Thresholds
) -> Iterable[Reason]:
    slot = one.slot
    if slot.wal_status is not None and slot.wal_status in limits.wal_status:
        yield Reason(severity, "wal_status", f"wal_status is {slot.wal_status}")
    elif slot.is_lost and "lost" in limits.wal_status:
        yield Reason(severity, "wal_status", f"the slot is invalidated ({slot.lost_reason})")
    earliest = next((one for one in breaks if one.has_enough_history), None)
    if limits.breaks_seconds is not None and earliest is not None and earliest.seconds <= limits.breaks_seconds:
        yield Reason(severity, "breaks", earliest.text)
    if _reached(one.retained_bytes, limits.retained_bytes):
        yield Reason(severity, "retained", f"{format_size(one.retained_bytes or 0)} of WAL retained")
    if _reached(one.undelivered_bytes, limits.undelivered_bytes):
        yield Reason(severity, "undelivered", f"{format_size(one.undelivered_bytes or 0)} of WAL not delivered")
    if _reached(one.inactive_seconds, limits.inactive_seconds):
        duration = format_duration(one.inactive_seconds or 0.0)
        looks = one.idleness.looks
        proven = one.idleness.proof != "looks"
        text = f"inactive for {duration}" if proven else f"inactive in {counted(looks, 'sample')} over {duration}"
        yield Reason(severity, "inactive", text)
    if _reached(one.xid_age, limits.xid_age):
        yield Reason(
            severity, "xid_age", f"holds back VACUUM by {counted(one.xid_age or 0, 'transaction', grouped=True)}"
        )


def _reached(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value >= limit
