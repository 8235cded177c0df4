"""Replace the characters that this program draws with, for a terminal or a locale that has only ASCII."""

from __future__ import annotations

from functools import cache
from typing import Final

_WORDS: Final = {
    "…": "...",
    "→": "->",
    "←": "<-",
    "↑": "^",
    "↓": "v",
    "–": "-",
    "—": "-",
    "·": "-",
    "•": "*",
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "‼": "!!",
    "✓": "+",
    "✗": "x",
}
_LINES: Final = {
    "─━╌┄┈╴╶═": "-",
    "│┃╎┆┊╵╷║": "|",
    "┌┐└┘├┤┬┴┼╭╮╰╯╞╡╪╔╗╚╝╠╣╦╩╬┏┓┗┛┣┫┳┻╋┡┩╇╈": "+",
}
# From the lowest to the highest bar.
_BARS: Final = dict(zip("▁▂▃▄▅▆▇█", "_.-:=+*#", strict=True))
_SHADES: Final = {"░": ".", "▒": ":", "▓": "#", "▀": "#", "▄": "=", "▌": "#", "▐": "#", "■": "#", "●": "*", "○": "o"}
# A cell of a Braille plot, by the number of its dots.
_DOTS: Final = " ..::**##"


def ascii_text(text: str) -> str:
    """Return TEXT with ASCII in place of arrows, ellipses, lines, bars and Braille dots; other characters stay."""
    return text if text.isascii() else text.translate(_table())


@cache
def _table() -> dict[int, str]:
    table = _WORDS | {one: plain for many, plain in _LINES.items() for one in many} | _SHADES | _BARS
    braille = {0x2800 + dots: _DOTS[dots.bit_count()] for dots in range(256)}
    return {ord(one): plain for one, plain in table.items()} | braille
