"""``snapshot create-table``: the table for the state of snapshots."""

from __future__ import annotations

from typing import Annotated

import typer

from rdsrepl.cli.command_classes import WriteCommand
from rdsrepl.cli.confirm import plan_and_apply
from rdsrepl.snapshot.state import parse_table


def create_table(
    ctx: typer.Context,
    table: Annotated[
        str, typer.Argument(metavar="SCHEMA.NAME", help="The new table, in the slot's database.", show_default=False)
    ],
) -> None:
    """Create the table that slot tail --state table:SCHEMA.NAME keeps the state of snapshots in.

    The process can then run on any machine. Connect as the role that runs slot tail: it must own the table. A
    publication for all tables sends the changes of this table as well.

    Example: rdsrepl snapshot create-table rdsrepl.snapshots
    """
    from rdsrepl.snapshot import table_store

    place = parse_table(table)
    plan_and_apply(ctx, lambda conn: table_store.creation(conn, place))


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl snapshot``."""
    app.command("create-table", cls=WriteCommand)(create_table)
