"""A replay with kills that drops repeats by the documented identity: rows, messages of both kinds, two-phase.

Two writers commit whatever has an identity of its own kind, and two tails (an ordinary slot and one that decodes
prepared transactions) are killed again and again. What is left after dropping is applied; nothing may be missing.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from rdsrepl.lsn import Lsn

SETUP = (
    "CREATE TABLE t (id bigint PRIMARY KEY, v bigint)",
    "CREATE PUBLICATION p FOR TABLE t",
    "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
    "SELECT pg_create_logical_replication_slot('tp', 'pgoutput', false, true)",
)


class IdentityWriter(threading.Thread):
    """Writes until it is stopped; remembers the messages that must be delivered."""

    def __init__(self, dsn: str, number: int) -> None:
        super().__init__()
        self.over = threading.Event()
        self.messages: set[str] = set()
        self.failure: psycopg.Error | None = None
        self._dsn = dsn
        self._number = number
        self._rng = random.Random(number)
        self._count = 0

    def run(self) -> None:
        try:
            with closing(psycopg.connect(self._dsn, autocommit=True)) as conn:
                while not self.over.is_set():
                    self._transaction(conn)
        except psycopg.Error as exc:
            self.failure = exc

    def _transaction(self, conn: psycopg.Connection[Any]) -> None:
        rng = self._rng
        end = rng.choices(("COMMIT", "ROLLBACK", "COMMIT PREPARED", "ROLLBACK PREPARED", ""), (6, 1, 2, 2, 2))[0]
        if not end:
            self._message(conn, transactional=False, comes=True)
            return
        conn.execute("BEGIN")
        for _ in range(rng.randint(0, 4)):
            kind = rng.random()
            row = rng.randint(0, 30) * 2 + self._number  # the writers never wait for each other
            if kind < 0.5:
                upsert = "INSERT INTO t VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET v = excluded.v"
                conn.execute(upsert, (row, rng.randint(0, 1 << 40)))
            elif kind < 0.7:
                conn.execute("DELETE FROM t WHERE id = %s", (row,))
            elif kind < 0.85:
                self._message(conn, transactional=True, comes="COMMIT" in end)
            else:
                self._message(conn, transactional=False, comes=True)
        if rng.random() < 0.5:
            self._message(conn, transactional=False, comes=True)  # its end is the start of the next record
        if "PREPARED" not in end:
            conn.execute(end)
            return
        gid = f"{os.getpid()}_{self._number}_{self._count}"
        conn.execute(f"PREPARE TRANSACTION '{gid}'")
        time.sleep(rng.uniform(0, 0.01))
        conn.execute(f"{end} '{gid}'")

    def _message(self, conn: psycopg.Connection[Any], *, transactional: bool, comes: bool) -> None:
        self._count += 1
        content = f"{self._number}:{self._count}"
        conn.execute("SELECT pg_logical_emit_message(%s, 'm', %s)", (transactional, content))
        if comes:
            self.messages.add(content)


def deduplicated(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Drop every line whose identity was seen; return the rest, and how many were dropped."""
    seen: dict[tuple[int, int, int], Any] = {}
    kept: list[dict[str, Any]] = []
    last = (0, 0, 0)
    lines = path.read_text().split("\n")[:-1]
    for line in lines:
        event = json.loads(line)
        key = (event["timeline"], int(Lsn.parse(event["commit_lsn"])), event["seq"])
        assert seen.setdefault(key, event) == event, "two lines share an identity"
        if seen[key] is event:
            assert key > last, "the lines are not in the order of their identities"
            kept.append(event)
            last = key
    return kept, len(lines) - len(kept)


def applied(events: Sequence[dict[str, Any]]) -> tuple[dict[int, int], set[str]]:
    """Return the table and the messages after a stream; a prepared transaction counts when it is committed."""
    table: dict[int, int] = {}
    messages: set[str] = set()
    prepared: dict[str, list[dict[str, Any]]] = {}

    def take(event: dict[str, Any]) -> None:
        if event["op"] == "m":
            assert event["content"] not in messages
            messages.add(event["content"])
        elif event["op"] == "d":
            del table[event["key"]["id"]]
        else:
            assert (event["op"] == "c") == (event["after"]["id"] not in table), "a change is missing"
            table[event["after"]["id"]] = event["after"]["v"]

    for event in events:
        if event["op"].endswith("_prepared"):
            for change in prepared.pop(event["gid"], []):
                if event["op"] == "commit_prepared":
                    take(change)
        elif "gid" in event:
            prepared.setdefault(event["gid"], []).append(event)
        else:
            take(event)
    return table, messages


def stream_with_kills(
    dsn: str, directory: Path, start: Callable[..., subprocess.Popen[bytes]], kills: int
) -> tuple[int, int, int]:
    """Kill both tails this many times; return how many lines were kept and dropped, and how many messages came.

    Args:
        dsn: a database in which ``SETUP`` was run.
        directory: for the streams.
        start: starts the program with these words, and keywords of ``Popen``.
        kills: how often each tail is killed.
    """
    rng = random.Random(kills)
    writers = [IdentityWriter(dsn, number) for number in (0, 1)]
    paths = {slot: directory / f"{slot}.jsonl" for slot in ("g", "tp")}
    for writer in writers:
        writer.start()
    try:
        for _ in range(kills):
            tails = []
            for slot, path in paths.items():
                with path.open("ab") as file:
                    tails.append(start("-q", "slot", "tail", slot, "-f", "json", stdout=file))
            sizes = {path: path.stat().st_size for path in paths.values()}
            deadline = time.monotonic() + 120
            while any(path.stat().st_size == size for path, size in sizes.items()):
                assert time.monotonic() < deadline, "nothing is streamed"
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            for tail in tails:
                tail.kill()
                tail.wait()
    finally:
        for writer in writers:
            writer.over.set()
        for writer in writers:
            writer.join()
    for writer in writers:
        if writer.failure is not None:
            raise writer.failure
    with closing(psycopg.connect(dsn, autocommit=True)) as conn:
        expected = dict(conn.execute("SELECT id, v FROM t").fetchall())
    wanted = writers[0].messages | writers[1].messages
    kept = dropped = 0
    for slot, path in paths.items():
        with path.open("ab") as file:
            assert start("-q", "slot", "tail", slot, "--until-now", "-f", "json", stdout=file).wait(timeout=120) == 0
        events, repeats = deduplicated(path)
        table, messages = applied(events)
        assert table == expected, slot
        assert messages == wanted, slot
        kept, dropped = kept + len(events), dropped + repeats
    return kept, dropped, len(wanted)
