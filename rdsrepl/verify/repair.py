"""Plan the statements that make proven differences equal, on the target.

Each statement holds only while the row of the target is the one that was proven wrong. The values are those of the
source row of the same proof; a row of the source that changed since is left out, because its change is on its way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import Refused
from rdsrepl.plan import Plan, Statement
from rdsrepl.text.counts import counted
from rdsrepl.verify import limited, statements
from rdsrepl.verify.row_state import Round, RowState
from rdsrepl.verify.statements import Key, Side
from rdsrepl.verify.structure import ComparedTable

if TYPE_CHECKING:
    from psycopg.sql import Composable

    from rdsrepl.postgres.connection import Connection

#: How many rows one plan repairs.
MOST_ROWS: Final = 1_000


def steps(
    source: Connection, table: ComparedTable, sides: tuple[Side, Side], proven: Mapping[Key, tuple[RowState, Round]]
) -> tuple[Statement, ...]:
    """Return the statements for the proven differences of a table.

    Args:
        source: a connection to the source, which the values are read from.
        table: the table.
        sides: how to read it on the source and on the target.
        proven: by key, how the row differs, and the readings that prove it.

    Raises:
        Refused: too many rows differ.
    """
    if len(proven) > MOST_ROWS:
        raise Refused(
            f"{table.sql_name}: {counted(len(proven), 'row')} differ; --repair changes at most {MOST_ROWS:,}",
            hint="copy the table again: TRUNCATE it on the target, then ALTER SUBSCRIPTION … REFRESH PUBLICATION "
            "after it was removed from the publication and added again",
        )
    values = _values(source, table, sides[0], proven)
    return tuple(
        _step(table, sides[1], key, state, readings, values.get(key))
        for key, (state, readings) in proven.items()
        if state is RowState.extra or key in values
    )


def plan(steps: Sequence[Statement]) -> Plan:
    """Return the plan for the statements of all tables."""
    return Plan(
        f"repair {counted(len(steps), 'row', grouped=True)}" if steps else "repair",
        tuple(steps),
        ("triggers and foreign keys of the target act on these statements, unlike on replicated changes",),
        unchanged="no row is proven to differ",
        independent=True,
    )


def _values(
    source: Connection, table: ComparedTable, side: Side, proven: Mapping[Key, tuple[RowState, Round]]
) -> dict[Key, Sequence[str | None]]:
    """Return the values, as text, of the rows of the source that did not change since the proof."""
    from psycopg import sql

    keys = [key for key, (state, _) in proven.items() if state is not RowState.extra]
    texts = sql.SQL(", ").join(map(statements.text, table.columns))
    found: dict[Key, Sequence[str | None]] = {}
    query = partial(statements.lookup, side, extra=[sql.SQL("ARRAY[{}]").format(texts)])
    for some, rows in limited.in_parts(source, keys, query, is_limited=side.is_indexed) if keys else ():
        for place, fingerprint, version, _, values in rows:
            read = proven[some[place - 1]][1].after
            if read is not None and (read.fingerprint, read.version) == (fingerprint, version):
                found[some[place - 1]] = values
    return found


def _step(
    table: ComparedTable, side: Side, key: Key, state: RowState, readings: Round, values: Sequence[str | None] | None
) -> Statement:
    from psycopg import sql

    names = [column.name for column in table.key]
    row = f"{table.sql_name} ({', '.join(f'{name}={value}' for name, value in zip(names, key, strict=True))})"
    if state is RowState.missing and values is not None:
        columns = [column.name for column in table.columns]
        insert = sql.SQL(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({}) ON CONFLICT DO NOTHING RETURNING 1"
        ).format(
            side.name, sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(map(sql.Literal, values))
        )
        return Statement(f"insert {row}", insert, guard=f"{row} exists on the target now", effect="create")
    wrong = sql.SQL(" AND ").join(_is_wrong_row(side, key, readings))
    guard = f"{row} changed on the target since the proof"
    if values is None:
        delete = sql.SQL("DELETE FROM {} WHERE {} RETURNING 1").format(side.relation, wrong)
        return Statement(f"delete {row}", delete, guard=guard, effect="drop")
    changes = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(column.name), sql.Literal(value))
        for column, value in zip(table.columns, values, strict=True)
        if column.name not in names
    )
    update = sql.SQL("UPDATE {} SET {} WHERE {} RETURNING 1").format(side.relation, changes, wrong)
    return Statement(f"update {row}", update, guard=guard, effect="change")


def _is_wrong_row(side: Side, key: Key, readings: Round) -> Iterator[Composable]:
    """Yield the conditions that a row is the one that was proven wrong."""
    from psycopg import sql

    for expression, value, type_ in zip(side.key, key, side.key_types, strict=True):
        yield sql.SQL("{} = {}::{}").format(expression, sql.Literal(value), type_)
    assert readings.target is not None
    yield sql.SQL("{} = {}").format(side.fingerprint, sql.Literal(readings.target.fingerprint))
