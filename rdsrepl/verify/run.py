"""Compare the tables of two databases."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.config import Target
from rdsrepl.errors import ConnectionLost, Refused, TimedOut
from rdsrepl.plan import Statement
from rdsrepl.postgres import connection, versions
from rdsrepl.postgres.error_mapping import translate
from rdsrepl.units import format_duration
from rdsrepl.verify import limited, privileges, selection, tables
from rdsrepl.verify.links import StandbyLink, wait_until_applied
from rdsrepl.verify.ranges import Pair
from rdsrepl.verify.results import Progress, TableResult, TableState, Verification
from rdsrepl.verify.structure import ComparedTable
from rdsrepl.verify.tables import How, Servers

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

# A range must use the index of the key: a plan that reads the whole table for each range would take far longer.
_SETTINGS: Final = {
    "enable_seqscan": "off",
    "jit": "off",
    "default_transaction_read_only": "on",
    "lc_monetary": "C",
    **limited.SETTINGS,
}


@dataclass(frozen=True, slots=True)
class Options:
    """What to compare, and how.

    Attributes:
        publication: compare the tables, columns and rows that it sends; None is what the target's subscriptions
            receive, without any all tables.
        tables: compare only these, as SQL writes them.
        no_changes: neither side changes.
        exact_text: compare all values as text.
        columns: name the columns that differ.
        proof_seconds: after this time rows that differ are not proven.
        repairs: return the statements that make the rows equal.
    """

    publication: str | None = None
    tables: tuple[str, ...] = ()
    no_changes: bool = False
    exact_text: bool = False
    columns: bool = False
    proof_seconds: float = 60.0
    repairs: bool = False


def verify(
    source: Target, target: Target, options: Options, progress: Progress, *, read_from: Target | None = None
) -> tuple[Verification, tuple[Statement, ...]]:
    """Compare the tables of two databases, and prove each difference; return the statements that repair them as well.

    Args:
        source: a primary.
        target: a subscriber or a standby of the source, or a copy that does not change.
        options: what to compare.
        progress: called while something takes long.
        read_from: a standby of the source, where the ranges are read.

    Raises:
        BadValue: source and target are one database; ``read_from`` is no standby of the source.
        NotFound: no such publication or table.
        TimedOut: ``read_from`` is too far behind.
        Denied: a role may not read a table.
        Refused: how the target gets the changes is not known, its subscription is disabled, or a repair would come
            back to the source.
        Error: a statement failed.
    """
    with ExitStack() as stack:
        here, there = (stack.enter_context(connection.open(one, settings=_SETTINGS)) for one in (source, target))
        selection.require_two_databases(here, there)
        reader = here
        if read_from is not None:
            reader = stack.enter_context(connection.open(read_from, settings=_SETTINGS))
            selection.require_standby(here, reader)
            progress("waiting", "until --read-from has replayed the WAL of the source")
            _wait_for_reader(here, reader, options.proof_seconds)
        chosen = _select(here, there, options)
        for conn, place in ((here, source), (reader, read_from or source), (there, target)):
            privileges.require_readable(conn, place.label, chosen.tables)
        oldest = min(connection.server_version(conn) for conn in (here, there))
        how = How(
            oldest >= versions.RECORD_HASHES_SINCE,
            options.exact_text,
            options.columns,
            options.proof_seconds,
            options.repairs,
        )
        pair = Pair(reader, there)
        stack.callback(pair.close)
        if options.repairs and chosen.back is not None:
            raise Refused(
                f"the source gets the changes of the target by {chosen.back.description}: what --repair writes there "
                "would come back",
                hint="disable that subscription first, or correct the rows by hand",
            )
        servers = Servers(pair, here, chosen.link, chosen.back)
        results = [_compare(servers, table, how, progress, chosen) for table in chosen.tables]
    compared = tuple(result for result, _ in results)
    found = Verification(source.label, target.label, chosen.link.description, compared, chosen.findings)
    return found, tuple(step for _, steps in results for step in steps)


def _select(source: Connection, target: Connection, options: Options) -> selection.Selection:
    """Return the tables to compare; listing those of a publication waits for a session that locks one of them.

    Raises:
        TimedOut: it waited too long.
    """
    import psycopg

    try:
        return selection.select(
            source, target, publication=options.publication, only=options.tables, no_changes=options.no_changes
        )
    except psycopg.errors.QueryCanceled as exc:
        raise TimedOut(
            "the list of tables was not ready within 4s: a session may hold an ACCESS EXCLUSIVE lock on one of them",
            hint="find it with rdsrepl doctor --only long_transactions, and run the command again",
            sqlstate=exc.sqlstate,
        ) from exc


def _wait_for_reader(source: Connection, reader: Connection, seconds: float) -> None:
    """Wait until the standby has what the source has now: with an older state, a difference could be missed.

    Raises:
        TimedOut: the standby is too far behind.
    """
    if not wait_until_applied(source, StandbyLink(reader), time.monotonic() + seconds):
        raise TimedOut(
            f"--read-from did not replay the WAL of the source within {format_duration(seconds)}",
            hint="omit --read-from, or wait longer with --proof-timeout",
        )


def _compare(
    servers: Servers, table: ComparedTable, how: How, progress: Progress, chosen: selection.Selection
) -> tuple[TableResult, tuple[Statement, ...]]:
    import psycopg

    if (table.schema, table.name) in chosen.unready:
        notes = ("its initial copy is not complete",)
        return TableResult(table.sql_name, TableState.not_proven, 0, not_proven=1, notes=notes), ()
    try:
        return tables.compare(servers, table, how, progress)
    except psycopg.Error as exc:
        if (lost := servers.lost()) is not None:
            failure = translate(exc)
            raise ConnectionLost(
                f"{lost}: {failure.message}", hint="run the command again; nothing was changed", sqlstate=exc.sqlstate
            ) from exc
        if exc.sqlstate is None:
            raise
        # Permissions, a table that was dropped, a lock: the other tables can still be compared.
        failure = translate(exc)
        notes = (f"not compared: {failure.message} [{exc.sqlstate}]",)
        return TableResult(table.sql_name, TableState.not_proven, 0, not_proven=1, notes=notes), ()
