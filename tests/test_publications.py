"""Publications: made from checked words, shown as they are, and checked for what will not replicate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from rdsrepl.postgres.publication_checks import Level, PublicationFacts, TableFacts, check

if TYPE_CHECKING:
    from tests.conftest import Database, Program


@pytest.fixture
def shop(database: Database) -> Database:
    """A database with two schemas of tables, plain and hostile."""
    database.run(
        "CREATE SCHEMA sales",
        "CREATE TABLE sales.orders (id integer PRIMARY KEY, amount numeric, note text)",
        'CREATE TABLE sales."We""ird. T" ("a b" integer PRIMARY KEY, "UP" text)',
        "CREATE TABLE items (id serial PRIMARY KEY, v text)",
        "CREATE VIEW v AS SELECT 1",
    )
    return database


def test_create_show_add_remove_drop(shop: Database, rdsrepl: Program) -> None:
    def run(*words: str) -> Any:
        result = rdsrepl("publication", *words, "-o", "json", dsn=shop.dsn)
        assert result.code == 0, result.err
        return result.json

    odd = 'sales."We""ird. T"'
    run("create", "P é", "--table", "SALES.orders", "--table", odd, "--publish", "insert,update", "--via-root", "--yes")
    (row,) = run("list")
    assert (row["pubname"], row["pubinsert"], row["pubdelete"], row["pubviaroot"]) == ("P é", True, False, True)
    assert row["table_count"] == 2
    shown = run("show", "P é")
    assert [(t["schemaname"], t["tablename"], t["identity_columns"]) for t in shown["tables"]] == [
        ("sales", 'We"ird. T', ["a b"]),
        ("sales", "orders", ["id"]),
    ]
    assert run("add", "P é", "--table", "sales.orders")["status"] == "unchanged"
    assert run("add", "P é", "--table", "sales.orders", "--table", "items", "--yes")["status"] == "applied"
    assert len(run("show", "P é")["tables"]) == 3
    removed = run("remove", "P é", "--table", odd, "--table", "items", "--table", "sales.orders", "--yes")
    assert "is empty then" in removed["warnings"][1]
    assert run("remove", "P é", "--table", "items")["status"] == "unchanged"
    slot = f"s_{shop.name}"
    shop.run(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    assert slot in run("drop", "P é", "--yes")["warnings"][0]
    assert run("list") == []


def test_columns_filters_and_schemas(shop: Database, rdsrepl: Program) -> None:
    words = ("publication", "create", "f", "--table", "sales.orders", "--table", "items")
    words += ("--columns", "sales.orders=id,amount", "--where", "items: id > 5 AND v <> 'a) b'", "--yes")
    assert rdsrepl(*words, dsn=shop.dsn).code == 0
    tables = {t["tablename"]: t for t in rdsrepl("publication", "show", "f", "-o", "json", dsn=shop.dsn).json["tables"]}
    assert tables["orders"]["attnames"] == ["id", "amount"]
    assert "5" in tables["items"]["rowfilter"]
    assert rdsrepl("publication", "create", "s", "--schema", "sales", "--yes", dsn=shop.dsn).code == 0
    (s,) = [p for p in rdsrepl("publication", "list", "-o", "json", dsn=shop.dsn).json if p["pubname"] == "s"]
    assert (s["schemas"], s["table_count"]) == (["sales"], 2)
    assert rdsrepl("publication", "create", "a", "--all-tables", "--yes", dsn=shop.dsn).code == 0
    refused = rdsrepl("publication", "add", "a", "--table", "items", "--yes", "-o", "json", dsn=shop.dsn)
    assert (refused.code, refused.error["error"]) == (4, "refused")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, ()),
        (3, ("--table", "sales.ordres")),
        (3, ("--schema", "nope")),
        (2, ("--table", "a.b.c.d")),
        (4, ("--table", "v")),
        (2, ("--table", "items", "--publish", "insert,upsert")),
        (3, ("--table", "items", "--columns", "items=id,vv")),
        (2, ("--table", "items", "--columns", "items")),
        (2, ("--table", "items", "--columns", "sales.orders=id")),
        (2, ("--table", "items", "--where", "items: nope > 1")),
        (2, ("--table", "items", "--where", "items: id > 1) , TABLE sales.orders WHERE (true")),
        (2, ("--table", "items", "--where", "items: true); DROP TABLE items; --")),
        (2, ("--table", "items", "--where", "items: true /*")),
        (2, ("--table", "items", "--where", "no colon")),
        (2, ("--all-tables", "--table", "items")),
    ],
)
def test_bad_words_touch_nothing(db15: Database, rdsrepl: Program, code: int, words: tuple[str, ...]) -> None:
    db15.run(
        "CREATE SCHEMA sales",
        "CREATE TABLE sales.orders (id integer PRIMARY KEY)",
        "CREATE TABLE items (id integer PRIMARY KEY, v text)",
        "CREATE VIEW v AS SELECT 1",
    )
    result = rdsrepl("publication", "create", "p", *words, "--yes", "-o", "json", dsn=db15.dsn)
    assert result.code == code, result.err
    assert result.error["hint"]
    assert db15.run("SELECT 1 FROM pg_publication") == []
    assert db15.run("SELECT to_regclass('items') IS NULL") == [(False,)]


def test_rights_are_asked_for_before(db15: Database, rdsrepl: Program) -> None:
    role = f"r_{db15.name}"
    db15.run(f"CREATE ROLE {role} LOGIN PASSWORD 'x'", "CREATE TABLE t (id integer PRIMARY KEY)")
    dsn, env = db15.server.dsn(user=role, dbname=db15.name), {"PGPASSWORD": "x"}
    words = ("publication", "create", "p", "--yes", "-o", "json")
    try:
        for more in (("--all-tables",), ("--schema", "public"), ("--table", "t")):
            assert rdsrepl(*words, *more, dsn=dsn, env=env).error["error"] == "denied"
        db15.run(f'GRANT CREATE ON DATABASE "{db15.name}" TO {role}')
        assert "owner" in rdsrepl(*words, "--table", "t", dsn=dsn, env=env).error["message"]
    finally:
        db15.run(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_check_finds_what_the_server_will_refuse(database: Database, rdsrepl: Program) -> None:
    """Each critical finding is proven: the statement it warns of really fails."""
    database.run(
        "CREATE TABLE good (id integer PRIMARY KEY)",
        "CREATE TABLE bare (id integer)",
        "CREATE TABLE listed (id integer PRIMARY KEY, v text)",
        "CREATE TABLE filtered (id integer PRIMARY KEY, v integer)",
        "CREATE TABLE full_ (id integer)",
        "ALTER TABLE full_ REPLICA IDENTITY FULL",
        "CREATE TABLE parent (id serial PRIMARY KEY)",
        "CREATE TABLE child (id integer REFERENCES parent)",
        "CREATE TABLE gen (id integer PRIMARY KEY, g integer GENERATED ALWAYS AS (id + 1) STORED)",
        "CREATE TABLE part (id integer PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE part1 PARTITION OF part DEFAULT",
        "CREATE PUBLICATION p FOR TABLE good, bare, listed (v), filtered WHERE (v > 1), full_, parent, gen, part",
        "CREATE PUBLICATION nothing",
        "INSERT INTO bare VALUES (1)",
        "INSERT INTO listed VALUES (1)",
        "INSERT INTO filtered VALUES (1, 2)",
    )
    result = rdsrepl("publication", "check", "p", "-o", "json", dsn=database.dsn)
    assert result.code == 9
    found = {(f["check"], f["object"]): f["level"] for f in result.json}
    assert found == {
        ("replica_identity", "public.bare"): "critical",
        ("column_list", "public.listed"): "critical",
        ("row_filter", "public.filtered"): "critical",
        ("replica_identity_full", "public.full_"): "warning",
        ("sequences", "public.parent"): "warning",
        ("truncate", "public.parent"): "warning",
        ("generated_columns", "public.gen"): "warning",
        ("partition_root", "public.part"): "warning",
    }
    for table in ("bare", "listed", "filtered"):
        with pytest.raises(Exception, match="cannot update table"):
            database.run(f"UPDATE {table} SET id = 2")
    empty = rdsrepl("publication", "check", "nothing", "-o", "json", dsn=database.dsn)
    assert (empty.code, [f["check"] for f in empty.json]) == (9, ["empty"])
    database.run("CREATE PUBLICATION ok FOR TABLE good")
    assert rdsrepl("publication", "check", "ok", dsn=database.dsn).code == 0


def test_check_names_what_is_left_out(database: Database, rdsrepl: Program) -> None:
    database.run(
        "CREATE UNLOGGED TABLE fast (id integer PRIMARY KEY)",
        "CREATE VIEW v AS SELECT 1 AS x",
        "CREATE MATERIALIZED VIEW mv AS SELECT 1 AS x",
        "CREATE TABLE photos (id integer PRIMARY KEY, image oid)",
        "SELECT lo_create(0)",
        "CREATE PUBLICATION p FOR ALL TABLES",
    )
    result = rdsrepl("publication", "check", "p", "-o", "json", dsn=database.dsn)
    assert result.code == 8
    assert {(f["check"], f["object"]) for f in result.json} == {
        ("not_replicable", "public.fast"),
        ("not_replicable", "public.v"),
        ("not_replicable", "public.mv"),
        ("large_objects", "public.photos"),
    }


TABLE = TableFacts("t", identity_columns=("id",))
FACTS = PublicationFacts("p", False, True, True, True, True, False, False, (TABLE,))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (FACTS, []),
        (replace(FACTS, tables=()), ["empty"]),
        (replace(FACTS, pubinsert=False, pubupdate=False, pubdelete=False, pubtruncate=False), ["publishes_nothing"]),
        (replace(FACTS, tables=(TableFacts("t"),)), ["replica_identity"]),
        (replace(FACTS, pubupdate=False, pubdelete=False, tables=(TableFacts("t"),)), []),
        (replace(FACTS, tables=(replace(TABLE, replica_identity="n", identity_columns=()),)), ["replica_identity"]),
        (replace(FACTS, tables=(replace(TABLE, relkind="p", identity_columns=()),)), ["partition_root"]),
        (replace(FACTS, pubviaroot=True, tables=(replace(TABLE, relkind="p"),)), []),
        (replace(FACTS, tables=(replace(TABLE, column_list=("id", "v")),)), []),
        (replace(FACTS, tables=(replace(TABLE, column_list=("v",)),)), ["column_list"]),
        (replace(FACTS, tables=(replace(TABLE, row_filter="x", filter_columns=("id",)),)), []),
        (replace(FACTS, tables=(replace(TABLE, row_filter="x", filter_columns=("v",)),)), ["row_filter"]),
        (replace(FACTS, tables=(replace(TABLE, references=("t",)),)), []),
        (replace(FACTS, tables=(replace(TABLE, references=("u",)),)), ["truncate"]),
        (replace(FACTS, pubtruncate=False, tables=(replace(TABLE, references=("u",)),)), []),
        (replace(FACTS, publishes_generated=True, tables=(replace(TABLE, generated_columns=("g",)),)), []),
        (replace(FACTS, tables=(replace(TABLE, large_object_columns=("o",)),)), []),
        (replace(FACTS, large_objects=2, tables=(replace(TABLE, large_object_columns=("o",)),)), ["large_objects"]),
        (replace(FACTS, left_out=(replace(TABLE, relkind="f"),)), ["not_replicable"]),
    ],
)
def test_each_rule(facts: PublicationFacts, expected: list[str]) -> None:
    found = check(facts)
    assert [finding.check for finding in found] == expected
    assert all(finding.message and finding.remedy for finding in found)
    assert [f.level for f in found] == sorted((f.level for f in found), key=lambda level: level is not Level.critical)
