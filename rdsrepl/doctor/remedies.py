"""How a remedy is worded: the next command to type, for what this is and is known of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from rdsrepl.doctor.facts import Facts
from rdsrepl.parameters import sizing
from rdsrepl.text.commands import command


def place(facts: Facts) -> str:
    """Return the option that names the cluster or the instance: ``--cluster orders``."""
    assert facts.cloud is not None
    return f"--{facts.cloud.kind} {facts.cloud.identifier}"


def reboot(facts: Facts) -> str:
    """Return what brings static parameters into force."""
    cloud = facts.cloud
    if cloud is None:
        return "reboot it (rdsrepl instance reboot ID)" if facts.is_managed else "restart the server"
    pending = [member.instance_id for member in cloud.members if member.group_status == "pending-reboot"]
    if cloud.kind == "cluster" and len(pending) in (0, len(cloud.members)):
        return command("cluster reboot {}", cloud.identifier)
    names = pending or [member.instance_id for member in cloud.members]
    # Readers before the writer: they need at least as much room as it.
    writers = {member.instance_id for member in cloud.members if member.is_writer}
    return " && ".join(command("instance reboot {}", name) for name in sorted(names, key=lambda n: n in writers))


def own_group(facts: Facts, values: Mapping[str, str] | None = None) -> str:
    """Return how to give the cluster or instance a group of its own, sized for what is there and what is planned."""
    cloud, demand = facts.cloud, facts.demand
    assert cloud is not None
    name = f"{cloud.identifier}-logical"
    counts = {
        "slots": len(facts.logical_slots) + (demand.slots if demand else 0),
        "subscriptions": len(facts.subscriptions or ()) + (demand.subscriptions if demand else 0),
        "replicas": demand.replicas if demand else 0,
    }
    counts["replicas"] += len(cloud.replicas) if counts["replicas"] else 0
    settings = [f"{key}={value}" for key, value in (values or {}).items()]
    extra = "".join(f" --{key} {count}" for key, count in counts.items() if count) + " --set {}" * len(settings)
    create = command(f"param-group create {{}} --{cloud.kind} {{}}{extra}", name, cloud.identifier, *settings)
    attach = command(f"param-group attach {{}} --{cloud.kind} {{}} --reboot", name, cloud.identifier)
    return f"{create}, then {attach}"


def change(facts: Facts, name: str, value: str) -> str:
    """Return how to give a parameter a value (an empty one: to take it away), and what brings it into force."""
    cloud = facts.cloud
    if cloud is not None and cloud.has_default_group:
        # What has a sizing rule is sized by `create` itself.
        return own_group(facts, {} if name in sizing.SIZED_PARAMETERS else {name: value})
    static = is_static(facts, name)
    if facts.is_managed:
        group = cloud.parameter_group if cloud is not None else "GROUP"
        if not value:
            return command("param-group reset {} {}", group, name)
        return command("param-group set {} {}", group, f"{name}={value}") + (
            f", then {reboot(facts)}" if static else ""
        )
    text = value if name == "output_plugin_libraries" else "'" + value.replace("'", "''") + "'"
    then = "restart the server" if static else "SELECT pg_catalog.pg_reload_conf()"
    return f"ALTER SYSTEM SET {name} = {text}, then {then}"


def is_static(facts: Facts, name: str) -> bool:
    """Say whether a change of a parameter needs a restart; where nobody says, it is said to."""
    parameter = (facts.parameters or {}).get(name)
    if parameter is not None:
        return parameter.apply_type != "dynamic"
    setting = (facts.settings or {}).get(name)
    return setting is None or setting.is_static
