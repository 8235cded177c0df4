r"""Text from a server, AWS or a file, made safe for a terminal.

Control characters (ESC, U+009B, newline), bidirectional overrides and invisible characters are written as ``\n``,
``\x1b``, ``\u202e``, as ``ls -b`` and psql do. A backslash stays single: JSON output is the unambiguous form.
"""

from __future__ import annotations

import codecs
import json
import re
from functools import cache
from io import TextIOWrapper
from typing import Any, Final, TextIO

_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# Printable for Unicode, but without a glyph (Default_Ignorable_Code_Point, and the blank Braille pattern).
_INVISIBLE: Final = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"


def shown(text: str, *, keep: str = "") -> str:
    r"""Return TEXT as it may be shown on one line of a terminal.

    Args:
        text: from anywhere.
        keep: control characters that stand for themselves: ``"\n\t"`` where the lines are ours.
    """
    if text.isprintable() and (text.isascii() or not _invisible().search(text)):
        return text
    return "".join(one if one in keep or _is_visible(one) else _escaped(one) for one in text)


def is_plain(text: str) -> bool:
    """Say whether TEXT is shown as it is."""
    return shown(text) == text


def json_text(value: Any, *, indent: int | None = None, compact: bool = False) -> str:
    r"""Return JSON in which no character acts on a terminal: what ``shown`` escapes is ``\uXXXX``.

    Raises:
        ValueError: a number is none: infinity, NaN.
    """
    separators = (",", ":") if compact else None
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)
    return _unicode_escaped(text, keep="\n")


def json_line(text: str) -> str:
    r"""Return JSON that was written elsewhere so that no character of it acts on a terminal; the value is the same."""
    return _unicode_escaped(text, keep="\n")


def yaml_text(value: Any, *, explicit_start: bool = False) -> str:
    """Return YAML in which no character acts on a terminal: strings that ``shown`` changes are in double quotes."""
    import yaml

    text: str = yaml.dump(
        value, Dumper=_dumper(), sort_keys=False, allow_unicode=True, explicit_start=explicit_start, width=_WIDE
    )
    return _unicode_escaped(text, keep="\n", astral="\\U{:08X}")


def escape_unencodable(*streams: TextIO | None) -> None:
    r"""Have streams write what their encoding does not have as ``\uXXXX``, which JSON reads as the same character.

    A terminal or a monitoring agent in another locale than a UTF-8 one would end a command in an error otherwise.
    """
    codecs.register_error(_HANDLER, _replacement)
    for stream in streams:
        if isinstance(stream, TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors=_HANDLER)


_HANDLER: Final = "rdsrepl.escaped"


def _replacement(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


_WIDE: Final = 120


@cache
def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes plain data."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
            return True

    def string(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if is_plain(value) else '"')

    Dumper.add_representer(str, string)
    return Dumper


@cache
def _invisible() -> re.Pattern[str]:
    return re.compile(f"[{_INVISIBLE}]")


def _is_visible(one: str) -> bool:
    return one.isprintable() and not _invisible().match(one)


def _escaped(one: str) -> str:
    number = ord(one)
    if number < 0x80:
        return _SHORT.get(one) or f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _unicode_escaped(text: str, *, keep: str, astral: str | None = None) -> str:
    """Escape what a document's own rules left; such characters stand inside quoted strings only."""
    if shown(text, keep=keep) is text:
        return text

    def escape(one: str) -> str:
        number = ord(one)
        if number < 0x10000:
            return f"\\u{number:04x}"
        if astral is not None:
            return astral.format(number)
        number -= 0x10000
        return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"

    return "".join(one if one in keep or _is_visible(one) else escape(one) for one in text)
