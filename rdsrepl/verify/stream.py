"""Compare what a stream leaves behind with the tables of its source, exactly, while both go on.

A temporary slot exports a snapshot and names its position: what is visible in the snapshot committed before that
position, and nothing else did. When the stream's own slot has confirmed the position, its output has every change
before it. Both sides are then compared at the same moment of the source's history; no difference is a change on its
way. What the output has before the snapshot is made committed before it; it is read first, because the server keeps
WAL and dead rows for a snapshot.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rdsrepl.aws.stream_reader import Start
from rdsrepl.config import Target
from rdsrepl.errors import NotFound, Refused, TimedOut, Unsupported
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import connection, publications, relations, slots, table_structures, versions
from rdsrepl.postgres.table_structures import TableStructure
from rdsrepl.text.commands import command
from rdsrepl.units import format_duration
from rdsrepl.verify import stream_rows, structure
from rdsrepl.verify.folded_stream import FoldedStream, Position
from rdsrepl.verify.links import SlotLink, inserted_lsn, wait_for
from rdsrepl.verify.results import Progress, Verification
from rdsrepl.verify.stream_input import FileInput, KinesisInput, StreamInput

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

# The json format prints values as to_json does with this setting.
_SETTINGS: Final = {"IntervalStyle": "iso_8601"}
_START_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Which stream to compare, and with what.

    Attributes:
        slot: the slot of the stream.
        publication: the publication of the stream.
        files: the output of ``slot tail -f json``, in the order in which it was written; ``.gz`` files as well.
        kinesis: the data stream that has the output instead, by name or ARN.
        start: where to start in it; None is its oldest record.
        tables: compare only these, as SQL writes them.
        is_complete: the stream began with empty tables, or with a snapshot: a row that it lacks is missing.
        columns: name the columns that differ.
        seconds: how long to wait for the snapshot, and for the stream to confirm its position.
    """

    slot: str
    publication: str
    files: tuple[Path, ...] = ()
    kinesis: str | None = None
    start: Start | None = None
    tables: tuple[str, ...] = ()
    is_complete: bool = False
    columns: bool = False
    seconds: float = 60.0


def verify(source: Target, options: StreamOptions, progress: Progress) -> Verification:
    """Compare the rows that a stream leaves behind with the source.

    Raises:
        NotFound: no such slot, publication, table or file.
        Refused: the slot is not in use by a stream, or the output is not that of this server.
        TimedOut: the snapshot or the stream's position took too long.
        BadValue: a line is not in the format ``json``.
        Unsupported: a row has a JSON value that is nested deeper than Python goes.
        Error: a statement failed.
    """
    with _limited_nesting(), ExitStack() as stack:
        lines = _input(stack, source, options)
        control = stack.enter_context(connection.open(source))
        tables = _tables(control, options)
        _require_stream(control, options.slot, min(options.seconds, _START_SECONDS))
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="rdsrepl-verify-"))
        folded = FoldedStream(Path(directory) / "rows", in_one_order=options.kinesis is None)
        stack.callback(folded.close)
        lines.read_present(folded, progress)
        progress("waiting", "for a snapshot of the source")
        conn = stack.enter_context(connection.open(source, settings=_SETTINGS))
        position = stack.enter_context(_snapshot(source, conn, options.seconds))
        progress("waiting", f"until slot {options.slot} has confirmed {position.lsn}")
        now = _confirmed(control, position, options)
        lines.read_before(folded, position, now, progress)
        _require_same_server(folded.latest, Position(position.timeline, inserted_lsn(control)))
        since = None if options.is_complete else lines.known_since()
        results = tuple(
            stream_rows.compare(conn, folded, table, since=since, names_columns=options.columns, progress=progress)
            for table in tables
        )
    link = f"slot {options.slot} up to {position.lsn}"
    return Verification(source.label, lines.label, link, results, ())


def _require_same_server(latest: Position, end: Position) -> None:
    """Check that the source can have written the changes of the stream.

    Raises:
        Refused: it cannot.
    """
    if latest > end:
        raise Refused(
            f"the stream has a change at {latest.lsn} of timeline {latest.timeline}, and the WAL of the source ends at "
            f"{end.lsn} of timeline {end.timeline}: it is not the server that the stream comes from",
            hint="name the server that the slot is on with --source, and the output of that slot with --stream",
        )


@contextmanager
def _limited_nesting() -> Iterator[None]:
    """Name the reason where a value is nested too deep: about 300 levels of PostgreSQL's thousands can be compared."""
    try:
        yield
    except RecursionError:
        raise Unsupported(
            "a row has a JSON value that is nested too deep to be compared",
            hint="leave its table out of the stream (slot tail --table), and compare the other tables",
        ) from None


def _input(stack: ExitStack, source: Target, options: StreamOptions) -> StreamInput:
    if options.kinesis is None:
        return FileInput(stack, options.files)
    start = options.start or Start("TRIM_HORIZON")
    return KinesisInput(stack, source.aws, options.kinesis, start, is_complete=options.is_complete)


def _confirmed(control: Connection, position: Position, options: StreamOptions) -> Position:
    """Wait until the slot has confirmed a position; return the end of the source's WAL.

    Raises:
        TimedOut: it did not.
    """
    link = SlotLink(control, (options.slot,))
    if not wait_for(control, link, position.lsn, time.monotonic() + options.seconds):
        raise TimedOut(
            f"slot {options.slot} did not confirm {position.lsn} within {format_duration(options.seconds)}",
            hint=f"is its consumer running and not far behind? {command('slot lag {}', options.slot)}",
        )
    return Position(position.timeline, inserted_lsn(control))


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
        if wanted or not table.has_snapshot_state
    ]


def _require_stream(conn: Connection, name: str, seconds: float) -> None:
    """Check that a consumer reads the slot, and that it gets transactions when they commit.

    A consumer that was started just before, or that connects again, has some seconds.

    Raises:
        NotFound: no such slot.
        Refused: the slot is not in use, or it sends prepared transactions.
    """
    deadline = time.monotonic() + seconds
    while not (slot := slots.get(conn, name)).active and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
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
def _snapshot(source: Target, conn: Connection, seconds: float) -> Iterator[Position]:
    """Let a connection read the database at one position; yield the position.

    Raises:
        TimedOut: the server waits for transactions that are in progress.
    """
    import psycopg
    from psycopg import sql

    has_lists = connection.server_version(conn) >= versions.REPLICATION_OPTION_LISTS_SINCE
    create = sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput {}").format(
        # Not by the process ID: processes of several containers can have the same one.
        sql.Identifier(f"rdsrepl_verify_{secrets.token_hex(8)}"),
        sql.SQL("(SNAPSHOT 'export')" if has_lists else "EXPORT_SNAPSHOT"),
    )
    limited = replace(source, answer_seconds=seconds)
    with connection.open(limited, replication=True) as exporting:
        system = exporting.execute("IDENTIFY_SYSTEM").fetchone()
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
        assert row is not None and system is not None
        _, position, snapshot, _ = row
        with conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(connection.text(snapshot))))
            yield Position(int(connection.text(system[1])), Lsn.parse(connection.text(position)))
