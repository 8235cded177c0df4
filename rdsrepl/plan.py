"""A plan: what a command would do, as frozen data with two readers, ``settle`` (show) and ``apply`` (run).

The text of a statement is complete: literals are composed into it, so what is shown is what runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composed

Protocol = Literal["sql", "replication"]


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement, or one command of the replication protocol.

    Attributes:
        summary: one line in plain words: ``drop replication slot orders``.
        sql: the statement.
        shown: printed in place of the statement when that carries a secret.
        protocol: the kind of connection it needs.
        guard: set on a statement whose own condition may find nothing to act on any more; says what changed. The
            statement must then return a row when it acted.
        timeout_seconds: after this long the statement is cancelled.
        blockers: a query with ``%(pid)s``, run on a second connection while the statement waits: each row's one
            text column names something it waits for.
        undo: run when the statement timed out or was interrupted, so that nothing half made stays behind.
    """

    summary: str
    sql: SQL | Composed
    shown: str | None = None
    protocol: Protocol = "sql"
    guard: str | None = None
    timeout_seconds: float | None = None
    blockers: str | None = None
    undo: SQL | Composed | None = None

    @property
    def text(self) -> str:
        """The statement as a person may see it."""
        return self.shown if self.shown is not None else self.sql.as_string(None)


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in their order; an empty plan means there is nothing to do.

    Attributes:
        title: what the steps are for: ``create replication slot orders``.
        steps: applied one after the other, each in a transaction of its own.
        warnings: what it costs, to be read before the question is answered.
        unchanged: said when there are no steps: ``role reader already has all that``.
    """

    title: str
    steps: tuple[Statement, ...]
    warnings: tuple[str, ...] = ()
    unchanged: str = "nothing to do"

    def __bool__(self) -> bool:
        return bool(self.steps)
