"""Compare the rows that a stream leaves behind with those of a snapshot of the source."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, LiteralString

from rdsrepl.postgres import json_casts
from rdsrepl.postgres.json_casts import Shape
from rdsrepl.postgres.table_structures import TableStructure
from rdsrepl.text.counts import counted
from rdsrepl.verify import structure
from rdsrepl.verify.folded_stream import FoldedStream, key_text, parsed, table_text
from rdsrepl.verify.results import DifferingRow, Progress, TableResult, TableState
from rdsrepl.verify.row_state import RowState
from rdsrepl.verify.tables import MOST_KEYS

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

_SEEN_EVERY: Final = 10_000
# The value of a column as row_to_json is to see it: as text of the type's output function, as in the stream.
_UNCAST: Final[Mapping[Shape | None, LiteralString]] = {
    None: "{}",
    "value": "CASE WHEN pg_catalog.num_nulls({0}) = 0 THEN pg_catalog.concat({0}) END AS {alias}",
    "array": "CASE WHEN pg_catalog.num_nulls({0}) = 0 THEN pg_catalog.concat({0})::text[] END AS {alias}",
}


def compare(
    conn: Connection,
    folded: FoldedStream,
    table: TableStructure,
    *,
    since: str | None,
    names_columns: bool,
    progress: Progress,
) -> TableResult:
    """Compare the rows of one table.

    Args:
        conn: a connection in the snapshot.
        folded: the stream up to the position of the snapshot.
        table: the table, with what the publication sends.
        since: compare the rows that the stream changed since this time, as lines write it; None compares all rows: one
            that the stream lacks is missing.
        names_columns: name the columns that differ.
        progress: called again and again.
    """
    began = time.monotonic()
    sql_name = structure.sql_name(table.full_name)
    name = table_text(*table.full_name)
    key = _key(table, folded.keys(name))
    if key is None:
        no_key = "it has no unique key that all lines of the stream have: its rows are not compared"
        return TableResult(sql_name, TableState.not_proven, 0, not_proven=1, notes=(no_key,))

    def read(rows: int) -> None:
        progress("reading the source", f"{sql_name}: {counted(rows, 'row', grouped=True)}")

    shapes = json_casts.ls(conn, table.full_name)
    rows = folded.add_source(name, _source_rows(conn, table, key, shapes, read))
    progress("comparing", sql_name)
    counts = dict.fromkeys(RowState, 0)
    not_in_stream = 0
    named: list[DifferingRow] = []
    for pair in folded.pairs(name, since or ""):
        if not pair.is_in_stream and since is not None:
            not_in_stream += 1
            continue
        state, differing = _state(pair.here, pair.there)
        counts[state] += 1
        if state.is_proven and len(named) < MOST_KEYS:
            named.append(DifferingRow(_key_of(pair.key), state, differing if names_columns else None))
    notes: tuple[str, ...] = ()
    if left_out := [name for name, shape in sorted(shapes.items()) if shape == "other" and name in table.sent]:
        notes = (f"not compared, because a type in it has a cast to json: {structure.names(left_out)}",)
    if not_in_stream:
        note = f"{counted(not_in_stream, 'row')} not compared: the stream has no change of them"
        notes += (f"{note} since {since}" if since else note,)
    proven = any(counts[state] for state in RowState if state.is_proven)
    return TableResult(
        sql_name,
        TableState.different
        if proven
        else TableState.equal
        if any(counts.values()) or not rows
        else TableState.not_compared,
        rows,
        counts[RowState.missing],
        counts[RowState.extra],
        counts[RowState.different],
        keys=tuple(named),
        notes=notes,
        seconds=time.monotonic() - began,
    )


def _key(table: TableStructure, of_lines: frozenset[frozenset[str]]) -> Sequence[str] | None:
    """Return the unique key that lines of the table have: that of its replica identity."""
    if not of_lines:
        return table.keys[0] if table.keys else None
    return next((key for key in table.keys if {frozenset(key)} == of_lines), None)


def _source_rows(
    conn: Connection,
    table: TableStructure,
    key: Sequence[str],
    shapes: Mapping[str, Shape],
    progress: Callable[[int], None],
) -> Iterator[tuple[str, str]]:
    """Yield the key and the JSON text of each row of the source."""
    from psycopg import sql

    columns = [
        sql.SQL(_UNCAST[shape]).format(sql.Identifier("t", name), alias=sql.Identifier(name))
        for name, shape in ((name, shapes.get(name)) for name in table.sent)
        if shape != "other"
    ]
    query = sql.SQL("SELECT row_to_json(r)::text FROM (SELECT {columns} FROM {only}{table} AS t {where}) r").format(
        columns=sql.SQL(", ").join(columns),
        only=sql.SQL("" if table.relkind == "p" else "ONLY "),
        table=sql.Identifier(table.schema, table.name),
        where=sql.SQL("" if table.row_filter is None else f"WHERE ({table.row_filter})"),
    )
    with conn.cursor(name="rdsrepl_verify") as cursor:
        cursor.itersize = _SEEN_EVERY
        for count, (text,) in enumerate(cursor.execute(query), 1):
            row = parsed(text)
            yield key_text({name: row[name] for name in key}), text
            if count % _SEEN_EVERY == 0:
                progress(count)


def _state(here: str | None, there: Mapping[str, Any] | None) -> tuple[RowState, tuple[str, ...] | None]:
    """Return the state of a row and the columns that differ; a column that one side does not know is not compared."""
    if here is None:
        return (RowState.cleared if there is None else RowState.extra), None
    if there is None:
        return RowState.missing, None
    row = parsed(here)
    differing = tuple(name for name, value in row.items() if name in there and there[name] != value)
    return (RowState.different, differing) if differing else (RowState.cleared, None)


def _key_of(text: str) -> dict[str, str]:
    import json

    return {name: str(value)[1:] if isinstance(value, str) else str(value) for name, value in json.loads(text).items()}
