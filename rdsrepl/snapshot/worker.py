"""A process that reads ranges of tables in one exported snapshot and writes them as lines of the output's format.

A process each, because turning values into lines takes most of the time, and threads would share one core.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl.config import Target
from rdsrepl.errors import ConnectionLost, Error, MalformedMessage
from rdsrepl.lsn import Lsn
from rdsrepl.postgres.error_mapping import translate
from rdsrepl.snapshot.tables import SnapshotTable, TableRange, copy_statement
from rdsrepl.tail.formats.base import Format, FormatInParts, TextMarkingWriter, WriterInParts
from rdsrepl.tail.formats.copy_lines import BlockFields, CopyLines
from rdsrepl.tail.formats.debezium_options import DebeziumOptions
from rdsrepl.tail.formats.fast_lines import now_members
from rdsrepl.tail.formats.row_parsers import compile_copy_row
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.model import Relation, Transaction
from rdsrepl.tail.options import FormatName
from rdsrepl.tail.pipeline import snapshot_format
from rdsrepl.tail.preflight import PreflightResult
from rdsrepl.tail.xlogdata import MALFORMED

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe
    from multiprocessing.sharedctypes import Synchronized

    from psycopg.sql import Composed

    from rdsrepl.postgres.connection import Connection

# ``write(rows of COPY, number of the first row)`` → lines.
_Write = Callable[[bytes, int], bytes]
_ROWS_PER_BLOCK: Final = 2_000
_BYTES_PER_BLOCK: Final = 512 << 10
_READ_BYTES: Final = 256 << 10
# The table or a column does not exist, or has another type.
_ALTERED: Final = ("3F000", "42P01", "42703", "42704", "42804", "42809", "42883", "42P17")
# The catalog in the snapshot, and as it is now. To older snapshots a table that was rewritten is empty.
_SINCE_SNAPSHOT: Final = """
SELECT pg_catalog.pg_relation_filenode(c.oid) IS NULL,
       coalesce(pg_catalog.pg_relation_filenode(c.oid) = c.relfilenode
                AND pg_catalog.to_regclass(pg_catalog.format('%%I.%%I', n.nspname, c.relname)) = c.oid, false)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s
"""


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
    """Rows of one range; their lines follow it in the pipe, as bytes.

    Attributes:
        table: the number of the table.
        rows: how many rows.
        size: how many bytes the lines have.
        ends_range: whether no rows of the range follow.
        was_altered: whether rows of the range are missing, because the table was altered since the snapshot.
    """

    table: int
    rows: int
    size: int
    ends_range: bool = False
    was_altered: bool = False


def work(pipe: Pipe, numbers: Synchronized[int]) -> None:
    """Take a ``Snapshot`` from PIPE, then ranges until None comes; send blocks, or the ``Error`` that ended it.

    Args:
        pipe: to the process that writes the output.
        numbers: the number of rows that have got their ``seq``.
    """
    try:
        _work(pipe.recv(), pipe, numbers)
    except Error as exc:
        pipe.send(exc)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the other process has ended, or needs none


def _work(job: Snapshot, pipe: Pipe, numbers: Synchronized[int]) -> None:
    from rdsrepl.postgres import connection

    catalog = Catalog(job.target, lambda text: pipe.send(text))
    try:
        fmt = snapshot_format(job.checked, job.format, catalog, partition_by=job.partition_by, debezium=job.debezium)
        settings = dict(fmt.settings) | ({"client_encoding": "SQL_ASCII"} if job.checked.lenient_text else {})
        with connection.open(job.target, settings=settings) as conn:
            _use_snapshot(conn, job.snapshot)
            reader = _Reader(conn, job, fmt, catalog, numbers)
            while (wanted := pipe.recv()) is not None:
                for block, lines in reader.blocks(wanted):
                    pipe.send(block)
                    _write(pipe.fileno(), lines)
    finally:
        catalog.close()


def read_lines(pipe: Pipe, size: int) -> list[bytes]:
    """Return the lines that follow a block in the pipe, in several parts.

    ``Connection.recv_bytes`` takes five times as long for messages of this size.

    Raises:
        EOFError: the process ended.
    """
    parts: list[bytes] = []
    while size:
        part = os.read(pipe.fileno(), min(size, _READ_BYTES))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return parts


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _use_snapshot(conn: Connection, snapshot: str) -> None:
    """Begin a transaction that reads in an exported snapshot.

    Raises:
        ConnectionLost: the snapshot has ended with the connection that exported it.
    """
    from psycopg import errors, sql

    conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
    except (errors.InvalidParameterValue, errors.UndefinedObject, errors.ObjectNotInPrerequisiteState) as exc:
        raise ConnectionLost("the connection that holds the snapshot was lost", hint="run the command again") from exc


class _Reader:
    """Reads ranges on one connection."""

    def __init__(
        self, conn: Connection, job: Snapshot, fmt: Format, catalog: Catalog, numbers: Synchronized[int]
    ) -> None:
        self._conn, self._job, self._format, self._catalog, self._numbers = conn, job, fmt, catalog, numbers
        self._compiled: dict[int, _Write] = {}
        catalog.xid = job.xid

    def blocks(self, wanted: TableRange) -> Iterator[tuple[Block, bytes]]:
        """Yield the rows of a range, and their lines; the last block has none."""
        table = self._job.tables[wanted.table]
        write = self._writer(wanted.table)
        # A rollback to it also ends the lock of the table.
        self._conn.execute("SAVEPOINT range")
        could_read = True
        try:
            for copied in self._copied(copy_statement(table, wanted)):
                rows = copied.count(b"\n")
                lines = self._lines(table, write, copied, rows)
                yield Block(wanted.table, rows, len(lines)), lines
        except Error as exc:
            if exc.sqlstate not in _ALTERED:
                raise
            could_read = False
            self._conn.execute("ROLLBACK TO SAVEPOINT range")
        # COPY holds its lock until the savepoint ends.
        row = self._conn.execute(_SINCE_SNAPSHOT, wanted.part).fetchone()
        assert row is not None
        was_dropped, is_same = row
        was_altered = not was_dropped and not (could_read and is_same)
        self._conn.execute("ROLLBACK TO SAVEPOINT range")
        yield Block(wanted.table, 0, 0, ends_range=True, was_altered=was_altered), b""

    def _copied(self, statement: Composed) -> Iterator[bytes]:
        """Yield the rows of a COPY in blocks.

        libpq is called directly: the iterator of psycopg takes more than twice as long for a row.
        """
        from psycopg import errors, pq
        from psycopg.errors import error_from_result

        pgconn = self._conn.pgconn
        result = pgconn.exec_(statement.as_bytes(self._conn))
        if result.status != pq.ExecStatus.COPY_OUT:
            raise translate(error_from_result(result))
        get = pgconn.get_copy_data
        rows: list[bytes] = []
        size = 0
        length, row = get(0)  # the server sends one a message
        while length > 0:
            rows.append(row.tobytes())
            size += length
            if size >= _BYTES_PER_BLOCK or len(rows) >= _ROWS_PER_BLOCK:
                yield b"".join(rows)
                rows, size = [], 0
            length, row = get(0)
        ended = pgconn.get_result()
        if ended is None:
            raise translate(errors.OperationalError("the server ended COPY early"))
        if ended.status != pq.ExecStatus.COMMAND_OK:
            raise translate(error_from_result(ended))
        while pgconn.get_result() is not None:
            pass
        if rows:
            yield b"".join(rows)

    def _lines(self, table: SnapshotTable, write: _Write, copied: bytes, rows: int) -> bytes:
        if not rows:
            return b""
        with self._numbers.get_lock():
            first = self._numbers.value + 1
            self._numbers.value += rows
        try:
            if not self._job.checked.lenient_text and not copied.isascii():
                copied.decode()
            lines = write(copied, first)
        except MALFORMED as exc:
            raise MalformedMessage(
                f"could not read the rows of {table.name} that COPY sent: {exc}"[:300],
                hint="is a value not valid UTF-8? the server sends what is stored: repair the rows, then run it again",
            ) from exc
        tx = self._job.transaction
        begin, commit = (
            text.encode("utf-8", "surrogateescape") for text in (self._format.begin(tx), self._format.commit(tx))
        )
        return b"".join((begin, lines, commit)) if begin or commit else lines

    def _writer(self, number: int) -> _Write:
        if number not in self._compiled:
            table = self._job.tables[number]
            for oid, schema, name in table.types:
                self._catalog.type_named(oid, schema, name)
            self._catalog.batch_received()
            self._compiled[number] = self._compile(table.relation)
        return self._compiled[number]

    def _compile(self, relation: Relation) -> _Write:
        """Return what writes rows of a relation: by columns, unless a line says which values are text."""
        fmt, tx, lsn, lenient = self._format, self._job.transaction, self._job.lsn, self._job.checked.lenient_text
        conversions, writer = fmt.conversions(relation), fmt.writer(relation)
        if any(conversion.may_be_text for conversion in conversions):
            insert = TextMarkingWriter(writer, relation).insert
            parse = compile_copy_row(conversions, fmt.dialect)
            errors = "surrogateescape" if lenient else "strict"

            def by_rows(copied: bytes, first: int) -> bytes:
                # A newline of a value is escaped.
                rows = enumerate(copied.decode("utf-8", errors).split("\n")[:-1], first)
                lines = "".join([insert(parse(row), lsn, tx, seq) for seq, row in rows])
                return lines.encode("utf-8", "surrogateescape")

            return by_rows
        assert isinstance(fmt, FormatInParts) and isinstance(writer, WriterInParts) and writer.parts.insert
        lines = CopyLines(writer.parts.insert, conversions, fmt.dialect, lenient=lenient).lines
        pieces, position = fmt.of_transaction(tx), int(Lsn.parse(lsn))
        return lambda copied, first: lines(copied, first, BlockFields(lsn, position, pieces, now_members()))
