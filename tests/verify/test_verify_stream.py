"""``verify --stream``: what the output of ``slot tail`` leaves behind, compared with the source while both go on."""

from __future__ import annotations

import gzip
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from rdsrepl.state import zstandard
from tests.fixtures.background import running
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.waiting import wait_until

_SLOT = ("--slot", "g", "--publication", "p", "--complete")


@pytest.fixture
def source(db18: Database) -> Database:
    """A database with a slot and a publication, made before its tables have rows."""
    db18.run(
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE FUNCTION as_json(mood) RETURNS json LANGUAGE sql AS $$ SELECT '{\"cast\": true}'::json $$",
        "CREATE CAST (mood AS json) WITH FUNCTION as_json(mood)",
        "CREATE TABLE t (id int PRIMARY KEY, n numeric, big text, j jsonb, c pair, a int[], at timestamptz,"
        " m mood, ms mood[])",
        "ALTER TABLE t ALTER big SET STORAGE EXTERNAL",
        "CREATE TABLE moved (a text, b int, PRIMARY KEY (a, b))",
        "CREATE TABLE cut (id int PRIMARY KEY)",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
    )
    return db18


@contextmanager
def _tail(rdsrepl: Program, source: Database, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    with out.open("wb") as file:
        process = rdsrepl.start("slot", "tail", "g", "--publication", "p", "-f", "json", dsn=source.dsn, stdout=file)
    try:
        wait_until(lambda: source.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'g'"), "it streams")
        yield process
    finally:
        process.terminate()
        process.communicate()


def _changes(source: Database) -> None:
    source.run(
        "INSERT INTO t SELECT i, i * 1.10, repeat(md5(i::text), 200), jsonb_build_object('x', 1.0, 'y', '1'),"
        " (i, 'b'::text)::pair, ARRAY[i, NULL], '2026-01-01', 'ok', '{sad,NULL}' FROM generate_series(1, 200) i",
        "UPDATE t SET n = n + 1 WHERE id % 2 = 0",
        "UPDATE t SET id = id + 1000 WHERE id <= 5",
        "DELETE FROM t WHERE id BETWEEN 10 AND 14",
        "INSERT INTO t SELECT 10, 'NaN', NULL, 'null'",
        "INSERT INTO moved SELECT 'k' || i, i FROM generate_series(1, 9) i",
        "UPDATE moved SET a = a || 'x', b = b + 100 WHERE b > 5",
        "INSERT INTO cut SELECT generate_series(1, 9)",
        "TRUNCATE cut",
        "INSERT INTO cut VALUES (4)",
    )


def test_a_stream_equals_its_source_while_both_go_on(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    def write(over: threading.Event) -> None:
        with closing(source.connect()) as conn:
            for number in range(100_000):
                if over.is_set():
                    return
                conn.execute("UPDATE t SET n = %s WHERE id = 100", (number,))

    with _tail(rdsrepl, source, out):
        _changes(source)
        with running(write):
            result = rdsrepl("verify", "--stream", str(out), *_SLOT, "-o", "json", dsn=source.dsn)
        assert result.code == 0, result.out + result.err
        assert {one["table"]: (one["state"], one["rows"]) for one in result.json["tables"]} == {
            "public.t": ("equal", 196),
            "public.moved": ("equal", 9),
            "public.cut": ("equal", 1),
        }
        _each_kind_of_damage(source, rdsrepl, out, tmp_path)


def _each_kind_of_damage(source: Database, rdsrepl: Program, out: Path, tmp_path: Path) -> None:
    end = source.value("SELECT pg_current_wal_flush_lsn()")
    confirmed = f"SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'g'"
    wait_until(lambda: source.value(confirmed), "the file has every change")
    deep = tmp_path / "deep.jsonl"
    row = '{"op":"c","schema":"public","table":"t","key":{"id":7},"before":null,"after":{"id":7,"j":%s},"lsn":"0/1",'
    row += '"timeline":1,"commit_lsn":"0/1","commit_time":null,"xid":1,"seq":1}\n'
    for levels in (700, 5000):
        deep.write_text(row.replace("%s", "[" * levels + "]" * levels))
        result = rdsrepl("verify", "--stream", str(deep), *_SLOT, "--table", "t", dsn=source.dsn)
        assert result.code == 4 and "nested too deep" in result.err, result.err
    damaged = tmp_path / "damaged.jsonl.zst"
    lost = (b'{"op":"d","schema":"public","table":"t","key":{"id":12}', b'"key":{"id":150}')
    lines = [line for line in out.read_bytes().splitlines(keepends=True) if not any(text in line for text in lost)]
    damaged.write_bytes(zstandard.module().compress(b"".join(lines).replace(b'"a":[151,null]', b'"a":[151,0]')))
    result = rdsrepl(
        "verify", "--stream", str(damaged), *_SLOT, "--table", "t", "--columns", "-o", "json", dsn=source.dsn
    )
    assert result.code == 9, result.err
    (table,) = result.json["tables"]
    assert sorted((row["key"]["id"], row["state"], row["columns"]) for row in table["keys"]) == [
        ("12", "extra", None),
        ("150", "missing", None),
        ("151", "different", ["a"]),
    ]


def test_wrong_input(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(b'{"action":"B"}\n')

    def run(*words: str) -> tuple[int, str]:
        result = rdsrepl("verify", *words, dsn=source.dsn)
        return result.code, result.err + result.out

    assert run()[0] == 2
    assert run("--stream", str(out))[0] == 2
    assert run("--stream", str(out), "--to", "x", *_SLOT)[0] == 2
    assert run("--stream", str(out) + "x", *_SLOT)[0] == 3
    assert run("--stream", str(out), "--from", "2026-01-01", *_SLOT)[0] == 2
    assert run("--stream", str(out), "--stream", "kinesis:x", *_SLOT)[0] == 2
    assert run("--to", "x", "--from", "2026-01-01")[0] == 2
    code, text = run("--stream", str(out), *_SLOT, "--proof-timeout", "0s")
    assert (code, "slot g is not in use" in text) == (4, True)
    with _tail(rdsrepl, source, tmp_path / "live"):
        code, text = run("--stream", str(out), *_SLOT)
        assert (code, "line 1 is not a change in the format json" in text) == (2, True)
        (tmp_path / "torn.gz").write_bytes(gzip.compress(b"")[:-9])
        for name in ("torn.gz", "live.zst"):
            (tmp_path / "live.zst").write_bytes(b"{}")
            code, text = run("--stream", str(tmp_path / name), *_SLOT)
            assert (code, f"is not a complete {name[-4:].lstrip('n')} file" in text) == (2, True), text
        line = '{"op":"t","schema":"public","table":"cut","key":null,"timeline":1,"commit_lsn":"%s","commit_time":null,'
        out.write_text(line % "FF/0" + '"seq":1}\n')
        code, text = run("--stream", str(out), *_SLOT)
        assert (code, "it is not the server that the stream comes from" in text) == (4, True), text
        out.write_bytes(b"")
        source.run("INSERT INTO cut VALUES (7)")
        code, text = run("--stream", str(out), *_SLOT[:-1])
        assert (code, "1 row not compared" in text) == (8, True), text
        with closing(source.connect()) as conn, conn.transaction():
            conn.execute("INSERT INTO cut VALUES (1)")
            code, text = run("--stream", str(out), *_SLOT, "--proof-timeout", "1s")
        assert (code, "transactions that are in progress" in text) == (1, True)
