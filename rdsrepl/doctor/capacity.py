"""Checks of limits against the existing and planned objects, by the rules of ``docs/sizing.md``. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rdsrepl.doctor import remedies
from rdsrepl.doctor.facts import Facts, Planned
from rdsrepl.doctor.findings import NotApplicable, Problem, critical, info, warning
from rdsrepl.parameters import formulas
from rdsrepl.parameters.instance_classes import hardware
from rdsrepl.postgres import versions
from rdsrepl.text.counts import counted, form

_SPARE_WALSENDERS: Final = 2
_MULTI_AZ_READERS: Final = 2
_SYNC_WORKERS: Final = 2
_LEAST_SLOT_WAL_MB: Final = 4096
_SOME_SLOT_WAL_MB: Final = 51200
_UNLIMITED: Final = "it is unlimited: a slot without a consumer can fill the disk, which stops the server"
_NOTHING_PLANNED: Final = Planned()


def replication_slots(facts: Facts) -> Iterator[Problem]:
    """Check max_replication_slots."""
    name, plan = "max_replication_slots", facts.planned or _NOTHING_PLANNED
    limit = _limit(facts, name)
    used = _slots_in_use(facts)
    need = used + plan.slots + _new_standbys(facts)
    reserve = _reserve(facts)
    # Up to 17 it also limits the origins of a subscriber.
    origins = 0 if (facts.major or 0) >= versions.ORIGIN_LIMIT_SINCE else _origins(facts)
    if used >= limit and not facts.planned:
        yield critical(
            name,
            f"{form(limit, 'the only slot is', f'all {limit} slots are')} in use: no slot can be created",
            f"drop an unused slot (rdsrepl slot list), or {_raise(facts, name, used + 1 + reserve + origins)}",
        )
    elif need > limit:
        yield critical(
            name,
            f"{used} in use{_planned(facts)}: {need} in total, but the limit is {limit}",
            _raise(facts, name, need + reserve + origins),
        )
    elif need + reserve + origins > limit:
        yield warning(
            name,
            f"{used} in use{_planned(facts)}, {reserve} for the initial copy of a subscriber, "
            f"{counted(origins, 'origin')} of subscriptions: {need + reserve + origins} in total, "
            f"but the limit is {limit}",
            _raise(facts, name, need + reserve + origins),
        )


def wal_senders(facts: Facts) -> Iterator[Problem]:
    """Check max_wal_senders."""
    name, plan = "max_wal_senders", facts.planned or _NOTHING_PLANNED
    limit = _limit(facts, name)
    senders = facts.senders or ()
    if senders and len(senders) >= limit:
        yield critical(
            name,
            f"{form(limit, 'the only walsender is', f'all {limit} walsenders are')} in use: no consumer can connect",
            _raise(facts, name, len(senders) + _SPARE_WALSENDERS),
        )
        return
    slotless = sum(1 for sender in senders if sender.slot is None)
    existing = _slots_in_use(facts) + slotless
    need = existing + plan.slots + _new_standbys(facts)
    enough = need + (_reserve(facts) if need else 0) + _SPARE_WALSENDERS
    parts = f"slots and standbys ({existing}{_planned(facts)})"
    if need > limit:
        make = critical if facts.planned else warning
        yield make(
            name,
            f"{parts} need {counted(need, 'walsender')}, but the limit is {limit}: they cannot all be consumed "
            "at the same time",
            _raise(facts, name, enough),
        )
    elif need and enough > limit:
        yield warning(
            name,
            f"{parts}, with a reserve for the initial copy of a subscriber and for reconnects, need "
            f"{counted(enough, 'walsender')}, but the limit is {limit}",
            _raise(facts, name, enough),
        )


def logical_workers(facts: Facts) -> Iterator[Problem]:
    """Check max_logical_replication_workers: an apply worker for each subscription, and those that copy tables."""
    name = "max_logical_replication_workers"
    apply, enough = _subscriptions(facts), _origins(facts)
    if not apply:
        return
    limit = _limit(facts, name)
    if apply > limit:
        yield critical(
            name,
            f"{counted(apply, 'subscription')}{_planned_part(facts)} {_needs(apply)} an apply worker each, "
            f"but the limit is {limit}",
            _raise(facts, name, enough),
        )
    elif (enough if facts.planned else apply + 1) > limit:
        yield warning(
            name,
            f"{counted(apply, 'subscription')}{_planned_part(facts)} and the table copies need up to "
            f"{counted(enough, 'worker')}, but the limit is {limit}: initial copies wait",
            _raise(facts, name, enough),
        )


def replication_origins(facts: Facts) -> Iterator[Problem]:
    """Check max_active_replication_origins (18+)."""
    if (facts.major or versions.ORIGIN_LIMIT_SINCE) < versions.ORIGIN_LIMIT_SINCE:
        raise NotApplicable("before 18 max_replication_slots limits the origins")
    name = "max_active_replication_origins"
    apply, enough = _subscriptions(facts), _origins(facts)
    if not apply:
        return
    limit = _limit(facts, name)
    if apply > limit:
        yield critical(
            name,
            f"{counted(apply, 'subscription')}{_planned_part(facts)} {_needs(apply)} an origin each, "
            f"but the limit is {limit}",
            _raise(facts, name, enough),
        )
    elif facts.planned and enough > limit:
        yield warning(
            name,
            f"{counted(apply, 'subscription')} and the table copies need up to {counted(enough, 'origin')}, "
            f"but the limit is {limit}",
            _raise(facts, name, enough),
        )


def worker_processes(facts: Facts) -> Iterator[Problem]:
    """Check max_worker_processes, which limits the workers of a subscriber."""
    name = "max_worker_processes"
    apply = _subscriptions(facts)
    if not apply:
        return
    limit = _limit(facts, name)
    logical = max(_limit(facts, "max_logical_replication_workers"), _origins(facts) if facts.planned else 0)
    others = [_limit(facts, other) for other in ("autovacuum_max_workers", "max_parallel_workers")]
    need = logical + sum(others)
    if apply + 1 > limit:
        yield critical(
            name,
            f"{counted(apply, 'subscription')} and the launcher need {apply + 1} processes, but the limit is {limit}",
            _raise(facts, name, need),
        )
    elif need > limit:
        yield warning(
            name,
            f"{logical} logical, {others[0]} autovacuum and {others[1]} parallel workers are {need}, but the "
            f"limit is {limit}: apply workers may not start",
            _raise(facts, name, need),
        )


def slot_wal_keep_size(facts: Facts) -> Iterator[Problem]:
    """Find an unlimited max_slot_wal_keep_size."""
    name = "max_slot_wal_keep_size"
    value = facts.value(name)
    if value is None:
        parameter = (facts.parameters or {}).get(name)
        if parameter is None:
            raise NotApplicable(f"{name} is not known")
        value = parameter.value or "-1"
    if value != "-1":
        return
    if facts.topology == "aurora":
        yield info(
            name,
            "it is unlimited: the volume and its cost grow while a slot has no consumer",
            "monitor the slots (rdsrepl slot list); or " + remedies.change(facts, name, str(_SOME_SLOT_WAL_MB)),
        )
        return
    if facts.rds is not None and facts.rds.has_default_group:
        yield warning(name, _UNLIMITED, remedies.own_group(facts))  # the new group has a limit
        return
    in_group = _in_group(facts, name)
    if facts.settings is not None and in_group is not None and in_group > 0:
        yield warning(
            name, _UNLIMITED, f"reboot, as the parameter group already has {in_group} MB: {remedies.reboot(facts)}"
        )
        return
    storage = facts.rds.allocated_storage_gib if facts.rds else 0
    megabytes = max(_LEAST_SLOT_WAL_MB, storage * 1024 // 4) if storage else _SOME_SLOT_WAL_MB
    yield warning(
        name,
        _UNLIMITED,
        f"set a limit that fits the disk, here {megabytes} MB: {remedies.change(facts, name, str(megabytes))}",
    )


def _limit(facts: Facts, name: str) -> int:
    """Return the value of a parameter in effect; without the server, that of the parameter group."""
    value = facts.value(name)
    if value is not None:
        return int(value)
    if facts.settings is None and (limit := _in_group(facts, name)) is not None:
        return limit
    raise NotApplicable(f"{name} is not known")


def _in_group(facts: Facts, name: str) -> int | None:
    parameter = (facts.parameters or {}).get(name)
    if parameter is None or not parameter.value or facts.rds is None:
        return None
    writer = facts.rds.writer
    return formulas.read(parameter.value, hardware(writer.instance_class or "") if writer else None)


def _raise(facts: Facts, name: str, value: int) -> str:
    """Return how to increase a limit: only a reboot, where the value in the group is high enough."""
    limit = _in_group(facts, name)
    if facts.settings is not None and limit is not None and limit >= value and remedies.is_static(facts, name):
        return f"reboot, as the parameter group already has {limit}: {remedies.reboot(facts)}"
    return remedies.change(facts, name, str(value))


def _slots_in_use(facts: Facts) -> int:
    """Return the number of slots; without the server, only the slots of standbys."""
    standbys = _standbys(facts)
    if facts.slots is None:
        return standbys
    physical = sum(1 for slot in facts.slots if slot.slot_type == "physical")
    return len(facts.slots) - physical + max(physical, standbys)


def _standbys(facts: Facts) -> int:
    if facts.rds is None or facts.rds.topology == "aurora":
        return 0
    return _MULTI_AZ_READERS if facts.rds.topology == "multi_az_cluster" else len(facts.rds.replicas)


def _new_standbys(facts: Facts) -> int:
    return 0 if facts.planned is None or facts.topology == "aurora" else facts.planned.replicas


def _sync_workers(facts: Facts) -> int:
    value = facts.value("max_sync_workers_per_subscription")
    if value is not None:
        return int(value)
    in_group = _in_group(facts, "max_sync_workers_per_subscription")
    return _SYNC_WORKERS if in_group is None else in_group


def _reserve(facts: Facts) -> int:
    """Return how many additional slots a subscriber creates while it copies tables."""
    planned = facts.planned.slots if facts.planned else 0
    return _sync_workers(facts) if facts.logical_slots or planned else 0


def _subscriptions(facts: Facts) -> int:
    enabled = sum(1 for subscription in facts.subscriptions or () if subscription.enabled)
    return enabled + (facts.planned.subscriptions if facts.planned else 0)


def _origins(facts: Facts) -> int:
    return _subscriptions(facts) * (1 + _sync_workers(facts))


def _planned(facts: Facts) -> str:
    if facts.planned is None:
        return ""
    replicas = _new_standbys(facts)
    slots = f", {counted(facts.planned.slots, 'slot')} planned"
    return slots + (f", {counted(replicas, 'replica')} planned" if replicas else "")


def _needs(number: int) -> str:
    return form(number, "needs", "need")


def _planned_part(facts: Facts) -> str:
    return f" ({facts.planned.subscriptions} of them planned)" if facts.planned and facts.planned.subscriptions else ""
