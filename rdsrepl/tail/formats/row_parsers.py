"""Compiles the columns of a relation into one function, so that a row needs no call for each column.

The source consists only of the fixed expressions below; it contains no names and no values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring as quote
from struct import Struct
from typing import Any, Final

from rdsrepl.tail.formats.values import Conversion, Dialect, ValueKind, timestamptz

#: ``parse(message, position)``: the JSON text of every column (None: unchanged TOAST), then the position after them.
Parse = Callable[[bytes, int], tuple[Any, ...]]

# `m` is the message, `p` and `q` are the start and the end of the value.
_EXPRESSIONS: Final[Mapping[Dialect, Mapping[ValueKind, str]]] = {
    "json": {
        ValueKind.INTEGER: "m[p:q].decode()",
        ValueKind.NUMBER: "m[p:q].decode() if m[q - 1] < 58 else quote(m[p:q].decode())",
        ValueKind.BOOLEAN: "'true' if m[p] == 116 else 'false'",
        ValueKind.TEXT: "quote(m[p:q].decode())",
        ValueKind.TIMESTAMP: "'\"' + m[p:q].decode().replace(' ', 'T', 1) + '\"'",
        ValueKind.TIMESTAMPTZ: (
            "'\"' + m[p:q].decode().replace(' ', 'T', 1) + ':00\"' if m[q - 3] == 43 else timestamptz(m[p:q].decode())"
        ),
        ValueKind.BYTEA: "'\"\\\\' + m[p:q].decode() + '\"'",
        ValueKind.JSON: "m[p:q].decode().replace('\\n', ' ').replace('\\r', ' ')",
        ValueKind.JSONB: "m[p:q].decode()",
    },
    "wal2json": {
        ValueKind.INTEGER: "m[p:q].decode()",
        ValueKind.NUMBER: "m[p:q].decode() if m[q - 1] < 58 else 'null'",
        ValueKind.BOOLEAN: "'true' if m[p] == 116 else 'false'",
        ValueKind.TEXT: "quote(m[p:q].decode())",
        ValueKind.BYTEA: "'\"' + m[p + 2:q].decode() + '\"'",
    },
}
_LENGTH: Final = Struct(">I").unpack_from
# The fixed expressions for a value that is text already.
_OF_TEXT: Final = (
    ("m[p:q].decode()", "{0}"),
    ("m[p + 2:q].decode()", "{0}[2:]"),
    ("m[q - 1] < 58", "{0}[-1] < ':'"),
    ("m[p] == 116", "{0} == 't'"),
    ("m[q - 3] == 43", "{0}[-3] == '+'"),
)
_COPY_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_COPY_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def compile_tuple(conversions: Sequence[Conversion], dialect: Dialect, *, lenient: bool = False) -> Parse:
    """Return a function that reads a pgoutput TupleData with these columns (manual, section 55.9).

    Args:
        conversions: one for each column, in order.
        dialect: the JSON dialect.
        lenient: keep bytes that are not UTF-8 as surrogates (of a SQL_ASCII database).
    """
    lines = ["def parse(m, p):"]
    namespace: dict[str, Any] = {"length": _LENGTH, "quote": quote, "timestamptz": timestamptz, "unknown": _unknown}
    for number, conversion in enumerate(conversions):
        if conversion.kind is ValueKind.CONVERT:
            namespace[f"convert{number}"] = conversion.convert
            expression = f"convert{number}(m[p:q].decode())"
        else:
            expression = _EXPRESSIONS[dialect][conversion.kind]
        if lenient:
            expression = expression.replace(".decode()", ".decode('utf-8', 'surrogateescape')")
        lines += [
            "    k = m[p]",
            "    if k == 116:",
            "        q = p + 5 + length(m, p + 1)[0]",
            "        p += 5",
            f"        v{number} = {expression}",
            "        p = q",
            "    else:",
            f"        v{number} = 'null' if k == 110 else None if k == 117 else unknown(k)",
            "        p += 1",
        ]
    lines.append("    return (" + "".join(f"v{number}, " for number in range(len(conversions))) + "p,)")
    exec("\n".join(lines), namespace)
    parse: Parse = namespace["parse"]
    return parse


def compile_copy_row(conversions: Sequence[Conversion], dialect: Dialect) -> Callable[[str], tuple[Any, ...]]:
    """Return a function that reads a line of COPY's text format with these columns (manual, COPY, "Text Format").

    Like ``compile_tuple``, it returns the JSON text of every column; the line has no newline at its end.
    """
    if not conversions:
        return lambda line: ()
    names = [f"f{number}" for number in range(len(conversions))]
    namespace: dict[str, Any] = {"quote": quote, "timestamptz": timestamptz, "unescaped": _unescaped}
    lines = ["def parse(line):", f"    {', '.join(names)}, = line.split('\\t')", "    if '\\\\' in line:"]
    lines += [f"        {name} = unescaped({name})" for name in names]
    for name, conversion in zip(names, conversions, strict=True):
        if conversion.kind is ValueKind.CONVERT:
            namespace[f"convert_{name}"] = conversion.convert
            expression = f"convert_{name}({name})"
        else:
            expression = _EXPRESSIONS[dialect][conversion.kind]
            for of_bytes, of_text in _OF_TEXT:
                expression = expression.replace(of_bytes, of_text.format(name))
        lines.append(f"    {name} = 'null' if {name} is None else {expression}")
    lines.append(f"    return ({', '.join(names)},)")
    exec("\n".join(lines), namespace)
    parse: Callable[[str], tuple[Any, ...]] = namespace["parse"]
    return parse


def _unescaped(field: str) -> str | None:
    """Return the value of a field of COPY's text format; None is NULL."""
    if field == "\\N":
        return None
    return _COPY_ESCAPED.sub(lambda match: _COPY_ESCAPES.get(match[1], match[1]), field) if "\\" in field else field


def _unknown(kind: int) -> None:
    raise ValueError(f"{chr(kind)!r} is not a kind of value in the protocol")
