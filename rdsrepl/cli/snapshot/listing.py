"""``snapshot list`` and ``snapshot show``: how far each table of a snapshot is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import typer

from rdsrepl.cli.command_classes import ListCommand, ReadCommand
from rdsrepl.cli.context import global_options
from rdsrepl.cli.lists import Rows, print_database_list
from rdsrepl.cli.snapshot.states import Id, SlotOption, StateOption, found, known_snapshots, not_found
from rdsrepl.cli.targets import database_target
from rdsrepl.errors import NotFound
from rdsrepl.render import Column, Listing, emit, facts, listing, stacked, styled
from rdsrepl.snapshot.overview import TableProgress, progress, rows_per_second, waits_for
from rdsrepl.snapshot.state import SnapshotState
from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import shown
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

_STYLES: Final = {"failed": "bold red", "paused": "yellow", "running": "green"}
_EMPTY_HERE: Final = (
    "no snapshots in the state on this machine; if slot tail --state keeps it elsewhere, give the same --state here"
)


def _count(number: float | None) -> str | None:
    return None if number is None else f"{number:,.0f}"


COLUMNS: Final = (
    Column("SNAPSHOT", lambda row: row.snapshot, "snapshot", kind="name"),
    Column("TABLE", lambda row: row.table, "table", kind="name"),
    Column("STATE", lambda row: styled(row.state, _STYLES.get(row.state, "")), "state"),
    Column("ROWS", lambda row: _count(row.rows), "rows", kind="number"),
    Column("OF", lambda row: _count(row.estimated_rows), "estimated_rows", priority=3, kind="number"),
    Column("RATE", lambda row: _rate(row.rows_per_second), "rows_per_second", priority=4, kind="number"),
    Column("CURSOR", lambda row: ", ".join(row.cursor or ()), "cursor", priority=5, kind="name"),
    Column("CONFLICTS", lambda row: _count(row.conflicts), "conflicts", priority=6, kind="number"),
    Column("LEFT", lambda row: _duration(row.left_seconds), "left_seconds", priority=2, kind="number"),
    Column("SLOT", lambda row: row.slot, "slot", priority=7, kind="name"),
)


def _rate(rows_per_second: float | None) -> str | None:
    return None if rows_per_second is None else f"{_count(rows_per_second)}/s"


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else format_duration(seconds)


def list_(ctx: typer.Context, slot: SlotOption = None, state: StateOption = None) -> None:
    """List the snapshots of the database's slots: each table, its rows, rate and time left.

    The state is read from where slot tail keeps it: a file on this machine, or what --state names. OF is an estimate of
    the server's statistics.

    Example: rdsrepl snapshot list --watch
    """
    from rdsrepl.postgres import slots

    def read(conn: Connection) -> Rows:
        known = known_snapshots(conn, slot, state)
        if slot is not None and known[slot] is None:
            slots.get(conn, slot)  # the name may be wrong
        rows = progress(one for states in known.values() for one in states or ())
        waiting = _unread(conn, {row.slot for row in rows if row.state in ("requested", "running")})
        return Rows(rows, below=lambda left: _below(left, waiting))

    empty = _EMPTY_HERE if state is None else f"--state {shown(state)} has no snapshots"
    print_database_list(ctx, Listing(TableProgress, COLUMNS, empty), read)


def _unread(conn: Connection, names: set[str]) -> list[str]:
    """Return which of the slots no process streams."""
    from rdsrepl.postgres import slots

    return [slot.slot_name for slot in slots.ls(conn) if slot.slot_name in names and not slot.active] if names else []


def _below(rows: Sequence[TableProgress], waiting: Sequence[str]) -> list[object]:
    """Return why a snapshot does not go on."""
    lines = {row.snapshot: f"{row.snapshot} {row.state}: {row.reason}" for row in rows if row.reason is not None}
    lines |= {row.snapshot: f"{row.snapshot} waits for {row.waits_for}" for row in rows if row.waits_for is not None}
    lines |= {name: f"slot {name} is not active: its snapshots go on when slot tail streams it" for name in waiting}
    return ["", *lines.values()] if lines else []


def show(ctx: typer.Context, snapshot: Id, slot: SlotOption = None, state: StateOption = None) -> None:
    """Show one snapshot: what was requested, and how far each table is.

    Example: rdsrepl snapshot show orders-3f9a
    """
    from rdsrepl.postgres import connection

    with connection.open(database_target(ctx)) as conn:
        known = known_snapshots(conn, slot, state)
    name, states = found(known, snapshot, slot)
    one = next((each for each in states or () if each.request.id == snapshot), None)
    if one is None and states is not None:
        raise not_found(snapshot, known)
    if one is None:
        raise NotFound(
            f"no state of slot {name} on this machine",
            hint="give the place where slot tail keeps it: --state FILE or table:SCHEMA.NAME",
        )
    print_snapshot(ctx, one)


def print_snapshot(ctx: typer.Context, one: SnapshotState) -> None:
    """Print a snapshot: what was requested, then its tables."""
    request, rows = one.request, progress([one])
    columns = [column for column in COLUMNS if column.heading not in ("SNAPSHOT", "SLOT")]
    pairs = [
        ("snapshot", request.id),
        ("slot", request.slot),
        ("status", one.status.value),
        ("reason", one.reason),
        ("waits for", waits_for(one)),
        ("where", request.where),
        ("chunk", counted(request.chunk_rows, "row", grouped=True)),
        ("limit", None if request.rows_per_second is None else f"{_count(request.rows_per_second)} rows/s"),
        ("read from", request.read_from),
        ("started", one.started_at),
        ("ended", one.ended_at),
        ("rows", _count(sum(row.rows for row in rows))),
        ("rate", _rate(rows_per_second(one))),
    ]
    known = [(label, value) for label, value in pairs if value is not None]
    emit(
        one,
        global_options(ctx).output,
        lambda: stacked(facts(known), "", listing(rows, columns, empty="no tables")),
    )


def register(app: typer.Typer) -> None:
    """Add the verbs to ``rdsrepl snapshot``."""
    app.command("list", cls=ListCommand)(list_)
    app.command("show", cls=ReadCommand)(show)
