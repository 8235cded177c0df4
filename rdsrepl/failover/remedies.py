"""The commands of remedies, for the server on which they are needed. Pure."""

from __future__ import annotations

from typing import Final

from rdsrepl.postgres.failover_servers import FailoverServer
from rdsrepl.text.commands import command

#: a small change that moves the position of every consumer of a database.
NUDGE: Final = "SELECT pg_catalog.pg_logical_emit_message(true, 'rdsrepl.heartbeat', '')"


def on(server: FailoverServer, template: str, *values: object) -> str:
    """Return a command of this program for a server: ``on(standby, "slot drop {}", name)``."""
    option, *value = server.selectors or ("",)
    if not value:
        return command(template, *values)
    return command(f"{option} {{}} {template}", *value, *values)


def change(server: FailoverServer, name: str, value: str) -> str:
    """Return the commands that set a parameter of a server; an empty value resets it."""
    if not server.is_managed:
        shown = "'" + value.replace("'", "''") + "'"
        return f"ALTER SYSTEM SET {name} = {shown}, then SELECT pg_catalog.pg_reload_conf()"
    group, instance_id = server.parameter_group, server.instance_id
    if group is None or instance_id is None:
        known = command("param-group set GROUP {}", f"{name}={value}")
        return f"GROUP is the parameter group of {server.label}: " + (
            known if value else command("param-group reset GROUP {}", name)
        )
    if group.startswith("default."):
        # A default group has no value to reset.
        create = command("param-group create {} --instance {} --set {}", *_own(server), f"{name}={value}")
        return f"{create}, then {command('param-group attach {} --instance {} --reboot', *_own(server))}"
    if not value:
        return command("param-group reset {} {}", group, name)
    return command("param-group set {} {}", group, f"{name}={value}")


def own_group_without(server: FailoverServer, name: str) -> str:
    """Return the commands that give an instance a copy of its parameter group, without one parameter."""
    group, instance_id = _own(server)
    create = command("param-group create {} --instance {} --copy-from {}", group, instance_id, server.parameter_group)
    attach = command("param-group attach {} --instance {} --reboot", group, instance_id)
    return f"{create}, then {command('param-group reset {} {}', group, name)}, then {attach}"


def _own(server: FailoverServer) -> tuple[str, str]:
    instance_id = server.instance_id or "ID"
    return f"{instance_id}-logical", instance_id


def restart(server: FailoverServer) -> str:
    """Return the command that restarts a server."""
    if server.instance_id is not None:
        return command("instance reboot {}", server.instance_id)
    return "reboot it (rdsrepl instance reboot ID)" if server.is_managed else "restart the server"
