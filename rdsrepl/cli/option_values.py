"""Converts the usual values of options and arguments.

Typer imports pydantic to convert a value, a text as well. That takes 0.05 s, of the 0.3 s of a short command.
"""

from __future__ import annotations

from enum import EnumType
from typing import Any, Final, Literal, get_args, get_origin

UNKNOWN: Final = object()


def converted(option: Any, value: Any) -> Any:
    """Return what Typer makes of a value, without pydantic; ``UNKNOWN`` for a value or a type that needs it.

    An error is always Typer's.
    """
    annotation, info = option.type_descriptor.annotation, option.type_descriptor.parameter_info

    def convert(kind: Any, one: Any) -> Any:
        if isinstance(one, str) and not one.isascii():  # an argument that is not UTF-8 is refused
            return UNKNOWN
        if info.parser is not None:
            try:
                return info.parser(one)
            except ValueError:
                return UNKNOWN
        if kind is str or not isinstance(one, str):
            # A default value has the type already.
            return one if isinstance(kind, type) and isinstance(one, kind) else UNKNOWN
        if kind is int and one.isdecimal() and len(one) < 10:
            is_allowed = (info.min is None or info.min <= int(one)) and (info.max is None or int(one) <= info.max)
            return int(one) if is_allowed else UNKNOWN
        choices = kind if isinstance(kind, EnumType) else get_args(kind) if get_origin(kind) is Literal else ()
        return next((choice for choice in choices if one == getattr(choice, "value", choice)), UNKNOWN)

    if value is None:
        return () if option.multiple or option.nargs == -1 else None
    if get_origin(annotation) is not list:
        return convert(annotation, value)
    each = [convert(get_args(annotation)[0], one) for one in value] if isinstance(value, list | tuple) else [UNKNOWN]
    return UNKNOWN if UNKNOWN in each else each
