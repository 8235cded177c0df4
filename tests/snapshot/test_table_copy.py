"""Tables without a key in a running stream: a TRUNCATE, all rows, then the changes since, on real servers."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from rdsrepl.config import Target
from rdsrepl.postgres import connection
from rdsrepl.snapshot import chunk_table, chunks, table_copy
from rdsrepl.snapshot.chunk_table import Altered, ChunkTable
from rdsrepl.snapshot.held_changes import HeldChanges
from rdsrepl.snapshot.requests import Control, Method, Request, Verb
from tests.fixtures.background import running
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.waiting import wait_until
from tests.snapshot.test_incremental import Tail, folded, signal

ALLOW = "--allow-snapshot-truncate"
WRITES = (
    "INSERT INTO log SELECT i %% 3, 'new ' || (i %% 2), null FROM generate_series(1, 1 + %(n)s %% 3) i",
    "UPDATE log SET v = v || '+' WHERE ctid = (SELECT ctid FROM log OFFSET %(n)s LIMIT 1)",
    "DELETE FROM log WHERE ctid = (SELECT ctid FROM log OFFSET %(n)s LIMIT 1)",
    "INSERT INTO t VALUES (2000 + %(n)s, 0, 'x') ON CONFLICT (id) DO UPDATE SET n = t.n + 1",
)


def request(name: str = "one", tables: tuple[str, ...] = ("public.log",), **values: Any) -> Request:
    return Request(name, "s", tables, method=Method.slot, **values)


def rows_of(found: Sequence[dict[str, Any]], table: str = "log") -> Counter[str]:
    """Return the rows of a consumer that has no keys: a change names the whole old row."""
    rows: Counter[str] = Counter()
    of_table = [event for event in found if event["table"] == table]
    begin = next(number for number, event in enumerate(of_table) if event["op"] == "t")
    for event in of_table[begin:]:
        if event["op"] == "t":
            rows.clear()
        if event["before"] is not None:
            before = json.dumps(event["before"], sort_keys=True)
            rows[before] -= 1
            assert rows[before] >= 0, f"a change of a row that the consumer does not have: {event}"
        if event["after"] is not None:
            rows[json.dumps(event["after"], sort_keys=True)] += 1
    return +rows


def truth(source: Database, table: str = "log") -> Counter[str]:
    found = source.value(f"SELECT coalesce(json_agg(r), '[]')::text FROM {table} r")
    return Counter(json.dumps(row, sort_keys=True) for row in json.loads(found))


@contextmanager
def writing(source: Database, seed: int) -> Iterator[None]:
    """Change the tables until the end."""

    def work(over: threading.Event) -> None:
        rng = random.Random(seed)
        with psycopg.connect(source.dsn) as conn:
            while not over.wait(0.002):
                conn.execute(rng.choice(WRITES), {"n": rng.randrange(400)}, prepare=False)
                if rng.random() < 0.1:
                    conn.rollback()
                elif rng.random() < 0.5:
                    conn.commit()

    with running(work):
        yield


@pytest.fixture
def source(db18: Database) -> Database:
    db18.run(
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text)",
        "INSERT INTO t SELECT i, i, 'row ' || i FROM generate_series(1, 1000) i",
        "CREATE TABLE log (a int, v text, x numeric)",
        "ALTER TABLE log REPLICA IDENTITY FULL",
        "INSERT INTO log SELECT i % 100, 'row ' || (i % 50), null FROM generate_series(1, 2000) i",
        "CREATE PUBLICATION p FOR ALL TABLES",
    )
    return db18


@pytest.fixture
def tail(rdsrepl: Program, source: Database, tmp_path: Path) -> Tail:
    return Tail(rdsrepl, source, tmp_path)


def caught_up(source: Database) -> None:
    """Wait until the slot has confirmed everything that is written now."""
    lsn = source.value("SELECT pg_logical_emit_message(true, 'test', 'x')")
    wait_until(
        lambda: source.value(f"SELECT confirmed_flush_lsn > '{lsn}' FROM pg_replication_slots WHERE slot_name = 's'"),
        "the stream is confirmed",
    )


@pytest.mark.parametrize("format_", ["json"])
def test_a_table_without_a_key_is_written_whole_while_it_changes(source: Database, tail: Tail, format_: str) -> None:
    with writing(source, 1), tail.running("-f", format_, ALLOW):
        signal(source, request(tables=("public.log", "public.t"), chunk_rows=100, rows_per_second=2_000))
        state = tail.wait_for("one")
        signal(source, request("again", chunk_rows=500))
        tail.wait_for("again")
    with tail.running():
        caught_up(source)
    found = tail.events()
    assert rows_of(found) == truth(source)
    assert {json.dumps(row, sort_keys=True) for row in folded(found, "t").values()} == set(truth(source, "t"))
    of_log = [event for event in found if event["table"] == "log"]
    assert [event["op"] for event in of_log].count("t") == 2
    assert {table["table"]: table["method"] for table in state["tables"]} == {
        "public.log": "slot",
        "public.t": "chunks",
    }
    later = [event for event in of_log if "snapshot" in event and event["op"] in "ciud"]
    assert later, "no change came while the rows were written"
    places = [
        (event["timeline"], tuple(int(n, 16) for n in event["commit_lsn"].split("/")), event["seq"]) for event in found
    ]
    assert places == sorted(set(places)), "an identity is not unique, or not in order"


def test_a_copy_that_is_paused_begins_again_and_one_that_is_cancelled_is_incomplete(
    source: Database, tail: Tail, tmp_path: Path
) -> None:
    def control(verb: Verb, name: str) -> None:
        signal(source, Control(verb, name, "s"))

    def rows(name: str) -> int:
        return int(tail.snapshots()[name]["tables"][0]["rows"])

    log = tmp_path / "log"
    with log.open("wb") as err, tail.running(ALLOW, stderr=err):
        signal(source, request(chunk_rows=50, rows_per_second=2_000))
        wait_until(lambda: tail.status("one") == "running" and rows("one") > 100, "rows are written")
        control(Verb.pause, "one")
        tail.wait_for("one", "paused")
        source.run("INSERT INTO log VALUES (7, 'while it is paused', null)")
        control(Verb.resume, "one")
        tail.wait_for("one")
        caught_up(source)
        assert rows_of(tail.events()) == truth(source)
        assert rows("one") == 2_001, "the rows of the first attempt are not counted"
        signal(source, request("two", rows_per_second=100, chunk_rows=10))
        wait_until(lambda: tail.status("two") == "running" and rows("two") > 0, "rows are written")
        control(Verb.cancel, "two")
        tail.wait_for("two", "cancelled")
        source.run("INSERT INTO log VALUES (8, 'it is written again', null)")
        caught_up(source)
        assert tail.events()[-2]["after"]["a"] == 8, "the message of caught_up() is last"
    text = log.read_text()
    assert "snapshot two is cancelled; the output has not all rows of public.log" in text
    assert "Traceback" not in text


def test_without_permission_it_is_refused(source: Database, tail: Tail, rdsrepl: Program) -> None:
    place = ("--slot", "s", "--state", str(tail.state))
    words = ("snapshot", "start", *place, "--table", "log", "--id", "one", "--yes")
    with tail.running():
        refused = rdsrepl(*words, dsn=source.dsn)
        assert refused.code == 4
        assert "table public.log has no primary key" in refused.err and "--method slot" in refused.err
        result = rdsrepl(*words, "--method", "slot", "--wait", dsn=source.dsn)
        assert result.code == 1
        assert "the output gets a TRUNCATE of each" in result.err
        assert "needs slot tail --allow-snapshot-truncate" in result.err
    with tail.running(ALLOW):
        again = rdsrepl("snapshot", "resume", "one", *place, "--yes", dsn=source.dsn)
        assert again.code == 0, again.err
        wait_until(lambda: tail.status("one") == "done", "it is complete")
    assert rows_of(tail.events()) == truth(source)


def test_it_waits_for_transactions_slots_and_locks(source: Database, tail: Tail, tmp_path: Path) -> None:
    """Each wait is reported; the stream goes on, and so does the table once its rows are read."""
    log = tmp_path / "log"
    free = "SELECT setting::int - (SELECT count(*) FROM pg_replication_slots) FROM pg_settings"
    names = [f"other{n}" for n in range(int(source.value(f"{free} WHERE name = 'max_replication_slots'")) - 1)]
    with log.open("wb") as err, tail.running(ALLOW, stderr=err):
        with source.connect() as conn:
            conn.execute("BEGIN")
            conn.execute("SELECT pg_current_xact_id()")
            signal(source, request())
            wait_until(lambda: tail.snapshots().get("one", {}).get("waits_for"), "it waits for the transaction")
            source.run("INSERT INTO log VALUES (5, 'meanwhile', null)")
            caught_up(source)
            assert tail.events()[-2]["after"]["v"] == "meanwhile"
            pid = conn.info.backend_pid
        assert f"PID {pid}" in tail.snapshots()["one"]["waits_for"]
        tail.wait_for("one")
        source.run(*(f"SELECT pg_create_physical_replication_slot('{name}')" for name in names))
        try:
            signal(source, request("two"))
            wait_until(lambda: "all replication slots are in use; trying again" in log.read_text(), "it is said")
        finally:
            source.run(*(f"SELECT pg_drop_replication_slot('{name}')" for name in names))
        tail.wait_for("two")
        signal(source, request("three", chunk_rows=100, rows_per_second=2_000))
        wait_until(lambda: tail.status("three") == "running", "it runs")
        source.run("ALTER TABLE log ADD COLUMN extra int DEFAULT 5", "INSERT INTO log VALUES (5, 'y', null, 6)")
        source.run("TRUNCATE log", "INSERT INTO log VALUES (6, 'z', null, 7)")
        tail.wait_for("three")
        caught_up(source)
    assert rows_of(tail.events()) == truth(source) and sum(truth(source).values()) == 1
    assert "Traceback" not in log.read_text()


def copied(source: Database, record: Callable[[HeldChanges], None]) -> int:
    """Copy the table as the reader does; return how many rows it has."""
    checked: Any = SimpleNamespace(version=18, slot=SimpleNamespace(plugin="pgoutput"), has_timelines=True)
    target = Target("source", source.dsn)
    with connection.open(target) as rows, connection.open(target) as current:
        rows.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        table = chunk_table.describe(rows, ("public", "log"), ["p"], Method.slot)
        found = table_copy.read(
            rows, current, target, checked, table, None, most_rows=100, record=record, is_stopped=lambda: False
        )
        return sum(len(one.lines) for one in found)


def test_a_transaction_that_waits_for_the_table_does_not_wait_for_ever(source: Database) -> None:
    """The slot waits for the transaction: if the table were locked already, each would wait for the other."""
    thread = threading.Thread(
        target=lambda: source.run("BEGIN; SELECT pg_current_xact_id(); LOCK TABLE log; INSERT INTO log VALUES (1); END")
    )

    def record(held: HeldChanges) -> None:
        thread.start()
        wait_until(
            lambda: (
                source.value("SELECT count(*) FROM log") == 2_001
                or source.value("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'log'::regclass")
            ),
            "the transaction has ended, or waits",
        )

    assert copied(source, record) == 2_001
    thread.join()


@pytest.mark.parametrize("statement", ["TRUNCATE log", "VACUUM FULL log", "ALTER TABLE log DROP COLUMN x"])
def test_a_table_that_is_altered_before_it_is_locked_is_described_again(
    source: Database, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    def lock_statement(table: ChunkTable) -> Any:
        source.run(statement)
        return before(table)

    before = chunks.lock_statement
    monkeypatch.setattr(chunks, "lock_statement", lock_statement)
    with pytest.raises(Altered):
        copied(source, lambda _: None)
