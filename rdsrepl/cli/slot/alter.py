"""``rdsrepl slot alter``: make an existing slot a failover slot, while its consumer runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from rdsrepl.cli.command_classes import WriteCommand
from rdsrepl.cli.completion import complete_slot, complete_target
from rdsrepl.cli.confirm import confirm_and_apply
from rdsrepl.cli.options import duration_option, flag_option
from rdsrepl.cli.targets import database_target, other_target
from rdsrepl.errors import NotFound, Refused, UsageError

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.plan import Plan
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.subscriptions import Subscription


def alter(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The slot.", autocompletion=complete_slot, show_default=False)
    ],
    failover: Annotated[
        bool | None,
        typer.Option(
            "--failover/--no-failover", help="Synchronize the slot to standbys, or end that (17+).", show_default=False
        ),
    ] = None,
    interrupt: Annotated[
        bool, flag_option("--interrupt", help="Disconnect the consumer once if it uses the slot.")
    ] = False,
    subscriber: Annotated[
        str | None,
        typer.Option(
            "--subscriber",
            metavar="TARGET",
            help="Change the subscription of this server, which uses the slot, and the slot with it.",
            autocompletion=complete_target,
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, duration_option("--timeout", help="Time out after this long: the server waits for the consumer.")
    ] = 30.0,
) -> None:
    """Make a slot a failover slot, or an ordinary one again; it loses no change.

    The server makes the change only while no consumer uses the slot. The command waits for that. With --interrupt it
    disconnects the consumer, which then continues where it had confirmed. For the slot of a subscription, use
    --subscriber, because a subscription has the same setting.

    Example: rdsrepl slot alter orders_cdc --failover --interrupt
    """
    from rdsrepl.postgres import connection, slot_alter_plans, slots, wal

    if failover is None:
        raise UsageError("nothing to change: --failover or --no-failover is required", hint="add one of them")
    if subscriber is not None and interrupt:
        raise UsageError(
            "--interrupt and --subscriber exclude each other", hint="with --subscriber the subscription is disabled"
        )
    target = database_target(ctx)
    with connection.open(target) as conn:
        slot, server = slots.get(conn, name), wal.get(conn)
        if failover:
            _require_standbys_present(conn, target)
        plan: Plan
        if subscriber is None:
            plan = slot_alter_plans.alter(
                conn, slot, failover=failover, server=server, target=target, interrupt=interrupt,
                timeout_seconds=timeout,
            )  # fmt: skip
        else:
            other, subscription = _subscription(other_target(ctx, subscriber, "--subscriber"), name)
            plan = slot_alter_plans.alter_subscription(
                conn, slot, subscription, failover=failover, server=server, subscriber=other, timeout_seconds=timeout
            )
    confirm_and_apply(ctx, plan, target=target)


def _require_standbys_present(conn: Connection, target: Target) -> None:
    """Make sure that the consumer of a failover slot would get something.

    Raises:
        Refused: the server would wait for a standby that does not stream.
    """
    from rdsrepl.failover import server_rules
    from rdsrepl.postgres import failover_servers

    for finding in server_rules.waiting_for_standbys(failover_servers.read(conn, target.label)):
        raise Refused(f"{finding.subject}: {finding.message}", hint=finding.remedy)


def _subscription(subscriber: Target, slot: str) -> tuple[Target, Subscription]:
    """Return the subscription that uses a slot, and its database.

    Raises:
        NotFound: no subscription of the server uses a slot of this name.
        Refused: several do, so the slots are on different publishers.
    """
    from rdsrepl.postgres import connection, subscriptions

    with connection.open(subscriber) as conn:
        found = [one for one in subscriptions.ls(conn) if one.slot == slot]
    if not found:
        raise NotFound(
            f"--subscriber: no subscription of {subscriber.label} uses slot {slot}",
            hint="name the server with the subscription, or omit --subscriber",
        )
    if len(found) > 1:
        names = ", ".join(f"{one.subname} in {one.database}" for one in found)
        raise Refused(
            f"--subscriber: more than one subscription uses a slot {slot}, of different publishers: {names}",
            hint="on the subscriber: ALTER SUBSCRIPTION NAME DISABLE, SET (failover = true), ENABLE",
        )
    return replace(subscriber, keywords={**subscriber.keywords, "dbname": found[0].database}), found[0]


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl slot``."""
    app.command("alter", cls=WriteCommand)(alter)
