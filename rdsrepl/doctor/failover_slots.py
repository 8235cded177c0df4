"""Checks whether logical slots survive a failover to a standby. Pure."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from rdsrepl.doctor import remedies
from rdsrepl.doctor.facts import Facts
from rdsrepl.doctor.findings import Problem, critical, info, warning
from rdsrepl.failover import readiness, server_rules
from rdsrepl.failover.findings import Level
from rdsrepl.postgres import versions
from rdsrepl.postgres.failover_servers import FailoverServer
from rdsrepl.text.commands import command
from rdsrepl.text.counts import named


def failover_slots(facts: Facts) -> Iterator[Problem]:
    """Find logical slots that do not survive a failover to a standby."""
    topology = facts.topology
    if topology in ("aurora", "multi_az_cluster"):
        return  # the storage is shared, or RDS copies the slots
    if facts.failover is not None and not server_rules.different_servers(facts.failover[0], facts.failover[1][0]):
        yield from _between_servers(*facts.failover)
        return
    if "failover" in facts.missing:
        yield info(
            facts.label,
            f"the servers on the other side of a failover could not be read: {facts.missing['failover']}",
            "check each replica: rdsrepl failover check --to REPLICA",
        )
    if facts.is_standby:
        yield from _standby_settings(facts)
        return
    standbys = [slot for slot in facts.physical_slots if slot.active]
    streaming = [
        sender for sender in facts.senders or () if sender.slot_type != "logical" and sender.state == "streaming"
    ]
    replicas = facts.rds.replicas if facts.rds else ()
    if not (standbys or streaming or replicas) or not facts.logical_slots:
        return  # no standby or no slot; a Multi-AZ instance keeps its volume
    maybe = "" if topology else "; RDS copies the slots of a Multi-AZ DB cluster (check with --cluster ID)"
    make = warning if topology else info
    if (facts.major or 0) < versions.FAILOVER_SLOTS_SINCE:
        yield info(
            named([slot.slot_name for slot in facts.logical_slots]),
            f"PostgreSQL {facts.major} does not copy logical slots to a standby{maybe}",
            "keep a slot of the same name in step on each standby: rdsrepl slot sync --all --with STANDBY --create"
            if (facts.major or 0) >= versions.STANDBY_DECODING_SINCE
            else "after a promotion, create the slots and copy the tables again; or upgrade to 17",
        )
        return
    for slot in facts.logical_slots:
        if not slot.failover:
            yield make(
                slot.slot_name,
                f"it is not a failover slot: a promoted standby does not have it{maybe}",
                command("slot alter {} --failover", slot.slot_name),
            )
    yield from _waiting_for_standbys(facts)
    for slot in standbys:
        if slot.xmin is None and slot.catalog_xmin is None and any(s.failover for s in facts.logical_slots):
            yield warning(
                slot.slot_name,
                "its standby sends no feedback, so it cannot synchronize slots",
                f"on the standby: {_standby_change('hot_standby_feedback', facts)}",
            )


def _between_servers(primary: FailoverServer, standbys: tuple[FailoverServer, ...]) -> Iterator[Problem]:
    """Report what ``failover check`` finds.

    Read replicas can be there only for reading: before a slot is protected, that it is not is no critical finding.
    """
    if not any(slot.slot_type == "logical" and not slot.temporary for slot in primary.slots):
        return
    result = readiness.assess(primary, standbys)
    is_wanted = any(row.protected_by is not None for row in result.slots)
    makers = {Level.critical: critical if is_wanted else warning, Level.warning: warning, Level.info: info}
    for finding in result.findings:
        make = makers[finding.level]
        if finding.check in ("slot_lost", "wal_level"):
            continue  # other checks report it
        if finding.check == "unprotected":
            make = warning
        if finding.check == "synchronized_standby_slots":
            make = critical
        yield make(finding.subject, f"{finding.message} ({finding.server})", finding.remedy)


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
                f"synchronized_standby_slots names it, but it {state}: decoding of failover slots waits for it",
                remedies.change(facts, "synchronized_standby_slots", ",".join(n for n in names if n != name)),
            )
    if not names and physical:
        yield info(
            "synchronized_standby_slots",
            "it is empty: a consumer can be ahead of the standby that is promoted",
            remedies.change(facts, "synchronized_standby_slots", ",".join(sorted(physical))),
        )


def _standby_settings(facts: Facts) -> Iterator[Problem]:
    if (facts.major or 0) < versions.FAILOVER_SLOTS_SINCE:
        return
    for name in ("sync_replication_slots", "hot_standby_feedback"):
        if facts.value(name) == "off":
            what = (
                "failover slots of the primary are not copied"
                if name.startswith("sync")
                else "copied slots can be invalidated"
            )
            on = "1" if facts.is_managed else "on"
            yield warning(name, f"it is off on this standby: {what}", remedies.change(facts, name, on))
    if not facts.is_managed and facts.value("primary_slot_name") == "":
        yield warning(
            "primary_slot_name",
            "this standby streams without a slot, so it cannot synchronize slots",
            "create a physical slot on the primary and set it here: ALTER SYSTEM SET primary_slot_name = 'NAME'",
        )
    copies = [slot for slot in facts.slots or () if slot.synced]
    for slot in copies:
        if slot.temporary:
            yield warning(
                slot.slot_name,
                "its copy is not ready: a promotion would drop it",
                "let its consumer on the primary confirm once, then log a snapshot there: "
                "SELECT pg_catalog.pg_log_standby_snapshot()",
            )
    if not copies and facts.value("sync_replication_slots") == "on":
        yield info(
            facts.label,
            "no slot is copied from the primary yet",
            "run on the primary: rdsrepl doctor --only failover_slots",
        )


def _standby_change(name: str, facts: Facts) -> str:
    if facts.is_managed:
        return command("param-group set GROUP {}", f"{name}=1")
    return f"ALTER SYSTEM SET {name} = on, then SELECT pg_catalog.pg_reload_conf()"
