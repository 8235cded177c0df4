"""How values of PostgreSQL's own types become Python's; imported only where psycopg already is."""

from __future__ import annotations

from psycopg.adapt import Buffer, Loader  # noqa: TID253 - this module is itself imported inside functions

from rdsrepl.lsn import Lsn


class LsnLoader(Loader):
    """``pg_lsn`` → ``Lsn``."""

    def load(self, data: Buffer) -> Lsn:
        """Read the text form."""
        return Lsn.parse(bytes(data).decode())
