"""Read the lines of a COPY so that the reader can end at any moment."""

from __future__ import annotations

import select
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final

from rdsrepl.postgres.error_mapping import translate

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.postgres.connection import Connection

_POLL_SECONDS: Final = 0.2
_CANCEL_SECONDS: Final = 10.0


class Stopped(Exception):
    """The reader was asked to end."""


def copied(conn: Connection, statement: Composed, is_stopped: Callable[[], bool]) -> Generator[bytes, None, None]:
    """Yield the lines of a COPY, each with its newline; nothing here waits longer than a moment within libpq.

    The statement is sent alone: the server refuses a second one behind it. Closing the generator before its end cancels
    the statement: the connection can be used again, after its transaction is rolled back.

    Raises:
        Stopped: the reader was asked to end; the connection cannot be used again.
        Error: the statement failed.
    """
    from psycopg import errors, pq
    from psycopg.errors import error_from_result

    pgconn = conn.pgconn

    def receive() -> None:
        while not select.select([pgconn.socket], [], [], _POLL_SECONDS)[0]:
            if is_stopped():
                raise Stopped
        pgconn.consume_input()

    try:
        pgconn.send_query_params(statement.as_bytes(conn), None)
        while pgconn.flush():
            select.select([pgconn.socket], [pgconn.socket], [], _POLL_SECONDS)
            pgconn.consume_input()
        while pgconn.is_busy():
            receive()
        result = pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            raise translate(errors.OperationalError("no answer") if result is None else error_from_result(result))
        get = pgconn.get_copy_data
        length, line = get(1)
        while length >= 0:
            if length:
                try:
                    yield bytes(line)
                except GeneratorExit:
                    conn.cancel_safe(timeout=_CANCEL_SECONDS)
                    while (length := get(1)[0]) >= 0:
                        if not length:
                            receive()
                    while pgconn.get_result() is not None:
                        pass
                    raise
            else:
                receive()
            length, line = get(1)
        while True:
            while pgconn.is_busy():
                receive()
            ended = pgconn.get_result()
            if ended is None:
                return
            if ended.status != pq.ExecStatus.COMMAND_OK:
                raise translate(error_from_result(ended))
    except errors.Error as exc:
        raise translate(exc) from exc
