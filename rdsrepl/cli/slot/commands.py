"""``rdsrepl slot``: replication slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.command_classes import ListCommand, ReadCommand, WriteCommand
from rdsrepl.cli.completion import complete_any_slot, complete_slot, complete_target
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options
from rdsrepl.cli.lists import print_database_list
from rdsrepl.cli.options import duration_option
from rdsrepl.cli.saved_plans import pinned
from rdsrepl.cli.targets import database_target
from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.render import Column, Listing, ago, emit, facts, size
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.slots import Slot

#: The modules of the other verbs; each is imported when its verb is used.
VERB_MODULES: Final = {
    "alter": "rdsrepl.cli.slot.alter",
    "tail": "rdsrepl.cli.slot.tail",
    "peek": "rdsrepl.cli.slot.tail",
    "lag": "rdsrepl.cli.slot.lag",
    "watch": "rdsrepl.cli.slot.watch",
    "check": "rdsrepl.cli.slot.check",
    "prune": "rdsrepl.cli.slot.prune",
    "pairs": "rdsrepl.cli.slot.pairs",
    "sync": "rdsrepl.cli.slot.sync",
}

app = typer.Typer(no_args_is_help=True, help="Create, show, stream, advance and drop replication slots.")


class Plugin(StrEnum):
    """What ``--plugin`` takes."""

    pgoutput = "pgoutput"
    wal2json = "wal2json"
    test_decoding = "test_decoding"


Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The slot.", autocompletion=complete_any_slot, show_default=False)
]
LogicalName = Annotated[
    str, typer.Argument(metavar="NAME", help="The slot.", autocompletion=complete_slot, show_default=False)
]


@app.command(cls=WriteCommand)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new slot.", show_default=False)],
    plugin: Annotated[Plugin, typer.Option("--plugin", help="Set the output plugin.")] = Plugin.pgoutput,
    two_phase: Annotated[
        bool, typer.Option("--two-phase", help="Decode prepared transactions (14+).", show_default=False)
    ] = False,
    failover: Annotated[
        bool, typer.Option("--failover", help="Synchronize the slot to standbys (17+).", show_default=False)
    ] = False,
    timeout: Annotated[
        float,
        duration_option("--timeout", help="Time out after this long: the server waits for every running transaction."),
    ] = 60.0,
    pair: Annotated[
        str | None,
        typer.Option(
            "--pair",
            metavar="TARGET",
            help="Create the follower of a slot pair as well, and first, on this other server (16+).",
            autocompletion=complete_target,
        ),
    ] = None,
) -> None:
    """Create a logical slot in the connection's database.

    The server then retains the WAL of all changes until a consumer confirms them, so create the slot when its consumer
    is ready. While the server waits for a running transaction, the command names the session of that transaction.

    Example: rdsrepl slot create orders_cdc --plugin pgoutput --failover
    """
    from rdsrepl.cli.confirm import confirm_and_apply
    from rdsrepl.postgres import connection, slot_plans, slots

    target = database_target(ctx)
    with connection.open(target) as conn:
        plan = slot_plans.create(
            conn, name, plugin=plugin.value, two_phase=two_phase, failover=failover, timeout_seconds=timeout
        )
        if pair is not None:
            from rdsrepl.cli.slot.pairs import creation_of_pair

            wanted = replace(slots.planned(name, plugin.value, conn.info.dbname), two_phase=two_phase)
            plan = creation_of_pair(ctx, plan, wanted, pair, timeout)
    confirm_and_apply(ctx, plan, target=target)


@app.command("list", cls=ListCommand)
def list_(ctx: typer.Context) -> None:
    """List the slots of the server: their consumer, retained WAL and lag, and whether they survive a failover.

    Example: rdsrepl slot list --sort-by -retained
    """
    from rdsrepl.postgres.slots import Slot

    now = datetime.now(UTC)

    def read(conn: Connection) -> Sequence[Slot]:
        from rdsrepl.failover import protection
        from rdsrepl.retention import server_state

        nonlocal now
        state = server_state.read(conn, with_history=False)
        now = state.wal.at
        return protection.with_protection(
            state.slots,
            version=state.wal.version,
            in_recovery=state.wal.in_recovery,
            copied_by_aws=_copied_by_aws(ctx, conn),
        )

    def inactive(slot: Slot) -> str:
        return "" if slot.active else ago(slot.inactive_since, now)

    columns = (
        Column("SLOT", lambda row: row.slot_name, "slot_name", kind="name"),
        Column("PLUGIN", lambda row: row.plugin or "(physical)", "plugin", priority=4),
        Column("DATABASE", lambda row: row.database, "database", priority=3, kind="name"),
        Column("ACTIVE", lambda row: f"PID {row.active_pid}" if row.active else "no", "active"),
        Column("RETAINED", lambda row: size(row.retained_bytes), "retained_bytes", kind="number"),
        Column("LAG", lambda row: size(row.lag_bytes), "lag_bytes", kind="number"),
        Column("WAL", lambda row: row.wal_status, "wal_status"),
        Column("PROTECTED", _protected, "protected", priority=2),
        Column("XMIN AGE", lambda row: row.xid_age, priority=5, kind="number"),
        Column("INACTIVE", inactive, "inactive_since", priority=2),
    )
    print_database_list(ctx, Listing(Slot, columns, "no replication slots"), read)


def _protected(slot: Slot) -> str | None:
    return None if slot.protected is None else "yes" if slot.protected else "no"


def _copied_by_aws(ctx: typer.Context, conn: Connection) -> bool | None:
    """Return whether AWS keeps the slots of the server, from what is known of it already; None where it is not."""
    from rdsrepl.aws import locations

    target = database_target(ctx)
    if target.aws.identifier:
        server = locations.server_of(target)  # described when the connection was opened
        return server is not None and server.cluster is not None
    return None if conn.info.host.endswith(".amazonaws.com") else False


@app.command(cls=ReadCommand)
def show(ctx: typer.Context, name: Name) -> None:
    """Show all columns of one slot.

    Example: rdsrepl slot show orders_cdc
    """
    from rdsrepl.postgres import connection, slots
    from rdsrepl.render import document

    with connection.open(database_target(ctx)) as conn:
        slot, database = slots.get(conn, name), conn.info.dbname

    def table() -> object:
        values = document(slot)
        values.pop("walsender")
        pairs = [(key, value) for key, value in values.items() if value is not None]
        pairs += [("retained", size(slot.retained_bytes)), ("lag", size(slot.lag_bytes))]
        return facts([*pairs, ("holder", slot.holder if slot.active else "none")])

    emit(slot, global_options(ctx).output, table)
    if slot.database is not None and slot.database != database:
        reach = command("slot peek {} --dbname {}", name, slot.database)
        note(ctx, f"the slot belongs to another database, {slot.database}; to see its changes: {reach}")


@app.command(cls=WriteCommand)
def drop(
    ctx: typer.Context,
    name: Name,
    unprotect: Annotated[
        list[str] | None,
        typer.Option("--unprotect", metavar="NAME", help="Drop the slot although the config file protects it."),
    ] = None,
) -> None:
    """Drop an inactive slot; show first what is lost and what is freed.

    An active slot is refused; the error names its consumer. The statement checks again that the slot is inactive and
    at the same position. The drop is written to the audit file.

    Example: rdsrepl slot drop old_cdc --dry-run
    """
    from rdsrepl.cli.confirm import confirm_and_apply
    from rdsrepl.cli.slot.drop_audit import SlotAudit, require_unprotected
    from rdsrepl.postgres import connection, slot_plans, slots, wal

    target = database_target(ctx)
    with connection.open(target) as conn:
        slot = slots.get(conn, name)
        plan = slot_plans.drop(slot, server=wal.get(conn), saved=slots.saved_at(conn, [name]).get(name))
        require_unprotected(name, target, frozenset(unprotect or ()))
        audit = SlotAudit(ctx, conn, "slot drop", {name: slot})
    with audit:
        confirm_and_apply(ctx, plan, target=target, recorder=audit)


@app.command(cls=WriteCommand)
def advance(
    ctx: typer.Context,
    name: LogicalName,
    lsn: Annotated[str | None, typer.Argument(metavar="LSN", help="The new position.", show_default=False)] = None,
    to_current: Annotated[
        bool, typer.Option("--to-current", help="Advance to the server's current position.", show_default=False)
    ] = False,
    timeout: Annotated[
        float,
        duration_option("--timeout", help="Time out after this long: the server decodes all skipped changes."),
    ] = 600.0,
) -> None:
    """Advance a slot without reading it: no consumer receives the skipped changes.

    The advance is written to the audit file.

    Example: rdsrepl slot advance orders_cdc --to-current
    """
    from rdsrepl.cli.confirm import confirm_and_apply
    from rdsrepl.cli.slot.drop_audit import SlotAudit
    from rdsrepl.postgres import connection, slot_plans, slots, wal

    if (lsn is None) == (not to_current):
        raise BadValue(
            "no position given: an LSN or --to-current is required", hint="rdsrepl slot advance NAME 16/B374D848"
        )
    goal = None if lsn is None else Lsn.parse(lsn)
    target = database_target(ctx)
    with connection.open(target) as conn:
        slot = slots.get(conn, name)
        saved = slots.saved_at(conn, [name]).get(name)
        server = wal.get(conn)
        if to_current:
            server = replace(server, lsn=Lsn.parse(pinned(ctx, "lsn", str(server.lsn))))
        plan = slot_plans.advance(slot, goal, server=server, timeout_seconds=timeout, saved=saved)
        audit = SlotAudit(ctx, conn, "slot advance", {name: slot}, advances=True)
    with audit:
        confirm_and_apply(ctx, plan, target=target, recorder=audit)
