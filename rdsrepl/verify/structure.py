"""Decide which tables and columns of two databases can be compared, and by which key. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rdsrepl.postgres.sql_names import quote_if_needed
from rdsrepl.postgres.table_structures import ColumnType, TableName, TableStructure
from rdsrepl.text.counts import counted


@dataclass(frozen=True, slots=True)
class ComparedColumn:
    """A column that both tables have.

    Attributes:
        builtin: its type in ``pg_catalog`` where that is the same on both sides, for a domain its base type; None
            where the values are compared as text.
    """

    name: str
    builtin: str | None


@dataclass(frozen=True, slots=True)
class ComparedTable:
    """A table that both databases have.

    Attributes:
        key: the columns of a unique key of both tables, part of ``columns``; empty without a common key.
        columns: all compared columns, by name.
        source_kind, target_kind: ``r`` for an ordinary table, ``p`` for a partitioned table.
        row_filter: which rows of the source the publication sends, as SQL of the server; None is all.
        notes: what a reader of the result should know.
    """

    schema: str
    name: str
    key: tuple[ComparedColumn, ...]
    columns: tuple[ComparedColumn, ...]
    source_kind: str
    target_kind: str
    row_filter: str | None
    estimated_rows: int
    notes: tuple[str, ...] = ()

    @property
    def sql_name(self) -> str:
        """Its name as SQL writes it."""
        return sql_name((self.schema, self.name))


@dataclass(frozen=True, slots=True)
class StructureFinding:
    """Why a table, or a part of it, is not equal whatever its rows are.

    Attributes:
        table: its name as SQL writes it.
        message: what is missing, on which side.
    """

    table: str
    message: str


def sql_name(name: TableName) -> str:
    """Return the name of a table as SQL writes it."""
    return ".".join(map(quote_if_needed, name))


def compare(
    source: Iterable[TableStructure], target: Iterable[TableStructure], *, only_common: bool
) -> tuple[list[ComparedTable], list[StructureFinding]]:
    """Return the tables to compare, in the order of the source, and what differs in structure.

    Args:
        source: the tables of the source, with what the publication sends.
        target: the tables of the target.
        only_common: do not report tables that only the target has.
    """
    there: Mapping[TableName, TableStructure] = {table.full_name: table for table in target}
    tables: list[ComparedTable] = []
    findings: list[StructureFinding] = []
    seen: set[TableName] = set()
    for table in source:
        seen.add(table.full_name)
        other = there.get(table.full_name)
        if other is None:
            findings.append(StructureFinding(sql_name(table.full_name), "the table is missing on the target"))
            continue
        compared, missing = _pair(table, other)
        findings += [StructureFinding(compared.sql_name, text) for text in missing]
        tables.append(compared)
    if not only_common:
        extra = (name for name in there if name not in seen)
        findings += [StructureFinding(sql_name(name), "the table is missing on the source") for name in extra]
    return tables, findings


def _pair(source: TableStructure, target: TableStructure) -> tuple[ComparedTable, list[str]]:
    sent = [name for name in source.columns if source.published_columns is None or name in source.published_columns]
    missing = [name for name in sent if name not in target.columns]
    columns: dict[str, ComparedColumn] = {}
    notes: list[str] = []
    for name in sorted(sent):
        if name in missing:
            continue
        here, there = source.columns[name], target.columns[name]
        columns[name] = ComparedColumn(name, here.builtin if _is_same(here, there) else None)
        if here.text != there.text and not _is_same(here, there):
            notes.append(f"column {quote_if_needed(name)} is {here.text} here and {there.text} on the target")
    key = _common_key(source.keys, target.keys, columns)
    if not key:
        notes.append("no unique key on both sides: the rows that differ are not named")
    compared = ComparedTable(
        source.schema,
        source.name,
        tuple(columns[name] for name in key),
        tuple(columns.values()),
        source.relkind,
        target.relkind,
        source.row_filter,
        source.estimated_rows,
        tuple(notes),
    )
    names = ", ".join(map(quote_if_needed, missing))
    return compared, [f"{counted(len(missing), 'column')} missing on the target: {names}"] if missing else []


def _is_same(here: ColumnType, there: ColumnType) -> bool:
    return here.builtin is not None and here.builtin == there.builtin


def _common_key(
    source: Sequence[tuple[str, ...]], target: Sequence[tuple[str, ...]], columns: Mapping[str, object]
) -> tuple[str, ...]:
    """Return the first key of the source that is unique on the target as well, in the order of the source's index."""
    unique = {frozenset(key) for key in target}
    for key in source:
        if key and frozenset(key) in unique and all(name in columns for name in key):
            return key
    return ()
