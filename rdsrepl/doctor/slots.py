"""Checks of slots: their consumers, the WAL that they retain, whether they survive an upgrade. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from rdsrepl.doctor import remedies
from rdsrepl.doctor.facts import Facts
from rdsrepl.doctor.findings import NotApplicable, Problem, critical, info, warning
from rdsrepl.postgres import versions
from rdsrepl.postgres.slots import Slot, plugin_allowed
from rdsrepl.text.commands import command, sql
from rdsrepl.text.counts import named
from rdsrepl.units import format_duration, format_size

_GIB: Final = 1 << 30
_MIB: Final = 1 << 20

#: a slot that retains more, or is further behind, is reported.
MAX_LAG_BYTES: Final = _GIB
#: a consumer with less unsent WAL is not slow.
CAUGHT_UP_BYTES: Final = 64 * _MIB
#: a consumer that received everything may leave this much unconfirmed.
MAX_UNCONFIRMED_BYTES: Final = 256 * _MIB
#: less than this fraction of max_slot_wal_keep_size is too little.
LOW_WAL_FRACTION: Final = 0.1
#: about half of the transactions after which the server refuses new ones.
OLD_XID: Final = 1_000_000_000
_FREEZE_MAX_AGE: Final = 200_000_000
_UNLIMITED: Final = -1
_HOUR_SECONDS: Final = 3600
_DAY_SECONDS: Final = 86_400
#: retained WAL that is reported where the size of the storage is not known.
LARGE_WAL_BYTES: Final = 10 * _GIB


def output_plugins(facts: Facts) -> Iterator[Problem]:
    """Find slots whose output plugin the server does not allow."""
    using: dict[str, list[str]] = {}
    for slot in facts.logical_slots:
        using.setdefault(slot.plugin or "", []).append(slot.slot_name)
    if not using:
        return
    libraries = facts.value("output_plugin_libraries")
    if libraries is None:
        if facts.server is not None and not facts.server.sees_settings:
            raise NotApplicable("this role may not read output_plugin_libraries (needs pg_read_all_settings)")
        return  # this release does not have the parameter
    for plugin, names in sorted(using.items()):
        if not plugin_allowed(libraries, plugin):
            yield critical(
                plugin,
                f"it is not in output_plugin_libraries ({libraries}): the server refuses to decode {named(names)}",
                remedies.change(facts, "output_plugin_libraries", f"{libraries}, {plugin}"),
            )


def inactive_slots(facts: Facts) -> Iterator[Problem]:
    """Find slots without a consumer that retain WAL."""
    for slot in (*facts.logical_slots, *facts.physical_slots):
        if slot.active or slot.is_lost or slot.restart_lsn is None or _is_copy(facts, slot):
            continue
        retained = (
            "an unknown amount of WAL" if slot.retained_bytes is None else f"{format_size(slot.retained_bytes)} of WAL"
        )
        yield warning(
            slot.slot_name,
            f"it has no consumer{_idle_time(facts, slot.inactive_since)}; it retains {retained}",
            _inactive_remedy(slot),
        )


def _inactive_remedy(slot: Slot) -> str:
    name = slot.slot_name
    if slot.slot_type != "logical":
        if name.startswith("rds"):
            return "its read replica does not stream (rdsrepl instance list); delete a replica that is not needed"
        return f"start its standby; if that is gone: {sql('SELECT pg_catalog.pg_drop_replication_slot({})', name)}"
    if slot.owner is not None:
        return f"{slot.owner} creates slots with such a name: start its task again, or drop the slot there"
    return f"start its consumer ({command('slot tail {}', name)}); if it is not needed: {command('slot drop {}', name)}"


def lost_slots(facts: Facts) -> Iterator[Problem]:
    """Find slots that are invalidated, or soon will be."""
    keep = facts.value("max_slot_wal_keep_size")
    keep_bytes = int(keep) * _MIB if keep is not None and int(keep) > 0 else None
    for slot in (*facts.logical_slots, *facts.physical_slots):
        name = slot.slot_name
        if slot.is_lost:
            remedy = (
                f"drop it ({command('slot drop {}', name)}), create it and copy the tables again"
                if slot.slot_type == "logical"
                else "create its standby again"
            )
            yield critical(name, f"it is invalidated ({slot.lost_reason}): its changes are gone", remedy)
        elif slot.wal_status == "unreserved":
            yield critical(
                name,
                "it exceeds max_slot_wal_keep_size: the next checkpoint removes its WAL",
                f"make its consumer catch up now, or {_raise_limit(facts, slot)}",
            )
        elif keep_bytes and slot.safe_wal_size is not None and slot.safe_wal_size < LOW_WAL_FRACTION * keep_bytes:
            yield warning(
                name,
                f"after {format_size(max(0, slot.safe_wal_size))} more WAL it exceeds max_slot_wal_keep_size "
                "and is invalidated",
                f"make its consumer catch up, or {_raise_limit(facts, slot)}",
            )


def _raise_limit(facts: Facts, slot: Slot) -> str:
    keep = int(facts.value("max_slot_wal_keep_size") or 0)
    enough = max(2 * keep, 2 * (slot.retained_bytes or 0) // _MIB, 4096)
    return remedies.change(facts, "max_slot_wal_keep_size", str(enough))


def xid_age(facts: Facts) -> Iterator[Problem]:
    """Find slots that prevent VACUUM from removing and freezing rows."""
    freeze = int(facts.value("autovacuum_freeze_max_age") or _FREEZE_MAX_AGE)
    ages = {slot.slot_name: slot.catalog_xmin_age for slot in facts.slots or () if slot.catalog_xmin_age is not None}
    if facts.server is not None and facts.server.oldest_xmin_slot is not None:
        name, age = facts.server.oldest_xmin_slot, facts.server.oldest_xmin_age or 0
        ages[name] = max(age, ages.get(name, 0))
    physical = {slot.slot_name for slot in facts.physical_slots}
    for name, age in sorted(ages.items(), key=lambda item: -item[1]):
        if age >= freeze // 2:
            make = critical if age >= OLD_XID else warning
            yield make(
                name,
                f"VACUUM cannot remove or freeze rows of the last {age:,} transactions"
                f"{' (the limit is 2,147,483,648)' if age >= OLD_XID else ''}: tables or catalogs bloat",
                "start its standby, end old queries there, or set hot_standby_feedback = off there"
                if name in physical
                else f"make its consumer catch up, or drop the slot: {command('slot drop {}', name)}",
            )
    used = (facts.metrics or {}).get("MaximumUsedTransactionIDs", 0.0)
    if facts.slots is None and used >= OLD_XID:
        yield warning(
            "MaximumUsedTransactionIDs",
            f"{used:,.0f} transactions are not frozen; an old slot can be the reason",
            "check the slots over SQL: rdsrepl slot list",
        )


def slot_lag(facts: Facts) -> Iterator[Problem]:
    """Find consumers that are far behind, and slots that retain WAL because of an old transaction."""
    for slot in facts.logical_slots:
        if not slot.active or slot.is_lost or slot.lag_bytes is None:
            continue
        holder = slot.holder
        if slot.lag_bytes >= MAX_LAG_BYTES and not _is_caught_up(facts, slot):
            yield warning(
                slot.slot_name,
                f"its consumer, {holder}, is {format_size(slot.lag_bytes)} behind",
                "check what the consumer waits for: its sink, its network or one large transaction",
            )
        elif slot.lag_bytes < MAX_UNCONFIRMED_BYTES and (slot.retained_bytes or 0) >= MAX_LAG_BYTES:
            yield warning(
                slot.slot_name,
                f"its consumer is up to date, but it retains {format_size(slot.retained_bytes or 0)}"
                " of WAL, because of an old open transaction",
                "end that transaction; see the check long_transactions",
            )


def idle_database(facts: Facts) -> Iterator[Problem]:
    """Find consumers that received everything but cannot confirm it, because only other databases have changes."""
    seen = False
    for slot in facts.logical_slots:
        if not slot.active or slot.lag_bytes is None:
            continue
        unsent = _unsent(facts, slot)
        seen = seen or unsent is not None
        if slot.lag_bytes >= MAX_UNCONFIRMED_BYTES and _is_caught_up(facts, slot):
            yield warning(
                slot.slot_name,
                f"its consumer, {slot.holder}, received everything, but has "
                f"{format_size(slot.lag_bytes)} unconfirmed: database {slot.database} has few "
                "changes, and other databases have many",
                "write a heartbeat row there every minute (Debezium: heartbeat.action.query; DMS: heartbeatEnable); "
                "slot tail does not need it",
            )
    if not seen and any(slot.active for slot in facts.logical_slots) and not _sees_sessions(facts):
        raise NotApplicable("this role may not read the positions of walsenders (needs pg_monitor)")


def upgrade_slots(facts: Facts) -> Iterator[Problem]:
    """Name the slots that prevent a major upgrade or a blue/green deployment."""
    if facts.is_standby or not facts.logical_slots:
        return
    names = [slot.slot_name for slot in facts.logical_slots]
    aurora = facts.topology == "aurora"
    if (facts.major or 0) < versions.UPGRADE_KEEPS_SLOTS_SINCE:
        yield info(
            named(names),
            f"PostgreSQL {facts.major} cannot keep logical slots: the check of a major upgrade fails, and AWS does not "
            "create a blue/green deployment with logical replication for a server that publishes to others",
            "before such an upgrade, let the consumers finish and drop the slots (rdsrepl slot drop NAME); create them "
            "again after it",
        )
        return
    behind = [slot.slot_name for slot in facts.logical_slots if slot.lag_bytes or slot.is_lost]
    if behind:
        yield info(
            named(behind),
            "a major upgrade keeps only slots that are fully consumed; others make it fail",
            "before an upgrade, stop writes and let the consumers finish; enable logical replication also in the "
            "parameter group of the new version",
        )
    if facts.is_managed and facts.topology != "multi_az_cluster":  # blue/green deployments do not support those
        yield info(
            named(names),
            "AWS does not create a blue/green deployment with logical replication (on Aurora always, else for a major "
            "upgrade) for a server that publishes to others"
            + ("; the editions of the Aurora guide differ on whether a major upgrade keeps slots" if aurora else ""),
            f"before such a deployment{' or upgrade' if aurora else ''}, let the consumers finish and drop each slot "
            "(rdsrepl slot drop NAME); create them after it",
        )


def idle_slot_timeout(facts: Facts) -> Iterator[Problem]:
    """Find slots without a consumer that the server will soon invalidate."""
    setting = (facts.settings or {}).get("idle_replication_slot_timeout")
    if setting is None:
        raise NotApplicable("idle_replication_slot_timeout needs PostgreSQL 18")
    seconds = int(setting.setting) * (60 if setting.unit == "min" else 1)
    if not seconds or facts.server is None:
        return
    for slot in (*facts.logical_slots, *facts.physical_slots):
        if slot.active or slot.inactive_since is None or slot.is_lost or _is_copy(facts, slot):
            continue
        idle = (facts.server.now - slot.inactive_since).total_seconds()
        if idle >= seconds / 2:
            yield warning(
                slot.slot_name,
                f"idle for {format_duration(idle)}; the server invalidates it at {format_duration(seconds)}",
                f"start its consumer; or {remedies.change(facts, setting.name, '0')}",
            )


def storage(facts: Facts) -> Iterator[Problem]:
    """Compare the WAL that slots retain with the free storage, or else with all storage."""
    if facts.topology == "aurora":
        return  # the volume grows
    metrics = facts.metrics or {}
    held = max((slot.retained_bytes or 0 for slot in facts.slots or ()), default=0)
    if facts.slots is None:
        lags = [metrics.get(f"Oldest{kind}ReplicationSlotLag", 0.0) for kind in ("", "Logical")]
        held = int(max(0.0, *lags))
    total = facts.rds.allocated_storage_gib * _GIB if facts.rds else 0
    # WAL is on the dedicated log volume, if there is one.
    volume = metrics.get("FreeStorageSpaceLogVolume")
    free = volume if volume is not None else metrics.get("FreeStorageSpace")
    remedy = "find the slot (rdsrepl slot list), and make its consumer catch up, or drop it"
    if facts.rds is not None and facts.rds.autoscaling:
        remedy += " (storage autoscaling is on, at most once in 6 hours)"
    if free is not None:
        left = f"slots retain {format_size(held)} of WAL, and {format_size(int(free))} of storage is free"
        if held >= _GIB and (free <= held / 2 or (total and free <= total / 10)):
            yield critical("storage", left, remedy)
        elif held >= _GIB and free <= 2 * held:
            yield warning("storage", left, remedy)
        elif total and volume is None and free <= total / 10:
            yield warning(
                "storage",
                f"{format_size(int(free))} of {format_size(total)} is free: the next idle slot can fill it",
                "increase the storage",
            )
        yield from _limit_above_free(facts, held, free)
        yield from _time_until_full(facts, held, free)
    elif total:
        if held >= total / 10:
            make = critical if held >= total / 2 else warning
            yield make(
                "storage", f"slots retain {format_size(held)} of WAL; the storage is {format_size(total)}", remedy
            )
    elif held >= LARGE_WAL_BYTES:
        yield warning("storage", f"slots retain {format_size(held)} of WAL; the free storage is not known", remedy)


def _time_until_full(facts: Facts, held: int, free: float) -> Iterator[Problem]:
    """Say when the disk is full, if the slot that retains the most WAL has no consumer."""
    rate = (facts.metrics or {}).get("TransactionLogsGeneration", 0.0)
    largest = max(facts.slots or (), key=lambda slot: slot.retained_bytes or 0, default=None)
    if largest is None or largest.active or not largest.retained_bytes or rate <= 0 or _is_copy(facts, largest):
        return
    keep = int(facts.value("max_slot_wal_keep_size") or _UNLIMITED)
    if keep > 0 and keep * _MIB - held <= free:
        return  # the slot is invalidated before
    seconds = free / rate
    if seconds <= _DAY_SECONDS:
        yield (critical if seconds <= _HOUR_SECONDS else warning)(
            largest.slot_name,
            f"it has no consumer, and the WAL grows by {format_size(int(rate))}/s: the disk is full in "
            f"{format_duration(seconds)}",
            "start its consumer; or check what a drop loses: "
            + command("slot prune --slot {} --dry-run", largest.slot_name),
        )


def _limit_above_free(facts: Facts, held: int, free: float) -> Iterator[Problem]:
    keep = int(facts.value("max_slot_wal_keep_size") or _UNLIMITED)
    if keep > 0 and keep * _MIB - held > free:
        yield warning(
            "max_slot_wal_keep_size",
            f"slots may retain {format_size(keep * _MIB)}, but only "
            f"{format_size(int(free))} is free: the disk is full first",
            "increase the storage, or " + remedies.change(facts, "max_slot_wal_keep_size", str(int(free / 2) // _MIB)),
        )


def _is_copy(facts: Facts, slot: Slot) -> bool:
    """Whether a slot is the copy of a standby, which has no consumer before a promotion."""
    return bool(slot.synced) and facts.is_standby


def _idle_time(facts: Facts, moment: datetime | None) -> str:
    if moment is None or facts.server is None:
        return ""
    return f" (inactive for {format_duration(max(0.0, (facts.server.now - moment).total_seconds()))})"


def _unsent(facts: Facts, slot: Slot) -> int | None:
    return next((sender.unsent_bytes for sender in facts.senders or () if sender.pid == slot.active_pid), None)


def _is_caught_up(facts: Facts, slot: Slot) -> bool:
    unsent = _unsent(facts, slot)
    return unsent is not None and unsent <= CAUGHT_UP_BYTES


def _sees_sessions(facts: Facts) -> bool:
    return facts.server is None or facts.server.sees_sessions
