"""What one shard takes: 1,000 records and 1 MiB a second, limited by the local Kinesis server.

Rows under their own keys, whose changes have about 210 bytes and 390, with ``--aggregate`` and without. A consumer that
separates the records, and discards what the KCL discards, checks loss and order. It also prints the cost: records, MiB
and put payload units of a million changes.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from contextlib import closing
from typing import LiteralString

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks.measure import SCRIPT, connect, own_server
from tests.workloads.kcl_consumer import delivered, of_record
from tests.workloads.kinesis_server import KinesisServer

CHANGES = {False: 8_000, True: 60_000}
ROWS = 100
AWS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-west-1"}
# Rows of one number, and of 200 bytes.
_INSERTS: tuple[LiteralString, ...] = (
    "INSERT INTO b.s SELECT i FROM generate_series(%s::int, %s::int) i",
    "INSERT INTO wide SELECT i, i %% 5000, repeat('x', 150) FROM generate_series(%s::int, %s::int) i",
)
# PutRecords is billed in units of 25 KB of a record.
_UNIT_BYTES = 25 * 1024


def report() -> None:
    """Measure and print all of them."""
    with own_server() as server:
        _measure_all(server)


def _measure_all(server: PostgresServer) -> None:
    with closing(connect(server)) as conn:
        conn.execute("CREATE SCHEMA b")
        conn.execute("CREATE TABLE b.s (i int PRIMARY KEY)")
        conn.execute("CREATE TABLE wide (id int PRIMARY KEY, k int, v text)")
        conn.execute("CREATE PUBLICATION s FOR TABLE b.s, wide")
    print("\nOne shard that takes 1,000 records and 1 MiB a second, a key for each change")
    for insert in _INSERTS:
        for aggregate, count in CHANGES.items():
            _measure(server, insert, aggregate=aggregate, count=count)


def _measure(server: PostgresServer, insert: LiteralString, *, aggregate: bool, count: int) -> None:
    with closing(connect(server)) as conn:
        conn.execute("TRUNCATE b.s, wide")
        conn.execute("SELECT pg_create_logical_replication_slot('shard', 'pgoutput')")
        for first in range(1, count + 1, ROWS):
            conn.execute(insert, (first, first + ROWS - 1))
        conn.execute("SET synchronous_commit = on")
        conn.execute("SELECT pg_current_xact_id()")
    dsn = server.dsn(user="bench", dbname="bench")
    with KinesisServer("changes", shards=1) as kinesis:
        kinesis.faults.shard_limits = True
        words = [SCRIPT, "--dsn", dsn, "slot", "tail", "shard", "--publication", "s", "--to", "kinesis:changes"]
        words += ["--until-now", "--no-confirm", "--endpoint-url", kinesis.url]
        words += ["--aggregate"] if aggregate else []
        done = subprocess.run(words, env={**os.environ, **AWS}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (shard,) = kinesis.shards["changes"]
        refused = kinesis.refused
    changes = [data for _, data in delivered([shard])]
    ids = [next(iter(json.loads(data)["key"].values())) for data in changes]
    # Each change has its own key: without aggregation there is no order among them.
    assert (ids if aggregate else sorted(ids)) == list(range(1, count + 1)), "each change once, in order"
    # Of the whole seconds: the limits are by the second.
    first, last = int(shard.times[0]) + 1, int(shard.times[-1])
    within = [record for record, time in zip(shard.records, shard.times, strict=True) if first <= time < last]
    rate = sum(1 for one in within for _ in of_record(shard, *one)) / (last - first)
    sizes = [len(key) + len(data) for key, data in shard.records]
    with closing(connect(server)) as conn:
        conn.execute("SELECT pg_drop_replication_slot('shard')")
    scale = 1_000_000 / count
    units = sum(math.ceil(size / _UNIT_BYTES) for size in sizes)
    print(
        f"  {'--aggregate' if aggregate else 'without':<12} {rate:6,.0f} changes/s of "
        f"{sum(map(len, changes)) / count:.0f} bytes; {refused / len(sizes):.2f} refusals for each stored record"
    )
    print(
        f"    a million changes: {len(sizes) * scale:9,.0f} records, {sum(sizes) * scale / 2**20:3,.0f} MiB, "
        f"{units * scale:9,.0f} put payload units"
    )
