"""``(timeline, commit_lsn, seq)`` is unique for every line, ordered, and the same when a change comes again."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.lsn import Lsn
from rdsrepl.tail.catalog import Catalog
from rdsrepl.tail.changes import TableFilter
from rdsrepl.tail.formats import JsonFormat
from rdsrepl.tail.pgoutput import PgoutputDecoder
from rdsrepl.tail.timelines import Timelines

if TYPE_CHECKING:
    from tests.conftest import Database, Program

Identity = tuple[int, int, int]


def identity(event: dict[str, Any]) -> Identity:
    """The identity of a line, as numbers that sort."""
    return event["timeline"], int(Lsn.parse(event["commit_lsn"])), event["seq"]


def check(events: Sequence[dict[str, Any]]) -> None:
    """Every line has an identity of its own, and the lines come in its order."""
    for one, two in pairwise(events):
        assert identity(one) < identity(two), (one, two)


@pytest.fixture
def stream(database: Database) -> Iterator[Database]:
    """A table, its publication, an ordinary slot and one that decodes prepared transactions when they are prepared."""
    database.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text)",
        "CREATE TABLE u (id bigint PRIMARY KEY)",
        "CREATE PUBLICATION p FOR TABLE t, u",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "SELECT pg_create_logical_replication_slot('tp', 'pgoutput', false, true)",
    )
    yield database
    for (gid,) in database.run("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
        database.run(f"ROLLBACK PREPARED '{gid}'")


def hostile(database: Database) -> None:
    """Write records that end exactly where the next one begins, and are identified by either of the two."""
    name = database.name
    with closing(database.connect()) as conn:
        conn.execute("BEGIN")
        conn.execute("INSERT INTO t VALUES (1)")
        conn.execute("SELECT pg_logical_emit_message(true, 'in', 'transactional')")
        conn.execute("INSERT INTO t VALUES (2)")
        # The message's record ends where the commit's begins.
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
        # One record after the other: the end of each is the beginning of the next.
        conn.execute(f"ROLLBACK PREPARED 'a_{name}'")
        conn.execute("SELECT pg_logical_emit_message(false, 'between', '')")
        conn.execute(f"COMMIT PREPARED 'b_{name}'")
        conn.execute(f"ROLLBACK PREPARED 'c_{name}'")
        conn.execute("BEGIN")
        conn.execute("INSERT INTO t VALUES (3)")
        conn.execute("SELECT pg_logical_emit_message(false, 'at once', 'of what is never committed')")
        conn.execute("ROLLBACK")


def test_each_line_has_an_identity_of_its_own_in_the_order_of_the_stream(stream: Database, rdsrepl: Program) -> None:
    hostile(stream)
    for slot in ("g", "tp"):
        words = ("slot", "tail", slot, "--until-now", "--no-confirm", "--format", "json")
        first, again = (rdsrepl(*words, dsn=stream.dsn) for _ in range(2))
        assert first.code == 0, first.err
        check(first.lines)
        assert {event["op"] for event in first.lines} >= {"c", "t", "m"}
        assert {event["timeline"] for event in first.lines} == {1}
        assert again.out == first.out
        if slot == "tp":
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
def test_a_wal2json_slot_has_identities_too(db15: Database, rdsrepl: Program, version: str) -> None:
    db15.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text)",
        "CREATE TABLE u (id bigint PRIMARY KEY)",
        "SELECT pg_create_logical_replication_slot('w', 'wal2json')",
    )
    hostile(db15)
    option = f"format-version={version}"
    words = ("slot", "tail", "w", "--until-now", "--no-confirm", "--format", "json", "--plugin-option", option)
    result = rdsrepl(*words, dsn=db15.dsn)
    assert result.code == 0, result.err
    check(result.lines)
    assert len([event for event in result.lines if event["op"] == "m"]) >= 4


def _wrapped(start: int, payload: bytes) -> bytes:
    return b"w" + struct.pack(">QQQ", start, start, 0) + payload


def _message(transactional: bool, lsn: int) -> bytes:
    return b"M" + struct.pack(">BQ", transactional, lsn) + b"p\0" + struct.pack(">I", 1) + b"x"


class Wal:
    """Records, one right behind the other, and the messages in which pgoutput tells of them."""

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
            told = []  # of other databases, of tables that are not published
        self.messages += [_wrapped(end, payload) for payload in told]
        lines = rows if kind in ("commit", "prepare") else len(told)
        self.timelines += [2 if self.switch else 1] * lines


KINDS = ("message", "commit", "prepare", "commit_prepared", "rollback_prepared", "other")


@given(st.lists(st.sampled_from(KINDS), max_size=40), st.integers(0, 40), st.randoms(use_true_random=False))
def test_identities_of_any_stream(kinds: list[str], left_at: int, rng: random.Random) -> None:
    """Unique, ordered, of the timeline on which the record was written; the same from anywhere the stream goes on."""
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
