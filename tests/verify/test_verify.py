"""``verify`` on real servers: a subscription from 15 to 18, a standby, two copies."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from rdsrepl.verify.links import SlotLink, SubscriptionLink, inserted_lsn
from tests.fixtures.background import running
from tests.fixtures.postgres import Database, Servers, drop_database, new_database
from tests.fixtures.program import Program
from tests.fixtures.waiting import wait_until

_SCHEMA = """
CREATE TYPE mood AS ENUM ({moods});
CREATE TABLE t (id int PRIMARY KEY, name text, amount numeric, at timestamptz, tags text[], doc jsonb, feeling mood,
                price money, j json);
CREATE TABLE "Odd ""one" (a text, b uuid, "n" int, place int, PRIMARY KEY (b, a));
CREATE TABLE keyless (a int, b text);
"""


@pytest.fixture(scope="module")
def pair(servers: Servers) -> Iterator[tuple[Database, Database]]:
    """A database on 15 and its subscriber on 18, with 5,000 rows."""
    source, target = new_database(servers.get(15)), new_database(servers.get(18))
    source.run(_SCHEMA.format(moods="'sad', 'happy'"))
    target.run(_SCHEMA.format(moods="'happy', 'sad'"))
    source.run(
        "INSERT INTO t SELECT i, 'name ' || i, i * 1.10, '2026-01-01'::timestamptz + i * '1 s'::interval,"
        " ARRAY['a', i::text], jsonb_build_object('i', i), 'happy', i::money, '{ \"x\":1}'"
        " FROM generate_series(1, 5000) i",
        r"UPDATE t SET name = E'\'); DROP TABLE t; --\n%s' WHERE id = 900",
        'INSERT INTO "Odd ""one" SELECT chr(97 + i % 7), md5(i::text)::uuid, i, i FROM generate_series(1, 900) i',
        "INSERT INTO keyless SELECT i % 50, 'x' FROM generate_series(1, 500) i",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "ALTER TABLE keyless REPLICA IDENTITY FULL",
        f"SELECT pg_create_logical_replication_slot('{source.name}', 'pgoutput')",
    )
    target.run(
        f"CREATE SUBSCRIPTION s CONNECTION '{source.dsn}' PUBLICATION p"
        f" WITH (create_slot = false, slot_name = '{source.name}')",
    )
    wait_until(
        lambda: target.value("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'") == 0,
        "the initial copy is complete",
    )
    yield source, target
    target.run("ALTER SUBSCRIPTION s DISABLE", "ALTER SUBSCRIPTION s SET (slot_name = NONE)", "DROP SUBSCRIPTION s")
    drop_database(target)
    drop_database(source)


def _verify(rdsrepl: Program, pair: tuple[Database, Database], *more: str) -> Any:
    return rdsrepl("verify", "--to", pair[1].dsn, "-o", "json", *more, dsn=pair[0].dsn)


def _by_table(result: Any) -> dict[str, dict[str, Any]]:
    return {row["table"]: row for row in result.json["tables"]}


def test_equal_tables(pair: tuple[Database, Database], rdsrepl: Program) -> None:
    result = _verify(rdsrepl, pair)
    assert result.code == 0, result.err + result.out
    assert {name: (row["rows"], row["state"]) for name, row in _by_table(result).items()} == {
        "public.t": (5000, "equal"),
        'public."Odd ""one"': (900, "equal"),
        "public.keyless": (500, "equal"),
    }
    assert result.json["link"] == "subscription s"


def test_each_kind_of_difference_is_found_and_named(pair: tuple[Database, Database], rdsrepl: Program) -> None:
    target = pair[1]
    changes = {
        7: "name = name || ' '",
        70: "name = NULL",
        700: "feeling = 'sad'",
        701: "tags[1] = 'b'",
        702: "doc = '{}'",
        703: "price = price + 0.01::money",
        704: "j = '{\"x\": 1}'",
        705: "at = at + interval '1 microsecond'",
        706: "amount = amount + 1e-20",
    }
    target.run(
        *(f"UPDATE t SET {change} WHERE id = {key}" for key, change in changes.items()),
        "DELETE FROM t WHERE id IN (1, 2500, 5000)",
        "INSERT INTO t (id) VALUES (-3), (5001)",
        "UPDATE t SET name = 'harmless' WHERE id = 900",
        "UPDATE t SET name = CASE id WHEN 801 THEN 'name 802' ELSE 'name 801' END WHERE id IN (801, 802)",
        """DELETE FROM "Odd ""one" WHERE place = 500""",
        "DELETE FROM keyless WHERE ctid = '(0,1)'",
    )
    result = _verify(rdsrepl, pair, "--columns")
    assert result.code == 9, result.err
    tables = _by_table(result)
    keys = {int(row["key"]["id"]): (row["state"], row["columns"]) for row in tables["public.t"]["keys"]}
    expected = {key: ("different", [change.split()[0].split("[")[0]]) for key, change in changes.items()}
    expected |= dict.fromkeys((1, 2500, 5000), ("missing", None)) | dict.fromkeys((-3, 5001), ("extra", None))
    assert keys == expected | {key: ("different", ["name"]) for key in (801, 802, 900)}
    assert (tables["public.t"]["missing"], tables["public.t"]["extra"], tables["public.t"]["different"]) == (3, 2, 12)
    assert [row["key"]["a"] for row in tables['public."Odd ""one"']["keys"]] == [chr(97 + 500 % 7)]
    assert (tables["public.keyless"]["missing"], tables["public.keyless"]["not_proven"]) == (1, 0)
    for_person = rdsrepl("verify", "--to", target.dsn, "--table", "t", dsn=pair[0].dsn)
    assert "id=2500: missing" in for_person.out
    assert for_person.code == 9
    _repair(pair, rdsrepl)


def _repair(pair: tuple[Database, Database], rdsrepl: Program) -> None:
    """Repair everything but the table without a key; the statements of a dry run change nothing."""
    target = pair[1]
    words = ["verify", "--to", target.dsn, "--repair"]
    plan = rdsrepl(*words, "--dry-run", "--show-sql", dsn=pair[0].dsn)
    assert "delete public.t (id=5001)" in plan.out, plan.err
    assert target.value("SELECT count(*) FROM t WHERE id = 5001") == 1
    repaired = rdsrepl(*words, "--table", "t", "--yes", dsn=pair[0].dsn)
    assert (repaired.code, "?column?" in repaired.out) == (0, False), repaired.out
    done = rdsrepl(*words, "--yes", dsn=pair[0].dsn)
    assert 'after the repair: public."Odd ""one" equal' in done.err
    assert done.code == 9, "public.keyless still differs"
    target.run("INSERT INTO keyless VALUES (1, 'x')")
    assert _verify(rdsrepl, pair).code == 0


def test_a_change_on_its_way_is_no_difference(pair: tuple[Database, Database], rdsrepl: Program) -> None:
    """Writers go on with hot rows, new keys and removed keys while the tables are compared."""
    source = pair[0]
    source.run(
        "CREATE TABLE hot (id int PRIMARY KEY, n int)", "INSERT INTO hot SELECT i, 0 FROM generate_series(1, 2000) i"
    )
    pair[1].run("CREATE TABLE hot (id int PRIMARY KEY, n int)", "ALTER SUBSCRIPTION s REFRESH PUBLICATION")
    wait_until(
        lambda: pair[1].value("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'") == 0,
        "the initial copy of hot is complete",
    )
    pair[1].run("UPDATE hot SET n = -1 WHERE id = 1500", "DELETE FROM hot WHERE id = 1501")

    def write(over: threading.Event) -> None:
        with closing(source.connect()) as conn:
            for number in range(1, 100_000):
                if over.is_set():
                    return
                conn.execute("UPDATE hot SET n = n + 1 WHERE id = %s", (number % 20 + 1,))
                conn.execute("INSERT INTO hot VALUES (%s, 1)", (10_000 + number,))
                conn.execute("DELETE FROM hot WHERE id = %s", (10_000 + number - 5,))
                conn.execute("DELETE FROM hot WHERE id = 1600")
                conn.execute("INSERT INTO hot VALUES (1600, %s)", (number,))

    with running(write):
        results = [_verify(rdsrepl, pair, "--table", "hot")]
        # Where the subscriber keeps up, no change is on its way by chance.
        while len(results) < 30 and not any(_by_table(one)["public.hot"]["cleared"] for one in results):
            results.append(_verify(rdsrepl, pair, "--table", "hot"))
    for result in results:
        row = _by_table(result)["public.hot"]
        assert sorted((key["key"]["id"], key["state"]) for key in row["keys"]) == [
            ("1500", "different"),
            ("1501", "missing"),
        ], row
        assert result.code == 9
    assert any(_by_table(result)["public.hot"]["cleared"] for result in results), "no change was on its way"
    source.run("DROP TABLE hot")
    pair[1].run("ALTER SUBSCRIPTION s REFRESH PUBLICATION", "DROP TABLE hot")


def test_what_a_publication_does_not_send_is_not_compared(
    pair: tuple[Database, Database], make_database: Any, rdsrepl: Program
) -> None:
    """A row filter and a column list decide, for a copy that does not change as well."""
    source, target = make_database(pair[0].server), make_database(pair[1].server)
    table = "CREATE TABLE w (id int PRIMARY KEY, n int, secret text, extra int GENERATED ALWAYS AS (id + 1) STORED)"
    for database in (source, target):
        database.run(table, "INSERT INTO w SELECT i, i, 'x' FROM generate_series(1, 100) i")
    source.run("CREATE PUBLICATION q FOR TABLE w (id, n) WHERE (n % 2 = 0)", "CREATE TABLE alone (id int PRIMARY KEY)")
    target.run("DELETE FROM w WHERE n % 2 = 1", "UPDATE w SET secret = 'y'")
    target.run("CREATE TABLE here_only (id int)", "CREATE TABLE narrow (id int PRIMARY KEY, a int)")
    source.run(
        "CREATE TABLE narrow (id int PRIMARY KEY, a int, b int, c int)", "INSERT INTO narrow VALUES (1, 1, 1, 1)"
    )
    dsns = {"dsn": source.dsn}
    assert rdsrepl("verify", "--to", target.dsn, "--publication", "q", "--no-changes", **dsns).code == 0
    unknown = rdsrepl("verify", "--to", target.dsn, "--publication", "q", **dsns)
    assert unknown.code == 4
    assert "add --no-changes" in unknown.err
    not_sent = rdsrepl("verify", "--to", target.dsn, "--publication", "q", "--table", "narrow", "--no-changes", **dsns)
    assert (not_sent.code, "no table public.narrow in publication q" in not_sent.err) == (3, True), not_sent.err
    result = rdsrepl("verify", "--to", target.dsn, "--no-changes", "-o", "json", **dsns)
    assert result.code == 9
    assert {(one["table"], one["message"]) for one in result.json["structure"]} == {
        ("public.alone", "the table is missing on the target"),
        ("public.here_only", "the table is missing on the source"),
        ("public.narrow", "2 columns missing on the target: b, c"),
    }
    narrow, w = result.json["tables"]
    assert (narrow["missing"], narrow["extra"], narrow["different"]) == (1, 0, 0), "what both have is compared"
    assert (w["missing"], w["different"], w["extra"]) == (50, 50, 0)
    repaired = rdsrepl("verify", "--to", target.dsn, "--no-changes", "--repair", "--yes", **dsns)
    assert (repaired.code, "public.w equal" in repaired.err) == (9, True), "a table is still missing"


_UNSTABLE = """
CREATE TYPE mood AS ENUM ({moods});
CREATE DOMAIN mood_domain AS mood;
CREATE TYPE span AS RANGE (subtype = numeric);
CREATE TYPE composite AS (m mood, x text);
CREATE TABLE unstable (id mood PRIMARY KEY, e mood, d mood_domain, es mood[], j json, p point, v tsvector,
                       b bit(3), vb varbit, m money, r span, c composite, o regclass, l pg_lsn, f float8, ip inet,
                       y interval);
INSERT INTO unstable
SELECT m, m, m, ARRAY[m], '{{"a": 1}}', '(1,2)', 'a:1 b', '101', '10', '1.50', '[1,2.50)', (m, '<b/>')::composite,
       'pg_class', '0/10', 0.1, '::1', '1 mon'
  FROM unnest(enum_range(NULL::mood)) m;
"""


def test_types_without_a_stable_hash_are_compared_as_text(
    make_database: Any, servers: Servers, rdsrepl: Program
) -> None:
    """An enum is hashed by its OID, and sorted by the order in which its values were declared."""
    source, target = make_database(servers.get(15)), make_database(servers.get(18))
    # The OIDs of the enums differ.
    target.run("CREATE TYPE earlier AS ENUM ('x', 'y', 'z')")
    source.run(_UNSTABLE.format(moods="'sad', 'ok', 'happy'"))
    target.run(_UNSTABLE.format(moods="'happy', 'sad', 'ok'"))
    words = ("verify", "--to", target.dsn, "--no-changes", "--columns", "-o", "json")
    equal = rdsrepl(*words, dsn=source.dsn)
    assert equal.code == 0, equal.out
    assert equal.json["tables"][0]["rows"] == 3
    changes = {
        "e": "'ok'", "d": "'ok'", "es": "'{sad,sad}'", "j": "'{\"a\":1}'", "p": "'(1,3)'", "v": "'a b'",
        "b": "'100'", "vb": "'100'", "m": "'1.51'", "r": "'[1,2.5]'", "c": "ROW('sad', '<c/>')", "o": "'pg_proc'",
        "l": "'0/11'", "f": "0.1 + 1e-17", "ip": "'::2'",
        "y": "'30 days'",
    }  # fmt: skip
    target.run(*(f"UPDATE unstable SET {name} = {value} WHERE id = 'sad'" for name, value in changes.items()))
    different = rdsrepl(*words, dsn=source.dsn)
    assert different.code == 9, different.err
    (row,) = different.json["tables"][0]["keys"]
    assert (row["key"], sorted(row["columns"])) == ({"id": "sad"}, sorted(changes.keys() - {"f"}))


def test_a_key_that_the_sides_sort_differently(make_database: Any, servers: Servers, rdsrepl: Program) -> None:
    """Text that ICU sorts, and a type that only one side has: no range of the key has the same rows on both."""
    source, target = make_database(servers.get(15)), make_database(servers.get(18))
    sides = ((source, 'text COLLATE "en-US-x-icu"', "int", "uuid"), (target, "varchar", "bigint", "text"))
    for database, text, number, identity in sides:
        database.run(
            f"CREATE TABLE sorted (k {text} PRIMARY KEY, n {number})",
            "INSERT INTO sorted"
            " SELECT substr('A-a_Z.', i % 6 + 1, 1) || md5(i::text), i FROM generate_series(1, 3000) i",
            f"CREATE TABLE typed (k {identity} PRIMARY KEY, n int)",
            f"INSERT INTO typed SELECT md5(i::text)::uuid::{identity}, i FROM generate_series(1, 300) i",
        )
    words = ("verify", "--to", target.dsn, "--no-changes", "-o", "json")
    equal = rdsrepl(*words, dsn=source.dsn)
    assert equal.code == 0, equal.out
    assert {one["table"]: one["cleared"] for one in equal.json["tables"]} == {"public.sorted": 0, "public.typed": 0}
    target.run(
        "UPDATE sorted SET n = -1 WHERE n = 500", "DELETE FROM sorted WHERE n = 700",
        "INSERT INTO sorted VALUES ('é', 1)", "DELETE FROM typed WHERE n = 70",
    )  # fmt: skip
    different = rdsrepl(*words, dsn=source.dsn)
    assert different.code == 9, different.err
    counts = [(one["table"], one["missing"], one["extra"], one["different"]) for one in different.json["tables"]]
    assert counts == [("public.sorted", 1, 1, 1), ("public.typed", 1, 0, 0)]
    repaired = rdsrepl("verify", "--to", target.dsn, "--no-changes", "--repair", "--yes", dsn=source.dsn)
    assert repaired.code == 0, repaired.out + repaired.err


def test_types_that_become_wider(make_database: Any, servers: Servers, rdsrepl: Program) -> None:
    """A copy with bigint for int, numeric, jsonb for json: values that are equal are not different."""
    source, target = make_database(servers.get(15)), make_database(servers.get(18))
    source.run("CREATE TABLE w (id int PRIMARY KEY, n int, j json, v varchar(9))",
               "INSERT INTO w SELECT i, i, '{\"b\": 1, \"a\":2}', i FROM generate_series(1, 9) i")  # fmt: skip
    rows = 'SELECT i, i, \'{"a":2,"b":1}\', i FROM generate_series(1, 9) i'
    target.run("CREATE TABLE w (more int, v text, j jsonb, n numeric(9, 2), id bigint PRIMARY KEY)",
               f"INSERT INTO w (id, n, j, v) {rows}")  # fmt: skip
    words = ("verify", "--to", target.dsn, "--no-changes", "--columns", "-o", "json")
    equal = rdsrepl(*words, dsn=source.dsn)
    assert equal.code == 0, equal.out
    assert "column id is integer here and bigint on the target" in equal.json["tables"][0]["notes"]
    assert "not compared, because only the target has it: more" in equal.json["tables"][0]["notes"]
    target.run("UPDATE w SET id = 3000000000 WHERE id = 9", "UPDATE w SET n = 5.5 WHERE id = 5")
    keys = rdsrepl(*words, dsn=source.dsn).json["tables"][0]["keys"]
    assert [(row["key"]["id"], row["state"], row["columns"]) for row in keys] == [
        ("5", "different", ["n"]), ("9", "missing", None), ("3000000000", "extra", None),
    ]  # fmt: skip


def test_the_server_that_refuses_is_named(pair: tuple[Database, Database], rdsrepl: Program) -> None:
    source, target = pair
    role, login = f"reads_{target.name}", {"PGPASSWORD": "of-the-role"}
    grant = f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
    try:
        for database in pair:
            database.run(f"CREATE ROLE {role} LOGIN PASSWORD 'of-the-role'", grant)
        words = ("--to", target.server.dsn(user=role, dbname=target.name), "--no-changes", "--table", "keyless")
        dsn = source.server.dsn(user=role, dbname=source.name)
        target.run(f"REVOKE ALL ON keyless FROM {role}", f"GRANT SELECT (a) ON keyless TO {role}")
        denied = rdsrepl("verify", *words, dsn=dsn, env=login)
        assert (denied.code, f"error: --to: role {role} may not read table public.keyless [42501]" in denied.err) == (
            5,
            True,
        ), denied.err
        (remedy,) = re.findall(r"hint: there, as the owner: (GRANT .*)", denied.err)
        target.run(remedy)
        assert rdsrepl("verify", *words, dsn=dsn, env=login).code == 0
    finally:
        for database in pair:
            database.run(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a_disabled_subscription_is_refused(pair: tuple[Database, Database], rdsrepl: Program) -> None:
    pair[1].run("ALTER SUBSCRIPTION s DISABLE")
    try:
        result = _verify(rdsrepl, pair)
        assert result.code == 4
        assert r"ALTER SUBSCRIPTION \"s\" ENABLE" in result.err
    finally:
        pair[1].run("ALTER SUBSCRIPTION s ENABLE")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--to", "{source}"), 2, "are the same database"),
        (("--to", "{target}", "--read-from", "{target}"), 2, "is not a standby of --source"),
        (("--to", "{target}", "--publication", "nope"), 3, "no publication nope"),
        (("--to", "{target}", "--table", "nope"), 3, "no table nope"),
        (("--to", "{target}", "--yes"), 2, "are for --repair"),
        (("--to", "{target}", "--proof-timeout", "soon"), 2, "soon"),
        (("--to", "nowhere"), 3, "nowhere"),
    ],
    ids=["same", "no-standby", "publication", "table", "yes", "duration", "target"],
)
def test_wrong_input(
    pair: tuple[Database, Database], rdsrepl: Program, words: tuple[str, ...], code: int, text: str
) -> None:
    given = [word.format(source=pair[0].dsn, target=pair[1].dsn) for word in words]
    result = rdsrepl("verify", *given, dsn=pair[0].dsn)
    assert result.code == code, result.err
    assert text in result.err


def test_a_copy_that_stops_applying_proves_nothing(pair: tuple[Database, Database], rdsrepl: Program) -> None:
    """A lock keeps the apply worker waiting: what differs is not called different."""
    source, target = pair
    with closing(target.connect()) as conn, conn.transaction():
        conn.execute("LOCK TABLE t IN ROW EXCLUSIVE MODE")
        conn.execute("SELECT * FROM t WHERE id = 10 FOR UPDATE")
        source.run("UPDATE t SET name = 'later' WHERE id = 10")
        result = _verify(rdsrepl, pair, "--table", "t", "--proof-timeout", "1s")
    assert result.code == 8, result.out
    assert (_by_table(result)["public.t"]["state"], _by_table(result)["public.t"]["not_proven"]) == ("not proven", 1)
    assert _verify(rdsrepl, pair, "--table", "t").code == 0


def test_a_standby_as_copy_and_as_reader(servers: Servers, make_database: Any, tmp_path: Any, rdsrepl: Program) -> None:
    """A standby that lags is waited for; a restored copy is compared through the standby."""
    primary = servers.get(18)
    database = make_database(primary)
    database.run(
        "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 9) i"
    )
    standby = primary.clone(tmp_path / "standby", slot="verify_standby")
    try:
        standby.start()
        there = standby.dsn(dbname=database.name)
        wait_until(lambda: rdsrepl("verify", "--to", there, dsn=database.dsn).code == 0, "the standby has the database")
        with closing(standby.connect()) as conn:
            conn.execute("SELECT pg_wal_replay_pause()")
            database.run("UPDATE t SET v = 'y' WHERE id = 3")
            words = ["verify", "--to", there, "--proof-timeout", "1s", "-o", "json"]
            late = rdsrepl(*words, dsn=database.dsn)
            assert (late.code, late.json["link"]) == (8, "physical replication")
            copy = make_database(servers.get(15))
            copy.run(
                "CREATE TABLE t (id int PRIMARY KEY, v text)",
                "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 9) i",
            )
            through = ["verify", "--to", copy.dsn, "--read-from", there, "--no-changes", "--proof-timeout", "1s"]
            behind = rdsrepl(*through, dsn=database.dsn)
            assert (behind.code, "--read-from did not replay" in behind.err) == (1, True)
            conn.execute("SELECT pg_wal_replay_resume()")
        assert rdsrepl("verify", "--to", there, dsn=database.dsn).code == 0
        assert "id=3: different" in rdsrepl(*through, dsn=database.dsn).out
        wrong = rdsrepl("verify", "--source", there, "--to", database.dsn, dsn=database.dsn)
        assert wrong.code == 2
        assert "--source is a standby" in wrong.err
        # A standby of another server is neither a reader of this one nor its copy.
        foreign = rdsrepl("verify", "--to", database.dsn, "--read-from", there, "--no-changes", dsn=copy.dsn)
        assert (foreign.code, "--read-from is not a standby of --source" in foreign.err) == (2, True)
        other = rdsrepl("verify", "--to", there, dsn=copy.dsn)
        assert (other.code, "the target is not its standby" in other.err) == (4, True)
    finally:
        standby.stop("immediate")
        standby.remove()
        with closing(primary.connect()) as conn:
            conn.execute("SELECT pg_drop_replication_slot('verify_standby')")


def test_what_cannot_be_compared_is_named_and_the_rest_is_compared(
    make_database: Any, servers: Servers, rdsrepl: Program
) -> None:
    """A policy that hides rows, no table at all; partitions of one side only; a column that the target computes."""
    source, target = make_database(servers.get(15)), make_database(servers.get(18))
    words = ("verify", "--to", target.dsn, "--no-changes", "-o", "json")
    empty = rdsrepl(*words, dsn=source.dsn)
    assert (empty.code, "no table to compare" in empty.err) == (3, True), empty.out
    tables = "CREATE TABLE hidden (id int PRIMARY KEY)", "CREATE TABLE seen (id int PRIMARY KEY)"
    source.run(*tables, "CREATE TABLE parts (id int PRIMARY KEY, g int) PARTITION BY RANGE (id)",
               "CREATE TABLE part_1 PARTITION OF parts DEFAULT", "INSERT INTO parts VALUES (1, 2)",
               "CREATE TABLE keyless ()", "CREATE ROLE weak_verifier",
               "GRANT SELECT ON hidden, keyless, seen, parts TO weak_verifier",
               "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY")  # fmt: skip
    target.run(*tables, "CREATE TABLE parts (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id + 1) STORED)",
               "INSERT INTO parts VALUES (1)", "CREATE TABLE keyless ()")  # fmt: skip
    options = "-c role=weak_verifier"
    found = rdsrepl(*words, dsn=f"{source.dsn} options='{options}'")
    assert found.code == 9, found.err
    assert {row["table"]: (row["state"], row["cleared"]) for row in found.json["tables"]} == {
        "public.hidden": ("not proven", 0), "public.keyless": ("equal", 0),
        "public.parts": ("equal", 0), "public.seen": ("equal", 0),
    }  # fmt: skip
    notes = {row["table"]: row["notes"] for row in found.json["tables"]}
    assert "row-level security policy" in notes["public.hidden"][0]
    assert [(one["table"], one["message"]) for one in found.json["structure"]] == [
        ("public.parts", "generated on the target, and not compared: g")
    ]


def test_what_is_repaired_in_which_order(make_database: Any, servers: Servers, rdsrepl: Program) -> None:
    """A row that has the unique value of a missing one, money of another locale, a large value, too many rows."""
    source, target = make_database(servers.get(15)), make_database(servers.get(18))
    for database in (source, target):
        database.run(
            "CREATE TABLE u (id int PRIMARY KEY, mail text UNIQUE, m money, v text)",
            "INSERT INTO u VALUES (1, 'a', '1.50', ''), (2, 'b', '2.50', ''), (3, 'c', '3', repeat('x', 100000))",
            "CREATE TABLE many (id int PRIMARY KEY, v int)", "INSERT INTO many SELECT generate_series(1, 1001)",
        )  # fmt: skip
    target.run(
        "DELETE FROM u WHERE id IN (1, 3)", "INSERT INTO u VALUES (9, 'a')", "UPDATE u SET m = '7' WHERE id = 2",
        "UPDATE many SET v = 1",
    )  # fmt: skip
    words = ("verify", "--to", target.dsn, "--no-changes", "--repair")
    shown = rdsrepl(*words, "--dry-run", dsn=source.dsn)
    assert shown.code == 9
    assert "x" * 1000 not in shown.out and "100,000 characters, SHA-256" in shown.out, shown.out[:3000]
    assert "public.many: not repaired" in shown.out
    done = rdsrepl(*words, "--yes", dsn=source.dsn)
    assert (done.code, "public.u equal" in done.err) == (9, True), done.err
    assert target.value("SELECT array_agg((id, mail, m::numeric, length(v))::text ORDER BY id) FROM u") == [
        "(1,a,1.50,0)", "(2,b,2.50,0)", "(3,c,3.00,100000)",
    ]  # fmt: skip


def test_a_slot_with_the_same_name_on_another_server(
    pair: tuple[Database, Database], make_database: Any, servers: Servers, rdsrepl: Program
) -> None:
    """The subscription receives from another server: what that one sends proves nothing about this one."""
    other = make_database(servers.get(16))
    copy = make_database(servers.get(18))
    while other.value(f"SELECT pg_current_wal_lsn() < '{pair[0].value('SELECT pg_current_wal_lsn()')}'"):
        other.run("SELECT pg_switch_wal()")
    other.run(
        "CREATE TABLE only_here (id int PRIMARY KEY)", "CREATE PUBLICATION p FOR ALL TABLES",
        f"SELECT pg_create_logical_replication_slot('{pair[0].name}', 'pgoutput')",
    )  # fmt: skip
    copy.run(
        "CREATE TABLE only_here (id int PRIMARY KEY)",
        f"CREATE SUBSCRIPTION elsewhere CONNECTION '{other.dsn}' PUBLICATION p"
        f" WITH (create_slot = false, slot_name = '{pair[0].name}')",
    )
    try:
        wait_until(
            lambda: copy.value("SELECT count(received_lsn) FROM pg_stat_subscription WHERE subname = 'elsewhere'"),
            "it receives",
        )
        wrong = rdsrepl("verify", "--to", copy.dsn, dsn=pair[0].dsn)
        assert (wrong.code, "receives from another server" in wrong.err) == (4, True), wrong.out + wrong.err
    finally:
        copy.run("ALTER SUBSCRIPTION elsewhere DISABLE", "ALTER SUBSCRIPTION elsewhere SET (slot_name = NONE)",
                 "DROP SUBSCRIPTION elsewhere")  # fmt: skip
    with closing(other.connect()) as here, closing(pair[1].connect()) as there:
        end = inserted_lsn(here)
        here.execute("SELECT pg_replication_slot_advance(%s, %s)", (pair[0].name, end))
        assert SlotLink(here, [pair[0].name]).has_applied(end)
        assert not SubscriptionLink(here, there, ["s"], [pair[0].name]).has_applied(end)


def test_a_change_of_the_target_that_the_source_will_get(
    make_database: Any, servers: Servers, rdsrepl: Program
) -> None:
    """Replication in both directions: such a change is on its way, and what is repaired would come back."""
    here, there = (make_database(servers.get(18)) for _ in range(2))
    both = ((here, there), (there, here))
    for database, _ in both:
        database.run("CREATE TABLE t (id int PRIMARY KEY, n int)", "INSERT INTO t VALUES (1, 1), (2, 2)",
                     "CREATE PUBLICATION p FOR ALL TABLES",
                     f"SELECT pg_create_logical_replication_slot('{database.name}', 'pgoutput')")  # fmt: skip
    for database, other in both:
        database.run(
            f"CREATE SUBSCRIPTION of_{database.name} CONNECTION '{other.dsn}' PUBLICATION p"
            f" WITH (create_slot = false, slot_name = '{other.name}', copy_data = false, origin = none)"
        )
    words = ("verify", "--to", there.dsn, "-o", "json")
    try:
        wait_until(lambda: rdsrepl(*words, dsn=here.dsn).code == 0, "both directions work")
        with closing(here.connect()) as conn, conn.transaction():
            conn.execute("SELECT FROM t WHERE id = 1 FOR UPDATE")
            there.run("UPDATE t SET n = 5 WHERE id = 1")
            late = rdsrepl(*words, "--proof-timeout", "500ms", dsn=here.dsn)
            assert (late.code, late.json["tables"][0]["not_proven"]) == (8, 1), late.out
        wait_until(lambda: rdsrepl(*words, dsn=here.dsn).code == 0, "the change has arrived")
        refused = rdsrepl(*words, "--repair", "--yes", dsn=here.dsn)
        assert (refused.code, "would come back" in refused.err) == (4, True), refused.err
    finally:
        for database, _ in both:
            name = f"of_{database.name}"
            database.run(f"ALTER SUBSCRIPTION {name} DISABLE", f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)",
                         f"DROP SUBSCRIPTION {name}")  # fmt: skip
