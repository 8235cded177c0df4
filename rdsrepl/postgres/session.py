"""Set the parameters that every session needs, whatever the role, the database and the server set.

The empty ``search_path`` protects against objects of other users. Without it, a user who may create a function, an
operator or a type in a schema of the path decides what our statements run, with the privileges of the user who runs the
command (CVE-2018-1058). The other parameters control how values are written, and timeouts.

Behind a connection pooler other clients use the same session, so no parameter may remain set in it. In transaction mode
the next statement may run in another session. There every transaction sets the parameters for itself. A pooler reports
another backend PID to its client than the server has; that is how it is detected.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg  # noqa: TID253 - this module is itself imported inside functions
from psycopg.pq import TransactionStatus  # noqa: TID253

from rdsrepl.postgres import versions

if TYPE_CHECKING:
    from psycopg.abc import PQGen

Row = tuple[Any, ...]
Returned = TypeVar("Returned")

# The first version that has the parameter, its name, its value.
_PARAMETERS: Final[tuple[tuple[int, str, str], ...]] = (
    (0, "search_path", ""),
    # The formats of values; psycopg supports no other date style.
    (0, "DateStyle", "ISO, MDY"),
    (0, "IntervalStyle", "postgres"),
    (0, "TimeZone", "UTC"),
    (0, "extra_float_digits", "1"),
    (0, "bytea_output", "hex"),
    (0, "standard_conforming_strings", "on"),
    (0, "quote_all_identifiers", "off"),
    # A policy that hides rows is an error; without this it returns fewer rows.
    (0, "row_security", "off"),
    # A standby does not support serializable transactions.
    (0, "default_transaction_isolation", "read committed"),
    # Only the command and the `options` of the user set timeouts.
    (0, "statement_timeout", "0"),
    (0, "lock_timeout", "0"),
    (0, "idle_in_transaction_session_timeout", "0"),
    (versions.IDLE_SESSION_TIMEOUT_SINCE, "idle_session_timeout", "0"),
    (versions.TRANSACTION_TIMEOUT_SINCE, "transaction_timeout", "0"),
)
_OPTION: Final = re.compile(r"(?:^|\s)(?:-c\s*|--)([\w.-]+)=")

_NO_TIMEOUT: Final = "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
_SET_PARAMETERS: Final = """
SELECT pg_catalog.pg_backend_pid(),
       pg_catalog.count(pg_catalog.set_config(p.name, p.value,
                        pg_catalog.int4ne(pg_catalog.pg_backend_pid(), %(backend_pid)s::pg_catalog.int4)))
  FROM ROWS FROM (pg_catalog.unnest(%(names)s::pg_catalog.text[]),
                  pg_catalog.unnest(%(values)s::pg_catalog.text[])) AS p (name, value)
"""


class Session(psycopg.Connection[Row]):
    """A connection with its own session parameters, also behind a connection pooler.

    Attributes:
        transaction_parameters: behind a connection pooler, the parameters to set in every transaction; None without a
            pooler.
        answer_seconds: how long to wait for the answer to a statement; None is without limit.
    """

    transaction_parameters: dict[str, str] | None = None
    answer_seconds: float | None = None

    def wait(self, gen: PQGen[Returned], *arguments: Any, **options: Any) -> Returned:
        """Wait for the server, as ``psycopg.Connection.wait`` does, but not longer than ``answer_seconds``.

        Raises:
            psycopg.OperationalError: the server did not answer in time; the connection is closed.
        """
        if self.answer_seconds is not None:
            gen = self._within(gen, self.answer_seconds)
        return super().wait(gen, *arguments, **options)

    def _within(self, gen: PQGen[Returned], seconds: float) -> PQGen[Returned]:
        deadline = time.monotonic() + seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() >= deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server did not answer within {seconds:g}s")
                wanted = gen.send(ready)
        except StopIteration as done:
            returned: Returned = done.value
            return returned

    def begin(self, wanted: Mapping[str, str]) -> None:
        """Set parameters for the session; behind a pooler, for each transaction from now on."""
        # The PID that libpq received. A pooler sends another one than the server has: the statement compares them, and
        # sets nothing behind a pooler.
        backend_pid = self.info.backend_pid
        try:
            real = self._set_parameters(wanted)
        except psycopg.errors.QueryCanceled:
            # A timeout is set that no statement can meet. One message, so that no timeout can end it.
            self.pgconn.exec_(_NO_TIMEOUT.encode())
            real = self._set_parameters(wanted)
            self.commit()
        if real != backend_pid:
            self.transaction_parameters = {**(self.transaction_parameters or {}), **wanted}
            self.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            self.cursor_factory = _PooledCursor

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """Begin a transaction, as ``psycopg.Connection.transaction`` does, and set the parameters in it."""
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if self.transaction_parameters is not None:
                self._set_parameters(self.transaction_parameters)
            yield transaction

    def _set_parameters(self, wanted: Mapping[str, str]) -> int:
        given = {"backend_pid": self.info.backend_pid, "names": list(wanted), "values": list(wanted.values())}
        row = psycopg.Cursor(self).execute(_SET_PARAMETERS, given).fetchone()
        assert row is not None
        return int(row[0])


class _PooledCursor(psycopg.Cursor[Row]):
    """Runs each statement in a transaction of its own, unless one is open."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> _PooledCursor:
        if self.connection.info.transaction_status != TransactionStatus.IDLE:
            return super().execute(query, params, **options)
        with self.connection.transaction():
            # Inside: psycopg chooses the loaders here, by the DateStyle and the TimeZone of the transaction.
            return super().execute(query, params, **options)


def session_parameters(settings: Mapping[str, str], options: str, *, version: int) -> dict[str, str]:
    """Return the parameters of a session.

    Args:
        settings: parameters of the caller; they override the others.
        options: libpq's ``options`` of the user; timeouts in them override ours.
        version: the major version of the server; 0 is not known yet.
    """
    chosen = {name.replace("-", "_").lower() for name in _OPTION.findall(options)}
    parameters = {
        name: value
        for since, name, value in _PARAMETERS
        if since <= version and not (name.endswith("_timeout") and name in chosen)
    }
    return {**parameters, **settings}
