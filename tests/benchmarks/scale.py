"""Large servers: 1,000 slots, 20,000 tables, 200 shards, a year of samples, rows of 900 kB.

Each part checks what the commands print; the figures are CPU seconds of our process, and its peak memory.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3

from rdsrepl.lsn import Lsn
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.state import slot_history
from rdsrepl.state.slot_history import Observation, SlotObservation
from tests.benchmarks.kinesis import AWS
from tests.benchmarks.measure import SCRIPT, connect, own_server, run
from tests.workloads.kinesis_server import KinesisServer

SLOTS, TABLES, PUBLISHED, WITHOUT_KEY = 1000, 20_000, 10_000, 500
SHARDS, RECORDS = 200, 20_000
LOOKS = 105_000
ROWS, ROW_BYTES = 150, 900_000
_AT_ONCE = 1000


@contextmanager
def state_directory() -> Iterator[None]:
    """Use a state directory of its own."""
    with tempfile.TemporaryDirectory(prefix="rdsrepl-bench-") as directory:
        before = os.environ.get("XDG_STATE_HOME")
        os.environ["XDG_STATE_HOME"] = directory
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_STATE_HOME"]
            else:
                os.environ["XDG_STATE_HOME"] = before


def measured(name: str, words: Sequence[str], *, codes: Sequence[int] = (0,)) -> bytes:
    """Run a command, print its cost, and return what it printed."""
    with tempfile.NamedTemporaryFile() as out:
        cost = run([SCRIPT, *words], Path(out.name), codes=codes)
        printed = Path(out.name).read_bytes()
    print(f"  {name:<44} {cost.cpu:6.2f} {cost.memory:6.0f} {len(printed.splitlines()):7,} lines")
    return printed


def slots(server: PostgresServer, dsn: str) -> None:
    """Run the commands that read all slots; the history fills up meanwhile."""
    with closing(connect(server)) as conn:
        conn.execute("SELECT pg_create_logical_replication_slot('slot_0000', 'pgoutput')")
        conn.execute(
            "SELECT pg_copy_logical_replication_slot('slot_0000', 'slot_' || lpad(g::text, 4, '0'))"
            f" FROM generate_series(1, {SLOTS - 1}) g"
        )
    print(f"\n{SLOTS:,} slots (CPU s, peak MB)")
    listed = measured("slot list", ["slot", "list", "--dsn", dsn])
    assert listed.count(b"slot_") == SLOTS
    for _ in range(25):  # more than the history has room for
        assert len(json.loads(measured_quietly(["slot", "check", "--dsn", dsn, "-o", "json"]))["holdings"]) == SLOTS
    measured("slot list, full history", ["slot", "list", "--dsn", dsn])
    assert (
        len(json.loads(measured("slot lag -o json", ["slot", "lag", "--dsn", dsn, "-o", "json"]))["holdings"]) == SLOTS
    )
    measured("slot check --nagios", ["slot", "check", "--dsn", dsn, "--nagios"], codes=(0, 1, 2))
    plan = ["slot", "prune", "--dsn", dsn, "--inactive-for", "60s", "--dry-run"]
    pruned = json.loads(measured("slot prune --dry-run -o json", [*plan, "-o", "json"]))
    assert len(pruned["kept"]) + len(pruned["candidates"]) == SLOTS
    watch = ["slot", "watch", "--dsn", dsn, "--interval", "1s", "--limit-looks", "10"]
    measured("slot watch, 10 polls", watch)


def measured_quietly(words: Sequence[str]) -> bytes:
    """Run a command; return what it printed."""
    with tempfile.NamedTemporaryFile() as out:
        run([SCRIPT, *words], Path(out.name), codes=(0, 8, 9))
        return Path(out.name).read_bytes()


def tables(server: PostgresServer, dsn: str) -> None:
    """Check a publication of many tables, some of which have no primary key."""
    with closing(connect(server)) as conn:
        for first in range(0, TABLES, _AT_ONCE):
            conn.execute(
                f"""DO $$ BEGIN FOR i IN {first}..{first + _AT_ONCE - 1} LOOP
                    EXECUTE format('CREATE TABLE t_%s (id int %s, v text)', lpad(i::text, 5, '0'),
                                   CASE WHEN i >= {WITHOUT_KEY} THEN 'PRIMARY KEY' END); END LOOP; END $$"""
            )
        conn.execute(
            f"""DO $$ BEGIN EXECUTE (SELECT 'CREATE PUBLICATION half FOR TABLE '
                || string_agg('t_' || lpad(g::text, 5, '0'), ', ') FROM generate_series(0, {PUBLISHED - 1}) g);
                END $$"""
        )
        conn.execute("ANALYZE")
    print(f"\n{TABLES:,} tables, {PUBLISHED:,} published, {WITHOUT_KEY} without a key (CPU s, peak MB)")
    check = ["publication", "check", "half", "--dsn", dsn]
    assert len(json.loads(measured("publication check -o json", [*check, "-o", "json"], codes=(9,)))) == WITHOUT_KEY
    measured("publication check", check, codes=(9,))
    measured("doctor", ["doctor", "--dsn", dsn], codes=(9,))
    found = json.loads(measured("doctor -o json", ["doctor", "--dsn", dsn, "-o", "json"], codes=(9,)))
    with closing(connect(server)) as conn:
        row = conn.execute("SELECT count(*) FROM pg_replication_slots").fetchone()
    assert row is not None and sum(one["check"] == "inactive_slots" for one in found["findings"]) == row[0]


def shards() -> None:
    """Read a stream of many shards, each of which answers five reads a second, 20 ms later."""
    with KinesisServer("many", shards=SHARDS) as kinesis:
        client = boto3.client(
            "kinesis",
            endpoint_url=kinesis.url,
            region_name=AWS["AWS_REGION"],
            aws_access_key_id="a",
            aws_secret_access_key="b",
        )
        for first in range(0, RECORDS, 500):
            rows = [{"PartitionKey": f"k{n}", "Data": b"%d" % n} for n in range(first, first + 500)]
            assert client.put_records(StreamName="many", Records=rows)["FailedRecordCount"] == 0
        kinesis.faults.read_limits, kinesis.faults.slow_seconds = True, 0.02
        os.environ |= {**AWS, "AWS_ENDPOINT_URL": kinesis.url}
        print(f"\n{SHARDS} shards (CPU s, peak MB)")
        words = ["stream", "tail", "many", "--from", "trim-horizon", "-o", "json", "--limit", str(RECORDS)]
        began = time.monotonic()
        rows = measured(f"stream tail, {RECORDS:,} records", words).splitlines()
        print(f"    {RECORDS / (time.monotonic() - began):,.0f} records/s; the endpoint returns 3 in an answer")
        assert sorted(int(json.loads(row)["data"]) for row in rows) == list(range(RECORDS))
        requests = kinesis.requests
        measured("stream tail, 20 s without records", ["stream", "tail", "many", "--duration", "20s"])
        print(f"    {(kinesis.requests - requests) / 20:,.0f} requests/s")
        measured("stream show", ["stream", "show", "many"])
        del os.environ["AWS_ENDPOINT_URL"]


def year() -> None:
    """Record a sample every five minutes for a year; read it back."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    began, longest = time.process_time(), 0.0
    for number in range(LOOKS):
        lsn = (1 << 40) + number * (30 << 20)
        seen = tuple(
            SlotObservation(
                f"consumer_{slot}",
                slot < 4,
                Lsn(lsn - (number * 7919 + slot * 104_729) % (300 << 20) if slot < 4 else 1 << 40),
                Lsn(lsn - 1000 if slot < 4 else 1 << 40),
                number % 77,
                f"PID {4000 + slot} (app)" if slot < 4 else None,
                (number if slot < 4 else 7, 1, 2, 3, 4, 5, 6, None),
            )
            for slot in range(5)
        )
        before = time.monotonic()
        slot_history.record(
            "year",
            Observation(start + timedelta(minutes=5 * number), start, 1, Lsn(lsn), number, seen),
        )
        longest = max(longest, time.monotonic() - before)
    spent = time.process_time() - began
    before_reading = time.process_time()
    history = slot_history.history("year")
    reading = time.process_time() - before_reading
    last = history[-1].at
    recent = [one for one in history if last - one.at <= timedelta(days=1) and not one.partial]
    assert len(recent) >= 288 and history[0].at == start
    assert all(one.slot("consumer_4") is None or not one.slot("consumer_4").active for one in history)  # type: ignore[union-attr]
    size = slot_history.history_file("year").stat().st_size
    print(f"\nA year of {LOOKS:,} samples of 5 slots: {spent:.0f} s of CPU to record, one at most {longest:.2f} s")
    print(
        f"  {size:,} bytes, {len(history):,} samples that reach back {(last - history[0].at).days} days,"
        f" read in {reading:.2f} s of CPU"
    )


def large_rows(server: PostgresServer, dsn: str) -> None:
    """Stream rows of 900 kB to an endpoint that takes a second for each answer."""
    with closing(connect(server)) as conn:
        conn.execute("CREATE TABLE large (id int PRIMARY KEY, v text)")
        conn.execute("ALTER TABLE large ALTER v SET STORAGE EXTERNAL")
        conn.execute("CREATE PUBLICATION large FOR TABLE large")
        conn.execute("SELECT pg_create_logical_replication_slot('large', 'pgoutput')")
        conn.execute(
            f"INSERT INTO large SELECT g, repeat(md5(g::text), {ROW_BYTES // 32}) FROM generate_series(1, {ROWS}) g"
        )
        conn.execute("SET synchronous_commit = on")
        conn.execute("SELECT pg_current_xact_id()")
    os.environ |= AWS
    print(f"\n{ROWS} rows of {ROW_BYTES:,} bytes to Kinesis, one second an answer (CPU s, peak MB)")
    for more in ([], ["--aggregate"], ["--requests", "16"], ["--requests", "64"]):
        with KinesisServer("changes", shards=16) as kinesis:
            kinesis.faults.slow_seconds = 1.0
            words = ["-q", "slot", "tail", "large", "--dsn", dsn, "--publication", "large", "--to", "kinesis:changes"]
            measured(
                " ".join(more) or "4 requests",
                [*words, "--until-now", "--no-confirm", "--endpoint-url", kinesis.url, *more],
            )
            assert len(kinesis.records("changes")) == ROWS


def report(*parts: str) -> None:
    """Run all parts, or those that are named: ``year``, ``shards``, ``large_rows``, ``slots``, ``tables``."""
    with state_directory():
        for alone in (year, shards):
            if not parts or alone.__name__ in parts:
                alone()
        wanted = [part for part in (large_rows, slots, tables) if not parts or part.__name__ in parts]
        if not wanted:
            return
        settings = {"max_replication_slots": str(SLOTS + 10), "max_locks_per_transaction": "1024", "fsync": "off"}
        with own_server(**settings) as server:
            for part in wanted:
                part(server, server.dsn(user="bench", dbname="bench"))
