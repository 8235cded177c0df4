"""Which engine a cluster or an instance has: RDS's describes also return those that are not PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rdsrepl.errors import Refused
from rdsrepl.text.commands import command

POSTGRES: Final = ("postgres", "aurora-postgresql")
# By the beginning of the API's name, the longer ones first.
_LABELS: Final = (
    ("aurora-mysql", "Aurora MySQL"),
    ("aurora", "Aurora MySQL"),
    ("custom-oracle", "RDS Custom for Oracle"),
    ("custom-sqlserver", "RDS Custom for SQL Server"),
    ("db2", "Db2"),
    ("docdb", "DocumentDB"),
    ("mariadb", "MariaDB"),
    ("mysql", "MySQL"),
    ("neptune", "Neptune"),
    ("oracle", "Oracle"),
    ("sqlserver", "SQL Server"),
)


def is_postgres(row: Mapping[str, Any]) -> bool:
    """Say whether a described cluster or instance is PostgreSQL, of RDS or Aurora."""
    return row.get("Engine") in POSTGRES


def label(engine: str) -> str:
    """Return an engine's name for people: ``MySQL`` of ``mysql``."""
    return next((words for start, words in _LABELS if engine.startswith(start)), engine)


def require_postgres(row: Mapping[str, Any], noun: str, identifier: str) -> None:
    """Refuse a described cluster or instance of another engine, before anything else of it is read.

    Args:
        row: as a describe returns it.
        noun: ``cluster`` or ``instance``.
        identifier: its name.

    Raises:
        Refused: it is not PostgreSQL.
    """
    if not is_postgres(row):
        raise Refused(
            f"{noun} {identifier} is {label(str(row.get('Engine', 'of an unknown engine')))}, not PostgreSQL",
            hint=f"the PostgreSQL {noun}s of the region: {command(f'{noun} list')}",
        )
