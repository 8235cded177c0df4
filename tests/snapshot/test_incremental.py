"""Snapshots into a running stream: chunks, markers and rows, on real servers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rdsrepl.snapshot.requests import PREFIX, Control, Request, encode
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.waiting import wait_until


def signal(source: Database, signal: Request | Control) -> None:
    """Send a signal as ``rdsrepl snapshot`` does."""
    source.value(f"SELECT pg_logical_emit_message(true, '{PREFIX}', '{encode(signal)}')")


def events(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of an output file."""
    content = path.read_bytes()
    return [json.loads(line, parse_float=str) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def folded(found: Sequence[dict[str, Any]], table: str) -> dict[str, dict[str, Any]]:
    """Return the rows that a consumer has after some events of the format ``json``."""
    rows: dict[str, dict[str, Any]] = {}
    for event in found:
        if event["table"] != table:
            continue
        key = json.dumps(event["key"])
        if event["op"] == "t":
            rows.clear()
        elif event["op"] == "d":
            rows.pop(key, None)
        else:
            old = json.dumps(event["before"]) if event["before"] else key
            rows[key] = {**rows.get(old, {}), **event["after"]}
            if old != key:
                rows.pop(old, None)
    return rows


class Tail:
    """A running tail that writes to a file, with a state file of its own."""

    def __init__(self, rdsrepl: Program, source: Database, directory: Path) -> None:
        self._rdsrepl, self._source = rdsrepl, source
        self.out, self.state = directory / "out.jsonl", directory / "state.json"

    @contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        command = ["slot", "tail", "s", "--create", "pgoutput", "--publication", "p", "--state", str(self.state)]
        with self.out.open("ab") as file:
            process = self._rdsrepl.start(*command, "-f", "json", *words, dsn=self._source.dsn, stdout=file)
        try:
            wait_until(
                lambda: self._source.value(
                    "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 's' AND active"
                    " AND database = current_database()"
                ),
                "the slot is streamed",
            )
            yield process
        finally:
            process.terminate()
            process.communicate()

    def snapshots(self) -> dict[str, dict[str, Any]]:
        if not self.state.exists():
            return {}
        return {one["request"]["id"]: one for one in json.loads(self.state.read_text())["snapshots"]}

    def status(self, snapshot_id: str) -> str | None:
        return self.snapshots().get(snapshot_id, {}).get("status")

    def wait_for(self, snapshot_id: str, status: str = "done") -> dict[str, Any]:
        ends = {status, "done", "failed", "cancelled"}
        wait_until(lambda: self.status(snapshot_id) in ends, f"snapshot {snapshot_id} is {status}", seconds=60)
        state = self.snapshots()[snapshot_id]
        assert state["status"] == status, state["reason"]
        return state

    def events(self) -> list[dict[str, Any]]:
        return events(self.out)


@pytest.fixture
def source(db18: Database) -> Database:
    """A database with a table of 1,000 rows and a publication."""
    db18.run(
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text)",
        "INSERT INTO t SELECT i, i, 'row ' || i FROM generate_series(1, 1000) i",
        "CREATE PUBLICATION p FOR ALL TABLES",
    )
    return db18


@pytest.fixture
def tail(rdsrepl: Program, source: Database, tmp_path: Path) -> Tail:
    return Tail(rdsrepl, source, tmp_path)


def test_the_rows_come_in_chunks_with_the_identity_of_their_markers(source: Database, tail: Tail) -> None:
    with tail.running():
        signal(source, Request("one", "s", ("public.t",), chunk_rows=300))
        state = tail.wait_for("one")
        source.run("UPDATE t SET n = -1 WHERE id = 7")
        wait_until(lambda: tail.events()[-1]["op"] == "u", "the stream goes on")
    (table,) = state["tables"]
    assert (table["rows"], table["is_done"], table["cursor"]) == (1000, True, ["1000"])
    found = tail.events()
    copied = [event for event in found if event["op"] == "r"]
    assert [event["after"]["id"] for event in copied] == list(range(1, 1001)), "in the order of the key, none twice"
    assert {event["op"] for event in found} == {"r", "u"}, "signals and markers are not in the output"
    identities = [(event["commit_lsn"], event["seq"]) for event in found]
    assert len(set(identities)) == len(identities)
    assert copied[0]["snapshot"] == {"id": "one", "chunk": 1} and copied[0]["seq"] == 1 and copied[0]["xid"]
    assert folded(found, "t")['{"id": 7}']["n"] == -1
