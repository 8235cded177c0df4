"""``slot tail --snapshot``: the rows that the tables have, then the changes, nothing missing and nothing twice."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rdsrepl.snapshot import tables
from tests.fixtures.background import running
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program, Result
from tests.fixtures.waiting import wait_until

_TABLES = (
    "CREATE TYPE mood AS ENUM ('sad', 'happy')",
    "CREATE TYPE pair AS (a int, b text)",
    "CREATE TABLE t (id int PRIMARY KEY, n numeric, v text, m mood, c pair, a int[], j jsonb, at timestamptz,"
    " b bytea, f float8, ok bool, d date)",
    "INSERT INTO t SELECT i, i * 1.10, E'tab\\t, line\\nback\\\\ \"quote\" ' || i, 'happy', ROW(i, NULL)::pair,"
    " ARRAY[i, NULL], '{\"x\": 1.0}', '2026-01-01 00:00:00+02'::timestamptz + i * interval '1.5 s',"
    " decode('00ff', 'hex'), 0.1, i % 2 = 0, '2026-01-31' FROM generate_series(1, 3000) i",
    "INSERT INTO t VALUES (-1, 'NaN', '', NULL, NULL, '{}', 'null', 'infinity', '', '-Infinity', NULL, NULL)",
    "INSERT INTO t (id) VALUES (-2)",
    'CREATE TABLE "Odd ""one" (id int, part text) PARTITION BY LIST (part)',
    'CREATE TABLE one PARTITION OF "Odd ""one" FOR VALUES IN (\'1\')',
    'CREATE TABLE two PARTITION OF "Odd ""one" FOR VALUES IN (\'2\')',
    'INSERT INTO "Odd ""one" SELECT i, 1 + i % 2 FROM generate_series(1, 10) i',
    "CREATE TABLE hidden (id int PRIMARY KEY, secret text, n int)",
    "INSERT INTO hidden SELECT i, 'secret', i FROM generate_series(1, 10) i",
    'CREATE PUBLICATION p FOR TABLE t, "Odd ""one", hidden (id, n) WHERE (n > 7) WITH (publish_via_partition_root)',
)


@pytest.fixture
def source(db18: Database) -> Database:
    """A database with tables, rows and a publication."""
    db18.run(*_TABLES)
    return db18


@contextmanager
def _tail(rdsrepl: Program, source: Database, out: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    command = ["slot", "tail", "s", "--create", "pgoutput", "--snapshot", "--publication", "p", "-f", "json", *words]
    with out.open("ab") as file:
        process = rdsrepl.start(*command, dsn=source.dsn, stdout=file)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_float=str) for line in path.read_bytes().splitlines()]


def _slots(source: Database) -> list[str]:
    query = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
    return [name for (name,) in source.run(query)]


def test_rows_first_then_changes(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """A writer goes on during the snapshot; what the output leaves behind equals the tables, digit for digit."""
    out = tmp_path / "out.jsonl"

    def write(over: threading.Event) -> None:
        with closing(source.connect()) as conn:
            for number in range(100_000):
                if over.is_set():
                    return
                conn.execute("UPDATE t SET n = %s WHERE id = 100", (number,))
                conn.execute("INSERT INTO t (id) VALUES (%s)", (10_000 + number,))
                conn.execute("DELETE FROM t WHERE id = %s", (number % 50 + 1,))
                time.sleep(0.002)

    with running(write), _tail(rdsrepl, source, out):
        streams = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 's' AND active"
        wait_until(lambda: source.value(streams), "the snapshot is complete, and it streams", seconds=60)
        words = ("verify", "--stream", str(out), "--slot", "s", "--publication", "p", "--complete", "-o", "json")
        result = rdsrepl(*words, dsn=source.dsn)
    assert result.out, result.err
    states = {one["table"]: one["state"] for one in result.json["tables"]}
    assert (states["public.t"], states["public.hidden"]) == ("equal", "equal"), result.out
    events = _rows(out)
    copied = [event for event in events if event["op"] == "r"]
    assert [event["op"] for event in events[: len(copied)]] == ["r"] * len(copied), "the rows come first"
    assert [event["seq"] for event in copied] and sorted(event["seq"] for event in copied) == list(
        range(1, len(copied) + 1)
    )
    (position,) = {event["lsn"] for event in copied}
    assert all(event["commit_lsn"] < position for event in copied)
    assert [e["after"] for e in copied if e["table"] == "hidden"] == [{"id": n, "n": n} for n in (8, 9, 10)]
    assert len([e for e in copied if e["table"] == 'Odd "one']) == 10
    again = _tail(rdsrepl, source, out)
    with again:
        source.run("INSERT INTO hidden VALUES (99, 'x', 99)")
        wait_until(lambda: b'"id":99,"n":99' in out.read_bytes(), "the stream continues")
    assert len([event for event in _rows(out) if event["op"] == "r"]) == len(copied), "the copy is not made again"


def test_a_table_that_is_not_published(source: Database, rdsrepl: Program) -> None:
    """A wrong name would leave out the rows of a table without a word; the stream alone may wait for a new table."""
    tail = ("slot", "tail", "s", "--create", "pgoutput", "--publication", "p", "--until-now")
    refused = rdsrepl(*tail, "--snapshot", "--table", "t", "--table", "hiden", dsn=source.dsn)
    assert (refused.code, refused.out) == (3, ""), refused.err
    assert "did you mean hidden?" in refused.err and "error: --table hiden: no published table" in refused.err
    assert _slots(source) == []
    streamed = rdsrepl(*tail, "--table", "public.hiden", "--table", "pub*.t", dsn=source.dsn)
    assert streamed.code == 0
    assert "--table public.hiden matches no published table; did you mean public.hidden?" in streamed.err
    assert "pub*.t" not in streamed.err
    rdsrepl("slot", "drop", "s", "--yes", dsn=source.dsn)


@pytest.mark.parametrize("format_", ["debezium", "wal2json"])
def test_other_formats(source: Database, rdsrepl: Program, tmp_path: Path, format_: str) -> None:
    out = tmp_path / "out.jsonl"
    command = ["slot", "tail", "s", "--create", "pgoutput", "--snapshot", "--publication", "p", "-f", format_]
    result = rdsrepl(*command, "--to", f"file:{out}", "--until-now", dsn=source.dsn)
    assert result.code == 0, result.err
    rows = [row for row in _rows(out) if row.get("action") not in ("B", "C")]
    assert len(rows) == 3002 + 10 + 3
    if format_ == "debezium":
        assert {(row["op"], row["source"]["snapshot"]) for row in rows} == {("r", "true")}
    else:
        assert {row["action"] for row in rows} == {"I"}


@pytest.mark.parametrize("by_pages", [True, False], ids=["pages", "keys"])
def test_each_row_is_in_one_range(db15: Database, by_pages: bool) -> None:
    """Before 14 ranges are of keys: an integer key of one column, negative, with gaps; other tables have one range."""
    db15.run(
        'CREATE TABLE one ("Od""d %s" smallint PRIMARY KEY, v text)',
        "INSERT INTO one SELECT i, repeat('x', 500) FROM generate_series(-32768, 32767, 1023) i",
        "CREATE TABLE two (id bigint PRIMARY KEY)",
        "INSERT INTO two VALUES (-9223372036854775808), (-1), (0), (5), (9223372036854775807)",
        "CREATE TABLE three (a int, b int, PRIMARY KEY (a, b))",
        "INSERT INTO three SELECT i, i FROM generate_series(1, 1000) i",
        "CREATE TABLE four (id text PRIMARY KEY)",
        "INSERT INTO four VALUES ('a'), ('b')",
        "CREATE TABLE none (id int PRIMARY KEY)",
        "CREATE TABLE hidden_key (id int PRIMARY KEY, v int)",
        "INSERT INTO hidden_key VALUES (1, 1), (2, 2)",
        "CREATE PUBLICATION p FOR TABLE one, two, three, four, none, hidden_key (v) WITH (publish = 'insert')",
    )
    with closing(db15.connect()) as conn:
        found = tables.ls(conn, ["p"], lambda *name: True)
        # As if each had 10,000 pages.
        large = [replace(one, parts=tuple((part, 10_000) for part, _ in one.parts)) for one in found]
        ranges = tables.ranges(conn, large, 2, by_pages=by_pages)
        rows: dict[str, list[bytes]] = {one.relation.table: [] for one in large}
        for wanted in ranges:
            with conn.cursor() as cursor, cursor.copy(tables.copy_statement(large[wanted.table], wanted)) as copied:
                rows[large[wanted.table].relation.table] += [bytes(block) for block in copied]
        for name, copies in rows.items():
            lines = b"".join(copies).splitlines()
            assert len(lines) == db15.value(f"SELECT count(*) FROM {name}"), name
            assert len(set(lines)) == len(lines), name
    counts = Counter(large[wanted.table].relation.table for wanted in ranges)
    assert counts["one"] == 8 and counts["three"] == (8 if by_pages else 1)
    assert {counts[name] for name in ("four", "none", "hidden_key")} == {8 if by_pages else 1}
    assert {wanted.key for wanted in ranges} == ({None} if by_pages else {None, 'Od"d %s', "id"})


@pytest.mark.parametrize(
    ("fixture", "option", "columns"),
    [
        ("db15", "publish = insert", ["a", "c"]),
        ("db18", "publish_generated_columns = none", ["a", "c"]),
        ("db18", "publish_generated_columns = stored", ["a", "b", "c"]),
    ],
    ids=["15", "none", "stored"],
)
def test_generated_columns_are_those_of_the_stream(
    request: pytest.FixtureRequest, fixture: str, option: str, columns: list[str]
) -> None:
    """The view of 15 lists generated columns, which pgoutput sends from 18 on, if the publication says so."""
    database: Database = request.getfixturevalue(fixture)
    database.run(
        "CREATE TABLE t (a int PRIMARY KEY, b int GENERATED ALWAYS AS (a * 2) STORED, c text)",
        f"CREATE PUBLICATION p FOR TABLE t WITH ({option})",
    )
    with closing(database.connect()) as conn:
        (found,) = tables.ls(conn, ["p"], lambda *name: True)
    assert [column.name for column in found.relation.columns] == columns


def test_a_partition_has_the_name_that_the_stream_gives_it(db15: Database) -> None:
    """Of several publications, the one that sends it under the name of a partitioned table decides."""
    db15.run(
        "CREATE TABLE t (id int, r text, PRIMARY KEY (id, r)) PARTITION BY LIST (r)",
        "CREATE TABLE t_a PARTITION OF t FOR VALUES IN ('a')",
        "CREATE TABLE t_b PARTITION OF t FOR VALUES IN ('b') PARTITION BY RANGE (id)",
        "CREATE TABLE t_b1 PARTITION OF t_b FOR VALUES FROM (1) TO (10)",
        "CREATE PUBLICATION root FOR TABLE t WITH (publish_via_partition_root)",
        "CREATE PUBLICATION leaves FOR TABLE t",
        "CREATE PUBLICATION leaf FOR TABLE t_a",
        "CREATE PUBLICATION middle FOR TABLE t_b WITH (publish_via_partition_root)",
    )
    expected = {
        "root": {"t"},
        "leaves": {"t_a", "t_b1"},
        "root leaves": {"t"},
        "root leaf": {"t"},
        "leaves middle": {"t_a", "t_b"},
        "leaves middle root": {"t"},
        "leaves leaf": {"t_a", "t_b1"},
    }
    with closing(db15.connect()) as conn:
        for names, sent in expected.items():
            found = tables.ls(conn, names.split(), lambda *name: True)
            assert {table.relation.table for table in found} == sent, names


def test_rows_that_the_role_may_not_read_are_named_before_there_is_a_slot(
    db18: Database, rdsrepl: Program, tmp_path: Path
) -> None:
    """In the middle of the copy is too late. A right on some columns is enough where only these are sent."""
    role = f"reader_{db18.name}"
    db18.run(
        f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'r'",
        "CREATE TABLE a (id int PRIMARY KEY, secret text)",
        "CREATE TABLE b (id int PRIMARY KEY)",
        "CREATE PUBLICATION p FOR TABLE a (id), b",
    )
    words = (
        "slot",
        "tail",
        "s",
        "--create",
        "pgoutput",
        "--snapshot",
        "--until-now",
        "--to",
        f"file:{tmp_path / 'out'}",
    )

    def copy() -> Result:
        return rdsrepl(*words, dsn=f"{db18.server.dsn(user=role, dbname=db18.name)} password=r")

    result = copy()
    assert (result.code, f"role {role} may not read public.a, public.b" in result.err) == (5, True), result.err
    assert f"role grant {role} --user ADMIN --grant-select public.a --grant-select public.b" in result.err
    db18.run(
        f"GRANT SELECT (id) ON a TO {role}", f"GRANT SELECT ON b TO {role}", "ALTER TABLE b ENABLE ROW LEVEL SECURITY"
    )
    result = copy()
    assert (result.code, f"row security policies hide rows from role {role}: public.b" in result.err) == (5, True)
    assert _slots(db18) == []
    db18.run("ALTER TABLE b DISABLE ROW LEVEL SECURITY")
    assert copy().code == 0


def test_a_slot_that_was_dropped_elsewhere_is_copied_again(db18: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """What an older slot of that name has delivered is no gap: this output has all rows."""
    db18.run("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)", "CREATE PUBLICATION p FOR TABLE t")
    words = ("slot", "tail", "s", "--create", "pgoutput", "--snapshot", "--until-now", "-f", "json")
    for run in (1, 2):
        out = tmp_path / f"{run}.jsonl"
        result = rdsrepl(*words, "--to", f"file:{out}", dsn=db18.dsn)
        assert result.code == 0, result.err
        assert "since the last run" not in result.err
        assert [event["after"]["id"] for event in _rows(out)] == list(range(1, run + 1))
        db18.run("INSERT INTO t SELECT max(id) + 1 FROM t", "SELECT pg_drop_replication_slot('s')")


def test_a_copy_whose_state_cannot_be_written_names_the_remedy(
    db18: Database, rdsrepl: Program, tmp_path: Path
) -> None:
    """It copies nevertheless; a file that the user named must be writable."""
    db18.run("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)", "CREATE PUBLICATION p FOR TABLE t")
    words = (
        "slot",
        "tail",
        "s",
        "--create",
        "pgoutput",
        "--snapshot",
        "--until-now",
        "--to",
        f"file:{tmp_path / 'out'}",
    )
    refused = rdsrepl(*words, "--state", "/proc/none/state", dsn=db18.dsn)
    assert (refused.code, "could not write the snapshot state" in refused.err) == (1, True), refused.err
    assert _slots(db18) == []
    result = rdsrepl(*words, dsn=db18.dsn, env={"XDG_STATE_HOME": "/proc/none"})
    assert result.code == 0, result.err
    assert "a copy that ends early begins again from the start: could not write the snapshot state" in result.err
    assert "give another file: --state FILE" in result.err


def test_the_time_of_the_copy_is_not_idle(db18: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """``--idle-exit`` counts from its end: the run ended before it had connected to the slot."""
    db18.run("CREATE TABLE t (id int PRIMARY KEY)", "CREATE PUBLICATION p FOR TABLE t")
    words = ("slot", "tail", "s", "--create", "pgoutput", "--snapshot", "--idle-exit", "1s")
    with closing(db18.connect()) as conn:
        conn.execute("BEGIN; SELECT pg_current_xact_id()")  # the snapshot waits for its end
        process = rdsrepl.start(*words, "--to", f"file:{tmp_path / 'out'}", dsn=db18.dsn, stderr=subprocess.PIPE)
        age = "SELECT clock_timestamp() - backend_start > '2 s' FROM pg_stat_activity WHERE backend_type = 'walsender'"
        wait_until(lambda: db18.run(f"{age} AND datname = current_database()") == [(True,)], "it waits for two seconds")
        conn.execute("COMMIT")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"confirmed 0/0;" not in err, err


def test_a_killed_snapshot_leaves_nothing(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """Where the stream cannot go on: no slot is left, and the file is refused; a new file begins again."""
    out = tmp_path / "out.jsonl"
    source.run("INSERT INTO t (id, v) SELECT i, repeat('x', 2000) FROM generate_series(4000, 40000) i")
    with _tail(rdsrepl, source, out, "--plugin-option", "messages=false") as process:
        wait_until(lambda: out.stat().st_size > 1_000_000, "rows are written", seconds=60)
        process.kill()
    wait_until(lambda: _slots(source) == [], "no slot is left")
    refused = rdsrepl(
        "slot", "tail", "s", "--create", "pgoutput", "--snapshot", "--publication", "p", "--to", f"file:{out}",
        dsn=source.dsn,
    )  # fmt: skip
    assert (refused.code, "the output file is not empty" in refused.err) == (4, True)
    assert _slots(source) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--snapshot",), "add --create pgoutput"),
        (("--snapshot", "--create", "pgoutput", "-f", "raw"), "does not support --format raw"),
        (("--snapshot", "--create", "pgoutput", "--no-confirm", "-f", "json"), "--no-confirm"),
        (("--workers", "0"), "0"),
    ],
    ids=["create", "raw", "no-confirm", "workers"],
)
def test_wrong_options(db18: Database, rdsrepl: Program, words: tuple[str, ...], text: str) -> None:
    result = rdsrepl("slot", "tail", "s", *words, dsn=db18.dsn)
    assert result.code == 2
    assert text in result.err
