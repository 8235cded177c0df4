r"""PostgreSQL's text of a value → JSON text.

There are two dialects. ``json`` is what the server's ``to_json`` would print (the tests compare with it): numbers with
every digit, ``NaN`` and infinities as strings, json as JSON, bytea as ``"\\x…"``, arrays as arrays, composites as
objects, times in ISO 8601, a domain as its base type, everything else as a string. ``wal2json`` is what the
wal2json plugin prints: numbers bare (``null`` for NaN and infinities), booleans, bytea as bare hex, else strings.

This module has the types with one value; ``nested_values`` has arrays and composites, ``row_parsers`` reads whole rows.

The stream contains a column's type, but not the attributes of a composite type: they come from the catalogue, which may
be newer than the value. So everything inside a composite is checked against its type's grammar, and text that does not
fit raises ``ValueError``; ``type_catalog`` then returns the text itself, as ``AsText``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from enum import Enum, auto
from json.encoder import encode_basestring as quote
from typing import Final, Literal, NamedTuple

Convert = Callable[[str], str]
Dialect = Literal["json", "wal2json"]


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


#: the built-in types whose text needs more than quoting (``pg_type.dat``); for other types see ``type_catalog``.
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


def wal2json_conversion(type_oid: int) -> Conversion:
    """Return the wal2json plugin's conversion of a type; it does not resolve domains, which are strings."""
    return Conversion(_WAL2JSON.get(type_oid, ValueKind.TEXT))


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


def vector(text: str) -> str:
    """Convert ``int2vector``: numbers separated by blanks."""
    return "[" + ",".join([_integer(part) for part in text.split()]) + "]"


def oidvector(text: str) -> str:
    """Convert ``oidvector``; the server prints an oid as a string."""
    return "[" + ",".join([f'"{_integer(part)}"' for part in text.split()]) + "]"


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
