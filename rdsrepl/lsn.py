"""Positions in the write-ahead log (type ``pg_lsn``)."""

from __future__ import annotations

import re
from typing import Final

from rdsrepl.errors import BadValue

_PATTERN: Final = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})\Z")


class Lsn(int):
    """A log sequence number: a byte position in the WAL, printed as ``16/B374D848``.

    It is an ``int``: positions compare and subtract at full speed, and the difference is in bytes.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Return the position that ``X/Y`` (hexadecimal) means.

        Raises:
            BadValue: TEXT is not an LSN.
        """
        match = _PATTERN.match(text.strip())
        if match is None:
            raise BadValue(
                f"{text!r} is not an LSN",
                hint="an LSN is two hexadecimal numbers, such as 16/B374D848 (SELECT pg_current_wal_lsn())",
            )
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{int(self) >> 32:X}/{int(self) & 0xFFFFFFFF:X}"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"
