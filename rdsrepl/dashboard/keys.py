"""Decode the bytes of a terminal as keys. Pure: no I/O, no clock."""

from __future__ import annotations

import re
from typing import Final

_NAMES: Final = {
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x15": "clear",
    "\x03": "quit",
    "\x04": "quit",
    "\x0c": "redraw",
    "\x0e": "down",
    "\x10": "up",
    "\x1b": "escape",
}
_SEQUENCES: Final = {
    "A": "up",
    "B": "down",
    "C": "right",
    "D": "left",
    "H": "home",
    "F": "end",
    "1~": "home",
    "4~": "end",
    "7~": "home",
    "8~": "end",
    "5~": "page-up",
    "6~": "page-down",
}
# A control sequence: its introducer, its parameters, its final byte.
_WHOLE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~])")
_BEGUN: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)?\Z")


def decode(data: bytes, *, more: bool) -> tuple[list[str], bytes]:
    """Return the keys in DATA, and the bytes of an incomplete key at its end.

    Args:
        data: the bytes that were read.
        more: whether the rest of a key can still arrive; if not, an Escape at the end is a key of its own.
    """
    try:
        text, rest = data.decode(), b""
    except UnicodeDecodeError as exc:
        whole = exc.reason == "unexpected end of data" and more
        text, rest = (data[: exc.start].decode(), data[exc.start :]) if whole else (data.decode(errors="replace"), b"")
    keys: list[str] = []
    position = 0
    while position < len(text):
        if match := _WHOLE.match(text, position):
            if name := _SEQUENCES.get(match[0][2:]):
                keys.append(name)
            position = match.end()
        elif more and _BEGUN.match(text, position):
            return keys, text[position:].encode() + rest
        else:
            character = text[position]
            if character in _NAMES or character.isprintable():
                keys.append(_NAMES.get(character, character))
            position += 1
    return keys, rest
