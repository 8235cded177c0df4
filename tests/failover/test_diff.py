"""``failover diff``: exactly the transactions that only the old primary has, and SQL that repeats them."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from rdsrepl.tail.formats.sql_format import identifier, literal
from tests.fixtures.postgres import Database, Servers
from tests.fixtures.program import Program
from tests.fixtures.splits import Split, split
from tests.workloads import tables

if TYPE_CHECKING:
    from pathlib import Path

# Written after the standby was cut off; each item is one transaction.
LOST = (
    ("INSERT INTO t VALUES (10, 'it''s \\ lost')", "UPDATE t SET v = 'changed' WHERE id = 1"),
    ("UPDATE t SET id = 20 WHERE id = 2", "DELETE FROM t WHERE id = 3"),
    ("UPDATE w SET v = 'y' WHERE ctid = (SELECT min(ctid) FROM w)", "DELETE FROM w WHERE v = 'z'"),
    ("INSERT INTO g (v) VALUES (7)", "UPDATE g SET v = 8 WHERE v = 1"),
    ("UPDATE every_type SET t = 'lost', num = 'NaN' WHERE id = 1", "DELETE FROM every_type WHERE id = 2"),
    ("SELECT pg_logical_emit_message(true, 'outbox', 'hello')",),
)


@pytest.fixture(scope="module")
def parted(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Split]:
    """Two servers after a split: slots that saw nothing (pgoutput and wal2json), and one whose consumer saw a part."""
    with split(servers.get(15).binaries, tmp_path_factory.mktemp("split")) as made:
        old = made.before
        old.run(
            *tables.SCHEMA,
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
            "CREATE TABLE w (v text, j json)",
            "ALTER TABLE w REPLICA IDENTITY FULL",
            "CREATE TABLE g (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int, "
            "s int GENERATED ALWAYS AS (v) STORED)",
            "CREATE TABLE unseen (id int PRIMARY KEY)",
            "CREATE PUBLICATION p FOR TABLE t, w, g, every_type",
            "INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, 5) n",
            "INSERT INTO w VALUES ('x', '{}'), ('x', '{}'), ('z', NULL)",
            "INSERT INTO g (v) VALUES (1)",
        )
        with closing(old.connect()) as conn:
            tables.insert_every_type(conn)
            hostile = tables.hostile(conn)
            conn.execute(sql.SQL("ALTER PUBLICATION p ADD TABLE {}").format(hostile))
        for name, plugin in (("plain", "pgoutput"), ("json", "wal2json"), ("seen", "pgoutput")):
            old.run(f"SELECT pg_create_logical_replication_slot('{name}', '{plugin}')")
        old.run("INSERT INTO t VALUES (6, 'kept')")
        made.replayed()
        made.cut_off()
        for number, statements in enumerate(LOST):
            old.run("; ".join(statements))
            if number == 1:
                made.confirmed("seen", old.value("SELECT pg_current_wal_lsn()"))
        values = [tables.hostile_text(random.Random(n)) + "x" for n in range(len(tables.HOSTILE_COLUMNS))]
        with closing(old.connect()) as conn:
            conn.execute(
                sql.SQL("INSERT INTO {} VALUES ({})").format(hostile, sql.SQL(", ").join(map(sql.Literal, values)))
            )
        old.run("INSERT INTO unseen VALUES (1)")
        made.new.promote()
        made.after.run("INSERT INTO t VALUES (30, 'only new')")
        yield made


def diff(rdsrepl: Program, parted: Split, *words: str, **swapped: str) -> Any:
    names = {"old": parted.before.dsn, "new": parted.after.dsn} | swapped
    return rdsrepl("failover", "diff", "--old", names["old"], "--new", names["new"], *words)


def rows(database: Database, table: str) -> list[tuple[Any, ...]]:
    return database.run(f"SELECT r::text FROM {table} r ORDER BY 1")


def test_it_names_exactly_the_transactions_that_only_the_old_primary_has(rdsrepl: Program, parted: Split) -> None:
    done = diff(rdsrepl, parted, "-o", "json")
    assert done.code == 0, done.err
    fork, found = done.json["fork"], done.json["transactions"]
    assert (fork["old_timeline"], fork["new_timeline"]) == (1, 2)
    kept = parted.before.value("SELECT xmin::text FROM t WHERE id = 6")
    committed = parted.before.run(
        "SELECT xmin::text FROM t WHERE id IN (10, 20) UNION SELECT xmin::text FROM unseen "
        "UNION SELECT xmin::text FROM g"
    )
    xids = [str(one["xid"]) for one in found]
    assert len(xids) == len(LOST) + 2, done.err
    assert kept not in xids
    assert {xid for (xid,) in committed} <= set(xids)
    assert [one["changes"] for one in found] == [2, 2, 2, 2, 2, 1, 1, 1]
    assert found[-1]["tables"][0]["table"] == "unseen"
    assert [one["confirmed_by"] for one in found] == [["seen"], ["seen"], [], [], [], [], [], []]
    assert "consumer of seen confirmed up to" in done.err


def test_pgoutput_shows_published_tables_and_says_so(rdsrepl: Program, parted: Split) -> None:
    done = diff(rdsrepl, parted, "--slot", "plain", "-o", "json")
    assert [one["changes"] for one in done.json["transactions"]] == [2, 2, 2, 2, 2, 1, 1]
    assert "only tables of publications are seen (p)" in done.err


def test_a_slot_that_hides_a_part_is_a_warning(rdsrepl: Program, parted: Split) -> None:
    done = diff(rdsrepl, parted, "--slot", "seen", "-o", "json")
    assert done.code == 8
    assert [one["changes"] for one in done.json["transactions"]] == [2, 2, 2, 1, 1]
    assert not done.json["complete"]
    assert "they are not in this list" in done.err


def test_it_reads_without_consuming(rdsrepl: Program, parted: Split) -> None:
    before = parted.before.run("SELECT slot_name, confirmed_flush_lsn, active FROM pg_replication_slots ORDER BY 1")
    lines = diff(rdsrepl, parted, "--slot", "plain", "--format", "json").lines
    assert [line["op"] for line in lines].count("m") == 1
    assert {line["timeline"] for line in lines} == {1}
    assert before == parted.before.run(
        "SELECT slot_name, confirmed_flush_lsn, active FROM pg_replication_slots ORDER BY 1"
    )


@pytest.mark.parametrize(
    ("slot", "left_out"), [("plain", "unseen"), ("json", "every_type")], ids=["pgoutput", "wal2json"]
)
def test_the_sql_repeats_the_lost_transactions(
    rdsrepl: Program, parted: Split, tmp_path: Path, slot: str, left_out: str
) -> None:
    """wal2json prints NaN as null, and pgoutput does not see an unpublished table."""
    parted.after.run(f"CREATE DATABASE r_{slot} TEMPLATE postgres")
    target = Database(parted.new, f"r_{slot}")
    script = tmp_path / "lost.sql"
    done = diff(rdsrepl, parted, "--slot", slot, "--format", "sql")
    assert done.code == 0, done.err
    script.write_text(done.out, encoding="utf-8")
    psql = [parted.new.binaries.program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", target.dsn, "-f", script]
    run = subprocess.run(psql, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    target.run("DELETE FROM t WHERE id = 30")
    hostile = sql.Identifier(tables.HOSTILE_SCHEMA, tables.HOSTILE_TABLE).as_string(None)
    for table in {"t", "w", "g", "every_type", "unseen", hostile} - {left_out}:
        assert rows(target, table) == rows(parted.before, table), table


def test_the_replay_stops_where_a_row_is_missing(rdsrepl: Program, parted: Split, tmp_path: Path) -> None:
    parted.after.run("CREATE DATABASE changed TEMPLATE postgres")
    target = Database(parted.new, "changed")
    target.run("DELETE FROM t WHERE id = 2")
    script = tmp_path / "lost.sql"
    script.write_text(diff(rdsrepl, parted, "--slot", "plain", "--format", "sql").out, encoding="utf-8")
    psql = [parted.new.binaries.program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", target.dsn, "-f", script]
    run = subprocess.run(psql, capture_output=True, text=True, check=False)
    assert run.returncode == 3
    assert "the row does not exist" in run.stderr
    assert target.value("SELECT count(*) FROM t WHERE id = 3") == 1  # the transaction was rolled back


def test_a_person_sees_the_fork_and_the_transactions(rdsrepl: Program, parted: Split) -> None:
    done = diff(rdsrepl, parted)
    assert "where timeline 2 leaves timeline 1" in done.out
    assert "8 transactions, 13 changes" in done.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ({"new": "old"}, 2, "are the same server"),
        ({"old": "new", "new": "old"}, 2, "is the newer server"),
    ],
)
def test_wrong_servers_are_named(
    rdsrepl: Program, parted: Split, words: dict[str, str], code: int, message: str
) -> None:
    dsns = {"old": parted.before.dsn, "new": parted.after.dsn}
    done = diff(rdsrepl, parted, **{option: dsns[server] for option, server in words.items()})
    assert done.code == code
    assert message in done.err


def test_another_system_is_refused(rdsrepl: Program, parted: Split, db15: Database) -> None:
    done = diff(rdsrepl, parted, old=db15.dsn)
    assert done.code == 4
    assert "different database systems" in done.err


def test_an_unknown_slot_is_named(rdsrepl: Program, parted: Split) -> None:
    done = diff(rdsrepl, parted, "--slot", "none")
    assert done.code == 3
    assert "has no logical slot none" in done.err


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
def test_literals_and_names_are_quoted_as_psycopg_quotes_them(text: str) -> None:
    assert literal(text) == sql.Literal(text).as_string(None).lstrip(" ")
    assert identifier(text) == sql.Identifier(text).as_string(None)
