"""Publications: create, show, change and drop them, and check what they do not replicate."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import typer

from rdsrepl import errors
from rdsrepl.postgres import connection, publication_objects, publication_plans, publications, row_filters, sql_names
from rdsrepl.postgres.publication_checks import Level, PublicationFacts, TableFacts, check

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program


@pytest.fixture
def shop(database: Database) -> Database:
    """A database with two schemas of tables, with ordinary and hostile names."""
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
    assert run("add", "P é", "--table", "sales.orders", "--table", "items", "--yes")["status"] == "applied"
    assert len(run("show", "P é")["tables"]) == 3
    removed = run("remove", "P é", "--table", odd, "--table", "items", "--table", "sales.orders", "--yes")
    assert "will be empty" in removed["warnings"][1]
    assert run("remove", "P é", "--table", "items")["status"] == "unchanged"
    slot = f"s_{shop.name}"
    shop.run(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    assert slot in run("drop", "P é", "--yes")["warnings"][0]
    assert run("list") == []


def test_columns_filters_and_schemas(shop: Database, rdsrepl: Program) -> None:
    words = ("publication", "create", "f", "--table", "sales.orders", "--table", "items")
    words += ("--columns", "sales.orders=id,amount", "--where", "items: id > 5 AND v <> 'a) b'", "--yes")
    assert rdsrepl(*words, dsn=shop.dsn).code == 0
    with closing(shop.connect()) as conn:
        tables = {table.tablename: table for table in publications.published(conn, "f").tables}
        assert tables["orders"].attnames == ("id", "amount")
        assert "5" in (tables["items"].rowfilter or "")
        for name, scope in (
            ("s", publication_objects.RequestedObjects(schemas=("Sales",))),
            ("a", publication_objects.RequestedObjects(all_tables=True)),
        ):
            conn.execute(publication_plans.create(conn, name, scope).steps[0].sql)
        assert (publications.get(conn, "s").schemas, publications.get(conn, "s").table_count) == (("sales",), 2)
        for verb in (publication_plans.add, publication_plans.remove):
            with pytest.raises(errors.Refused, match="publishes all tables"):
                verb(conn, "a", publication_objects.RequestedObjects(tables=("items",)))


BAD_WORDS: list[tuple[int, tuple[str, ...]]] = [
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
    (2, ("--table", "items", "--where", "items: id = $1")),
    (2, ("--table", "items", "--where", "items: id = 1 -- one")),
    (2, ("--table", "items", "--where", "items: v = $$)$$ || $x$ ( $x$ )")),
    (2, ("--table", "items", "--where", "items: id")),
    (2, ("--table", "items", "--where", "items: id IN (SELECT 1)")),
    (2, ("--table", "items", "--where", "items: now() > '2020-01-01'")),
    (2, ("--table", "items", "--where", "items: XMIN::text = '1'")),
    (2, ("--table", "items", "--where", "items: id = 1 AND count(*) > 1")),
    (2, ("--table", "items", "--where", "items: id > 1", "--where", "ITEMS: id > 2")),
    (2, ("--table", "items", "--columns", "items=id,id")),
    (2, ("--table", "items", "--columns", "items=id", "--schema", "sales")),
    (2, ("--table", "items", "--publish", "")),
    (2, ("--table", "part", "--where", "part: id > 1")),
    (2, ("--table", "")),
    (2, ("--table", '"items')),
    (2, ("--table", "items; DROP TABLE items")),
    (2, ("--table", "123")),
    (3, ("--table", '"Items"')),
    (4, ("--table", "pg_catalog.pg_class")),
    (4, ("--schema", "pg_catalog")),
    (4, ("--table", "fast")),
    (4, ("--table", "items_seq")),
    (2, ("--table", "items", "--where", "items: v = '\\') OR (v = '\\'")),
]


@pytest.fixture
def odd(db15: Database) -> Database:
    """A database with an object of each kind that cannot be published."""
    db15.run(
        "CREATE SCHEMA sales",
        "CREATE TABLE sales.orders (id integer PRIMARY KEY)",
        "CREATE TABLE items (id integer PRIMARY KEY, v text)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE part (id integer PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE UNLOGGED TABLE fast (id integer PRIMARY KEY)",
        "CREATE SEQUENCE items_seq",
    )
    return db15


def test_bad_words_make_no_plan(odd: Database) -> None:
    from rdsrepl.cli.main import app

    command = typer.main.get_command(app).commands["publication"].commands["create"]  # type: ignore[attr-defined]
    for code, words in BAD_WORDS:
        with pytest.raises(errors.Error) as caught:
            command.main(["p", *words, "--dry-run", "--dsn", odd.dsn], standalone_mode=False)
        assert (caught.value.exit_code, words) == (code, words)
        assert caught.value.hint, words


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, ("--table", "sales.ordres")),
        (4, ("--table", "v")),
        (2, ("--table", "items", "--where", "items: true); DROP TABLE items; --")),
    ],
)
def test_bad_words_touch_nothing(odd: Database, rdsrepl: Program, code: int, words: tuple[str, ...]) -> None:
    result = rdsrepl("publication", "create", "p", *words, "--yes", "-o", "json", dsn=odd.dsn)
    assert (result.code, result.error["exit_code"]) == (code, code)
    assert result.error["hint"]
    assert odd.run("SELECT 1 FROM pg_publication") == []
    assert odd.run("SELECT to_regclass('items') IS NULL") == [(False,)]


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
    """For each critical finding, the statement that it warns of fails."""
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


def test_names_are_read_as_sql_reads_them() -> None:
    assert sql_names.parse_name("Sales.ORDERS") == ("sales", "orders")
    assert sql_names.parse_name(' "We""ird"."t.x" ') == ('We"ird', "t.x")
    assert sql_names.parse_name("Éa$1") == ("Éa$1",)
    assert sql_names.parse_columns('"a=b".t=id, "x,y"') == ('"a=b".t', ("id", '"x,y"'))
    assert sql_names.parse_filter("\"a:b\".t: x::text > ':'") == ('"a:b".t', "x::text > ':'")
    for text in ("", ".", "a.", "a b", '"', '""', "1a", "a;b", "a..b"):
        with pytest.raises(errors.BadValue):
            sql_names.parse_name(text)
    for text in ("t", "t=", "t=a,", "t=a.b", "t=a b", "=a"):
        with pytest.raises(errors.BadValue, match="not TABLE=A,B"):
            sql_names.parse_columns(text)


def test_predicates_with_every_kind_of_quotation(db18: Database) -> None:
    db18.run('CREATE TABLE t (id integer PRIMARY KEY, v text, "UP )" text)')
    good = [
        "id > 1 AND (v = 'a''b)' OR v IS NULL)",
        "v = E'\\') (' OR id IN (1, 2)",
        "v = $q$ ) ' $q$ OR lower(v) LIKE '%x%'",
        "\"UP )\" = '{}' AND coalesce(v, '') <> '%s'",
    ]
    with closing(db18.connect()) as conn:
        for number, predicate in enumerate(good):
            scope = publication_objects.RequestedObjects(tables=("t",), filters={"t": predicate})
            plan = publication_plans.create(conn, f"p{number}", scope, publish=["insert"])
            assert plan.warnings == ()
            conn.execute(plan.steps[0].sql)
            assert publications.published(conn, f"p{number}").tables[0].rowfilter
            assert conn.execute("SHOW transaction_read_only").fetchone() == ("off",)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--table", "orders"), "sales.orders"),
        (("--table", "sales.ordres"), "sales.orders"),
        (("--table", "sales.mixed"), 'sales."Mixed"'),
        (("--schema", "sale"), "sales"),
        (("--table", "sales.orders", "--columns", "sales.orders=amuont"), "amount"),
        (("--table", "sales.orders", "--columns", "sales.orders=up"), '"UP"'),
    ],
)
def test_what_was_probably_meant(db15: Database, rdsrepl: Program, words: tuple[str, ...], hint: str) -> None:
    db15.run(
        "CREATE SCHEMA sales",
        'CREATE TABLE sales.orders (id integer PRIMARY KEY, amount numeric, "UP" text)',
        'CREATE TABLE sales."Mixed" (id integer)',
    )
    error = rdsrepl("publication", "create", "p", *words, "--dry-run", "-o", "json", dsn=db15.dsn).error
    assert (error["error"], error["hint"]) == ("not_found", f"did you mean {hint}?")


def test_a_plan_names_the_statements_that_will_fail(database: Database) -> None:
    database.run(
        "CREATE TABLE bare (id integer)",
        "CREATE TABLE orders (id integer PRIMARY KEY, v text)",
        "CREATE TABLE part (id integer) PARTITION BY RANGE (id)",
        "CREATE TABLE part1 PARTITION OF part DEFAULT",
        "CREATE PUBLICATION q FOR TABLE orders",
    )
    with closing(database.connect()) as conn:

        def warnings(*tables: str, **more: Any) -> tuple[str, ...]:
            options = {name: more.pop(name) for name in ("via_root", "publish") if name in more}
            return publication_plans.create(
                conn, "p", publication_objects.RequestedObjects(tables=tables, **more), **options
            ).warnings

        whole = ["public.bare", "public.part1"]
        assert [text.split(":")[0] for text in warnings(all_tables=True)] == whole
        assert [text.split(":")[0] for text in warnings(schemas=("public",))] == whole
        assert warnings("part", via_root=True)[0].startswith("public.part1: UPDATE and DELETE on it will fail")
        (filtered,) = warnings("orders", filters={"orders": "v > 'a'"})
        assert "the row filter reads v" in filtered
        (listed,) = warnings("orders", columns={"orders": ("v",)})
        assert "does not contain the replica identity (id)" in listed
        assert warnings("bare", publish=["insert"]) == ()
        added = publication_plans.add(conn, "q", publication_objects.RequestedObjects(tables=("bare",))).warnings
        assert any(text.startswith("public.bare") for text in added)


def test_add_and_remove_know_members_from_schemas_and_roots(db18: Database) -> None:
    db18.run(
        "CREATE SCHEMA s",
        "CREATE TABLE s.a (id integer PRIMARY KEY, v text)",
        "CREATE TABLE b (id integer PRIMARY KEY, v text)",
        "CREATE TABLE part (id integer PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE part1 PARTITION OF part DEFAULT",
        "CREATE PUBLICATION p FOR TABLE b (id) WHERE (id > 1), part",
        "CREATE PUBLICATION q FOR TABLES IN SCHEMA s",
    )
    with closing(db18.connect()) as conn:

        def run(verb: Any, name: str, *tables: str, **more: Any) -> int:
            """Apply the plan; return the number of its steps."""
            plan = verb(conn, name, publication_objects.RequestedObjects(tables=tables, **more))
            for step in plan.steps:
                conn.execute(step.sql)
            return len(plan.steps)

        add, remove = publication_plans.add, publication_plans.remove
        assert run(add, "p", "part") == 0
        assert run(add, "p", "b", filters={"B": "( id>1 )"}, columns={"b": ("ID",)}) == 0
        assert run(add, "q", "s.a") == 0
        assert run(remove, "q", "b") == 0
        assert run(remove, "p", "part1") == 0
        for verb, name, tables, more in (
            (add, "p", ("b",), {"filters": {"b": "id > 2"}}),
            (add, "p", ("b",), {"columns": {"b": ("id", "v")}}),
            (add, "p", (), {"schemas": ("s",)}),
            (add, "q", ("b",), {"columns": {"b": ("id",)}}),
            (remove, "q", ("s.a",), {}),
        ):
            with pytest.raises(errors.Refused) as caught:
                run(verb, name, *tables, **more)
            assert caught.value.hint
        with pytest.raises(errors.AlreadyExists):
            run(publication_plans.create, "p", all_tables=True)
        assert run(remove, "q", "s.a", schemas=("S",)) == 1
        assert run(remove, "p", "part", "public.part") == 1
        assert run(add, "q", "b", "part", schemas=("s",)) == 1
        assert [table.tablename for table in publications.published(conn, "q").tables] == ["b", "part1", "a"]


def test_the_same_filter_is_recognised_and_another_is_not() -> None:
    assert row_filters.are_equal("id > 1", "((id>1))") and row_filters.are_equal("id > 1", "( ID > 1 )")
    assert row_filters.are_equal(None, None) and not row_filters.are_equal(None, "id > 1")
    assert not row_filters.are_equal("(a) or (b)", "a) or (b")
    assert not row_filters.are_equal("v = 'a b'", "v = 'ab'")
    assert not row_filters.are_equal("(a or b) and c", "a or (b and c)")


def test_a_type_is_no_column(db15: Database) -> None:
    db15.run("CREATE TABLE t (id integer PRIMARY KEY, text text, date date)")
    with closing(db15.connect()) as conn:
        for predicate, read in (("id::text > '1'", ""), ("date > date '2020-01-01'", "date"), ("t.text = ''", "text")):
            plan = publication_plans.create(
                conn, "p", publication_objects.RequestedObjects(tables=("t",), filters={"t": predicate})
            )
            assert [f"reads {read}," in warning for warning in plan.warnings] == ([True] if read else [])


def test_a_standby_is_refused_before_a_plan_is_made(db15: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    db15.run("CREATE TABLE t (id integer PRIMARY KEY)", "CREATE PUBLICATION p FOR TABLE t")
    monkeypatch.setattr(publication_plans, "in_recovery", lambda conn: True)
    monkeypatch.setattr(publication_plans, "setting", lambda conn, name: "replica")
    scope = publication_objects.RequestedObjects(tables=("t",))
    with closing(db15.connect()) as conn:
        for plan in (publication_plans.add, publication_plans.remove):
            with pytest.raises(errors.NotPrimary):
                plan(conn, "p", scope)
        with pytest.raises(errors.NotPrimary):
            publication_plans.drop(conn, "p")
        with pytest.raises(errors.NotPrimary):
            publication_plans.create(conn, "q", scope)
        monkeypatch.setattr(publication_plans, "in_recovery", lambda conn: False)
        (warning,) = publication_plans.create(conn, "q", scope).warnings
        assert warning.startswith("wal_level is replica")


def test_drop_names_who_streams(database: Database) -> None:
    slot = f"s_{database.name}"
    database.run("CREATE PUBLICATION p", f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    with closing(connection.connect(database.target, replication=True)) as sender, closing(database.connect()) as conn:
        (idle,) = publication_plans.drop(conn, "p").warnings
        assert idle.startswith(f"slot {slot} (inactive)")
        start = f"START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names 'p')"
        sender.pgconn.exec_(start.encode())
        (busy,) = publication_plans.drop(conn, "p").warnings
        assert f"PID {sender.info.backend_pid}, user {sender.info.user}, application rdsrepl" in busy


def test_only_the_owner_changes_a_publication(db15: Database, rdsrepl: Program) -> None:
    role = f"r_{db15.name}"
    db15.run(
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'",
        "CREATE SCHEMA closed",
        "CREATE TABLE closed.t (id integer PRIMARY KEY)",
        "CREATE PUBLICATION p FOR TABLE closed.t",
    )
    dsn, env = db15.server.dsn(user=role, dbname=db15.name), {"PGPASSWORD": "x"}
    try:
        for words in (
            ("drop", "p"), ("remove", "p", "--table", "closed.t"), ("add", "p", "--table", "closed.t"),
        ):  # fmt: skip
            result = rdsrepl("publication", *words, "--yes", "-o", "json", dsn=dsn, env=env)
            assert (result.code, result.error["error"]) == (5, "denied")
            assert "belongs to" in result.error["message"]
        assert rdsrepl("publication", "show", "p", dsn=dsn, env=env).code == 0
        assert rdsrepl("publication", "check", "p", dsn=dsn, env=env).code == 0
    finally:
        db15.run(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_check_looks_behind_the_root(database: Database, rdsrepl: Program) -> None:
    """With --via-root the replica identity of each partition counts: the server refuses the statement."""
    database.run(
        "CREATE TABLE part (id integer PRIMARY KEY, v integer) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF part FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE high PARTITION OF part FOR VALUES FROM (10) TO (20)",
        "ALTER TABLE high REPLICA IDENTITY NOTHING",
        "CREATE TABLE lazy (id integer PRIMARY KEY DEFERRABLE)",
        "CREATE UNIQUE INDEX once ON lazy (id)",
        "CREATE SEQUENCE loose",
        "CREATE TABLE fed (id integer PRIMARY KEY DEFAULT nextval('loose'))",
        "CREATE PUBLICATION p FOR TABLE part, lazy, fed WITH (publish_via_partition_root = true)",
        "INSERT INTO part VALUES (1), (11)",
        "INSERT INTO lazy VALUES (1)",
    )
    result = rdsrepl("publication", "check", "-o", "json", dsn=database.dsn)
    assert [(f["check"], f["object"], f["publication"]) for f in result.json] == [
        ("replica_identity", "public.lazy", "p"),
        ("replica_identity", "public.high", "p"),
        ("sequences", "public.fed", "p"),
    ]
    database.run("UPDATE part SET v = 1 WHERE id = 1")
    for statement in ("UPDATE part SET v = 1 WHERE id = 11", "DELETE FROM lazy"):
        with pytest.raises(Exception, match="does not have a replica identity"):
            database.run(statement)
    tables = {
        t["tablename"]: t for t in rdsrepl("publication", "show", "p", "-o", "json", dsn=database.dsn).json["tables"]
    }
    assert (tables["part"]["relkind"], tables["part"]["partition_count"]) == ("p", 2)


def test_foreign_and_unlogged_partitions_are_left_out(database: Database) -> None:
    database.run(
        "CREATE FOREIGN DATA WRAPPER w",
        "CREATE SERVER far FOREIGN DATA WRAPPER w",
        "CREATE TABLE part (id integer PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (5)",
        "CREATE UNLOGGED TABLE part2 PARTITION OF part FOR VALUES FROM (5) TO (9)",
        "CREATE TABLE away (id integer) PARTITION BY RANGE (id)",
        "CREATE FOREIGN TABLE away1 PARTITION OF away DEFAULT SERVER far",
        "CREATE PUBLICATION p FOR TABLE part, away",
        "CREATE PUBLICATION rooted FOR TABLE part, away WITH (publish_via_partition_root = true)",
    )
    with closing(database.connect()) as conn:
        for name, more in (
            ("p", [("partition_root", "public.away"), ("partition_root", "public.part")]),
            ("rooted", []),
        ):
            found = [(finding.check, finding.object) for finding in check(publications.facts(conn, name))]
            assert found == [("not_replicable", "public.away1"), ("not_replicable", "public.part2"), *more]


def test_virtual_columns_and_lists_on_18(db18: Database, rdsrepl: Program) -> None:
    db18.run(
        "CREATE TABLE t (id integer PRIMARY KEY, s integer GENERATED ALWAYS AS (id) STORED,"
        " v integer GENERATED ALWAYS AS (id) VIRTUAL)",
        "CREATE PUBLICATION p FOR TABLE t WITH (publish_generated_columns = stored)",
    )
    (finding,) = rdsrepl("publication", "check", "p", "-o", "json", dsn=db18.dsn).json
    assert finding["message"] == "generated columns are not published: v"
    (row,) = rdsrepl("publication", "list", "-o", "json", dsn=db18.dsn).json
    assert row["pubgencols"] == "stored"
    words = ("publication", "create", "q", "--table", "t", "--yes")
    assert rdsrepl(*words, "--columns", "t=id,s", dsn=db18.dsn).code == 0
    assert rdsrepl(*words[:2], "r", *words[3:], "--columns", "t=id,v", dsn=db18.dsn).code == 4


def test_before_15_there_are_whole_tables_only(db15: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queries for 13 and 14 also run on 15; the features of 15 are refused by name."""
    db15.run("CREATE TABLE t (id integer PRIMARY KEY)", "CREATE PUBLICATION p FOR TABLE t")
    for module in (publications, publication_objects):
        monkeypatch.setattr(module, "server_version", lambda conn: 14)
    with closing(db15.connect()) as conn:
        assert [p.schemas for p in publications.ls(conn)] == [()]
        assert publications.published(conn, "p").tables[0].attnames is None
        assert check(publications.facts(conn, "p")) == []
        assert not publication_plans.add(conn, "p", publication_objects.RequestedObjects(tables=("t",)))
        for scope in (
            publication_objects.RequestedObjects(schemas=("public",)),
            publication_objects.RequestedObjects(tables=("t",), columns={"t": ("id",)}),
            publication_objects.RequestedObjects(tables=("t",), filters={"t": "id > 1"}),
        ):
            with pytest.raises(errors.Unsupported, match="PostgreSQL 15"):
                publication_plans.create(conn, "q", scope)


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
        (replace(FACTS, tables=(TABLE, replace(TABLE, relkind="p", identity_columns=()))), ["partition_root"]),
        (replace(FACTS, tables=(replace(TABLE, relkind="p"),)), ["empty", "partition_root"]),
        (replace(FACTS, tables=(replace(TABLE, identity_columns=(), deferrable_key=True),)), ["replica_identity"]),
        (replace(FACTS, tables=(TableFacts("t", replica_identity="i"),)), ["replica_identity"]),
        (replace(FACTS, tables=(TableFacts("t", replica_identity="f"),)), ["replica_identity_full"]),
        (replace(FACTS, pubupdate=False, pubdelete=False, tables=(TableFacts("t", replica_identity="f"),)), []),
        (replace(FACTS, pubviaroot=True, partitions=(TableFacts("t1", parent="t"),)), ["replica_identity"]),
        (replace(FACTS, puballtables=True, tables=()), ["empty"]),
        (replace(FACTS, puballtables=True, large_objects=1), ["large_objects"]),
        (replace(FACTS, tables=(replace(TABLE, generated_columns=("g",)),)), ["generated_columns"]),
        (replace(FACTS, tables=(replace(TABLE, generated_columns=("g",), column_list=("id", "g")),)), []),
        (
            replace(FACTS, publishes_generated=True, tables=(replace(TABLE, virtual_columns=("g",)),)),
            ["generated_columns"],
        ),
        (replace(FACTS, tables=(replace(TABLE, sequences=("s",)),)), ["sequences"]),
        (
            replace(FACTS, tables=(replace(TABLE, replica_identity="f", identity_columns=(), column_list=("id",)),)),
            ["column_list", "replica_identity_full"],
        ),
        (
            replace(
                FACTS,
                left_out=(
                    replace(TABLE, relpersistence="u"),
                    replace(TABLE, relkind="v"),
                    replace(TABLE, relkind="m"),
                    replace(TABLE, relpersistence="t"),
                ),
            ),
            ["not_replicable"] * 4,
        ),
        (replace(FACTS, pubviaroot=True, tables=(replace(TABLE, relkind="p"),)), []),
        (replace(FACTS, tables=(replace(TABLE, column_list=("id", "v")),)), []),
        (replace(FACTS, tables=(replace(TABLE, column_list=("v",)),)), ["column_list"]),
        (replace(FACTS, tables=(replace(TABLE, row_filter="x", filter_columns=("id",)),)), []),
        (replace(FACTS, tables=(replace(TABLE, row_filter="x", filter_columns=("v",)),)), ["row_filter"]),
        (
            replace(FACTS, tables=(TableFacts("t", column_list=("v",), row_filter="x", filter_columns=("v",)),)),
            ["replica_identity"],
        ),
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
    assert all(finding.message and finding.remedy and finding.publication == "p" for finding in found)
    assert [f.level for f in found] == sorted((f.level for f in found), key=lambda level: level is not Level.critical)
