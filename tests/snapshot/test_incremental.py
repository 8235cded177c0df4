"""Snapshots into a running stream: chunks, markers and rows, on real servers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from rdsrepl.snapshot import requests
from rdsrepl.snapshot.requests import PREFIX, Control, Request, Verb, encode
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.waiting import wait_until


def signal(source: Database, signal: Request | Control) -> None:
    """Send a signal as ``rdsrepl snapshot`` does."""
    source.value(f"SELECT pg_logical_emit_message(true, '{PREFIX}', '{encode(signal)}')")


def events(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of an output file."""
    content = path.read_bytes()
    return [json.loads(line, parse_float=str) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def folded(found: Sequence[dict[str, Any]], table: str) -> dict[str, dict[str, Any]]:
    """Return the rows that a consumer has after some events of the format ``json``."""
    rows: dict[str, dict[str, Any]] = {}
    for event in found:
        if event["table"] != table:
            continue
        key = json.dumps(event["key"])
        if event["op"] == "t":
            rows.clear()
        elif event["op"] == "d":
            rows.pop(key, None)
        else:
            old = json.dumps(event["before"]) if event["before"] else key
            rows[key] = {**rows.get(old, {}), **event["after"]}
            if old != key:
                rows.pop(old, None)
    return rows


class Tail:
    """A running tail that writes to a file, with a state file of its own."""

    def __init__(
        self, rdsrepl: Program, source: Database, directory: Path, *, slot: str = "s", dsn: str | None = None
    ) -> None:
        self._rdsrepl, self.source, self._slot, self._dsn = rdsrepl, source, slot, dsn or source.dsn
        self.out, self.state = directory / "out.jsonl", directory / "state.json"

    @contextmanager
    def running(self, *words: str, stderr: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
        command = ["slot", "tail", self._slot, "--create", "pgoutput", "--publication", "p"]
        command += ["--state", str(self.state)]
        with self.out.open("ab") as file:
            process = self._rdsrepl.start(
                *command, *(() if "-f" in words else ("-f", "json")), *words, dsn=self._dsn, stdout=file, stderr=stderr
            )
        try:
            wait_until(
                lambda: self.source.value(
                    f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{self._slot}' AND active"
                    " AND database = current_database()"
                ),
                "the slot is streamed",
            )
            yield process
        finally:
            process.terminate()
            process.communicate()

    def snapshots(self) -> dict[str, dict[str, Any]]:
        if not self.state.exists():
            return {}
        return {one["request"]["id"]: one for one in json.loads(self.state.read_text())["snapshots"]}

    def status(self, snapshot_id: str) -> str | None:
        return self.snapshots().get(snapshot_id, {}).get("status")

    def wait_for(self, snapshot_id: str, status: str = "done") -> dict[str, Any]:
        ends = {status, "done", "failed", "cancelled"}
        wait_until(lambda: self.status(snapshot_id) in ends, f"snapshot {snapshot_id} is {status}", seconds=60)
        state = self.snapshots()[snapshot_id]
        assert state["status"] == status, state["reason"]
        return state

    def events(self) -> list[dict[str, Any]]:
        return events(self.out)


@pytest.fixture
def source(db18: Database) -> Database:
    """A database with a table of 1,000 rows and a publication."""
    db18.run(
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text)",
        "INSERT INTO t SELECT i, i, 'row ' || i FROM generate_series(1, 1000) i",
        "CREATE PUBLICATION p FOR ALL TABLES",
    )
    return db18


@pytest.fixture
def tail(rdsrepl: Program, source: Database, tmp_path: Path) -> Tail:
    return Tail(rdsrepl, source, tmp_path)


@pytest.mark.parametrize("prefix", ["rdsrepl.snapshot", "rdsrepl.signal", "rdsrepl.heartbeat", "rdsrepl.other"])
def test_no_message_of_a_stranger_stops_the_stream(db15: Database, rdsrepl: Program, prefix: str) -> None:
    """Every role may write a message, and the server sends it again to each run."""
    db15.run("CREATE TABLE t (id int PRIMARY KEY)", "CREATE PUBLICATION p FOR TABLE t")
    db15.run("SELECT pg_create_logical_replication_slot('odd', 'pgoutput')")
    contents = (
        "repeat('[', 100000)",
        "'null'",
        "'[]'",
        "'{}'",
        '\'{"run": {}, "chunk": []}\'',
        "repeat('9', 9999)",
        "E'\\x1b[2J'",
    )
    try:
        db15.run(*(f"SELECT pg_logical_emit_message(true, '{prefix}', {one})" for one in contents))
        db15.run(f"SELECT pg_logical_emit_message(true, '{prefix}', '\\xff00'::bytea)", "INSERT INTO t VALUES (1)")
        done = rdsrepl("slot", "tail", "odd", "--until-now", "-f", "json", dsn=db15.dsn)
        assert done.code == 0 and "\x1b" not in done.err, done.err
        text = "a signal for snapshots is ignored: it is not a JSON object of the expected form"
        assert done.err.count(text) == (prefix == "rdsrepl.signal"), "a flood of them does not fill the log"
        assert [line["table"] for line in done.lines] == ["t"]
    finally:
        db15.run("SELECT pg_drop_replication_slot('odd')")


def test_the_rows_come_in_chunks_with_the_identity_of_their_markers(source: Database, tail: Tail) -> None:
    source.run(
        "CREATE TABLE parts (id int, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
        "CREATE TABLE part_0 PARTITION OF parts FOR VALUES IN (0)",
        "CREATE TABLE part_1 PARTITION OF parts FOR VALUES IN (1)",
        "INSERT INTO parts SELECT i, i % 2 FROM generate_series(1, 5) i",
    )
    with tail.running():
        signal(source, Request("parts", "s", ("public.parts",)))
        parts = tail.wait_for("parts")["tables"]
        assert {one["table"]: one["rows"] for one in parts} == {"public.part_0": 2, "public.part_1": 3}
        signal(source, Request("one", "s", ("public.t",), chunk_rows=300))
        state = tail.wait_for("one")
        source.run("UPDATE t SET n = -1 WHERE id = 7")
        wait_until(lambda: tail.events()[-1]["op"] == "u", "the stream goes on")
    (table,) = state["tables"]
    assert (table["rows"], table["is_done"], table["cursor"]) == (1000, True, ["1000"])
    found = tail.events()
    copied = [event for event in found if event["op"] == "r" and event["table"] == "t"]
    assert [event["after"]["id"] for event in copied] == list(range(1, 1001)), "in the order of the key, none twice"
    assert {event["op"] for event in found} == {"r", "u"}, "signals and markers are not in the output"
    identities = [(event["commit_lsn"], event["seq"]) for event in found]
    assert len(set(identities)) == len(identities)
    assert copied[0]["snapshot"] == {"id": "one", "chunk": 1} and copied[0]["seq"] == 1 and copied[0]["xid"]
    assert folded(found, "t")['{"id": 7}']["n"] == -1


_ODD_TABLES = (
    'CREATE SCHEMA "Odd schema"',
    # Names
    'CREATE TABLE "Odd schema"."T ""x"".y" ("Key ""1" text PRIMARY KEY, "a\tb" int)',
    'INSERT INTO "Odd schema"."T ""x"".y" SELECT E\'k\\t\\\\\\n\'\' "\' || i, i FROM generate_series(1, 25) i',
    # Keys of several columns, not in the order of the table, beside columns that are not published
    "CREATE TABLE composite (secret text, b int, v text, a text, c timestamptz, PRIMARY KEY (a, b, c))",
    "INSERT INTO composite SELECT 'secret', i % 5, 'v', 'a' || i % 3, '2026-01-01'::timestamptz + i * interval '1.5 s'"
    " FROM generate_series(1, 60) i",
    # Types
    "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')",
    "CREATE DOMAIN code AS text CHECK (value <> '')",
    "CREATE TYPE pair AS (a int, b text)",
    *(
        f"CREATE TABLE of_{name} (k {type_} PRIMARY KEY, n int); INSERT INTO of_{name} SELECT {value}, i"
        f" FROM generate_series(1, 25) i ON CONFLICT DO NOTHING"
        for name, type_, value in (
            ("numeric", "numeric", "CASE i WHEN 1 THEN 'NaN' WHEN 2 THEN -i / 7.0 ELSE i END"),
            ("float", "float8", "CASE i WHEN 1 THEN 'NaN' WHEN 2 THEN '-Infinity' ELSE i / 3.0 END"),
            ("bool", "boolean", "i % 2 = 0"),
            ("bytea", "bytea", "decode(md5(i::text), 'hex')"),
            ("uuid", "uuid", "md5(i::text)::uuid"),
            (
                "date",
                "date",
                "CASE i WHEN 1 THEN 'infinity' WHEN 2 THEN '0044-03-15 BC' ELSE '2026-01-01'::date + i END",
            ),
            (
                "timestamp",
                "timestamp",
                "CASE i WHEN 1 THEN '-infinity' ELSE '2026-01-01'::timestamp + i * interval '1 s' END",
            ),
            ("interval", "interval", "i * interval '25 hours'"),
            ("mood", "mood", "(ARRAY['happy', 'sad', 'ok'])[1 + i % 3]::mood"),
            ("code", "code", "'c' || i"),
            ("char", "char(5)", "'c' || i"),
            ("varchar", "varchar(4)", "'v' || i"),
            ("array", "int[]", "ARRAY[i % 3, i, NULL]"),
            ("jsonb", "jsonb", "to_jsonb(CASE WHEN i % 2 = 0 THEN 'i' || i ELSE i::text END)"),
            ("inet", "inet", "('10.0.0.' || i)::inet"),
            ("range", "int4range", "int4range(i, 2 * i + 1)"),
            ("tid", '"char"', "chr(64 + i)"),
            ("bit", "bit varying", "i::bit(8)"),
            ("pair", "pair", "ROW(i % 3, 'a\"' || i)::pair"),
            (
                "stamp",
                "timestamptz",
                "CASE i WHEN 1 THEN 'infinity' ELSE '2026-01-01'::timestamptz + interval '1 s' * i END",
            ),
            ("money", "money", "(i - 5.5)::numeric::money"),
            ("lsn", "pg_lsn", "pg_lsn('0/0') + i"),
            ("timetz", "timetz", "make_time(i % 24, 0, 0) AT TIME ZONE 'UTC'"),
            ("codes", "code[]", "ARRAY['c' || i, NULL]::code[]"),
        )
    ),
    # The order of the index, not of the column; and an order that an operator of its own schema defines
    "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    "CREATE TABLE blind (k text COLLATE blind PRIMARY KEY, n int)",
    "INSERT INTO blind SELECT chr(CASE WHEN i % 2 = 0 THEN 64 ELSE 96 END + i), i FROM generate_series(1, 25) i",
    "CREATE SCHEMA extensions; CREATE EXTENSION citext SCHEMA extensions",
    "CREATE TABLE mixed (n int, k extensions.citext, v text, PRIMARY KEY (k, n))",
    "INSERT INTO mixed SELECT i, (ARRAY['a', 'B', 'c', 'D'])[1 + i % 4], 'v' FROM generate_series(1, 25) i",
    "CREATE TABLE by_index (a text NOT NULL, b int NOT NULL, v text)",
    'CREATE UNIQUE INDEX by_index_key ON by_index (a COLLATE "C" DESC, b)',
    "ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_key",
    "INSERT INTO by_index SELECT (ARRAY['a', 'B', 'c', 'D'])[1 + i % 4], i, 'v' FROM generate_series(1, 25) i",
    "CREATE TABLE whole (id int PRIMARY KEY, v text)",
    "ALTER TABLE whole REPLICA IDENTITY FULL",
    "INSERT INTO whole SELECT i, repeat('x', 3000) FROM generate_series(1, 25) i",
    # Partitions, as the publication has them: as one table, and each for itself
    "CREATE TABLE parts (id int, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
    "CREATE TABLE part_0 PARTITION OF parts FOR VALUES IN (0)",
    "CREATE TABLE part_1 PARTITION OF parts FOR VALUES IN (1)",
    "INSERT INTO parts SELECT i, i % 2 FROM generate_series(1, 25) i",
    "CREATE TABLE parent (id int PRIMARY KEY, v text)",
    "CREATE TABLE child (more int) INHERITS (parent)",
    "INSERT INTO parent SELECT i, 'parent' FROM generate_series(1, 5) i",
    "INSERT INTO child SELECT i, 'child' FROM generate_series(6, 9) i",
    "CREATE TABLE filtered (id int PRIMARY KEY, n int, secret text)",
    "INSERT INTO filtered SELECT i, i, 'secret' FROM generate_series(1, 25) i",
    "CREATE TABLE nothing (id int PRIMARY KEY)",
)


def test_every_kind_of_table_and_key(db15: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """Each table in chunks of 7 rows, while every row of it is updated; a consumer has what the server has."""
    db15.run(*(part for text in _ODD_TABLES for part in text.split("; ")))
    tables = [
        ("Odd schema", 'T "x".y'),
        *(
            ("public", name)
            for (name,) in db15.run(
                "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
                " AND NOT relispartition AND relname NOT IN ('child', 'filtered', 'composite') ORDER BY 1"
            )
        ),
    ]
    names = [requests.table_text(*table) for table in tables]
    db15.run(
        f"CREATE PUBLICATION p FOR TABLE {', '.join('ONLY ' + name for name in names)}, "
        "composite (a, b, c, v), filtered (id, n) WHERE (n > 7) WITH (publish_via_partition_root)"
    )
    tables += [("public", "composite"), ("public", "filtered")]
    names += ["public.composite", "public.filtered"]
    tail = Tail(rdsrepl, db15, tmp_path)
    with tail.running():
        signal(db15, Request("odd", "s", tuple(names), chunk_rows=7))
        state = tail.wait_for("odd")
    rows = {table["table"]: table["rows"] for table in state["tables"]}
    assert rows["public.nothing"] == 0 and rows["public.filtered"] == 18 and rows["public.parent"] == 5
    found = tail.events()
    for schema, name in tables:
        columns = {"composite": "b, v, a, c", "filtered": "id, n"}.get(name, "*")
        where = " WHERE n > 7" if name == "filtered" else ""
        only = "" if name == "parts" else "ONLY "
        query = f"SELECT {columns} FROM {only}{requests.table_text(schema, name)}{where}"
        settings = ("SET IntervalStyle = iso_8601", "SET TimeZone = 'UTC'")
        expected = [row for (row,) in db15.run(*settings, f"SELECT to_json(x)::text FROM ({query}) x")]
        seen = [event["after"] for event in found if (event["schema"], event["table"]) == (schema, name)]
        as_texts = sorted(json.dumps(row) for row in seen)
        assert as_texts == sorted(json.dumps(json.loads(row, parse_float=str)) for row in expected), name


def test_requests_that_cannot_be_met_say_why_and_others_go_on(
    source: Database, rdsrepl: Program, tmp_path: Path
) -> None:
    source.run(
        "CREATE TABLE keyless (v text)",
        "CREATE TABLE hidden (id int PRIMARY KEY)",
        "CREATE TABLE unidentified (id int PRIMARY KEY)",
        "ALTER TABLE unidentified REPLICA IDENTITY NOTHING",
        "CREATE TABLE unpublished (id int PRIMARY KEY)",
        "CREATE TABLE part (id int PRIMARY KEY, v int)",
        "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        *(f"CREATE TABLE parts_{n} PARTITION OF parts FOR VALUES FROM ({n}0) TO ({n}9)" for n in range(3)),
        "CREATE TABLE split (id int PRIMARY KEY) PARTITION BY HASH (id)",
        *(f"CREATE TABLE split_{n} PARTITION OF split FOR VALUES WITH (modulus 2, remainder {n})" for n in range(2)),
        "INSERT INTO split SELECT generate_series(1, 9)",
        "DROP PUBLICATION p",
        "CREATE PUBLICATION p FOR TABLE t, keyless, hidden, unidentified, part (v), parts_0, parts_1, split"
        " WITH (publish = 'insert')",
    )
    reasons = {
        "keyless": "has no primary key",
        "hidden": "--table of slot tail leaves it out",
        "unidentified": "has no primary key",
        "unpublished": "is not published",
        "part": "do not send the column id",
        "absent": "does not exist",
        "parts": "have only 2 of 3 partitions of public.parts; name those, each with --table: public.parts_0, public.",
    }
    tail = Tail(rdsrepl, source, tmp_path)
    in_stream = (*(name for name in reasons if name != "hidden"), "t", "split_1")
    with tail.running(*(word for name in in_stream for word in ("--table", name))):
        signal(source, Request("conditional", "s", ("public.t",), where="true"))
        signal(source, Request("another", "other_slot", ("public.t",)))
        source.value(f"SELECT pg_logical_emit_message(true, '{PREFIX}', '{{')")
        source.value("SELECT pg_logical_emit_message(true, 'rdsrepl.snapshot', '[]')")
        for name in reasons:
            signal(source, Request(name, "s", ("public.t", f"public.{name}")))
        signal(source, Control(Verb.cancel, "never", "s"))
        signal(source, Request("replica", "s", ("public.t",), read_from="nowhere"))
        signal(source, Request("last", "s", ("public.t", "public.split")))
        tail.wait_for("last")
    found = tail.snapshots()
    assert {name: found[name]["status"] for name in reasons} == dict.fromkeys(reasons, "failed")
    assert {name: found[name]["reason"] for name in reasons if reasons[name] not in found[name]["reason"]} == {}
    assert "--allow-snapshot-conditions" in found["conditional"]["reason"]
    assert "nowhere" in found["replica"]["reason"]
    assert "another" not in found
    rows = {name: len(folded(tail.events(), name)) for name in ("t", "split_0", "split_1")}
    assert rows == {"t": 1000, "split_0": 0, "split_1": source.value("SELECT count(*) FROM split_1")}


def test_a_state_that_cannot_be_written_stops_the_snapshot_and_not_the_stream(source: Database, tail: Tail) -> None:
    saved, notes = tail.state.with_name("saved"), tail.state.with_name("notes")
    with notes.open("ab") as stderr, tail.running(stderr=stderr) as process:
        signal(source, Request("one", "s", ("public.t",), chunk_rows=50, rows_per_second=500))
        wait_until(lambda: len(tail.events()) >= 100, "some chunks are written")
        tail.state.rename(saved)
        tail.state.mkdir()  # a file cannot replace it
        source.run("INSERT INTO t VALUES (5000, 1, 'x')")
        wait_until(lambda: any(event["op"] == "c" for event in tail.events()), "the stream goes on")
        wait_until(lambda: b"snapshots wait until it can be written" in notes.read_bytes(), "the reader has found out")
        assert process.poll() is None
        tail.state.rmdir()
        saved.rename(tail.state)
        tail.wait_for("one")
    assert len({event["key"]["id"] for event in tail.events()}) == 1001


def test_pause_resume_cancel_and_a_kill(source: Database, tail: Tail) -> None:
    """A slow snapshot is paused, the process killed, the snapshot resumed and, with another one, completed."""
    slow = Request("slow", "s", ("public.t",), chunk_rows=50, rows_per_second=500)
    with tail.running() as process:
        signal(source, slow)
        wait_until(lambda: len(tail.events()) >= 100, "some chunks are written")
        signal(source, Control(Verb.pause, "slow", "s"))
        tail.wait_for("slow", "paused")
        signal(source, Request("gone", "s", ("public.t",), chunk_rows=50, rows_per_second=100))
        wait_until(lambda: tail.events()[-1]["snapshot"]["id"] == "gone", "another one is written")
        signal(source, Control(Verb.cancel, "gone", "s"))
        tail.wait_for("gone", "cancelled")
        source.run("UPDATE t SET v = 'new' WHERE id <= 500", "DELETE FROM t WHERE id = 999")
        signal(source, Control(Verb.resume, "slow", "s"))
        count = len(tail.events())
        wait_until(lambda: len(tail.events()) >= count + 100, "some chunks more are written")
        process.kill()
        process.wait()
    resumed_at = tail.snapshots()["slow"]["tables"][0]["cursor"]
    assert resumed_at is not None and int(resumed_at[0]) < 1000
    with tail.running():
        source.run("INSERT INTO t VALUES (5000, 1, 'x')")
        tail.wait_for("slow")
        signal(source, slow)
        signal(source, Request("empty", "s", ("public.t",)))
        state = tail.wait_for("empty")
    assert state["tables"][0]["rows"] == 1000
    found = tail.events()
    copied = [event["after"]["id"] for event in found if event["op"] == "r" and event["snapshot"]["id"] == "slow"]
    assert set(copied) == {*range(1, 999), 1000, 5000} and len(copied) < 1000 + 10 * 50
    assert len({(event["commit_lsn"], event["seq"]) for event in found}) == len(found)
    expected = source.run("SELECT id, n, v FROM t")
    assert sorted((row["id"], row["n"], row["v"]) for row in folded(found, "t").values()) == sorted(expected)


def _sorted(rows: Sequence[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


@contextmanager
def in_the_middle(tail: Tail, source: Database, table: str) -> Iterator[None]:
    """Start a slow snapshot of a table, run the block when a part of it is written, and wait for the end."""
    signal(source, Request(table, "s", (f"public.{table}",), chunk_rows=50, rows_per_second=500))
    wait_until(
        lambda: len([one for one in tail.events() if one["table"] == table and one["op"] == "r"]) >= 100,
        f"a part of {table} is written",
    )
    assert tail.status(table) == "running"
    yield
    tail.wait_for(table)


def test_tables_that_change_in_the_middle_of_a_snapshot(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """Moved keys with large values that the stream leaves out, DDL, TRUNCATE, and lost connections."""
    source.run(
        "CREATE TABLE moved (id int PRIMARY KEY, v text, n int)",
        "ALTER TABLE moved ALTER v SET STORAGE EXTERNAL",
        "INSERT INTO moved SELECT i, repeat(md5(i::text), 100), i FROM generate_series(1, 1000) i",
        "CREATE TABLE altered AS SELECT * FROM t",
        "ALTER TABLE altered ADD PRIMARY KEY (id)",
        "CREATE TABLE truncated (LIKE altered INCLUDING ALL)",
        "INSERT INTO truncated SELECT * FROM t",
        "CREATE TABLE rekeyed AS SELECT id, 1000 - id AS n, v FROM t",
        "ALTER TABLE rekeyed ADD PRIMARY KEY (id)",
        "CREATE TABLE lost (LIKE altered INCLUDING ALL)",
        "INSERT INTO lost SELECT * FROM t",
        "CREATE TABLE dropped (LIKE altered INCLUDING ALL)",
        "INSERT INTO dropped SELECT * FROM t",
    )
    tail = Tail(rdsrepl, source, tmp_path)
    with tail.running():
        with in_the_middle(tail, source, "moved"):
            source.run(
                "UPDATE moved SET id = -id WHERE id IN (900, 901)", "UPDATE moved SET id = -1000 WHERE id = -900"
            )
            source.run("UPDATE moved SET id = 5000 WHERE id = 1", "DELETE FROM moved WHERE id = -901")
        with in_the_middle(tail, source, "altered"):
            source.run(
                "ALTER TABLE altered ADD COLUMN more int DEFAULT 7, DROP COLUMN n",
                "UPDATE altered SET v = v || '!' WHERE id % 2 = 0",
            )
        with in_the_middle(tail, source, "rekeyed"):
            source.run(
                "ALTER TABLE rekeyed DROP CONSTRAINT rekeyed_pkey, ADD PRIMARY KEY (n)",
                "UPDATE rekeyed SET v = 'new' WHERE id % 10 = 0",
            )
        with in_the_middle(tail, source, "truncated"):
            source.run("TRUNCATE truncated", "INSERT INTO truncated VALUES (1, 1, 'new'), (2000, 1, 'new')")
        with in_the_middle(tail, source, "lost"):
            for query in ("backend_type = 'walsender'", "query LIKE '%emit_message%'", "query ~ '^(COPY|COMMIT)'"):
                count = len(tail.events())
                source.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    f" AND pid <> pg_backend_pid() AND {query}",
                    "UPDATE lost SET v = v || '+' WHERE id % 2 = 0",
                )
                wait_until(lambda count=count: len(tail.events()) >= count + 600, "it goes on")
        signal(source, Request("dropped", "s", ("public.dropped",), chunk_rows=50, rows_per_second=500))
        wait_until(lambda: tail.events()[-1]["table"] == "dropped", "a part is written")
        source.run("ALTER TABLE dropped RENAME TO renamed")
        assert "does not exist" in tail.wait_for("dropped", "failed")["reason"]
    found = tail.events()
    again = [event for event in found if event["table"] == "rekeyed" and "n" in event["key"] and event["op"] == "r"]
    rekeyed = {event["key"]["n"]: event["after"]["v"] for event in again}
    assert rekeyed == dict(source.run("SELECT n, v FROM rekeyed")), "it was read from the start"
    for table in ("moved", "altered", "truncated", "lost"):
        expected = [json.loads(row) for (row,) in source.run(f"SELECT to_json(x)::text FROM {table} x")]
        rows = folded(found, table)
        columns = set(expected[0])
        seen = [{name: value for name, value in row.items() if name in columns} for row in rows.values()]
        assert _sorted(seen) == _sorted(expected), table


@pytest.mark.parametrize("format_", ["debezium", "wal2json"])
def test_rows_in_the_other_formats(source: Database, rdsrepl: Program, tmp_path: Path, format_: str) -> None:
    """Without a condition that the process allows, a request with one is refused; with it, only such rows come."""
    tail = Tail(rdsrepl, source, tmp_path)
    source.run("CREATE TABLE other (at timestamptz PRIMARY KEY, v int)", "INSERT INTO other VALUES ('2026-01-01', 1)")
    with tail.running("-f", format_, "--allow-snapshot-conditions"):
        signal(source, Request("bad", "s", ("public.t",), where="id > 5) OR (true"))
        assert "condition does not fit" in tail.wait_for("bad", "failed")["reason"]
        signal(source, Request("one", "s", ("public.t",), chunk_rows=2, where="id > 995"))
        tail.wait_for("one")
        signal(source, Request("two", "s", ("public.other",)))
        source.run("UPDATE other SET at = '2026-01-02'")
        tail.wait_for("two")
    found = tail.events()
    if format_ == "wal2json":
        rows = [event for event in found if event["action"] == "I" and event["table"] == "t"]
        assert [row["columns"][0]["value"] for row in rows] == [996, 997, 998, 999, 1000]
        return
    rows = [event for event in found if event["op"] == "r" and event["source"]["table"] == "t"]
    assert [row["after"]["id"] for row in rows] == [996, 997, 998, 999, 1000]
    assert {row["source"]["snapshot"] for row in rows} == {"incremental"}
    assert all(row["before"] is None and row["source"]["txId"] and row["source"]["lsn"] for row in rows)
    others = [event for event in found if event["source"]["table"] == "other" and event["op"] in "rcu"]
    assert others[-1]["after"]["at"].startswith("2026-01-02")


def test_a_state_that_does_not_fit_ends_the_command_before_anything_is_read(
    db15: Database, rdsrepl: Program, tmp_path: Path
) -> None:
    """Another slot's state, a damaged one, and streams that cannot have snapshots."""
    db15.run("CREATE PUBLICATION p FOR ALL TABLES", "CREATE TABLE t (id int PRIMARY KEY)")
    names = {"s": "pgoutput", "other": "pgoutput", "w": "wal2json"}
    db15.run(*(f"SELECT pg_create_logical_replication_slot('{name}', '{plugin}')" for name, plugin in names.items()))
    db15.run("INSERT INTO t VALUES (1)")
    state = tmp_path / "state.json"
    words = ("slot", "tail", "s", "--until-now", "--state", str(state))
    assert rdsrepl(*words, dsn=db15.dsn).code == 0
    assert not state.exists(), "nothing was requested"
    signal(db15, Request("one", "s", ("public.t",)))
    assert rdsrepl(*words, dsn=db15.dsn).code == 0 and state.exists()
    position = db15.value("SELECT string_agg(confirmed_flush_lsn::text, ' ') FROM pg_replication_slots")
    whole = state.read_text()
    for slot, content, more, reason in (
        ("other", whole, (), "is the snapshot state of slot s"),
        ("s", whole[:-9], (), "is damaged"),
        ("s", whole.replace('"rows": 0', '"rows": 7'), (), "is damaged"),
        ("s", "", (), "is damaged"),
        ("w", whole, (), "plugin pgoutput"),
        ("s", whole, ("--no-confirm",), "--no-confirm"),
        ("s", whole, ("-f", "pretty"), "--format pretty"),
        ("s", whole, ("--plugin-option", "messages=false"), "messages is off"),
    ):
        state.write_text(content)
        result = rdsrepl("slot", "tail", slot, "--until-now", "--state", str(state), *more, dsn=db15.dsn)
        assert (result.code, result.out) == (2, "") and reason in result.err, (reason, result.err)
        assert state.read_text() == content
    assert position == db15.value("SELECT string_agg(confirmed_flush_lsn::text, ' ') FROM pg_replication_slots")
    result = rdsrepl("slot", "tail", "s", "--until-now", "--state", "table:t", dsn=db15.dsn)
    assert result.code == 2 and "has no schema" in result.err
