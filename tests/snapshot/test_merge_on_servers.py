"""Changes at chosen moments of a snapshot, on a server whose transaction ids wrap around in the middle.

A chunk's statement stops at a row: the condition of the request waits there for a lock that the test has. So its
snapshot is taken, its marker is not written, and what the test commits now is what the chunk does not see.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from rdsrepl.postgres.commit_visibility import wait_until_visible
from rdsrepl.sandbox.servers import processes
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.missing import missing
from tests.fixtures.postgres import Database, find_binaries
from tests.fixtures.waiting import wait_until
from tests.workloads import stream_consumer
from tests.workloads.changing_rows import SynchronousStandby
from tests.workloads.snapshot_tail import SnapshotTail
from tests.workloads.stream_consumer import Consumer, compare, source_rows

TABLES = ("public.gate", "public.items", "public.longs")
_LOCK = 4294966
# At this row the reader waits for the test.
_AT = "CASE WHEN id::text = '{}' THEN pg_advisory_xact_lock_shared(" + str(_LOCK) + ")::text = '' ELSE true END"
_WAITING = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {_LOCK} AND NOT granted"
_FIRST_XID = 4_294_966_000
_CREATE = (
    "CREATE TABLE gate (id int PRIMARY KEY)",
    "CREATE TABLE items (id int PRIMARY KEY, a text, big text)",
    "CREATE TABLE longs (id text PRIMARY KEY, a text, big text)",
    "ALTER TABLE items ALTER big SET STORAGE EXTERNAL",
    "ALTER TABLE longs ALTER big SET STORAGE EXTERNAL, ALTER id SET STORAGE EXTERNAL",
    "INSERT INTO gate VALUES (1)",
    "INSERT INTO items SELECT i, 'first', repeat(md5(i::text), 90) FROM generate_series(1, 30) i",
    "INSERT INTO longs SELECT repeat(md5(i::text), 75), 'first', repeat(md5(i::text), 90) FROM generate_series(1, 5) i",
    "CREATE PUBLICATION items FOR ALL TABLES",
)
_BURN = "DO $$ BEGIN FOR i IN 1..1300 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"


@pytest.fixture(scope="module")
def wrapping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server some transactions before the id of 32 bits begins again."""
    programs = find_binaries(15)
    if programs is None:
        missing("PostgreSQL 15", "make postgres")
    server = PostgresServer(tmp_path_factory.mktemp("wrapping") / "pg", programs, settings={"autovacuum": "off"})
    server.initdb()
    server.start()
    with closing(server.connect()) as conn:
        conn.execute("VACUUM FREEZE")  # rows of later transactions would be in the future
    server.stop()
    # The transaction log has 32,768 transactions in each page, and 32 pages in each file.
    with server.open_data_dirs() as (directory,):
        (directory / "pg_xact" / f"{_FIRST_XID // 32_768 // 32:04X}").write_bytes(bytes(32 * 8192))
    with programs.launcher.open_directory(server.data_dir) as (place, inherited):
        # Without an oldest id before it, the server removes rows that open snapshots need.
        words = [programs.program("pg_resetwal"), "--next-transaction-id", str(_FIRST_XID)]
        words += ["--oldest-transaction-id", str(_FIRST_XID - 50_000), str(place)]
        processes.run(programs.launcher, words, timeout_seconds=60, keep_open=inherited)
    server.start()
    yield server
    server.stop("immediate")
    server.remove()


@pytest.fixture
def source(wrapping: PostgresServer, make_database: Any) -> Database:
    made: Database = make_database(wrapping)
    made.run(*_CREATE)
    return made


@contextmanager
def streaming(source: Database, directory: Path) -> Iterator[SnapshotTail]:
    create = ("--create", "pgoutput", "--allow-snapshot-conditions")
    tail = SnapshotTail(source, source.name, directory / "tail", *create, targets={})
    process = tail.start()
    query = f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{source.name}' AND active"
    try:
        wait_until(lambda: source.value(query), "the slot is streamed")
        yield tail
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def stopped_at(source: Database, tail: SnapshotTail, row: int) -> Iterator[None]:
    """Start the snapshot, wait until its reader is at a row, and let it go on at the end."""
    with closing(source.connect()) as conn:
        conn.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        tail.request("one", 10, tables=TABLES, where=_AT.format(row))
        wait_until(lambda: source.value(_WAITING), "the reader is at the row")
        yield


def finish(source: Database, tail: SnapshotTail) -> list[dict[str, Any]]:
    """Wait for the end, and check that a new consumer has the source's rows; return the lines."""
    tail.wait_until_done("one")
    tail.wait_until_confirmed()
    tail.stop()
    events = stream_consumer.read(tail.out)
    consumer = Consumer().fold(events)
    for table in ("items", "longs"):
        truth = source_rows(source, table, ("id",))
        assert not compare(consumer.tables[table], truth), (table, compare(consumer.tables[table], truth))
    assert not consumer.out_of_order
    return events


def copied(events: list[dict[str, Any]], table: str = "items") -> list[Any]:
    return [event["after"]["id"] for event in events if event["op"] == "r" and event["table"] == table]


def test_changes_that_a_chunk_does_not_see(source: Database, tmp_path: Path) -> None:
    """The first chunk is written, the second one stops at its first row; in the middle the ids wrap around."""
    long_key = source.value("SELECT min(id) FROM longs")
    with streaming(source, tmp_path) as tail:
        with stopped_at(source, tail, 11):
            wait_until(lambda: len(copied(stream_consumer.read(tail.out))) == 10, "the first chunk is written")
            source.run(
                "UPDATE items SET a = 'conflict' WHERE id = 12",
                "UPDATE items SET a = 'written before' WHERE id = 5",
                "DELETE FROM items WHERE id = 13",
                "DELETE FROM items WHERE id = 14",
            )
            with closing(source.connect()) as conn:
                conn.execute(_BURN)
            source.run(
                "INSERT INTO items VALUES (14, 'again', repeat('again', 900))",
                "UPDATE items SET id = 0, a = 'to the part that was read' WHERE id = 25",
                "UPDATE items SET id = 115, a = 'to the part that follows' WHERE id = 15",
                "UPDATE items SET id = -1, big = 'whole' WHERE id = 16",
                "UPDATE items SET a = 'after the wraparound' WHERE id IN (17, 26)",
                f"UPDATE longs SET a = 'long key' WHERE id = '{long_key}'",
            )
            now = int(source.value("SELECT pg_current_xact_id()::text::bigint"))
            assert now > 1 << 32
        events = finish(source, tail)
    rows = {event["after"]["id"]: event for event in events if event["op"] == "r" and event["table"] == "items"}
    assert rows[12]["after"]["a"] == "conflict" and len(rows[12]["after"]["big"]) == 90 * 32
    assert rows[17]["after"]["a"] == "after the wraparound"
    assert len(rows[0]["after"]["big"]) == 90 * 32, "the row is read again by its new key"
    assert not rows.keys() & {13, 14, 15, 16}, "the stream wrote them whole, or they are no more"
    assert (rows[11]["snapshot"]["chunk"], rows[12]["snapshot"]["chunk"]) == (3, 3)
    assert [event["xid"] < 10_000 for event in events if event["op"] == "u"].count(False) == 2, "before the wraparound"


def test_commits_that_become_visible_late(source: Database, tmp_path: Path) -> None:
    """Synchronous replication: a commit is in the stream, and invisible until the standby acknowledges it."""
    standby = SynchronousStandby(source.server, tmp_path / "wal")
    writers: list[threading.Thread] = []

    def commit(statement: str, tail: SnapshotTail, text: str) -> None:
        """Commit and wait until the stream has it; the commit waits for the standby."""
        thread = threading.Thread(target=source.run, args=(statement,))
        thread.start()
        writers.append(thread)
        wait_until(lambda: text.encode() in tail.out.read_bytes(), f"the stream has {text}")

    try:
        with streaming(source, tmp_path) as tail:
            standby.hold()
            commit("UPDATE items SET a = 'before' WHERE id = 3", tail, "before")
            with closing(source.connect()) as conn:
                conn.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
                threading.Thread(
                    target=tail.request, args=("one", 10), kwargs={"tables": TABLES, "where": _AT.format(1)}
                ).start()

                def waits_for() -> Any:
                    assert not source.value(_WAITING), "it reads rows"
                    return (tail.snapshot("one") or {}).get("waits_for")

                assert "that no synchronous standby has acknowledged: PID " in wait_until(waits_for, "it says so")
                _require_the_same_of_a_role_without_rights(source)
                standby.acknowledge()
                wait_until(lambda: source.value(_WAITING), "the reader is at the first table")
                assert tail.snapshot("one")["waits_for"] is None  # type: ignore[index]
                standby.hold()
                commit("UPDATE items SET a = 'late' WHERE id = 4", tail, "late")
                conn.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))
                wait_until(lambda: len(copied(stream_consumer.read(tail.out))) >= 10, "the first rows are written")
                assert conn.execute("SELECT a FROM items WHERE id = 4").fetchone() == ("first",), "it is not visible"
                standby.acknowledge()
            events = finish(source, tail)
    finally:
        standby.acknowledge()
        for thread in writers:
            thread.join()
        standby.close()
    rows = {
        event["after"]["id"]: event["after"] for event in events if event["op"] == "r" and event["table"] == "items"
    }
    assert (rows[3]["a"], rows[4]["a"]) == ("before", "late")
    assert len(rows[4]["big"]) == 90 * 32


def _require_the_same_of_a_role_without_rights(source: Database) -> None:
    """It does not see which transactions wait for the standby: none may be left that it found in progress."""
    blocked: list[str] = []
    with closing(source.connect()) as conn:
        conn.execute("SET synchronous_commit = local")
        conn.execute("CREATE ROLE sees_nothing")
        conn.execute("SET ROLE sees_nothing")
        assert not wait_until_visible(conn, lambda: bool(blocked), lambda one: blocked.append(one.what))
    assert "that may have committed" in blocked[0] and "PID " in blocked[0]
