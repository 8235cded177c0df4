"""Values for the shell's completion, asked of the database: quick, silent, and nothing where it cannot be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import typer

from rdsrepl.cli.options import shared

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

# Somebody waits at the Tab key.
_CONNECT_TIMEOUT_SECONDS: Final = 2


def from_database(ctx: typer.Context, read: Callable[[Connection], Iterable[str]]) -> list[str]:
    """Return what READ finds in a database; nothing when anything at all goes wrong.

    Args:
        ctx: the half-typed command, whose ``--dsn`` or ``--target`` counts as it will when it runs.
        read: asks the database.
    """
    try:
        from rdsrepl import config
        from rdsrepl.postgres import connection

        options = shared(ctx)
        target = config.resolve(dsn=options.dsn, target=options.target)
        target = replace(target, keywords={**target.keywords, "connect_timeout": str(_CONNECT_TIMEOUT_SECONDS)})
        with connection.open(target, settings={"statement_timeout": "2s"}) as conn:
            return list(read(conn))
    except Exception:  # noqa: BLE001 - completion never complains
        return []


def complete_slot(ctx: typer.Context) -> list[str]:
    """Return the names of logical slots for the shell."""
    from rdsrepl.postgres import slots

    return from_database(ctx, lambda conn: [slot.slot_name for slot in slots.ls(conn) if slot.slot_type == "logical"])
