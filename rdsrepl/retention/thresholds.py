"""The thresholds of ``slot check``: their defaults, and the parser of ``retained=10GB``. Pure: no I/O, no clock."""

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
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for ok, 1 for warning, 2 for critical; also the exit code of a Nagios plugin."""
        return list(Severity).index(self)


Measure = Literal["retained", "undelivered", "breaks", "inactive", "xid_age", "wal_status"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The values from which a slot gets a severity; None sets no threshold.

    Attributes:
        retained_bytes, undelivered_bytes: at least this much.
        breaks_seconds: a failure is forecast within this time.
        inactive_seconds: inactive for at least this long.
        xid_age: holds back at least this many transactions.
        wal_status: one of these.
    """

    retained_bytes: int | None = None
    undelivered_bytes: int | None = None
    breaks_seconds: float | None = None
    inactive_seconds: float | None = None
    xid_age: int | None = None
    wal_status: frozenset[str] = frozenset()


# The help of ``slot check`` and docs/retention.md quote these values.
DEFAULT_WARNING: Final = Thresholds(10 << 30, None, 24 * _HOUR, _HOUR, 500_000_000, frozenset({"unreserved"}))
DEFAULT_CRITICAL: Final = Thresholds(100 << 30, None, _HOUR, None, 1_000_000_000, frozenset({"unreserved", "lost"}))

_WAL_STATUSES: Final = ("reserved", "extended", "unreserved", "lost")


def _parse_wal_status(text: str) -> frozenset[str]:
    if text.lower() not in _WAL_STATUSES:
        raise BadValue(f"{text!r} is not a wal_status", hint=f"one of {', '.join(_WAL_STATUSES)}")
    return frozenset({text.lower()})


def _parse_transactions(text: str) -> int:
    plain = text.replace("_", "").replace(",", "")
    if not re.fullmatch(r"[0-9]{1,18}", plain):
        raise BadValue(f"{text!r} is not a number of transactions", hint="for example 500000000")
    return int(plain)


@dataclass(frozen=True, slots=True)
class _Measure:
    """A measure that has thresholds: its field, its parser and its format, and whether a lower value is worse."""

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
    """Return the warning and the critical thresholds: the given values, and the defaults of the other measures.

    Args:
        warn: the values of ``--warn``, such as ``retained=10GB``; one value can hold several, separated by commas.
        critical: the values of ``--critical``.

    Raises:
        BadValue: a measure is unknown or given twice, a value cannot be parsed, or the critical threshold of a measure
            is reached before its warning.
    """
    warning, severe = _parse_option("--warn", warn), _parse_option("--critical", critical)
    for name in {*warning, *severe}:
        _require_order(name, warning.get(name), severe.get(name))
    # A measure with a given value for one severity has no default for the other: the two could contradict.
    given = {MEASURES[name].field for name in (*warning, *severe)}
    return _override(DEFAULT_WARNING, given, warning), _override(DEFAULT_CRITICAL, given, severe)


def _parse_option(option: str, values: Iterable[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for word in (part for text in values for part in text.split(",")):
        name, mark, value = word.strip().partition("=")
        name = _ALIASES.get(name.strip().lower(), name.strip().lower())
        if not mark or name not in MEASURES:
            raise BadValue(
                f"{option} {word.strip()!r} is not a threshold", hint=f"MEASURE=VALUE; measures: {', '.join(MEASURES)}"
            )
        try:
            threshold = MEASURES[name].parse(value.strip())
        except BadValue as exc:
            raise BadValue(f"{option} {name}: {exc.message}", hint=exc.hint) from exc
        if name == "wal-status":
            threshold |= parsed.get(name, frozenset())
        elif name in parsed:
            raise BadValue(f"{option} {name} is given twice", hint="give it once")
        parsed[name] = threshold
    return parsed


def _require_order(name: str, warn: Any, critical: Any) -> None:
    if warn is None or critical is None or name == "wal-status":
        return
    measure = MEASURES[name]
    if critical > warn if measure.less_is_worse else critical < warn:
        raise BadValue(
            f"{name}: critical at {measure.show(critical)} is reached before the warning at {measure.show(warn)}",
            hint="swap the two values",
        )


def _override(defaults: Thresholds, fields: set[str], values: Mapping[str, Any]) -> Thresholds:
    empty = Thresholds()
    cleared = replace(defaults, **{field: getattr(empty, field) for field in fields})
    return replace(cleared, **{MEASURES[name].field: value for name, value in values.items()})
