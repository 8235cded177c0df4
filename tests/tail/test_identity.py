"""``(timeline, commit_lsn, seq)`` is unique for every line, ordered, and the same when a change comes again."""

from __future__ import annotations

import json
import random
import re
import signal
import struct
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.lsn import Lsn
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.tail.decoders.pgoutput import PgoutputDecoder
from rdsrepl.tail.formats.json_format import JsonFormat
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.model import TableFilter
from rdsrepl.tail.timelines import Timelines
from tests.fixtures.failover import failover_pair
from tests.fixtures.program import read_json_lines
from tests.fixtures.waiting import wait_until
from tests.workloads import identity_kills

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database, Servers
    from tests.fixtures.program import Program

Identity = tuple[int, int, int]


def identity(event: dict[str, Any]) -> Identity:
    """Return the identity of a line as numbers."""
    return event["timeline"], int(Lsn.parse(event["commit_lsn"])), event["seq"]


def check(events: Sequence[dict[str, Any]]) -> None:
    """Check that every line has its own identity, and that the lines are in its order."""
    for one, two in pairwise(events):
        assert identity(one) < identity(two), (one, two)


@pytest.fixture
def stream(db18: Database) -> Iterator[Database]:
    """A table, its publication, an ordinary slot, and a slot with two-phase decoding."""
    db18.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text)",
        "CREATE TABLE u (id bigint PRIMARY KEY)",
        "CREATE PUBLICATION p FOR TABLE t, u",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "SELECT pg_create_logical_replication_slot('tp', 'pgoutput', false, true)",
    )
    yield db18
    for (gid,) in db18.run("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
        db18.run(f"ROLLBACK PREPARED '{gid}'")


def hostile(database: Database) -> None:
    """Write records that end exactly where the next one starts, and whose identity is one of the two positions."""
    name = database.name
    with closing(database.connect()) as conn:
        conn.execute("BEGIN")
        conn.execute("INSERT INTO t VALUES (1)")
        conn.execute("SELECT pg_logical_emit_message(true, 'in', 'transactional')")
        conn.execute("INSERT INTO t VALUES (2)")
        # The message's record ends where the commit's starts.
        conn.execute("SELECT pg_logical_emit_message(false, 'at once', 'in a transaction')")
        conn.execute("COMMIT")
        conn.execute("SELECT pg_logical_emit_message(false, 'alone', 'x')")
        conn.execute("SELECT pg_logical_emit_message(false, 'alone', 'x')")
        conn.execute("TRUNCATE t, u")
        for gid in ("a", "b", "c"):
            conn.execute("BEGIN")
            conn.execute(f"INSERT INTO u VALUES ({ord(gid)})")
            conn.execute("SELECT pg_logical_emit_message(false, 'at once', 'before PREPARE')")
            conn.execute(f"PREPARE TRANSACTION '{gid}_{name}'")
        # Consecutive records: the end of each is the start of the next.
        conn.execute(f"ROLLBACK PREPARED 'a_{name}'")
        conn.execute("SELECT pg_logical_emit_message(false, 'between', '')")
        conn.execute(f"COMMIT PREPARED 'b_{name}'")
        conn.execute(f"ROLLBACK PREPARED 'c_{name}'")
        conn.execute("BEGIN")
        conn.execute("INSERT INTO t VALUES (3)")
        conn.execute("SELECT pg_logical_emit_message(false, 'at once', 'of what is never committed')")
        conn.execute("ROLLBACK")


def test_each_line_has_its_own_identity_in_the_order_of_the_stream(stream: Database, rdsrepl: Program) -> None:
    hostile(stream)
    stream.run("CREATE TABLE flushed ()")  # a message that is not transactional is not flushed immediately
    for slot in ("g", "tp"):
        words = ("slot", "tail", slot, "--until-now", "--no-confirm", "--format", "json")
        first = rdsrepl(*words, dsn=stream.dsn)
        assert first.code == 0, first.err
        check(first.lines)
        assert {event["op"] for event in first.lines} >= {"c", "t", "m"}
        assert {event["timeline"] for event in first.lines} == {1}
        if slot == "tp":
            assert rdsrepl(*words, dsn=stream.dsn).out == first.out
            assert [event["op"] for event in first.lines if event["op"].endswith("prepared")] == [
                "rollback_prepared",
                "commit_prepared",
                "rollback_prepared",
            ]
    events = rdsrepl("slot", "tail", "g", "--until-now", "--no-confirm", "-f", "debezium", dsn=stream.dsn).lines
    keys = [(e["source"]["timeline"], e["source"]["commit_lsn"], e["source"]["seq"]) for e in events]
    assert keys == sorted(set(keys))
    assert all(type(part) is int for key in keys for part in key)


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_wal2json_slot_has_identities(db15: Database, rdsrepl: Program, version: str) -> None:
    db15.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text)",
        "CREATE TABLE u (id bigint PRIMARY KEY)",
        "SELECT pg_create_logical_replication_slot('w', 'wal2json')",
    )
    hostile(db15)
    db15.run("CREATE TABLE flushed ()")  # see above
    option = f"format-version={version}"
    words = ("slot", "tail", "w", "--until-now", "--no-confirm", "--format", "json", "--plugin-option", option)
    result = rdsrepl(*words, dsn=db15.dsn)
    assert result.code == 0, result.err
    check(result.lines)
    assert len([event for event in result.lines if event["op"] == "m"]) >= 4
    if version == "1":
        return
    # Aurora's storage has no timelines, so the server's timeline is not used.
    db15.run("CREATE FUNCTION aurora_version() RETURNS text LANGUAGE sql AS $$SELECT '15.4'$$")
    on_aurora = rdsrepl(*words, dsn=db15.dsn).lines
    assert on_aurora == [{**event, "timeline": 0} for event in result.lines]


def _wrapped(start: int, payload: bytes) -> bytes:
    return b"w" + struct.pack(">QQQ", start, start, 0) + payload


def _message(transactional: bool, lsn: int) -> bytes:
    return b"M" + struct.pack(">BQ", transactional, lsn) + b"p\0" + struct.pack(">I", 1) + b"x"


class Wal:
    """Consecutive WAL records, and pgoutput's messages for them."""

    def __init__(self, rng: random.Random, left_at: int | None) -> None:
        self._rng = rng
        self._left_at = left_at
        self.end = 0x1000
        self.switch = 0
        self.records = 0
        self.messages: list[bytes] = []
        self.timelines: list[int] = []

    def write(self, kind: str) -> None:
        start, self.end = self.end, self.end + 8 * self._rng.randint(3, 40)
        if self.records == self._left_at:
            self.switch = start  # the first record of the new timeline
        self.records += 1
        end, gid, rows = self.end, b"g\0", self._rng.randint(1, 3)
        row = [_message(True, start - 8)] * rows
        if kind == "message":
            told = [_message(False, end)]
        elif kind == "commit":
            told = [b"B" + struct.pack(">QqI", start, 0, 7), *row, b"C" + struct.pack(">BQQq", 0, start, end, 0)]
        elif kind == "prepare":
            begin = b"b" + struct.pack(">QQqI", start, end, 0, 7) + gid
            told = [begin, *row, b"P" + struct.pack(">BQQqI", 0, start, end, 0, 7) + gid]
        elif kind == "commit_prepared":
            told = [b"K" + struct.pack(">BQQqI", 0, start, end, 0, 7) + gid]
        elif kind == "rollback_prepared":
            told = [b"r" + struct.pack(">BQQqqI", 0, start - 8, end, 0, 0, 7) + gid]
        else:
            told = []  # other databases, tables that are not published
        self.messages += [_wrapped(end, payload) for payload in told]
        lines = rows if kind in ("commit", "prepare") else len(told)
        self.timelines += [2 if self.switch else 1] * lines


KINDS = ("message", "commit", "prepare", "commit_prepared", "rollback_prepared", "other")


@given(st.lists(st.sampled_from(KINDS), max_size=40), st.integers(0, 40), st.randoms(use_true_random=False))
def test_identities_of_any_stream(kinds: list[str], left_at: int, rng: random.Random) -> None:
    """Unique, ordered, with the timeline on which the record was written; the same from any point of the stream."""
    wal = Wal(rng, left_at)
    for kind in kinds:
        wal.write(kind)
    history = Timelines(2, ((1, wal.switch),)) if wal.switch else Timelines(1)

    def decoded(messages: list[bytes]) -> list[dict[str, Any]]:
        catalog = Catalog(None)  # type: ignore[arg-type]
        decoder = PgoutputDecoder(JsonFormat(catalog), TableFilter(), catalog)
        decoder.reset(history)
        lines: list[dict[str, Any]] = []
        while messages:
            size = rng.randint(1, len(messages))
            batch = decoder.feed(messages[:size])
            lines += [json.loads(line) for line in batch.lines]
            messages = messages[size:]
        return lines

    events = decoded(wal.messages)
    check(events)
    assert [event["timeline"] for event in events] == wal.timelines
    begins = [n for n, message in enumerate(wal.messages) if message[25] in b"Bb"]
    if begins:
        again = decoded(wal.messages[rng.choice(begins) :])
        assert again == events[len(events) - len(again) :]


def test_a_history_file() -> None:
    text = '1\t0/30000A0\tno recovery target specified\n\n  # a remark\n2\tA/0\tat restore point "x"\nnonsense\n'
    history = Timelines.parse(3, text)
    assert history == Timelines(3, ((1, 0x30000A0), (2, 0xA00000000)))
    assert [history.of_start(lsn) for lsn in (1, 0x300009F, 0x30000A0, 0xA00000000)] == [1, 1, 2, 3]
    assert [history.of_end(lsn) for lsn in (0x30000A0, 0x30000A1, 0xA00000000, 0xA00000001)] == [1, 2, 2, 3]
    assert history.begins_at == 0xA00000000
    assert Timelines(1).common_end(history) == 0x30000A0
    assert history.common_end(Timelines(2, ((1, 0x30000A0),))) == 0xA00000000
    assert history.common_end(Timelines(2, ((1, 0x3000000),))) == 0x3000000
    assert Timelines(5).common_end(history) is None


def _slot_on_standby(standby: PostgresServer, primary: PostgresServer) -> None:
    """Create slot ``sb`` on the standby, which waits until the primary logs the running transactions."""
    with ThreadPoolExecutor(1) as pool, closing(standby.connect()) as conn, closing(primary.connect()) as source:
        made = pool.submit(conn.execute, "SELECT pg_create_logical_replication_slot('sb', 'pgoutput')")
        wait_until(lambda: source.execute("SELECT pg_log_standby_snapshot()") and made.done(), "the slot is made")
        made.result()


def test_identities_and_messages_over_a_failover(servers: Servers, rdsrepl: Program, tmp_path: Path) -> None:
    """The standby lacks the last changes and assigns their positions to others, which are not taken for repeats."""
    out, other = tmp_path / "out.jsonl", tmp_path / "other.jsonl"

    def write(server: PostgresServer, *values: str) -> None:
        with closing(server.connect()) as conn:
            for value in values:
                conn.execute("INSERT INTO public.t (v) VALUES (%s)", (value,))

    def events() -> list[dict[str, Any]]:
        return read_json_lines(out)

    def arrived(value: str) -> bool:
        return any(event["after"]["v"] == value for event in events())

    with failover_pair(servers, rdsrepl, tmp_path, "id bigserial PRIMARY KEY, v text") as pair:
        writer, reader = pair.primary, pair.standby
        pair.wait_until_synced("SELECT pg_replication_slot_advance('fo', pg_current_wal_lsn())")
        _slot_on_standby(reader, writer)
        with out.open("wb") as file, other.open("wb") as second:
            # Reads from the standby, and is not interrupted by the promotion.
            words = ("slot", "tail", "sb", "-f", "json")
            beside = rdsrepl.start(*words, dsn=reader.dsn(), stdout=second, stderr=subprocess.PIPE)
            # It confirms nothing, so every change comes again.
            words = ("slot", "tail", "fo", "--no-confirm", "-f", "json")
            tail = rdsrepl.start(*words, dsn=pair.dsn, stdout=file, stderr=subprocess.PIPE)
            write(writer, "both 1", "both 2", "both 3")
            wait_until(lambda: arrived("both 3") and "both 3" in other.read_text(), "the changes before")
            with closing(reader.connect()) as conn, closing(writer.connect()) as source:
                end = source.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
                wait_until(
                    lambda: conn.execute("SELECT pg_last_wal_replay_lsn() >= %s", end).fetchone() == (True,), "it"
                )
                conn.execute("ALTER SYSTEM SET primary_conninfo = ''")
                conn.execute("SELECT pg_reload_conf()")
                gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)"
                wait_until(lambda: conn.execute(gone).fetchone() == (True,), "the standby receives no more")
            write(writer, "lost 1", "lost 2", "lost 3")
            wait_until(lambda: arrived("lost 3"), "the changes that only the old primary has")
            writer.stop("immediate")
            reader.promote()
            write(reader, "new 1", "new 2", "new 3", "new 4")
            wait_until(lambda: arrived("new 4") and "new 4" in other.read_text(), "the changes after")
            for process in (beside, tail):
                process.send_signal(signal.SIGINT)
            _, told = beside.communicate(timeout=120)
            _, err = tail.communicate(timeout=120)
        text = err.decode()
        assert tail.returncode == 0, text
        fork = min(int(Lsn.parse(event["commit_lsn"])) for event in events() if event["after"]["v"] == "new 1")
        begins = re.search(r"on timeline 2 now, which begins at ([0-9A-F/]+)", text)
        assert begins is not None, text
        assert int(Lsn.parse(begins[1])) <= fork
        assert f"3 changes delivered of timeline 1 after {begins[1]} do not exist on this server" in text
        assert "the slot's position: changes after that may come again" in text
        assert b"timeline 2 now" in told
        on_standby = {event["after"]["v"]: event["timeline"] for event in read_json_lines(other)}
        assert on_standby == {f"both {n}": 1 for n in (1, 2, 3)} | {f"new {n}": 2 for n in (1, 2, 3, 4)}
        seen: dict[Identity, str] = {}
        for event in events():
            assert event["timeline"] == (2 if event["after"]["v"].startswith("new") else 1)
            assert seen.setdefault(identity(event), event["after"]["v"]) == event["after"]["v"]
        assert len(events()) > len(seen)  # there were repeats, under the identity that they had on the old primary
        assert sorted(seen.values()) == sorted(
            [f"both {n}" for n in (1, 2, 3)] + [f"lost {n}" for n in (1, 2, 3)] + [f"new {n}" for n in (1, 2, 3, 4)]
        )
        (reader.data_dir / "pg_wal" / "00000002.history").unlink()
        without = rdsrepl("slot", "tail", "fo", "--until-now", "--no-confirm", "-f", "json", dsn=reader.dsn())
        assert "could not read the history of timeline 2" in without.err
        assert {event["timeline"] for event in without.lines} == {2}


def test_a_replay_with_kills_that_drops_by_the_identity(db18: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """The long version is in ``make bench``."""
    db18.run(*identity_kills.SETUP)
    kept, _, messages = identity_kills.stream_with_kills(
        db18.dsn, tmp_path, partial(rdsrepl.start, dsn=db18.dsn), kills=1
    )
    assert kept > messages > 0
