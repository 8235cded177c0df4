"""When something breaks on account of a slot. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal
from rdsrepl.state.slot_history import SlotObservation
from rdsrepl.units import format_duration, format_size

#: from here on the server gives out no transaction numbers (3 million before the end, 14+).
LAST_XID_AGE: Final = 2**31 - 3_000_000
# A rate says nothing about what is further away than so many times its window: a quarter of an hour is good for a day.
_MAX_WINDOWS_AHEAD: Final = 100
Break = Literal["slot_invalidated", "storage_full", "xid_wraparound"]


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
class Forecast:
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
    def has_enough_history(self) -> bool:
        """Whether the rate was observed for long enough to look so far ahead: a burst is no trend."""
        return self.window_seconds is None or self.seconds <= self.window_seconds * _MAX_WINDOWS_AHEAD


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
    """Return what breaks on account of a slot, the soonest first.

    Args:
        slot: as it is now.
        wal: the WAL as it is now.
        growth_rate: of the WAL that the slot retains, in bytes.
        xid_age: the age of the older of ``xmin`` and ``catalog_xmin``, in transactions.
        xid_rate: of the server's transactions.
        storage: the free storage, where it is known.
        most_retained_bytes: what the slot retains that retains most.
        before: the slot at the start of the window of the rates.
    """
    found: list[Forecast] = []
    growth = growth_rate.per_second if growth_rate is not None else 0.0
    window = (growth_rate.window_seconds or None) if growth_rate is not None else None
    if slot.is_lost:
        return (Forecast("slot_invalidated", 0.0, "the server has given it up: its changes are gone"),)
    if slot.wal_status == "unreserved":
        found.append(
            Forecast("slot_invalidated", 0.0, "it is over max_slot_wal_keep_size: the next checkpoint ends it")
        )
    elif wal.slot_keep_bytes is not None and slot.safe_wal_size is not None and growth > 0:
        found.append(
            Forecast(
                "slot_invalidated",
                max(0, slot.safe_wal_size) / growth,
                f"{format_size(max(0, slot.safe_wal_size))} more WAL and it is over max_slot_wal_keep_size "
                f"({format_size(wal.slot_keep_bytes)}); the checkpoint after that ends it",
                window,
            )
        )
    found += _idle_timeout(slot, wal)
    if storage is not None and growth > 0 and slot.retained_bytes is not None and not wal.in_recovery:
        # Slots share WAL: this one fills the disk only with what it holds beyond the oldest.
        room = storage.free_bytes + storage.may_grow_bytes + most_retained_bytes - slot.retained_bytes
        limited = wal.slot_keep_bytes is not None and wal.slot_keep_bytes - slot.retained_bytes < room
        if not limited:
            grows = f" (and {format_size(storage.may_grow_bytes)} by autoscaling)" if storage.may_grow_bytes else ""
            found.append(
                Forecast(
                    "storage_full",
                    max(0, room) / growth,
                    f"{format_size(storage.free_bytes)} of storage is free{grows}, by {storage.source}",
                    window,
                )
            )
    if xid_age is not None and xid_rate is not None and xid_rate.per_second > 0:
        stands = before is None or before.xmin_age is None or xid_age > before.xmin_age
        if stands:
            found.append(
                Forecast(
                    "xid_wraparound",
                    max(0, LAST_XID_AGE - xid_age) / xid_rate.per_second,
                    f"{xid_age:,} of {LAST_XID_AGE:,} transaction numbers are used that it keeps from being frozen",
                    xid_rate.window_seconds,
                )
            )
    return tuple(sorted(found, key=lambda item: item.seconds))


def _idle_timeout(slot: Slot, wal: Wal) -> Iterable[Forecast]:
    """Yield when ``idle_replication_slot_timeout`` (18) ends a slot; a standby's synchronised copies are spared."""
    limit = wal.idle_timeout_seconds
    if not limit or slot.active or slot.inactive_since is None or slot.restart_lsn is None:
        return
    if slot.synced and wal.in_recovery:
        return
    idle = max(0.0, (wal.at - slot.inactive_since).total_seconds())
    yield Forecast(
        "slot_invalidated",
        max(0.0, limit - idle),
        f"it has been idle for {format_duration(idle)}, and idle_replication_slot_timeout is "
        f"{format_duration(limit)}; the checkpoint after that ends it",
        idle,  # a consumer that is away for a moment only is no trend
    )
