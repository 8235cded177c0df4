"""Control the terminal of the dashboard: alternate screen, single keys, and its former settings at the end."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import sys
import termios
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from rdsrepl.dashboard.keys import decode
from rdsrepl.render import displays_unicode

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE: Final = "\x1b[0m\x1b[?25h\x1b[?1049l"
#: If the rest of an escape sequence does not arrive within this time, the key was Escape.
_ESCAPE_SECONDS: Final = 0.05
#: Replacements for a terminal without UTF-8, each one character wide, so that lines still fit.
_PLAIN: Final = str.maketrans("·─…▁▂▃▄▅▆▇█↑↓›▏‼", "|-~_.:-=+*#^v>_!")


class Terminal:
    """The terminal of stdin and stdout, as a context manager."""

    def __init__(self) -> None:
        self._in, self._out = sys.stdin.fileno(), sys.stdout.fileno()
        self._is_plain = not displays_unicode(sys.stdout)
        self._encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
        self._shown: list[str] = []
        self._rest = b""
        self._before = termios.tcgetattr(self._in)
        self._entered = False

    def __enter__(self) -> Terminal:
        self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()

    def enter(self) -> None:
        """Take control of the terminal, also again after the process was suspended."""
        attributes = list(self._before)
        attributes[0] &= ~termios.IXON  # otherwise Ctrl-S stops the output and blocks the program
        attributes[3] &= ~(termios.ECHO | termios.ICANON)
        characters = list(self._before[6])
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        attributes[6] = characters
        self._entered = True
        termios.tcsetattr(self._in, termios.TCSADRAIN, attributes)
        self._write(_ENTER)
        self._shown = []

    def leave(self) -> None:
        """Restore the terminal."""
        if not self._entered:
            return
        self._entered = False
        with contextlib.suppress(OSError):  # the terminal is closed
            self._write(_LEAVE)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._in, termios.TCSADRAIN, self._before)

    def fileno(self) -> int:
        """Return the file descriptor that becomes readable when a key is pressed."""
        return self._in

    def size(self) -> tuple[int, int]:
        """Return columns and rows."""
        size = os.get_terminal_size(self._out)
        return size.columns or 80, size.lines or 24

    def redraw(self) -> None:
        """Redraw the whole screen the next time."""
        self._shown = []

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines, none wider than the terminal; write only the lines that changed."""
        changed = [] if self._shown else ["\x1b[2J"]
        for row, line in enumerate(lines, start=1):
            if row > len(self._shown) or self._shown[row - 1] != line:
                # Erase first: after a line of full width the cursor is still in its last column.
                changed.append(f"\x1b[{row};1H\x1b[2K{line}")
        if len(lines) < len(self._shown):
            changed.append(f"\x1b[{len(lines) + 1};1H\x1b[J")
        if changed:
            self._write("".join(changed))
        self._shown = list(lines)

    def keys(self) -> list[str] | None:
        """Return the pressed keys; None if the terminal is closed."""
        try:
            data = os.read(self._in, 4096)
        except OSError:
            return None
        if not data:
            return None
        keys, self._rest = decode(self._rest + data, more=True)
        if self._rest and not select.select([self._in], [], [], _ESCAPE_SECONDS)[0]:
            more, self._rest = decode(self._rest, more=False)
            keys += more
        return keys

    def _write(self, text: str) -> None:
        if self._is_plain:
            text = text.translate(_PLAIN)
        data = text.encode(self._encoding, "replace")
        while data:
            data = data[os.write(self._out, data) :]
