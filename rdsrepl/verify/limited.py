"""Run the statements of a comparison so that each is short: one that takes too long is ended, and done in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.postgres.connection import Connection

_Item = TypeVar("_Item")

#: The setting of the connections that ``fetch`` uses.
SETTINGS: Final = {"statement_timeout": "4s", "lock_timeout": "10s"}


class TookTooLongError(Exception):
    """A statement was ended by the limit, or on a standby because replay waited for it."""


def fetch(conn: Connection, query: Composed, *, is_limited: bool = True) -> list[Any]:
    """Return the rows of a query.

    Args:
        conn: a connection with ``SETTINGS``.
        query: the query.
        is_limited: end it when it takes too long; otherwise it runs as long as it needs.

    Raises:
        TookTooLongError: it took too long.
    """
    import psycopg

    if not is_limited:
        with conn.transaction():
            conn.execute("SET LOCAL statement_timeout = 0")
            return conn.execute(query).fetchall()
    try:
        return conn.execute(query).fetchall()
    except (psycopg.errors.QueryCanceled, psycopg.errors.SerializationFailure) as exc:
        raise TookTooLongError from exc


def in_parts(
    conn: Connection,
    items: Sequence[_Item],
    query: Callable[[Sequence[_Item]], Composed],
    *,
    is_limited: bool = True,
) -> Iterator[tuple[Sequence[_Item], list[Any]]]:
    """Yield items and the rows of the query for them: all items at once, or parts of them if that takes too long.

    Args:
        conn: a connection with ``SETTINGS``.
        items: the items.
        query: returns the query for some of them.
        is_limited: parts are faster than the whole; without an index they are not.
    """
    try:
        yield items, fetch(conn, query(items), is_limited=is_limited and len(items) > 1)
    except TookTooLongError:
        half = len(items) // 2
        yield from in_parts(conn, items[:half], query)
        yield from in_parts(conn, items[half:], query)
