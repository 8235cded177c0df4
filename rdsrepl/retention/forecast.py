"""Forecast when a slot is invalidated, fills the disk, or uses up the transaction IDs. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal
from rdsrepl.state.slot_history import SlotObservation
from rdsrepl.units import format_duration, format_size

#: At this age the server assigns no more transaction IDs: 3 million before wraparound (PostgreSQL 14 and later).
LAST_XID_AGE: Final = 2**31 - 3_000_000
#: A failure that is further away than this is "not within a year"; tables do not show it.
FAR_SECONDS: Final = 366 * 86400.0
# A rate is extrapolated over at most this many times its window: 15 minutes of samples allow a forecast of one day.
_MAX_WINDOWS_AHEAD: Final = 100

Break = Literal["slot_invalidated", "storage_full", "xid_wraparound"]
BREAK_TEXTS: Final = {
    "slot_invalidated": "the slot is invalidated",
    "storage_full": "the disk is full",
    "xid_wraparound": "transaction IDs run out",
}


@dataclass(frozen=True, slots=True)
class Storage:
    """The free storage for WAL.

    Attributes:
        free_bytes: free now.
        may_grow_bytes: what storage autoscaling can add.
        source: ``CloudWatch`` or ``--free-space``.
    """

    free_bytes: int
    may_grow_bytes: int = 0
    source: str = "given"


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a value grows.

    Attributes:
        per_second: bytes or transactions.
        window_seconds: the time between the first and the last sample; 0 for a rate from CloudWatch.
        source: ``observed`` or ``CloudWatch``.
    """

    per_second: float
    window_seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """A failure that follows if nothing changes.

    Attributes:
        what: the kind of failure.
        seconds: the time until it; 0 is now.
        reason: the cause, for a person.
        window_seconds: the window of the rate behind it; None if it needs no rate, or the rate is from CloudWatch.
    """

    what: Break
    seconds: float
    reason: str
    window_seconds: float | None = None

    @property
    def has_enough_history(self) -> bool:
        """Whether the window is long enough for this forecast; a burst of some seconds is no trend."""
        return self.window_seconds is None or self.seconds <= self.window_seconds * _MAX_WINDOWS_AHEAD

    @property
    def is_near(self) -> bool:
        """Whether it is near enough to be shown."""
        return self.seconds <= FAR_SECONDS

    @property
    def when(self) -> str:
        """The time until it, for a person: ``in 3h00m``, ``now``, ``not within a year``."""
        if not self.is_near:
            return "not within a year"
        return f"in {format_duration(self.seconds)}" if self.seconds else "now"

    @property
    def text(self) -> str:
        """The failure, its time and its cause, for a person."""
        return self.text_with(BREAK_TEXTS[self.what])

    def text_with(self, failure: str) -> str:
        """Return the same with another name of the failure."""
        return f"{failure} {self.when}: {self.reason}" if self.is_near else f"{failure}: {self.when}; {self.reason}"


def forecasts(
    slot: Slot,
    wal: Wal,
    *,
    growth_rate: Rate | None,
    xid_age: int | None,
    xid_rate: Rate | None,
    storage: Storage | None,
    most_retained_bytes: int,
    before: SlotObservation | None,
) -> tuple[Forecast, ...]:
    """Return the failures that a slot causes, the earliest first.

    Args:
        slot: the current state of the slot.
        wal: the current state of the server's WAL.
        growth_rate: bytes a second by which the slot's retained WAL grows.
        xid_age: the age of the older of ``xmin`` and ``catalog_xmin``, in transactions.
        xid_rate: transactions a second on the server.
        storage: the free storage, if known.
        most_retained_bytes: the retained WAL of the slot that retains the most.
        before: the slot at the start of the window.
    """
    if slot.is_lost:
        return (Forecast("slot_invalidated", 0.0, "its changes can no longer be read"),)
    failures = [*_size_limit(slot, wal, growth_rate), *_idle_timeout(slot, wal)]
    growth = growth_rate.per_second if growth_rate is not None else 0.0
    if storage is not None and growth > 0 and slot.retained_bytes is not None and not wal.in_recovery:
        # Slots share WAL: this slot needs more storage only when it retains more than the largest one now.
        available = storage.free_bytes + storage.may_grow_bytes + most_retained_bytes - slot.retained_bytes
        if wal.slot_keep_bytes is None or wal.slot_keep_bytes - slot.retained_bytes >= available:
            more = f" (and {format_size(storage.may_grow_bytes)} by autoscaling)" if storage.may_grow_bytes else ""
            reason = f"{format_size(storage.free_bytes)} of storage is free{more}, source: {storage.source}"
            failures.append(Forecast("storage_full", max(0, available) / growth, reason, _window(growth_rate)))
    grows = xid_age is not None and (before is None or before.xmin_age is None or xid_age > before.xmin_age)
    if grows and xid_age is not None and xid_rate is not None and xid_rate.per_second > 0:
        seconds = max(0, LAST_XID_AGE - xid_age) / xid_rate.per_second
        reason = f"the slot prevents VACUUM from freezing {xid_age:,} of {LAST_XID_AGE:,} transaction IDs"
        failures.append(Forecast("xid_wraparound", seconds, reason, xid_rate.window_seconds))
    return tuple(sorted(failures, key=lambda item: item.seconds))


def _size_limit(slot: Slot, wal: Wal, growth_rate: Rate | None) -> Iterable[Forecast]:
    """Yield when the slot passes ``max_slot_wal_keep_size``."""
    if slot.wal_status == "unreserved":
        yield Forecast("slot_invalidated", 0.0, "it exceeds max_slot_wal_keep_size: the next checkpoint invalidates it")
        return
    growth = growth_rate.per_second if growth_rate is not None else 0.0
    if wal.slot_keep_bytes is not None and slot.safe_wal_size is not None and growth > 0:
        left = max(0, slot.safe_wal_size)
        yield Forecast(
            "slot_invalidated",
            left / growth,
            f"it exceeds max_slot_wal_keep_size ({format_size(wal.slot_keep_bytes)}) after {format_size(left)} "
            "more WAL; the next checkpoint then invalidates it",
            _window(growth_rate),
        )


def _idle_timeout(slot: Slot, wal: Wal) -> Iterable[Forecast]:
    """Yield when ``idle_replication_slot_timeout`` (18) invalidates the slot; it spares a standby's synced slots."""
    limit = wal.idle_timeout_seconds
    if not limit or slot.active or slot.inactive_since is None or slot.restart_lsn is None:
        return
    if slot.synced and wal.in_recovery:
        return
    idle = max(0.0, (wal.at - slot.inactive_since).total_seconds())
    yield Forecast(
        "slot_invalidated",
        max(0.0, limit - idle),
        f"it is idle for {format_duration(idle)}, and idle_replication_slot_timeout is "
        f"{format_duration(limit)}; the next checkpoint after that invalidates it",
        idle,  # a consumer that reconnects within seconds is no trend
    )


def _window(rate: Rate | None) -> float | None:
    return (rate.window_seconds or None) if rate is not None else None
