"""Checks of the connection, the status, the version and the parameters. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rdsrepl.aws import statuses
from rdsrepl.aws.release_support import logical_replication as logical_replication_support
from rdsrepl.doctor import remedies
from rdsrepl.doctor.facts import Facts
from rdsrepl.doctor.findings import NotApplicable, Problem, critical, info, warning
from rdsrepl.parameters import formulas
from rdsrepl.postgres import versions
from rdsrepl.text.commands import command
from rdsrepl.units import parse_boolean

SWITCH: Final = "rds.logical_replication"
_IN_FORCE: Final = frozenset({"in-sync", ""})


def database(facts: Facts) -> Iterator[Problem]:
    """Find a database that cannot be reached."""
    if facts.server is None and "server" in facts.missing:
        remedy = facts.remedies.get("server") or "check host, port, user and password"
        yield critical(facts.label, facts.missing["server"], remedy)


def aws(facts: Facts) -> Iterator[Problem]:
    """Find failed calls of the RDS API or CloudWatch."""
    if facts.rds is None and "rds" not in facts.remedies:
        raise NotApplicable(facts.missing.get("rds", "no cluster or instance is named"))
    for name, what in (("rds", "RDS"), ("parameters", "parameter group"), ("metrics", "CloudWatch")):
        if name in facts.remedies:
            yield warning(what, facts.missing[name], facts.remedies[name] or "see the message of AWS")


def availability(facts: Facts) -> Iterator[Problem]:
    """Find a cluster, an instance or a member that is not available."""
    rds = facts.rds
    assert rds is not None
    show = command(f"{rds.kind} show {{}}", rds.identifier)
    checked = [(rds.kind, rds.identifier, rds.status)]
    if rds.kind == "cluster":
        checked += [("instance", member.instance_id, member.status) for member in rds.members]
    for kind, name, status in checked:
        if statuses.is_dead_end(status):
            yield critical(name, f"it is {status}", f"{statuses.remedy(status, kind, name)}; {show}")
        elif not statuses.is_usable(status):
            yield warning(name, f"it is {status}, not available", f"wait for it: {show}")


def engine_version(facts: Facts) -> Iterator[Problem]:
    """Find a version without logical replication."""
    major, version = facts.major, facts.version
    if major is None or version is None:
        raise NotApplicable("could not read the engine version")
    topology = facts.topology
    if topology is not None and topology != "postgresql":
        support = logical_replication_support(topology, version)
        if support.supported is False:
            yield critical(version, f"logical replication is {support.words}", "upgrade the engine")
            return
    if major < versions.OLDEST_SUPPORTED:
        yield warning(version, "rdsrepl supports PostgreSQL 13 and later", "upgrade to 13 or later")


def writer_endpoint(facts: Facts) -> Iterator[Problem]:
    """Find a connection, or an instance, that is a standby or a reader."""
    if not facts.is_standby:
        return
    rds = facts.rds
    writer = rds.writer if rds else None
    remedy = "connect to the primary (on RDS: the writer endpoint, --cluster ID)"
    if rds is not None and rds.kind == "cluster":
        remedy = f"use the writer endpoint: --cluster {rds.identifier}"
    elif rds is not None and rds.replica_of:
        remedy = f"use its source: --instance {rds.replica_of}"
    if facts.topology == "aurora":
        yield critical(facts.label, "this is an Aurora reader, which does not support slots", remedy)
    elif facts.major is None:
        raise NotApplicable("could not read the engine version")
    elif facts.major < versions.STANDBY_DECODING_SINCE:
        yield critical(
            facts.label, f"this is a standby, and PostgreSQL {facts.major} decodes only on a primary", remedy
        )
    else:
        also = f" ({writer.instance_id} is the writer)" if writer and facts.topology == "multi_az_cluster" else ""
        yield info(
            facts.label,
            f"this is a standby{also}: slots can be read here, but publications cannot be changed",
            "connect to the primary for everything else; the creation of a slot here waits for "
            "pg_log_standby_snapshot() on the primary",
        )


def parameter_group(facts: Facts) -> Iterator[Problem]:
    """Find a default parameter group, which cannot be changed."""
    rds = facts.rds
    assert rds is not None
    if rds.has_default_group:
        make = warning if facts.value("wal_level") == "logical" else critical
        yield make(
            rds.parameter_group,
            f"{rds.identifier} has a default {rds.kind} parameter group, which cannot be "
            "changed: logical replication is off in it",
            remedies.own_group(facts),
        )


def pending_reboot(facts: Facts) -> Iterator[Problem]:
    """Find parameters that need a reboot: by member from AWS, by name from the server."""
    waiting = sorted(name for name, setting in (facts.settings or {}).items() if setting.pending_restart)
    members = facts.rds.members if facts.rds else ()
    changes = ", ".join(_changes(facts))
    for member in members:
        if member.group_status == "pending-reboot":
            yield warning(
                member.instance_id,
                "its parameter group takes effect after a reboot, which AWS does not start by itself"
                + (f": {changes}" if changes else ""),
                remedies.reboot(facts),
            )
        elif member.group_status == "applying":
            yield info(
                member.instance_id, "its parameter group is being applied", "wait a minute, then run doctor again"
            )
        elif member.group_status not in _IN_FORCE:
            yield critical(
                member.instance_id,
                f"its parameter group is {member.group_status}",
                "compare the group with the server: "
                + command("param-group diff {} --live", facts.rds.parameter_group if facts.rds else "NAME"),
            )
    if waiting:
        yield warning(
            ", ".join(waiting), "changed, but takes effect after a restart of the server", remedies.reboot(facts)
        )


def wal_level(facts: Facts) -> Iterator[Problem]:
    """Find a wal_level in effect that does not support logical decoding."""
    level = facts.value("wal_level")
    if level is None:
        raise NotApplicable("wal_level is not known")
    if level == "logical":
        return
    if not facts.is_managed:
        remedy = remedies.change(facts, "wal_level", "logical")
    elif _on_in_group(facts):
        remedy = remedies.reboot(facts)
    else:
        remedy = remedies.change(facts, SWITCH, "1")
    yield critical("wal_level", f"it is {level}: logical slots need wal_level = logical", remedy)


def logical_replication(facts: Facts) -> Iterator[Problem]:
    """Compare rds.logical_replication in the parameter group with the setting in effect."""
    rds, on = facts.rds, _on_in_group(facts)
    assert rds is not None
    if on is None:
        raise NotApplicable(f"parameter group {rds.parameter_group} has no {SWITCH}")
    running = _running(facts)
    where = f"{rds.kind} parameter group {rds.parameter_group}"
    pending = any(member.group_status == "pending-reboot" for member in rds.members)
    if on and (running is False or (running is None and pending)):
        yield critical(SWITCH, f"it is on in {where}, but takes effect only after a reboot", remedies.reboot(facts))
    elif not on and running:
        make = critical if facts.logical_slots else warning
        effect = ", and with logical slots the server then does not start" if facts.logical_slots else ""
        yield make(
            SWITCH,
            f"it is off in {where}, but still in effect: the next reboot ends logical replication{effect}",
            remedies.change(facts, SWITCH, "1"),
        )
    elif not on and not rds.has_default_group:  # `parameter_group` reports a default group
        yield critical(SWITCH, f"it is off in {where}", remedies.change(facts, SWITCH, "1"))


def _changes(facts: Facts) -> Iterator[str]:
    """Name the values of the group that are not in effect yet: ``max_wal_senders 10 → 20``."""
    for name, parameter in sorted((facts.parameters or {}).items()):
        running, wanted = facts.value(name), parameter.value
        if parameter.apply_type != "static" or running is None or not wanted or formulas.is_formula(wanted):
            continue  # no reboot, not known, or a formula that depends on the instance class
        if _plain(running) != _plain(wanted):
            yield f"{name} {running} → {wanted}"


def _plain(value: str) -> str:
    boolean = parse_boolean(value)
    return value.lower() if boolean is None else str(int(boolean))


def _on_in_group(facts: Facts) -> bool | None:
    parameter = (facts.parameters or {}).get(SWITCH)
    return None if parameter is None else parse_boolean(parameter.value or "0") is True


def _running(facts: Facts) -> bool | None:
    level = facts.value("wal_level")
    return None if level is None else level == "logical"
