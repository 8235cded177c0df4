"""Break a text for a terminal at spaces, but not within a command: what is pasted must be one line."""

from __future__ import annotations

from rdsrepl.text.commands import find

# Stands for a space within a command while the text is split: as wide as one, and escaped in what a terminal shows.
_KEPT = "\xa0"


def wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a text; a command, or a word, that is wider than WIDTH is a line that the terminal breaks."""
    from rich.cells import cell_len

    for found in reversed(list(find(text))):
        command = text[found.start : found.end].replace(" ", _KEPT)
        text = text[: found.start] + command + text[found.end :]
    first, *words = text.replace("\n", " ").split(" ")
    lines = [first]
    for word in words:
        longer = f"{lines[-1]} {word}"
        if cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line.replace(_KEPT, " ") for line in lines]
