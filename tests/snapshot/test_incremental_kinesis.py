"""A snapshot into a stream that goes to Kinesis: order per key holds, and verify finds the records complete."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rdsrepl.snapshot.requests import Control, Method, Request, Verb
from tests.fixtures.kinesis import AWS, STREAM, events, slot_of
from tests.fixtures.kinesis import source as source
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.waiting import wait_until
from tests.snapshot.test_incremental import signal
from tests.workloads.kinesis_server import KinesisServer


@pytest.mark.parametrize("more", [(), ("--aggregate",)], ids=["by key", "aggregated"])
def test_order_per_key(
    source: Database, kinesis: KinesisServer, rdsrepl: Program, tmp_path: Path, more: tuple[str, ...]
) -> None:
    source.run("INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 400) i")
    state = tmp_path / "state.json"
    words = ("slot", "tail", slot_of(source), "--to", f"kinesis:{STREAM}", "--endpoint-url", kinesis.url)
    process = rdsrepl.start(*words, "--state", str(state), *more, dsn=source.dsn, env=AWS)
    try:
        signal(source, Request("one", slot_of(source), ("public.t",), chunk_rows=50, rows_per_second=800))
        for number in range(1, 6):
            source.run(f"UPDATE t SET n = {number} WHERE id % 2 = 0", f"DELETE FROM t WHERE id = {number * 60}")
        wait_until(lambda: state.exists() and json.loads(state.read_text())["snapshots"][0]["status"] == "done", "done")
        source.run("INSERT INTO t VALUES (1000, 0, 'end')")
        wait_until(lambda: any(event["key"] == {"id": 1000} for _, event in events(kinesis)), "all of it is there")
        kinesis.faults.read_records = 2_000
        checked = rdsrepl(
            *("verify", "--stream", f"kinesis:{STREAM}", "--slot", slot_of(source), "--publication", "p", "--complete"),
            dsn=source.dsn,
            env={**AWS, "AWS_ENDPOINT_URL": kinesis.url},
        )
        assert checked.code == 0, (checked.out, checked.err)
    finally:
        process.terminate()
        process.communicate()
    rows: dict[int, int] = {}
    last: dict[int, tuple[str, int]] = {}
    for key, event in events(kinesis):
        number = event["key"]["id"]
        assert key == f"public.t:{number}"
        identity = (event["commit_lsn"].rjust(17, "0"), event["seq"])
        assert identity >= last.get(number, ("", 0)), "the order of the key"
        last[number] = identity
        if event["op"] == "d":
            rows.pop(number, None)
        else:
            rows[number] = event["after"]["n"]
    assert rows == dict(source.run("SELECT id, n FROM t"))


def test_a_table_without_a_key(source: Database, kinesis: KinesisServer, rdsrepl: Program, tmp_path: Path) -> None:
    """Its TRUNCATE, rows and changes are in one shard; where they would not be, it is refused."""
    source.run("CREATE TABLE log (a int)", "ALTER TABLE log REPLICA IDENTITY FULL", "ALTER PUBLICATION p ADD TABLE log")
    source.run("INSERT INTO log SELECT i % 3 FROM generate_series(1, 60) i")
    state = tmp_path / "state.json"
    words = ("slot", "tail", slot_of(source), "--to", f"kinesis:{STREAM}", "--endpoint-url", kinesis.url)
    words += ("--state", str(state), "--allow-snapshot-truncate")

    def wait_for(status: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            one = dict(json.loads(state.read_text())["snapshots"][0]) if state.exists() else {"status": ""}
            return one if one["status"] == status else None

        return dict(wait_until(found, f"it is {status}"))

    process = rdsrepl.start(*words, "--partition-by", "transaction", dsn=source.dsn, env=AWS)
    try:
        signal(source, Request("one", slot_of(source), ("public.log",), chunk_rows=10, method=Method.slot))
        assert "different shards" in wait_for("failed")["reason"]
    finally:
        process.terminate()
        process.communicate()
    process = rdsrepl.start(*words, dsn=source.dsn, env=AWS)
    try:
        signal(source, Control(Verb.resume, "one", slot_of(source)))
        source.run("INSERT INTO log VALUES (7)", "DELETE FROM log WHERE a = 1")
        wait_for("done")
        source.run("INSERT INTO log VALUES (8)")
        last = {"a": 8}
        wait_until(lambda: any(event["after"] == last for _, event in events(kinesis)), "all of it is there")
    finally:
        process.terminate()
        process.communicate()
    found = [event for key, event in events(kinesis) if key == "public.log"]
    begin = next(number for number, event in enumerate(found) if event["op"] == "t")
    rows: Counter[int] = Counter()
    for event in found[begin:]:
        rows += Counter([event["after"]["a"]] if event["after"] else [])
        rows -= Counter([event["before"]["a"]] if event["before"] else [])
    assert rows == Counter(a for (a,) in source.run("SELECT a FROM log"))
