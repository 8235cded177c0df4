"""``--format json`` from a wal2json slot: like pgoutput for the same changes, if the plugin prints the values."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import sql

from tests.fixtures.postgres import Database
from tests.fixtures.program import exact
from tests.workloads.tables import SCHEMA, hostile, hostile_text, insert_every_type

if TYPE_CHECKING:
    from rdsrepl.sandbox.servers.postgres_server import PostgresServer
    from tests.fixtures.program import Program

_SLOTS = (
    "CREATE PUBLICATION p FOR ALL TABLES",
    "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
    "SELECT pg_create_logical_replication_slot('w', 'wal2json')",
    "SELECT pg_create_logical_replication_slot('w1', 'wal2json')",
)


def tail(rdsrepl: Program, database: Database, slot: str, *words: str, fmt: str = "json") -> list[Any]:
    """Stream a slot to its end; each line must be JSON in UTF-8."""
    process = rdsrepl.start(
        *("-q", "slot", "tail", slot, "--until-now", "--format", fmt, *words),
        dsn=database.dsn,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    return [exact(line) for line in out.decode().split("\n")[:-1]]


def same(from_pgoutput: list[Any], from_wal2json: list[Any], *left_out: str) -> None:
    """Compare the lines of the two plugins, without the members that wal2json does not print."""
    assert len(from_pgoutput) == len(from_wal2json) > 0
    for mine, other in zip(from_pgoutput, from_wal2json, strict=True):
        for event in (mine, other):
            for member in left_out:
                event.pop(member, None)
        assert mine == other, mine


def test_keys_and_old_rows(db15: Database, rdsrepl: Program) -> None:
    """Every replica identity, also those altered between a change and its decoding."""
    with closing(db15.connect()) as conn:
        for statement in (
            "CREATE TABLE by_pk (id integer PRIMARY KEY, v text, n integer)",
            "CREATE TABLE by_index (id integer PRIMARY KEY, code text NOT NULL UNIQUE, v text)",
            "ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key",
            "CREATE TABLE covering (id integer, v text, n integer, PRIMARY KEY (id) INCLUDE (v))",
            "CREATE TABLE covering_full (LIKE covering INCLUDING ALL)",
            "ALTER TABLE covering_full REPLICA IDENTITY FULL",
            "CREATE TABLE full_key (id integer PRIMARY KEY, v text, n integer)",
            "ALTER TABLE full_key REPLICA IDENTITY FULL",
            "CREATE TABLE full_none (id integer, v text, n integer)",
            "ALTER TABLE full_none REPLICA IDENTITY FULL",
            "CREATE TABLE all_key (a integer, b integer, PRIMARY KEY (a, b))",
            "CREATE TABLE all_key_full (LIKE all_key INCLUDING ALL)",
            "ALTER TABLE all_key_full REPLICA IDENTITY FULL",
            "CREATE TABLE nothing (id integer PRIMARY KEY, v text)",
            "ALTER TABLE nothing REPLICA IDENTITY NOTHING",
            "CREATE TABLE no_key (id integer, v text)",
            *_SLOTS,
        ):
            conn.execute(statement)
        for table in ("by_pk", "full_key", "full_none", "by_index"):
            conn.execute(f"ALTER TABLE {table} ALTER v SET STORAGE EXTERNAL")
        for table in ("by_pk", "full_key", "full_none"):
            conn.execute(f"INSERT INTO {table} VALUES (1, repeat('x', 9000), 1), (2, NULL, NULL)")
            conn.execute(f"UPDATE {table} SET n = 5")
            conn.execute(f"UPDATE {table} SET v = 'y' WHERE id = 2")
            conn.execute(f"UPDATE {table} SET id = id + 10")
            conn.execute(f"DELETE FROM {table}")
        for table in ("covering", "covering_full"):
            conn.execute(f"INSERT INTO {table} VALUES (1, 'x', 1)")
            conn.execute(f"UPDATE {table} SET v = 'y'")
            conn.execute(f"UPDATE {table} SET id = 2")
            conn.execute(f"DELETE FROM {table}")
        conn.execute("INSERT INTO by_index VALUES (1, 'a', repeat('x', 9000)), (2, 'b', 'y')")
        conn.execute("UPDATE by_index SET id = id + 10")
        conn.execute("UPDATE by_index SET code = code || 'c' WHERE id = 11")
        conn.execute("DELETE FROM by_index WHERE id = 11")
        for table in ("all_key", "all_key_full"):
            conn.execute(f"INSERT INTO {table} VALUES (1, 2), (3, 4)")
            conn.execute(f"UPDATE {table} SET b = 2")
            conn.execute(f"DELETE FROM {table}")
        conn.execute("INSERT INTO nothing VALUES (1, 'x')")
        conn.execute("INSERT INTO no_key VALUES (1, 'x')")
    ours = tail(rdsrepl, db15, "g")
    unnamed = {(e["table"], e["seq"], e["xid"]) for e in ours if "unchanged" in e and "v" not in (e["before"] or {})}
    theirs = tail(rdsrepl, db15, "w")
    # Without FULL the plugin does not report an omitted large value; it is absent as well.
    for event in ours:
        if (event["table"], event["seq"], event["xid"]) in unnamed:
            del event["unchanged"]
    same(ours, theirs)
    older = tail(rdsrepl, db15, "w1", "--plugin-option", "format-version=1")
    for event in ours:
        # Version 1 omits the nulls of an old row, and has nothing else for a deleted row.
        if event["op"] == "d":
            event["before"] = {name: value for name, value in event["before"].items() if value is not None}
    same(ours, older, "lsn", "commit_lsn", "timeline")


def test_replica_identities_that_changed_since(db15: Database, rdsrepl: Program) -> None:
    """The event has precedence over the present catalogue: no null and no column is invented."""
    db15.run(
        "CREATE TABLE t (id integer PRIMARY KEY, code text NOT NULL UNIQUE, v text)",
        *_SLOTS,
        "ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key",
        "INSERT INTO t VALUES (1, 'a', 'x')",
        "UPDATE t SET code = 'b'",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "UPDATE t SET v = 'y'",
        "ALTER TABLE t REPLICA IDENTITY DEFAULT",
        "UPDATE t SET v = 'z'",
        "DELETE FROM t",
        "ALTER TABLE t RENAME TO renamed",
    )
    ours, theirs = tail(rdsrepl, db15, "g"), tail(rdsrepl, db15, "w")
    assert ours[0]["key"] == {"code": "a"}
    assert theirs[0]["key"] == {"id": "number 1"}  # an INSERT does not show it
    same(ours[1:], theirs[1:])


def test_every_type_and_hostile_names(db15: Database, rdsrepl: Program) -> None:
    """Types whose names are not JSON or not ASCII in the plugin's output; every built-in type; NaN."""
    db15.run(*SCHEMA, *_SLOTS)
    rng = random.Random(11)
    with closing(db15.connect()) as conn:
        insert_every_type(conn)
        conn.execute("UPDATE every_type SET i4 = 7 WHERE id = 1")
        table = hostile(conn)
        for number in range(10):
            texts = [sql.Literal(f"{number}{hostile_text(rng)}") for _ in range(8)]
            conn.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(table, sql.SQL(", ").join(texts)))
        conn.execute('CREATE SCHEMA "Schéma"')
        for name in ('"Größe"', '"we""ird\\"', '"Schéma"."é"', '"a b"'):
            conn.execute(f"CREATE TYPE {name} AS (n integer, t text)")
        conn.execute("CREATE DOMAIN dby AS bytea")
        conn.execute("CREATE DOMAIN dbo AS boolean")
        conn.execute(
            'CREATE TABLE q (id integer PRIMARY KEY, a "Größe", b "we""ird\\"[], c "Schéma"."é", d "a b"[], '
            "e dby, f dbo, g oid)"
        )
        conn.execute(
            "INSERT INTO q VALUES (1, '(1,ä)', '{\"(2,x)\"}', '(3,)', '{\"(4,y)\"}', '\\x00ff', true, 4000000000)"
        )
        conn.execute('ALTER TYPE "Größe" DROP ATTRIBUTE n, ADD ATTRIBUTE m boolean')
        conn.execute("INSERT INTO q (id, a) VALUES (2, '(1,t)')")
        conn.execute("INSERT INTO q (id, a) VALUES (3, '(1,t)')")
    ours, theirs = tail(rdsrepl, db15, "g"), tail(rdsrepl, db15, "w")
    assert [event.get("as_text") for event in ours if event["table"] == "q"] == [["a"], None, None]
    for event in ours:
        if event["table"] == "every_type":
            for name, value in event["after"].items():
                if name in ("num", "f4", "f8") and value in ("NaN", "Infinity", "-Infinity"):
                    event["after"][name] = None
    same(ours, theirs)


@pytest.fixture(params=["LATIN1", "EUC_JP", "KOI8R"])
def encoded(request: pytest.FixtureRequest, pg15: PostgresServer) -> Iterator[Database]:
    """A database of another encoding."""
    name = f"enc_{request.param.lower()}"
    with closing(pg15.connect()) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{request.param}' LOCALE 'C'")
    database = Database(pg15, name)
    yield database
    with closing(pg15.connect()) as conn:
        conn.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", (name,)
        )
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


_TEXTS = {
    "LATIN1": "café ÿ \x80\x9f ¤",
    # Python's euc_jp lacks ① and ㈱, and has another character for ～.
    "EUC_JP": "日本語 ｱ ①㈱ ～ ― 丂",
    "KOI8R": "Привет ─",
}


def test_databases_of_other_encodings(encoded: Database, rdsrepl: Program) -> None:
    """Names and values are in UTF-8, like pgoutput's; also with ``--format wal2json``."""
    encoding = encoded.value("SHOW server_encoding")
    words = _TEXTS[encoding]
    letter = next(word for word in words if word.isalpha() and not word.isascii())
    with closing(encoded.connect()) as conn:
        name, table = sql.Identifier(letter), sql.Identifier(letter * 2)
        conn.execute(sql.SQL("CREATE TYPE {} AS ENUM ({})").format(name, letter))
        conn.execute(sql.SQL("CREATE TABLE {0} ({1} integer PRIMARY KEY, v text, e {1}, a text[])").format(table, name))
        for statement in _SLOTS:
            conn.execute(statement)  # type: ignore[call-overload]
        for number, word in enumerate([words, *words.split()]):
            conn.execute(
                sql.SQL("INSERT INTO {} VALUES (%s, %s, %s, %s)").format(table),
                (number, word, letter, [word, 'q"' + word]),
            )
    ours = tail(rdsrepl, encoded, "g")
    assert ours[0]["after"]["v"] == words
    same(ours, tail(rdsrepl, encoded, "w"))
    lines = tail(rdsrepl, encoded, "w1", fmt="wal2json")
    assert [column["value"] for column in lines[1]["columns"]][1:3] == [words, letter]


def test_options_that_hide_what_is_needed(db15: Database, rdsrepl: Program) -> None:
    db15.run(*_SLOTS)
    option = ("--plugin-option", "include-type-oids=false")
    refused = rdsrepl("slot", "tail", "w", "--until-now", "--format", "json", *option, dsn=db15.dsn)
    assert (refused.code, refused.out) == (2, "")
    assert "include-type-oids" in refused.err
