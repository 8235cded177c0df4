"""``snapshot pause``, ``resume`` and ``cancel``: one message each in the stream of the slot."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from rdsrepl.cli.command_classes import WriteCommand
from rdsrepl.cli.confirm import confirm_and_apply
from rdsrepl.cli.snapshot.states import Ids, SlotOption, StateOption, found, known_snapshots
from rdsrepl.cli.targets import database_target
from rdsrepl.plan import Plan
from rdsrepl.snapshot.requests import Control, Verb
from rdsrepl.snapshot.state import parse_place


def _control(ctx: typer.Context, verb: Verb, ids: Sequence[str], slot: str | None, state: str | None) -> None:
    from rdsrepl.postgres import connection
    from rdsrepl.snapshot import plans

    target = database_target(ctx)
    with connection.open(target) as conn:
        known = known_snapshots(conn, slot, state)
        places = {one: found(known, one, slot) for one in dict.fromkeys(ids)}
        each = [
            plans.control(conn, Control(verb, one, name), known=states, state=parse_place(state))
            for one, (name, states) in places.items()
        ]
    confirm_and_apply(ctx, each[0] if len(each) == 1 else _together(verb, each), target=target)


def _together(verb: Verb, each: Sequence[Plan]) -> Plan:
    """Return one plan for several snapshots; those that are already as wanted have no step."""
    return Plan(
        f"{verb} {len(each)} snapshots",
        tuple(step for plan in each for step in plan.steps),
        tuple(dict.fromkeys(warning for plan in each for warning in plan.warnings)),
        unchanged="they are already as wanted",
        independent=True,
    )


def pause(ctx: typer.Context, snapshots: Ids, slot: SlotOption = None, state: StateOption = None) -> None:
    """Pause snapshots; their cursors stay, and the stream goes on.

    Example: rdsrepl snapshot pause orders-3f9a --yes
    """
    _control(ctx, Verb.pause, snapshots, slot, state)


def resume(ctx: typer.Context, snapshots: Ids, slot: SlotOption = None, state: StateOption = None) -> None:
    """Resume snapshots: paused ones at their cursors, failed ones at the start of their unfinished tables.

    Example: rdsrepl snapshot resume orders-3f9a --yes
    """
    _control(ctx, Verb.resume, snapshots, slot, state)


def cancel(ctx: typer.Context, snapshots: Ids, slot: SlotOption = None, state: StateOption = None) -> None:
    """Cancel snapshots; the rows that were written stay in the output, and the stream goes on.

    Example: rdsrepl snapshot cancel orders-3f9a --yes
    """
    _control(ctx, Verb.cancel, snapshots, slot, state)


def register(app: typer.Typer) -> None:
    """Add the verbs to ``rdsrepl snapshot``."""
    for verb in (pause, resume, cancel):
        app.command(cls=WriteCommand)(verb)
