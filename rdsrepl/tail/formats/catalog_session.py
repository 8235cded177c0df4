"""The connection with which the catalogue is read beside the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection


class CatalogSession:
    """An ordinary connection, opened at the first query, and again when the server has ended it."""

    def __init__(self, target: Target) -> None:
        """Prepare to query TARGET."""
        self._target = target
        self._conn: Connection | None = None

    def query(
        self, query: str, parameters: Sequence[Any] | Mapping[str, Any], *, own_path: bool = False
    ) -> list[tuple[Any, ...]]:
        """Return the rows of a query; text that is not UTF-8 has surrogates.

        Args:
            query: the statement.
            parameters: are bound to it.
            own_path: run it with the search_path of the role, not with the empty one.

        Raises:
            Error: the server is not reachable, or refuses the query.
        """
        import psycopg

        from rdsrepl.postgres import connection, error_mapping, relations
        from rdsrepl.postgres.types import AnyTextDumper

        is_new = self._conn is None
        if self._conn is None:
            self._conn = connection.connect(self._target)
            if self._conn.info.parameter_status("server_encoding") == "SQL_ASCII":
                # Names may not be UTF-8, and the server refuses to send them to a client whose encoding is UTF-8.
                self._conn.execute("SET client_encoding = 'SQL_ASCII'")
                self._conn.adapters.register_dumper(str, AnyTextDumper)
        try:
            with relations.own_path(self._conn) if own_path else nullcontext():
                rows = self._conn.execute(query, parameters).fetchall()
        except psycopg.Error as exc:
            was_closed = self._conn.closed and not is_new
            self.close()
            if was_closed:  # idle_session_timeout, for example: between two queries days may pass
                return self.query(query, parameters, own_path=own_path)
            raise error_mapping.translate(exc) from exc
        return [tuple(connection.text(value) if type(value) is bytes else value for value in row) for row in rows]

    def close(self) -> None:
        """Close the connection if it is open."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None
