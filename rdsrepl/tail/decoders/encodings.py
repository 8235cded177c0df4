"""Converts the database's encoding to Unicode, for plugins whose output the server does not convert (wal2json).

The server's conversion decides: Python's tables for the same encoding differ in places, and lack characters that
PostgreSQL accepts. So the server is asked about each character outside of ASCII, once. This works on bytes because in
every server encoding each byte of such a character is 128 or above (manual, section 24.3.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

Decode = Callable[[bytes], str]
#: characters in the database's encoding → their text; None if Unicode does not have the character.
ConvertOnServer = Callable[[Sequence[bytes]], list[str | None]]

_PLAIN: Final = re.compile(rb"[\x80-\xff]")
_EUC: Final = re.compile(rb"\x8f[\x80-\xff]{2}|[\x80-\xff]{2}|[\x80-\xff]")
_EUC_TW: Final = re.compile(rb"\x8e[\x80-\xff]{3}|[\x80-\xff]{2}|[\x80-\xff]")


def utf8(data: bytes) -> str:
    """Return text in UTF-8; other bytes, which a SQL_ASCII database may contain, become surrogates."""
    return data.decode("utf-8", "surrogateescape")


def latin1(data: bytes) -> str:
    """Return text in LATIN1."""
    return data.decode("latin-1")


def decoder(encoding: str, convert: ConvertOnServer) -> Decode:
    """Return the function that decodes a database's text.

    Args:
        encoding: ``server_encoding``.
        convert: asks the server; used for encodings other than UTF8, SQL_ASCII and LATIN1. Characters that Unicode
            does not have become surrogates, like the bytes of a SQL_ASCII database.
    """
    if encoding in ("UTF8", "SQL_ASCII"):
        return utf8
    if encoding == "LATIN1":
        return latin1
    pattern = _EUC_TW if encoding == "EUC_TW" else _EUC if encoding.startswith("EUC_") else _PLAIN
    known: dict[bytes, str] = {}

    def decode(data: bytes) -> str:
        if data.isascii():
            return data.decode()
        new = sorted({character for character in pattern.findall(data) if character not in known})
        for character, text in zip(new, convert(new) if new else [], strict=True):
            known[character] = utf8(character) if text is None else text
        return utf8(pattern.sub(lambda match: known[match[0]].encode("utf-8", "surrogateescape"), data))

    return decode
