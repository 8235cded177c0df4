"""Lines of styled text for the screen, none wider than the terminal. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import shown as _shown

if TYPE_CHECKING:
    from rich.text import Text

Piece = tuple[str, str]


def known(text: str | None) -> str:
    """Return a text of the server; an unknown one is a question mark."""
    return "?" if text is None else _shown(text) or "-"


def shortened(text: str, width: int) -> str:
    """Return a text of at most WIDTH characters."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def line(width: int, *pieces: Piece) -> Text:
    """Return a line of pieces, each a text and its style."""
    from rich.text import Text

    text = Text.assemble(*((_shown(words), style) for words, style in pieces), no_wrap=True, overflow="crop")
    text.truncate(width, overflow="ellipsis")
    return text


def title_line(width: int, text: str) -> Text:
    """Return a title with a rule on both sides."""
    text = shortened(text, width - 6)
    return line(width, ("── ", "dim"), (text, "bold"), (" " + "─" * (width - len(text) - 4), "dim"))


def two_ended(width: int, left: list[Piece], right: str) -> Text:
    """Return a line with a text at both edges."""
    return with_right_text(line(width, *left), right, width)


def with_right_text(left: Text, right: str, width: int) -> Text:
    """Put a text at the right edge; it overwrites the end of the line."""
    left = left.copy()
    left.truncate(max(0, width - len(right) - 1), overflow="ellipsis", pad=True)
    left.append(" ")
    left.append(right, style="bold")
    return left


def join(width: int, parts: Iterable[Sequence[Piece]], *, between: str = " · ", cut: bool = False) -> Text:
    """Join the parts that fit; with CUT the first part that is too long is shortened, not omitted."""
    pieces: list[Piece] = []
    used = 0
    for part in parts:
        wide = sum(len(text) for text, _ in part) + (len(between) if pieces else 0)
        if used + wide > width and pieces and not cut:
            continue
        pieces += [(between, "dim")] if pieces else []
        pieces += part
        used += wide
    return line(width, *pieces)


def truncated(rows: Sequence[Text], available: int, width: int) -> list[Text]:
    """Return the rows that fit; the last one tells how many are omitted."""
    if len(rows) <= available or available < 1:
        return list(rows[:available])
    return [*rows[: available - 1], line(width, (f"  … {counted(len(rows) - available + 1, 'more line')}", "dim"))]
