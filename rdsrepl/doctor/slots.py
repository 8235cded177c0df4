"""Checks of the slots there are: who consumes them, what they hold, whether they survive. Pure."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from rdsrepl.doctor import remedies
from rdsrepl.doctor.facts import Facts
from rdsrepl.doctor.findings import NotApplicable, Problem, critical, info, warning
from rdsrepl.postgres import versions
from rdsrepl.postgres.slots import Slot, plugin_allowed
from rdsrepl.text.commands import command, sql
from rdsrepl.units import format_duration, format_size

_GIB: Final = 1 << 30
_MIB: Final = 1 << 20

#: a slot that holds more, or is further behind, is worth a word.
MAX_LAG_BYTES: Final = _GIB
#: everything but this much was sent: the consumer is not slow.
CAUGHT_UP_BYTES: Final = 64 * _MIB
#: what a consumer that has everything may leave unconfirmed.
MAX_UNCONFIRMED_BYTES: Final = 256 * _MIB
#: of the room max_slot_wal_keep_size leaves, less than this is too little.
LOW_WAL_FRACTION: Final = 0.1
#: half of the transactions that there are before the server refuses new ones.
OLD_XID: Final = 1_000_000_000
_FREEZE_MAX_AGE: Final = 200_000_000
_UNLIMITED: Final = -1
_HOUR_SECONDS: Final = 3600
_DAY_SECONDS: Final = 86_400
#: without CloudWatch and without a known size, this much WAL is much.
LARGE_WAL_BYTES: Final = 10 * _GIB


def output_plugins(facts: Facts) -> Iterator[Problem]:
    """Find slots whose plugin the server does not let in any more."""
    using: dict[str, list[str]] = {}
    for slot in facts.logical_slots:
        using.setdefault(slot.plugin or "", []).append(slot.slot_name)
    if not using:
        return
    libraries = facts.value("output_plugin_libraries")
    if libraries is None:
        if facts.server is not None and not facts.server.sees_settings:
            raise NotApplicable("this role may not see output_plugin_libraries (pg_read_all_settings)")
        return  # the server's release has no such parameter
    for plugin, names in sorted(using.items()):
        if not plugin_allowed(libraries, plugin):
            yield critical(
                plugin,
                f"output_plugin_libraries ({libraries}) leaves it out: the server refuses to decode {', '.join(names)}",
                remedies.change(facts, "output_plugin_libraries", f"{libraries}, {plugin}"),
            )


def inactive_slots(facts: Facts) -> Iterator[Problem]:
    """Find slots that nobody consumes, and that hold WAL all the same."""
    for slot in (*facts.logical_slots, *facts.physical_slots):
        if slot.active or slot.is_lost or slot.restart_lsn is None or _is_copy(facts, slot):
            continue
        held = (
            "an unknown amount of WAL" if slot.retained_bytes is None else f"{format_size(slot.retained_bytes)} of WAL"
        )
        yield warning(
            slot.slot_name,
            f"nobody consumes it{_idle_time(facts, slot.inactive_since)}; it holds {held}",
            _inactive_remedy(slot),
        )


def _inactive_remedy(slot: Slot) -> str:
    name = slot.slot_name
    if slot.slot_type != "logical":
        if name.startswith("rds"):
            return "its read replica does not stream: rdsrepl instance list; delete a replica that is not needed"
        return f"bring its standby back; if that is gone: {sql('SELECT pg_catalog.pg_drop_replication_slot({})', name)}"
    if slot.owner is not None:
        return f"{slot.owner} creates slots with such a name: start its task again, or drop the slot there"
    return f"start its consumer ({command('slot tail {}', name)}); if nobody needs it: {command('slot drop {}', name)}"


def lost_slots(facts: Facts) -> Iterator[Problem]:
    """Find slots whose WAL is gone, or goes next."""
    keep = facts.value("max_slot_wal_keep_size")
    keep_bytes = int(keep) * _MIB if keep is not None and int(keep) > 0 else None
    for slot in (*facts.logical_slots, *facts.physical_slots):
        name = slot.slot_name
        if slot.is_lost:
            remedy = (
                f"drop it ({command('slot drop {}', name)}), make it again, and copy the tables anew"
                if slot.slot_type == "logical"
                else "build its standby anew"
            )
            yield critical(name, f"the server has given it up ({slot.lost_reason}): its changes are gone", remedy)
        elif slot.wal_status == "unreserved":
            yield critical(
                name,
                "it is past max_slot_wal_keep_size: the next checkpoint removes its WAL",
                f"let its consumer catch up now, or {_raise_limit(facts, slot)}",
            )
        elif keep_bytes and slot.safe_wal_size is not None and slot.safe_wal_size < LOW_WAL_FRACTION * keep_bytes:
            yield warning(
                name,
                f"after {format_size(max(0, slot.safe_wal_size))} more WAL it passes max_slot_wal_keep_size, "
                "and is lost",
                f"let its consumer catch up, or {_raise_limit(facts, slot)}",
            )


def _raise_limit(facts: Facts, slot: Slot) -> str:
    keep = int(facts.value("max_slot_wal_keep_size") or 0)
    enough = max(2 * keep, 2 * (slot.retained_bytes or 0) // _MIB, 4096)
    return remedies.change(facts, "max_slot_wal_keep_size", str(enough))


def xid_age(facts: Facts) -> Iterator[Problem]:
    """Find slots that keep VACUUM from removing and freezing rows."""
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
                f"VACUUM can remove and freeze nothing that is younger than {age:,} transactions"
                f"{' of 2,147,483,648 that there are' if age >= OLD_XID else ''}: tables or catalogs bloat",
                "bring its standby back, end old queries there, or set hot_standby_feedback off there"
                if name in physical
                else f"let its consumer catch up, or drop it: {command('slot drop {}', name)}",
            )
    used = (facts.metrics or {}).get("MaximumUsedTransactionIDs", 0.0)
    if facts.slots is None and used >= OLD_XID:
        yield warning(
            "MaximumUsedTransactionIDs",
            f"{used:,.0f} transactions are not frozen; an old slot may be the reason",
            "look at the slots over SQL: rdsrepl slot list",
        )


def slot_lag(facts: Facts) -> Iterator[Problem]:
    """Find consumers that are far behind, and slots that an old transaction holds back."""
    for slot in facts.logical_slots:
        if not slot.active or slot.is_lost or slot.lag_bytes is None:
            continue
        holder = slot.holder
        if slot.lag_bytes >= MAX_LAG_BYTES and not _is_caught_up(facts, slot):
            yield warning(
                slot.slot_name,
                f"its consumer, {holder}, is {format_size(slot.lag_bytes)} behind",
                "look at what the consumer waits for: its sink, its network, one large transaction",
            )
        elif slot.lag_bytes < MAX_UNCONFIRMED_BYTES and (slot.retained_bytes or 0) >= MAX_LAG_BYTES:
            yield warning(
                slot.slot_name,
                f"its consumer is up to date, and it holds {format_size(slot.retained_bytes or 0)}"
                " of WAL: a transaction that began there is open",
                "find and end it; see the check long_transactions",
            )


def idle_database(facts: Facts) -> Iterator[Problem]:
    """Find consumers that got everything and confirm nothing: their database is idle while others write."""
    seen = False
    for slot in facts.logical_slots:
        if not slot.active or slot.lag_bytes is None:
            continue
        unsent = _unsent(facts, slot)
        seen = seen or unsent is not None
        if slot.lag_bytes >= MAX_UNCONFIRMED_BYTES and _is_caught_up(facts, slot):
            yield warning(
                slot.slot_name,
                f"all was sent to its consumer, {slot.holder}, which leaves "
                f"{format_size(slot.lag_bytes)} unconfirmed: database {slot.database} writes "
                "little while the server writes much",
                "write a heartbeat row there every minute (Debezium: heartbeat.action.query; DMS: heartbeatEnable); "
                "rdsrepl slot tail needs none",
            )
    if not seen and any(slot.active for slot in facts.logical_slots) and not _sees_sessions(facts):
        raise NotApplicable("this role may not see how far the walsenders are (pg_monitor)")


def upgrade_slots(facts: Facts) -> Iterator[Problem]:
    """Name the slots that stand in the way of a major upgrade or a blue/green deployment."""
    if facts.is_standby or not facts.logical_slots:
        return
    names = [slot.slot_name for slot in facts.logical_slots]
    aurora = facts.topology == "aurora"
    if (facts.major or 0) < versions.UPGRADE_KEEPS_SLOTS_SINCE:
        yield info(
            ", ".join(names),
            f"{facts.major} cannot carry logical slots over: a major upgrade stops at its check; AWS makes no blue/"
            "green deployment by logical replication of a server that publishes to others",
            "only before such an upgrade: let the consumers finish, rdsrepl slot drop each, make them anew after it",
        )
        return
    behind = [slot.slot_name for slot in facts.logical_slots if slot.lag_bytes or slot.is_lost]
    if behind:
        yield info(
            ", ".join(behind),
            "a major upgrade carries over slots that are consumed to the end; others make it fail",
            "only before an upgrade: stop writing, let the consumers finish; the new version's parameter group needs "
            "logical replication on, too",
        )
    if facts.is_managed and facts.topology != "multi_az_cluster":  # those have no blue/green deployments
        yield info(
            ", ".join(names),
            "AWS makes no blue/green deployment by logical replication (always on Aurora, else for a major upgrade) of "
            "a server that publishes to others"
            + ("; editions of Aurora's guide differ on whether a major upgrade keeps slots" if aurora else ""),
            f"only before such a deployment{' or upgrade' if aurora else ''}: let the consumers finish, rdsrepl slot "
            "drop each, make them anew after it",
        )


def failover_slots(facts: Facts) -> Iterator[Problem]:
    """Find logical slots that would not be there after a failover to a standby."""
    topology = facts.topology
    if topology in ("aurora", "multi_az_cluster"):
        return  # shared storage, or RDS copies the slots itself
    if facts.is_standby:
        yield from _standby_settings(facts)
        return
    standbys = [slot for slot in facts.physical_slots if slot.active]
    streaming = [
        sender for sender in facts.senders or () if sender.slot_type != "logical" and sender.state == "streaming"
    ]
    replicas = facts.rds.replicas if facts.rds else ()
    if not (standbys or streaming or replicas) or not facts.logical_slots:
        return  # nothing to fail over to, or nothing to keep; a Multi-AZ instance keeps its own volume
    maybe = "" if topology else "; of a Multi-AZ DB cluster RDS copies the slots itself (--cluster ID tells)"
    make = warning if topology else info
    if (facts.major or 0) < versions.FAILOVER_SLOTS_SINCE:
        yield info(
            ", ".join(slot.slot_name for slot in facts.logical_slots),
            f"{facts.major} does not carry logical slots over to a standby that is promoted{maybe}",
            "plan for it: after a promotion make the slots anew and copy the tables again, or upgrade to 17",
        )
        return
    for slot in facts.logical_slots:
        if not slot.failover:
            yield make(
                slot.slot_name,
                f"it has no failover property: a promoted standby does not have it{maybe}",
                f'on a replication connection: ALTER_REPLICATION_SLOT "{slot.slot_name}" (FAILOVER true); '
                "for a new one: rdsrepl slot create NAME --failover",
            )
    yield from _waiting_for_standbys(facts)
    for slot in standbys:
        if slot.xmin is None and slot.catalog_xmin is None and any(s.failover for s in facts.logical_slots):
            yield warning(
                slot.slot_name,
                "its standby sends no feedback, without which it cannot synchronise slots",
                f"on the standby: {_standby_change('hot_standby_feedback', facts)}",
            )


def _waiting_for_standbys(facts: Facts) -> Iterator[Problem]:
    listed = facts.value("synchronized_standby_slots")
    failing = [slot for slot in facts.logical_slots if slot.failover]
    if listed is None or not failing:
        return
    physical = {slot.slot_name: slot for slot in facts.physical_slots}
    names = [name.strip() for name in next(csv.reader([listed], skipinitialspace=True), []) if name.strip()]
    for name in names:
        slot = physical.get(name)
        if slot is None or not slot.active:
            state = "does not exist" if slot is None else "has no standby"
            yield critical(
                name,
                f"synchronized_standby_slots names it, and it {state}: decoding of failover slots waits for ever",
                remedies.change(facts, "synchronized_standby_slots", ",".join(n for n in names if n != name)),
            )
    if not names and physical:
        yield info(
            "synchronized_standby_slots",
            "it is empty: a consumer may be ahead of the standby that is promoted",
            remedies.change(facts, "synchronized_standby_slots", ",".join(sorted(physical))),
        )


def _standby_settings(facts: Facts) -> Iterator[Problem]:
    if (facts.major or 0) < versions.FAILOVER_SLOTS_SINCE:
        return
    for name in ("sync_replication_slots", "hot_standby_feedback"):
        if facts.value(name) == "off":
            what = (
                "its primary's failover slots are not copied" if name.startswith("sync") else "copies are not kept safe"
            )
            on = "1" if facts.is_managed else "on"
            yield warning(name, f"it is off on this standby: {what}", remedies.change(facts, name, on))
    if not facts.is_managed and facts.value("primary_slot_name") == "":
        yield warning(
            "primary_slot_name",
            "this standby streams without a slot, and so cannot synchronise slots",
            "make a physical slot on the primary and name it: ALTER SYSTEM SET primary_slot_name = 'NAME'",
        )
    copies = [slot for slot in facts.slots or () if slot.synced]
    for slot in copies:
        if slot.temporary:
            yield warning(
                slot.slot_name,
                "its copy is not ready: at a promotion it would vanish",
                "let its consumer on the primary move on once, then log a snapshot there: "
                "SELECT pg_catalog.pg_log_standby_snapshot()",
            )
    if not copies and facts.value("sync_replication_slots") == "on":
        yield info(
            facts.label,
            "no slot was copied from the primary yet",
            "see there: rdsrepl doctor --only failover_slots",
        )


def _standby_change(name: str, facts: Facts) -> str:
    if facts.is_managed:
        return command("param-group set GROUP {}", f"{name}=1")
    return f"ALTER SYSTEM SET {name} = on, then SELECT pg_catalog.pg_reload_conf()"


def idle_slot_timeout(facts: Facts) -> Iterator[Problem]:
    """Find slots that the server is about to give up because nobody consumes them."""
    setting = (facts.settings or {}).get("idle_replication_slot_timeout")
    if setting is None:
        raise NotApplicable("idle_replication_slot_timeout came with 18")
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
                f"idle for {format_duration(idle)}; at {format_duration(seconds)} the server gives it up",
                f"start its consumer; or {remedies.change(facts, setting.name, '0')}",
            )


def storage(facts: Facts) -> Iterator[Problem]:
    """Weigh the WAL that slots hold against the storage that is free, or else that there is."""
    if facts.topology == "aurora":
        return  # the volume grows
    metrics = facts.metrics or {}
    held = max((slot.retained_bytes or 0 for slot in facts.slots or ()), default=0)
    if facts.slots is None:
        lags = [metrics.get(f"Oldest{kind}ReplicationSlotLag", 0.0) for kind in ("", "Logical")]
        held = int(max(0.0, *lags))
    total = facts.rds.allocated_storage_gib * _GIB if facts.rds else 0
    # A dedicated log volume is the disk the WAL lies on.
    volume = metrics.get("FreeStorageSpaceLogVolume")
    free = volume if volume is not None else metrics.get("FreeStorageSpace")
    remedy = "find what holds it: rdsrepl slot list; let it be consumed, or drop it"
    if facts.rds is not None and facts.rds.autoscaling:
        remedy += " (storage grows by itself, at most every 6 hours)"
    if free is not None:
        left = f"slots hold {format_size(held)} of WAL, and {format_size(int(free))} of storage is free"
        if held >= _GIB and (free <= held / 2 or (total and free <= total / 10)):
            yield critical("storage", left, remedy)
        elif held >= _GIB and free <= 2 * held:
            yield warning("storage", left, remedy)
        elif total and volume is None and free <= total / 10:
            yield warning(
                "storage",
                f"{format_size(int(free))} of {format_size(total)} is free: the next idle slot fills it",
                "give it more storage",
            )
        yield from _limit_above_free(facts, held, free)
        yield from _time_until_full(facts, held, free)
    elif total:
        if held >= total / 10:
            make = critical if held >= total / 2 else warning
            yield make("storage", f"slots hold {format_size(held)} of WAL, of {format_size(total)} of storage", remedy)
    elif held >= LARGE_WAL_BYTES:
        yield warning("storage", f"slots hold {format_size(held)} of WAL; how much is free is not known", remedy)


def _time_until_full(facts: Facts, held: int, free: float) -> Iterator[Problem]:
    """Say when the disk is full of the WAL that the oldest slot holds, if nobody consumes it."""
    rate = (facts.metrics or {}).get("TransactionLogsGeneration", 0.0)
    blamed = max(facts.slots or (), key=lambda slot: slot.retained_bytes or 0, default=None)
    if blamed is None or blamed.active or not blamed.retained_bytes or rate <= 0 or _is_copy(facts, blamed):
        return
    keep = int(facts.value("max_slot_wal_keep_size") or _UNLIMITED)
    if keep > 0 and keep * _MIB - held <= free:
        return  # the slot is lost before
    seconds = free / rate
    if seconds <= _DAY_SECONDS:
        yield (critical if seconds <= _HOUR_SECONDS else warning)(
            blamed.slot_name,
            f"nobody consumes it, and WAL is written at {format_size(int(rate))}/s: the disk is full in "
            f"{format_duration(seconds)}",
            "start its consumer; see what dropping it costs: "
            + command("slot prune --slot {} --dry-run", blamed.slot_name),
        )


def _limit_above_free(facts: Facts, held: int, free: float) -> Iterator[Problem]:
    keep = int(facts.value("max_slot_wal_keep_size") or _UNLIMITED)
    if keep > 0 and keep * _MIB - held > free:
        yield warning(
            "max_slot_wal_keep_size",
            f"slots may hold {format_size(keep * _MIB)}, more than the "
            f"{format_size(int(free))} that is free: the disk fills first",
            "give it more storage, or " + remedies.change(facts, "max_slot_wal_keep_size", str(int(free / 2) // _MIB)),
        )


def _is_copy(facts: Facts, slot: Slot) -> bool:
    """Whether a slot is a standby's copy, which nobody consumes before a promotion."""
    return bool(slot.synced) and facts.is_standby


def _idle_time(facts: Facts, moment: datetime | None) -> str:
    if moment is None or facts.server is None:
        return ""
    return f", for {format_duration(max(0.0, (facts.server.now - moment).total_seconds()))}"


def _unsent(facts: Facts, slot: Slot) -> int | None:
    return next((sender.unsent_bytes for sender in facts.senders or () if sender.pid == slot.active_pid), None)


def _is_caught_up(facts: Facts, slot: Slot) -> bool:
    unsent = _unsent(facts, slot)
    return unsent is not None and unsent <= CAUGHT_UP_BYTES


def _sees_sessions(facts: Facts) -> bool:
    return facts.server is None or facts.server.sees_sessions
