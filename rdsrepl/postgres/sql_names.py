"""Names as SQL writes them: parse and quote (manual, section 4.1.1)."""

from __future__ import annotations

import re
from typing import Final

from rdsrepl import errors

_PART: Final = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^\W\d][\w$]*))\s*')
_UPPER_TO_LOWER: Final = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def parse_name(text: str) -> tuple[str, ...]:
    """Return the parts of a name as SQL reads it: ``"We""ird".Orders`` is ``We"ird`` and ``orders``.

    Raises:
        BadValue: it is not a name.
    """
    parts, end = _take_name(text)
    if end != len(text):
        raise not_a_table_name(text)
    return parts


def parse_columns(text: str) -> tuple[str, tuple[str, ...]]:
    """Split ``TABLE=A,B`` into the table and its columns, all as SQL writes them.

    Raises:
        BadValue: it does not have that form.
    """
    wrong = errors.BadValue(f"--columns {text} is not TABLE=A,B", hint="for example --columns sales.orders=id,amount")
    try:
        _, position = _take_name(text)
        table = text[:position].strip()
        columns: list[str] = []
        while position < len(text) and text[position] == ("," if columns else "="):
            start = position + 1
            parts, position = _take_name(text, start)
            if len(parts) != 1:
                raise wrong
            columns.append(text[start:position].strip())
    except errors.BadValue as exc:
        raise wrong from exc
    if not columns or position != len(text):
        raise wrong
    return table, tuple(columns)


def parse_filter(text: str) -> tuple[str, str]:
    """Split ``TABLE: PREDICATE`` into the table and the predicate.

    Raises:
        BadValue: it does not have that form.
    """
    wrong = errors.BadValue(
        f"--where {text} is not 'TABLE: PREDICATE'", hint="for example --where 'sales.orders: amount > 0'"
    )
    try:
        _, end = _take_name(text)
    except errors.BadValue as exc:
        raise wrong from exc
    predicate = text[end + 1 :].strip()
    if text[end : end + 1] != ":" or not predicate:
        raise wrong
    return text[:end].strip(), predicate


def _take_name(text: str, position: int = 0) -> tuple[tuple[str, ...], int]:
    """Read a qualified name from a position on; return its parts and the end position."""
    parts: list[str] = []
    while match := _PART.match(text, position):
        quoted, plain = match.groups()
        # With UTF-8 the server folds only ASCII letters.
        parts.append(quoted.replace('""', '"') if quoted is not None else plain.translate(_UPPER_TO_LOWER))
        position = match.end()
        if text[position : position + 1] != ".":
            return tuple(parts), position
        position += 1
    raise not_a_table_name(text)


def not_a_table_name(text: str) -> errors.BadValue:
    """Return the error for text that is not the name of a table."""
    return errors.BadValue(
        f"{text!r} is not the name of a table", hint='schema.table, as SQL writes it: sales.orders, "Odd Name"."t"'
    )


def quote_if_needed(name: str) -> str:
    """Return a name as SQL writes it, in double quotes only where it needs them."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def quote(name: str) -> str:
    """Return a name in double quotes."""
    from psycopg import sql

    return sql.Identifier(name).as_string(None)
