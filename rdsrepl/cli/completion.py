"""Values for the shell's completion, asked of the database: quick, silent, and nothing where it cannot be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection


def from_database(read: Callable[[Connection], Iterable[str]]) -> list[str]:
    """Return what READ finds in the current target's database; nothing when anything at all goes wrong."""
    try:
        from rdsrepl import config
        from rdsrepl.postgres import connection

        target = config.resolve(dsn=None, target=None)
        with connection.open(target, settings={"statement_timeout": "2s"}) as conn:
            return list(read(conn))
    except Exception:  # noqa: BLE001 - completion never complains
        return []
