"""How the format ``debezium`` writes keys and values: the modes of Debezium's PostgreSQL connector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from rdsrepl.errors import BadValue


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


_HEX: Final = "hex:"
_MODES: Final[Mapping[str, type[StrEnum]]] = {
    "time": TimeMode,
    "decimal": DecimalMode,
    "binary": BinaryMode,
    "interval": IntervalMode,
    "hstore": HstoreMode,
}


def debezium_options(option_name: Callable[[str], str], *, is_debezium: bool, **given: Any) -> DebeziumOptions:
    """Return the options that were given.

    Args:
        option_name: returns what the user calls an option, such as ``debezium_time``.
        is_debezium: whether the format is ``debezium``.
        given: values of ``DebeziumOptions`` by attribute; None is the default.

    Raises:
        BadValue: the format is another one, or a value is not valid; the hint lists the valid ones.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen and not is_debezium:
        name = option_name(f"debezium_{next(iter(chosen))}")
        hint = f"add {option_name('format')} debezium, or omit {name}"
        raise BadValue(f"{name} requires {option_name('format')} debezium", hint=hint)
    for name, modes in _MODES.items():
        if name in chosen:
            allowed = [mode.value for mode in modes]
            if chosen[name] not in allowed:
                raise BadValue(
                    f"{option_name(f'debezium_{name}')} {chosen[name]!r} is not a mode",
                    hint=f"one of {', '.join(allowed)}",
                )
            chosen[name] = modes(chosen[name])
    placeholder = chosen.get("placeholder", "")
    if placeholder.startswith(_HEX):
        try:
            chosen["placeholder"] = bytes.fromhex(placeholder.removeprefix(_HEX)).decode()
        except ValueError:
            raise BadValue(
                f"{option_name('debezium_placeholder')} {placeholder!r} is not the hexadecimal form of a UTF-8 text",
                hint="hex:5f5f6e6f6e65, or the text itself",
            ) from None
    return DebeziumOptions(**chosen)
