r"""Make text from a server, AWS or a file safe for a terminal.

Control characters (ESC, U+009B, newline), bidirectional overrides and invisible characters are written as ``\n``,
``\x1b``, ``\u202e``, like ``ls -b`` and psql do. A backslash is not doubled: only JSON output is unambiguous.
"""

from __future__ import annotations

import codecs
import json
import re
from functools import cache
from io import TextIOWrapper
from typing import Any, Final, TextIO

_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# Printable in Unicode, but without a glyph (Default_Ignorable_Code_Point, and the blank Braille pattern).
_INVISIBLE: Final = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"


def shown(text: str, *, keep: str = "") -> str:
    r"""Return TEXT for one line of a terminal, with its control characters escaped.

    Args:
        text: any text.
        keep: control characters that are not escaped: ``"\n\t"`` if the line breaks are intended.
    """
    if text.isprintable() and (text.isascii() or not _invisible().search(text)):
        return text
    return "".join(one if one in keep or _is_visible(one) else _escaped(one) for one in text)


def is_plain(text: str) -> bool:
    """Return whether ``shown`` leaves TEXT unchanged."""
    return shown(text) == text


def json_text(value: Any, *, indent: int | None = None, compact: bool = False) -> str:
    r"""Return JSON that is safe for a terminal: what ``shown`` escapes is written as ``\uXXXX``.

    Raises:
        ValueError: a number is infinity or NaN.
    """
    separators = (",", ":") if compact else None
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)
    return _unicode_escaped(text, keep="\n")


def json_line(text: str) -> str:
    r"""Return the JSON of another program, made safe for a terminal; its value does not change."""
    return _unicode_escaped(text, keep="\n")


def yaml_text(value: Any, *, explicit_start: bool = False) -> str:
    """Return YAML that is safe for a terminal: strings that ``shown`` changes are in double quotes."""
    import yaml

    text: str = yaml.dump(
        value, Dumper=_dumper(), sort_keys=False, allow_unicode=True, explicit_start=explicit_start, width=_WIDE
    )
    return _unicode_escaped(text, keep="\n", astral="\\U{:08X}")


def escape_unencodable(*streams: TextIO | None) -> None:
    r"""Make streams write characters that their encoding does not have as ``\uXXXX``, as JSON does.

    Otherwise a command would fail on a terminal or a monitoring agent whose locale is not UTF-8.
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
    """Escape what the rules of the document allow; these characters occur only inside quoted strings."""
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
