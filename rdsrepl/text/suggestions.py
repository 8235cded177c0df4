"""Suggest an existing name for an unknown one: ``did you mean orders?``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


def closest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name that is most similar to NAME, ignoring case; None if no name is similar.

    Args:
        name: what was typed.
        known: the names that exist.
        cutoff: how similar it must be, from 0 to 1.
    """
    by_lower_case = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=cutoff)
    return by_lower_case[near[0]] if near else None


def did_you_mean(
    name: str, known: Iterable[str], *, otherwise: str, cutoff: float = 0.6, quote: Callable[[str], str] = str
) -> str:
    """Return the hint for a name that does not exist.

    Args:
        name: what was typed.
        known: the names that exist.
        otherwise: the hint if no name is similar.
        cutoff: how similar a name must be, from 0 to 1.
        quote: writes the suggested name.
    """
    near = closest(name, known, cutoff=cutoff)
    return otherwise if near is None else f"did you mean {quote(near)}?"
