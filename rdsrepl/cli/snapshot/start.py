"""``snapshot start``: request a snapshot of tables, and wait for its end if wanted."""

from __future__ import annotations

import re
import shlex
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.command_classes import WriteCommand
from rdsrepl.cli.completion import complete_publication, complete_published_table, complete_slot, complete_target
from rdsrepl.cli.confirm import confirm_and_apply
from rdsrepl.cli.console import note
from rdsrepl.cli.context import apply_options
from rdsrepl.cli.options import flag_option, option_parser
from rdsrepl.cli.progress import Progress
from rdsrepl.cli.saved_plans import pinned
from rdsrepl.cli.snapshot.listing import print_snapshot
from rdsrepl.cli.snapshot.states import StateOption, known_snapshots
from rdsrepl.cli.targets import database_target, other_target
from rdsrepl.errors import BadValue, Error, Interrupted, NotFound, Unreachable
from rdsrepl.lsn import Lsn
from rdsrepl.snapshot import requests
from rdsrepl.snapshot.overview import TableProgress, progress, waits_for
from rdsrepl.snapshot.requests import Method, Request
from rdsrepl.snapshot.state import SnapshotState, Status, parse_place
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.config import Target

_POLL_SECONDS: Final = 0.5
_RATE: Final = re.compile(r"([1-9]\d{0,9})([kKmM]?)(?:/s)?")


def _parse_rate(text: str) -> int:
    """Return the rows per second of ``20000/s``, ``20000`` or ``20k``.

    Raises:
        BadValue: it is not a rate.
    """
    match = _RATE.fullmatch(text.replace(",", "").strip())
    rows = int(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2].lower()] if match else 0
    if not 1 <= rows <= requests.MAX_ROWS_PER_SECOND:
        raise BadValue(f"{text!r} is not a number of rows per second", hint="for example 20000/s")
    return rows


def start(
    ctx: typer.Context,
    slot: Annotated[
        str,
        typer.Option(
            "--slot",
            metavar="SLOT",
            help="Name the slot into whose stream the rows are written.",
            autocompletion=complete_slot,
            show_default=False,
        ),
    ],
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table",
            metavar="TABLE",
            help="Write the rows of this table; may be repeated.",
            autocompletion=complete_published_table,
            show_default=False,
        ),
    ] = None,
    all_: Annotated[bool, flag_option("--all", help="Write the rows of all tables of the publications.")] = False,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="SQL",
            help="Write only the rows that meet this condition; allow it with slot tail --allow-snapshot-conditions.",
        ),
    ] = None,
    chunk: Annotated[
        int,
        typer.Option(
            "--chunk", metavar="N", min=1, max=requests.MAX_CHUNK_ROWS, help="Read at most N rows with one statement."
        ),
    ] = requests.DEFAULT_CHUNK_ROWS,
    rate: Annotated[
        int | None,
        typer.Option(
            "--rate",
            metavar="N/s",
            parser=option_parser(_parse_rate),
            help="Read at most N rows per second.",
            show_default=False,
        ),
    ] = None,
    read_from: Annotated[
        str | None,
        typer.Option(
            "--read-from",
            metavar="TARGET",
            help="Read the rows from this replica: a target of slot tail's config file, or an instance of its account.",
            autocompletion=complete_target,
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            "--method",
            help="Read tables without a key whole by a temporary slot, after a TRUNCATE in the output (slot).",
        ),
    ] = Method.chunks,
    publication: Annotated[
        list[str] | None,
        typer.Option(
            "--publication",
            metavar="NAME",
            help="Check that this publication, which slot tail streams, has the tables; default: any publication.",
            autocompletion=complete_publication,
        ),
    ] = None,
    id_: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Give the snapshot this ID; default: a new one.", show_default=False),
    ] = None,
    state: StateOption = None,
    wait: Annotated[
        bool, flag_option("--wait", help="Show the progress until the snapshot ends; needs the state.")
    ] = False,
) -> None:
    """Write the rows that tables have into the stream of a slot, while it goes on.

    The request is a message in the stream itself: the process of slot tail that reads it writes the rows as op r
    between the changes. It needs no pause, no new slot and no lock. The slot is of pgoutput on PostgreSQL 14 or later;
    each table is published and has a primary key, or is written whole (--method slot).

    Example: rdsrepl snapshot start --slot orders_cdc --table public.items --rate 20000/s --wait
    """
    from rdsrepl.postgres import connection
    from rdsrepl.snapshot import plans

    if table and all_:
        raise BadValue("--table and --all cannot be used together", hint="omit one of them")
    if not table and not all_:
        raise BadValue("no table is named", hint="add --table TABLE, or --all for all tables of the publications")
    tables = tuple(table or ())
    replica = _replica(ctx, read_from)
    snapshot = pinned(ctx, "id", id_ or requests.new_id(tables[0] if tables else "all"))
    if not requests.is_id(snapshot):
        raise BadValue(
            f"--id {snapshot} is not an ID", hint="up to 63 lower-case letters, digits, hyphens and underscores"
        )
    request = Request(snapshot, slot, tables, where, chunk, rate, read_from, method)
    target = database_target(ctx)
    with connection.open(target) as conn:
        known = known_snapshots(conn, slot, state)[slot]
        plan = plans.start(conn, request, publications=publication or (), known=known, state=parse_place(state))
        if replica is not None and read_from is not None:
            with connection.open(replica) as other:
                plans.require_replica(conn, other, read_from)
    waits = wait and not apply_options(ctx).plans_only
    results = confirm_and_apply(ctx, plan, target=target, reports=not waits)
    if waits:
        _wait(ctx, target, request, state, is_sent=bool(results))
    elif results:
        note(ctx, f"next: {_watching(request, state)}")


def _replica(ctx: typer.Context, read_from: str | None) -> Target | None:
    """Return the replica that the process of the slot will read.

    Raises:
        BadValue: it is not the name of a target or an instance.
    """
    if read_from is None:
        return None
    if not requests.is_target_name(read_from):
        raise BadValue(
            "--read-from takes a name, because the request is readable for everybody who reads the stream",
            hint="give a target of the config file, or an instance of the account",
        )
    return other_target(ctx, read_from, "--read-from")


def _wait(ctx: typer.Context, target: Target, request: Request, state: str | None, *, is_sent: bool) -> None:
    """Show the progress until the snapshot ends, then print it.

    Raises:
        Interrupted: Ctrl-C; the snapshot goes on.
        Error: the snapshot failed or was cancelled, or its state is not here.
    """
    shown, began = Progress(ctx), time.monotonic()
    reader = _Reader(target, request, state, is_sent=is_sent)
    try:
        while True:
            one, why = reader.read()
            if one is not None and one.status.has_ended:
                break
            states = [*([] if one is None else _states(one)), *([why] if why else [])]
            shown.update(f"snapshot {request.id}", time.monotonic() - began, states)
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; snapshot {request.id} goes on",
            hint=f"see it: {command('snapshot show {}', request.id)}{_place(request, state)}; "
            f"end it: {command('snapshot cancel {}', request.id)}{_place(request, state)}",
        ) from None
    finally:
        shown.clear()
    print_snapshot(ctx, one)
    if one.status is Status.cancelled:
        raise Error(f"snapshot {request.id} was cancelled")
    if one.status is Status.failed:
        again = command("snapshot resume {}", request.id) + _place(request, state)
        raise Error(f"snapshot {request.id} failed: {one.reason}", hint=f"correct that, then resume it: {again}")
    note(ctx, f"snapshot {request.id} is done")


def _watching(request: Request, state: str | None) -> str:
    """Return the command that shows how far the snapshot is."""
    if state is None:
        return command("snapshot list --watch")
    return command("snapshot list --watch --slot {} --state {}", request.slot, state)


def _place(request: Request, state: str | None) -> str:
    """Return the options that a command about the snapshot needs besides its ID."""
    return "" if state is None else f" --slot {request.slot} --state {shlex.quote(state)}"


class _Reader:
    """Reads the state of a snapshot that was requested."""

    def __init__(self, target: Target, request: Request, state: str | None, *, is_sent: bool) -> None:
        self._target = target
        self._request = request
        self._state = state
        self._is_sent = is_sent
        self._sent_before: Lsn | None = None

    def read(self) -> tuple[SnapshotState | None, str]:
        """Return the snapshot, None if there is none yet, and why nothing happens.

        Raises:
            NotFound: the slot's process has read the request, and there is no state of it.
        """
        from rdsrepl.postgres import connection, slots

        request = self._request
        try:
            with connection.open(self._target) as conn:
                if self._is_sent and self._sent_before is None:
                    self._sent_before = connection.current_lsn(conn)
                # Before the state: a request that the slot's process confirmed is in the state.
                slot = slots.get(conn, request.slot)
                states = known_snapshots(conn, request.slot, self._state)[request.slot]
        except Unreachable as exc:
            return None, f"{exc.message}; trying again"
        inactive = "" if slot.active else f"slot {request.slot} is not active"
        for one in states or ():
            if one.request.id == request.id:
                return one, inactive
        confirmed = slot.confirmed_flush_lsn
        if self._sent_before is not None and confirmed is not None and confirmed >= self._sent_before:
            raise NotFound(
                f"the process that streams slot {request.slot} has read the request, and there is no state of it here",
                hint="give the place where slot tail keeps it: --state FILE or table:SCHEMA.NAME; "
                "another consumer than slot tail makes no snapshot",
            )
        return None, inactive or "slot tail has not read the request yet"


def _states(one: SnapshotState) -> list[str]:
    if one.status in (Status.paused, Status.requested):
        return [one.status.value]
    if (what := waits_for(one)) is not None:
        return [f"waits for {what}"]
    return [_state(row) for row in progress([one]) if row.state == Status.running]


def _state(row: TableProgress) -> str:
    rows, all_rows = counted(row.rows, "row", grouped=True), row.estimated_rows or 0
    if all_rows > row.rows:
        rows = f"{row.rows:,} of {counted(all_rows, 'row', grouped=True)}"
    rate = f", {row.rows_per_second:,.0f}/s" if row.rows_per_second else ""
    left = f", {format_duration(row.left_seconds)} left" if row.left_seconds is not None else ""
    return f"{row.table}: {rows}{rate}{left}"


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl snapshot``."""
    app.command("start", cls=WriteCommand)(start)
