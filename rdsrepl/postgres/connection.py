"""Connect to PostgreSQL: the only place in this program that does.

Every session begins with an empty ``search_path`` and with the other parameters of ``session.py``.
``relations.find_oid`` looks up a name that a user typed without a schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from rdsrepl.postgres.conninfo import keywords_and_options
from rdsrepl.postgres.error_mapping import connect_error, translate

if TYPE_CHECKING:
    import psycopg

    from rdsrepl.config import Target
    from rdsrepl.lsn import Lsn
    from rdsrepl.postgres.session import Session

    Connection = psycopg.Connection[tuple[Any, ...]]


_CURRENT_LSN: Final = """
SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_lsn() END
"""

_IN_RECOVERY: Final = "SELECT pg_catalog.pg_is_in_recovery()"


@contextmanager
def open(
    target: Target, *, replication: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[Connection]:
    """Yield an autocommit connection and close it at the end; ``pg_lsn`` values are ``Lsn`` objects.

    Args:
        target: the database.
        replication: open a walsender connection (``replication=database``), which takes replication commands and the
            simple query protocol only.
        settings: server parameters for this session only; they override the ones that every session has.

    Raises:
        Error: the connection, or a statement inside the ``with`` block, failed.
    """
    import psycopg

    connection = connect(target, replication=replication, settings=settings)
    try:
        yield connection
    except psycopg.Error as exc:
        raise translate(exc) from exc
    finally:
        connection.close()


def connect(target: Target, *, replication: bool = False, settings: Mapping[str, str] | None = None) -> Connection:
    """Open a connection that the caller closes; see ``open``."""
    import psycopg

    from rdsrepl.lsn import Lsn
    from rdsrepl.postgres.session import Session, session_parameters
    from rdsrepl.postgres.types import PG_LSN_OID, LsnDumper, LsnLoader

    settings = dict(settings or {})
    encoding = settings.pop("client_encoding", None)
    keywords, options = keywords_and_options(target)
    if encoding is not None:
        keywords["client_encoding"] = encoding
    if replication:
        keywords["replication"] = "database"
        keywords["options"] = _with_options(options, session_parameters(settings, options, version=0))
    try:
        connection = Session.connect("", autocommit=True, prepare_threshold=None, **keywords)  # type: ignore[arg-type]
    except psycopg.Error as exc:
        raise connect_error(exc, target, keywords) from exc
    connection.answer_seconds = target.answer_seconds
    connection.adapters.register_loader(PG_LSN_OID, LsnLoader)
    connection.adapters.register_dumper(Lsn, LsnDumper)
    if not replication:
        try:
            connection.begin(session_parameters(settings, options, version=server_version(connection)))
        except BaseException as exc:
            connection.close()
            if isinstance(exc, psycopg.Error):
                raise translate(exc) from exc
            raise
    return connection


def configure(connection: Connection, settings: Mapping[str, str]) -> None:
    """Set more server parameters for a session that ``connect`` opened."""
    cast("Session", connection).begin(settings)


def is_pooled(connection: Connection) -> bool:
    """Say whether this is a connection through a pooler, where every statement may run in another session."""
    return cast("Session", connection).transaction_parameters is not None


def server_version(connection: Connection) -> int:
    """Return the server's major version: 13 … 18."""
    return connection.info.server_version // 10000


def in_recovery(connection: Connection) -> bool:
    """Say whether the server is a standby."""
    row = connection.execute(_IN_RECOVERY).fetchone()
    assert row is not None
    return bool(row[0])


def current_lsn(connection: Connection) -> Lsn:
    """Return the current position in the WAL; on a standby, the last one that it replayed."""
    row = connection.execute(_CURRENT_LSN).fetchone()
    assert row is not None
    lsn: Lsn = row[0]
    return lsn


def setting(connection: Connection, name: str) -> str:
    """Return the value of a server parameter as ``SHOW`` prints it. It also works on a replication connection."""
    from psycopg import sql

    row = connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()
    assert row is not None
    return text(row[0])


def text(value: str | bytes) -> str:
    """Return a text value as ``str``; a connection with client_encoding SQL_ASCII gives bytes."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _with_options(options: str, settings: Mapping[str, str]) -> str:
    for name, value in settings.items():
        escaped = value.replace("\\", "\\\\").replace(" ", "\\ ")
        options += f" -c {name}={escaped}"
    return options.strip()
