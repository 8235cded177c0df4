"""What RDS takes as a name; checked before any call, so that a bad one touches nothing."""

from __future__ import annotations

import re

from rdsrepl.errors import BadValue


def check(name: str, what: str, *, longest: int) -> str:
    """Return NAME as RDS keeps it, in lower case, if it can be an identifier.

    Args:
        name: the name.
        what: whose it is, for the message: ``a cluster``.
        longest: how many characters it may have (API reference: 63 for an instance, 255 for a group or snapshot).

    Raises:
        BadValue: it cannot.
    """
    lower = name.lower()
    if not re.fullmatch(r"[a-z](-?[a-z0-9])*", lower) or len(lower) > longest:
        raise BadValue(
            f"{name!r} cannot be {what}'s name",
            hint=f"1 to {longest} letters, digits and hyphens; a letter first, no hyphen last, no two hyphens in a row",
        )
    return lower
