"""PostgreSQL's text of a value → JSON text as Debezium's PostgreSQL connector writes it.

This is the output of Kafka Connect's JSON converter without schemas: dates and times as numbers, a decimal as the
base64 of its unscaled digits, ``json`` as a string. The modes are the connector's, with its defaults.
``docs/formats.md`` has the table; the source is the connector's documentation, "Data type mappings".

A value that a mode cannot express (``NaN`` in ``precise``, a timestamp of more than 64 bits) is written as the server's
text, marked (``values.AsText``), so that it is not read as a wrong number.
"""

from __future__ import annotations

import json
import math
import re
import struct
from base64 import b64encode, urlsafe_b64encode
from decimal import Decimal
from hashlib import md5
from json.encoder import encode_basestring as quote
from typing import Final

from rdsrepl.tail.formats.debezium_options import (
    BinaryMode,
    DebeziumOptions,
    DecimalMode,
    HstoreMode,
    IntervalMode,
    TimeMode,
)
from rdsrepl.tail.formats.debezium_times import (
    MICROS_DIGITS,
    epoch,
    epoch_days,
    int64,
    interval_micros,
    interval_text,
    iso_date,
    iso_time,
    iso_timestamp,
    time_micros,
    time_unit,
    timestamptz,
    timetz,
)
from rdsrepl.tail.formats.nested_values import array
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.formats.values import AsText, Conversion, Convert, ValueKind, as_text

_BOOL, _BYTEA, _CHAR, _OID, _JSON, _JSONB = 16, 17, 18, 26, 114, 3802
_POINT, _MONEY, _BIT, _VARBIT, _UUID = 600, 790, 1560, 1562, 2950
_DATE, _TIME, _TIMESTAMP, _TIMESTAMPTZ, _INTERVAL, _TIMETZ, _NUMERIC = 1082, 1083, 1114, 1184, 1186, 1266, 1700
_INTEGERS: Final = frozenset({20, 21, 23, _OID})
_FLOATS: Final = frozenset({700, 701})
# json, xml, text, bpchar, varchar, name, "char", uuid, inet, cidr, macaddr, macaddr8 and the built-in ranges: as text.
_TEXTS: Final = frozenset(
    {_CHAR, 19, 25, _JSON, 142, 650, 774, 829, 869, 1042, 1043, _UUID, _JSONB, 3614, 3904, 3906, 3908, 3910, 3912, 3926}
)
_BUILT_IN: Final = _INTEGERS | _FLOATS | _TEXTS | {
    _BOOL, _BYTEA, _POINT, _BIT, _VARBIT, _DATE, _TIME, _TIMESTAMP, _TIMESTAMPTZ, _INTERVAL, _TIMETZ, _NUMERIC,
}  # fmt: skip
# int2vector and oidvector are arrays in the catalogue, but their text has another form.
_BLANK_SEPARATED: Final = frozenset({22, 30})
_HSTORE: Final = "hstore"
_GEOMETRIES: Final = frozenset({"geometry", "geography"})
_VECTORS: Final = frozenset({"vector", "halfvec"})


class DebeziumValues:
    """Returns each type's conversion, in the chosen modes."""

    def __init__(self, catalog: Catalog, options: DebeziumOptions) -> None:
        self._catalog = catalog
        self._options = options

    def conversion(self, type_oid: int, typmod: int) -> Conversion:
        """Return a column's conversion to JSON; TYPMOD is its type modifier, -1 without one."""
        if type_oid in _INTEGERS:
            return Conversion(ValueKind.INTEGER)
        if type_oid in _FLOATS:
            return Conversion(ValueKind.NUMBER)
        if type_oid == _BOOL:
            return Conversion(ValueKind.BOOLEAN)
        if type_oid in _TEXTS:
            return Conversion(ValueKind.TEXT)
        convert, may_be_text = self._convert(type_oid, typmod)
        return Conversion(ValueKind.CONVERT, convert, may_be_text=may_be_text)

    def placeholder(self, type_oid: int) -> str:
        """Return the JSON text for an unchanged TOAST value, in the form of its type's values."""
        text = self._options.placeholder
        octets = text.encode("utf-8", "surrogateescape")
        if type_oid == _BYTEA:
            return self._octets_placeholder(octets)
        if type_oid not in _BUILT_IN:
            found = self._catalog.description(type_oid)
            if found is not None and found.is_domain:
                return self.placeholder(found.base)
            if found is not None and found.is_array:
                if found.element in _TEXT_ARRAYS:
                    return f"[{quote(text)}]"
                if found.element == _BYTEA:
                    return f"[{self._octets_placeholder(octets)}]"
                if found.element in _INTEGER_ARRAYS:
                    return json.dumps([octet - 256 if octet > 127 else octet for octet in octets])
                if found.element == _UUID:
                    from uuid import UUID  # slow to import

                    return f'["{UUID(bytes=md5(octets, usedforsecurity=False).digest(), version=3)}"]'
            if found is not None and found.name == _HSTORE:
                pairs = f"{{{quote(text)}:{quote(text)}}}"
                return pairs if self._options.hstore is HstoreMode.map else quote(pairs)
        return quote(text)

    def octets(self, content: bytes) -> str:
        """Return bytes as JSON text in the binary mode."""
        mode = self._options.binary
        if mode is BinaryMode.hex:
            return f'"{content.hex()}"'
        encode = urlsafe_b64encode if mode is BinaryMode.base64_url_safe else b64encode
        return f'"{encode(content).decode()}"'

    def _octets_placeholder(self, octets: bytes) -> str:
        # In the hex mode Debezium writes the placeholder unchanged.
        return quote(self._options.placeholder) if self._options.binary is BinaryMode.hex else self.octets(octets)

    def _convert(self, type_oid: int, typmod: int) -> tuple[Convert, bool]:
        """Return a type's conversion, and whether it may return the server's text."""
        options = self._options
        if type_oid in _BUILT_IN:
            return self._built_in(type_oid, typmod)
        if type_oid in _BLANK_SEPARATED:
            return _checked(lambda text: "[" + ",".join([int64(int(word)) for word in text.split()]) + "]"), True
        if type_oid == _MONEY:
            return _money(options.decimal, self._catalog.money_digits()), True
        found = self._catalog.description(type_oid)
        if found is None:
            return as_text, True
        if found.is_domain:
            # The domain's own modifier applies; Debezium does not use that of a nested domain either.
            base = found.base
            while base not in _BUILT_IN and (under := self._catalog.description(base)) and under.is_domain:
                base = under.base
            return self._convert(base, typmod if typmod >= 0 else found.typmod)
        if found.is_array:
            return self._array(found.element, typmod, found.delimiter)
        if found.is_base and found.name == _HSTORE:
            return _checked(_hstore_map if options.hstore is HstoreMode.map else _hstore_json), True
        if found.is_base and found.name in _GEOMETRIES:
            return _checked(_geometry), True
        if found.is_base and found.name in _VECTORS:
            return _checked(_vector), True
        return quote, False

    def _array(self, element: int, typmod: int, delimiter: str) -> tuple[Convert, bool]:
        inner, may_be_text = self._convert(element, typmod)

        def checked_element(text: str) -> str:
            value = inner(text)
            if type(value) is AsText:  # the mark applies to the column, so the whole array is the server's text
                raise ValueError(text)
            return value

        return _checked(array(checked_element if may_be_text else inner, delimiter)), True

    def _built_in(self, type_oid: int, typmod: int) -> tuple[Convert, bool]:
        options = self._options
        if type_oid in _INTEGERS:
            return str, False
        if type_oid in _FLOATS:
            return _float, False
        if type_oid == _BOOL:
            return _boolean, False
        if type_oid in _TEXTS:
            return quote, False
        if type_oid == _BYTEA:
            return _checked(lambda text: self.octets(bytes.fromhex(text[2:]))), True
        if type_oid == _POINT:
            return _checked(_point), True
        if type_oid in (_BIT, _VARBIT):
            return _checked(_one_bit if typmod == 1 else _bits), True
        if type_oid == _NUMERIC:
            return _numeric(options.decimal, typmod), True
        if type_oid == _INTERVAL:
            return _checked(interval_text if options.interval is IntervalMode.string else interval_micros), True
        precision = typmod if 0 <= typmod <= MICROS_DIGITS else MICROS_DIGITS
        if type_oid == _TIMESTAMPTZ:
            return _checked(lambda text: timestamptz(text, precision)), True
        if type_oid == _TIMETZ:
            return _checked(timetz), True
        if type_oid == _DATE:
            return _checked(iso_date if options.time is TimeMode.isostring else epoch_days), True
        if options.time is TimeMode.isostring:
            return _checked(iso_timestamp if type_oid == _TIMESTAMP else iso_time), True
        unit = time_unit(options.time, precision, is_time=type_oid == _TIME)
        if type_oid == _TIME:
            return _checked(lambda text: unit(time_micros(text))), True
        return _checked(lambda text: epoch(text, unit)), True


_TEXT_ARRAYS: Final = frozenset({25, 1042, 1043, _JSON, _JSONB})
_INTEGER_ARRAYS: Final = frozenset({20, 23, _DATE})


def _checked(convert: Convert) -> Convert:
    """Return a conversion that returns the server's text, marked, if it does not fit."""

    def checked(text: str) -> str:
        try:
            return convert(text)
        except (ArithmeticError, LookupError, RecursionError, ValueError):
            return as_text(text)

    return checked


def _float(text: str) -> str:
    return text if text[-1] < ":" else quote(text)


def _boolean(text: str) -> str:
    return "true" if text == "t" else "false"


# Numbers


def _base64_of(unscaled: int) -> str:
    """Return a number as the base64 of its shortest two's complement, the most significant byte first."""
    length = (unscaled if unscaled >= 0 else ~unscaled).bit_length() // 8 + 1
    return f'"{b64encode(unscaled.to_bytes(length, "big", signed=True)).decode()}"'


def _digits(text: str) -> tuple[int, int]:
    """Return a decimal's unscaled digits and its scale."""
    whole, _, fraction = text.partition(".")
    digits = whole + fraction
    if not digits.removeprefix("-").isdecimal():
        raise ValueError(text)
    # int() refuses more than 4,300 digits; numeric has up to 147,455.
    return (int(digits) if len(digits) < _INT_DIGITS else int(Decimal(digits))), len(fraction)


_INT_DIGITS: Final = 4000


def _numeric(mode: DecimalMode, typmod: int) -> Convert:
    if mode is DecimalMode.double:
        return _checked(_double)
    if mode is DecimalMode.string:
        return lambda text: f'"{_SPECIAL.get(text, text)}"'
    if typmod < 0:
        return _checked(_variable_scale)
    scale = (typmod - 4) & 0x7FF
    scale -= 2048 if scale > 1023 else 0  # negative since PostgreSQL 15

    def fixed_scale(text: str) -> str:
        unscaled, has = _digits(text)
        return _base64_of(unscaled * 10 ** (scale - has) if scale >= has else unscaled // 10 ** (has - scale))

    return _checked(fixed_scale)


_SPECIAL: Final = {"NaN": "NAN", "Infinity": "POSITIVE_INFINITY", "-Infinity": "NEGATIVE_INFINITY"}


def _double(text: str) -> str:
    value = float(text)
    if math.isfinite(value):
        return repr(value)
    return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'


def _variable_scale(text: str) -> str:
    unscaled, scale = _digits(text)
    return f'{{"scale":{scale},"value":{_base64_of(unscaled)}}}'


def _money(mode: DecimalMode, digits: int | None) -> Convert:
    """Return the conversion of money with this number of DIGITS after the point; Debezium writes two."""
    if digits is None:
        return as_text

    def convert(text: str) -> str:
        units = int("".join(character for character in text if "0" <= character <= "9"))
        cents = Decimal(-units if "-" in text or "(" in text else units).scaleb(-digits)
        cents = cents if digits > _CENTS else cents.quantize(_CENT)
        if mode is DecimalMode.precise:
            return _base64_of(int(cents.quantize(_CENT).scaleb(_CENTS)))
        return repr(float(cents)) if mode is DecimalMode.double else f'"{cents:f}"'

    return _checked(convert)


_CENTS: Final = 2
_CENT: Final = Decimal("0.01")


def _one_bit(text: str) -> str:
    return "true" if int(text, 2) else "false"


def _bits(text: str) -> str:
    """Convert ``bit(n)`` and ``varbit``: bytes, the least significant first, without leading zero bytes."""
    number = int(text, 2) if text else 0
    return f'"{b64encode(number.to_bytes((number.bit_length() + 7) // 8, "little")).decode()}"'


# Structures


def _point(text: str) -> str:
    x, y = (float(word) for word in text.removeprefix("(").removesuffix(")").split(","))
    wkb = b64encode(struct.pack("<BIdd", 1, 1, x, y)).decode()
    return f'{{"x":{_double(repr(x))},"y":{_double(repr(y))},"wkb":"{wkb}","srid":null}}'


_HAS_SRID: Final = 0x20000000


def _geometry(text: str) -> str:
    """Convert PostGIS's text, the hexadecimal form of an EWKB."""
    ewkb = bytes.fromhex(text)
    order = "<" if ewkb[0] else ">"
    (flags,) = struct.unpack_from(f"{order}I", ewkb, 1)
    srid = struct.unpack_from(f"{order}I", ewkb, 5)[0] if flags & _HAS_SRID else "null"
    return f'{{"wkb":"{b64encode(ewkb).decode()}","srid":{srid}}}'


def _vector(text: str) -> str:
    if any(type(number) not in (int, float) for number in json.loads(text)):
        raise ValueError(text)
    return text


_PAIR: Final = re.compile(r'"((?:[^"\\]|\\.)*)"=>(?:"((?:[^"\\]|\\.)*)"|NULL)(?:, |\Z)', re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


def _hstore_map(text: str) -> str:
    members: list[str] = []
    position = 0
    while position < len(text):
        match = _PAIR.match(text, position)
        if match is None:
            raise ValueError(text)
        key, value = match.groups()
        members.append(f"{_unescaped(key)}:{'null' if value is None else _unescaped(value)}")
        position = match.end()
    return "{" + ",".join(members) + "}"


def _unescaped(text: str) -> str:
    return quote(_ESCAPED.sub(r"\1", text))


def _hstore_json(text: str) -> str:
    return quote(_hstore_map(text))
