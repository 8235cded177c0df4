"""Thresholds as people write them: ``retained=10GB``, ``time-to-break=6h``, ``wal-status=lost``. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Literal

from rdsrepl.errors import BadValue
from rdsrepl.units import format_duration, format_size, parse_duration, parse_size

_HOUR: Final = 3600.0


class Severity(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


Measure = Literal["retained", "undelivered", "breaks", "inactive", "xid_age", "wal_status"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on it is worth a word; None is never.

    Attributes:
        retained_bytes, undelivered_bytes: at least so much.
        breaks_seconds: something breaks within so long.
        inactive_seconds: nobody consumes it for at least so long.
        xid_age: it holds back so many transactions.
        wal_status: one of these.
    """

    retained_bytes: int | None = None
    undelivered_bytes: int | None = None
    breaks_seconds: float | None = None
    inactive_seconds: float | None = None
    xid_age: int | None = None
    wal_status: frozenset[str] = frozenset()


DEFAULT_WARNING: Final = Thresholds(10 << 30, None, 24 * _HOUR, _HOUR, 500_000_000, frozenset({"unreserved"}))
DEFAULT_CRITICAL: Final = Thresholds(100 << 30, None, _HOUR, None, 1_000_000_000, frozenset({"unreserved", "lost"}))

_WAL_STATUSES: Final = ("reserved", "extended", "unreserved", "lost")


def _parse_wal_status(text: str) -> frozenset[str]:
    if text not in _WAL_STATUSES:
        raise BadValue(f"{text!r} is no wal_status", hint=f"one of {', '.join(_WAL_STATUSES)}")
    return frozenset({text})


def _parse_transactions(text: str) -> int:
    plain = text.replace("_", "").replace(",", "")
    if not re.fullmatch(r"[0-9]{1,18}", plain):
        raise BadValue(f"{text!r} is not a number of transactions", hint="such as 500000000")
    return int(plain)


@dataclass(frozen=True, slots=True)
class _Measure:
    """Something that has thresholds: its field, how it is read and printed, and whether less is worse."""

    field: str
    parse: Callable[[str], Any]
    show: Callable[[Any], str]
    less_is_worse: bool = False


MEASURES: Final[Mapping[str, _Measure]] = {
    "retained": _Measure("retained_bytes", parse_size, format_size),
    "undelivered": _Measure("undelivered_bytes", parse_size, format_size),
    "time-to-break": _Measure("breaks_seconds", parse_duration, format_duration, less_is_worse=True),
    "inactive": _Measure("inactive_seconds", parse_duration, format_duration),
    "xid-age": _Measure("xid_age", _parse_transactions, str),
    "wal-status": _Measure("wal_status", _parse_wal_status, lambda value: "|".join(sorted(value))),
}
_ALIASES: Final = {"time-to-full": "time-to-break"}


def parse(warn: Iterable[str], critical: Iterable[str]) -> tuple[Thresholds, Thresholds]:
    """Return both thresholds: what was said, and the defaults for what nothing was said about.

    Args:
        warn: such as ``retained=10GB``; several in one, separated by commas, are as good.
        critical: the same.

    Raises:
        BadValue: a measure that is not known, a value that does not parse, one that is given twice, or a critical
            threshold that lies before the warning.
    """
    said = {"--warn": _read("--warn", warn), "--critical": _read("--critical", critical)}
    for name in {*said["--warn"], *said["--critical"]}:
        _require_order(name, said["--warn"].get(name), said["--critical"].get(name))
    # A measure that somebody has a number for on one side has no default on the other: they could contradict.
    touched = {MEASURES[name].field for name in (*said["--warn"], *said["--critical"])}
    return (
        _override(DEFAULT_WARNING, touched, said["--warn"]),
        _override(DEFAULT_CRITICAL, touched, said["--critical"]),
    )


def _read(option: str, words: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in (part for text in words for part in text.split(",")):
        name, mark, value = word.strip().partition("=")
        name = _ALIASES.get(name, name)
        if not mark or name not in MEASURES:
            raise BadValue(
                f"{option} {word.strip()!r}: no such threshold", hint=f"MEASURE=VALUE; measures: {', '.join(MEASURES)}"
            )
        try:
            read = MEASURES[name].parse(value.strip())
        except BadValue as exc:
            raise BadValue(f"{option} {name}: {exc.message}", hint=exc.hint) from exc
        if name == "wal-status":
            read |= found.get(name, frozenset())
        elif name in found:
            raise BadValue(f"{option} {name} is given twice", hint="give it once")
        found[name] = read
    return found


def _require_order(name: str, warn: Any, critical: Any) -> None:
    if warn is None or critical is None or name == "wal-status":
        return
    measure = MEASURES[name]
    wrong = critical > warn if measure.less_is_worse else critical < warn
    if wrong:
        raise BadValue(
            f"{name}: critical at {measure.show(critical)} comes before the warning at {measure.show(warn)}",
            hint="swap them: a warning comes first",
        )


def _override(defaults: Thresholds, touched: set[str], said: Mapping[str, Any]) -> Thresholds:
    empty = Thresholds()
    cleared = replace(defaults, **{field: getattr(empty, field) for field in touched})
    return replace(cleared, **{MEASURES[name].field: value for name, value in said.items()})
