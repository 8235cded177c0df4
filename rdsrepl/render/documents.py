"""Turn any object into plain data: the JSON and YAML that a program reads.

Rows are frozen dataclasses; the keys of a document are their field names, which are a documented contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any

from rdsrepl.lsn import Lsn


class Format(StrEnum):
    """The values of ``--output``; ``name`` and ``csv`` are for lists."""

    table = "table"
    wide = "wide"
    json = "json"
    yaml = "yaml"
    name = "name"
    csv = "csv"

    @property
    def is_table(self) -> bool:
        """Whether a person reads it: a table, or a table with all its columns."""
        return self in (Format.table, Format.wide)


def document(value: object) -> Any:
    """Return VALUE as plain data, ready for JSON or YAML: LSNs and times as text, dataclasses as mappings."""
    if isinstance(value, Lsn):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: document(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): document(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [document(item) for item in value]
    return str(value)
