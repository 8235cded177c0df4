"""PostgreSQL's text of dates, times and intervals → JSON text as Debezium's PostgreSQL connector writes it.

All functions raise ValueError for text that they cannot convert. ``debezium_values`` has the other types.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Final

from rdsrepl.tail.formats.debezium_options import TimeMode

MICROS_DIGITS: Final = 6
_MILLIS_DIGITS: Final = 3
_LAST_PLAIN_YEAR: Final = 9999
_DAY: Final = 86_400_000_000
_EPOCH: Final = date(1970, 1, 1).toordinal()
_MOMENT_0: Final = datetime(1970, 1, 1)
_MICROSECOND: Final = timedelta(microseconds=1)
_INT64: Final = 1 << 63
_INFINITY: Final = {"infinity": 9_223_372_036_825_200_000, "-infinity": -9_223_372_036_832_400_000}
# What Debezium writes for these dates: the largest and the smallest 32-bit number of days since 2000, overflowed.
_INFINITE_DAYS: Final = {"infinity": -2_147_472_692, "-infinity": -2_147_472_691}
_DATE_TEXT: Final = re.compile(r"([0-9]{4,})-([0-9]{2})-([0-9]{2})").fullmatch
_TIME_TEXT: Final = re.compile(r"([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,6}))?").fullmatch
_OFFSET: Final = re.compile(r"(.*)([+-])([0-9]{2})(?::([0-9]{2}))?(?::([0-9]{2}))?").fullmatch
_PLAIN_UTC: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}) ([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,6}))?\+00"
).fullmatch
_BC: Final = " BC"


def time_unit(mode: TimeMode, precision: int, *, is_time: bool) -> Callable[[int], str]:
    """Return the function that converts microseconds to a JSON number in the unit of this mode and precision."""
    if mode is TimeMode.nanoseconds:
        return _nanoseconds
    adaptive = mode is TimeMode.adaptive or (mode is TimeMode.adaptive_time_microseconds and not is_time)
    if mode is TimeMode.connect or (adaptive and precision <= _MILLIS_DIGITS):
        return lambda micros: str(micros // 1000)
    return int64


def int64(number: int) -> str:
    """Return a number as JSON text if it fits in 64 bits."""
    if not -_INT64 <= number < _INT64:
        raise ValueError(number)
    return str(number)


def _nanoseconds(micros: int) -> str:
    return int64(micros * 1000)


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


def time_micros(text: str) -> int:
    """Return the microseconds of a time of day."""
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
    return _ordinal(day, before_christ=body != text) * _DAY + time_micros(time)


def epoch(text: str, unit: Callable[[int], str]) -> str:
    """Convert a timestamp to a number since 1970, in the unit of ``time_unit``."""
    if text in _INFINITY:
        if unit is _nanoseconds:
            return str(_INT64 - 1 if text == "infinity" else -_INT64)
        return unit(_INFINITY[text])
    return unit(_micros(text))


def epoch_days(text: str) -> str:
    """Convert a date to the number of days since 1970."""
    if text in _INFINITE_DAYS:
        return str(_INFINITE_DAYS[text])
    body = text.removesuffix(_BC)
    return str(_ordinal(body, before_christ=body != text))


def _iso_day(days: int) -> str:
    """Return a date as ISO 8601: years beyond 9999 have a sign, 1 BC is the year 0."""
    cycles, day = divmod(days + _EPOCH - 1, 146_097)
    within = date.fromordinal(day + 1)
    year = within.year + 400 * cycles
    sign = "-" if year < 0 else "+" if year > _LAST_PLAIN_YEAR else ""
    return f"{sign}{abs(year):04d}-{within.month:02d}-{within.day:02d}"


def iso_date(text: str) -> str:
    """Convert a date to ISO 8601."""
    return f'"{_iso_day(int(epoch_days(text)))}Z"'


def iso_time(text: str) -> str:
    """Convert a time of day to ISO 8601."""
    time_micros(text)
    return f'"{text}Z"'


def _iso_moment(micros: int, width: int) -> str:
    """Return a timestamp as ISO 8601 in UTC with WIDTH digits of a second; 0: without trailing zeros."""
    days, rest = divmod(micros, _DAY)
    seconds, fraction = divmod(rest, 1_000_000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    digits = f"{fraction:06d}"
    digits = digits[:width] if width else digits.rstrip("0")
    point = "." if digits else ""
    return f'"{_iso_day(days)}T{hour:02d}:{minute:02d}:{second:02d}{point}{digits}Z"'


def iso_timestamp(text: str) -> str:
    """Convert a timestamp to ISO 8601."""
    return _iso_moment(_INFINITY[text] if text in _INFINITY else _micros(text), 0)


def timestamptz(text: str, precision: int) -> str:
    """Convert a timestamp with time zone to ISO 8601 in UTC, with PRECISION digits of a second."""
    plain = _PLAIN_UTC(text)
    if plain is not None:  # almost every value: rearranging its text is faster than calculating
        day, clock, fraction = plain.groups("")
        point = "." if precision else ""
        return f'"{day}T{clock}{point}{fraction.ljust(precision, "0")[:precision]}Z"'
    if text in _INFINITY:
        return f'"{text}"'
    body = text.removesuffix(_BC)
    clock, offset = _without_offset(body)
    return _iso_moment(_micros(clock + text[len(body) :]) - offset, precision)


def timetz(text: str) -> str:
    """Convert a time with time zone to UTC; 24:00:00 in UTC stays the end of the day."""
    clock, offset = _without_offset(text)
    micros = time_micros(clock)
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


def interval_micros(text: str) -> str:
    """Convert an interval to microseconds."""
    years, months, days, hours, minutes, seconds = _interval(text)
    whole = (hours * 60 + minutes) * 60 * 1_000_000 + int(seconds * 1_000_000)
    return int64((years * 12 + months) * _MONTH + days * _DAY + whole)


def interval_text(text: str) -> str:
    """Convert an interval to ISO 8601."""
    years, months, days, hours, minutes, seconds = _interval(text)
    plain = f"{seconds:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return f'"P{years}Y{months}M{days}DT{hours}H{minutes}M{"0" if plain == "-0" else plain}S"'
