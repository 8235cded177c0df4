r"""PostgreSQL's text form of a value → JSON text as Debezium's PostgreSQL connector gives it.

What Kafka Connect's JSON converter prints without schemas: dates and times as numbers, a decimal as the base64 of its
unscaled digits, ``json`` as a string. The modes are those of the connector, with its defaults. ``docs/formats.md`` has
the table; the source is the connector's documentation, "Data type mappings".

A value that a mode cannot express (``NaN`` in ``precise``, a timestamp beyond 64 bits) is the server's text, marked
(``values.AsText``), so that no false number is read from it.
"""

from __future__ import annotations

import json
import math
import re
import struct
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from hashlib import md5
from json.encoder import encode_basestring as quote
from typing import Any, Final

from rdsrepl.errors import BadValue
from rdsrepl.tail.formats.catalog import Catalog
from rdsrepl.tail.formats.values import AsText, Convert, Kind, Shape, array, as_text


class TimeMode(StrEnum):
    """Debezium's ``time.precision.mode``."""

    adaptive = "adaptive"
    adaptive_time_microseconds = "adaptive_time_microseconds"
    connect = "connect"
    isostring = "isostring"
    microseconds = "microseconds"
    nanoseconds = "nanoseconds"


class DecimalMode(StrEnum):
    """Debezium's ``decimal.handling.mode``."""

    precise = "precise"
    double = "double"
    string = "string"


class BinaryMode(StrEnum):
    """Debezium's ``binary.handling.mode``."""

    bytes = "bytes"
    base64 = "base64"
    base64_url_safe = "base64-url-safe"
    hex = "hex"


class IntervalMode(StrEnum):
    """Debezium's ``interval.handling.mode``."""

    numeric = "numeric"
    string = "string"


class HstoreMode(StrEnum):
    """Debezium's ``hstore.handling.mode``."""

    json = "json"
    map = "map"


PLACEHOLDER: Final = "__debezium_unavailable_value"


@dataclass(frozen=True, slots=True)
class DebeziumOptions:
    """How the ``debezium`` format writes keys and values.

    Attributes:
        keys: write ``{"key":…,"value":…}``, with a tombstone after each delete.
        time: of date, time and timestamp.
        decimal: of numeric and money.
        binary: of bytea and of a message's content.
        interval: of interval.
        hstore: of hstore.
        placeholder: what stands for an unchanged TOAST value (``unavailable.value.placeholder``).
    """

    keys: bool = False
    time: TimeMode = TimeMode.adaptive
    decimal: DecimalMode = DecimalMode.precise
    binary: BinaryMode = BinaryMode.bytes
    interval: IntervalMode = IntervalMode.numeric
    hstore: HstoreMode = HstoreMode.json
    placeholder: str = PLACEHOLDER


_MODES: Final[Mapping[str, type[StrEnum]]] = {
    "time": TimeMode,
    "decimal": DecimalMode,
    "binary": BinaryMode,
    "interval": IntervalMode,
    "hstore": HstoreMode,
}


def debezium_options(given: Mapping[str, Any]) -> DebeziumOptions:
    """Return options from values by their attributes' names; None is the default.

    Raises:
        BadValue: there is no such mode; the hint has those there are.
    """
    chosen = {field.name: given[field.name] for field in fields(DebeziumOptions) if given.get(field.name) is not None}
    for name, modes in _MODES.items():
        if name in chosen:
            allowed = [mode.value for mode in modes]
            if chosen[name] not in allowed:
                raise BadValue(f"debezium: {name} {chosen[name]!r} is not a mode", hint=f"one of {', '.join(allowed)}")
            chosen[name] = modes(chosen[name])
    placeholder = chosen.get("placeholder", "")
    if placeholder.startswith(_HEX):
        try:
            chosen["placeholder"] = bytes.fromhex(placeholder.removeprefix(_HEX)).decode()
        except ValueError:
            raise BadValue(
                f"debezium: placeholder {placeholder!r} is not the hexadecimal form of a UTF-8 text",
                hint="hex:5f5f6e6f6e65, or the text itself",
            ) from None
    return DebeziumOptions(**chosen)


_HEX: Final = "hex:"

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
# int2vector and oidvector are arrays to the catalogue, but their text is not an array's.
_BLANK_SEPARATED: Final = frozenset({22, 30})
_HSTORE: Final = "hstore"
_GEOMETRIES: Final = frozenset({"geometry", "geography"})
_VECTORS: Final = frozenset({"vector", "halfvec"})


class DebeziumValues:
    """Knows each type's conversion, in the modes that were chosen."""

    def __init__(self, catalog: Catalog, options: DebeziumOptions) -> None:
        self._catalog = catalog
        self._options = options

    def shape(self, type_oid: int, typmod: int) -> Shape:
        """Return how values of a column become JSON; TYPMOD is its type modifier, -1 where it has none."""
        if type_oid in _INTEGERS:
            return Shape(Kind.INTEGER)
        if type_oid in _FLOATS:
            return Shape(Kind.NUMBER)
        if type_oid == _BOOL:
            return Shape(Kind.BOOLEAN)
        if type_oid in _TEXTS:
            return Shape(Kind.TEXT)
        convert, uncertain = self._convert(type_oid, typmod)
        return Shape(Kind.CONVERT, convert, uncertain=uncertain)

    def placeholder(self, type_oid: int) -> str:
        """Return the JSON text that stands for an unchanged TOAST value, in the form that its type's values have."""
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
                    from uuid import UUID  # takes longer to import than most commands have

                    return f'["{UUID(bytes=md5(octets, usedforsecurity=False).digest(), version=3)}"]'
            if found is not None and found.name == _HSTORE:
                pairs = f"{{{quote(text)}:{quote(text)}}}"
                return pairs if self._options.hstore is HstoreMode.map else quote(pairs)
        return quote(text)

    def octets(self, content: bytes) -> str:
        """Return bytes as the binary mode has them, as a JSON text."""
        mode = self._options.binary
        if mode is BinaryMode.hex:
            return f'"{content.hex()}"'
        encode = urlsafe_b64encode if mode is BinaryMode.base64_url_safe else b64encode
        return f'"{encode(content).decode()}"'

    def _octets_placeholder(self, octets: bytes) -> str:
        # In the hex mode Debezium gives the placeholder as it is.
        return quote(self._options.placeholder) if self._options.binary is BinaryMode.hex else self.octets(octets)

    def _convert(self, type_oid: int, typmod: int) -> tuple[Convert, bool]:
        """Return a type's conversion, and whether it may give a value as the server's text."""
        options = self._options
        if type_oid in _BUILT_IN:
            return self._built_in(type_oid, typmod)
        if type_oid in _BLANK_SEPARATED:
            return _checked(lambda text: "[" + ",".join([_int64(int(word)) for word in text.split()]) + "]"), True
        if type_oid == _MONEY:
            return _money(options.decimal, self._catalog.money_digits()), True
        found = self._catalog.description(type_oid)
        if found is None:
            return as_text, True
        if found.is_domain:
            # A modifier of the domain's own holds; that of a domain under it is not known to Debezium either.
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
        inner, uncertain = self._convert(element, typmod)

        def checked_element(text: str) -> str:
            value = inner(text)
            if type(value) is AsText:  # the mark is the column's: so the whole array is the server's text
                raise ValueError(text)
            return value

        return _checked(array(checked_element if uncertain else inner, delimiter)), True

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
            return _checked(_interval_text if options.interval is IntervalMode.string else _interval_micros), True
        precision = typmod if 0 <= typmod <= _MICROS_DIGITS else _MICROS_DIGITS
        if type_oid == _TIMESTAMPTZ:
            return _checked(lambda text: _timestamptz(text, precision)), True
        if type_oid == _TIMETZ:
            return _checked(_timetz), True
        if type_oid == _DATE:
            return _checked(_iso_date if options.time is TimeMode.isostring else _epoch_days), True
        if options.time is TimeMode.isostring:
            return _checked(_iso_timestamp if type_oid == _TIMESTAMP else _iso_time), True
        unit = _unit(options.time, precision, is_time=type_oid == _TIME)
        if type_oid == _TIME:
            return _checked(lambda text: unit(_time_micros(text))), True
        return _checked(lambda text: _epoch(text, unit)), True


_TEXT_ARRAYS: Final = frozenset({25, 1042, 1043, _JSON, _JSONB})
_INTEGER_ARRAYS: Final = frozenset({20, 23, _DATE})
_MICROS_DIGITS: Final = 6


def _checked(convert: Convert) -> Convert:
    """Return a conversion that gives the server's text, marked, where the text does not fit."""

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
    """Return a number as the base64 of its shortest two's complement, the highest byte first."""
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
    """Return the conversion of money, of which DIGITS stand behind the point; Debezium gives two."""
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
    """Convert ``bit(n)`` and ``varbit``: bytes, the lowest first, as many as there are up to the highest 1."""
    number = int(text, 2) if text else 0
    return f'"{b64encode(number.to_bytes((number.bit_length() + 7) // 8, "little")).decode()}"'


# Dates and times

_DAY: Final = 86_400_000_000
_EPOCH: Final = date(1970, 1, 1).toordinal()
_MOMENT_0: Final = datetime(1970, 1, 1)
_MICROSECOND: Final = timedelta(microseconds=1)
_INT64: Final = 1 << 63
_INFINITY: Final = {"infinity": 9_223_372_036_825_200_000, "-infinity": -9_223_372_036_832_400_000}
# What Debezium has for these dates: the largest and the smallest 32-bit number, from 2000 on, wrapped around.
_INFINITE_DAYS: Final = {"infinity": -2_147_472_692, "-infinity": -2_147_472_691}
_DATE_TEXT: Final = re.compile(r"([0-9]{4,})-([0-9]{2})-([0-9]{2})").fullmatch
_TIME_TEXT: Final = re.compile(r"([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,6}))?").fullmatch
_OFFSET: Final = re.compile(r"(.*)([+-])([0-9]{2})(?::([0-9]{2}))?(?::([0-9]{2}))?").fullmatch
_PLAIN_UTC: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}) ([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,6}))?\+00"
).fullmatch
_BC: Final = " BC"


def _unit(mode: TimeMode, precision: int, *, is_time: bool) -> Callable[[int], str]:
    """Return what makes a JSON number of microseconds."""
    if mode is TimeMode.nanoseconds:
        return _nanoseconds
    adaptive = mode is TimeMode.adaptive or (mode is TimeMode.adaptive_time_microseconds and not is_time)
    if mode is TimeMode.connect or (adaptive and precision <= _MILLIS_DIGITS):
        return lambda micros: str(micros // 1000)
    return _int64


_MILLIS_DIGITS: Final = 3


def _int64(number: int) -> str:
    if not -_INT64 <= number < _INT64:
        raise ValueError(number)
    return str(number)


def _nanoseconds(micros: int) -> str:
    return _int64(micros * 1000)


def _ordinal(text: str, *, before_christ: bool) -> int:
    """Return a date's days since 1970, in the calendar that PostgreSQL and Java both use for all times."""
    match = _DATE_TEXT(text)
    if match is None:
        raise ValueError(text)
    year, month, day = map(int, match.groups())
    if before_christ:
        year = 1 - year
    cycles, year = divmod(year - 1, 400)
    return date(year + 1, month, day).toordinal() - _EPOCH + cycles * 146_097


def _time_micros(text: str) -> int:
    match = _TIME_TEXT(text)
    if match is None:
        raise ValueError(text)
    hours, minutes, seconds, fraction = match.groups()
    whole = (int(hours) * 60 + int(minutes)) * 60 + int(seconds)
    return whole * 1_000_000 + (int(fraction.ljust(6, "0")) if fraction else 0)


def _micros(text: str) -> int:
    """Return a timestamp's microseconds since 1970."""
    if text[4:5] == "-" and text[10:11] == " " and text[-1] != "C":
        return (datetime.fromisoformat(text) - _MOMENT_0) // _MICROSECOND
    body = text.removesuffix(_BC)
    day, _, time = body.partition(" ")
    return _ordinal(day, before_christ=body != text) * _DAY + _time_micros(time)


def _epoch(text: str, unit: Callable[[int], str]) -> str:
    if text in _INFINITY:
        if unit is _nanoseconds:
            return str(_INT64 - 1 if text == "infinity" else -_INT64)
        return unit(_INFINITY[text])
    return unit(_micros(text))


def _epoch_days(text: str) -> str:
    if text in _INFINITE_DAYS:
        return str(_INFINITE_DAYS[text])
    body = text.removesuffix(_BC)
    return str(_ordinal(body, before_christ=body != text))


def _iso_day(days: int) -> str:
    """Return a date as ISO 8601: years beyond 9999 have a sign, 1 BC is the year 0."""
    cycles, day = divmod(days + _EPOCH - 1, 146_097)
    found = date.fromordinal(day + 1)
    year = found.year + 400 * cycles
    sign = "-" if year < 0 else "+" if year > _LAST_PLAIN_YEAR else ""
    return f"{sign}{abs(year):04d}-{found.month:02d}-{found.day:02d}"


_LAST_PLAIN_YEAR: Final = 9999


def _iso_date(text: str) -> str:
    return f'"{_iso_day(int(_epoch_days(text)))}Z"'


def _iso_time(text: str) -> str:
    _time_micros(text)
    return f'"{text}Z"'


def _iso_moment(micros: int, width: int) -> str:
    """Return a moment as ISO 8601 in UTC with WIDTH digits behind the point; 0: as many as there must be."""
    days, rest = divmod(micros, _DAY)
    seconds, fraction = divmod(rest, 1_000_000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    digits = f"{fraction:06d}"
    digits = digits[:width] if width else digits.rstrip("0")
    point = "." if digits else ""
    return f'"{_iso_day(days)}T{hour:02d}:{minute:02d}:{second:02d}{point}{digits}Z"'


def _iso_timestamp(text: str) -> str:
    return _iso_moment(_INFINITY[text] if text in _INFINITY else _micros(text), 0)


def _timestamptz(text: str, precision: int) -> str:
    plain = _PLAIN_UTC(text)
    if plain is not None:  # nearly all are: it is spelled anew, and not counted
        day, clock, fraction = plain.groups("")
        point = "." if precision else ""
        return f'"{day}T{clock}{point}{fraction.ljust(precision, "0")[:precision]}Z"'
    if text in _INFINITY:
        return f'"{text}"'
    body = text.removesuffix(_BC)
    clock, offset = _without_offset(body)
    return _iso_moment(_micros(clock + text[len(body) :]) - offset, precision)


def _timetz(text: str) -> str:
    """Convert to UTC; 24:00:00 at UTC stays the end of the day."""
    clock, offset = _without_offset(text)
    micros = _time_micros(clock)
    if micros == _DAY and not offset:
        return '"24:00:00Z"'
    return f'"{_iso_moment((micros - offset) % _DAY, 0)[1:].partition("T")[2]}'


def _without_offset(text: str) -> tuple[str, int]:
    """Return a time's text without its offset from UTC, and that in microseconds."""
    match = _OFFSET(text)
    if match is None:
        raise ValueError(text)
    clock, sign, hours, minutes, seconds = match.groups()
    offset = (int(hours) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)) * 1_000_000
    return clock, -offset if sign == "-" else offset


_NUMBER: Final = r"(?:(-?[0-9]+){})?"
_ISO_INTERVAL: Final = re.compile(
    "P"
    + "".join(_NUMBER.format(letter) for letter in "YMD")
    + "(?:T"
    + "".join(_NUMBER.format(letter) for letter in "HM")
    + r"(?:(-?[0-9]+(?:\.[0-9]+)?)S)?)?"
).fullmatch
#: 365.25 / 12 days, as Debezium counts a month.
_MONTH: Final = 2_629_800_000_000


def _interval(text: str) -> tuple[int, int, int, int, int, Decimal]:
    match = _ISO_INTERVAL(text)
    if match is None:
        raise ValueError(text)
    years, months, days, hours, minutes, seconds = (part or "0" for part in match.groups())
    return int(years), int(months), int(days), int(hours), int(minutes), Decimal(seconds)


def _interval_micros(text: str) -> str:
    years, months, days, hours, minutes, seconds = _interval(text)
    whole = (hours * 60 + minutes) * 60 * 1_000_000 + int(seconds * 1_000_000)
    return _int64((years * 12 + months) * _MONTH + days * _DAY + whole)


def _interval_text(text: str) -> str:
    years, months, days, hours, minutes, seconds = _interval(text)
    plain = f"{seconds:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return f'"P{years}Y{months}M{days}DT{hours}H{minutes}M{"0" if plain == "-0" else plain}S"'


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
