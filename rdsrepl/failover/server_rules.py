"""What must hold on a primary and on its standby before slots survive a failover between them. Pure.

Sources: manual, sections 29.3, 47.2.3 and 20.6; RDS user guide, "Managing logical slot synchronization".
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Final

from rdsrepl.failover import remedies
from rdsrepl.failover.findings import Finding, Level
from rdsrepl.postgres import versions
from rdsrepl.postgres.failover_servers import FailoverServer
from rdsrepl.text.commands import sql
from rdsrepl.text.counts import counted
from rdsrepl.units import format_size

#: a standby that lacks more WAL is reported.
MAX_BEHIND_BYTES: Final = 64 << 20


def different_servers(primary: FailoverServer, standby: FailoverServer) -> str | None:
    """Return why STANDBY is not a standby of PRIMARY; None if it is one."""
    for one in (primary, standby):
        if one.is_aurora:
            return (
                f"{one.label} is Aurora: its instances share one volume, so a failover keeps the slots, and its "
                "readers are not promoted separately"
            )
    if primary.in_recovery:
        return f"{primary.label} is a standby: name its primary"
    if not standby.in_recovery:
        started = [one.wal.started_at for one in (primary, standby) if one.wal is not None]
        if primary.system_identifier == standby.system_identifier and len(set(started)) == 1:
            return f"{standby.label} and {primary.label} are the same server"
        return f"{standby.label} is not a standby: it was promoted, or it is another primary"
    if primary.system_identifier is None or standby.system_identifier is None:
        return f"a system identifier is not readable, so whether {standby.label} is a standby of it is unknown"
    if primary.system_identifier != standby.system_identifier:
        return (
            f"{standby.label} is a standby of another primary than {primary.label}: their system identifiers are "
            f"{standby.system_identifier} and {primary.system_identifier}"
        )
    return None


def decoding(server: FailoverServer) -> Iterator[Finding]:
    """Find a server that cannot decode."""
    level = server.settings.get("wal_level")
    if level in (None, "logical"):
        return
    yield Finding(
        "wal_level",
        Level.critical,
        server.label,
        "wal_level",
        f"it is {level}: this server has no logical slots" + (", also not after a promotion" * server.in_recovery),
        f"{remedies.change(server, 'rds.logical_replication', '1')}, then {remedies.restart(server)}"
        if server.is_managed
        else f"ALTER SYSTEM SET wal_level = 'logical', then {remedies.restart(server)}",
    )


def synchronization(standby: FailoverServer) -> Iterator[Finding]:
    """Find why a standby of 17 or later does not synchronize failover slots."""
    if standby.version < versions.FAILOVER_SLOTS_SINCE:
        return
    settings, label = standby.settings, standby.label
    is_on = settings.get("sync_replication_slots") != "off"
    if not is_on:
        yield Finding(
            "sync_replication_slots",
            Level.critical,
            label,
            "sync_replication_slots",
            "it is off: failover slots of the primary are not copied to this standby",
            remedies.change(standby, "sync_replication_slots", "1" if standby.is_managed else "on"),
        )
    if settings.get("hot_standby_feedback") == "off":
        yield Finding(
            "hot_standby_feedback",
            Level.critical,
            label,
            "hot_standby_feedback",
            "it is off: the standby cannot synchronize slots, and the primary removes rows that a copy needs",
            remedies.change(standby, "hot_standby_feedback", "1" if standby.is_managed else "on"),
        )
    if settings.get("primary_slot_name") == "":
        yield Finding(
            "primary_slot_name",
            Level.critical,
            label,
            "primary_slot_name",
            "it is empty: a standby that streams without a physical slot cannot synchronize slots",
            "create the read replica again: RDS gives it a slot"
            if standby.is_managed
            else "on the primary: SELECT pg_catalog.pg_create_physical_replication_slot('NAME', true); "
            f"on the standby: {remedies.change(standby, 'primary_slot_name', 'NAME')}",
        )
    yield from _sync_database(standby)
    if is_on and standby.has_sync_worker is False:
        yield Finding(
            "sync_worker",
            Level.critical,
            label,
            "slotsync worker",
            "it does not run, so the copies of the slots do not follow the primary",
            "correct the other findings about this standby; it is started again every 10 s, and logs the reason",
        )


def feedback(standby: FailoverServer) -> Iterator[Finding]:
    """Find a standby whose own slots can be invalidated by the primary."""
    if standby.settings.get("hot_standby_feedback") == "off":
        yield Finding(
            "hot_standby_feedback",
            Level.warning,
            standby.label,
            "hot_standby_feedback",
            "it is off: the primary can remove rows that a slot on this standby needs, which then is invalidated",
            remedies.change(standby, "hot_standby_feedback", "1" if standby.is_managed else "on"),
        )


def _sync_database(standby: FailoverServer) -> Iterator[Finding]:
    name = standby.sync_database
    if name is None or (name and (standby.databases is None or name in standby.databases)):
        return
    subject = "rds.logical_slot_sync_dbname" if standby.is_managed else "primary_conninfo"
    known = sorted(standby.databases or ())
    database = "postgres" if "postgres" in known or not known else known[0]
    yield Finding(
        "sync_database",
        Level.critical,
        standby.label,
        subject,
        f"database {name} does not exist" + ": slot synchronization cannot connect to it"
        if name
        else "it names no database, to which slot synchronization could connect",
        remedies.change(standby, subject, database)
        if standby.is_managed
        else f"add dbname={database} to primary_conninfo, then SELECT pg_catalog.pg_reload_conf()",
    )


def streaming(primary: FailoverServer, standby: FailoverServer) -> Iterator[Finding]:
    """Find a standby that does not stream, or is far behind."""
    name = standby.settings.get("primary_slot_name")
    slot = primary.slot(name) if name else None
    if name and slot is None:
        yield Finding(
            "physical_slot",
            Level.critical,
            standby.label,
            name,
            f"{primary.label} does not have this physical slot, which primary_slot_name of the standby names",
            "a standby of another standby synchronizes no slots: name a direct standby of the primary"
            if standby.is_streaming or standby.is_managed
            else f"on the primary: {sql('SELECT pg_catalog.pg_create_physical_replication_slot({}, true)', name)}",
        )
    elif standby.is_streaming is False or (slot is not None and not slot.active):
        yield Finding(
            "not_streaming",
            Level.critical,
            standby.label,
            name or standby.label,
            "the standby is not connected to its primary: everything written since then would be lost"
            + _behind(primary, standby),
            "check its network and its log" + (" (on RDS: its events and its status)" if standby.is_managed else ""),
        )
    elif primary.lsn is not None and standby.lsn is not None and primary.lsn - standby.lsn > MAX_BEHIND_BYTES:
        yield Finding(
            "standby_behind",
            Level.warning,
            standby.label,
            standby.label,
            f"the standby is behind{_behind(primary, standby)}",
            "wait until it has replayed the WAL; a long query on it or its disk can be the reason",
        )
    if standby.replay_paused:
        yield Finding(
            "replay_paused",
            Level.warning,
            standby.label,
            standby.label,
            "the replay of WAL is paused: a failover first replays what the standby received",
            sql("SELECT pg_catalog.pg_wal_replay_resume()"),
        )
    has_copies = any(one.synced for one in standby.slots)
    feeds_back = standby.settings.get("hot_standby_feedback") == "on"
    if slot is not None and slot.active and has_copies and feeds_back and slot.catalog_xmin is None:
        yield Finding(
            "no_feedback",
            Level.warning,
            primary.label,
            slot.slot_name,
            "its standby sends no catalog_xmin: the primary can remove rows that the copies need",
            "hot_standby_feedback takes effect within wal_receiver_status_interval (10s); if this finding stays, "
            "check the log of the standby",
        )


def _behind(primary: FailoverServer, standby: FailoverServer) -> str:
    if primary.lsn is None or standby.lsn is None:
        return ""
    received = max(standby.received_lsn or standby.lsn, standby.lsn)
    lacks, left = max(primary.lsn - received, 0), max(received - standby.lsn, 0)
    return f" ({format_size(lacks)} not received, {format_size(left)} not replayed)"


def capacity(primary: FailoverServer, standby: FailoverServer) -> Iterator[Finding]:
    """Find a standby that can have fewer slots than its primary."""
    here, there = (one.settings.get("max_replication_slots") for one in (primary, standby))
    if here is None or there is None or int(there) >= int(here):
        return
    wanted = {slot.slot_name for slot in primary.slots if slot.failover}
    needed = len(wanted | {slot.slot_name for slot in standby.slots})
    full = needed > int(there)
    yield Finding(
        "max_replication_slots",
        Level.critical if full else Level.warning,
        standby.label,
        "max_replication_slots",
        f"it is {there}, less than the {here} of the primary"
        + (f": it needs {counted(needed, 'slot')}, so some are not copied" if full else ""),
        f"{remedies.change(standby, 'max_replication_slots', here)}, then {remedies.restart(standby)}",
    )


def waiting_for_standbys(primary: FailoverServer) -> Iterator[Finding]:
    """Find names in ``synchronized_standby_slots`` for which decoding waits without end."""
    names = standby_names(primary)
    for name in names:
        slot = primary.slot(name)
        problem = (
            "does not exist"
            if slot is None
            else "is not physical"
            if slot.slot_type != "physical"
            else "has no standby"
            if not slot.active
            else None
        )
        if problem is None:
            continue
        waiting = primary.waiting_slots
        proof = f", and the consumers of {', '.join(waiting)} wait now" if waiting else ""
        yield Finding(
            "synchronized_standby_slots",
            Level.critical,
            primary.label,
            name,
            f"synchronized_standby_slots names it, but it {problem}: consumers of failover slots get nothing{proof}",
            remedies.change(primary, "synchronized_standby_slots", ",".join(one for one in names if one != name)),
        )


def promoted_standby_waits(primary: FailoverServer, standby: FailoverServer) -> Iterator[Finding]:
    """Find names in ``synchronized_standby_slots`` of the standby: they take effect when it is promoted."""
    names = standby_names(standby)
    active = {slot.slot_name for slot in standby.slots if slot.slot_type == "physical" and slot.active}
    missing = [name for name in names if name not in active]
    if not missing:
        return
    shares = standby.parameter_group is not None and standby.parameter_group == primary.parameter_group
    kept = ",".join(name for name in names if name not in missing)
    yield Finding(
        "synchronized_standby_slots_of_standby",
        Level.critical,
        standby.label,
        ", ".join(missing),
        "synchronized_standby_slots of the standby names it: after the promotion no standby streams through it, and "
        "consumers of failover slots get nothing",
        f"it has the parameter group of the primary; give it one of its own: "
        f"{remedies.own_group_without(standby, 'synchronized_standby_slots')}"
        if shares
        else remedies.change(standby, "synchronized_standby_slots", kept),
    )


def standby_names(server: FailoverServer) -> list[str]:
    """Return the slots that ``synchronized_standby_slots`` of a server names."""
    listed = server.settings.get("synchronized_standby_slots")
    if listed is None:
        return []
    return [name.strip() for name in next(csv.reader([listed], skipinitialspace=True), []) if name.strip()]
