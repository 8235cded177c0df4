"""What may stand in a runbook's variables: each has a type, and a value is checked before anything runs.

A value never becomes more than one word and never reaches a shell; that it is no option either is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.text.suggestions import did_you_mean
from rdsrepl.units import parse_duration, parse_size


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a page.

    Attributes:
        name: as ``--var`` has it: ``slot``; the page writes ``$SLOT``.
        help: what it is.
        type: one of ``TYPES``.
        default: its value where none is given; None where one must be.
    """

    name: str
    help: str
    type: str = "text"
    default: str | None = None

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is None


def _matches(pattern: str) -> Callable[[str], object]:
    def check(value: str) -> object:
        if not re.fullmatch(pattern, value):
            raise BadValue(value)
        return value

    return check


# Each type: what refuses a value, and what a good one looks like.
TYPES: Final[Mapping[str, tuple[Callable[[str], object], str]]] = {
    "text": (lambda value: value, "any text on one line"),
    "name": (_matches(r".{1,63}"), "up to 63 characters"),
    "table": (_matches(r'[^\s;"]+|[^;"]*"[^"]+"(\."[^"]+")?'), 'sales.orders, or sales."Orders"'),
    "slot": (_matches(r"[a-z0-9_]{1,63}"), "up to 63 of a-z, 0-9 and _"),
    "aws": (_matches(r"[A-Za-z][A-Za-z0-9-]{0,254}"), "letters, digits and hyphens, a letter first"),
    "secret": (_matches(r"[A-Za-z0-9/_+=.@!:-]{1,2048}"), "a Secrets Manager secret's name or ARN"),
    "stream": (_matches(r"[a-zA-Z0-9_.:/-]{1,2048}"), "a stream's name or ARN"),
    "target": (_matches(r"[A-Za-z0-9][A-Za-z0-9_.-]*"), "a target of the config file"),
    "integer": (_matches(r"[0-9]{1,9}"), "a number"),
    "duration": (parse_duration, "30s, 1h30m"),
    "size": (parse_size, "512MB, 10GB"),
    "lsn": (Lsn.parse, "16/B374D848"),
}


def check_value(variable: Variable, value: str) -> str:
    """Return VALUE where the variable may have it.

    Raises:
        BadValue: it may not.
    """
    checker, example = TYPES[variable.type]
    if value == "" and not variable.required and variable.default == "":
        return value
    try:
        if value == "" or value.startswith("-") or not value.isprintable():
            raise BadValue(value)
        checker(value)
    except BadValue:
        raise BadValue(f"{variable.name}={value!r} is not what {variable.name} takes", hint=f"{example}") from None
    return value


def parse_assignments(words: Iterable[str], known: Sequence[Variable]) -> dict[str, str]:
    """Return the values of ``--var k=v`` words, checked.

    Raises:
        BadValue: a word is no ``k=v``, names no variable or one twice, or the value is not one of its type.
    """
    by_name = {variable.name: variable for variable in known}
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise BadValue(f"--var {word!r} is no NAME=VALUE", hint="--var slot=orders_cdc")
        if name not in by_name:
            hint = did_you_mean(name, by_name, otherwise=f"its variables: {', '.join(by_name) or 'none'}")
            raise BadValue(f"--var {name}: the runbook has no such variable", hint=hint)
        if name in values:
            raise BadValue(f"--var names {name} twice", hint="once is enough")
        values[name] = check_value(by_name[name], value)
    return values


def with_defaults(values: Mapping[str, str], known: Sequence[Variable]) -> dict[str, str]:
    """Return a value for each variable: the given one, or its default.

    Raises:
        BadValue: one without a default was not given.
    """
    lacking = [variable for variable in known if variable.required and variable.name not in values]
    if lacking:
        what = "; ".join(f"{variable.name} ({variable.help})" for variable in lacking)
        raise BadValue(
            f"missing: {what}", hint=" ".join(f"--var {variable.name}={variable.name.upper()}" for variable in lacking)
        )
    return {variable.name: values.get(variable.name, variable.default or "") for variable in known}
