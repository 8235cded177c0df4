"""Sizes, durations and booleans: one parser for each, and one printer for sizes and durations."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

from rdsrepl.errors import BadValue

# The units of PostgreSQL are powers of 1024 (manual, section 20.1.1); KiB, MiB, GiB and TiB mean the same.
_BYTES: Final = {
    "": 1,
    "b": 1,
    "k": 1 << 10,
    "kb": 1 << 10,
    "kib": 1 << 10,
    "m": 1 << 20,
    "mb": 1 << 20,
    "mib": 1 << 20,
    "g": 1 << 30,
    "gb": 1 << 30,
    "gib": 1 << 30,
    "t": 1 << 40,
    "tb": 1 << 40,
    "tib": 1 << 40,
}
_SECONDS: Final = {
    "us": Fraction(1, 1_000_000),
    **dict.fromkeys(("ms", "msec", "msecs", "millisecond", "milliseconds"), Fraction(1, 1000)),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), Fraction(1)),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), Fraction(60)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), Fraction(3600)),
    **dict.fromkeys(("d", "day", "days"), Fraction(86400)),
    **dict.fromkeys(("w", "week", "weeks"), Fraction(7 * 86400)),
}
#: The units of ``pg_settings.unit``: whether it is one of sizes, and how many bytes or seconds it is.
PARAMETER_UNITS: Final[Mapping[str, tuple[bool, Fraction]]] = {
    "B": (True, Fraction(1)),
    "kB": (True, Fraction(1 << 10)),
    "8kB": (True, Fraction(8 << 10)),
    "MB": (True, Fraction(1 << 20)),
    "us": (False, Fraction(1, 1_000_000)),
    "ms": (False, Fraction(1, 1000)),
    "s": (False, Fraction(1)),
    "min": (False, Fraction(60)),
}
_WHOLE: Final = re.compile(r"[1-9][0-9]{0,29}")
_DIGITS: Final = r"[0-9]{1,30}(?:\.[0-9]{1,30})?"
_NUMBER: Final = re.compile(_DIGITS)
_SIZE: Final = re.compile(rf"({_DIGITS})[ \u00a0]*([A-Za-z]*)")
_DURATION_PART: Final = re.compile(rf"({_DIGITS})[ \u00a0]*([A-Za-z]+)[ \u00a0]*")
# The largest bigint of PostgreSQL, and a duration that every clock can count.
_LARGEST_BYTES: Final = 2**63 - 1
_LONGEST_SECONDS: Final = 100 * 366 * 86400


def parse_size(text: str) -> int:
    """Read a size such as ``512MB``, ``10 GiB`` or ``10gb`` into bytes; only 0 needs no unit.

    Raises:
        BadValue: TEXT is not a size.
    """
    number, unit = _size_parts(text)
    if not unit and number:
        bare = text.strip()
        raise BadValue(f"{text!r} has no unit", hint=f"write the unit: {bare}MB or {bare}GB")
    return _checked_bytes(number * _BYTES[unit], text)


def parse_size_in(unit: str, text: str, *, least: int = 1, most: int | None = None) -> int:
    """Read a size into whole units in which an API counts, such as GiB; a bare number is in that unit.

    Raises:
        BadValue: TEXT is not a size, not a whole number of UNIT, or outside of the limits.
    """
    number, given = _size_parts(text)
    factor = _BYTES[unit.lower()]
    count = Fraction(_checked_bytes(number * (_BYTES[given] if given else factor), text), factor)
    if count.denominator != 1:
        raise BadValue(f"{text!r} is not a whole number of {unit}", hint=f"for example {math.ceil(count)}{unit}")
    if count < least or (most is not None and count > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise BadValue(f"{text!r} is outside of the limits", hint=f"give {limits} {unit}")
    return int(count)


def _size_parts(text: str) -> tuple[Fraction, str]:
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].lower() not in _BYTES:
        raise BadValue(
            f"{text!r} is not a size", hint="a size is a number with kB, MB, GB or TB, such as 512MB or 10GB"
        )
    return Fraction(match[1]), match[2].lower()


def _checked_bytes(size: Fraction, text: str) -> int:
    if size > _LARGEST_BYTES:
        raise BadValue(f"{text!r} is too large", hint="a size is less than 8 EB")
    return int(size)


def parse_duration(text: str) -> float:
    """Read a duration such as ``90s``, ``1h30m``, ``500ms`` or ``7 days`` into seconds; a bare number is seconds.

    Raises:
        BadValue: TEXT is not a duration.
    """
    return float(exact_duration(text))


def exact_duration(text: str) -> Fraction:
    """Read a duration as ``parse_duration`` does, without rounding.

    Raises:
        BadValue: TEXT is not a duration.
    """
    stripped = text.strip()
    seconds, position = Fraction(0), 0
    if _NUMBER.fullmatch(stripped):
        seconds, position = Fraction(stripped), len(stripped)
    while (match := _DURATION_PART.match(stripped, position)) and match[2].lower() in _SECONDS:
        seconds += Fraction(match[1]) * _SECONDS[match[2].lower()]
        position = match.end()
    if not stripped or position != len(stripped):
        raise BadValue(
            f"{text!r} is not a duration", hint="a duration is a number with ms, s, m, h or d, such as 30s or 1h30m"
        )
    if seconds > _LONGEST_SECONDS:
        raise BadValue(f"{text!r} is too long", hint="a duration is less than 100 years")
    return seconds


def parse_boolean(text: str) -> bool | None:
    """Return the value of a boolean setting as PostgreSQL reads it; None if TEXT is not a boolean.

    A unique prefix is enough: ``t``, ``of`` (manual, section 19.1.1).
    """
    word = text.strip().lower()
    if word in ("1", "on") or (word and ("true".startswith(word) or "yes".startswith(word))):
        return True
    if word in ("0", "of", "off") or (word and ("false".startswith(word) or "no".startswith(word))):
        return False
    return None


def with_unit(value: str, unit: str | None) -> str:
    """Return a parameter's value for people: ``10240 (10GB)`` in ``MB``; -1, 0, formulas and texts as they are.

    The second number is exact, and can be given to ``param-group set`` in place of the first.
    """
    if unit is None or not _WHOLE.fullmatch(value):
        return value
    is_size, factor = PARAMETER_UNITS[unit]
    total = int(value) * factor
    units = ("TB", "GB", "MB", "kB", "B") if is_size else ("d", "h", "min", "s", "ms", "us")
    factors = {name: Fraction(_BYTES[name.lower()]) if is_size else _SECONDS[name] for name in units}
    largest = next(name for name in units if (total / factors[name]).denominator == 1)
    return f"{value} ({total / factors[largest]}{largest})"


def format_size(size_bytes: int) -> str:
    """Return a size for people: ``1.5 GB`` (powers of 1024, like ``pg_size_pretty``)."""
    sign, value = ("-" if size_bytes < 0 else ""), float(abs(size_bytes))
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1024:
            return f"{sign}{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{sign}{value:.1f} {unit}"
        value /= 1024
    return f"{sign}{value:.1f} TB"


def format_duration(seconds: float) -> str:
    """Return a duration for people: ``1.2s``, ``3m20s``, ``4h05m``, ``2d03h``."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
