"""PostgreSQL's text of arrays and composite types → JSON text, from the conversions of what they contain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from json.encoder import encode_basestring as quote
from typing import Final

from rdsrepl.tail.formats.values import Convert


def array(element: Convert, delimiter: str = ",") -> Convert:
    """Return the conversion of an array whose elements convert by ELEMENT.

    It raises ValueError or IndexError for text that is not an array, and RecursionError for deep nesting.
    """

    def convert(text: str) -> str:
        position = text.index("=") + 1 if text[0] == "[" else 0  # "[2:3]={7,8}": the bounds are removed
        if '"' not in text and "{" not in text[position + 1 :]:
            if text[position] != "{" or text.find("}") != len(text) - 1:
                raise ValueError(text)
            items = text[position + 1 : -1]
            if not items:
                return "[]"
            words = items.split(delimiter)
            return "[" + ",".join(["null" if word == "NULL" else element(word) for word in words]) + "]"
        json_text, end = _array(text, position, element, delimiter)
        if end != len(text):
            raise ValueError(text)
        return json_text

    return convert


def composite(attributes: Sequence[tuple[str, Convert]]) -> Convert:
    """Return the conversion of a composite type with these attributes, whose conversions check their text.

    It raises ValueError, IndexError or RecursionError for text of another type.
    """
    names = [quote(name) for name, _ in attributes]
    converts = [convert for _, convert in attributes]

    def convert(text: str) -> str:
        fields = _record_fields(text)
        if not names and text == "()":
            fields = []
        if len(fields) != len(names):
            raise ValueError(text)
        pairs = zip(names, converts, fields, strict=True)
        return "{" + ",".join([f"{n}:{'null' if value is None else c(value)}" for n, c, value in pairs]) + "}"

    return convert


def _array(text: str, position: int, element: Convert, delimiter: str) -> tuple[str, int]:
    """Read the array that starts at POSITION; return its JSON and the position after it (manual, section 8.15.6)."""
    items: list[str] = []
    if text[position] != "{":
        raise ValueError(text)
    position += 1
    while text[position] != "}":
        if text[position] == "{":
            item, position = _array(text, position, element, delimiter)
            items.append(item)
        elif text[position] == '"':
            value, position = _quoted(text, position)
            items.append(element(value))
        else:
            end = position
            while text[end] not in (delimiter, "}"):
                end += 1
            word = text[position:end]
            items.append("null" if word == "NULL" else element(word))
            position = end
        if text[position] == delimiter:
            position += 1
        elif text[position] != "}":
            raise ValueError(text)
    return "[" + ",".join(items) + "]", position + 1


# Without backtracking: incomplete text must not take long.
_QUOTED: Final = re.compile(r'"((?:[^"\\]++|""|\\.)*+)"', re.DOTALL).match
_BARE: Final = re.compile(r'[^"\\(),]*+').match
_ESCAPED: Final = re.compile(r'\\(.)|"(")', re.DOTALL)


def _quoted(text: str, position: int) -> tuple[str, int]:
    """Read the quoted text at POSITION; arrays escape with a backslash, composites also by doubling."""
    match = _QUOTED(text, position)
    if match is None:
        raise ValueError(text)
    inner = match[1]
    if '"' in inner or "\\" in inner:
        inner = _ESCAPED.sub(lambda escaped: escaped[1] or escaped[2], inner)
    return inner, match.end()


def _record_fields(text: str) -> list[str | None]:
    """Split a composite's text ``(1,"a b",)`` into its fields (manual, section 8.16.6); None is NULL."""
    fields: list[str | None] = []
    if text[0] != "(":
        raise ValueError(text)
    position = 0
    while text[position] != ")":
        position += 1
        if text[position] == '"':
            field, position = _quoted(text, position)
            fields.append(field)
        else:
            match = _BARE(text, position)
            assert match is not None  # it may be empty
            fields.append(match[0] or None)
            position = match.end()
        if text[position] not in ",)":
            raise ValueError(text)
    if position + 1 != len(text):
        raise ValueError(text)
    return fields
