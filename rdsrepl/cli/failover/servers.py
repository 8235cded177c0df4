"""Read the primary and the standbys of a failover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import typer

from rdsrepl import config
from rdsrepl.cli.targets import database_target, other_target
from rdsrepl.errors import Error, Refused
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.failover_servers import FailoverServer

_LIMITS: Final = {"statement_timeout": "15s", "lock_timeout": "2s"}


def read_servers(
    ctx: typer.Context, standbys: Sequence[str], option: str = "--to"
) -> tuple[FailoverServer, tuple[FailoverServer, ...]]:
    """Return the command's own server, which must be the primary, and its standbys.

    Args:
        ctx: the command's context.
        standbys: what the option names, as ``targets.other_target`` takes it.
        option: the option, for errors.

    Raises:
        Refused: a server is not a standby of the primary, or AWS itself keeps the slots of these servers.
        Error: a server is not reachable.
    """
    from rdsrepl.failover import server_rules

    targets = [other_target(ctx, words, option) for words in standbys]
    primary = read_server(database_target(ctx))
    found: list[FailoverServer] = []
    for words, target in zip(standbys, targets, strict=True):
        standby = read_server(target, words, option)
        if problem := server_rules.different_servers(primary, standby):
            raise Refused(problem, hint="name the primary with --instance, -t or --dsn, and its replica with --to")
        found.append(standby)
    return primary, tuple(found)


def selectors(words: str) -> tuple[str, str]:
    """Return the words that select the server of an option in a command of its own."""
    if "=" in words or "://" in words:
        return "--dsn", words
    return ("-t" if words in config.load().targets else "--instance"), words


def read_server(target: Target, words: str = "", option: str = "") -> FailoverServer:
    """Return a server as far as it concerns a failover.

    Args:
        target: the server.
        words: what the option names; empty for the command's own server.
        option: the option, for errors.

    Raises:
        Refused: AWS itself keeps the slots of this server.
        Error: the server is not reachable.
    """
    from rdsrepl.postgres import connection, failover_servers

    try:
        group, instance_id = _instance(target)
        with connection.open(target, settings=_LIMITS) as conn:
            # The label of a connection string is the option, which says nothing in a report.
            label = f"{conn.info.host}:{conn.info.port}" if target.label.startswith("--") else target.label
            server = failover_servers.read(conn, label)
    except Error as exc:
        exc.message = f"{option} {target.label}: {exc.message}" if option not in exc.message else exc.message
        raise
    named = selectors(words) if words else ()
    return replace(server, parameter_group=group, instance_id=instance_id, selectors=named)


def _instance(target: Target) -> tuple[str | None, str | None]:
    """Return the parameter group and the identifier of an instance of RDS; None where the target names none.

    Raises:
        Refused: it is a cluster, whose slots AWS keeps.
    """
    from rdsrepl.aws import locations

    if not target.aws.identifier:
        return None, None
    server = locations.server_of(target)
    if server is None:
        return None, None
    if server.cluster is not None:
        reason = (
            "all instances of an Aurora cluster share one volume, so a failover keeps the slots"
            if server.cluster.kind == "aurora"
            else "RDS copies the slots of a Multi-AZ DB cluster to its readers"
        )
        raise Refused(
            f"{target.label}: {reason}; failover slots and slot pairs are for read replicas of an instance",
            hint=f"check its slots: {command('doctor --cluster {}', server.cluster.cluster_id)}",
        )
    instance = server.instance
    return (None, None) if instance is None else (instance.parameter_group, instance.instance_id)
