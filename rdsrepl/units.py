"""Sizes, durations and booleans: one parser for each, and one printer for sizes and durations."""

from __future__ import annotations

import re
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
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DIGITS: Final = r"[0-9]{1,30}(?:\.[0-9]{1,30})?"
_SIZE: Final = re.compile(rf"({_DIGITS})\s*([A-Za-z]*)\Z")
_DURATION: Final = re.compile(_DIGITS)
_DURATION_PART: Final = re.compile(rf"({_DIGITS})\s*(ms|min|s|m|h|d)\s*")
# The largest bigint of PostgreSQL, and a duration that every clock can count.
_LARGEST_BYTES: Final = 2**63 - 1
_LONGEST_SECONDS: Final = 100 * 366 * 86400.0


def parse_size(text: str) -> int:
    """Read a size such as ``512MB``, ``10 GiB`` or ``4096`` into bytes.

    Raises:
        BadValue: TEXT is not a size.
    """
    match = _SIZE.match(text.strip())
    factor = _BYTES.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise BadValue(
            f"{text!r} is not a size", hint="a size is a number with kB, MB, GB or TB, such as 512MB or 10GB"
        )
    size = int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
    if size > _LARGEST_BYTES:
        raise BadValue(f"{text!r} is too large", hint="a size is less than 8 EB")
    return size


def parse_duration(text: str) -> float:
    """Read a duration such as ``90s``, ``1h30m``, ``500ms`` or ``2d`` into seconds; a bare number is seconds.

    Raises:
        BadValue: TEXT is not a duration.
    """
    stripped = text.strip()
    if _DURATION.fullmatch(stripped):
        return _checked(float(stripped), text)
    seconds, position = 0.0, 0
    while match := _DURATION_PART.match(stripped, position):
        seconds += float(match[1]) * _SECONDS[match[2]]
        position = match.end()
    if not stripped or position != len(stripped):
        raise BadValue(
            f"{text!r} is not a duration", hint="a duration is a number with ms, s, m, h or d, such as 30s or 1h30m"
        )
    return _checked(seconds, text)


def _checked(seconds: float, text: str) -> float:
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
