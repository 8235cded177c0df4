"""``rdsrepl failover diff``: what a failover lost, and what consumers were sent that never was."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.command_classes import ReadCommand
from rdsrepl.cli.completion import complete_publication, complete_slot, complete_target
from rdsrepl.cli.console import note, warn
from rdsrepl.cli.context import global_options
from rdsrepl.cli.targets import other_target
from rdsrepl.errors import BadValue, ExitCode
from rdsrepl.render import Column, emit, facts, listing, stacked
from rdsrepl.text.counts import counted, form
from rdsrepl.units import format_size

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.failover.divergence import Fork, LostTransaction, ServerHistory, SlotAtFork

_SHOWN: Final = 20
_NAMED_TABLES: Final = 3
_WAITS_FOR: Final = "synchronized_standby_slots"


class Changes(StrEnum):
    """What ``--format`` takes."""

    json = "json"
    sql = "sql"


@dataclass(frozen=True, slots=True)
class Divergence:
    """The document of the command; ``complete`` is false if a slot hides a part."""

    fork: Fork
    slots: list[SlotAtFork]
    transactions: list[LostTransaction]
    publications: dict[str, tuple[str, ...]]
    complete: bool


def diff(
    ctx: typer.Context,
    old: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="Name the old primary, which still runs: a target, an instance or a connection string.",
            autocompletion=complete_target,
            show_default=False,
        ),
    ],
    new: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="Name the promoted replica: a target, an instance or a connection string.",
            autocompletion=complete_target,
            show_default=False,
        ),
    ],
    changes: Annotated[
        Changes | None,
        typer.Option(
            "--format",
            help="Print the changes instead: json, one object a line as slot tail prints it, or sql to replay.",
            show_default=False,
        ),
    ] = None,
    slot: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Read through this slot of the old primary; may be repeated.",
            autocompletion=complete_slot,
            show_default=False,
        ),
    ] = None,
    publication: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Read these publications; may be repeated. Default: all of the slot's database.",
            autocompletion=complete_publication,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Find the transactions that only the old primary has, and those that its consumers confirmed.

    The old primary must be isolated and still running: its slots keep the WAL. They are read, never consumed. A slot of
    pgoutput shows published tables only. The exit code is 8 if a slot hides a part of the transactions.

    Example: rdsrepl failover diff --old orders --new orders-replica --format sql > lost.sql
    """
    from rdsrepl.failover import divergence
    from rdsrepl.tail import peek

    old_target, new_target = other_target(ctx, old, "--old"), other_target(ctx, new, "--new")
    server = peek.history(old_target, old_target.label)
    at = divergence.fork(server, peek.history(new_target, new_target.label))
    slots = _chosen(old_target, at, slot or ())
    if _nothing_since(old_target, server, at):
        slots = divergence.without_hidden(slots)
        note(ctx, "the old primary has committed nothing since the marker of the switchover, which is before the fork")
    read = [one for one in slots if one.is_read]
    if changes is not None and len(read) > 1:
        names = ", ".join(f"{one.database} ({one.slot_name})" for one in read)
        raise BadValue(f"--format prints one database, and there are slots in {names}", hint="choose with --slot NAME")
    if changes is Changes.sql:
        sys.stdout.write(_sql_head(at))
    found: list[LostTransaction] = []
    published: dict[str, tuple[str, ...]] = {}
    for one in read:
        database = _in_database(old_target, one.database)
        if one.plugin == "pgoutput":
            published[one.database] = tuple(publication or ()) or peek.publications(database)
        found += peek.transactions(
            database,
            one.slot_name,
            server,
            published_by=published.get(one.database, ()),
            start_lsn=at.lsn,
            as_sql=changes is Changes.sql,
            write=_discard if changes is None else _write,
            warn=lambda text: warn(ctx, text),
        )
    for transaction in found:
        divergence.mark_confirmed(transaction, slots)
    found.sort(key=lambda transaction: transaction.commit_lsn)
    result = Divergence(at, slots, found, published, all(not one.hidden_bytes for one in read))
    if changes is None:
        emit(result, global_options(ctx).output, lambda: _report(result))
    _warn(ctx, result)
    if not result.complete:
        raise typer.Exit(ExitCode.WARNING)


def _chosen(target: Target, at: Fork, wanted: Sequence[str]) -> list[SlotAtFork]:
    from rdsrepl.failover import divergence
    from rdsrepl.postgres import connection, settings, slots

    with connection.open(target) as conn:
        held = settings.ls(conn, [_WAITS_FOR]).get(_WAITS_FOR)
        return divergence.choose_slots(
            slots.ls(conn), at, wanted=wanted, hold_back="" if held is None else held.setting
        )


def _nothing_since(target: Target, server: ServerHistory, at: Fork) -> bool:
    """Return whether a switchover of this machine proves that the old primary committed nothing after the fork."""
    from rdsrepl.postgres import connection, write_activity
    from rdsrepl.state import switchovers

    known = switchovers.last(server.system_identifier, before=at.lsn)
    if known is None:
        return False
    with connection.open(target) as conn:
        now = write_activity.read(conn)
    return not now.running and not now.has_ended_since(known.next_xid, known.prepared)


def _in_database(target: Target, name: str) -> Target:
    return replace(target, keywords={**target.keywords, "dbname": name})


def _sql_head(at: Fork) -> str:
    from rdsrepl.tail.formats.sql_format import PREAMBLE

    return (
        f"-- The transactions that only timeline {at.old_timeline} has, from {at.lsn} on, where timeline "
        f"{at.new_timeline} leaves it.\n"
        "-- Read them before you run them: rows may have changed since. psql -v ON_ERROR_STOP=1 -f FILE stops at\n"
        "-- the first transaction that does not fit; the transactions before it are committed.\n" + PREAMBLE
    )


def _write(line: str) -> None:
    sys.stdout.write(line)


def _discard(line: str) -> None:
    """Write nothing."""


def _report(found: Divergence) -> object:
    at = found.fork
    lost = len(found.transactions)
    changes = sum(one.changes for one in found.transactions)
    head = facts(
        [
            ("fork", f"{at.lsn}, where timeline {at.new_timeline} leaves timeline {at.old_timeline}"),
            ("only on the old primary", f"{format_size(at.old_bytes)} of WAL, up to {at.old_lsn}"),
            (
                "lost",
                f"{counted(lost, 'transaction')}, {counted(changes, 'change')}",
            ),
        ]
    )
    slots = (
        Column("SLOT", lambda one: one.slot_name, kind="name"),
        Column("DATABASE", lambda one: one.database, priority=2, kind="name"),
        Column("CONFIRMED", lambda one: one.confirmed_flush_lsn),
        Column("CONFIRMED BEYOND", lambda one: format_size(one.sent_bytes) if one.sent_bytes else "", kind="number"),
        Column("READ", lambda one: "yes" if one.is_read else one.reason or "no", priority=3, kind="prose"),
    )
    columns = (
        Column("COMMIT", lambda one: one.commit_lsn),
        Column("TIME", lambda one: one.commit_time, priority=3),
        Column("XID", lambda one: one.xid, priority=4, kind="number"),
        Column("CHANGES", lambda one: one.changes, kind="number"),
        Column("TABLES", _tables, priority=2, kind="prose"),
        Column("CONFIRMED BY", lambda one: one.confirmed_by, kind="name"),
    )
    rest = [] if lost <= _SHOWN else [f"and {lost - _SHOWN} more: all with -o json"]
    return stacked(
        head,
        "",
        listing(found.slots, slots, empty=""),
        "",
        listing(found.transactions[:_SHOWN], columns, empty="no transaction is lost in what the slots show"),
        *rest,
    )


def _tables(one: LostTransaction) -> str:
    named = [f"{table.schema}.{table.table}" for table in one.tables]
    return ", ".join(named[:_NAMED_TABLES]) + (
        f" and {len(named) - _NAMED_TABLES} more" if named[_NAMED_TABLES:] else ""
    )


def _warn(ctx: typer.Context, found: Divergence) -> None:
    """Say what the consumers have that never was, and what the slots do not show."""
    at = found.fork
    for one in found.slots:
        if one.sent_bytes:
            known = [t for t in found.transactions if one.slot_name in t.confirmed_by]
            named = f"; {len(known)} of these transactions {form(len(known), 'is', 'are')} listed" if known else ""
            warn(
                ctx,
                f"the consumer of {one.slot_name} confirmed up to {one.confirmed_flush_lsn}, "
                f"{format_size(one.sent_bytes)} beyond the fork: it has changes of timeline {at.old_timeline} with a "
                f"commit_lsn of {at.lsn} and later, which do not exist on the new primary{named}",
            )
        if one.hidden_bytes:
            warn(
                ctx,
                f"no slot of database {one.database} shows the transactions between {at.lsn} and "
                f"{one.confirmed_flush_lsn}: they are not in this list",
            )
        if one.is_read and one.plugin == "wal2json":
            note(ctx, f"read through {one.slot_name} (wal2json): NaN and infinity appear as null")
        if one.is_read and one.plugin == "pgoutput":
            names = ", ".join(found.publications[one.database]) or "none"
            note(
                ctx,
                f"read through {one.slot_name} (pgoutput): only tables of publications are seen ({names})",
            )
    databases = ", ".join(sorted({one.database for one in found.slots if one.is_read}))
    note(ctx, f"only databases with a slot are seen: {databases}")


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl failover``."""
    app.command("diff", cls=ReadCommand)(diff)
