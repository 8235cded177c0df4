"""The interface of output formats, and the parts that several formats share; each format has its own module.

A format creates a writer for each relation, once: its lines are ``%`` templates, so that writing a row is one C call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring as quote
from operator import itemgetter
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

from rdsrepl.tail.formats.fast_lines import LineParts
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.formats.values import AsText, Conversion, Dialect
from rdsrepl.tail.model import Relation, Transaction

#: JSON texts of a row's columns (None: unchanged TOAST), then anything.
Values = tuple[Any, ...]

#: what a session sets so that values have one form, independent of the defaults of the role and the database.
ISO_SETTINGS: Final = {
    "DateStyle": "ISO",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}


class RowWriter(Protocol):
    """Writes the changes of one relation."""

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an INSERT."""
        ...

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an UPDATE; OLD is the old key, or with WHOLE the old row."""
        ...

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a DELETE; OLD is the old key, or with WHOLE the old row."""
        ...


class Format(Protocol):
    """Creates the writers of relations, and writes what belongs to no relation."""

    @property
    def dialect(self) -> Dialect:
        """The JSON dialect of values."""
        ...

    @property
    def settings(self) -> Mapping[str, str]:
        """What a session must set so that values have one form."""
        ...

    def conversions(self, relation: Relation) -> list[Conversion]:
        """Return each column's conversion to JSON."""
        ...

    def writer(self, relation: Relation) -> RowWriter:
        """Return the writer of a relation's changes."""
        ...

    def begin(self, tx: Transaction) -> str:
        """Write a transaction's begin; most formats write nothing."""
        ...

    def commit(self, tx: Transaction) -> str:
        """Write a transaction's end; most formats write nothing."""
        ...

    def truncate(
        self, relation: Relation, cascade: bool, restart_identity: bool, lsn: str, tx: Transaction, seq: int
    ) -> str:
        """Write a TRUNCATE of one table."""
        ...

    def message(self, prefix: str, content: bytes, transactional: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a message of ``pg_logical_emit_message``."""
        ...

    def resolution(self, verb: str, gid: str, lsn: str, tx: Transaction, seq: int) -> str:
        """Write the end of a prepared transaction: ``commit_prepared`` or ``rollback_prepared``."""
        ...


@runtime_checkable
class FormatInParts(Protocol):
    """A format whose usual lines are compiled (``fast_lines``)."""

    def of_transaction(self, tx: Transaction) -> tuple[bytes, ...]:
        """Return the pieces that all lines of a transaction share (``fast_lines.Piece``)."""
        ...


@runtime_checkable
class WriterInParts(Protocol):
    """The writer of such a format.

    Attributes:
        parts: the lines that it writes, where they always consist of the same parts.
    """

    parts: LineParts


def template(parts: Sequence[str | int]) -> Callable[[Values], str]:
    """Compile constants (text) and values (column numbers) into a function of a row."""
    text = "".join("%s" if isinstance(part, int) else part.replace("%", "%%") for part in parts)
    numbers = [part for part in parts if isinstance(part, int)]
    if not numbers:
        constant = text % ()
        return lambda values: constant
    if len(numbers) == 1:
        number = numbers[0]
        return lambda values: text % values[number]
    pick = itemgetter(*numbers)
    return lambda values: text % pick(values)


def members(relation: Relation, numbers: Sequence[int]) -> list[str | int]:
    """Return the template parts of a JSON object with these columns."""
    parts: list[str | int] = ["{"]
    for position, number in enumerate(numbers):
        parts += [("," if position else "") + quote(relation.columns[number].name) + ":", number]
    return [*parts, "}"]


def key_numbers(relation: Relation, catalog: Catalog) -> list[int]:
    """Return the columns that identify a row: the replica identity, or with FULL the primary key, if there is one."""
    if relation.key is not None:
        return [n for n, column in enumerate(relation.columns) if column.name in relation.key]
    if relation.replica_identity == "f":
        # pgoutput then flags every column; the primary key identifies the row with fewer columns.
        primary = catalog.primary_key(relation.oid)
        return [n for n, column in enumerate(relation.columns) if column.name in primary]
    return [n for n, column in enumerate(relation.columns) if column.is_key]


class TextMarkingWriter:
    """Wraps the writer of a relation whose values may be written as text: each line lists those columns."""

    __slots__ = ("_inner", "_names", "parts")

    def __init__(self, inner: RowWriter, relation: Relation) -> None:
        self._inner = inner
        if isinstance(inner, WriterInParts):  # a line with a value that is written as text is not compiled
            self.parts = inner.parts
        self._names = [column.name for column in relation.columns]

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an INSERT."""
        return self._inner.insert(new, lsn, self._marked(tx, new), seq)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an UPDATE; a column is listed if its old or its new value is written as text."""
        return self._inner.update(new, old, whole, lsn, self._marked(tx, new, old or ()), seq)

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a DELETE."""
        return self._inner.delete(old, whole, lsn, self._marked(tx, old), seq)

    def _marked(self, tx: Transaction, *rows: Values) -> Transaction:
        numbers = {number for row in rows for number, value in enumerate(row) if type(value) is AsText}
        return tx.with_text([self._names[number] for number in sorted(numbers)]) if numbers else tx


def text_of(content: bytes) -> tuple[str, bool]:
    """Return a message's content as text, or as hex (and True) if it is not UTF-8."""
    try:
        return content.decode(), False
    except UnicodeDecodeError:
        return content.hex(), True


class RowImages:
    """The objects ``key``, ``before`` and ``after`` of a relation, for the JSON formats.

    Attributes:
        relation: the relation.
        key_columns: the numbers of the columns that identify a row.
        key, before_key, before_row, after: template parts.
    """

    __slots__ = ("after", "before_key", "before_row", "key", "key_columns", "relation")

    def __init__(self, relation: Relation, catalog: Catalog) -> None:
        every = list(range(len(relation.columns)))
        key = key_numbers(relation, catalog)
        flagged = [n for n, column in enumerate(relation.columns) if column.is_key]
        self.relation = relation
        self.key_columns = key
        self.key: list[str | int] = members(relation, key) if key else ["null"]
        self.before_key: list[str | int] = members(relation, flagged) if flagged else ["null"]
        self.before_row = members(relation, every)
        self.after = members(relation, every)

    def before(self, whole: bool) -> list[str | int]:
        """Return the parts of ``before``: the whole old row, or its key."""
        return self.before_row if whole else self.before_key

    def known_after(self, new: Values) -> tuple[list[str | int], str]:
        """Return the parts of ``after`` without unchanged TOAST values, and those columns' names as a JSON array."""
        count = len(self.relation.columns)
        known = [n for n in range(count) if new[n] is not None]
        unchanged = [quote(self.relation.columns[n].name) for n in range(count) if new[n] is None]
        return members(self.relation, known), "[" + ",".join(unchanged) + "]"


def with_old_values(values: Values, old: Values) -> Values:
    """Return a row whose unchanged TOAST values are replaced by the old row's."""
    return tuple(b if a is None else a for a, b in zip(values, old, strict=True))


def null_if_unsent(values: Values) -> Values:
    """Return a key with null for each value that was not sent: servers before 13.6 omit a large unchanged key."""
    return tuple("null" if value is None else value for value in values) if None in values else values


class FormatWrapper:
    """The parts of formats that add something to the lines of another one."""

    def __init__(self, inner: Format) -> None:
        """Take the format that writes the lines."""
        self._inner = inner

    @property
    def dialect(self) -> Dialect:
        """The inner format's."""
        return self._inner.dialect

    @property
    def settings(self) -> Mapping[str, str]:
        """The inner format's."""
        return self._inner.settings

    def conversions(self, relation: Relation) -> list[Conversion]:
        """Return the inner format's."""
        return self._inner.conversions(relation)


class ChangesOnly:
    """The parts of formats without lines for the begin and the end of a transaction."""

    dialect: ClassVar[Dialect] = "json"
    settings: ClassVar[Mapping[str, str]] = ISO_SETTINGS

    def __init__(self, catalog: Catalog, *, snapshot: str | None = None) -> None:
        """Create the format.

        Args:
            catalog: looks up types.
            snapshot: the kind of snapshot, if rows are read from tables (``op`` is ``r``) instead of inserted (``c``).
        """
        self._catalog = catalog
        self.insert_op = "c" if snapshot is None else "r"

    def conversions(self, relation: Relation) -> list[Conversion]:
        """Return each column's conversion to JSON."""
        return [self._catalog.conversion(column.type_oid) for column in relation.columns]

    def begin(self, tx: Transaction) -> str:
        """Write nothing."""
        return ""

    def commit(self, tx: Transaction) -> str:
        """Write nothing."""
        return ""


def json_bool(value: bool) -> str:
    """Return a truth value as JSON text."""
    return "true" if value else "false"
