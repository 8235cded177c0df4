"""The list of all checks, in the order of a manual analysis; ``docs/doctor.md`` describes each. Pure."""

from __future__ import annotations

from typing import Final

from rdsrepl.doctor import capacity, configuration, failover_slots, publications, security, slots
from rdsrepl.doctor.facts import Facts
from rdsrepl.doctor.findings import Check

_LIMITS: Final = (("settings", "parameters"),)

ALL: Final[tuple[Check, ...]] = (
    Check("database", "the database can be reached", (), configuration.database),
    Check("aws", "AWS answers", (), configuration.aws),
    Check("availability", "cluster, instance and members are available", (("rds",),), configuration.availability),
    Check(
        "engine_version",
        "the version supports logical replication",
        (("rds", "server"),),
        configuration.engine_version,
    ),
    Check("writer_endpoint", "this is the writer", (("server", "rds"),), configuration.writer_endpoint),
    Check("parameter_group", "the parameter group can be changed", (("rds",),), configuration.parameter_group),
    Check("pending_reboot", "no parameter needs a reboot", (("rds", "settings"),), configuration.pending_reboot),
    Check("wal_level", "wal_level is logical", (("settings",),), configuration.wal_level),
    Check(
        "logical_replication",
        "rds.logical_replication is on, in the group and in effect",
        (("parameters",),),
        configuration.logical_replication,
    ),
    Check("replication_slots", "slots are available", _LIMITS, capacity.replication_slots),
    Check("wal_senders", "walsenders are available", _LIMITS, capacity.wal_senders),
    Check("logical_workers", "workers for subscriptions are available", _LIMITS, capacity.logical_workers),
    Check("replication_origins", "origins for subscriptions are available", _LIMITS, capacity.replication_origins),
    Check("worker_processes", "worker processes are available", _LIMITS, capacity.worker_processes),
    Check("slot_wal_keep_size", "the WAL that a slot may retain is limited", _LIMITS, capacity.slot_wal_keep_size),
    Check("output_plugins", "the output plugins in use are allowed", (("slots",), ("settings",)), slots.output_plugins),
    Check("inactive_slots", "every slot has a consumer", (("slots",),), slots.inactive_slots),
    Check("lost_slots", "no slot is invalidated, or soon will be", (("slots",),), slots.lost_slots),
    Check("slot_lag", "consumers keep up", (("slots",),), slots.slot_lag),
    Check("idle_database", "consumers of idle databases confirm", (("slots",), ("senders",)), slots.idle_database),
    Check("xid_age", "no slot prevents VACUUM", (("slots", "metrics"),), slots.xid_age),
    Check("storage", "the storage is large enough for the retained WAL", (("slots", "metrics"),), slots.storage),
    Check(
        "idle_slot_timeout",
        "no slot is close to its idle timeout",
        (("slots",), ("settings",)),
        slots.idle_slot_timeout,
    ),
    Check(
        "failover_slots",
        "slots survive a failover",
        (("slots",), ("failover", "server")),
        failover_slots.failover_slots,
    ),
    Check("upgrade_slots", "slots survive a major upgrade", (("slots",),), slots.upgrade_slots),
    Check("long_transactions", "no old transaction is open", (("transactions",),), security.long_transactions),
    Check(
        "prepared_transactions",
        "no old prepared transaction is open",
        (("transactions",),),
        security.prepared_transactions,
    ),
    Check("replication_roles", "a dedicated role may replicate", (("roles",),), security.replication_roles),
    Check("publications", "publications replicate all their tables", (("publications",),), publications.publications),
    Check("subscriptions", "subscriptions run", (("subscriptions",),), publications.subscriptions),
    Check("ssl", "connections are encrypted", (("server", "parameters"),), security.ssl),
    Check("wal_sender_timeout", "dead consumers are detected", (("settings",),), security.wal_sender_timeout),
)


def summary(facts: Facts) -> dict[str, object]:
    """Return the main facts; a fact that is not known is None."""
    rds, server = facts.rds, facts.server
    version = facts.version
    slots = facts.slots
    return {
        "target": facts.label,
        "topology": facts.topology,
        "engine_version": version,
        "database": server.database if server else None,
        "user": server.user if server else None,
        "in_recovery": server.in_recovery if server else None,
        "status": rds.status if rds else None,
        "parameter_group": rds.parameter_group if rds else None,
        "writer": rds.writer.instance_id if rds and rds.writer else None,
        "wal_level": facts.value("wal_level"),
        "max_replication_slots": _number(facts.value("max_replication_slots")),
        "max_wal_senders": _number(facts.value("max_wal_senders")),
        "logical_slots": None if slots is None else len(facts.logical_slots),
        "physical_slots": None if slots is None else len(facts.physical_slots),
        "retained_bytes": None if slots is None else max((slot.retained_bytes or 0 for slot in slots), default=0),
        "publications": None if facts.publications is None else len(facts.publications),
        "subscriptions": None if facts.subscriptions is None else len(facts.subscriptions),
    }


def _number(value: str | None) -> int | None:
    return None if value is None else int(value)
