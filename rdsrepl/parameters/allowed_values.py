"""Check a value against ``AllowedValues`` of the RDS API: ``5-262143``, ``-1-2147483647``, ``0,1``, ``0,30-3600``."""

from __future__ import annotations

import math
import re
from typing import Final

from rdsrepl.errors import BadValue
from rdsrepl.parameters import formulas

_DIGITS: Final = r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_NUMBER: Final = re.compile(rf"{_DIGITS}\Z")
_RANGE: Final = re.compile(rf"\s*({_DIGITS})\s*-\s*({_DIGITS})\s*\Z")
_WHOLE: Final = re.compile(r"-?[0-9]{1,300}\Z")
_TEXTS: Final = frozenset({"string", "list"})


def is_allowed(value: str, allowed_values: str | None, data_type: str | None = None) -> bool:
    """Return whether a parameter may be set to VALUE.

    A formula with known variables is allowed: its value depends on the instance class.

    Args:
        value: the value to set.
        allowed_values: ``AllowedValues`` of the API: values and ranges with commas between them; None allows all.
        data_type: ``DataType`` of the API: ``integer``, ``float``, ``boolean``, ``string``, ``list``; None where
            it is unknown.
    """
    kind = (data_type or "").lower()
    number: str | None = value if _NUMBER.match(value) else None
    if number is None and kind not in _TEXTS:
        try:
            if formulas.variables(value):
                return True
            number = str(formulas.evaluate(value, None))
        except BadValue:
            pass
    if not allowed_values:
        return kind not in {"integer", "float"} or (number is not None and (kind == "float" or "." not in number))
    items = [item.strip() for item in allowed_values.split(",")]
    if kind == "list":
        return all(part.strip() in items for part in value.split(","))
    return value in items or (number is not None and any(_within(number, item, kind) for item in items))


def upper_bound(allowed_values: str | None) -> int | None:
    """Return the greatest whole number that is allowed; None where there is no limit."""
    tops = []
    for item in (allowed_values or "").split(","):
        if match := _RANGE.match(item):
            tops.append(_whole(match[2]))
        elif _WHOLE.match(item.strip()):
            tops.append(_whole(item.strip()))
    return max((top for top in tops if top is not None), default=None)


def _whole(text: str) -> int | None:
    """Return a number without its fraction; None where it is too large for a parameter."""
    if _WHOLE.match(text):
        return int(text)
    number = float(text)
    return int(number) if math.isfinite(number) else None


def _within(number: str, item: str, kind: str) -> bool:
    match = _RANGE.match(item)
    if match is None:
        return False
    # Where the type is unknown, fractions are allowed if the range has fractions.
    if "." in number and (kind == "integer" or (kind != "float" and "." not in item)):
        return False
    return float(match[1]) <= float(number) <= float(match[2])
