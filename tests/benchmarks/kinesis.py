"""To Kinesis: our rate and other tools', with the same backlog and local server; our maximum rate; our latency.

The other tools are a psycopg2 script as in many tutorials, and pg2kinesis, which is installed for the run.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.benchmarks.measure import SCRIPT, connect, own_server, run
from tests.fixtures.sandbox import Cloud

CHANGES = 600_000
ROWS = 100
KEYS = 5_000
SCRIPT_CHANGES = 5_000
SINGLE = 50
AWS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-west-1"}


@contextmanager
def kinesis_server(*words: str) -> Iterator[str]:
    """Run the local Kinesis server in its own process; yield its endpoint."""
    command = [sys.executable, "-m", "tests.workloads.kinesis_server", *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def report() -> None:
    """Measure and print the rates, and the latency."""
    with own_server() as server:
        compare(server)
        latency(server)


def compare(server: PostgresServer) -> None:
    """Measure and print the rates."""
    os.environ.update(AWS)
    with closing(connect(server)) as conn:
        conn.execute("CREATE TABLE changes (id int PRIMARY KEY, k int, v text)")
        conn.execute("CREATE PUBLICATION k FOR TABLE changes")
        for slot, plugin in (("k", "pgoutput"), ("kw", "wal2json"), ("kp", "wal2json")):
            conn.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (slot, plugin))
        conn.execute(
            f"""DO $$ BEGIN FOR t IN 1..{CHANGES // ROWS} LOOP
                INSERT INTO changes SELECT i, i % {KEYS}, repeat('x', 150)
                FROM generate_series(1 + (t - 1) * {ROWS}, t * {ROWS}) i;
                COMMIT; END LOOP; END $$"""
        )
        # A synchronous commit: everything before it is flushed.
        conn.execute("SET synchronous_commit = on")
        conn.execute("SELECT pg_current_xact_id()")
    dsn = server.dsn(user="bench", dbname="bench")
    ours = [SCRIPT, "-q", "--dsn", dsn, "slot", "tail", "k", "--publication", "k", "--to", "kinesis:changes"]
    ours += ["--no-confirm", "--endpoint-url"]
    with tempfile.TemporaryDirectory(prefix="rdsrepl-pg2kinesis-") as directory:
        _compare(dsn, ours, Pg2kinesis(server, directory))


def _compare(dsn: str, ours: list[str], pg2kinesis: Pg2kinesis) -> None:
    with kinesis_server("--null") as url:
        print(
            f"\nTo a Kinesis server that accepts everything at once: {CHANGES:,} rows of 200 bytes "
            "(changes/s, our CPU in µs a change, peak MB)"
        )
        for name, words, count in (
            ("own keys", ["--until-now"], CHANGES),
            (f"{KEYS:,} keys", ["--until-now", "--partition-by", "k"], CHANGES),
            ("own keys, --aggregate", ["--until-now", "--aggregate"], CHANGES),
            ("one key, --aggregate", ["--partition-by", "table", "--aggregate", "--limit", "100000"], 100_000),
            ("one key", ["--partition-by", "table", "--limit", "3000"], 3_000),
        ):
            cost = run([*ours, url, *words])
            print(f"  {name:<28} {count / cost.wall:9,.0f} {cost.cpu * 1e6 / count:6.1f} {cost.memory:6.1f}")
        print(pg2kinesis.line(pg2kinesis.rate(url, CHANGES // 2)))
    with kinesis_server() as url:
        copied = run([sys.executable, "-m", "tests.benchmarks.psycopg2_script", dsn, "kw", url, str(SCRIPT_CHANGES)])
        mine = run([*ours, url, "--limit", str(20 * SCRIPT_CHANGES)])
        packed = run([*ours, url, "--limit", str(20 * SCRIPT_CHANGES), "--aggregate"])
        other_rate = pg2kinesis.rate(url, 20 * SCRIPT_CHANGES)
    theirs, rate = SCRIPT_CHANGES / copied.wall, 20 * SCRIPT_CHANGES / mine.wall
    print("\nTo a Kinesis server that stores the records (changes/s)")
    print(f"  {'psycopg2 script':<28} {theirs:9,.0f}   one put_record for each message, one key")
    print(pg2kinesis.line(other_rate))
    print(f"  {'rdsrepl':<28} {rate:9,.0f}   × {rate / theirs:.1f} of the psycopg2 script", end="")
    print(f", × {rate / other_rate:.1f} of pg2kinesis" if other_rate else "")
    print(f"  {'rdsrepl --aggregate':<28} {20 * SCRIPT_CHANGES / packed.wall:9,.0f}")


class Pg2kinesis:
    """pg2kinesis from PyPI, installed into its own directory."""

    def __init__(self, server: PostgresServer, directory: str) -> None:
        # Without its dependencies: boto3 and psycopg2 are installed, in the versions of the other measurements.
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", directory]
        done = subprocess.run([*pip, "pg2kinesis", "click"], capture_output=True, text=True, check=False)
        self.trouble = f"cannot be installed: {(done.stderr.splitlines() or ['?'])[-1]}" if done.returncode else ""
        self._directory = directory
        self._where = server.keywords(user="bench", dbname="bench")

    def rate(self, url: str, wanted: int) -> float:
        """Return the rate in changes/s until it has sent this many; 0 if it fails, see ``trouble``."""
        if self.trouble:
            return 0.0
        where = self._where
        command = [sys.executable, "-m", "pg2kinesis", "-h", where["host"], "-p", where["port"], "-u", where["user"]]
        command += ["-d", "bench", "-s", "kp", "-k", "changes", "--pg-slot-output-plugin", "wal2json", "--full-change"]
        env = {**os.environ, "PYTHONPATH": self._directory, "AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "eu-west-1"}
        started = time.monotonic()
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        sent, last = 0, ""
        for line in process.stderr:
            last = line.strip() or last
            if found := re.search(r"Sending (\d+) records", line):
                sent += int(found[1])
            if sent >= wanted:
                break
        took = time.monotonic() - started
        process.terminate()
        process.wait()
        process.stderr.close()
        if sent >= wanted:
            return sent / took
        self.trouble = f"does not run: {last}"
        return 0.0

    def line(self, rate: float) -> str:
        """Return the line to print."""
        said = self.trouble or "full changes, aggregated under a transaction's id"
        return f"  {'pg2kinesis':<28} {rate:9,.0f}   {said}"


def latency(server: PostgresServer) -> None:
    """Measure the time from INSERT to the record at a consumer, on an idle server, through moto."""
    with (
        tempfile.TemporaryDirectory(prefix="rdsrepl-bench-") as directory,
        closing(connect(server)) as conn,
    ):
        cloud = Cloud(Path(directory), "--default-group")
        cloud.program.env["PGPASSWORD"] = os.environ["PGPASSWORD"]
        kinesis = cloud.client("kinesis")
        kinesis.create_stream(StreamName="single", ShardCount=1)
        conn.execute("CREATE TABLE single (id int PRIMARY KEY)")
        conn.execute("CREATE PUBLICATION single FOR TABLE single")
        conn.execute("SELECT pg_create_logical_replication_slot('single', 'pgoutput')")
        conn.execute("SET synchronous_commit = on")
        words = ("-q", "slot", "tail", "single", "--publication", "single", "--to", "kinesis:single")
        process = cloud.program.start(*words, dsn=server.dsn(user="bench", dbname="bench"))
        shard = kinesis.list_shards(StreamName="single")["Shards"][0]["ShardId"]
        position = kinesis.get_shard_iterator(StreamName="single", ShardId=shard, ShardIteratorType="TRIM_HORIZON")
        iterator: str = position["ShardIterator"]
        took: list[float] = []
        try:
            for change in range(SINGLE + 5):
                time.sleep(0.2)
                started = time.monotonic()
                conn.execute("INSERT INTO single VALUES (%s)", (change,))
                rows: list[Any] = []
                while not rows:
                    answer = kinesis.get_records(ShardIterator=iterator)
                    rows, iterator = answer["Records"], answer["NextShardIterator"]
                took.append((time.monotonic() - started) * 1000)
        finally:
            process.terminate()
            process.wait()
            cloud("sandbox", "down")
        # The first changes include the start of the program.
        took = sorted(took[5:])
        print(f"\nFrom before INSERT to the record read from moto, idle server, {SINGLE} changes", end="")
        print(" (median, 95th percentile, ms)")
        print(f"  {'rdsrepl':<28} {statistics.median(took):6.1f} {took[int(SINGLE * 0.95)]:6.1f}")
