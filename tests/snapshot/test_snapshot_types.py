"""Every type is written the same in a snapshot and in the stream; in ``json`` as the server's to_json prints it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from rdsrepl.snapshot.requests import Request
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program, exact
from tests.snapshot.test_incremental import Tail, signal
from tests.workloads.tables import SCHEMA, TYPES, insert_every_type

# Rows with a composite type are written one by one, all others by columns.
_OF_THE_SCHEMA: Final = ("en", "ena", "dom", "domt", "doma", "co", "coa", "cn")
_BUILT_IN: Final = ", ".join(["id", *(name for name in TYPES if name not in _OF_THE_SCHEMA)])
_TABLES: Final = {"every_type": "every_streamed", "built_in": "built_in_streamed"}


@pytest.fixture
def source(db18: Database) -> Database:
    """Tables with every type and their rows; others of the same types, which are empty."""
    db18.run(*SCHEMA)
    with closing(db18.connect()) as conn:
        insert_every_type(conn)
    db18.run(
        f"CREATE TABLE built_in AS SELECT {_BUILT_IN} FROM every_type",
        "ALTER TABLE built_in ADD PRIMARY KEY (id)",
        *(f"CREATE TABLE {empty} (LIKE {full} INCLUDING ALL)" for full, empty in _TABLES.items()),
        "CREATE PUBLICATION p FOR ALL TABLES",
    )
    return db18


def _rows(text: str) -> dict[str, list[Any]]:
    """Return the rows of each table, in the order of their keys, as they are spelled."""
    rows: dict[str, list[Any]] = {}
    for event in map(exact, text.split("\n")[:-1]):
        if event.get("action") in ("B", "C"):
            continue
        name = event["source"]["table"] if "source" in event else event["table"]
        rows.setdefault(name, []).append(event.get("columns") or event["after"])
    return {name: sorted(map(json.dumps, of_table)) for name, of_table in rows.items()}


@pytest.mark.parametrize("format_", ["json", "debezium", "wal2json"])
def test_a_snapshot_writes_every_type_as_the_stream(
    source: Database, rdsrepl: Program, tmp_path: Path, format_: str
) -> None:
    """Also one that is requested while the stream goes on."""
    command = (
        "slot", "tail", "s", "--create", "pgoutput", "--snapshot", "--workers", "1", "-f", format_, "--until-now",
        "--publication", "p",
    )  # fmt: skip
    first = rdsrepl(*command, dsn=source.dsn)
    assert first.code == 0, first.err
    source.run(*(f"INSERT INTO {empty} SELECT * FROM {full}" for full, empty in _TABLES.items()))
    second = rdsrepl(*command, dsn=source.dsn)
    assert second.code == 0, second.err
    copied, streamed = _rows(first.out), _rows(second.out)
    assert {_TABLES[name]: rows for name, rows in copied.items()} == streamed
    assert len(copied["every_type"]) == source.value("SELECT count(*) FROM every_type")
    tail = Tail(rdsrepl, source, tmp_path)
    with tail.running("-f", format_):
        signal(source, Request("one", "s", tuple(f"public.{name}" for name in copied), chunk_rows=3))
        tail.wait_for("one")
    assert _rows(tail.out.read_text()) == copied
    if format_ == "json":
        with closing(source.connect()) as conn:
            conn.execute("SET TimeZone = 'UTC'")
            conn.execute("SET IntervalStyle = 'iso_8601'")
            for name, rows in copied.items():
                expected = conn.execute(f"SELECT row_to_json(of_table)::text FROM {name} of_table").fetchall()
                assert rows == sorted(json.dumps(exact(text)) for (text,) in expected)
