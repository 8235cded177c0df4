"""The rows of a chunk, as COPY sent them, until they are lines at the chunk's marker.

Most rows of a chunk are not changed while it waits. They stay as the bytes of COPY and are converted by columns
(``copy_lines``), when the marker's position is known. Only rows with the keys of recorded changes are read one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rdsrepl.lsn import Lsn
from rdsrepl.snapshot.chunk_table import ChunkTable
from rdsrepl.snapshot.recorded_changes import Applied, Key, RecordedChanges, Row
from rdsrepl.tail.formats.base import Format, FormatInParts, TextMarkingWriter, WriterInParts
from rdsrepl.tail.formats.copy_lines import BlockFields, CopyLines
from rdsrepl.tail.formats.fast_lines import now_members
from rdsrepl.tail.formats.row_parsers import compile_copy_row
from rdsrepl.tail.model import InPlace, Transaction


class RowFormat:
    """How the rows of a table are read from COPY, and written as lines.

    Attributes:
        table: the table.
        key_numbers: where the key's columns are in a row, in the order of the table.
        needs_catalog: whether values are converted with definitions of the catalog, which are those of the present.
    """

    def __init__(self, table: ChunkTable, fmt: Format, *, lenient: bool) -> None:
        """Compile the functions.

        Args:
            table: the table.
            fmt: the format for rows of a snapshot.
            lenient: the database's text may not be UTF-8.
        """
        relation = table.relation
        conversions, writer = fmt.conversions(relation), fmt.writer(relation)
        self.table = table
        self.key_numbers = sorted(table.key_numbers)
        self._errors = "surrogateescape" if lenient else "strict"
        self._width = len(relation.columns)
        self._parse = compile_copy_row(conversions, fmt.dialect)
        self._parse_key = compile_copy_row([conversions[number] for number in self.key_numbers], fmt.dialect)
        #: writes a TRUNCATE: relation, cascade, restart identity, position, transaction and number.
        self.truncate = fmt.truncate
        self._in_parts = fmt if isinstance(fmt, FormatInParts) else None
        self._by_columns: CopyLines | None = None
        self.needs_catalog = any(conversion.may_be_text for conversion in conversions)
        if self.needs_catalog:
            writer = TextMarkingWriter(writer, relation)
        elif isinstance(writer, WriterInParts) and writer.parts.insert is not None and self._in_parts is not None:
            self._by_columns = CopyLines(writer.parts.insert, conversions, fmt.dialect, lenient=lenient)
        self._insert = writer.insert

    def keys(self, copied: bytes) -> list[Key]:
        """Return the keys of rows, each with its newline."""
        fields = copied.replace(b"\n", b"\t").split(b"\t")[:-1]
        columns = [fields[number :: self._width] for number in self.key_numbers]
        lines = columns[0] if len(columns) == 1 else map(b"\t".join, zip(*columns, strict=True))
        return [self._parse_key(line.decode("utf-8", self._errors)) for line in lines]

    def row(self, copied: bytes) -> Row:
        """Return the JSON texts of a row without its newline."""
        return self._parse(copied.decode("utf-8", self._errors))

    def line(self, row: Row, lsn: str, tx: Transaction, seq: int) -> bytes:
        """Return the line of a row."""
        return self._insert(row, lsn, tx, seq).encode("utf-8", "surrogateescape")

    def truncate_line(self, lsn: str, tx: Transaction, seq: int) -> bytes:
        """Return the line of a TRUNCATE of the table."""
        line = self.truncate(self.table.relation, False, False, lsn, tx, seq)
        return line.encode("utf-8", "surrogateescape")

    def lines(self, copied: bytes, lsn: str, tx: Transaction, first: int) -> bytes:
        """Return the lines of rows, each with its newline; the first one has the number FIRST."""
        if self._by_columns is None or self._in_parts is None:
            rows = enumerate(copied.split(b"\n")[:-1], first)
            return b"".join([self.line(self.row(row), lsn, tx, seq) for seq, row in rows])
        pieces = self._in_parts.of_transaction(tx)
        return self._by_columns.lines(copied, first, BlockFields(lsn, int(Lsn.parse(lsn)), pieces, now_members()))


@dataclass(slots=True)
class ChunkRows:
    """The rows of a chunk.

    Attributes:
        format: of the table.
        copied: as COPY sent them, each with its newline.
        count: how many rows.
        places: which row has which key; empty for a table without a key.
        converted: all rows, if the format needs the catalog.
    """

    format: RowFormat
    copied: bytes
    count: int
    places: dict[Key, int]
    converted: list[Row] | None

    @classmethod
    def of(cls, fmt: RowFormat, lines: Sequence[bytes]) -> ChunkRows:
        """Return the rows of COPY's lines."""
        copied = b"".join(lines)
        places = dict(zip(fmt.keys(copied), range(len(lines)), strict=True)) if fmt.key_numbers else {}
        converted = [fmt.row(line[:-1]) for line in lines] if fmt.needs_catalog else None
        return cls(fmt, copied, len(lines), places, converted)

    def unchanged(self, lsn: str, tx: Transaction, first: int) -> InPlace:
        """Return the lines of all rows as they are; see ``written``."""
        if self.converted is not None:
            rows = enumerate(self.converted, first)
            return InPlace([self.format.line(row, lsn, tx, seq) for seq, row in rows], self.count)
        return InPlace([self.format.lines(self.copied, lsn, tx, first)] if self.count else [], self.count)

    def written(self, changes: RecordedChanges, lsn: str, tx: Transaction, first: int) -> tuple[InPlace, Applied]:
        """Apply recorded changes and return the lines of what is left.

        Args:
            changes: those that the rows may not contain.
            lsn: the position of the marker.
            tx: the transaction of the marker.
            first: the number of the first line.

        Raises:
            ColumnsChanged: a recorded change has other columns.
        """
        keys = changes.keys(self.format.table.relation)
        touched = list(self.places) if keys is None else [key for key in keys if key in self.places]
        touched.sort(key=self.places.__getitem__)
        copied, count, rows = self.copied, len(self.places), dict[Key, Row]()
        if self.converted is not None:
            rows, count = dict(zip(self.places, self.converted, strict=True)), 0
        elif touched:
            lines: list[bytes | None] = list(copied.split(b"\n")[:-1])
            for key in touched:
                line = lines[self.places[key]]
                assert line is not None
                rows[key], lines[self.places[key]] = self.format.row(line), None
            copied = b"".join([line + b"\n" for line in lines if line is not None])
            count -= len(rows)
        applied = changes.apply(self.format.table.relation, rows)
        parts = [self.format.lines(copied, lsn, tx, first)] if count else []
        parts += [self.format.line(row, lsn, tx, seq) for seq, row in enumerate(rows.values(), first + count)]
        return InPlace(parts, count + len(rows)), applied
