r"""PostgreSQL's text of a value → JSON text.

There are two dialects. ``json`` is what the server's ``to_json`` would print (the tests compare with it): numbers with
every digit, ``NaN`` and infinities as strings, json as JSON, bytea as ``"\\x…"``, arrays as arrays, composites as
objects, times in ISO 8601, a domain as its base type, everything else as a string. ``wal2json`` is what the
wal2json plugin prints: numbers bare (``null`` for NaN and infinities), booleans, bytea as bare hex, else strings.

A relation's columns are compiled once into one function (``compile_tuple``), so that a row needs no call per column.

The stream contains a column's type, but not the attributes of a composite type: they come from the catalogue, which may
be newer than the value. So everything inside a composite is checked against its type's grammar, and text that does not
fit raises ``ValueError``; ``catalog`` then returns the text itself, as ``AsText``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from json.encoder import encode_basestring as quote
from struct import Struct
from typing import Any, Final, Literal, NamedTuple

Convert = Callable[[str], str]
Dialect = Literal["json", "wal2json"]
#: ``parse(message, position)``: the JSON text of every column (None: unchanged TOAST), then the position after them.
Parse = Callable[[bytes, int], tuple[Any, ...]]


class ValueKind(Enum):
    """How a type's text is converted to JSON."""

    INTEGER = auto()
    NUMBER = auto()
    BOOLEAN = auto()
    TEXT = auto()
    TIMESTAMP = auto()
    TIMESTAMPTZ = auto()
    BYTEA = auto()
    JSON = auto()
    JSONB = auto()
    CONVERT = auto()


class Conversion(NamedTuple):
    """How a column's text is converted to JSON.

    Attributes:
        kind: the conversion; ``CONVERT`` is a function.
        convert: the function, for text that is certainly of the type.
        checked: the function for text that may not be; raises ValueError for other text.
        may_be_text: ``convert`` may return ``AsText``.
    """

    kind: ValueKind
    convert: Convert | None = None
    checked: Convert | None = None
    may_be_text: bool = False


class AsText(str):
    """The JSON string of a value's text, if its type is not certain; the line lists the column."""

    __slots__ = ()


def as_text(text: str) -> AsText:
    """Return a value as the server's text, marked."""
    return AsText(quote(text))


#: the built-in types whose text needs more than quoting (``pg_type.dat``); for other types see ``catalog``.
BUILT_IN: Final[Mapping[int, ValueKind]] = {
    16: ValueKind.BOOLEAN,
    17: ValueKind.BYTEA,
    20: ValueKind.INTEGER,
    21: ValueKind.INTEGER,
    23: ValueKind.INTEGER,
    114: ValueKind.JSON,
    700: ValueKind.NUMBER,
    701: ValueKind.NUMBER,
    1114: ValueKind.TIMESTAMP,
    1184: ValueKind.TIMESTAMPTZ,
    1700: ValueKind.NUMBER,
    3802: ValueKind.JSONB,
}
#: built-in types that are plain strings, so that common tables need no query of the catalogue:
#: "char", name, text, bpchar, varchar, date, time, timetz, interval, bit, varbit, uuid, inet,
#: cidr, macaddr, macaddr8, xml, money, oid.
PLAIN: Final = frozenset(
    {18, 19, 25, 26, 142, 650, 774, 790, 829, 869, 1042, 1043, 1082, 1083, 1186, 1266, 1560, 1562, 2950}
)

_OID: Final = 26
_WAL2JSON: Final[Mapping[int, ValueKind]] = {
    16: ValueKind.BOOLEAN,
    17: ValueKind.BYTEA,
    20: ValueKind.INTEGER,
    21: ValueKind.INTEGER,
    23: ValueKind.INTEGER,
    _OID: ValueKind.INTEGER,
    700: ValueKind.NUMBER,
    701: ValueKind.NUMBER,
    1700: ValueKind.NUMBER,
}

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


def wal2json_conversion(type_oid: int) -> Conversion:
    """Return the wal2json plugin's conversion of a type; it does not resolve domains, which are strings."""
    return Conversion(_WAL2JSON.get(type_oid, ValueKind.TEXT))


def compile_tuple(conversions: Sequence[Conversion], dialect: Dialect, *, lenient: bool = False) -> Parse:
    """Return a function that reads a pgoutput TupleData with these columns (manual, section 55.9).

    The source consists only of the fixed expressions above; it contains no names and no values.

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


def to_json(conversion: Conversion) -> Convert:
    """Return the function that converts text of the type to the ``json`` dialect."""
    return conversion.convert or _CONVERTS[conversion.kind]


def checked(conversion: Conversion) -> Convert:
    """Return the function for text that may be of another type; it raises ValueError for such text."""
    return conversion.checked or conversion.convert or _CHECKED[conversion.kind]


def timestamptz(text: str) -> str:
    """Convert ``2024-01-31 12:00:00+05:30`` to ISO 8601 in quotes; ``infinity`` and a suffix ``BC`` are kept."""
    era = " BC" if text.endswith(" BC") else ""
    body = text.removesuffix(" BC").replace(" ", "T", 1)
    if len(body) > 3 and body[-3] in "+-" and "T" in body:
        body += ":00"
    return f'"{body}{era}"'


def array(element: Convert, delimiter: str = ",") -> Convert:
    """Return the conversion of an array whose elements convert by ELEMENT.

    It raises ValueError or IndexError for text that is not an array, and RecursionError for deep nesting.
    """

    def convert(text: str) -> str:
        position = text.index("=") + 1 if text[0] == "[" else 0  # "[2:3]={7,8}": the bounds are removed
        if '"' not in text and "{" not in text[position + 1 :]:
            if text[position] != "{" or text.find("}") != len(text) - 1:
                raise ValueError(text)
            items = text[position + 1 : -1]
            if not items:
                return "[]"
            words = items.split(delimiter)
            return "[" + ",".join(["null" if word == "NULL" else element(word) for word in words]) + "]"
        json_text, end = _array(text, position, element, delimiter)
        if end != len(text):
            raise ValueError(text)
        return json_text

    return convert


def vector(text: str) -> str:
    """Convert ``int2vector``: numbers separated by blanks."""
    return "[" + ",".join([_integer(part) for part in text.split()]) + "]"


def oidvector(text: str) -> str:
    """Convert ``oidvector``; the server prints an oid as a string."""
    return "[" + ",".join([f'"{_integer(part)}"' for part in text.split()]) + "]"


def composite(attributes: Sequence[tuple[str, Convert]]) -> Convert:
    """Return the conversion of a composite type with these attributes, whose conversions check their text.

    It raises ValueError, IndexError or RecursionError for text of another type.
    """
    names = [quote(name) for name, _ in attributes]
    converts = [convert for _, convert in attributes]

    def convert(text: str) -> str:
        fields = _record_fields(text)
        if not names and text == "()":
            fields = []
        if len(fields) != len(names):
            raise ValueError(text)
        pairs = zip(names, converts, fields, strict=True)
        return "{" + ",".join([f"{n}:{'null' if value is None else c(value)}" for n, c, value in pairs]) + "}"

    return convert


def _array(text: str, position: int, element: Convert, delimiter: str) -> tuple[str, int]:
    """Read the array that starts at POSITION; return its JSON and the position after it (manual, section 8.15.6)."""
    items: list[str] = []
    if text[position] != "{":
        raise ValueError(text)
    position += 1
    while text[position] != "}":
        if text[position] == "{":
            item, position = _array(text, position, element, delimiter)
            items.append(item)
        elif text[position] == '"':
            value, position = _quoted(text, position)
            items.append(element(value))
        else:
            end = position
            while text[end] not in (delimiter, "}"):
                end += 1
            word = text[position:end]
            items.append("null" if word == "NULL" else element(word))
            position = end
        if text[position] == delimiter:
            position += 1
        elif text[position] != "}":
            raise ValueError(text)
    return "[" + ",".join(items) + "]", position + 1


# Without backtracking: incomplete text must not take long.
_QUOTED: Final = re.compile(r'"((?:[^"\\]++|""|\\.)*+)"', re.DOTALL).match
_BARE: Final = re.compile(r'[^"\\(),]*+').match
_ESCAPED: Final = re.compile(r'\\(.)|"(")', re.DOTALL)


def _quoted(text: str, position: int) -> tuple[str, int]:
    """Read the quoted text at POSITION; arrays escape with a backslash, composites also by doubling."""
    match = _QUOTED(text, position)
    if match is None:
        raise ValueError(text)
    inner = match[1]
    if '"' in inner or "\\" in inner:
        inner = _ESCAPED.sub(lambda escaped: escaped[1] or escaped[2], inner)
    return inner, match.end()


def _record_fields(text: str) -> list[str | None]:
    """Split a composite's text ``(1,"a b",)`` into its fields (manual, section 8.16.6); None is NULL."""
    fields: list[str | None] = []
    if text[0] != "(":
        raise ValueError(text)
    position = 0
    while text[position] != ")":
        position += 1
        if text[position] == '"':
            field, position = _quoted(text, position)
            fields.append(field)
        else:
            match = _BARE(text, position)
            assert match is not None  # it may be empty
            fields.append(match[0] or None)
            position = match.end()
        if text[position] not in ",)":
            raise ValueError(text)
    if position + 1 != len(text):
        raise ValueError(text)
    return fields


def _number(text: str) -> str:
    return text if text[-1] < ":" else quote(text)


_CONVERTS: Final[Mapping[ValueKind, Convert]] = {
    ValueKind.INTEGER: lambda text: text,
    ValueKind.NUMBER: _number,
    ValueKind.BOOLEAN: lambda text: "true" if text == "t" else "false",
    ValueKind.TEXT: quote,
    ValueKind.TIMESTAMP: lambda text: f'"{text.replace(" ", "T", 1)}"',
    ValueKind.TIMESTAMPTZ: timestamptz,
    ValueKind.BYTEA: quote,
    ValueKind.JSON: lambda text: text.replace("\n", " ").replace("\r", " "),
    ValueKind.JSONB: lambda text: text,
}

_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)").fullmatch
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?").fullmatch
_NO_NUMBER: Final = frozenset({"NaN", "Infinity", "-Infinity"})
_BYTEA: Final = re.compile(r"\\x(?:[0-9a-f]{2})*").fullmatch
_TIME: Final = r"-?infinity|[0-9]{4,}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?"
_TIMESTAMP: Final = re.compile(rf"(?:{_TIME})(?: BC)?").fullmatch
_TIMESTAMPTZ: Final = re.compile(rf"(?:{_TIME}[+-][0-9]{{2}}(?::[0-9]{{2}}){{0,2}})(?: BC)?|-?infinity").fullmatch


def _integer(text: str) -> str:
    if _INTEGER(text) is None:
        raise ValueError(text)
    return text


def _checked_number(text: str) -> str:
    if text in _NO_NUMBER:
        return quote(text)
    if _NUMBER(text) is None:
        raise ValueError(text)
    return text


def _boolean(text: str) -> str:
    if text not in ("t", "f"):
        raise ValueError(text)
    return "true" if text == "t" else "false"


def _no_constant(text: str) -> None:
    raise ValueError(text)  # Python accepts NaN and Infinity, which are not JSON


def _json(text: str) -> str:
    json.loads(text, parse_int=str, parse_float=str, parse_constant=_no_constant)
    return _CONVERTS[ValueKind.JSON](text)


def _matching(matches: Callable[[str], object], convert: Convert) -> Convert:
    def check(text: str) -> str:
        if matches(text) is None:
            raise ValueError(text)
        return convert(text)

    return check


#: the same for text that may be of another type.
_CHECKED: Final[Mapping[ValueKind, Convert]] = {
    ValueKind.INTEGER: _integer,
    ValueKind.NUMBER: _checked_number,
    ValueKind.BOOLEAN: _boolean,
    ValueKind.TEXT: quote,
    ValueKind.TIMESTAMP: _matching(_TIMESTAMP, _CONVERTS[ValueKind.TIMESTAMP]),
    ValueKind.TIMESTAMPTZ: _matching(_TIMESTAMPTZ, timestamptz),
    ValueKind.BYTEA: _matching(_BYTEA, quote),
    ValueKind.JSON: _json,
    ValueKind.JSONB: _json,
}
