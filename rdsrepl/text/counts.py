"""Write numbers with their nouns."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str, *, grouped: bool = False) -> str:
    """Return a number with its noun in singular or plural: ``1 slot``, ``2 slots``.

    Args:
        number: how many.
        noun: in singular; its plural ends in ``s``.
        grouped: whether thousands are separated: ``1,000,000 transactions``.
    """
    return f"{number:{',' if grouped else ''}} {noun}{'' if number == 1 else 's'}"


def form(number: int, singular: str, plural: str) -> str:
    """Return the form of a word that agrees with a number: ``is`` or ``are``."""
    return singular if number == 1 else plural


def named(names: Sequence[str], *, most: int = 20) -> str:
    """Return names for a sentence; of many only the first, and how many more there are."""
    more = len(names) - most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:most])} and {more:,} more"
