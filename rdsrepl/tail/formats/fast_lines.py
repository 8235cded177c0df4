r"""The usual messages of pgoutput → lines, with one regular expression and one ``%`` for a row.

The general way reads a row column by column and then writes it: about fifteen operations of Python for each column.
For each relation, functions are compiled here that do the same for the usual row in about fifteen operations for all
its columns: no value is null or unchanged TOAST, and none needs an escape in JSON. For any other message they return
None, and the general way writes it. Measured on pgbench's tables: 1.6 instead of 4.5 µs of CPU for a change.

A value of a text tuple is ``t``, its length (4 bytes) and its text, and text contains no NUL: output functions return
C strings. A length starts with a NUL (a value is smaller than 16 MiB here), so the first NUL after a value's beginning
belongs to the next column's length, and the byte before it is that column's ``t``. A row of n columns that has n such
places has no null and no unchanged value, which have one byte and no length. That makes the expressions exact. The
length of the last value is compared, so that a message that was cut off is not taken for a whole one.

The functions work on bytes, which are not decoded: UTF-8 has no byte of ASCII within another character. The decoder
checks its whole output for UTF-8.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from struct import Struct
from typing import Any, Final

from rdsrepl.tail.formats.values import AsText, Conversion, Convert, Dialect, ValueKind

#: ``write(message, pieces, seq, now)`` → the line, or None if the message is not a usual one.
Write = Callable[[bytes, Sequence[bytes], int, bytes], bytes | None]


class Field(Enum):
    """What a line contains besides constants and columns, as an expression in the compiled function."""

    #: the change's position, ``0/15E3D10``.
    LSN = "%X/%X"
    #: the same as a number.
    POSITION = "at"
    #: the change's number, and twice that.
    SEQ = "seq"
    DOUBLE_SEQ = "2 * seq"
    #: the time of the batch.
    NOW = "now"


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a line with this index in ``Format.of_transaction``."""

    index: int


#: constants, column numbers, and other fields.
Parts = Sequence[str | int | Field | Piece]


@dataclass(frozen=True, slots=True)
class LineParts:
    """A relation's lines: of an INSERT, of an UPDATE without an old row, of a DELETE with the old key or the old row.

    None where the format has no such line in one piece.
    """

    insert: Parts | None = None
    update: Parts | None = None
    delete_key: Parts | None = None
    delete_row: Parts | None = None


@dataclass(frozen=True, slots=True)
class _Column:
    """How a kind of value is matched and written.

    Attributes:
        pattern: matches the value's text if it needs no escape; the groups are written.
        text: what is written, ``%b`` for each group.
        beside: how many bytes of the value are in no group.
        expression: converts the group ``{}``; None writes it as it is.
    """

    pattern: bytes
    text: str
    beside: int = 0
    expression: str | None = None


_PLAIN: Final = _Column(rb"([^\0]*)", "%b")
_NUMBER: Final = _Column(rb"([^\0NI]*)", "%b")  # neither NaN nor an infinity
_BOOLEAN: Final = _Column(rb"([tf])", "%b", expression="booleans[{}]")
_TEXT: Final = _Column(rb'([^\0-\x1f"\\]*)', '"%b"')
_CONVERT: Final = _Column(rb"([^\0]*)", "%b", expression="{}")  # the group is converted before
_COLUMNS: Final[dict[Dialect, dict[ValueKind, _Column]]] = {
    "json": {
        ValueKind.INTEGER: _PLAIN,
        ValueKind.NUMBER: _NUMBER,
        ValueKind.BOOLEAN: _BOOLEAN,
        ValueKind.TEXT: _TEXT,
        # Neither an infinity nor BC.
        ValueKind.TIMESTAMP: _Column(rb"([0-9-]*) ([0-9:.]*)", '"%bT%b"', 1),
        ValueKind.TIMESTAMPTZ: _Column(rb"([0-9-]*) ([0-9:.]*)\+00", '"%bT%b+00:00"', 4),
        ValueKind.BYTEA: _Column(rb"([^\0]*)", '"\\%b"'),
        ValueKind.JSON: _Column(rb"([^\0\n\r]*)", "%b"),
        ValueKind.JSONB: _PLAIN,
        ValueKind.CONVERT: _CONVERT,
    },
    "wal2json": {
        ValueKind.INTEGER: _PLAIN,
        ValueKind.NUMBER: _NUMBER,
        ValueKind.BOOLEAN: _BOOLEAN,
        ValueKind.TEXT: _TEXT,
        ValueKind.BYTEA: _Column(rb"\\x([^\0]*)", '"%b"', 2),
    },
}
# After its NUL a length has three more bytes.
_VALUE: Final = rb"t\0(?s:...)"
# Where the tuple's mark (N, K or O) is: the XLogData header, the kind, the relation's OID.
_MARK_AT: Final = 30
_BOOLEANS: Final = {b"t": b"true", b"f": b"false"}
_POSITION: Final = Struct(">Q").unpack_from
_HALVES: Final = Struct(">II").unpack_from


def now_members() -> bytes:
    """Return the members that say when an event was processed, for all events of a batch (Debezium)."""
    nanoseconds = time.time_ns()
    return b'"ts_ms":%d,"ts_us":%d,"ts_ns":%d' % (nanoseconds // 1_000_000, nanoseconds // 1000, nanoseconds)


def compile_line(
    parts: Parts,
    conversions: Sequence[Conversion],
    dialect: Dialect,
    *,
    mark: str,
    columns: Sequence[int],
    lenient: bool = False,
) -> Write | None:
    """Return the function that writes one kind of message of a relation.

    The source consists of fixed expressions; names and values of the relation are only in the template.

    Args:
        parts: the line.
        conversions: of each column.
        dialect: the JSON dialect.
        mark: the mark of the message's tuple, which is its only one: ``N``, ``K`` or ``O``.
        columns: the columns that the tuple has; the others are null in every such message.
        lenient: keep bytes that are not UTF-8 (of a SQL_ASCII database).

    Returns:
        None if the tuple has none of its columns.
    """
    if not columns:
        return None
    kinds = {number: _COLUMNS[dialect][conversions[number].kind] for number in columns}
    pattern = re.escape(mark.encode() + len(conversions).to_bytes(2))
    groups: dict[int, list[str]] = {}
    for number in range(len(conversions)):
        if number in kinds:
            pattern += _VALUE + kinds[number].pattern
            groups[number] = [f"v{number}_{index}" for index in range(kinds[number].text.count("%b"))]
        else:
            pattern += b"n"
    last = columns[-1]
    size = " + ".join([*(f"len({name})" for name in groups[last]), str(kinds[last].beside)])
    nulls_behind = len(conversions) - 1 - last
    template, arguments = _template(parts, kinds, groups)
    namespace: dict[str, Any] = {
        "fullmatch": re.compile(pattern).fullmatch,
        "template": template,
        "booleans": _BOOLEANS,
        "position": _POSITION,
        "halves": _HALVES,
    }
    lines = [
        "def write(m, pieces, seq, now):",
        f"    match = fullmatch(m, {_MARK_AT})",
        "    if match is None:",
        "        return None",
        f"    {', '.join(name for names in groups.values() for name in names)}, = match.groups()",
        f"    size = {size}",
        f"    if m[-1 - size - {nulls_behind}] != size & 255:",
        "        return None",
    ]
    for number in columns:
        if (convert := conversions[number].convert) is not None:
            namespace[f"convert{number}"] = _on_bytes(convert, "surrogateescape" if lenient else "strict")
            name = groups[number][0]
            lines += [f"    {name} = convert{number}({name})", f"    if {name} is None:", "        return None"]
    if Field.LSN in parts:
        lines.append("    high, low = halves(m, 1)")
    if Field.POSITION in parts:
        lines.append("    at = position(m, 1)[0]")
    lines.append(f"    return template % ({''.join(f'{argument}, ' for argument in arguments)})")
    exec("\n".join(lines), namespace)
    write: Write = namespace["write"]
    return write


def _template(parts: Parts, kinds: dict[int, _Column], groups: dict[int, list[str]]) -> tuple[bytes, list[str]]:
    """Return the template of a line, and the expressions of its values."""
    template = ""
    arguments: list[str] = []
    for part in parts:
        if isinstance(part, str):
            template += part.replace("%", "%%")
        elif isinstance(part, int):
            if part not in kinds:
                template += "null"
                continue
            template += kinds[part].text
            arguments += [(kinds[part].expression or "{}").format(name) for name in groups[part]]
        elif isinstance(part, Piece):
            template += "%b"
            arguments.append(f"pieces[{part.index}]")
        elif part is Field.LSN:
            template += part.value
            arguments += ["high", "low"]
        else:
            template += "%b" if part is Field.NOW else "%d"
            arguments.append(part.value)
    return template.encode("utf-8", "surrogateescape"), arguments


def _on_bytes(convert: Convert, errors: str) -> Callable[[bytes], bytes | None]:
    """Return a conversion on bytes; its result is None for a value that is written as text, which the line lists."""

    def converted(value: bytes) -> bytes | None:
        text = convert(value.decode("utf-8", errors))
        return None if type(text) is AsText else text.encode("utf-8", "surrogateescape")

    return converted
