"""The commands of remedies, for this server and the known facts. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from rdsrepl.doctor.facts import Facts
from rdsrepl.parameters import sizing
from rdsrepl.text.commands import command


def reboot(facts: Facts) -> str:
    """Return the command that makes static parameters take effect."""
    rds = facts.rds
    if rds is None:
        return "reboot it (rdsrepl instance reboot ID)" if facts.is_managed else "restart the server"
    pending = [member.instance_id for member in rds.members if member.group_status == "pending-reboot"]
    if rds.kind == "cluster" and len(pending) in (0, len(rds.members)):
        return command("cluster reboot {}", rds.identifier)
    names = pending or [member.instance_id for member in rds.members]
    # Readers before the writer: their limits must not be lower than those of the writer.
    writers = {member.instance_id for member in rds.members if member.is_writer}
    return " && ".join(command("instance reboot {}", name) for name in sorted(names, key=lambda n: n in writers))


def own_group(facts: Facts, values: Mapping[str, str] | None = None) -> str:
    """Return the commands that create and attach a parameter group, sized for the existing and planned objects."""
    rds, planned = facts.rds, facts.planned
    assert rds is not None
    name = f"{rds.identifier}-logical"
    counts = {
        "slots": len(facts.logical_slots) + (planned.slots if planned else 0),
        "subscriptions": len(facts.subscriptions or ()) + (planned.subscriptions if planned else 0),
        "replicas": planned.replicas if planned else 0,
    }
    counts["replicas"] += len(rds.replicas) if counts["replicas"] else 0
    settings = [f"{key}={value}" for key, value in (values or {}).items()]
    extra = "".join(f" --{key} {count}" for key, count in counts.items() if count) + " --set {}" * len(settings)
    create = command(f"param-group create {{}} --{rds.kind} {{}}{extra}", name, rds.identifier, *settings)
    attach = command(f"param-group attach {{}} --{rds.kind} {{}} --reboot", name, rds.identifier)
    return f"{create}, then {attach}"


def change(facts: Facts, name: str, value: str) -> str:
    """Return the commands that set a parameter (an empty value resets it) and make it take effect."""
    rds = facts.rds
    if rds is not None and rds.has_default_group:
        # `create` sizes a parameter that has a sizing rule.
        return own_group(facts, {} if name in sizing.SIZED_PARAMETERS else {name: value})
    static = is_static(facts, name)
    if facts.is_managed:
        group = rds.parameter_group if rds is not None else "GROUP"
        if not value:
            return command("param-group reset {} {}", group, name)
        return command("param-group set {} {}", group, f"{name}={value}") + (
            f", then {reboot(facts)}" if static else ""
        )
    text = value if name == "output_plugin_libraries" else "'" + value.replace("'", "''") + "'"
    then = "restart the server" if static else "SELECT pg_catalog.pg_reload_conf()"
    return f"ALTER SYSTEM SET {name} = {text}, then {then}"


def is_static(facts: Facts, name: str) -> bool:
    """Say whether a change of a parameter needs a restart; True where it is not known."""
    parameter = (facts.parameters or {}).get(name)
    if parameter is not None:
        return parameter.apply_type != "dynamic"
    setting = (facts.settings or {}).get(name)
    return setting is None or setting.is_static
