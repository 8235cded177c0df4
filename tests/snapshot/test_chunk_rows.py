"""The rows of a chunk as lines: those that wait as COPY sent them, and those that recorded changes touch."""

from __future__ import annotations

import json

import pytest

from rdsrepl.config import Target
from rdsrepl.snapshot.chunk_rows import ChunkRows, RowFormat
from rdsrepl.snapshot.chunk_table import ChunkTable, KeyColumn
from rdsrepl.snapshot.recorded_changes import ColumnsChanged, RecordedChanges
from rdsrepl.tail.formats.base import Format
from rdsrepl.tail.formats.debezium import DebeziumFormat
from rdsrepl.tail.formats.debezium_options import DebeziumOptions
from rdsrepl.tail.formats.json_format import JsonFormat
from rdsrepl.tail.formats.partition_keys import KeyedFormat, keyed_records
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.model import Column, Relation, Transaction

CATALOG = Catalog(Target("no server", ""))
ITEMS = Relation(
    16400,
    "public",
    "items",
    "d",
    (Column("id", 23, -1, True), Column("v", 25, -1, False), Column("part", 25, -1, True)),
)
TABLE = ChunkTable(
    ITEMS,
    (),
    None,
    tuple(KeyColumn(name, "text", ("", "<"), ("", "="), ("", ">"), None) for name in ("part", "id")),
    False,
    None,
    None,
)
COPIED = [b"1\tx\ta\n", b"2\t\\N\tb\n", b'3\tline\\nend \\\\ "q"\tc\n', b"4\t\t\n"]
MARKER = Transaction.of(9, 1, 0x2000, 0)


def formats(snapshot: str | None) -> dict[str, Format]:
    json_format = JsonFormat(CATALOG, snapshot=snapshot)
    debezium = DebeziumFormat(CATALOG, database="d", name="s", options=DebeziumOptions(keys=True), snapshot=snapshot)
    return {
        "json": json_format,
        "debezium": debezium,
        "json to Kinesis": KeyedFormat(json_format, CATALOG, "key"),
        "debezium to Kinesis": KeyedFormat(debezium, CATALOG, "key", event_keys=True),
        "by transaction": KeyedFormat(json_format, CATALOG, "transaction"),
        "by column": KeyedFormat(json_format, CATALOG, "v"),
    }


def without_times(line: bytes) -> str:
    """Return a line without the members that say when an event was written."""
    event = json.loads(line)
    for name in ("ts_ms", "ts_us", "ts_ns"):
        event.get("value", event).pop(name, None)
    return json.dumps(event)


@pytest.mark.parametrize("name", list(formats(None)))
def test_lines_by_columns_are_those_by_rows_and_have_the_key_of_later_changes(name: str) -> None:
    rows = ChunkRows.of(RowFormat(TABLE, formats("incremental")[name], lenient=False), COPIED)
    assert list(rows.places) == [("1", '"a"'), ("2", '"b"'), ("3", '"c"'), ("4", '""')]
    changes = RecordedChanges()
    whole, _ = rows.written(changes, "0/1", MARKER, 1)
    changes.truncate(ITEMS, MARKER)
    assert rows.written(changes, "0/1", MARKER, 1)[0].rows == 0
    changes.clear()
    for number, key in enumerate(rows.places):
        changes.update(ITEMS, MARKER, key, None, rows.format.row(COPIED[number][:-1]))
    touched, applied = rows.written(changes, "0/1", MARKER, 1)
    assert (whole.rows, touched.rows, applied.conflicts) == (4, 4, 4)
    one, other = (b"".join(lines.lines).replace(b"\0", b"").split(b"\n")[:-1] for lines in (whole, touched))
    strip = bytes if "Kinesis" in name or name.startswith("by ") else without_times
    if name != "debezium to Kinesis":
        assert list(map(strip, one)) == list(map(strip, other))
    if "Kinesis" in name:
        stream = formats(None)[name].writer(ITEMS)
        later = [stream.update((*rows.format.row(line[:-1]), 0), None, False, "0/2", MARKER, 1) for line in COPIED]
        assert [key for key, _ in keyed_records(whole.lines)] == [key for key, _ in keyed_records(later)]


def test_touched_rows_come_after_the_others_with_numbers_of_their_own() -> None:
    rows = ChunkRows.of(RowFormat(TABLE, formats("incremental")["json"], lenient=False), COPIED)
    changes = RecordedChanges()
    changes.delete(ITEMS, MARKER, ("1", '"a"'))
    changes.update(ITEMS, MARKER, ("2", '"b"'), None, ("2", '"new"', '"b"'))
    written, applied = rows.written(changes, "0/1", MARKER, 1)
    events = [json.loads(line) for line in b"".join(written.lines).split(b"\n")[:-1]]
    assert [(event["after"]["id"], event["after"]["v"], event["seq"]) for event in events] == [
        (3, 'line\nend \\ "q"', 1),
        (4, "", 2),
        (2, "new", 3),
    ]
    assert (written.rows, applied.conflicts) == (3, 2)


def test_columns_that_changed_are_found_without_a_touched_row() -> None:
    rows = ChunkRows.of(RowFormat(TABLE, formats("incremental")["json"], lenient=False), COPIED)
    other = Relation(16400, "public", "items", "d", (*ITEMS.columns, Column("more", 23, -1, False)))
    changes = RecordedChanges()
    changes.insert(other, MARKER, ("99", '"z"'), ("99", "null", '"z"', "1"))
    with pytest.raises(ColumnsChanged):
        rows.written(changes, "0/1", MARKER, 1)
