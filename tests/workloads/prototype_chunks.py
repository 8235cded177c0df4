"""Chunks that are merged with a stream by rules of other products, and by ours, from one and the same recording.

``Prototype`` reads chunks of ``items`` while a tail writes a file with the changes; its markers are messages in that
file. ``evaluate`` then merges the chunks with the file by a rule, and returns what a new consumer has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdsrepl.lsn import Lsn
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.snapshot.recorded_changes import Key, RecordedChanges, Row
from rdsrepl.snapshot.visibility import ServerSnapshot
from rdsrepl.tail.model import Column, Relation, Transaction
from tests.fixtures.postgres import Database
from tests.fixtures.waiting import wait_until
from tests.workloads.stream_consumer import Consumer, Event, RowKey

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

PREFIX = "prototype"
CHUNK = 100
_PAUSE_SECONDS = 0.05
_COLUMNS = ("id", "a", "big")
_RELATION = Relation(1, "public", "items", "d", tuple(Column(name, 25, -1, name == "id") for name in _COLUMNS))
_ROWS = "SELECT id, a, big FROM items WHERE id > %s ORDER BY id LIMIT %s"


@dataclass(frozen=True)
class Rule:
    """How chunks are merged with a stream; the defaults are ours.

    Attributes:
        name: of the rule.
        merge: ``apply`` recorded changes; ``drop`` the rows that changed between two markers; ``none``.
        from_standby: take the chunks that a standby's snapshot gave.
        by_position: forget what was replayed by position; otherwise by the server's snapshot.
    """

    name: str
    merge: str = "apply"
    from_standby: bool = False
    by_position: bool = False


ANCHORED = Rule("rows anchored at pg_current_wal_lsn()", merge="none")
DROPS = Rule("drop on conflict (DBLog, Debezium, Sequin)", merge="drop")
BY_SNAPSHOT = Rule("from a standby, by its pg_current_snapshot()", from_standby=True)


@dataclass
class Chunk:
    """A chunk as it was read: ``anchor`` is the end of the primary's WAL then."""

    rows: dict[Key, Row]
    snapshot: ServerSnapshot
    anchor: int
    replayed: int


class Prototype:
    """Reads all chunks of ``items``, from the primary or a standby."""

    def __init__(self, source: Database, standby: PostgresServer | None, name: str) -> None:
        self.chunks: dict[int, Chunk] = {}
        self.name = name
        self._source = source
        self._server = Database(standby, source.name) if standby is not None else source
        self._is_standby = standby is not None

    def read(self) -> None:
        """Read the table, each chunk between two markers."""
        from psycopg import IsolationLevel

        with closing(self._source.connect()) as primary, closing(self._server.connect()) as conn:
            primary.execute("SET synchronous_commit = local")
            conn.isolation_level = IsolationLevel.REPEATABLE_READ
            conn.read_only = True
            self._mark(primary, 0, "start")
            self._wait_until_visible(primary, conn)
            last, number = 0, 0
            while True:
                number += 1
                self._mark(primary, number, "low")
                chunk = self._chunk(primary, conn, last)
                self.chunks[number] = chunk
                self._mark(primary, number, "high")
                if not chunk.rows:
                    return
                last = max(int(key[0]) for key in chunk.rows)
                if self._is_standby:
                    time.sleep(_PAUSE_SECONDS)  # otherwise one pause of the replay has all chunks

    def _mark(self, primary: Connection, number: int, what: str) -> None:
        content = json.dumps({"name": self.name, "chunk": number, "what": what})
        primary.execute("SELECT pg_logical_emit_message(true, %s, %s)", (PREFIX, content))

    def _wait_until_visible(self, primary: Connection, conn: Connection) -> None:
        """Wait as ours does; without it each rule would lose what the first chunk does not see."""
        if self._is_standby:
            row = primary.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
            assert row is not None
            wait_until(
                lambda: conn.execute("SELECT pg_last_wal_replay_lsn() >= %s", row).fetchone() == (True,), "replay"
            )
            return
        wait_until(
            lambda: not primary.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'").fetchone(),
            "no commit waits",
        )

    def _chunk(self, primary: Connection, conn: Connection, last: int) -> Chunk:
        replayed = "0/0"
        if self._is_standby:
            replayed = _value(conn, "SELECT pg_last_wal_replay_lsn()::text")
        with conn.transaction():
            snapshot = _value(conn, "SELECT pg_current_snapshot()::text")
            anchor = _value(primary, "SELECT pg_current_wal_lsn()::text")
            rows = conn.execute(_ROWS, (last, CHUNK)).fetchall()
        texts = [tuple(map(json.dumps, row)) for row in rows]
        return Chunk(
            {(row[0],): row for row in texts}, ServerSnapshot.parse(snapshot), Lsn.parse(anchor), Lsn.parse(replayed)
        )


def _value(conn: Connection, query: Any) -> str:
    row = conn.execute(query).fetchone()
    assert row is not None
    return str(row[0])


def evaluate(rule: Rule, prototype: Prototype, events: Sequence[Event]) -> dict[RowKey, Event]:
    """Merge the chunks of a prototype with the lines of a tail; return the rows that a new consumer then has."""
    merge = _Merge(rule, prototype)
    for event in events:
        merge.take(event)
    return Consumer().fold(merge.lines).tables["items"]


class _Merge:
    def __init__(self, rule: Rule, prototype: Prototype) -> None:
        self.lines: list[Event] = []
        self._rule = rule
        self._name = prototype.name
        self._chunks = prototype.chunks
        self._anchored = sorted(prototype.chunks.items()) if rule.merge == "none" else []
        self._recorded = RecordedChanges()
        self._is_recording = False
        self._open: int | None = None
        self._touched: set[Key] = set()

    def take(self, event: Event) -> None:
        position = Lsn.parse(event["commit_lsn"])
        while self._anchored and self._anchored[0][1].anchor <= position:
            number, chunk = self._anchored.pop(0)
            self._write(number, chunk.rows, event)
        if event["op"] == "m" and event["prefix"] == PREFIX:
            self._marker(json.loads(event["content"]), event)
        elif event["table"] == "items" and event["op"] != "r":
            if self._is_recording and self._rule.merge != "none":
                self._record(event)
            self.lines.append(event)

    def _marker(self, content: dict[str, Any], event: Event) -> None:
        if content["name"] != self._name:
            return
        self._is_recording = True
        number = content["chunk"]
        if content["what"] == "low":
            self._open, self._touched = number, set()
        if content["what"] != "high" or self._rule.merge == "none":
            return
        chunk = self._chunks[number]
        rows = dict(chunk.rows)
        if self._rule.merge == "drop":
            self._open = None
            for key in self._touched:
                rows.pop(key, None)
        else:
            if self._rule.by_position:
                self._recorded.forget_before(chunk.replayed)
            else:
                self._recorded.forget_seen(chunk.snapshot)
            self._recorded.apply(_RELATION, rows)
        self._write(number, rows, event)

    def _record(self, event: Event) -> None:
        tx = Transaction.at(event["xid"], event["timeline"], event["commit_lsn"], None)
        key = (json.dumps(event["key"]["id"]),)
        old = (json.dumps(event["before"]["id"]),) if event["op"] == "u" and event["before"] else None
        if self._open is not None:
            self._touched |= {key, old or key}
        if event["op"] == "d":
            self._recorded.delete(_RELATION, tx, key)
            return
        after = event["after"]
        row = tuple(json.dumps(after[name]) if name in after else None for name in _COLUMNS)
        if event["op"] == "c":
            self._recorded.insert(_RELATION, tx, key, row)
        else:
            self._recorded.update(_RELATION, tx, key, old, row)

    def _write(self, number: int, rows: dict[Key, Row], event: Event) -> None:
        for seq, row in enumerate(rows.values(), 1):
            after = {name: json.loads(value or "null") for name, value in zip(_COLUMNS, row, strict=True)}
            self.lines.append(
                {
                    **event,
                    "op": "r",
                    "table": "items",
                    "key": {"id": after["id"]},
                    "before": None,
                    "after": after,
                    "seq": 1_000_000 * number + seq,
                }
            )
