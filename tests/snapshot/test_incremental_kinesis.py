"""A snapshot into a stream that goes to Kinesis: order per key holds, and verify finds the records complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rdsrepl.snapshot.requests import Request
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
