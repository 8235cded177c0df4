"""Every type's JSON, compared with the server's to_json, and our wal2json with the plugin's."""

from __future__ import annotations

import json
import random
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from rdsrepl.tail.formats import values
from rdsrepl.tail.formats.nested_values import array
from tests.fixtures.program import exact
from tests.workloads.tables import (
    HOSTILE_COLUMNS,
    HOSTILE_SCHEMA,
    HOSTILE_TABLE,
    SCHEMA,
    hostile,
    hostile_text,
    insert_every_type,
)

if TYPE_CHECKING:
    from rdsrepl.sandbox.servers.postgres_server import PostgresServer
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program


def normalised(text: str) -> str:
    return json.dumps(exact(text), sort_keys=True, ensure_ascii=False)


@pytest.fixture
def slots(database: Database) -> Database:
    """A database with the type schema, a publication of everything, and a pgoutput slot g."""
    database.run(*SCHEMA, "CREATE PUBLICATION p FOR ALL TABLES")
    database.run("SELECT pg_create_logical_replication_slot('g', 'pgoutput')")
    return database


def drop(database: Database, *names: str) -> None:
    for name in names:
        database.run(f"SELECT pg_drop_replication_slot('{name}')")


def test_every_type_is_what_to_json_prints(slots: Database, rdsrepl: Program) -> None:
    with closing(slots.connect()) as conn:
        count = insert_every_type(conn)
        conn.execute("SET TimeZone = 'UTC'")
        conn.execute("SET IntervalStyle = 'iso_8601'")
        rows = conn.execute("SELECT id, row_to_json(e)::text FROM every_type e ORDER BY id").fetchall()
    result = rdsrepl("slot", "tail", "g", "--until-now", "--format", "json", dsn=slots.dsn)
    assert result.code == 0, result.err
    lines = result.out.split("\n")[:-1]
    assert len(lines) == count == len(rows)
    for line, (number, expected) in zip(lines, rows, strict=True):
        event = exact(line)
        wanted = exact(expected)
        assert event["op"] == "c"
        assert event["key"] == {"id": f"number {number}"}
        for column, value in wanted.items():
            assert event["after"][column] == value, column
        assert event["after"] == wanted


def test_wal2json_format_is_the_plugins_own(db15: Database, rdsrepl: Program) -> None:
    """A random workload on hostile names and values, and every type: the same lines as the plugin prints."""
    db15.run(*SCHEMA)
    rng = random.Random(20261120)
    with closing(db15.connect()) as conn:
        table = hostile(conn)
        conn.execute("CREATE TABLE wide (id bigserial PRIMARY KEY, " + ", ".join(f"c{n} text" for n in range(99)) + ")")
        conn.execute("CREATE TABLE full_id (a integer, b text, c numeric)")
        conn.execute("ALTER TABLE full_id REPLICA IDENTITY FULL")
        conn.execute("CREATE TABLE by_index (a integer, b text NOT NULL UNIQUE, c text)")
        conn.execute("ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_b_key")
        conn.execute("CREATE TABLE big (id integer PRIMARY KEY, v text, n integer)")
        conn.execute("ALTER TABLE big ALTER v SET STORAGE EXTERNAL")
        conn.execute("CREATE TABLE no_columns ()")
        conn.execute("CREATE PUBLICATION p FOR ALL TABLES")
        conn.execute("SELECT pg_create_logical_replication_slot('g', 'pgoutput')")
        conn.execute("SELECT pg_create_logical_replication_slot('w', 'wal2json')")
        insert_every_type(conn)
        conn.execute("UPDATE every_type SET i4 = 0 WHERE id = 1")
        conn.execute("DELETE FROM every_type WHERE id = 2")
        for number in range(60):
            with conn.transaction():
                _hostile_change(conn, table, rng, number)
        conn.execute("INSERT INTO wide (c0, c98) SELECT 'x' || g, 'y' FROM generate_series(1, 20) g")
        conn.execute("UPDATE wide SET c50 = 'z' WHERE id < 5")
        conn.execute("INSERT INTO full_id VALUES (1, 'x', 1.5), (2, NULL, NULL), (NULL, NULL, NULL)")
        conn.execute("UPDATE full_id SET b = 'y' WHERE a = 1")
        conn.execute("UPDATE full_id SET c = 9 WHERE a = 2")
        conn.execute("DELETE FROM full_id")
        conn.execute("INSERT INTO by_index VALUES (1, 'k', 'v')")
        conn.execute("UPDATE by_index SET c = 'w'")
        conn.execute("UPDATE by_index SET b = 'l'")
        conn.execute("DELETE FROM by_index")
        conn.execute("INSERT INTO big VALUES (1, repeat('é', 2500000), 0), (2, repeat('a', 5000000), 0)")
        conn.execute("UPDATE big SET n = 1")  # unchanged TOAST
        conn.execute("UPDATE big SET id = id + 10")
        conn.execute("DELETE FROM big")
        conn.execute("INSERT INTO no_columns DEFAULT VALUES")
        conn.execute("TRUNCATE full_id, by_index")
        conn.execute("SELECT pg_logical_emit_message(true, 'pre\"fix', 'con\ntent')")
        conn.execute("SELECT pg_logical_emit_message(false, 'outside', 'é')")
        with conn.transaction():
            conn.execute("INSERT INTO big VALUES (3, 'x', 1)")
            conn.execute("ALTER TABLE big RENAME COLUMN n TO m")
            conn.execute("INSERT INTO big VALUES (4, 'y', 2)")
            conn.execute("ALTER TABLE big ADD extra integer DEFAULT 5")
            conn.execute("ALTER TABLE big RENAME TO bigger")
            conn.execute("UPDATE bigger SET m = 3")
        plugin = [
            row[0]
            for row in conn.execute(
                "SELECT data FROM pg_logical_slot_peek_changes('w', NULL, NULL, 'format-version', '2')"
            )
        ]
    result = rdsrepl("slot", "tail", "g", "--until-now", "--format", "wal2json", dsn=db15.dsn)
    assert result.code == 0, result.err
    ours = [normalised(line) for line in result.out.split("\n")[:-1]]
    theirs = _without_empty_transactions([normalised(line) for line in plugin])
    for mine, wanted in zip(ours, theirs, strict=False):
        assert mine == wanted
    assert len(ours) == len(theirs)
    assert len(ours) > 200


def _without_empty_transactions(lines: list[str]) -> list[str]:
    """The plugin prints B and C for a transaction without changes (DDL); pgoutput does not send it."""
    kept: list[str] = []
    for line in lines:
        if '"action": "C"' in line and kept and '"action": "B"' in kept[-1]:
            kept.pop()
        else:
            kept.append(line)
    return kept


def _hostile_change(conn: Any, table: sql.Identifier, rng: random.Random, number: int) -> None:
    names = [sql.Identifier(name) for name in HOSTILE_COLUMNS]
    choice = rng.random()
    if choice < 0.5 or number < 5:
        row = [sql.Literal(hostile_text(rng)) for _ in names]
        row[1], row[4] = sql.Literal(f"k{number} " + hostile_text(rng, 5)), sql.Literal("p'%s\"")
        conn.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(table, sql.SQL(", ").join(row)))
    elif choice < 0.8:
        column = rng.choice(names)
        value = sql.Literal(None if rng.random() < 0.2 and column not in (names[1], names[4]) else hostile_text(rng))
        one = sql.SQL("SELECT ctid FROM {} ORDER BY {} LIMIT 1").format(table, names[1])
        conn.execute(sql.SQL("UPDATE {} SET {} = {} WHERE ctid = ({})").format(table, column, value, one))
    else:
        one = sql.SQL("SELECT ctid FROM {} ORDER BY {} DESC LIMIT 1").format(table, names[1])
        conn.execute(sql.SQL("DELETE FROM {} WHERE ctid = ({})").format(table, one))


def test_hostile_names_and_values_in_json(slots: Database, rdsrepl: Program) -> None:
    """Each row is what the server's row_to_json prints; in pretty and debezium it stays one line."""
    slots.run("SELECT pg_create_logical_replication_slot('h', 'pgoutput')")
    slots.run("SELECT pg_create_logical_replication_slot('i', 'pgoutput')")
    rng = random.Random(5)
    with closing(slots.connect()) as conn:
        table = hostile(conn)
        for number in range(30):
            _hostile_change(conn, table, rng, 0 if number < 25 else number)
        rows = conn.execute(sql.SQL("SELECT row_to_json(t)::text FROM {} t").format(table)).fetchall()
    events = rdsrepl("slot", "tail", "g", "--until-now", "--format", "json", dsn=slots.dsn).lines
    state: dict[str, Any] = {}
    for event in events:
        assert (event["schema"], event["table"]) == (HOSTILE_SCHEMA, HOSTILE_TABLE)
        if event["before"] is not None:
            state.pop(
                json.dumps({k: v for k, v in event["before"].items() if k in (HOSTILE_COLUMNS[1], HOSTILE_COLUMNS[4])})
            )
        if event["after"] is not None:
            state[json.dumps(event["key"])] = event["after"]
    expected = [json.dumps(json.loads(row[0]), sort_keys=True) for row in rows]
    assert sorted(json.dumps(row, sort_keys=True) for row in state.values()) == sorted(expected)
    for slot, fmt in (("h", "pretty"), ("i", "debezium")):
        out = rdsrepl("slot", "tail", slot, "--until-now", "--format", fmt, dsn=slots.dsn).out
        assert out.count("\n") >= len(events)
    assert len(out.split("\n")) - 1 == len(events)


def test_text_that_is_not_utf8_passes_through(pg15: PostgresServer, rdsrepl: Program) -> None:
    """A SQL_ASCII database contains any bytes; they are written unchanged."""
    name = "sql_ascii_bytes"
    with closing(pg15.connect()) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    dsn = pg15.dsn(dbname=name)
    try:
        with closing(psycopg.connect(f"{dsn} client_encoding=SQL_ASCII", autocommit=True)) as conn:
            conn.execute("CREATE TABLE t (id integer PRIMARY KEY, v text)")
            conn.execute("CREATE PUBLICATION p FOR TABLE t")
            conn.execute("SELECT pg_create_logical_replication_slot('ascii_bytes', 'pgoutput')")
            conn.execute("INSERT INTO t VALUES (1, E'caf\\xe9')")
        tail = rdsrepl.start("-q", "slot", "tail", "ascii_bytes", "--until-now", dsn=dsn, stdout=subprocess.PIPE)
        out, _ = tail.communicate(timeout=120)
        assert tail.returncode == 0
        assert b'"v":"caf\xe9"' in out
    finally:
        with closing(pg15.connect(dbname=name)) as conn:
            conn.execute("SELECT pg_drop_replication_slot('ascii_bytes')")
        with closing(pg15.connect()) as conn:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_keys_old_rows_and_unchanged_values(slots: Database, rdsrepl: Program) -> None:
    with closing(slots.connect()) as conn:
        conn.execute("CREATE TABLE t (id integer PRIMARY KEY, v text, n integer)")
        conn.execute("ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
        conn.execute("INSERT INTO t VALUES (1, repeat('x', 10000), NULL)")
        conn.execute("UPDATE t SET n = 1")
        conn.execute("UPDATE t SET id = 2")
        conn.execute("ALTER TABLE t REPLICA IDENTITY FULL")
        conn.execute("UPDATE t SET n = NULL")
        conn.execute("DELETE FROM t")
    events = rdsrepl("slot", "tail", "g", "--until-now", "--format", "json", "--table", "t", dsn=slots.dsn).lines
    insert, update, rekey, full, delete = events
    text = "x" * 10000
    assert insert["after"] == {"id": 1, "v": text, "n": None}
    assert "unchanged" not in insert
    assert update["after"] == {"id": 1, "n": 1}
    assert update["unchanged"] == ["v"]
    assert update["before"] is None
    assert (rekey["key"], rekey["before"], rekey["after"]) == ({"id": 2}, {"id": 1}, {"id": 2, "n": 1})
    assert full["before"] == {"id": 2, "v": text, "n": 1}
    assert full["key"] == {"id": 2}
    assert full["after"]["n"] is None
    assert (delete["key"], delete["before"]["n"], delete["after"]) == ({"id": 2}, None, None)


def test_messages_truncate_and_changes_of_definition(slots: Database, rdsrepl: Program) -> None:
    with closing(slots.connect()) as conn:
        conn.execute("CREATE TABLE a (id integer PRIMARY KEY)")
        conn.execute("CREATE TABLE b (id integer PRIMARY KEY)")
        with conn.transaction():
            conn.execute("INSERT INTO a VALUES (1)")
            conn.execute("ALTER TABLE a RENAME TO renamed")
            conn.execute("ALTER TABLE renamed ADD extra text DEFAULT 'e'")
            conn.execute("INSERT INTO renamed VALUES (2)")
        conn.execute("TRUNCATE renamed, b RESTART IDENTITY CASCADE")
        conn.execute("SELECT pg_logical_emit_message(true, 'p', 'inside')")
        conn.execute("SELECT pg_logical_emit_message(false, 'p', '\\x00ff'::bytea)")
        conn.execute("INSERT INTO b VALUES (1)")
    events = rdsrepl("slot", "tail", "g", "--until-now", "--format", "json", dsn=slots.dsn).lines
    assert [(event["op"], event["table"]) for event in events] == [
        ("c", "a"),
        ("c", "renamed"),
        ("t", "renamed"),
        ("t", "b"),
        ("m", None),
        ("m", None),
        ("c", "b"),
    ]
    assert events[1]["after"] == {"id": 2, "extra": "e"}
    assert (events[2]["cascade"], events[2]["restart_identity"], events[3]["seq"]) == (True, True, 2)
    assert (events[4]["transactional"], events[4]["content"]) == (True, "inside")
    assert (events[5]["transactional"], events[5]["content"], events[5]["encoding"]) == (False, "00ff", "hex")
    assert len({(event["commit_lsn"], event["seq"]) for event in events}) == len(events)


def test_a_partition_published_as_its_root(slots: Database, rdsrepl: Program) -> None:
    slots.run(
        "CREATE TABLE root (id integer, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
        "CREATE TABLE part1 PARTITION OF root FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE part2 (v text, id integer NOT NULL)",
        "ALTER TABLE root ATTACH PARTITION part2 FOR VALUES FROM (10) TO (20)",
        "CREATE PUBLICATION via FOR TABLE root WITH (publish_via_partition_root = true)",
        "CREATE PUBLICATION leaf FOR TABLE root",
        "SELECT pg_create_logical_replication_slot('h', 'pgoutput')",
        "INSERT INTO root VALUES (1, 'a'), (11, 'b')",
        "UPDATE root SET id = 12 WHERE id = 1",
    )
    via = rdsrepl("slot", "tail", "g", "--until-now", "--format", "json", "--publication", "via", dsn=slots.dsn).lines
    assert [(e["op"], e["table"], e["after"]) for e in via] == [
        ("c", "root", {"id": 1, "v": "a"}),
        ("c", "root", {"id": 11, "v": "b"}),
        ("d", "root", None),
        ("c", "root", {"id": 12, "v": "a"}),
    ]
    leaf = rdsrepl("slot", "tail", "h", "--until-now", "--format", "json", "--publication", "leaf", dsn=slots.dsn).lines
    assert [e["table"] for e in leaf] == ["part1", "part2", "part1", "part2"]


def test_generated_columns(slots: Database, rdsrepl: Program) -> None:
    slots.run("CREATE TABLE g (id integer PRIMARY KEY, twice integer GENERATED ALWAYS AS (id * 2) STORED)")
    publish = "publish_generated_columns = stored" if slots.server.version >= 18 else "publish = 'insert'"
    slots.run(f"CREATE PUBLICATION gen FOR TABLE g WITH ({publish})", "INSERT INTO g VALUES (1)")
    (event,) = rdsrepl(
        "slot", "tail", "g", "--until-now", "--format", "json", "--publication", "gen", dsn=slots.dsn
    ).lines
    assert event["after"] == ({"id": 1, "twice": 2} if slots.server.version >= 18 else {"id": 1})


def test_prepared_transactions_come_at_their_commit(slots: Database, rdsrepl: Program) -> None:
    """On an ordinary slot; a slot with two-phase decoding sends them when prepared, and then their end."""
    slots.run("CREATE TABLE t (id integer PRIMARY KEY)")
    name = f"gid_{slots.name}"
    slots.run("SELECT pg_create_logical_replication_slot('tp', 'pgoutput', false, true)")

    def tail(slot: str) -> list[tuple[Any, ...]]:
        result = rdsrepl("slot", "tail", slot, "--until-now", "--format", "json", dsn=slots.dsn)
        assert result.code == 0, result.err
        return [(event["op"], event.get("gid"), (event["after"] or {}).get("id")) for event in result.lines]

    with closing(slots.connect()) as conn:
        for number, end in ((1, "commit"), (2, "rollback")):
            conn.execute("BEGIN")
            conn.execute(f"INSERT INTO t VALUES ({number})")
            conn.execute(f"PREPARE TRANSACTION '{name}'")
            assert tail("g") == []
            assert tail("tp") == [("c", name, number)]
            conn.execute(f"{end} PREPARED '{name}'")
            assert tail("g") == ([("c", None, 1)] if end == "commit" else [])
            assert tail("tp") == [(f"{end}_prepared", name, None)]
    refused = rdsrepl("slot", "tail", "tp", "--until-now", "--format", "debezium", dsn=slots.dsn)
    assert (refused.code, refused.out) == (2, "")
    assert "--format json" in refused.err


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_wal2json_slot_gives_the_same_json(db15: Database, rdsrepl: Program, version: str) -> None:
    """Both plugins give the same changes, except what wal2json omits (NaN, the replica identity's name)."""
    db15.run(
        *SCHEMA,
        "CREATE TABLE t (id integer PRIMARY KEY, v text, n numeric, b boolean, a integer[], j jsonb, "
        "y bytea, ts timestamptz)",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "SELECT pg_create_logical_replication_slot('w', 'wal2json')",
        "INSERT INTO t VALUES (1, 'a \"q\" é', 1.50, true, '{1,NULL}', '{\"k\": [1.0]}', "
        "'\\x00ff', '2026-01-31 12:00:00+00')",
        "INSERT INTO t (id) SELECT g FROM generate_series(2, 5) g",
        "UPDATE t SET n = 123456789012345678901234567890.10 WHERE id = 1",
        "UPDATE t SET id = 10 WHERE id = 2",
        "DELETE FROM t WHERE id = 3",
    )
    from_pgoutput = rdsrepl("slot", "tail", "g", "--until-now", "--format", "json", dsn=db15.dsn)
    option = ("--plugin-option", f"format-version={version}")
    from_wal2json = rdsrepl("slot", "tail", "w", "--until-now", "--format", "json", *option, dsn=db15.dsn)
    assert from_wal2json.code == 0, from_wal2json.err
    ours, theirs = ([exact(line) for line in r.out.split("\n")[:-1]] for r in (from_pgoutput, from_wal2json))
    assert len(ours) == len(theirs) == 8
    for mine, other in zip(ours, theirs, strict=True):
        same = ("op", "schema", "table", "key", "before", "after", "xid", "commit_time", "seq")
        if version == "2":
            same += ("lsn", "commit_lsn")
        assert {k: mine[k] for k in same} == {k: other[k] for k in same}


def test_pretty_is_one_line_a_change(db15: Database, rdsrepl: Program) -> None:
    db15.run(
        "CREATE TABLE t (id integer PRIMARY KEY, v text)",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "SELECT pg_create_logical_replication_slot('d', 'test_decoding')",
        "INSERT INTO t VALUES (1, 'two\nlines')",
        "UPDATE t SET id = 2",
        "DELETE FROM t",
    )
    out = rdsrepl("slot", "tail", "g", "--until-now", "--format", "pretty", dsn=db15.dsn).out.splitlines()
    assert [line.split(maxsplit=3)[3] for line in out] == [
        'INSERT   public.t id=1 v="two\\nlines"',
        'UPDATE   public.t id=1→2 v="two\\nlines"',
        "DELETE   public.t id=2",
    ]
    out = rdsrepl("slot", "tail", "d", "--until-now", "--format", "pretty", dsn=db15.dsn).out
    assert "table public.t: INSERT: id[integer]:1" in out


def test_table_patterns(db15: Database, rdsrepl: Program) -> None:
    db15.run(
        "CREATE SCHEMA s",
        "CREATE TABLE s.orders (id integer PRIMARY KEY)",
        "CREATE TABLE orders (id integer PRIMARY KEY)",
        "CREATE TABLE items (id integer PRIMARY KEY)",
        "CREATE PUBLICATION p FOR ALL TABLES",
        *(f"SELECT pg_create_logical_replication_slot('g{n}', 'pgoutput')" for n in range(3)),
        "SELECT pg_create_logical_replication_slot('w', 'wal2json')",
        "SELECT pg_create_logical_replication_slot('d', 'test_decoding')",
        "INSERT INTO s.orders VALUES (1)",
        "INSERT INTO orders VALUES (1)",
        "INSERT INTO items VALUES (1)",
    )

    def tables(slot: str, *patterns: str) -> list[str]:
        words = [word for pattern in patterns for word in ("--table", pattern)]
        out = rdsrepl("slot", "tail", slot, "--until-now", "--format", "json", *words, dsn=db15.dsn).lines
        return [f"{event['schema']}.{event['table']}" for event in out]

    assert tables("g0", "orders") == ["s.orders", "public.orders"]
    assert tables("g1", "s.*") == ["s.orders"]
    assert tables("g2", "public.o*", "it*") == ["public.orders", "public.items"]
    raw = rdsrepl("slot", "tail", "w", "--until-now", "--format", "raw", "--table", "s.*", dsn=db15.dsn).lines
    assert [event["schema"] for event in raw if event["action"] == "I"] == ["s"]
    text = rdsrepl("slot", "tail", "d", "--until-now", "--format", "raw", "--table", "items", dsn=db15.dsn).out
    assert [line for line in text.splitlines() if line.startswith("table")] == [
        "table public.items: INSERT: id[integer]:1"
    ]


def test_array_text_with_special_characters() -> None:
    convert = array(values.quote)
    assert json.loads(convert('{"a,b",NULL,"NULL",{}}'.replace(",{}", ""))) == ["a,b", None, "NULL"]
    assert json.loads(convert('[0:1][5:5]={{"x"},{y}}')) == [["x"], ["y"]]
    assert json.loads(convert("{}")) == []
