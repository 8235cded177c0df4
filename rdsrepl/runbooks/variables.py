"""Check the values of a runbook's variables by their types, before the first step runs.

A value is always one word and never reaches a shell. This module also refuses a value that looks like an option.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.text.suggestions import did_you_mean
from rdsrepl.units import parse_duration, parse_size, parse_size_in


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a page.

    Attributes:
        name: the name in ``--var``: ``slot``; the page writes ``$SLOT``.
        help: its description.
        type: one of ``TYPES``.
        default: the value if none is given; None if a value is required.
    """

    name: str
    help: str
    type: str = "text"
    default: str | None = None

    @property
    def required(self) -> bool:
        """Whether a value is required."""
        return self.default is None


def _matches(pattern: str) -> Callable[[str], object]:
    def check(value: str) -> object:
        if not re.fullmatch(pattern, value):
            raise BadValue(value)
        return value

    return check


# Each type: the function that refuses a value, and a description of a valid value.
TYPES: Final[Mapping[str, tuple[Callable[[str], object], str]]] = {
    "text": (lambda value: value, "any text on one line"),
    "name": (_matches(r".{1,63}"), "up to 63 characters"),
    "table": (_matches(r'[^\s;"]+|[^;"]*"[^"]+"(\."[^"]+")?'), 'a table such as sales.orders or sales."Orders"'),
    "slot": (_matches(r"[a-z0-9_]{1,63}"), "up to 63 characters of a-z, 0-9 and _"),
    "aws": (_matches(r"[A-Za-z][A-Za-z0-9-]{0,254}"), "letters, digits and hyphens, beginning with a letter"),
    "secret": (_matches(r"[A-Za-z0-9/_+=.@!:-]{1,2048}"), "a Secrets Manager secret's name or ARN"),
    "stream": (_matches(r"[a-zA-Z0-9_.:/-]{1,2048}"), "a stream's name or ARN"),
    "target": (_matches(r"[A-Za-z0-9][A-Za-z0-9_.-]*"), "a target of the config file"),
    "integer": (_matches(r"[0-9]{1,9}"), "a number"),
    "duration": (parse_duration, "a duration such as 30s or 1h30m"),
    "size": (parse_size, "a size such as 512MB or 10GB"),
    "megabytes": (partial(parse_size_in, "MB"), "a size such as 10GB, or a number of MB"),
    "lsn": (Lsn.parse, "an LSN such as 16/B374D848"),
}


def check_value(variable: Variable, value: str) -> str:
    """Return VALUE if it is valid for the variable.

    Raises:
        BadValue: it is not.
    """
    checker, example = TYPES[variable.type]
    if value == "" and not variable.required and variable.default == "":
        return value
    try:
        if value == "" or value.startswith("-") or not value.isprintable():
            raise BadValue(value)
        checker(value)
    except BadValue:
        raise BadValue(f"{variable.name}={value!r} is not valid", hint=f"give {example}") from None
    return value


def parse_assignments(words: Iterable[str], known: Sequence[Variable]) -> dict[str, str]:
    """Return the checked values of ``--var NAME=VALUE``.

    Raises:
        BadValue: the form, the name or the value is not valid, or a name is given twice.
    """
    by_name = {variable.name: variable for variable in known}
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise BadValue(f"--var {word!r} is not NAME=VALUE", hint="for example --var slot=orders_cdc")
        if name not in by_name:
            hint = did_you_mean(name, by_name, otherwise=f"its variables: {', '.join(by_name) or 'none'}")
            raise BadValue(f"--var {name}: the runbook has no such variable", hint=hint)
        if name in values:
            raise BadValue(f"--var {name} is given twice", hint="give it once")
        values[name] = check_value(by_name[name], value)
    return values


def with_defaults(values: Mapping[str, str], known: Sequence[Variable]) -> dict[str, str]:
    """Return the value of each variable: the given value, or the default.

    Raises:
        BadValue: a required value is missing.
    """
    missing = [variable for variable in known if variable.required and variable.name not in values]
    if missing:
        what = "; ".join(f"{variable.name} ({variable.help})" for variable in missing)
        raise BadValue(
            f"missing variables: {what}",
            hint=" ".join(f"--var {variable.name}={variable.name.upper()}" for variable in missing),
        )
    return {variable.name: values.get(variable.name, variable.default or "") for variable in known}
