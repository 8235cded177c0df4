"""Show on stderr what a long step waits for: rows that are redrawn on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import typer

from rdsrepl.apply import Blocker
from rdsrepl.cli.console import note
from rdsrepl.cli.context import LogFormat, global_options
from rdsrepl.render import line_for_person
from rdsrepl.units import format_duration

State = Blocker | str

_FIRST_SECONDS: Final = 1.0
_LINE_SECONDS: Final = 30.0
# How many states one line names, if the state changes faster than lines are printed.
_STATES: Final = 3
# The terminal writes ^C behind the last row, and the next row begins after the last column.
_FREE_COLUMNS: Final = 3
_INDENT: Final = "  "
_SHORTEST_QUERY: Final = 24


class Progress:
    """Shows what the steps of a command wait for, one step after the other."""

    def __init__(self, ctx: typer.Context) -> None:
        self._ctx = ctx
        is_text = global_options(ctx).log_format is LogFormat.text
        self._rows = Rows() if is_text and updates_in_place() else None
        self._lines = StateLines()

    def update(self, title: str, seconds: float, states: Sequence[State] = ()) -> None:
        """Show what a step waits for after SECONDS; the first second is not shown."""
        if global_options(self._ctx).quiet or seconds < _FIRST_SECONDS:
            return
        if self._rows is not None:
            self._rows.draw(wait_rows(title, seconds, states, screen_size()))
        elif (line := self._lines.line(title, seconds, states)) is not None:
            note(self._ctx, line)

    def clear(self) -> None:
        """Remove the rows from the terminal, and forget what was printed."""
        if self._rows is not None:
            self._rows.erase()
        self._lines = StateLines()


class StateLines:
    """The lines of a wait without a terminal: at most one every 30 seconds, with the states since the line before."""

    def __init__(self) -> None:
        self._printed_at: float | None = None
        self._states: dict[tuple[str, ...], str] = {}

    def line(self, title: str, seconds: float, states: Sequence[State]) -> str | None:
        """Return the line to print after SECONDS; None for none. The age of a blocker is not a change of state."""
        key = tuple(one.identity if isinstance(one, Blocker) else one for one in states)
        self._states.pop(key, None)
        self._states[key] = _for(states) + "; ".join(_text(one) for one in states)
        if self._printed_at is not None and seconds - self._printed_at < _LINE_SECONDS:
            return None
        what = "; then ".join([text for text in self._states.values() if text][-_STATES:])
        self._states.clear()
        self._printed_at = seconds
        return f"{title}{': ' if what else ''}{what} ({format_duration(seconds)})"


class Rows:
    """Rows of text at the cursor, which the next text replaces."""

    def __init__(self) -> None:
        self._drawn: Sequence[str] = ()

    def draw(self, rows: Sequence[str]) -> None:
        """Replace the rows; each must be narrower than the terminal."""
        sys.stderr.write(self._erasing() + "\n".join(rows))
        sys.stderr.flush()
        self._drawn = rows

    def erase(self) -> None:
        """Remove the rows."""
        if self._drawn:
            sys.stderr.write(self._erasing())
            sys.stderr.flush()
            self._drawn = ()

    def _erasing(self) -> str:
        """Return what moves the cursor to the first row and erases the rest of the screen.

        If the terminal became narrower, it has folded rows.
        """
        from rich.cells import cell_len

        width, height = screen_size()
        count = sum(max(1, -(-cell_len(row) // max(1, width))) for row in self._drawn)
        up = min(count, height) - 1
        return ("\r" + (f"\x1b[{up}A" if up > 0 else "") + "\x1b[J") if self._drawn else "\r\x1b[K"


def updates_in_place() -> bool:
    """Return whether stderr is a terminal on which rows can be replaced."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def screen_size() -> tuple[int, int]:
    """Return the columns and rows of the terminal of stderr; ``COLUMNS`` and ``LINES`` take precedence."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        size = os.terminal_size((0, 0))
    given = (os.environ.get("COLUMNS", ""), os.environ.get("LINES", ""))
    columns, lines = (int(text) if text.isdecimal() else 0 for text in given)
    return columns or size.columns or 80, lines or size.lines or 24


def wait_rows(title: str, seconds: float, states: Sequence[State], size: tuple[int, int]) -> list[str]:
    """Return the rows that show a wait: the step and the time, then each thing that it waits for.

    Only the end of a query is left out; what does not fit into a row continues in the next one. If there are more rows
    than the screen has, the last states are counted.

    Args:
        title: the step.
        seconds: since it began.
        states: what it waits for.
        size: the columns and rows of the terminal.
    """
    columns, lines = size
    width = max(10, columns - _FREE_COLUMNS)
    time = f"({format_duration(seconds)})"
    if len(states) == 1 and isinstance(states[0], str):
        row = _clean(f"{title}: {states[0]} {time}")
        if len(rows := folded(row, width)) == 1:
            return rows
    blocked = bool(_for(states))
    head = folded(_clean(f"{title}: waiting {time} for:" if blocked else f"{title} {time}"), width)
    rows = head[: max(1, lines - 2)]
    for number, state in enumerate(states):
        more = _state_rows(state, width)
        left = len(states) - number
        # The last row of the screen is for the cursor, one is for the count.
        if len(rows) + len(more) > lines - (1 if left == 1 else 2):
            return [*rows, folded(f"{_INDENT}and {left} more", width)[0]] if len(rows) < lines - 1 else rows
        rows += more
    return rows


def _for(states: Sequence[State]) -> str:
    return "waiting for " if any(isinstance(one, Blocker) for one in states) else ""


def _text(state: State) -> str:
    return state if isinstance(state, str) else state.text


def _state_rows(state: State, width: int) -> list[str]:
    if isinstance(state, str):
        return [_INDENT + row for row in folded(_clean(state), width - len(_INDENT))]
    rows = [_INDENT + row for row in folded(_clean(state.about), width - len(_INDENT))]
    if not state.query:
        return rows
    from rich.cells import cell_len

    query = _clean(" ".join(state.query.split()))
    if (room := width - cell_len(rows[-1]) - 2) >= min(_SHORTEST_QUERY, cell_len(query)):
        rows[-1] += ": " + _shortened(query, room)
    else:
        rows.append(2 * _INDENT + _shortened(query, width - 2 * len(_INDENT)))
    return rows


def _shortened(text: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 3)) + "..."


def folded(text: str, width: int) -> list[str]:
    """Return a text in rows of at most WIDTH columns, broken at spaces where there are some."""
    from rich.console import Console
    from rich.text import Text

    lines = Text(text).wrap(Console(width=width), width, overflow="fold")
    return [line.plain.rstrip() for line in lines] or [""]


def _clean(text: str) -> str:
    """Return a text as the terminal shows it: one line, with what its encoding does not have escaped."""
    encoding, errors = sys.stderr.encoding or "utf-8", sys.stderr.errors or "backslashreplace"
    return line_for_person(text).encode(encoding, errors).decode(encoding, "replace")
