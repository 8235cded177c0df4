r"""Blocks of COPY rows, converted by columns, give what each row by itself gives."""

from __future__ import annotations

import json
import random
from typing import Final

import pytest

from rdsrepl.tail.formats.copy_lines import BlockFields, CopyLines
from rdsrepl.tail.formats.fast_lines import Field, Piece
from rdsrepl.tail.formats.nested_values import array
from rdsrepl.tail.formats.row_parsers import compile_copy_row
from rdsrepl.tail.formats.values import Conversion, Dialect, ValueKind

_FIELDS: Final = BlockFields("1/2", (1 << 32) + 2, [b'"piece"'], b'"now"')
_TEXTS: Final = (
    "", "plain", "ünï ☃ 𝄞", 'a "quoted" one', '"', '"N"', "\\", "\\N", '"\\N"', "C:\\video\\new", "tab\tnew\nline\r",
    "\b\f\v\x01\x1f\x7f", "null", "'", "%s %d", "{}", "\\\\v", '\\"', "x" * 3000, " ", "\u2028",
)  # fmt: skip
_VALUES: Final = {
    ValueKind.INTEGER: ("0", "-1", "9223372036854775807"),
    ValueKind.NUMBER: ("1.10", "-0", "NaN", "Infinity", "-Infinity", "1e+300", "0.1"),
    ValueKind.BOOLEAN: ("t", "f"),
    ValueKind.TEXT: _TEXTS,
    ValueKind.TIMESTAMP: ("2026-01-01 00:00:00", "infinity", "-infinity", "0044-03-15 12:00:00.5 BC"),
    ValueKind.TIMESTAMPTZ: (
        "2026-01-01 00:00:00+00", "infinity", "-infinity", "0044-03-15 12:00:00.5+00 BC", "2026-01-01 00:00:00+05:30",
        "2026-01-01 00:00:00-03", "1890-01-01 00:00:00+00:53:28",
    ),
    ValueKind.BYTEA: ("\\x", "\\x00ff"),
    ValueKind.JSON: ("{}", '{"a": "b\\n\\"\\\\"}', "[1,\r\n 2]", '"\\u0000"', "null", '{"a":\t1}'),
    ValueKind.JSONB: ("{}", '{"a": "b\\n"}', "null"),
    ValueKind.CONVERT: ("{}", '{"a,b",NULL,"\\\\"}'),
}  # fmt: skip
_CONVERSIONS: Final = {
    kind: Conversion(kind, array(json.dumps) if kind is ValueKind.CONVERT else None) for kind in _VALUES
}
_ESCAPES: Final = {"\\": r"\\", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
_KINDS: Final[dict[Dialect, list[ValueKind]]] = {
    "json": list(_VALUES),
    "wal2json": [ValueKind.INTEGER, ValueKind.NUMBER, ValueKind.BOOLEAN, ValueKind.TEXT, ValueKind.BYTEA],
}


def _copied(value: str | None) -> str:
    return r"\N" if value is None else "".join(_ESCAPES.get(character, character) for character in value)


@pytest.mark.parametrize("dialect", ["json", "wal2json"])
def test_by_columns_as_by_rows(dialect: Dialect) -> None:
    """Any mixture of special values, nulls and plain values, in blocks of any size."""
    chance, kinds = random.Random(17), _KINDS[dialect]
    conversions = [_CONVERSIONS[kind] for kind in kinds]
    parts: list[str | int | Field | Piece] = ["{%"]
    for number in range(len(kinds)):
        parts += [f',"c{number}":', number]
    parts += [":", 0, Field.LSN, Field.POSITION, Piece(0), Field.NOW, Field.SEQ, ",", Field.DOUBLE_SEQ, "}\n"]
    by_columns, by_row = CopyLines(parts, conversions, dialect), compile_copy_row(conversions, dialect)
    for _ in range(300):
        nulls = chance.choice((0, 0.2, 1))
        choices = [chance.sample(_VALUES[kind], chance.randint(1, len(_VALUES[kind]))) for kind in kinds]
        rows = [
            "\t".join(_copied(None if chance.random() < nulls else chance.choice(values)) for values in choices)
            for _ in range(chance.choice((1, 2, 40)))
        ]
        first = chance.randint(1, 10**6)
        written = by_columns.lines("".join(f"{row}\n" for row in rows).encode(), first, _FIELDS).decode()
        expected = ""
        for seq, values in enumerate(map(by_row, rows), first):
            columns = "".join(f',"c{number}":{value}' for number, value in enumerate(values))
            expected += f'{{%{columns}:{values[0]}1/24294967298"piece""now"{seq},{2 * seq}}}\n'
        assert written == expected


def test_rows_without_columns() -> None:
    assert CopyLines(["{", Field.SEQ, "}\n"], [], "json").lines(b"\n\n", 7, _FIELDS) == b"{7}\n{8}\n"


def test_bytes_that_are_not_utf8_are_kept() -> None:
    """A SQL_ASCII database: the value stays as it is, also where each value is converted by itself."""
    text = [_CONVERSIONS[ValueKind.TEXT]]
    lines = CopyLines([0, "\n"], text, "json", lenient=True).lines(b'\xff\n\xff\\v"\n', 1, _FIELDS)
    assert lines == b'"\xff"\n"\xff\\u000b\\""\n'


def test_a_row_with_a_missing_field_is_refused() -> None:
    two = [_CONVERSIONS[ValueKind.TEXT]] * 2
    with pytest.raises(ValueError, match="2 columns"):
        CopyLines([0, 1], two, "json").lines(b"1\t2\n3\n", 1, _FIELDS)
