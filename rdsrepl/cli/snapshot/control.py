"""``snapshot pause``, ``resume`` and ``cancel``: one message each in the stream of the slot."""

from __future__ import annotations

import typer

from rdsrepl.cli.command_classes import WriteCommand
from rdsrepl.cli.confirm import confirm_and_apply
from rdsrepl.cli.snapshot.states import Id, SlotOption, StateOption, found, known_snapshots
from rdsrepl.cli.targets import database_target
from rdsrepl.snapshot.requests import Control, Verb


def _control(ctx: typer.Context, verb: Verb, snapshot: str, slot: str | None, state: str | None) -> None:
    from rdsrepl.postgres import connection
    from rdsrepl.snapshot import plans

    target = database_target(ctx)
    with connection.open(target) as conn:
        name, known = found(known_snapshots(conn, slot, state), snapshot, slot)
        plan = plans.control(conn, Control(verb, snapshot, name), known=known)
    confirm_and_apply(ctx, plan, target=target)


def pause(ctx: typer.Context, snapshot: Id, slot: SlotOption = None, state: StateOption = None) -> None:
    """Pause a snapshot; its cursor stays, and the stream goes on.

    Example: rdsrepl snapshot pause orders-3f9a --yes
    """
    _control(ctx, Verb.pause, snapshot, slot, state)


def resume(ctx: typer.Context, snapshot: Id, slot: SlotOption = None, state: StateOption = None) -> None:
    """Resume a paused or failed snapshot at its cursor.

    Example: rdsrepl snapshot resume orders-3f9a --yes
    """
    _control(ctx, Verb.resume, snapshot, slot, state)


def cancel(ctx: typer.Context, snapshot: Id, slot: SlotOption = None, state: StateOption = None) -> None:
    """Cancel a snapshot; the rows that were written stay in the output, and the stream goes on.

    Example: rdsrepl snapshot cancel orders-3f9a --yes
    """
    _control(ctx, Verb.cancel, snapshot, slot, state)


def register(app: typer.Typer) -> None:
    """Add the verbs to ``rdsrepl snapshot``."""
    for verb in (pause, resume, cancel):
        app.command(cls=WriteCommand)(verb)
