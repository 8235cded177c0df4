"""Plan the statements that make proven differences equal, on the target.

Each statement holds only while the row of the target is the one that was proven wrong. The values are those of the
source row of the same proof; a row of the source that changed since is left out, because its change is on its way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import starmap
from typing import TYPE_CHECKING, Final

from rdsrepl.plan import Effect, Plan, Statement
from rdsrepl.text.counts import counted
from rdsrepl.verify import limited, statements
from rdsrepl.verify.row_state import Round, RowState
from rdsrepl.verify.statements import Key, Side
from rdsrepl.verify.structure import ComparedColumn, ComparedTable

if TYPE_CHECKING:
    from psycopg.sql import Composable, Composed

    from rdsrepl.postgres.connection import Connection

#: How many rows of a table one plan repairs.
MOST_ROWS: Final = 1_000
# A plan shows the beginning of a value that is longer than this.
_LONG: Final = 500
_SHOWN: Final = 100
_ORDER: Final[Mapping[Effect, int]] = {"drop": 0, "change": 1, "create": 2}
#: Says so.
TOO_MANY: Final = (
    f"not repaired: --repair changes at most {counted(MOST_ROWS, 'row', grouped=True)} of a table; copy it again: "
    "remove it from the publication, TRUNCATE it on the target, add it again, and ALTER SUBSCRIPTION … REFRESH "
    "PUBLICATION"
)


def steps(
    source: Connection, table: ComparedTable, sides: tuple[Side, Side], proven: Mapping[Key, tuple[RowState, Round]]
) -> tuple[Statement, ...]:
    """Return the statements for the proven differences of a table.

    Args:
        source: a connection to the source, which the values are read from.
        table: the table.
        sides: how to read it on the source and on the target.
        proven: by key, how the row differs, and the readings that prove it.
    """
    values = _values(source, table, sides[0], proven)
    return tuple(
        _step(table, sides[1], key, state, readings, values.get(key))
        for key, (state, readings) in proven.items()
        if state is RowState.extra or key in values
    )


def plan(steps: Sequence[Statement]) -> Plan:
    """Return the plan for the statements of all tables."""
    # A row that must be deleted may have the unique value of one to be inserted.
    ordered = sorted(steps, key=lambda step: _ORDER[step.effect])
    return Plan(
        f"repair {counted(len(steps), 'row', grouped=True)}" if steps else "repair",
        tuple(ordered),
        (
            "triggers and foreign keys of the target act on these statements, unlike on replicated changes",
            "the values are those that the source has now: apply the plan soon, and verify again",
        ),
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
    names = [column.name for column in table.key]
    row = f"{table.sql_name} ({', '.join(f'{name}={value}' for name, value in zip(names, key, strict=True))})"
    changed = f"{row} changed on the target since the proof"
    if values is None:
        return Statement(f"delete {row}", _delete(side, key, readings), guard=changed, effect="drop")
    short = [_shortened(value) for value in values]
    effect: Effect
    if state is RowState.missing:
        statement, short_one = (_insert(table, side, some) for some in (values, short))
        summary, guard, effect = f"insert {row}", f"{row} exists on the target now", "create"
    else:
        statement, short_one = (_update(table, side, key, readings, some) for some in (values, short))
        summary, guard, effect = f"update {row}", changed, "change"
    shown = short_one.as_string(None) if short != list(values) else None
    return Statement(summary, statement, shown=shown, guard=guard, effect=effect)


def _shortened(value: str | None) -> str | None:
    """Return a value as a plan shows it: of a long one the beginning, and what tells it from others."""
    if value is None or len(value) <= _LONG:
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()[:16]
    return f"{value[:_SHOWN]}… ({counted(len(value), 'character', grouped=True)}, SHA-256 {digest}…)"


def _insert(table: ComparedTable, side: Side, values: Sequence[str | None]) -> Composed:
    from psycopg import sql

    return sql.SQL(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({}) ON CONFLICT ({}) DO NOTHING RETURNING 1"
    ).format(
        side.name,
        sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns),
        sql.SQL(", ").join(starmap(_new_value, zip(table.columns, values, strict=True))),
        sql.SQL(", ").join(sql.Identifier(column.name) for column in table.key),
    )


def _delete(side: Side, key: Key, readings: Round) -> Composed:
    from psycopg import sql

    wrong = sql.SQL(" AND ").join(_is_wrong_row(side, key, readings))
    return sql.SQL("DELETE FROM {} WHERE {} RETURNING 1").format(side.relation, wrong)


def _update(table: ComparedTable, side: Side, key: Key, readings: Round, values: Sequence[str | None]) -> Composed:
    from psycopg import sql

    changes = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(column.name), _new_value(column, value))
        for column, value in zip(table.columns, values, strict=True)
        if column not in table.key
    )
    wrong = sql.SQL(" AND ").join(_is_wrong_row(side, key, readings))
    return sql.SQL("UPDATE {} SET {} WHERE {} RETURNING 1").format(side.relation, changes, wrong)


def _new_value(column: ComparedColumn, value: str | None) -> Composable:
    """Return a value of ``statements.text`` as the server reads it."""
    from psycopg import sql

    # How text is read as money depends on lc_monetary.
    return sql.SQL("{}::numeric").format(sql.Literal(value)) if column.builtin == "money" else sql.Literal(value)


def _is_wrong_row(side: Side, key: Key, readings: Round) -> Iterator[Composable]:
    """Yield the conditions that a row is the one that was proven wrong."""
    from psycopg import sql

    for expression, value, type_ in zip(side.key, key, side.key_types, strict=True):
        yield sql.SQL("{} = {}::{}").format(expression, sql.Literal(value), type_)
    assert readings.target is not None
    yield sql.SQL("{} = {}").format(side.fingerprint, sql.Literal(readings.target.fingerprint))
