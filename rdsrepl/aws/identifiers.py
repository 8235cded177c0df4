"""Check RDS identifiers before any call."""

from __future__ import annotations

import re

from rdsrepl.errors import BadValue


def check(name: str, what: str, *, longest: int) -> str:
    """Return NAME in lower case, as RDS stores it, if it is a valid identifier.

    Args:
        name: the name.
        what: the object, for the message: ``a cluster``.
        longest: the maximum length (API reference: 63 for an instance, 255 for a group or snapshot).

    Raises:
        BadValue: it is not valid.
    """
    lower = name.lower()
    if not re.fullmatch(r"[a-z](-?[a-z0-9])*", lower) or len(lower) > longest:
        raise BadValue(
            f"{name!r} is not a valid name for {what}",
            hint=f"use 1 to {longest} letters, digits and single hyphens; "
            "begin with a letter, end with a letter or digit",
        )
    return lower
