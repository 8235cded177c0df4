"""Compare what a stream leaves behind with the tables of its source, exactly, while both go on.

A temporary slot exports a snapshot and names its position: what is visible in the snapshot committed before that
position, and nothing else did. When the stream's own slot has confirmed the position, its output has every change
before it. Both sides are then compared at the same moment of the source's history; no difference is a change on its
way.
"""

from __future__ import annotations

import gzip
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.config import Target
from rdsrepl.errors import NotFound, Refused, TimedOut
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import connection, publications, relations, slots, table_structures, versions
from rdsrepl.postgres.table_structures import TableStructure
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted
from rdsrepl.units import format_duration
from rdsrepl.verify import structure
from rdsrepl.verify.folded_stream import FoldedStream, key_text, parsed
from rdsrepl.verify.links import SubscriptionLink, wait_for
from rdsrepl.verify.results import DifferingRow, TableResult, TableState, Verification
from rdsrepl.verify.row_state import RowState
from rdsrepl.verify.tables import MOST_KEYS

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

# The json format prints values as to_json does with this setting.
_SETTINGS: Final = {"IntervalStyle": "iso_8601"}
_SEEN_EVERY: Final = 10_000


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Which stream to compare, and with what.

    Attributes:
        files: the output of ``slot tail -f json``, in the order in which it was written; ``.gz`` files as well.
        slot: the slot of the stream.
        publication: the publication of the stream.
        tables: compare only these, as SQL writes them.
        is_complete: the stream began with empty tables, or with a snapshot: a row that it lacks is missing.
        columns: name the columns that differ.
        seconds: how long to wait for the snapshot, and for the stream to confirm its position.
    """

    files: tuple[Path, ...]
    slot: str
    publication: str
    tables: tuple[str, ...] = ()
    is_complete: bool = False
    columns: bool = False
    seconds: float = 60.0


def verify(source: Target, options: StreamOptions, progress: Callable[[str, int, int], None]) -> Verification:
    """Compare the rows that a stream leaves behind with the source.

    Raises:
        NotFound: no such slot, publication, table or file.
        Refused: the slot is not in use by a stream.
        TimedOut: the snapshot or the stream's position took too long.
        BadValue: a line is not in the format ``json``.
        Error: a statement failed.
    """
    for path in options.files:
        if not path.is_file():
            raise NotFound(f"no file {path}", hint="give the file that slot tail writes")
    with ExitStack() as stack:
        control = stack.enter_context(connection.open(source))
        tables = _tables(control, options)
        _require_stream(control, options.slot)
        conn = stack.enter_context(connection.open(source, settings=_SETTINGS))
        position = stack.enter_context(_snapshot(source, conn, options.seconds))
        link = SubscriptionLink(control, (), (options.slot,))
        if not wait_for(control, link, position, time.monotonic() + options.seconds):
            raise TimedOut(
                f"slot {options.slot} did not confirm {position} within {format_duration(options.seconds)}",
                hint=f"is its consumer running and not far behind? {command('slot lag {}', options.slot)}",
            )
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="rdsrepl-verify-"))
        folded = FoldedStream(Path(directory) / "rows")
        stack.callback(folded.close)
        for path in options.files:
            with _opened(path) as file:
                folded.fold(file, before=position, where=str(path))
        results = tuple(_compare(conn, folded, table, options, progress) for table in tables)
    label = ", ".join(map(str, options.files))
    return Verification(source.label, label, f"slot {options.slot} up to {position}", results, ())


def _tables(conn: Connection, options: StreamOptions) -> list[TableStructure]:
    publications.get(conn, options.publication)
    sent = table_structures.published(conn, [options.publication])
    wanted = [(found.schema, found.name) for found in (relations.find(conn, text) for text in options.tables)]
    for name in wanted:
        if name not in sent:
            raise NotFound(
                f"publication {options.publication} has no table {structure.sql_name(name)}",
                hint=command("publication show {}", options.publication),
            )
    return [
        replace(table, published_columns=sent[table.full_name][0], row_filter=sent[table.full_name][1])
        for table in table_structures.ls(conn, wanted or list(sent))
    ]


def _require_stream(conn: Connection, name: str) -> None:
    """Check that a consumer reads the slot, and that it gets transactions when they commit.

    Raises:
        NotFound: no such slot.
        Refused: the slot is not in use, or it sends prepared transactions.
    """
    slot = slots.get(conn, name)
    if slot.two_phase:
        raise Refused(
            f"slot {name} sends transactions when they are prepared: its output has changes that are not committed",
            hint="compare the stream of a slot without two_phase",
        )
    if not slot.active:
        raise Refused(
            f"slot {name} is not in use: its stream does not reach the position of the comparison",
            hint=f"start its consumer: {command('slot tail {}', name)}",
        )


@contextmanager
def _snapshot(source: Target, conn: Connection, seconds: float) -> Iterator[Lsn]:
    """Let a connection read the database at one position; yield the position.

    Raises:
        TimedOut: the server waits for transactions that are in progress.
    """
    import psycopg
    from psycopg import sql

    has_lists = connection.server_version(conn) >= versions.REPLICATION_OPTION_LISTS_SINCE
    create = sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput {}").format(
        sql.Identifier(f"rdsrepl_verify_{os.getpid()}"),
        sql.SQL("(SNAPSHOT 'export')" if has_lists else "EXPORT_SNAPSHOT"),
    )
    limited = replace(source, answer_seconds=seconds)
    with connection.open(limited, replication=True) as exporting:
        try:
            row = exporting.execute(create).fetchone()
        except psycopg.OperationalError as exc:
            if not exporting.closed:
                raise
            raise TimedOut(
                f"a snapshot was not ready within {format_duration(seconds)}: the server waits for transactions that "
                "are in progress",
                hint="find them with rdsrepl doctor --only long_transactions, or wait longer with --proof-timeout",
            ) from exc
        assert row is not None
        _, position, snapshot, _ = row
        with conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(connection.text(snapshot))))
            yield Lsn.parse(connection.text(position))


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[bytes]]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        # A tail that goes on may have written a part of its next line.
        yield (line for line in file if line.endswith(b"\n"))


def _compare(
    conn: Connection,
    folded: FoldedStream,
    table: TableStructure,
    options: StreamOptions,
    progress: Callable[[str, int, int], None],
) -> TableResult:
    began = time.monotonic()
    sql_name = structure.sql_name(table.full_name)
    if not table.keys:
        notes = ("it has no unique key on columns that are not null: its rows are not compared",)
        return TableResult(sql_name, TableState.not_proven, 0, not_proven=1, notes=notes)
    key = table.keys[0]
    name = f"{table.schema}.{table.name}"
    rows = folded.add_source(name, _source_rows(conn, table, key, lambda count: progress(sql_name, count, 0)))
    counts = dict.fromkeys(RowState, 0)
    not_in_stream = 0
    named: list[DifferingRow] = []
    for key_of_row, here, there, is_in_stream in folded.pairs(name):
        if not is_in_stream and not options.is_complete:
            not_in_stream += 1
            continue
        state, differing = _state(here, there)
        counts[state] += 1
        if state.is_proven and len(named) < MOST_KEYS:
            named.append(DifferingRow(_key_of(key_of_row), state, differing if options.columns else None))
    note = f"{counted(not_in_stream, 'row')} not compared: the stream has no change of them"
    proven = any(counts[state] for state in RowState if state.is_proven)
    return TableResult(
        sql_name,
        TableState.different if proven else TableState.equal,
        rows,
        counts[RowState.missing],
        counts[RowState.extra],
        counts[RowState.different],
        keys=tuple(named),
        notes=(note,) if not_in_stream else (),
        seconds=time.monotonic() - began,
    )


def _source_rows(
    conn: Connection, table: TableStructure, key: Sequence[str], progress: Callable[[int], None]
) -> Iterator[tuple[str, str]]:
    """Yield the key and the JSON text of each row of the source."""
    from psycopg import sql

    sent = [name for name in table.columns if table.published_columns is None or name in table.published_columns]
    query = sql.SQL("SELECT row_to_json(r)::text FROM (SELECT {columns} FROM {only}{table} AS t {where}) r").format(
        columns=sql.SQL(", ").join(sql.Identifier("t", name) for name in sent),
        only=sql.SQL("" if table.relkind == "p" else "ONLY "),
        table=sql.Identifier(table.schema, table.name),
        where=sql.SQL("" if table.row_filter is None else f"WHERE ({table.row_filter})"),
    )
    with conn.cursor(name="rdsrepl_verify") as cursor:
        cursor.itersize = _SEEN_EVERY
        for count, (text,) in enumerate(cursor.execute(query), 1):
            row = parsed(text)
            yield key_text({name: row[name] for name in key}), text
            if count % _SEEN_EVERY == 0:
                progress(count)


def _state(here: str | None, there: Mapping[str, Any] | None) -> tuple[RowState, tuple[str, ...] | None]:
    """Return the state of a row and the columns that differ; a column that the stream does not know is not compared."""
    if here is None:
        return (RowState.cleared if there is None else RowState.extra), None
    if there is None:
        return RowState.missing, None
    row = parsed(here)
    differing = tuple(name for name, value in there.items() if row.get(name) != value)
    return (RowState.different, differing) if differing else (RowState.cleared, None)


def _key_of(text: str) -> dict[str, str]:
    import json

    return {name: str(value)[1:] if isinstance(value, str) else str(value) for name, value in json.loads(text).items()}
