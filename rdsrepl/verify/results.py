"""What a verification found, as frozen data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from rdsrepl.errors import ExitCode
from rdsrepl.verify.row_state import RowState
from rdsrepl.verify.structure import StructureFinding


class TableState(StrEnum):
    """What is known about a table."""

    equal = "equal"
    different = "different"
    not_proven = "not proven"
    not_compared = "not compared"


#: Called while something takes long: with what is done ("comparing"), and how far it is.
Progress = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class DifferingRow:
    """A row that is proven to differ.

    Attributes:
        key: the values of its key as text.
        state: how it differs.
        columns: the columns that differ; None where they were not asked for, or where one side has no such row.
    """

    key: Mapping[str, str]
    state: RowState
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class TableResult:
    """The comparison of one table.

    Attributes:
        table: its name as SQL writes it.
        state: what is known about it.
        rows: the rows of the source.
        missing, extra, different: rows that are proven to differ; without a key, by how many rows the sides differ,
            and 1 for ``different`` where the numbers agree.
        not_proven: rows that differed, for which the proof did not end in time.
        cleared: rows that differed because a change was on its way.
        keys: up to ``MOST_KEYS`` of the rows that are proven to differ.
        notes: what a reader of the result should know.
        seconds: how long the comparison took.
    """

    table: str
    state: TableState
    rows: int
    missing: int = 0
    extra: int = 0
    different: int = 0
    not_proven: int = 0
    cleared: int = 0
    keys: tuple[DifferingRow, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Verification:
    """The comparison of two databases.

    Attributes:
        source, target: their labels.
        link: how the target gets the changes of the source.
        tables: the tables that both have.
        structure: what is missing on one side.
    """

    source: str
    target: str
    link: str
    tables: tuple[TableResult, ...]
    structure: tuple[StructureFinding, ...]

    @property
    def exit_code(self) -> ExitCode:
        """0 equal, 8 not all proven or nothing compared, 9 proven differences."""
        states = {table.state for table in self.tables}
        if self.structure or TableState.different in states:
            return ExitCode.CRITICAL
        has_equal_rows = any(table.rows and table.state is TableState.equal for table in self.tables)
        nothing_compared = TableState.not_compared in states and not has_equal_rows
        return ExitCode.WARNING if TableState.not_proven in states or nothing_compared else ExitCode.DONE
