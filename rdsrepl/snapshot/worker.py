"""A process that reads ranges of tables in one exported snapshot and writes them as lines of the output's format.

A process each, because turning values into lines takes most of the time, and threads would share one core.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.config import Target
from rdsrepl.errors import Error
from rdsrepl.postgres.error_mapping import translate
from rdsrepl.snapshot.tables import PageRange, SnapshotTable, copy_statement
from rdsrepl.tail.formats.base import Format, RowWriter, TextMarkingWriter
from rdsrepl.tail.formats.debezium_options import DebeziumOptions
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.formats.values import compile_copy_row
from rdsrepl.tail.model import Transaction
from rdsrepl.tail.options import FormatName
from rdsrepl.tail.pipeline import snapshot_format
from rdsrepl.tail.preflight import PreflightResult

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe
    from multiprocessing.sharedctypes import Synchronized

    from psycopg.sql import Composed

    from rdsrepl.postgres.connection import Connection

_ROWS_PER_BLOCK: Final = 2_000
_BYTES_PER_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the workers of a snapshot have in common; all of it can be sent to another process.

    Attributes:
        target: the database.
        checked: the result of the preflight check.
        snapshot: the name of the exported snapshot.
        tables: the tables.
        format: of the output.
        partition_by: what partition keys consist of; None is no keys.
        debezium: how ``debezium`` writes keys and values.
        transaction: what identifies the rows.
        lsn: the position of the snapshot.
        xid: the first transaction that the snapshot does not see; older definitions of types are those of its rows.
    """

    target: Target
    checked: PreflightResult
    snapshot: str
    tables: tuple[SnapshotTable, ...]
    format: FormatName
    partition_by: str | None
    debezium: DebeziumOptions | None
    transaction: Transaction
    lsn: str
    xid: int


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one range as lines.

    Attributes:
        table: the number of the table.
        lines: the lines of the output; without partition keys all in one text.
        rows: how many rows they have.
        ends_range: whether the range is complete.
    """

    table: int
    lines: list[str]
    rows: int
    ends_range: bool


def work(job: Snapshot, pipe: Pipe, numbers: Synchronized[int]) -> None:
    """Read ranges from PIPE until None comes; send a ``Block`` for each part of one, or the ``Error`` that ended it.

    Args:
        job: the snapshot.
        pipe: to the process that writes the output.
        numbers: the number of rows that have got their ``seq``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all processes; the first one ends the rest
    from rdsrepl.postgres import connection

    catalog = Catalog(job.target, lambda text: pipe.send(text))
    try:
        fmt = snapshot_format(job.checked, job.format, catalog, partition_by=job.partition_by, debezium=job.debezium)
        settings = dict(fmt.settings) | ({"client_encoding": "SQL_ASCII"} if job.checked.lenient_text else {})
        with connection.open(job.target, settings=settings) as conn:
            _use_snapshot(conn, job.snapshot)
            reader = _Reader(conn, job, fmt, catalog, numbers)
            while (wanted := pipe.recv()) is not None:
                for block in reader.blocks(wanted):
                    pipe.send(block)
    except Error as exc:
        pipe.send(exc)
    except (EOFError, BrokenPipeError):
        return  # the other process has ended
    finally:
        catalog.close()


def _use_snapshot(conn: Connection, snapshot: str) -> None:
    from psycopg import sql

    conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))


class _Reader:
    """Reads ranges on one connection."""

    def __init__(
        self, conn: Connection, job: Snapshot, fmt: Format, catalog: Catalog, numbers: Synchronized[int]
    ) -> None:
        self._conn, self._job, self._format, self._catalog, self._numbers = conn, job, fmt, catalog, numbers
        self._compiled: dict[int, tuple[RowWriter, Any]] = {}
        self._errors = "surrogateescape" if job.checked.lenient_text else "strict"
        catalog.xid = job.xid

    def blocks(self, wanted: PageRange) -> Iterator[Block]:
        """Yield the rows of a range."""
        table = self._job.tables[wanted.table]
        writer, parse = self._writer(wanted.table)
        lines: list[bytes] = []
        size = 0
        for line in self._copied(copy_statement(table, wanted)):
            lines.append(line)
            size += len(line)
            if len(lines) >= _ROWS_PER_BLOCK or size >= _BYTES_PER_BLOCK:
                yield self._block(wanted.table, writer, parse, lines, ends_range=False)
                lines, size = [], 0
        yield self._block(wanted.table, writer, parse, lines, ends_range=True)

    def _copied(self, statement: Composed) -> Iterator[bytes]:
        """Yield the lines of a COPY, each with its newline: the server sends one a message.

        libpq is called directly: the iterator of psycopg takes more than twice as long for a row.
        """
        from psycopg import errors, pq
        from psycopg.errors import error_from_result

        pgconn = self._conn.pgconn
        result = pgconn.exec_(statement.as_bytes(self._conn))
        if result.status != pq.ExecStatus.COPY_OUT:
            raise translate(error_from_result(result))
        get = pgconn.get_copy_data
        length, line = get(0)
        while length > 0:
            yield bytes(line)
            length, line = get(0)
        ended = pgconn.get_result()
        if ended is None:
            raise translate(errors.OperationalError("the server ended COPY early"))
        if ended.status != pq.ExecStatus.COMMAND_OK:
            raise translate(error_from_result(ended))
        while pgconn.get_result() is not None:
            pass

    def _writer(self, number: int) -> tuple[RowWriter, Any]:
        if number not in self._compiled:
            table = self._job.tables[number]
            for oid, schema, name in table.types:
                self._catalog.type_named(oid, schema, name)
            self._catalog.batch_received()
            conversions, writer = self._format.conversions(table.relation), self._format.writer(table.relation)
            if any(conversion.may_be_text for conversion in conversions):
                writer = TextMarkingWriter(writer, table.relation)
            self._compiled[number] = writer, compile_copy_row(conversions, self._format.dialect)
        return self._compiled[number]

    def _block(
        self,
        table: int,
        writer: RowWriter,
        parse: Callable[[str], tuple[Any, ...]],
        copied: Sequence[bytes],
        *,
        ends_range: bool,
    ) -> Block:
        with self._numbers.get_lock():
            first = self._numbers.value + 1
            self._numbers.value += len(copied)
        tx, lsn, insert = self._job.transaction, self._job.lsn, writer.insert
        # A newline of a value is escaped.
        texts = b"".join(copied).decode("utf-8", self._errors).split("\n")[:-1]
        lines = [insert(parse(text), lsn, tx, seq) for seq, text in enumerate(texts, first)]
        begin, commit = (self._format.begin(tx), self._format.commit(tx)) if lines else ("", "")
        if self._job.partition_by is None:
            return Block(table, [f"{begin}{''.join(lines)}{commit}"] if lines else [], len(texts), ends_range)
        return Block(table, [line for line in (begin, *lines, commit) if line], len(texts), ends_range)
