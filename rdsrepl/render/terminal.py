"""The console: what a person reads goes through here, made safe for the terminal that shows it.

It prints each text on one line with its control characters escaped, masks secrets on stderr, uses no colours where they
are not wanted, and ASCII where the locale is not UTF-8.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TextIO

from rdsrepl.text.escapes import shown
from rdsrepl.text.glyphs import ascii_text
from rdsrepl.text.masking import mask

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: The width of a table that is not for a terminal: no line is wrapped.
UNLIMITED: Final = 32_000
_C_LOCALES: Final = ("C", "POSIX")


def console(stream: TextIO, *, hides_secrets: bool | None = None, fits: bool = True) -> Console:
    """Return a rich console on a stream; without a terminal it prints plain, unwrapped lines.

    Args:
        stream: stdout or stderr.
        hides_secrets: mask secrets; by default only on stderr, because stdout is data.
        fits: limit lines to the width of the terminal.
    """
    terminal = stream.isatty()
    fits = fits and terminal
    hides = stream is sys.stderr if hides_secrets is None else hides_secrets
    width, height = _terminal_size(stream) if fits else (UNLIMITED, 24)
    unicode = displays_unicode(stream)
    safe_console: Console = _console_class()(
        lambda text: displayed(mask(text) if hides else text, unicode=unicode),
        file=stream if unicode else _AsciiStream(stream),
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not fits,
        width=width,
        height=height,
        no_color=not colours(stream),
        force_terminal=terminal,
    )
    return safe_console


@cache
def _console_class() -> Any:
    from rich.console import Console

    class Safe(Console):
        """Escapes every text before it prints it."""

        def __init__(self, safe: Callable[[str], str], **options: Any) -> None:
            super().__init__(**options)
            self._safe = safe

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(self._safe(text), **options)

    return Safe


class _AsciiStream:
    """A stream that writes this program's own symbols as ASCII."""

    encoding = "ascii"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._stream.write(ascii_text(text))


def displayed(text: str, *, unicode: bool) -> str:
    """Return a text on one line, with the characters that a terminal can display."""
    return shown(text) if unicode else shown(ascii_text(text))


def colours(stream: TextIO) -> bool:
    """Return whether to use colours on a stream: it is a terminal, and ``NO_COLOR`` is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and not is_dumb()


def is_dumb() -> bool:
    """Return whether the terminal has no cursor movement and no colours (``TERM=dumb``)."""
    return os.environ.get("TERM") == "dumb"


def displays_unicode(stream: TextIO) -> bool:
    """Return whether a stream displays symbols beyond ASCII: its encoding is UTF-8, and the locale is not C or POSIX.

    An environment that names no locale is not taken for C: containers and cron jobs have none.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return encoding.lower().startswith("utf") and not _is_c_locale()


def _is_c_locale() -> bool:
    if everything := os.environ.get("LC_ALL"):
        return everything in _C_LOCALES
    # Python sets LC_CTYPE to C.UTF-8 when the locale is C (PEP 538); LANG still says what the user wanted.
    characters = os.environ.get("LC_CTYPE", "")
    return characters in _C_LOCALES or (characters in ("", "C.UTF-8") and os.environ.get("LANG") in _C_LOCALES)


def _terminal_size(stream: TextIO) -> tuple[int, int]:
    """Return columns and lines; rich assumes 80 columns with ``TERM=dumb``."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):
        size = os.terminal_size((0, 0))
    columns, lines = (os.environ.get(name, "") for name in ("COLUMNS", "LINES"))
    return (
        (int(columns) if columns.isdecimal() else size.columns) or 80,
        (int(lines) if lines.isdecimal() else size.lines) or 24,
    )


def line_for_person(text: str) -> str:
    """Return a text for stderr that ``console`` does not print, such as a question: one line, secrets masked."""
    return displayed(mask(text), unicode=displays_unicode(sys.stderr))


def print_message(text: str, *, style: str | None = None) -> None:
    """Print one message to stderr, with secrets masked; a command in it is not broken by a line break."""
    from rich.text import Text

    from rdsrepl.render.wrapping import wrapped

    out = console(sys.stderr)
    for line in wrapped(line_for_person(text), out.width):
        out.print(Text(line, style or ""), soft_wrap=True)


def print_lines(out: Console, text: str, *, style: str | None = None) -> None:
    """Print a text of several lines whose line breaks are not escaped, such as a page."""
    for line in text.split("\n"):
        out.print(line, style=style)
