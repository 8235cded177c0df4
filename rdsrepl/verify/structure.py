"""Decide which tables and columns of two databases can be compared, and by which key. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rdsrepl.postgres.sql_names import quote_if_needed
from rdsrepl.postgres.table_structures import ColumnType, TableName, TableStructure
from rdsrepl.text.counts import counted

_COMMON_TYPES: Final = (
    ("int8", frozenset(("int2", "int4", "int8"))),
    ("numeric", frozenset(("int2", "int4", "int8", "numeric"))),
    ("text", frozenset(("text", "varchar"))),
    ("jsonb", frozenset(("json", "jsonb"))),
)


@dataclass(frozen=True, slots=True)
class ComparedColumn:
    """A column that both tables have.

    Attributes:
        builtin: the type in ``pg_catalog`` that both sides have, or that both can be converted to without a loss; for
            a domain its base type; None where the values are compared as text.
        sorts_equally: both sides sort its values in the same order.
        is_deterministic: no side has a collation by which texts that are not the same bytes are equal.
    """

    name: str
    builtin: str | None
    sorts_equally: bool = True
    is_deterministic: bool = True


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


def without_partitions(
    source: Sequence[TableStructure], target: Sequence[TableStructure]
) -> tuple[list[TableStructure], list[TableStructure]]:
    """Leave out what would be compared twice: partitions where the sides have different ones, else the whole table."""
    both = [{table.full_name for table in side} for side in (source, target)]
    partitions: dict[TableName, set[TableName]] = {}
    left_out: set[TableName] = set()
    for table in (*source, *target):
        if table.partition_of is not None and table.relkind == "r":
            partitions.setdefault(table.partition_of, set()).add(table.full_name)
        elif table.partition_of is not None:
            left_out.add(table.full_name)
    for whole, parts in partitions.items():
        left_out |= {whole} if all(parts <= side for side in both) else parts
    here, there = ([table for table in side if table.full_name not in left_out] for side in (source, target))
    return here, there


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
    findings: list[str] = []
    missing = [name for name in source.sent if name not in target.columns]
    if missing:
        findings.append(f"{counted(len(missing), 'column')} missing on the target: {names(missing)}")
    generated = [name for name in source.sent if name in target.columns and target.columns[name].is_generated]
    if generated:
        findings.append(f"generated on the target, and not compared: {names(generated)}")
    columns: dict[str, ComparedColumn] = {}
    notes: list[str] = []
    for name in sorted(set(source.sent) - {*missing, *generated}):
        here, there = source.columns[name], target.columns[name]
        columns[name] = _column(name, here, there)
        if here.text != there.text and (here.builtin is None or here.builtin != there.builtin):
            notes.append(f"column {quote_if_needed(name)} is {here.text} here and {there.text} on the target")
    if more := [name for name in target.sent if name not in source.columns]:
        notes.append(f"not compared, because only the target has it: {names(more)}")
    key = _common_key(source.keys, target.keys, columns)
    if not key:
        notes.append("no unique key on both sides: the rows that differ are not named")
    elif not all(columns[name].sorts_equally for name in key):
        notes.append(f"the sides sort {names(key)} differently: the table is read as a whole, not by its key")
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
    return compared, findings


def names(columns: Iterable[str]) -> str:
    """Return the names of columns for a message."""
    return ", ".join(map(quote_if_needed, columns))


def _column(name: str, here: ColumnType, there: ColumnType) -> ComparedColumn:
    builtin = here.builtin if here.builtin == there.builtin else _common_type(here.builtin, there.builtin)
    one, other = here.ordering, there.ordering
    if one is None or other is None:
        return ComparedColumn(name, builtin)
    return ComparedColumn(name, builtin, one.is_same(other), one.is_deterministic and other.is_deterministic)


def _common_type(*types: str | None) -> str | None:
    """Return the type to which values of different types are converted to be compared; None without one."""
    return next((common for common, several in _COMMON_TYPES if several.issuperset(types)), None)


def _common_key(
    source: Sequence[tuple[str, ...]], target: Sequence[tuple[str, ...]], columns: Mapping[str, object]
) -> tuple[str, ...]:
    """Return the first key of the source that is unique on the target as well, in the order of the source's index."""
    unique = {frozenset(key) for key in target}
    for key in source:
        if key and frozenset(key) in unique and all(name in columns for name in key):
            return key
    return ()
