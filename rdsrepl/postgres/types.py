"""Convert values of PostgreSQL types to Python and back; import this only where psycopg is imported."""

from __future__ import annotations

from typing import Any

from psycopg.adapt import Buffer, Dumper, Loader  # noqa: TID253 - this module is itself imported inside functions

from rdsrepl.lsn import Lsn

PG_LSN_OID = 3220


class LsnLoader(Loader):
    """``pg_lsn`` → ``Lsn``."""

    def load(self, data: Buffer) -> Lsn:
        """Read the text form."""
        return Lsn.parse(bytes(data).decode())


class LsnDumper(Dumper):
    """``Lsn`` → ``pg_lsn``; without it psycopg sends an ``Lsn`` as an integer."""

    oid = PG_LSN_OID

    def dump(self, obj: Any) -> bytes:
        """Write the text form."""
        return str(obj).encode()


class AnyTextDumper(Dumper):
    """Text of a SQL_ASCII database: bytes that are not UTF-8 are surrogates in Python."""

    def dump(self, obj: Any) -> bytes:
        """Return the bytes that the server sent."""
        return str(obj).encode("utf-8", "surrogateescape")
